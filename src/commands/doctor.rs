//! `twtool doctor`: are the settings, counters and sockets of this network namespace in order, and what does each mean?

use std::time::Duration;

use clap::Args;

use super::netns::NetnsArgs;
use super::ports_in_use::{self, PortsInUse};
use super::selection::parse_duration;
use super::{Answer, CommandError, Context, Format, GlobalArgs, bad_value, interrupted};
use crate::analysis::capacity::{self, Conditions, Destination, Pool, Wanted};
use crate::analysis::doctor::{self, Leak, Outbound, Status};
use crate::analysis::history::Length;
use crate::model::command::Shell;
use crate::model::facts::{Facts, Setting};
use crate::model::health::{Health, OpenSockets};
use crate::model::tw_reuse::TwReuse;
use crate::source::{self, Choice, Source};
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

/// Answers.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &DoctorArgs, global: &GlobalArgs, context: &mut Context) -> Result<Answer, CommandError> {
    if global.format() == Format::Csv {
        return Err(bad_value(&"csv", "--output <FORMAT>", "checks are not flat; there are table, json and ndjson"));
    }
    let shell = args.netns.shell(context);
    args.netns.within(|| answer(args, global, context, &shell))
}

fn answer(
    args: &DoctorArgs,
    global: &GlobalArgs,
    context: &mut Context,
    shell: &Shell,
) -> Result<Answer, CommandError> {
    let mut health = source::health::read();
    if let Some(ipv4) = global.ipv4_on_the_wire() {
        of_family(&mut health, ipv4);
    }
    let ports = ports(&health.facts, global.ipv4_on_the_wire());
    let leak = Leak { silent: args.close_wait_after };
    let checks = doctor::examine(&health, ports.as_ref().map(Ports::outbound).map_err(String::as_str), leak, shell);

    let gaps = ports.as_ref().ok().map(|ports| ports.gaps.clone());
    let cut_short =
        health.sockets.as_ref().is_ok_and(|open| !open.complete) || ports.is_ok_and(|ports| !ports.complete);
    let mut warnings = vec![];
    warnings.extend(cut_short.then(interrupted));
    warnings.extend(health.facts.other_gaps());
    warnings.extend(gaps.into_iter().flatten());
    for check in checks.iter().filter(|check| check.status == Status::Unknown) {
        let reason = check.finding.as_deref().unwrap_or("this check has no answer");
        warnings.push(format!("{}: {reason}", check.subject.id));
    }
    let complete = warnings.is_empty();
    context.warn(&warnings);
    let envelope = Envelope { schema: "twtool.doctor/1", facts: &health.facts, complete, warnings: &warnings };
    match global.format() {
        Format::Json => view::doctor::document(context.out, envelope, &checks)?,
        Format::Ndjson => view::doctor::ndjson(context.out, &checks)?,
        Format::Table | Format::Csv => view::doctor::page(context.out, &checks, args.verbose, context.look)?,
    }
    Ok(match complete {
        false => Answer::Incomplete,
        true if checks.iter().any(|check| check.status == Status::Warning) => Answer::No,
        true => Answer::Yes,
    })
}

/// Who has which ports, and what connect() may choose from.
struct Ports {
    destinations: Vec<Destination>,
    pool: Pool,
    reuse: TwReuse,
    length: Length,
    complete: bool,
    gaps: Vec<String>,
}

impl Ports {
    fn outbound(&self) -> Outbound<'_> {
        Outbound { destinations: &self.destinations, conditions: conditions(&self.pool, self.reuse, self.length) }
    }
}

fn conditions(pool: &Pool, reuse: TwReuse, length: Length) -> Conditions<'_> {
    Conditions { pool, reuse, length }
}

/// A walk of its own: that for the other checks brings `struct tcp_info`, which costs the kernel a lock for each connection.
/// Ports of which only a bind would tell whether they are explicitly bound stay uncertain, for nothing is bound here.
fn ports(facts: &Facts, ipv4: Option<bool>) -> Result<Ports, String> {
    let unread = |setting: Setting| format!("{} could not be read", setting.name());
    let range = facts.local_port_range.ok_or_else(|| unread(Setting::LocalPortRange))?.0;
    let reserved = facts.local_reserved_ports.as_ref().ok_or_else(|| unread(Setting::LocalReservedPorts))?;
    let mut source = Source::kernel(Choice::Auto).map_err(|error| error.to_string())?;
    let PortsInUse { sockets, end, reuse, length, unlisted, gaps } =
        ports_in_use::look(&mut source, range).map_err(|error| error.to_string())?;
    let pool = Pool::new(range, reserved, sockets.bound(), &sockets.may_be_bound(), unlisted);
    let wanted = Wanted { ipv4, ..Wanted::default() };
    let destinations = capacity::destinations(sockets, &conditions(&pool, reuse, length), &wanted, None);
    Ok(Ports { destinations, pool, reuse, length, complete: end.complete, gaps })
}

/// Keeps the sockets that speak IPv4, or IPv6, on the wire; a listener on :: may speak both.
fn of_family(health: &mut Health, ipv4: bool) {
    if let Ok(OpenSockets { listeners, close_wait, .. }) = &mut health.sockets {
        close_wait.retain(|one| one.socket.tuple.family.ipv4_on_the_wire() == ipv4);
        listeners.retain(|one| {
            let dual = one.socket.tuple.local_addr().is_unspecified() && one.socket.v6only != Some(true);
            one.socket.tuple.family.ipv4_on_the_wire() == ipv4 || (ipv4 && dual)
        });
    }
}
