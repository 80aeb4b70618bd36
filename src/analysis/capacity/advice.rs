//! What would give a destination more ports, where the numbers say that it needs them; each with its source.

use std::net::SocketAddr;

use super::{Conditions, Destination, Pool};
use crate::model::command::{Help, Privilege, Shell, Step};
use crate::model::facts::Facts;
use crate::model::setting;
use crate::model::tw_reuse::{ReuseMode, TwReuse};

/// A share of the pool, in hundredths: below it a destination is short of ports.
const SHORT: u32 = 10;

/// A share of the range, in hundredths, from which on ports that nobody gets are worth a word by themselves.
const MANY: u32 = 5;

/// A range that is narrower can be widened by much.
const WIDE: u32 = 60_000;

/// No range of clients begins below it by default (`PROT_SOCK` in net/sock.h).
const LOWEST: u32 = 1024;

/// The answer in one sentence, where the ports are not enough: for the destination with the fewest, which `destinations` has
/// first, or for all of them.
#[must_use]
pub fn verdict(destinations: &[Destination], pool: &Pool) -> Option<String> {
    if pool.size == 0 {
        return Some(format!(
            "No port of {} is left for connect(): every connect() that leaves the port to the kernel fails with \
             EADDRNOTAVAIL.",
            pool.range
        ));
    }
    destinations.iter().find(|one| is_short(one, pool)).map(|worst| format!("{}.", ports_left(worst, pool.size)))
}

/// `From 10.0.0.1 to 10.0.0.2:443, 6 of 98 ports are left, none in 3.7 s at the present rate`.
#[must_use]
pub fn ports_left(one: &Destination, pool: u32) -> String {
    let to = SocketAddr::new(one.ends.remote_addr, one.ends.remote_port.0);
    let rate = one.exhausted_in.filter(|time| !time.is_zero()).map_or(String::new(), |time| {
        format!(", none in {}.{} s at the present rate", time.as_secs(), time.subsec_millis() / 100)
    });
    let free = match one.uncertain {
        0 => one.free.to_string(),
        _ => format!("at most {}", one.free),
    };
    let are = if one.free == 1 { "is" } else { "are" };
    format!("From {} to {to}, {free} of {} {are} left{rate}", one.ends.local_addr, ports(pool))
}

/// What helps the destination that is worst off; `destinations` has it first.
#[must_use]
pub fn advise(destinations: &[Destination], conditions: &Conditions, facts: &Facts, shell: &Shell) -> Help {
    let Conditions { pool, reuse, .. } = *conditions;
    let short = destinations.iter().find(|one| is_short(one, pool));
    let scarce = short.is_some() || pool.size == 0;
    let mut help = Help::default();
    if scarce && pool.range.count() < WIDE {
        help.append(widen(pool, facts, shell));
    }
    if let Some(worst) = short.filter(|_| pool.size > 0) {
        help.append(take_over(worst, reuse, shell));
    }
    if let Some(worst) = short.filter(|_| pool.size > 0) {
        help.advice.push(uses(worst, conditions));
    }
    let weighs = |count: u32| count > 0 && (scarce || share(count, pool.range.count()) >= MANY);
    help.advice.extend(weighs(pool.explicitly_bound.count()).then(|| explicitly_bound(pool)));
    help.advice.extend(weighs(pool.reserved.count()).then(|| {
        let count = pool.reserved.count();
        format!(
            "{} of the range {} in net.ipv4.ip_local_reserved_ports, so connect() never chooses {} (ip-sysctl). Give back \
             what no server needs.",
            ports(count),
            if count == 1 { "is" } else { "are" },
            if count == 1 { "it" } else { "them" },
        )
    }));
    if let Some(worst) = short.filter(|_| pool.size > 0) {
        help.advice.push(
            "Each further source address has the whole pool again, and so has each further address or port of the \
             destination. A client that chooses its address by bind() sets IP_BIND_ADDRESS_NO_PORT before, and connect() \
             chooses the port (ip(7))."
                .into(),
        );
        // Measured on Linux 6.18: a range outside ip_local_port_range is ignored.
        let several = worst.established + worst.other > 0 && facts.kernel_since(6, 3) == Some(true);
        help.advice.extend(several.then(|| {
            "A client that sets IP_LOCAL_PORT_RANGE (Linux 6.3) takes ports from a part of the range alone, and leaves the \
             rest to other clients. It gets no ports outside the range (ip(7))."
                .into()
        }));
    }
    help
}

