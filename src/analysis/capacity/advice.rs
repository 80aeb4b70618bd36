//! Advice for a destination that runs out of ports: how to get more ports, or use fewer. [`super`] defines the *pool*.

use std::net::SocketAddr;

use super::{Conditions, Destination, Pool};
use crate::model::command::{Privilege, Shell, Step, Suggestions};
use crate::model::facts::Facts;
use crate::model::setting;
use crate::model::tw_reuse::{ReuseMode, TwReuse};

/// In percent of the pool: a destination with a smaller share of free ports is short of ports.
const SHORT: u32 = 10;

/// Without a shortage, the advice mentions explicitly bound or reserved ports only if they are at least this share of the range, in
/// percent.
const MANY: u32 = 5;

/// If ports are short and the range has fewer ports than this, the advice is to widen the range.
const WIDE: u32 = 60_000;

/// A wider range begins at this port (`PROT_SOCK` in net/sock.h), or at ip_unprivileged_port_start if that is higher.
const LOWEST: u32 = 1024;

/// Describes a shortage of ports: in the whole pool, or for the most urgent destination, which comes first in `destinations`. `None` if
/// there is no shortage.
#[must_use]
pub fn verdict(destinations: &[Destination], pool: &Pool) -> Option<String> {
    if pool.size == 0 {
        return Some(format!(
            "No port of {} is left for connect(). Every connect() without a fixed source port fails with EADDRNOTAVAIL.",
            pool.range
        ));
    }
    destinations.iter().find(|one| is_short(one, pool)).map(|worst| format!("{}.", ports_left(worst, pool.size)))
}

/// The ports that a destination has left: `From 10.0.0.1 to 10.0.0.2:443, 6 of 98 ports are left (at the present rate, none is
/// left in 3.7 s)`.
#[must_use]
pub fn ports_left(one: &Destination, pool: u32) -> String {
    let to = SocketAddr::new(one.ends.remote_addr, one.ends.remote_port.0);
    let rate = one.exhausted_in.filter(|time| !time.is_zero()).map_or(String::new(), |time| {
        format!(" (at the present rate, none is left in {}.{} s)", time.as_secs(), time.subsec_millis() / 100)
    });
    let free = match one.uncertain {
        0 => one.free.to_string(),
        _ => format!("at most {}", one.free),
    };
    let are = if one.free == 1 { "is" } else { "are" };
    format!("From {} to {to}, {free} of {} {are} left{rate}", one.ends.local_addr, ports(pool))
}

/// The commands and the advice for the most urgent destination, which comes first in `destinations`.
#[must_use]
pub fn advise(destinations: &[Destination], conditions: &Conditions, facts: &Facts, shell: &Shell) -> Suggestions {
    let Conditions { pool, reuse, .. } = *conditions;
    let short = destinations.iter().find(|one| is_short(one, pool));
    let scarce = short.is_some() || pool.size == 0;
    let mut help = Suggestions::default();
    let reserved_decide = scarce && pool.reserved.count() >= pool.range.count().div_ceil(2);
    if reserved_decide {
        help.append(shorten(pool, shell));
    }
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
    help.advice.extend((!reserved_decide && weighs(pool.reserved.count())).then(|| reserved(pool)));
    if let Some(worst) = short.filter(|_| pool.size > 0) {
        help.advice.push(
            "Use more source addresses, or more addresses or ports of the destination: each combination can use the whole \
             pool. A client that binds its source address should set IP_BIND_ADDRESS_NO_PORT before bind(), so that connect() \
             chooses the port (ip(7))."
                .into(),
        );
        // The kernel ignores a range of IP_LOCAL_PORT_RANGE outside ip_local_port_range (measured on Linux 6.18).
        let several = worst.established + worst.other > 0 && facts.kernel_since(6, 3) == Some(true);
        help.advice.extend(several.then(|| {
            "A client that sets IP_LOCAL_PORT_RANGE (Linux 6.3) uses only a part of the range, and leaves the rest to other \
             clients. It gets no ports outside the range (ip(7))."
                .into()
        }));
    }
    help
}

/// The command that shows the reserved ports, and the advice to remove some of them. dd(1) reads the list with one read(2). Programs with a
/// smaller buffer show only the beginning of a long list.
fn shorten(pool: &Pool, shell: &Shell) -> Suggestions {
    const FILE: &str = "if=/proc/sys/net/ipv4/ip_local_reserved_ports";
    let show = shell.run(Privilege::None, &["dd", FILE, "bs=1M", "count=1", "status=none"]);
    Suggestions {
        commands: vec![Step::new(show, "show the reserved ports, to remove those that no server needs from the list")],
        sysctl_lines: vec![],
        advice: vec![format!(
            "{} Save the list first: `sysctl -w` replaces it as a whole, and a value of more than 4 KB is cut.",
            reserved(pool)
        )],
    }
}

fn reserved(pool: &Pool) -> String {
    let count = pool.reserved.count();
    format!(
        "{} of the range {} in net.ipv4.ip_local_reserved_ports, so connect() never chooses {} (ip-sysctl). Remove the ports that \
         no server needs from the list.",
        ports(count),
        if count == 1 { "is" } else { "are" },
        if count == 1 { "it" } else { "them" },
    )
}

