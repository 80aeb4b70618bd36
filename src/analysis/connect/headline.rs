//! Describes the verdict of a connect test in one line: the result of connect(), or why it is unknown.

use super::{ConnectCause, ConnectConclusion, ConnectVerdict, FailingCall, Situation};
use crate::analysis::advice::{self, counted_noun};
use crate::analysis::verdict;
use crate::model::bind::{Errno, Holder};

/// The text of strerror(3), which programs usually print.
const fn message(errno: Errno) -> Option<&'static str> {
    Some(match errno.name().as_bytes() {
        b"EADDRINUSE" => "Address already in use",
        b"EADDRNOTAVAIL" => "Cannot assign requested address",
        b"EACCES" => "Permission denied",
        b"EPERM" => "Operation not permitted",
        b"EAFNOSUPPORT" => "Address family not supported by protocol",
        b"ENETUNREACH" => "Network is unreachable",
        b"EHOSTUNREACH" => "No route to host",
        b"EINVAL" => "Invalid argument",
        _ => return None,
    })
}

/// An errno and its message: `EADDRNOTAVAIL (Cannot assign requested address)`.
fn errno_text(errno: Errno) -> String {
    message(errno).map_or_else(|| errno.name().into(), |text| format!("{} ({text})", errno.name()))
}

/// The words that follow the verdict, for example `: bind() fails with ...`. They can contain process names, so the caller must escape
/// them.
#[must_use]
pub fn headline(situation: &Situation, conclusion: &ConnectConclusion) -> String {
    let fails = conclusion.failure.map(|(call, errno)| format!("{}() fails with {}", call.name(), errno_text(errno)));
    let fails = fails.unwrap_or_default();
    match (conclusion.verdict, conclusion.cause) {
        (ConnectVerdict::Free, _) => free(situation, conclusion),
        (ConnectVerdict::Unknown, ConnectCause::TimeWait) if situation.from_port.is_some() => {
            let probably = match conclusion.inferred {
                Some(ConnectVerdict::Free) => ", probably free (inferred)",
                Some(_) => ", probably blocked (inferred)",
                None => "",
            };
            format!("{probably}: connect() takes over {} if the old connection had TCP timestamps", obstacle(situation))
        }
        (ConnectVerdict::Unknown, ConnectCause::TimeWait) if conclusion.inferred.is_some() => {
            ", probably free (inferred): every port is in use, but connect() can take over a TIME_WAIT socket whose connection \
             had TCP timestamps"
                .into()
        }
        (ConnectVerdict::Unknown, _) => ": it is uncertain whether a port is left".into(),
        (_, ConnectCause::Exhausted) if situation.bind_finds_no_port() && !situation.bind_address_no_port => {
            let on = situation.from.map(|at| at.text(&situation.facts)).unwrap_or_default();
            format!(": {fails} because each port that bind() may choose is in use on {on}")
        }
        (_, ConnectCause::Exhausted) => format!(": {fails} because {}", none_left(situation)),
        (_, ConnectCause::AddressNotLocal) => {
            let on = situation.from.map(|at| at.text(&situation.facts)).unwrap_or_default();
            format!(": {fails} because {on} is not an address of this network namespace")
        }
        (_, ConnectCause::PrivilegedPort) => format!(": {fails} because the source port needs CAP_NET_BIND_SERVICE"),
        (ConnectVerdict::Denied, _) if lacks_scope(situation, conclusion) => {
            let at = if conclusion.cause == ConnectCause::NoRoute { Some(situation.to) } else { situation.from };
            let addr = at.map(|at| at.text(&situation.facts)).unwrap_or_default();
            format!(": {fails} because the link-local address {addr} does not name its interface (the scope, like %eth0)")
        }
        (_, ConnectCause::NoRoute) => format!(": {fails} because {}", no_route(situation)),
        (_, ConnectCause::FamilyUnsupported) => {
            format!(": {fails} because {} sockets cannot be created here", situation.to.family())
        },
        (ConnectVerdict::Denied, _) => format!(": {fails}"),
        (_, ConnectCause::AddressInUse) if conclusion.failure.is_some_and(|(call, _)| call == FailingCall::Connect) => {
            format!(": {fails} because this connection exists already ({})", obstacle(situation))
        }
        _ => format!(": {fails} because of {}", obstacle(situation)),
    }
}

