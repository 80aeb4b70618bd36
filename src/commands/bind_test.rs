//! `twtool bind-test`: explains why bind() fails on a port, and runs the experiment that shows it.

use clap::Args;

use super::netns::NetnsArgs;
use super::port_args::{With, addr_arg};
use super::{CommandError, Context, ExitStatus, Format, GlobalArgs, bad_value, ends_orphans};
use crate::analysis::advice::{self, Evidence};
use crate::analysis::next::{self, Failure};
use crate::lab;
use crate::model::addr::ScopedAddr;
use crate::model::bind::{Cause, ReuseportNote, Verdict};
use crate::model::demo::DemoRun;
use crate::model::port::{Port, PortArg};
use crate::snapshot::port::PortQuestion;
use crate::snapshot::{Answer, Snapshot};
use crate::view;
use crate::view::bind_test::BindTest;
use crate::view::json::Envelope;

/// Arguments of `twtool bind-test`.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "\
Side effects: each attempt really binds the port, and closes the socket within microseconds. A server that starts at that \
moment can get EADDRINUSE. On kernels before 6.18, connect() also avoids an explicitly bound port as long as a timewait bucket \
is on it.

An attempt with SO_REUSEPORT leaves a note in the kernel as long as other sockets are on the port. Because of the note, a second \
server could bind the port. twtool clears the note with one more bind, on an unused address, and blocks signals until then. Only \
SIGKILL can leave the note, until a bind without SO_REUSEPORT succeeds on the port. Clearing also erases the note of a real \
server; where that changes an answer, a warning and note_lost in JSON report it.

twtool calls listen() only with --listen. A real client could then connect to the test socket, and would be disconnected.

Exit codes: 0 free or reusable, 1 blocked or denied, 2 the test could not be completed.

Examples:
  twtool bind-test 8080                        test for a server that sets SO_REUSEADDR
  twtool bind-test 8080 --with none            test for a server that sets no option
  twtool bind-test https --addr 192.0.2.1 --addr ::1
  twtool bind-test 8080 --netns 4711           test in the network namespace of process 4711
  twtool bind-test 8080 --json | jq -r '.cause, .free_in_ms'
  twtool bind-test 8080 --demo                 show TIME_WAIT block a port, in a private namespace
")]
pub struct BindTestArgs {
    /// Port to test: a number or a TCP service name from /etc/services; 0 lets the kernel choose
    #[arg(value_name = "PORT")]
    port: PortArg,
    /// Address to bind; repeat for more [default: 0.0.0.0 and ::]
    #[arg(long, value_name = "ADDR", value_parser = addr_arg, conflicts_with = "demo")]
    addr: Vec<ScopedAddr>,
    /// Socket options that the server sets before bind()
    #[arg(long, value_enum, default_value_t = With::Reuseaddr, value_name = "OPTIONS", conflicts_with = "demo")]
    with: With,
    /// Also call listen(), which can accept a real connection for a moment
    #[arg(long, conflicts_with = "demo")]
    listen: bool,
    /// Show how TIME_WAIT blocks the port, in a private network namespace (no root, no effect on the host)
    #[arg(long, conflicts_with = "netns")]
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
    let question = PortQuestion { port: args.port.clone(), addrs: args.addr.clone(), ipv4: global.ipv4_on_the_wire() };
    let Answer { value: state, complete, warnings, .. } = args.netns.snapshot()?.port(&question, args.listen)?;
    let (facts, port, with) = (&state.facts, state.port, args.with.options());
    let conclusion = state.conclude(with);
    // The kernel interface may not list the socket that blocks the port. A port that is denied has no such socket.
    let unseen = conclusion.verdict == Verdict::Blocked && conclusion.cause == Cause::Unknown && !state.bound_sockets_are_listed;
    let doubtful = state.note == ReuseportNote::Left && with.reuseport;
    let complete = complete && !unseen && !doubtful;
    let evidence = Evidence {
        facts,
        port,
        with,
        attempts: &state.attempts,
        holders: &state.holders,
        conclusion,
        bound_sockets_are_listed: state.bound_sockets_are_listed,
        uid: state.uid,
        udp: state.udp,
    };
    let shell = args.netns.shell(context);
    let next = match conclusion.verdict {
        Verdict::Free | Verdict::Reusable => vec![],
        Verdict::Blocked | Verdict::Denied => next::steps(&Failure {
            shell: &shell,
            uid: state.uid,
            facts,
            port,
            addrs: if args.addr.is_empty() && question.ipv4.is_none() { &[] } else { &state.addrs },
            with,
            cause: conclusion.cause,
            holders: &state.holders,
            free_in: conclusion.free_in,
            waited: false,
            ends_orphans: ends_orphans(facts, &state.holders),
        }),
    };
    let advice = advice::advise(&evidence);
    let chosen_port = state.attempts.first().and_then(|attempt| attempt.bound).filter(|_| port.reserved_by_rfc());
    let reserve = next::reserve(&shell, facts, port);
    let test = BindTest {
        evidence,
        chosen_port,
        next: &next,
        reserve: &reserve,
        advice: &advice,
        note_lost: state.note != ReuseportNote::Kept,
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
    // The facts of the private namespace, which the process is in by now.
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
        context.warn(&["this kernel does not behave as socket(7) describes; please report it with this output".to_owned()]);
    }
    Ok(if documented { ExitStatus::Yes } else { ExitStatus::No })
}
