//! `twtool bind-test`: why bind() fails on a port, and what would help; and the textbook experiment that shows it.

use std::collections::BTreeMap;

use clap::Args;

use super::netns::NetnsArgs;
use super::probe::{self, Sockets, With};
use super::{Answer, CommandError, Context, Format, GlobalArgs, bad_value, interrupted};
use crate::analysis::advice::{self, Evidence};
use crate::analysis::next::{self, Failure};
use crate::analysis::{conflict, verdict};
use crate::lab;
use crate::model::addr::ScopedAddr;
use crate::model::bind::{Attempt, BindAddr, Cause, ReuseOptions, ReuseportNote, Verdict};
use crate::model::demo::DemoRun;
use crate::model::facts::Setting;
use crate::model::port::{Port, PortArg};
use crate::model::socket::Socket;
use crate::source::{self, Choice, Source};
use crate::sys;
use crate::sys::bind::Tried;
use crate::sys::interrupt::Held;
use crate::view;
use crate::view::bind_test::BindTest;
use crate::view::json::Envelope;

/// How often the two looks, at the sockets and by binding, are repeated until they fit together.
const LOOKS: u32 = 3;

/// Arguments of `twtool bind-test`.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "\
What a probe can disturb: each attempt really binds the port and closes it again within microseconds. A server that \
starts in that moment can get EADDRINUSE. On kernels before 6.18 a port that was bound explicitly also stays out of \
connect()'s choice as long as a bucket is on it. A bind with SO_REUSEPORT leaves a note in the kernel as long as other sockets are on the port; by that note a second server \
could get in. Each attempt clears its note by one more bind, on an address that is not in use. Signals wait until then; only \
SIGKILL can leave the note, until the next bind without SO_REUSEPORT works on the port. Clearing also erases the note of a real \
server: note_lost and a warning report it where that changes an answer. A probe never listens unless --listen is given; with \
it, a real client could connect to the probe and be closed.

Exit codes: 0 free or reusable, 1 blocked or denied, 2 could not be tested.

Examples:
  twtool bind-test 8080                        would my server, with SO_REUSEADDR, get the port?
  twtool bind-test 8080 --with none            and without any option?
  twtool bind-test https --addr 192.0.2.1 --addr ::1
  twtool bind-test 8080 --netns 4711           in the network namespace of process 4711
  twtool bind-test 8080 --json | jq -r '.cause, .free_in_ms'
  twtool bind-test 8080 --demo                 see TIME_WAIT block a port, in a private namespace
")]
pub struct BindTestArgs {
    /// Port to test: a number or a TCP service name of /etc/services; 0 lets the kernel choose
    #[arg(value_name = "PORT")]
    port: PortArg,
    /// Address to bind; repeat for more [default: 0.0.0.0 and ::]
    #[arg(long, value_name = "ADDR", value_parser = probe::addr_arg, conflicts_with = "demo")]
    addr: Vec<ScopedAddr>,
    /// What your server sets before bind()
    #[arg(long, value_enum, default_value_t = With::Reuseaddr, value_name = "OPTIONS", conflicts_with = "demo")]
    with: With,
    /// Also listen(); it can take a real connection for a moment
    #[arg(long, conflicts_with = "demo")]
    listen: bool,
    /// Show on this kernel how TIME_WAIT blocks the port, in a private network namespace (no root, host untouched)
    #[arg(long, conflicts_with = "netns")]
    demo: bool,
    #[command(flatten)]
    netns: NetnsArgs,
}

/// Answers.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &BindTestArgs, global: &GlobalArgs, context: &mut Context) -> Result<Answer, CommandError> {
    if global.format() == Format::Csv {
        return Err(bad_value(
            &"csv",
            "--output <FORMAT>",
            "a bind test is not flat; there are table, json and ndjson",
        ));
    }
    // A thread that looks into another namespace alone decides when signals are delivered (see `sys::bind::attempts`).
    let held = Held::all();
    args.netns.within(|| {
        held.release();
        answer(args, global, context)
    })
}

