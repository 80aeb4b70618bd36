//! `twtool bind-test`: explains why bind() fails on a port. With `--demo`, it runs an experiment that shows the failure.

use clap::Args;

use super::netns::NetnsArgs;
use super::port_args::{SERVER_ARGS, ServerArgs, one_port};
use super::{CommandError, Context, ExitStatus, Format, GlobalArgs, bad_value, ends_orphans, hide_refused};
use crate::analysis::advice::{self, BindEvidence};
use crate::analysis::next::{self, Failure};
use crate::lab;
use crate::model::bind::{Cause, ReuseportNote, Verdict};
use crate::model::demo::DemoRun;
use crate::model::port::{Port, PortArg};
use crate::snapshot::{Answer, Snapshot};
use crate::view;
use crate::view::bind_test::BindTest;
use crate::view::json::Envelope;

/// Arguments of `twtool bind-test`.
#[derive(Args, Clone, Debug)]
#[command(mut_args(|arg| hide_refused(arg, &[], &[Format::Csv])), after_long_help = "\
Side effects: each attempt really binds the port, and closes the socket within microseconds. A server that starts at that \
moment can get EADDRINUSE. On kernels before 6.18, the test also marks the port as explicitly bound until the last socket on \
it ends. Until then, connect() does not choose the port.

After a successful bind with SO_REUSEPORT, the kernel stores the user of the bind in its structure for the port (fastreuseport). \
twtool calls this entry a note. While the kernel has the note, it does not check later SO_REUSEPORT binds of the same user for \
conflicts, so a second server could bind the port. twtool clears the note with one more bind of the port, on an unused address and \
without SO_REUSEPORT. twtool blocks signals until then. If SIGKILL ends twtool before that bind, the note stays until a bind without \
SO_REUSEPORT succeeds on the port, or no socket is on the port.

The bind with which twtool clears its note also clears the note of a real server. An attempt of the test may have \
succeeded only because of that note. So if any attempt failed, twtool repeats the SO_REUSEPORT attempts that succeeded, \
now without any note. If a repeated attempt fails, the first one needed the note of a real server, and that note is lost: \
a second server of the same user can no longer bind. twtool then prints a warning, and the JSON key `note_lost` is true. \
twtool also prints a warning and sets `note_lost` if it could not clear its own note. In that case, a second server of the \
user of twtool's bind may be able to bind.

twtool calls listen() only if --listen or --together is given. The test socket then drops every packet, so a client that \
connects at that moment sends its SYN again after a second. twtool drops the packets with a socket filter. A Multipath TCP \
socket cannot have a filter, and the kernel can refuse the filter to an unprivileged user if its memory for compiled filters is \
used up. In both cases a client can connect to the test socket.

Socket options of the server can change the answer. Give them with --v6only, --dev, --freebind, --transparent and --mptcp. If \
--freebind, or the other value of --v6only, would change the verdict, one more line shows that verdict. --user runs the binds as \
another user. \
--together opens all addresses at once. A socket on 0.0.0.0 and a socket on :: then conflict, unless the socket on :: has \
IPV6_V6ONLY, or both sockets have SO_REUSEPORT.

Exit codes: 0 free or reusable, 1 blocked or denied, 2 the test could not be completed.

Examples:
  twtool bind-test 8080                        test for a server that sets SO_REUSEADDR
  twtool bind-test 8080 --with none            test for a server that sets no option
  twtool bind-test https --addr 192.0.2.1 --addr ::1
  twtool bind-test 80 --addr :: --v6only yes   test the bind that nginx makes for [::]:80
  twtool bind-test 80 --together               test for a server that opens 0.0.0.0 and :: at once
  twtool bind-test 8080 --netns 4711           test in the network namespace of process 4711
  twtool bind-test 8080 --json | jq -r '.cause, .free_in_ms'
  twtool bind-test 8080 --demo                 show how TIME_WAIT blocks a port, in a private namespace
")]
pub struct BindTestArgs {
    /// Port to test: a number or a TCP service name from /etc/services; 0 lets the kernel choose
    #[arg(value_name = "PORT", value_parser = one_port)]
    port: PortArg,
    #[command(flatten)]
    server: ServerArgs,
    /// Also call listen(); a client that connects at that moment is delayed by a second
    #[arg(long, conflicts_with = "demo")]
    listen: bool,
    /// Show how TIME_WAIT blocks the port, in a private network namespace (no root, no effect on the host)
    #[arg(long, conflicts_with_all = ["netns", "container"], conflicts_with_all = SERVER_ARGS)]
    demo: bool,
    #[command(flatten)]
    netns: NetnsArgs,
}