fn free(situation: &Situation, conclusion: &ConnectConclusion) -> String {
    let Some((free, choice)) = conclusion.free.zip(situation.choice.as_ref()) else { return String::new() };
    if free == 0 {
        return ", bind() finds a port".into();
    }
    let are = if free == 1 { "is" } else { "are" };
    let most = if choice.destination.uncertain > 0 { "at most " } else { "" };
    format!(", {most}{free} of {} {are} left", counted_noun(choice.pool.size as usize, "port"))
}

pub(super) fn none_left(situation: &Situation) -> String {
    match situation.choice.as_ref().map(|choice| &choice.pool) {
        Some(pool) if pool.size == 0 => format!("all ports of {} are reserved or explicitly bound", pool.range),
        Some(pool) => format!("none of {} is left for this destination", counted_noun(pool.size as usize, "port")),
        None => "no port is left".into(),
    }
}

/// Whether the call fails because its link-local address has no scope, like `%eth0`. After a bind() with a scope, connect() needs none,
/// because the socket is bound to the interface (`__inet6_bind` in net/ipv6/af_inet6.c, `tcp_v6_connect` in net/ipv6/tcp_ipv6.c).
pub(super) fn lacks_scope(situation: &Situation, conclusion: &ConnectConclusion) -> bool {
    match conclusion.failure {
        Some((FailingCall::Bind, Errno::Other("EINVAL"))) => situation.from.is_some_and(|from| from.lacks_scope()),
        Some((FailingCall::Connect, Errno::Other("EINVAL"))) => {
            situation.to.lacks_scope() && situation.from.is_none_or(|from| from.scope.is_none())
        }
        _ => false,
    }
}

fn no_route(situation: &Situation) -> &'static str {
    match situation.route {
        Err(Errno::AddrNotAvailable) => "this network namespace has no address that can be the source",
        Err(Errno::Other("ENETUNREACH")) => "the kernel has no route to this address",
        Err(Errno::Other("EHOSTUNREACH")) => "a route of type unreachable forbids it, or the host is not reachable",
        Err(Errno::Access) => "a route of type prohibit, or a security module, forbids it",
        _ => "the routes do not allow these two addresses together, or a route of type blackhole forbids it",
    }
}

pub(super) fn blocking(situation: &Situation) -> impl Iterator<Item = &Holder> + Clone {
    situation.holders.iter().filter(|holder| holder.blocks)
}

fn obstacle(situation: &Situation) -> String {
    let cause = verdict::cause_among(&blocking(situation).collect::<Vec<_>>(), true, false);
    advice::obstacle(cause, blocking(situation))
}

/// Why the verdict is unknown.
#[must_use]
pub fn unknown_because(situation: &Situation, conclusion: &ConnectConclusion) -> Option<&'static str> {
    if conclusion.verdict != ConnectVerdict::Unknown {
        return None;
    }
    Some(match conclusion.cause {
        ConnectCause::TimeWait if situation.from_port.is_some() => {
            "the verdict is unknown: connect() succeeds if the old connection had TCP timestamps, and the kernel does not report \
             whether it had them"
        }
        ConnectCause::TimeWait if conclusion.inferred.is_some() => {
            "the verdict is unknown: only ports of TIME_WAIT sockets are left. connect() can take over such a socket if its \
             connection had TCP timestamps, and the kernel does not report whether it had them"
        }
        ConnectCause::TimeWait => {
            "the verdict is unknown: the settings that decide about TIME_WAIT sockets could not be read"
        }
        _ if situation.choice.is_some() => {
            "the verdict is unknown: twtool cannot tell for any remaining port whether connect() may choose that port"
        }
        _ => "the verdict is unknown: the ports that are left for this destination could not be counted",
    })
}
