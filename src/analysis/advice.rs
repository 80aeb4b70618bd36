//! Advice in words: what would help here, why, and by which source. Only what the evidence carries; no folk remedies.

use std::net::IpAddr;
use std::time::Duration;

use super::verdict::Conclusion;
use crate::model::bind::{Attempt, CallResult, Cause, Errno, Holder, ReuseOptions, Verdict};
use crate::model::facts::Facts;
use crate::model::port::Port;
use crate::model::process::Owners;
use crate::model::row::Direction;
use crate::model::socket::{Socket, TcpState, TimeWaitBucket};

/// Everything that a bind test found.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// Of the network namespace.
    pub facts: &'a Facts,
    /// The tested port.
    pub port: Port,
    /// What the server sets.
    pub with: ReuseOptions,
    /// All option sets of every address.
    pub attempts: &'a [Attempt],
    /// Every socket on the port.
    pub holders: &'a [Holder],
    /// What it comes to.
    pub conclusion: Conclusion,
    /// Whether the source lists sockets that are bound and do not listen, as far as the kernel does.
    pub bound_sockets_are_listed: bool,
}

/// Sentences for the person who asked, the most important first.
#[must_use]
pub fn advise(evidence: &Evidence) -> Vec<String> {
    let mut advice = match evidence.conclusion.cause {
        Cause::None => vec![],
        Cause::TimeWait => {
            let mut advice = vec![timewait_reusable(evidence)];
            advice.extend(at_least(evidence));
            advice
        }
        Cause::TimeWaitWithoutReuseaddr => timewait_blocks(evidence),
        Cause::Listener => vec![listener(evidence)],
        Cause::Connection => connection(evidence),
        Cause::Bound => vec![bound(evidence)],
        Cause::Unknown if evidence.conclusion.verdict != Verdict::Denied => vec![unseen(evidence)],
        Cause::PrivilegedPort | Cause::AddressNotLocal | Cause::FamilyUnsupported | Cause::Unknown => denied(evidence),
    };
    advice.extend(shared(evidence));
    advice.extend(ephemeral(evidence));
    advice
}

/// That all processes with the same socket must close it.
fn shared(evidence: &Evidence) -> Option<String> {
    let sharing = |holder: &Holder| match &holder.owners {
        Owners::Found(processes) if processes.len() > 1 => Some((processes.len(), holder.owners.names().join(", "))),
        _ => None,
    };
    let (count, names) = blocking(evidence).filter_map(sharing).max_by_key(|(count, _)| *count)?;
    Some(format!(
        "{count} processes have the same socket open: {names}. The port is free only when all of them close it."
    ))
}

/// Exact to the millisecond, as the kernel gave it.
fn seconds(time: Duration) -> String {
    format!("{}.{:03} s", time.as_secs(), time.subsec_millis())
}

fn blocking<'a>(evidence: &Evidence<'a>) -> impl Iterator<Item = &'a Holder> + Clone {
    evidence.holders.iter().filter(|holder| holder.blocks)
}

fn blocking_in<'a>(evidence: &Evidence<'a>, fits: fn(TcpState) -> bool) -> impl Iterator<Item = &'a Holder> + Clone {
    let full = move |holder: &&Holder| matches!(holder.socket, Socket::Full(full) if fits(full.state));
    blocking(evidence).filter(full)
}

fn is_connection(state: TcpState) -> bool {
    !matches!(state, TcpState::Listen | TcpState::Closed | TcpState::BoundInactive)
}

/// `3 sockets`, `1 socket`.
fn count(n: usize, one: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{n} {one}s") }
}

/// The fewest options with which a bind works on every address, where there are any; SO_REUSEADDR before SO_REUSEPORT.
fn fewest_that_work(evidence: &Evidence) -> Option<ReuseOptions> {
    let works = |options: &ReuseOptions| {
        evidence.attempts.iter().filter(|a| a.options == *options).all(|a| a.outcome() == CallResult::Ok)
    };
    ReuseOptions::ALL.into_iter().find(works)
}

/// What to say of options that work although something is in the way: how to set them, and what they mean.
fn set(options: ReuseOptions) -> String {
    let caution = if options.reuseport {
        " That fits a server that is meant to share its port and always sets it; it is no general remedy, for it also lets a \
         second server of the same user in."
    } else {
        ""
    };
    format!("{options} would work now on every address tried, set on the listening socket before bind().{caution}")
}