/// The commands that set the widest useful range. The kernel refuses a range that begins at a privileged port (`ipv4_local_port_range` in
/// net/ipv4/sysctl_net_ipv4.c).
fn widen(pool: &Pool, facts: &Facts, shell: &Shell) -> Suggestions {
    const NAME: &str = setting::IP_LOCAL_PORT_RANGE.name;
    let low = facts.unprivileged_port_start.unwrap_or(LOWEST).max(LOWEST);
    let reason = format!(
        "{NAME} is {} now. Before you widen it, add the ports of servers inside the new range to \
         net.ipv4.ip_local_reserved_ports. Otherwise a client can take the port of a server that is down (ip-sysctl).",
        pool.range
    );
    if u32::from(pool.range.first().0) <= low && pool.range.last().0 == u16::MAX {
        return Suggestions::default();
    }
    let from = format!(":{low}");
    let list = shell.run(Privilege::None, &["ss", "-Htln", "sport", ">=", &from]);
    let mut help = Suggestions::default();
    help.commands.push(Step::new(list, "list the servers inside the wider range, to reserve their ports first"));
    help.append(shell.change(
        NAME,
        &format!("{low} {}", u16::MAX),
        "after you have reserved the ports of those servers (see below), let connect() choose from more ports",
    ));
    help.advice.push(reason);
    help
}

/// Whether a destination has few ports left, or runs out of ports at the present rate.
#[must_use]
pub fn is_short(destination: &Destination, pool: &Pool) -> bool {
    destination.exhausted_in.is_some() || share(destination.free, pool.size) < SHORT
}

fn share(count: u32, of: u32) -> u32 {
    (count * 100).checked_div(of).unwrap_or(0)
}

fn ports(count: u32) -> String {
    if count == 1 { "1 port".into() } else { format!("{count} ports") }
}

fn uses(worst: &Destination, conditions: &Conditions) -> String {
    let Destination { ends, established, time_wait, other, .. } = *worst;
    let to = SocketAddr::new(ends.remote_addr, ends.remote_port.0);
    let from = ends.local_addr;
    let kept = time_wait - worst.reusable.unwrap_or(0).min(time_wait);
    if kept == 0 && established + other == 0 {
        return format!("No connection from {from} to {to} is open. The pool itself is small.");
    }
    if kept > established + other {
        return format!(
            "From {from} to {to}, {} {} in TIME_WAIT. Keep connections open and reuse them (RFC 9112, section 9.3, for HTTP; a \
             connection pool): fewer closes need fewer ports. Each close that this machine begins holds a port for {} s. The \
             end that closes first keeps TIME_WAIT (RFC 9293, section 3.6): if the server closes first, the server keeps it.",
            ports(kept),
            if kept == 1 { "is" } else { "are" },
            conditions.length.seconds,
        );
    }
    let (others, reason) = if other > 0 {
        (
            format!(", {} by sockets in other states, such as FIN_WAIT_2 or CLOSE_WAIT", ports(other)),
            " A socket in another state keeps its port until both ends have closed, or until a timer ends it.",
        )
    } else {
        (String::new(), "")
    };
    format!(
        "From {from} to {to}, {} {} in use by open connections{others}, and {} by TIME_WAIT. Use fewer connections at a time: a \
         connection pool, or several requests on one connection.{reason}",
        ports(established),
        if established == 1 { "is" } else { "are" },
        ports(kept),
    )
}

fn explicitly_bound(pool: &Pool) -> String {
    const SHOWN: usize = 5;
    let ranges = pool.explicitly_bound.ranges();
    let shown: Vec<_> = ranges.iter().take(SHOWN).map(ToString::to_string).collect();
    let more = if ranges.len() > SHOWN { ", ..." } else { "" };
    let count = pool.explicitly_bound.count();
    format!(
        "{} of the range {} bound explicitly by a socket ({}{more}), and connect() never chooses {}, whatever the address and \
         the destination. Move servers to ports outside the range. A client that binds its source address with port 0 also \
         binds a port, until its TIME_WAIT ends: set IP_BIND_ADDRESS_NO_PORT before bind() to avoid that (ip(7)).",
        ports(count),
        if count == 1 { "is" } else { "are" },
        shown.join(", "),
        if count == 1 { "it" } else { "them" },
    )
}

/// The commands that let connect() take over TIME_WAIT sockets, if a setting prevents it now.
fn take_over(worst: &Destination, reuse: TwReuse, shell: &Shell) -> Suggestions {
    let ends = worst.ends;
    if worst.time_wait == 0 || reuse.applies(ends.local_addr, ends.remote_addr, ends.interface) != Some(false) {
        return Suggestions::default();
    }
    if reuse.timestamps == Some(false) {
        let mut help = shell.change(setting::TCP_TIMESTAMPS.name, "1", "switch timestamps on for new connections");
        help.advice.push(
            "net.ipv4.tcp_timestamps is off, so new connections have no timestamps. connect() never takes over a bucket of a \
             connection without timestamps, whatever the value of net.ipv4.tcp_tw_reuse (ip-sysctl)."
                .into(),
        );
        return help;
    }
    let now = match reuse.mode {
        Some(ReuseMode::Off) => "0, off",
        Some(ReuseMode::LoopbackOnly) => "2, for loopback only",
        Some(ReuseMode::On) | None => return Suggestions::default(),
    };
    let delay = reuse.delay.as_millis();
    let purpose = format!("let connect() take over TIME_WAIT sockets that are at least {delay} ms old");
    let mut help = shell.change(setting::TCP_TW_REUSE.name, "1", &purpose);
    help.advice.push(format!(
        "net.ipv4.tcp_tw_reuse is {now}. With 1, connect() may take over a bucket with the same addresses and ports that is \
         at least {delay} ms old, if the connection of the bucket had timestamps (ip-sysctl; RFC 6191). The setting affects \
         outgoing connections only."
    ));
    help
}
