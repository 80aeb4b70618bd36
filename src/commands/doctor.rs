//! `twtool doctor`: are the settings, counters and sockets of this network namespace in order, and what does each mean?

use std::time::Duration;

use clap::Args;

use super::netns::NetnsArgs;
use super::selection::parse_duration;
use super::{CommandError, Context, ExitStatus, Format, GlobalArgs, bad_value};
use crate::analysis::doctor::{Leak, Status};
use crate::view;
use crate::view::json::Envelope;

/// Arguments of `twtool doctor`.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "\
It reads and changes nothing. A warning says that something fails now, has failed, or will at the next start of a program, \
and has the number that shows it; a note is worth knowing; a setting that differs from the kernel's default is no fault. \
--verbose and JSON say of every check what it does, what it does not do, and where that is written.

-4 and -6 keep the servers, the destinations and the sockets in CLOSE_WAIT of that family; settings and counters are for both.

Exit codes: 0 no warnings, 1 warnings, 2 something could not be read (complete is false, and the checks say what).

Examples:
  twtool doctor                           warnings first, each with what to do
  twtool doctor --verbose | less          what every setting does and does not do, with sources
  twtool doctor --json | jq -r '.checks[] | select(.status == \"warning\") | .commands[].command'
  twtool doctor -o ndjson | jq -c 'select(.id == \"tcp_fin_timeout\") | [.value, .default]'
  twtool doctor --netns 4711              of the network namespace of process 4711
  twtool doctor --close-wait-after 10s    call sockets in CLOSE_WAIT old after 10 s
")]
pub struct DoctorArgs {
    /// Explain every check: what it does, what it does not do, sources
    #[arg(short, long)]
    verbose: bool,
    /// From when on a socket in CLOSE_WAIT counts as forgotten: the time since the peer's last ACK
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = parse_duration)]
    close_wait_after: Duration,
    #[command(flatten)]
    netns: NetnsArgs,
}

/// Runs the command.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &DoctorArgs, global: &GlobalArgs, context: &mut Context) -> Result<ExitStatus, CommandError> {
    if global.format() == Format::Csv {
        return Err(bad_value(&"csv", "--output <FORMAT>", "checks are not flat; there are table, json and ndjson"));
    }
    let answer = args.netns.snapshot()?.health(global.ipv4_on_the_wire())?;
    let leak = Leak { silent: args.close_wait_after };
    let checks = answer.value.checks(leak, &args.netns.shell(context));
    let mut warnings = answer.warnings;
    for check in checks.iter().filter(|check| check.status == Status::Unknown) {
        let reason = check.finding.as_deref().unwrap_or("this check has no answer");
        warnings.push(format!("{}: {reason}", check.subject.id));
    }
    let complete = warnings.is_empty();
    context.warn(&warnings);
    let envelope = Envelope { schema: "twtool.doctor/1", facts: &answer.value.health.facts, complete, warnings: &warnings };
    match global.format() {
        Format::Json => view::doctor::document(context.out, envelope, &checks)?,
        Format::Ndjson => view::doctor::ndjson(context.out, &checks)?,
        Format::Table | Format::Csv => view::doctor::page(context.out, &checks, args.verbose, context.style)?,
    }
    Ok(match complete {
        false => ExitStatus::Incomplete,
        true if checks.iter().any(|check| check.status == Status::Warning) => ExitStatus::No,
        true => ExitStatus::Yes,
    })
}
