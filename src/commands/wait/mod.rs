//! `twtool wait`: waits until a server can bind a port, then optionally replaces itself by that server.

mod reporter;

use std::ffi::OsString;
use std::io::{self, Write};
use std::time::Duration;

use clap::Args;

use super::netns::NetnsArgs;
use super::port_args::{ServerArgs, one_port};
use super::{CommandError, Context, ExitStatus, Format, GlobalArgs, bad_value, ends_orphans, hide_refused};
use crate::analysis::advice;
use crate::analysis::next::{self, Failure};
use crate::analysis::waiting::{ROUND, WaitEnd};
use crate::filter::parser::parse_duration;
use crate::model::bind::ReuseportNote;
use crate::model::port::PortArg;
use crate::snapshot::Answer;
use crate::snapshot::port_watch::{WaitQuestion, WaitState, WaitTarget};
use crate::view;
use crate::view::json::Envelope;
use crate::view::wait::WaitReport;
use reporter::ProgressReporter;

/// Arguments of `twtool wait`.
#[derive(Args, Clone, Debug)]
#[command(mut_args(|arg| hide_refused(arg, &[], &[Format::Csv])), after_long_help = "\
While it waits, twtool looks up the blocking sockets (at most 64) ten times a second. When one of them is gone, twtool tries to bind every \
address with the options of --with. (With --with none, each of these sockets blocks the bind, so twtool tries only when all of them \
are gone.) The wait ends when all these binds succeed. A TIME_WAIT socket can last some seconds \
longer than its timer, or end earlier if somebody removes it. The kernel has no look-up for some kinds of sockets, for example \
for a socket that is bound and does not listen. If such a socket blocks the port, twtool lists all sockets again about once a \
second. The binds have the side effects that `twtool bind-test --help` describes.

twtool also waits for an address that does not exist yet (EADDRNOTAVAIL). twtool gives up at once if waiting cannot help: if \
the bind is denied (EACCES, no IPv6), or if the addresses of the server conflict with each other (--together). Port 0 is \
rejected, because for port 0 the kernel chooses a free port.

With -- COMMAND, twtool leaves standard output to the command and writes to standard error. In the table format, twtool prints \
no result if the port is free at once. It warns if the bind would fail without the options of --with, because the command must \
set them too. Another program can take the port between the last bind of twtool and the bind of the command. The command runs \
in the network namespace of twtool, whatever --netns or --container selects.

Exit codes: 0 the port can be bound, 1 timeout or denied, 2 the answer is unknown, 130 interrupted. With -- COMMAND: its exit \
code, 126 if it cannot be run, 127 if it is not found.

Examples:
  twtool wait 8080                              wait until a server with SO_REUSEADDR can bind
  twtool wait 8080 --with none -- ./server      as soon as it can bind, start a server that sets no option
  twtool wait 80 --addr :: --v6only yes         wait until the bind that nginx makes for [::]:80 works
  twtool wait 8080 --addr 192.0.2.1 --timeout 5m || echo 'still taken'
  twtool wait 8080 --timeout 0 -q && echo free  test once
  twtool wait 8080 -o ndjson | jq -r '.cause'   print each change of state
  twtool wait 8080 --netns web -- ip netns exec web ./server
")]
pub struct WaitArgs {
    /// Port to wait for: a number 1-65535 or a TCP service name from /etc/services
    #[arg(value_name = "PORT", value_parser = one_port)]
    port: PortArg,
    #[command(flatten)]
    server: ServerArgs,
    /// Give up after this time, like 500ms, 10s or 5m; 0 tries once
    #[arg(long, value_name = "DURATION", default_value = "120s", value_parser = timeout, allow_negative_numbers = true)]
    timeout: Duration,
    /// Print no result; print warnings only if the answer is unknown (exit code 2); set the exit code
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    netns: NetnsArgs,
    /// Command to start as soon as the port can be bound; it replaces the twtool process (exec)
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

fn timeout(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    parse_duration(text).map_err(|why| format!("{why}; 0 tries once"))
}

/// Runs `twtool wait`. If the port can be bound and COMMAND follows `--`, COMMAND replaces the process.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &WaitArgs, global: &GlobalArgs, context: &mut Context) -> Result<ExitStatus, CommandError> {
    if global.format() == Format::Csv {
        return Err(bad_value(
            &"csv",
            "--output <FORMAT>",
            "the result of a wait is not a flat table; use table, json or ndjson",
        ));
    }
    // The user should not wait for a minute to learn that the command does not exist.
    if let Some(program) = args.command.first()
        && let Err(source) = (context.machine.find_program)(program)
    {
        return Err(CommandError::Exec { program: program.clone(), source });
    }
    let status = wait(args, global, context)?;
    match (status, args.command.split_first()) {
        (ExitStatus::Yes, Some((program, rest))) => {
            let source = (context.machine.become_program)(program, rest);
            Err(CommandError::Exec { program: program.clone(), source })
        }
        (status, _) => Ok(status),
    }
}