/// Who they are, the first few by name. Names that processes gave themselves are among the text: escape it.
pub fn who<'a>(holders: impl Iterator<Item = &'a Holder> + Clone) -> String {
    const SHOWN: usize = 3;
    let total = holders.clone().count();
    let mut named: Vec<String> = vec![];
    for holder in holders {
        for name in holder.owners.names() {
            if !named.contains(&name) {
                named.push(name);
            }
        }
    }
    let more = named.len().saturating_sub(SHOWN);
    named.truncate(SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let sockets = if total > 1 { format!(" ({total} sockets)") } else { String::new() };
    format!("{}{more}{sockets}", named.join(", "))
}

const BOTH_SIDES: &str = "Linux looks at both sides (socket(7), SO_REUSEADDR)";

/// The buckets in the way, with who opened their connections.
fn buckets(evidence: &Evidence) -> impl Iterator<Item = (TimeWaitBucket, Direction)> {
    blocking(evidence).filter_map(|holder| match holder.socket {
        Socket::Bucket(bucket) => Some((bucket, holder.direction)),
        Socket::Full(_) => None,
    })
}

/// `3 timewait buckets`.
fn buckets_counted(evidence: &Evidence) -> String {
    count(buckets(evidence).count(), "timewait bucket")
}

/// Why options work: the old sockets had them, between them.
fn had_too(evidence: &Evidence, options: ReuseOptions) -> String {
    let one = buckets(evidence).count() == 1;
    let had = match (options, one) {
        (ReuseOptions::BOTH, false) => "each had one of the two",
        (ReuseOptions::BOTH, true) => "had one of the two",
        _ => "had it too",
    };
    let who = if one { "the socket that left" } else { "the sockets that left" };
    format!("{who} {} {had}. {BOTH_SIDES}.", buckets_counted(evidence))
}

fn timewait_reusable(evidence: &Evidence) -> String {
    let options = fewest_that_work(evidence).unwrap_or(evidence.with);
    format!("Set {options} on the listening socket before bind(): it works now, because {}", had_too(evidence, options))
}

/// What a time until the port is free is worth where there are FIN_WAIT_2 buckets.
fn at_least(evidence: &Evidence) -> Option<String> {
    let free_in = evidence.conclusion.free_in?;
    buckets(evidence).any(|(bucket, _)| bucket.fin_wait_2).then(|| {
        format!(
            "The port is free in {} at the least, when the last timer ends: a FIN_WAIT_2 bucket is among them, and when its \
             peer closes it becomes TIME_WAIT with a fresh timer, 60 s on an unmodified kernel.",
            seconds(free_in)
        )
    })
}

fn timewait_blocks(evidence: &Evidence) -> Vec<String> {
    let Evidence { facts, port, .. } = *evidence;
    let one = buckets(evidence).count() == 1;
    let mut advice = vec![];
    match fewest_that_work(evidence) {
        Some(ReuseOptions::REUSEADDR) => advice.push(timewait_reusable(evidence)),
        Some(options) => advice.push(format!(
            "{} It gets past because {}",
            set(options),
            had_too(evidence, options)
        )),
        None => advice.push(format!(
            "{} the port, and {} did not have SO_REUSEADDR when {} closed. {BOTH_SIDES}, so SO_REUSEADDR on the new socket \
             alone does not help.",
            if one { "1 timewait bucket holds".into() } else { format!("{} hold", buckets_counted(evidence)) },
            if one { "the socket that left it" } else { "at least one of the sockets that left them" },
            if one { "it" } else { "they" },
        )),
    }
    advice.extend(at_least(evidence).or_else(|| {
        let free_in = evidence.conclusion.free_in?;
        Some(format!(
            "Left alone, the port is free when the last timer ends, in {}. The kernel's timers are coarse and may end some \
             seconds late, and a retransmitted FIN restarts one (RFC 9293, section 3.10.7.4).",
            seconds(free_in)
        ))
    }));
    if buckets(evidence).any(|(_, direction)| direction == Direction::Outbound) {
        let cure = if facts.locally_reserved(port) == Some(true) {
            "The port is reserved now, so connect() chooses it no more: this connection is older, or its client bound the \
             port by itself."
        } else {
            "Clients rarely set SO_REUSEADDR, so the cure is to keep connect() off the port."
        };
        advice.push(format!(
            "By its ports, a connection was an outbound one (inferred): some client on this machine had port {port} as its \
             own. {cure}"
        ));
    } else if fewest_that_work(evidence) != Some(ReuseOptions::REUSEADDR) {
        advice.push(
            "For the next restart: let the server set SO_REUSEADDR before it binds; the connections that it accepts \
             inherit it, and so do the buckets that they leave (socket(7))."
                .into(),
        );
    }
    advice
}

fn listener(evidence: &Evidence) -> String {
    let Evidence { port, with, .. } = *evidence;
    let who = who(blocking_in(evidence, |state| state == TcpState::Listen));
    if evidence.conclusion.verdict == Verdict::Reusable {
        return format!(
            "{who} listens on port {port}. A bind with {with} works beside it: on the same address the kernel deals new \
             connections out among all its listeners, and a listener on a more specific address gets those to that address \
             (socket(7), SO_REUSEPORT)."
        );
    }
    format!(
        "{who} listens on port {port}: it is in use, not in TIME_WAIT. SO_REUSEADDR never takes a port from a listener \
         (socket(7)). Stop that server, or choose another port or address."
    )
}

fn connection(evidence: &Evidence) -> Vec<String> {
    let connections = || blocking_in(evidence, is_connection);
    let mut states: Vec<TcpState> = connections().map(|holder| holder.socket.state()).collect();
    states.sort_unstable_by_key(|state| state.name());
    states.dedup();
    let names: Vec<_> = states.iter().map(|state| state.name()).collect();
    let mut advice = vec![format!("A connection holds the port ({}): {}.", names.join(", "), who(connections()))];
    advice.push(match fewest_that_work(evidence) {
        Some(options) if options == evidence.with => {
            format!("Set {options} before bind(): it works now, because that socket has it too. {BOTH_SIDES}.")
        }
        Some(options) => format!("{} {BOTH_SIDES}.", set(options)),
        None => format!(
            "No option gets past every socket on the port: at least one of them does not have the option that the new one \
             would share it by. {BOTH_SIDES}."
        ),
    });
    if states.contains(&TcpState::CloseWait) {
        advice.push(
            "In close-wait the peer has closed and the program that owns the socket has not: it stays until that program \
             calls close() (RFC 9293, section 3.3.2)."
                .into(),
        );
    }
    let leaves = [TcpState::Established, TcpState::FinWait1, TcpState::FinWait2, TcpState::Closing];
    if leaves.iter().any(|state| states.contains(state)) {
        advice.push(
            "If this end closes first, the connection leaves a TIME_WAIT bucket on the port (RFC 9293, section 3.3.2)."
                .into(),
        );
    }
    advice
}

fn bound(evidence: &Evidence) -> String {
    let who = who(blocking_in(evidence, |state| matches!(state, TcpState::Closed | TcpState::BoundInactive)));
    let holds = format!("{who} has bound the port without listening on it.");
    match fewest_that_work(evidence) {
        Some(options) => format!(
            "{holds} {} But of two such sockets only one can listen on an address: the second listen() fails with EADDRINUSE \
             (listen(2); try --listen).",
            set(options)
        ),
        None => format!("{holds} Stop that process, or choose another port or address."),
    }
}

/// Nothing was found that would explain EADDRINUSE.
fn unseen(evidence: &Evidence) -> String {
    if evidence.port.reserved_by_rfc() {
        return "The kernel finds no free port in net.ipv4.ip_local_port_range: bind() to port 0 reports that as \
                EADDRINUSE (bind(2))."
            .into();
    }
    let hidden = if evidence.bound_sockets_are_listed {
        "Something holds the port that this kernel does not show: most likely a socket that is bound and does not listen, \
         which kernels show only since about 6.8."
    } else {
        "Something holds the port that /proc/net/tcp does not show: most likely a socket that is bound and does not listen, \
         which sock_diag could show."
    };
    format!("{hidden} It can also have gone between the bind and the look (sock_diag(7)).")
}

/// Why the binds that failed for another reason than the port being in use failed, each reason once.
fn denied(evidence: &Evidence) -> Vec<String> {
    let mut advice: Vec<String> = vec![];
    for attempt in evidence.attempts.iter().filter(|attempt| attempt.options == ReuseOptions::NONE) {
        let why = match attempt.outcome() {
            CallResult::Ok | CallResult::Failed(Errno::AddrInUse) => continue,
            CallResult::Failed(errno) => denial(evidence.facts, evidence.port, attempt, errno),
        };
        if !advice.contains(&why) {
            advice.push(why);
        }
    }
    advice
}

/// Why a bind failed for another reason than the port being in use, and what would help.
#[must_use]
pub fn denial(facts: &Facts, port: Port, attempt: &Attempt, errno: Errno) -> String {
    let on = match attempt.at.scope {
        Some(scope) => format!("{}%{}", attempt.at.addr, facts.interface_name(scope)),
        None => attempt.at.addr.to_string(),
    };
    match errno {
        Errno::Access if facts.privileged(port) == Some(true) => {
            let start = facts.unprivileged_port_start.map_or("unknown".into(), |start| start.to_string());
            format!(
                "EACCES: port {port} is below net.ipv4.ip_unprivileged_port_start ({start}), so binding it needs \
                 CAP_NET_BIND_SERVICE: in a systemd unit AmbientCapabilities=CAP_NET_BIND_SERVICE, or setcap \
                 cap_net_bind_service=+ep on the program (capabilities(7), ip(7))."
            )
        }
        Errno::AddrNotAvailable => format!(
            "EADDRNOTAVAIL: {on} is no address of {} in this network namespace (`ip address` lists them), or not usable \
             yet. A server that must bind before its address is there can use net.ipv4.ip_nonlocal_bind or \
             net.ipv6.ip_nonlocal_bind, or IP_FREEBIND (ip(7)).",
            attempt.at.scope.map_or("any interface".into(), |scope| facts.interface_name(scope)),
        ),
        Errno::FamilyNotSupported => "EAFNOSUPPORT: IPv6 sockets cannot be made here: the kernel was started with \
                                      ipv6.disable=1, or a sandbox refuses them (ipv6 in the kernel's documentation). Bind \
                                      an IPv4 address."
            .into(),
        Errno::Other("EINVAL") => format!("EINVAL on {on}: {}", invalid(attempt)),
        other => format!(
            "{} on {on}: this is not about the port being in use. EACCES or EPERM on a port that needs no privilege comes \
             from a security module or a sandbox (bind(2)).",
            other.name()
        ),
    }
}

/// What bind() calls invalid in an address (`__inet6_bind` in net/ipv6/af_inet6.c).
fn invalid(attempt: &Attempt) -> &'static str {
    match attempt.at.addr {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() && attempt.v6only => {
            "an IPv4-mapped address on a socket that is IPv6 only (net.ipv6.bindv6only, ipv6(7))."
        }
        IpAddr::V6(v6) if v6.is_multicast() => "TCP has no multicast addresses.",
        IpAddr::V6(v6) if v6.is_unicast_link_local() && attempt.at.scope.is_none() => {
            "a link-local address needs its scope, like fe80::1%eth0 (ipv6(7))."
        }
        _ => "the kernel calls this address invalid (bind(2)).",
    }
}

/// The port lies where connect() looks for its own ports: how to keep it out.
fn ephemeral(evidence: &Evidence) -> Option<String> {
    let Evidence { facts, port, .. } = *evidence;
    let applies = facts.ephemeral(port) == Some(true) && facts.locally_reserved(port) == Some(false);
    let range = facts.local_port_range.filter(|_| applies)?;
    let reserved = facts.local_reserved_ports.as_ref()?.with([port]);
    Some(format!(
        "Port {port} lies in net.ipv4.ip_local_port_range ({}), so connect() may take it as a client's port whenever \
         nothing has bound it. Reserve it for servers: sysctl -w net.ipv4.ip_local_reserved_ports={reserved} (and the same line in \
         /etc/sysctl.d to keep it; ip-sysctl in the kernel's documentation).",
        range.0
    ))
}
