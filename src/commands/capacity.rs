//! `twtool capacity`: counts the further connections that are possible to each destination, and predicts when the ports run
//! out.

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

/// The number of destinations in a table, unless `--top` is given.
const TOP_ON_THE_SCREEN: usize = 10;

/// Arguments of `twtool capacity`.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "\
FREE is the number of further connect() calls that would succeed now from the local address of the row to its destination, if \
the client lets connect() choose the port. The kernel chooses from net.ipv4.ip_local_port_range. It skips three kinds of ports:
  - ports in net.ipv4.ip_local_reserved_ports
  - ports that a socket bound explicitly, even after the socket has become a TIME_WAIT socket
  - ports that have a connection to the same destination
A server, an idle bound socket, and a client that called bind(), even with port 0, have explicitly bound ports.

TIME_WAIT sockets that connect() may reuse at once (tcp_tw_reuse) count as free. Reuse needs TCP timestamps on the old \
connection. The kernel does not report whether a TIME_WAIT socket had them. So twtool uses the present value of \
net.ipv4.tcp_timestamps instead.

For the port of a connection, the kernel does not report whether the client bound it explicitly or connect() chose it. twtool \
tests such ports one by one: it calls connect() to an unused loopback address, with TCP_FASTOPEN_CONNECT, which delays the SYN. twtool \
closes the socket before it sends anything, so the port is held for 1-2 microseconds. With --no-probe, or if the test is not \
possible, FREE includes these ports, although connect() may not be able to choose some of them. The JSON key \
`uncertain` contains the number by which FREE can be too high.

The time to exhaustion is an inference from a model. The model makes two assumptions. First: connections are opened as fast as they \
are closed, at the rate of the last 10 seconds. (If the destination has at least 10 TIME_WAIT sockets, and the oldest one is younger \
than 10 s, the rate is measured since the oldest one closed. If connect() may reuse TIME_WAIT sockets, the measured period is \
never longer than tcp_tw_reuse_delay, 1 s by default.) \
Second: a TIME_WAIT socket releases its port when its timer ends, or earlier, when connect() may reuse the socket.

The hold time is the time that a TIME_WAIT socket holds its port: 60 s, or tcp_tw_reuse_delay if connect() may reuse the socket. \
In this model, a port that is taken now becomes free again after the hold time. If the free ports last for at least one hold time at this \
rate, they never run out: from then on, ports become free as fast as connections take them. CEILING is the \
highest rate at which the ports never run out, in connections per second: the number of ports divided by the hold time.

Each row is one local address with one destination (remote address and remote port). Only connections that this \
machine opened count: twtool omits connections whose local address and port a listener covers. Without sock_diag, it \
can be unknown whether a listener on :: accepts IPv4. Then twtool omits the IPv4 connections of that listener, a \
warning contains their number, and the exit code is 2.

A program can give a socket a narrower range of ports with the socket option IP_LOCAL_PORT_RANGE. The kernel does not report \
this option, so such a socket has fewer ports than FREE.

Exit codes: 0 the answer is complete, 1 a destination has fewer free ports than --min-free, 2 the answer is unknown or incomplete.

Examples:
  twtool capacity                                   list the destinations; the first one runs out first
  twtool capacity --to 192.0.2.10:443               count the free ports to one destination
  twtool capacity --to '[2001:db8::1]:https' --from 2001:db8::9
  twtool capacity --min-free 10% -o ndjson          use as a health check
  twtool capacity --netns web                       use the network namespace web of `ip netns`
  twtool capacity --json | jq '.destinations[] | select(.exhausted_in_ms != null)'
")]
pub struct CapacityArgs {
    /// Show only this destination: an address, or an address and port like 192.0.2.1:443 or [2001:db8::1]:https. A port is a number
    /// or a service name
    #[arg(long, value_name = "ADDR[:PORT]")]
    to: Option<ScopedEnd>,
    /// Show only connections from this local address
    #[arg(long, value_name = "ADDR")]
    from: Option<ScopedAddr>,
    /// Show the N most urgent destinations: those that run out of ports first, then those with the fewest free ports [default:
    /// 10 in a table, else all]
    #[arg(long, value_name = "N")]
    top: Option<usize>,
    /// Exit with 1 if a destination has fewer free ports than this number, or than this share (like 10%) of the ports that
    /// connect() can choose
    #[arg(long, value_name = "N|N%", value_parser = parse_min_free)]
    min_free: Option<MinFree>,
    /// Do not test which ports are explicitly bound; only read the socket list
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
    minimum.ok_or_else(|| "expected a number of ports, 0-65536, or a share of the ports, 0%-100%".into())
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
            "it is unknown whether every destination has the free ports that --min-free requires, because some ports are \
             uncertain"
                .into(),
        );
    }
    let total = found.destinations.len();
    let default_top = if global.format() == Format::Table { TOP_ON_THE_SCREEN } else { usize::MAX };
    let shown = &found.destinations[..total.min(args.top.unwrap_or(default_top))];
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

/// Warns about an IPv6 address without connections that was probably meant as an address and a port.
fn perhaps_a_port(to: &ScopedEnd) -> Option<String> {
    let typed = to.to_string();
    let (addr, port) = typed.rsplit_once(':').filter(|_| to.port.is_none())?;
    let meant = addr.parse::<Ipv6Addr>().is_ok() && port.parse::<u16>().is_ok();
    meant.then(|| format!("'{typed}' is an address without a port; write port {port} of {addr} as [{addr}]:{port}"))
}

/// Compares each destination with `--min-free`. Returns the status, and the number of destinations with too few free ports. The
/// status is `Incomplete` if uncertain ports decide whether a destination has enough.
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