fn wait(args: &WaitArgs, global: &GlobalArgs, context: &mut Context) -> Result<ExitStatus, CommandError> {
    let question = WaitQuestion {
        port: args.server.question(&args.port, global.ipv4_on_the_wire()),
        with: args.server.with.options(),
        timeout: args.timeout,
        tries_plain: !args.command.is_empty() && !args.quiet,
    };
    let snapshot = args.netns.snapshot()?;
    let answer = snapshot.wait(&question, &mut ProgressReporter::new(args, global, context))?;
    let Answer { value: waited, complete, mut warnings, .. } = answer;

    let bindable = waited.state.ended == Some(WaitEnd::Bindable);
    if !bindable {
        warnings.extend(advice::denials(&waited.target.facts, waited.target.port, &waited.attempts));
    }
    if waited.needs_options == Some(true) {
        warnings.push(advice::needed_options(waited.target.with));
    }
    let shell = args.netns.shell(context);
    let next = if bindable {
        vec![]
    } else {
        next::steps(&Failure {
            shell: &shell,
            uid: waited.uid,
            facts: &waited.target.facts,
            port: waited.target.port,
            addrs: &waited.target.addrs,
            with: waited.target.with,
            setup: waited.target.setup,
            setup_words: &args.server.setup_words(),
            cause: waited.state.cause,
            holders: &waited.state.blocked_by,
            free_in: waited.state.remaining,
            waited: true,
            ends_orphans: ends_orphans(&waited.target.facts, &waited.state.blocked_by),
        })
    };
    let note_lost = waited.note != ReuseportNote::Unchanged;
    let shown = WaitReport { note_lost, next: &next, ..wait_report(&waited.target, &waited.state) };
    // If a command follows and the port was free at once, the table format prints only warnings.
    let silent = bindable && !args.command.is_empty() && shown.waited < ROUND;
    let style = context.style;
    let envelope = Envelope { schema: "twtool.wait/1", facts: &waited.facts, complete, warnings: &warnings };
    write_now(args, context, |out| match global.format() {
        Format::Json => view::wait::document(out, envelope, &shown),
        Format::Ndjson => view::wait::ndjson(out, &shown),
        Format::Table | Format::Csv if silent => Ok(()),
        Format::Table | Format::Csv => view::wait::page(out, &shown, style),
    })?;
    let status = match (bindable, complete) {
        (true, _) => ExitStatus::Yes,
        (false, true) => ExitStatus::No,
        (false, false) => ExitStatus::Incomplete,
    };
    // The warnings come after the verdict.
    if !args.quiet || status == ExitStatus::Incomplete {
        context.warn(&warnings);
    }
    Ok(status)
}

fn wait_report<'a>(target: &'a WaitTarget, state: &'a WaitState) -> WaitReport<'a> {
    WaitReport {
        facts: &target.facts,
        port: target.port,
        addrs: target.addrs.as_slice(),
        with: target.with,
        setup: target.setup,
        collision: state.collision.as_deref(),
        bindable: matches!(state.ended, Some(WaitEnd::Bindable)),
        denied: matches!(state.ended, Some(WaitEnd::Denied)),
        waited: state.waited,
        attempts: state.attempts,
        blocked_by: state.blocked_by.as_slice(),
        cause: state.cause,
        remaining: state.remaining,
        note_lost: false,
        next: &[],
    }
}

/// Writes and flushes, unless `--quiet` is given. If a command follows, standard output belongs to that command, so the text goes
/// to standard error. An error of that write does not prevent the command from running.
fn write_now(
    args: &WaitArgs,
    context: &mut Context,
    write: impl FnOnce(&mut (dyn Write + Send)) -> io::Result<()>,
) -> io::Result<()> {
    if args.quiet {
        return Ok(());
    }
    if args.command.is_empty() {
        write(context.out)?;
        context.out.flush()?;
    } else {
        let _ = write(context.err);
    }
    Ok(())
}