fn answer(args: &BindTestArgs, global: &GlobalArgs, context: &mut Context) -> Result<Answer, CommandError> {
    let facts = source::kernel_facts();
    let port = probe::single_port(&args.port, &facts)?;
    if args.demo {
        return demo(port, global, context);
    }
    let mut warnings = facts.gaps(&Setting::ALL);
    let known = warnings.is_empty();
    let addrs = probe::addresses(&args.addr, global, &facts, &mut warnings)?;

    let Look { tried: Tried { attempts, note }, sockets, consistent } = look(&addrs, port, args.listen)?;
    warnings.extend((!sockets.complete).then(interrupted));
    warnings.extend((!consistent).then(|| {
        "what binding says and what the kernel lists did not fit together in three looks: sockets come and go, or one is \
         not listed"
            .into()
    }));
    warnings.extend(note.warning().map(str::to_owned));
    let mut complete = known && sockets.complete && sockets.unread.is_none();
    warnings.extend(sockets.warnings);
    warnings.extend(sockets.unread);
    let list = sockets.list;
    let list_is_empty = list.is_empty();
    let (holders, unread) = probe::holders(&plain(&attempts), list, BTreeMap::new());
    let all_read = unread.is_none();
    warnings.extend(unread);
    warnings.extend(probe::hidden_owners(&holders));
    let with = args.with.options();
    let conclusion = verdict::conclude(&facts, port, with, &attempts, &holders);
    let bound_sockets_are_listed = sockets.bound_sockets_are_listed;
    // Where a holder may exist that the source cannot show, the answer is not whole.
    let unseen = conclusion.cause == Cause::Unknown && !bound_sockets_are_listed;
    let doubtful = note == ReuseportNote::Left && with.reuseport;
    complete &= !unseen && !doubtful && all_read;
    let uid = sys::capabilities::effective_user();
    // Where a TCP socket has the port, that one is the answer.
    let udp = if list_is_empty { sys::udp::has_port(port) } else { Ok(false) };
    if let Err(error) = &udp {
        complete = false;
        warnings.push(format!("whether a UDP socket has the port too is unknown: {error}"));
    }
    let evidence = Evidence {
        facts: &facts,
        port,
        with,
        attempts: &attempts,
        holders: &holders,
        conclusion,
        bound_sockets_are_listed,
        uid,
        udp: udp.unwrap_or_default(),
    };
    let next = match conclusion.verdict {
        Verdict::Free | Verdict::Reusable => vec![],
        Verdict::Blocked | Verdict::Denied => next::steps(&Failure {
            shell: &args.netns.shell(context),
            uid,
            facts: &facts,
            port,
            addrs: if args.addr.is_empty() && global.ipv4_on_the_wire().is_none() { &[] } else { &addrs },
            with,
            cause: conclusion.cause,
            holders: &holders,
            free_in: conclusion.free_in,
            waited: false,
        }),
    };
    let advice = advice::advise(&evidence);
    let chosen_port = attempts.first().and_then(|attempt| attempt.bound).filter(|_| port.reserved_by_rfc());

    context.warn(&warnings);
    let reserve = next::reserve(&args.netns.shell(context), &facts, port);
    let test = BindTest {
        evidence,
        chosen_port,
        next: &next,
        reserve: &reserve,
        advice: &advice,
        note_lost: note != ReuseportNote::Kept,
    };
    let envelope = Envelope { schema: "twtool.bind-test/1", facts: &facts, complete, warnings: &warnings };
    match global.format() {
        Format::Json => view::bind_test::document(context.out, envelope, &test)?,
        Format::Ndjson => view::bind_test::ndjson(context.out, &test)?,
        Format::Table | Format::Csv => view::bind_test::page(context.out, &test, context.look)?,
    }
    Ok(match conclusion.verdict {
        _ if !complete => Answer::Incomplete,
        Verdict::Free | Verdict::Reusable => Answer::Yes,
        Verdict::Blocked | Verdict::Denied => Answer::No,
    })
}

/// What binding says, and what the kernel's list says.
struct Look {
    tried: Tried,
    sockets: Sockets,
    consistent: bool,
}

/// Looks at the sockets and then binds, again where a socket came or went in between.
fn look(addrs: &[BindAddr], port: Port, listen: bool) -> Result<Look, CommandError> {
    let mut source = Source::kernel(Choice::Auto)?;
    let mut looks = 0;
    loop {
        let sockets = probe::sockets_on(&mut source, port)?;
        let tried = sys::bind::attempts(addrs, port, listen)?;
        looks += 1;
        let shown: Vec<Socket> = sockets.list.iter().map(|(socket, _)| *socket).collect();
        // Port 0 is nobody's, so nothing of it is listed.
        let consistent = port.reserved_by_rfc() || conflict::consistent(&plain(&tried.attempts), &shown);
        if consistent || looks == LOOKS {
            return Ok(Look { tried, sockets, consistent });
        }
    }
}

/// Those without an option.
fn plain(attempts: &[Attempt]) -> Vec<Attempt> {
    attempts.iter().filter(|attempt| attempt.options == ReuseOptions::NONE).copied().collect()
}

fn demo(port: Port, global: &GlobalArgs, context: &mut Context) -> Result<Answer, CommandError> {
    if global.ipv4_on_the_wire() == Some(false) {
        return Err(CommandError::Usage("the argument '-6' cannot be used with '--demo': the lab speaks IPv4".into()));
    }
    if port.reserved_by_rfc() {
        return Err(bad_value(&port, "<PORT>", "--demo needs a port of its own, 1-65535; 0 lets the kernel choose"));
    }
    let runs = lab::demo::run(port)?;
    // Of the private namespace in which it ran last.
    let facts = source::kernel_facts();
    match global.format() {
        Format::Json => {
            let envelope = Envelope { schema: "twtool.bind-test-demo/1", facts: &facts, complete: true, warnings: &[] };
            view::bind_test::demo_document(context.out, envelope, &runs)?;
        }
        Format::Ndjson => view::bind_test::demo_ndjson(context.out, &facts, &runs)?,
        Format::Table | Format::Csv => view::bind_test::demo_page(context.out, port, &facts, &runs, context.look)?,
    }
    let documented = runs.iter().all(DemoRun::as_documented);
    if !documented {
        context.warn(&["this kernel did not do what socket(7) says; please report it with this output".to_owned()]);
    }
    Ok(if documented { Answer::Yes } else { Answer::No })
}