/// The widest range that the kernel accepts: from the first port that needs no privilege (`ipv4_local_port_range` in
/// net/ipv4/sysctl_net_ipv4.c refuses less).
fn widen(pool: &Pool, facts: &Facts, shell: &Shell) -> Help {
    const NAME: &str = setting::IP_LOCAL_PORT_RANGE.name;
    let low = facts.unprivileged_port_start.unwrap_or(LOWEST).max(LOWEST);
    let reason = format!(
        "{NAME} is {} now. Before you widen it, add the ports of servers inside the new range to \
         net.ipv4.ip_local_reserved_ports, so that no client takes the port of a server that is down (ip-sysctl).",
        pool.range
    );
    if u32::from(pool.range.first().0) <= low && pool.range.last().0 == u16::MAX {
        return Help::default();
    }
    let from = format!(":{low}");
    let list = shell.run(Privilege::None, &["ss", "-Htln", "sport", ">=", &from]);
    let mut help = Help::default();
    help.commands
        .push(Step::new(list, "list the servers inside the wider range, whose ports are to be reserved first"));
    help.append(shell.change(
        NAME,
        &format!("{low} {}", u16::MAX),
        "then, when the ports of those servers are reserved (see below), let connect() choose from more ports",
    ));
    help.advice.push(reason);
    help
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
    let to = SocketAddr::new(ends.remote_addr, ends.remote_port.0);
    let from = ends.local_addr;
    let kept = time_wait - worst.reusable.unwrap_or(0).min(time_wait);
    if kept == 0 && established + other == 0 {
        return format!("From {from} to {to} nothing is open: it is the pool itself that is small.");
    }
    if kept > established + other {
        return format!(
            "From {from} to {to}, {} in TIME_WAIT, for {} s after each close that this end began. Fewer closes need fewer \
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

/// Whether `tcp_tw_reuse` would help with what is in TIME_WAIT, and how.
fn take_over(worst: &Destination, reuse: TwReuse, shell: &Shell) -> Help {
    let ends = worst.ends;
    if worst.time_wait == 0 || reuse.applies(ends.local_addr, ends.remote_addr, ends.interface) != Some(false) {
        return Help::default();
    }
    if reuse.timestamps == Some(false) {
        let mut help = shell.change(setting::TCP_TIMESTAMPS.name, "1", "switch timestamps on for new connections");
        help.advice.push(
            "net.ipv4.tcp_timestamps is off. Without timestamps connect() takes no bucket over, whatever \
             net.ipv4.tcp_tw_reuse is (ip-sysctl)."
                .into(),
        );
        return help;
    }
    let now = match reuse.mode {
        Some(ReuseMode::Off) => "0, off",
        Some(ReuseMode::LoopbackOnly) => "2, for loopback only",
        Some(ReuseMode::On) | None => return Help::default(),
    };
    let delay = reuse.delay.as_millis();
    let purpose = format!("let connect() take over TIME_WAIT sockets that are {delay} ms old");
    let mut help = shell.change(setting::TCP_TW_REUSE.name, "1", &purpose);
    help.advice.push(format!(
        "net.ipv4.tcp_tw_reuse is {now}. With 1, connect() may take over a bucket of the same connection that is {delay} ms \
         old, where both ends use timestamps (ip-sysctl; RFC 6191). It is for outgoing connections alone."
    ));
    help
}