/// Runs the command.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &BindTestArgs, global: &GlobalArgs, context: &mut Context) -> Result<ExitStatus, CommandError> {
    if global.format() == Format::Csv {
        return Err(bad_value(
            &"csv",
            "--output <FORMAT>",
            "a bind test is not a flat table; use table, json or ndjson",
        ));
    }
    if args.demo {
        return demo(&args.port, global, context);
    }
    let question = args.server.question(&args.port, global.ipv4_on_the_wire());
    let Answer { value: state, complete, warnings, .. } = args.netns.snapshot()?.port(&question, args.listen)?;
    let (facts, port, with) = (&state.facts, state.port, args.server.with.options());
    let conclusion = state.conclude(with);
    // A socket that the kernel interface does not list may block the port.
    let unseen =
        conclusion.verdict == Verdict::Blocked && conclusion.cause == Cause::Unknown && !state.bound_sockets_are_listed;
    let doubtful = state.note == ReuseportNote::Left && with.reuseport;
    let complete = complete && !unseen && !doubtful;
    let evidence = BindEvidence {
        facts,
        port,
        with,
        attempts: &state.attempts,
        holders: &state.holders,
        conclusion,
        bound_sockets_are_listed: state.bound_sockets_are_listed,
        uid: Some(state.setup.user.map_or(state.uid, |user| user.uid)),
        udp: state.udp,
        setup: state.setup,
    };
    let shell = args.netns.shell(context);
    let setup_words = args.server.setup_words();
    let next = match conclusion.verdict {
        Verdict::Free | Verdict::Reusable => vec![],
        // Neither a socket nor a shortage of ports is the reason. The advice names the reason.
        Verdict::Denied if conclusion.cause == Cause::Unknown => vec![],
        Verdict::Blocked | Verdict::Denied => next::steps(&Failure {
            shell: &shell,
            uid: state.uid,
            facts,
            port,
            addrs: if args.server.addr.is_empty() && question.ipv4.is_none() { &[] } else { &state.addrs },
            with,
            setup: state.setup,
            setup_words: &setup_words,
            cause: conclusion.cause,
            holders: &state.holders,
            free_in: conclusion.free_in,
            waited: false,
            ends_orphans: ends_orphans(facts, &state.holders),
        }),
    };
    let advice = advice::advise(&evidence);
    let other_verdicts = state.other_verdicts(with);
    let chosen_port = state.attempts.first().and_then(|attempt| attempt.bound).filter(|_| port.reserved_by_rfc());
    let reserve = next::reserve(&shell, facts, port);
    let test = BindTest {
        evidence,
        chosen_port,
        next: &next,
        reserve: &reserve,
        advice: &advice,
        note_lost: state.note != ReuseportNote::Unchanged,
        other_verdicts: &other_verdicts,
    };
    context.warn(&warnings);
    let envelope = Envelope { schema: "twtool.bind-test/1", facts, complete, warnings: &warnings };
    match global.format() {
        Format::Json => view::bind_test::document(context.out, envelope, &test)?,
        Format::Ndjson => view::bind_test::ndjson(context.out, &test)?,
        Format::Table | Format::Csv => view::bind_test::page(context.out, &test, context.style)?,
    }
    Ok(match conclusion.verdict {
        _ if !complete => ExitStatus::Incomplete,
        Verdict::Free | Verdict::Reusable => ExitStatus::Yes,
        Verdict::Blocked | Verdict::Denied => ExitStatus::No,
    })
}

fn demo(port: &PortArg, global: &GlobalArgs, context: &mut Context) -> Result<ExitStatus, CommandError> {
    let port: Port = Snapshot::here().single_port(port)?;
    if global.ipv4_on_the_wire() == Some(false) {
        return Err(CommandError::Usage("the argument '-6' cannot be used with '--demo', which uses IPv4".into()));
    }
    if port.reserved_by_rfc() {
        return Err(bad_value(&port, "<PORT>", "--demo needs a port from 1 to 65535"));
    }
    let runs = lab::demo::run(port)?;
    // The process is in the private namespace now, so these are the facts of that namespace.
    let facts = Snapshot::here().facts()?;
    match global.format() {
        Format::Json => {
            let envelope = Envelope { schema: "twtool.bind-test-demo/1", facts: &facts, complete: true, warnings: &[] };
            view::bind_test::demo_document(context.out, envelope, &runs)?;
        }
        Format::Ndjson => view::bind_test::demo_ndjson(context.out, &facts, &runs)?,
        Format::Table | Format::Csv => view::bind_test::demo_page(context.out, port, &facts, &runs, context.style)?,
    }
    let documented = runs.iter().all(DemoRun::as_documented);
    if !documented {
        context.warn(&[
            "this kernel does not behave as socket(7) describes; please report it with this output".to_owned()
        ]);
    }
    Ok(if documented { ExitStatus::Yes } else { ExitStatus::No })
}
