//! What would give a destination more ports, where the numbers say that it needs them; each with its source.

use super::{Conditions, Destination, Pool};
use crate::model::tw_reuse::{ReuseMode, TwReuse};

/// A share of the pool, in hundredths: below it a destination is short of ports.
const SHORT: u32 = 10;

/// A share of the range, in hundredths, from which on ports that nobody gets are worth a word by themselves.
const MANY: u32 = 5;

/// A range that is narrower can be widened by much.
const WIDE: u32 = 60_000;

/// Sentences for the person who asked, by the destination that is worst off; `destinations` has it first.
#[must_use]
pub fn advise(destinations: &[Destination], conditions: &Conditions) -> Vec<String> {
    let Conditions { pool, reuse, .. } = *conditions;
    let short = destinations.iter().find(|one| is_short(one, pool));
    let mut advice = vec![];
    if let Some(worst) = short {
        advice.push(uses(worst, conditions));
    }
    let weighs = |count: u32| count > 0 && (short.is_some() || share(count, pool.range.count()) >= MANY);
    advice.extend(weighs(pool.explicitly_bound.count()).then(|| explicitly_bound(pool)));
    advice.extend(weighs(pool.reserved.count()).then(|| {
        format!(
            "{} of the range are in net.ipv4.ip_local_reserved_ports, so connect() never chooses them (ip-sysctl). Those \
             that no server needs are worth giving back.",
            ports(pool.reserved.count())
        )
    }));
    if let Some(worst) = short {
        advice.extend((pool.range.count() < WIDE).then(|| {
            format!(
                "net.ipv4.ip_local_port_range is {}; it may go from 1024 to 65535. Servers' ports inside it belong in \
                 net.ipv4.ip_local_reserved_ports first (ip-sysctl).",
                pool.range
            )
        }));
        advice.push(
            "Each further source address has the whole pool again, and so has each further address or port of the \
             destination. A client that chooses its address by bind() sets IP_BIND_ADDRESS_NO_PORT before, and connect() \
             chooses the port (ip(7))."
                .into(),
        );
        advice.extend(take_over(worst, reuse));
    }
    advice
}

/// Whether a destination runs out, or nearly has.
#[must_use]
pub fn is_short(destination: &Destination, pool: &Pool) -> bool {
    destination.exhausted_in.is_some() || share(destination.free, pool.size) < SHORT
}

/// In hundredths.
fn share(count: u32, of: u32) -> u32 {
    (count * 100).checked_div(of).unwrap_or(0)
}

/// `1 port`, `2 ports`.
fn ports(count: u32) -> String {
    if count == 1 { "1 port".into() } else { format!("{count} ports") }
}

/// What uses the ports up, and what would use fewer.
fn uses(worst: &Destination, conditions: &Conditions) -> String {
    let Destination { ends, established, time_wait, other, .. } = *worst;
    let to = std::net::SocketAddr::new(ends.remote_addr, ends.remote_port.0);
    let from = ends.local_addr;
    let kept = time_wait - worst.reusable.unwrap_or(0).min(time_wait);
    if kept == 0 && established + other == 0 {
        return format!("From {from} to {to} nothing is open: it is the pool itself that is small.");
    }
    if kept > established + other {
        return format!(
            "From {from} to {to}, {} wait in TIME_WAIT, {} s after each close that this end began. Fewer closes need fewer \
             ports: keep connections open and use them again (RFC 9112, section 9.3, for HTTP; a connection pool). The end \
             that closes first keeps the port (RFC 9293, section 3.6), so letting the server close first moves the wait \
             there.",
            ports(kept),
            conditions.length.seconds,
        );
    }
    format!(
        "From {from} to {to}, {} hold a port by an open connection, more than by TIME_WAIT: fewer connections at a time need \
         fewer ports (a connection pool, several requests on one connection).",
        if established + other == 1 { "1 socket".into() } else { format!("{} sockets", established + other) },
    )
}

fn explicitly_bound(pool: &Pool) -> String {
    const SHOWN: usize = 5;
    let ranges = pool.explicitly_bound.ranges();
    let shown: Vec<_> = ranges.iter().take(SHOWN).map(ToString::to_string).collect();
    let more = if ranges.len() > SHOWN { ", ..." } else { "" };
    let count = pool.explicitly_bound.count();
    format!(
        "{} of the range {} bound explicitly by some socket ({}{more}), and connect() gives {} to nobody, whatever the \
         address and the destination. Servers belong outside the range. A client that binds its address with port 0 takes \
         one, too, until it and its TIME_WAIT are gone: IP_BIND_ADDRESS_NO_PORT before bind() avoids it (ip(7)).",
        ports(count),
        if count == 1 { "is" } else { "are" },
        shown.join(", "),
        if count == 1 { "it" } else { "them" },
    )
}

/// Whether `tcp_tw_reuse` would help with what is in TIME_WAIT.
fn take_over(worst: &Destination, reuse: TwReuse) -> Option<String> {
    let ends = worst.ends;
    if worst.time_wait == 0 || reuse.applies(ends.local_addr, ends.remote_addr, ends.interface) != Some(false) {
        return None;
    }
    if reuse.timestamps == Some(false) {
        return Some(
            "net.ipv4.tcp_timestamps is off, and without timestamps connect() takes no bucket over, whatever \
             net.ipv4.tcp_tw_reuse says (ip-sysctl)."
                .into(),
        );
    }
    let now = match reuse.mode? {
        ReuseMode::Off => "0, off",
        ReuseMode::LoopbackOnly => "2, for loopback only",
        ReuseMode::On => return None,
    };
    Some(format!(
        "net.ipv4.tcp_tw_reuse is {now}. With 1, connect() may take over a bucket of the same connection that is {} ms old, \
         where both ends use timestamps (ip-sysctl; RFC 6191). It is for outgoing connections alone.",
        reuse.delay.as_millis(),
    ))
}
