//! `twtool doctor`: checks the settings, counters and sockets of a network namespace.

use std::time::Duration;

use clap::Args;

use super::netns::NetnsArgs;
use super::tracer::TracerArgs;
use super::{CommandError, Context, ExitStatus, Format, GlobalArgs, bad_value, hide_refused};
use crate::analysis::doctor::{LeakThreshold, Status};
use crate::filter::parser::parse_duration;
use crate::view;
use crate::view::json::Envelope;

/// Arguments of `twtool doctor`.
#[derive(Args, Clone, Debug)]
#[command(mut_args(|arg| hide_refused(arg, &[], &[Format::Csv])), after_long_help = "\
doctor only reads; it changes nothing. A warning means that something fails now, has failed, or will probably fail: \
soon, or when a program starts again. Each warning comes with the numbers behind it. A note means that nothing fails, but \
that you should know the finding. A setting that differs from the kernel's default is not a problem by itself. --verbose and \
JSON explain each check: what the setting does, what it does not do, and the sources.

If a tracer runs (twtool trace --serve), doctor also names the programs that made the most TIME_WAIT sockets.

-4 and -6 restrict servers, destinations, TIME_WAIT sockets and sockets in CLOSE_WAIT to that IP version. Settings and \
counters apply to both.

Exit codes: 0 no warnings, 1 warnings, 2 something could not be read (the affected checks name it, and the JSON key `complete` is false).

Examples:
  twtool doctor                           show warnings first, each with the commands that help
  twtool doctor --verbose | less          explain every check, with sources
  twtool doctor --json | jq -r '.checks[] | select(.status == \"warning\") | .commands[].command'
  twtool doctor -o ndjson | jq -c 'select(.id == \"tcp_fin_timeout\") | [.value, .default]'
  twtool doctor --netns 4711              check the network namespace of process 4711
  twtool doctor --close-wait-after 10s    report sockets in CLOSE_WAIT after 10 s
")]
pub struct DoctorArgs {
    /// Explain every check: what the setting does, what it does not do, and the sources
    #[arg(short, long)]
    verbose: bool,
    /// Count a socket in CLOSE_WAIT as silent if the last ACK of its peer is at least this old; 10 or more silent sockets of one
    /// process are a warning
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = parse_duration)]
    close_wait_after: Duration,
    #[command(flatten)]
    tracer: TracerArgs,
    #[command(flatten)]
    netns: NetnsArgs,
}

/// Runs the command.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &DoctorArgs, global: &GlobalArgs, context: &mut Context) -> Result<ExitStatus, CommandError> {
    if global.format() == Format::Csv {
        return Err(bad_value(&"csv", "--output <FORMAT>", "checks are not a flat table; use table, json or ndjson"));
    }
    // The tracer is read first, so that a wrong --tracer is reported before anything else is read.
    let traced = args.tracer.read()?;
    let snapshot = args.netns.snapshot()?;
    let mut answer = snapshot.health(global.ipv4_on_the_wire())?;
    let mut warnings = answer.warnings;
    if !traced.is_empty() {
        let made = snapshot.made_buckets(global.ipv4_on_the_wire(), &traced)?;
        warnings.extend(made.sentences());
        answer.value.made = Some(made.value);
    }
    let leak = LeakThreshold { silent: args.close_wait_after };
    let checks = answer.value.checks(leak, &args.netns.shell(context));
    for check in checks.iter().filter(|check| check.status == Status::Unknown) {
        let reason = check.finding.as_deref().unwrap_or("this check is not complete");
        warnings.push(format!("{}: {reason}", check.subject.id));
    }
    let complete = warnings.is_empty();
    context.warn(&warnings);
    let envelope =
        Envelope { schema: "twtool.doctor/1", facts: &answer.value.health.facts, complete, warnings: &warnings };
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
