//! `twtool capacity`: how many further connects each destination takes, and when it runs out of ports.

use std::net::Ipv6Addr;

use clap::Args;

use super::netns::NetnsArgs;
use super::{CommandError, Context, ExitStatus, Format, GlobalArgs};
use crate::analysis::capacity::{Destination, MinFree, advice};
use crate::model::addr::{ScopedAddr, ScopedEnd};
use crate::snapshot::{Answer, CapacityQuestion};
use crate::view;
use crate::view::capacity::CapacityReport;
use crate::view::json::Envelope;

/// The usual number of destinations in a table.
const TOP_ON_THE_SCREEN: usize = 10;

/// Arguments of `twtool capacity`.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "\
Free is the number of further connects that would succeed now, from that local address to that destination, by a client that \
leaves the port to connect(). The kernel looks through net.ipv4.ip_local_port_range and passes over what is in \
net.ipv4.ip_local_reserved_ports, over every port that some socket bound explicitly (a server, an idle socket, a client that \
used bind(), also when only its TIME_WAIT is left), and over those that have a connection to the same destination. TIME_WAIT \
that tcp_tw_reuse gives back at once counts as free: the connection must have had timestamps, which the kernel does not tell \
of a bucket, so net.ipv4.tcp_timestamps is taken for it. Which ports of connections are explicitly bound the kernel does not \
list, so it is asked, port by port, by connects to an unused loopback address that send nothing and hold the port for a \
microsecond or two. With --no-probe, or where it cannot be asked, such ports count as free, and as uncertain.

A model gives the time to exhaustion, an inference: connections are opened as fast as they are closed, at the rate of \
the last 10 seconds (or of tcp_tw_reuse_delay, where buckets are given back after that); what is in TIME_WAIT gives its \
ports back when its timers end. What is not exhausted within one TIME_WAIT then is not exhausted at this rate. The ceiling is \
the pool by the length of TIME_WAIT, 60 s (or by tcp_tw_reuse_delay).

A destination is one that this end connected to: a connection whose local port has a listener is left out. Where sock_diag is \
refused, it can be unknown whether a listener on :: takes IPv4; then its IPv4 connections are left out, a warning counts \
them, and the exit code is 2. Sockets with a \
narrower range of their own (IP_LOCAL_PORT_RANGE) have less.

Exit codes: 0 answered, 1 a destination has fewer free ports than --min-free, 2 could not tell.

Examples:
  twtool capacity                                   the destinations with the fewest free ports
  twtool capacity --to 192.0.2.10:443               how many more connects there?
  twtool capacity --to '[2001:db8::1]:https' --from 2001:db8::9
  twtool capacity --min-free 10% -o ndjson          for a health check
  twtool capacity --netns web                       in the network namespace web of `ip netns`
  twtool capacity --json | jq '.destinations[] | select(.exhausted_in_ms != null)'
")]
pub struct CapacityArgs {
    /// Only this destination: an address, or address and port like 192.0.2.1:443 or [2001:db8::1]:443
    #[arg(long, value_name = "ADDR[:PORT]")]
    to: Option<ScopedEnd>,
    /// Only from this local address
    #[arg(long, value_name = "ADDR")]
    from: Option<ScopedAddr>,
    /// Show the N destinations with the fewest free ports [default: all, in a table 10]
    #[arg(long, value_name = "N")]
    top: Option<usize>,
    /// Exit code 1 if any destination has fewer free ports than this, or than this share of the pool, like 10%
    #[arg(long, value_name = "N|N%", value_parser = parse_min_free)]
    min_free: Option<MinFree>,
    /// Do not ask the kernel which ports are explicitly bound; read its list alone
    #[arg(long)]
    no_probe: bool,
    #[command(flatten)]
    netns: NetnsArgs,
}

fn parse_min_free(text: &str) -> Result<MinFree, String> {
    let share = text.strip_suffix('%');
    let digits = share.unwrap_or(text);
    let number = Some(digits).filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
    let number = number.and_then(|digits| digits.parse().ok());
    let minimum = match (number, share) {
        (Some(percent @ 0..=100), Some(_)) => Some(MinFree::Percent(percent)),
        (Some(ports @ 0..=65536), None) => Some(MinFree::Ports(ports)),
        _ => None,
    };
    minimum.ok_or_else(|| "it is a number of ports, 0-65536, or a share of the pool, 0%-100%".into())
}

/// Runs the command.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &CapacityArgs, global: &GlobalArgs, context: &mut Context) -> Result<ExitStatus, CommandError> {
    let question = CapacityQuestion {
        to: args.to.clone(),
        from: args.from.clone(),
        ipv4: global.ipv4_on_the_wire(),
        probe: !args.no_probe,
    };
    let Answer { value: found, mut complete, mut warnings, .. } = args.netns.snapshot()?.capacity(&question)?;
    if found.destinations.is_empty() {
        warnings.extend(args.to.as_ref().and_then(perhaps_a_port));
    }
    let (status, below) = judge(args.min_free, &found.destinations, found.pool.size);
    if status == ExitStatus::Incomplete {
        complete = false;
        warnings.push(
            "whether every destination has as many free ports as --min-free demands is unknown, because some ports may or may \
             not be free"
                .into(),
        );
    }
    let total = found.destinations.len();
    let usual = if global.format() == Format::Table { TOP_ON_THE_SCREEN } else { usize::MAX };
    let shown = &found.destinations[..total.min(args.top.unwrap_or(usual))];
    let help = advice::advise(shown, &found.conditions(), &found.facts, &args.netns.shell(context));

    context.warn(&warnings);
    let capacity = CapacityReport {
        facts: &found.facts,
        source: found.origin.name(),
        conditions: found.conditions(),
        destinations: shown,
        total,
        below_min_free: below,
        help: &help,
    };
    match global.format() {
        Format::Json => {
            let envelope = Envelope { schema: "twtool.capacity/1", facts: &found.facts, complete, warnings: &warnings };
            view::capacity::document(context.out, envelope, &capacity)?;
        }
        Format::Table => view::capacity::page(context.out, &capacity, context.style)?,
        Format::Ndjson => view::capacity::ndjson(context.out, &capacity)?,
        Format::Csv => view::capacity::csv(context.out, &capacity)?,
    }
    Ok(if complete { status } else { ExitStatus::Incomplete })
}

/// A hint for an IPv6 address without connections that looks like an address and a port.
fn perhaps_a_port(to: &ScopedEnd) -> Option<String> {
    let typed = to.to_string();
    let (addr, port) = typed.rsplit_once(':').filter(|_| to.port.is_none())?;
    let meant = addr.parse::<Ipv6Addr>().is_ok() && port.parse::<u16>().is_ok();
    meant.then(|| format!("'{typed}' is one address; port {port} of {addr} is [{addr}]:{port}"))
}

/// Whether every destination has at least this number of free ports, and how many have not. The status is incomplete if that
/// depends on ports that may or may not be free.
fn judge(min_free: Option<MinFree>, destinations: &[Destination], pool: u32) -> (ExitStatus, Option<usize>) {
    let Some(min_free) = min_free else { return (ExitStatus::Yes, None) };
    let below = destinations.iter().filter(|one| min_free.is_missed(one.free, pool)).count();
    let perhaps = destinations.iter().any(|one| min_free.is_missed(one.free - one.uncertain, pool));
    let status = match (below, perhaps) {
        (0, false) => ExitStatus::Yes,
        (0, true) => ExitStatus::Incomplete,
        _ => ExitStatus::No,
    };
    (status, Some(below))
}
