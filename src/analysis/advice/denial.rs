//! Advice for a bind or listen that fails with another errno than EADDRINUSE.

use std::net::IpAddr;

use super::BindEvidence;
use crate::model::bind::{Attempt, CallResult, Errno, ReuseOptions};
use crate::model::facts::Facts;
use crate::model::port::Port;

pub(super) fn explain_denials(evidence: &BindEvidence) -> Vec<String> {
    let plain = evidence.attempts.iter().filter(|attempt| attempt.options == ReuseOptions::NONE);
    denials(evidence.facts, evidence.port, plain)
}

/// Explains the attempts that failed with an errno other than EADDRINUSE, with each reason once.
#[must_use]
pub fn denials<'a>(facts: &Facts, port: Port, attempts: impl IntoIterator<Item = &'a Attempt>) -> Vec<String> {
    let mut reasons: Vec<String> = vec![];
    for attempt in attempts {
        let reason = match attempt.outcome() {
            CallResult::Ok | CallResult::Failed(Errno::AddrInUse) => continue,
            CallResult::Failed(errno) => denial(facts, port, attempt, errno),
        };
        if !reasons.contains(&reason) {
            reasons.push(reason);
        }
    }
    reasons
}

/// Warns that a server works only if it sets the same options as the test.
#[must_use]
pub fn needed_options(with: ReuseOptions) -> String {
    let these = if with.reuseaddr && with.reuseport { "these options" } else { "this option" };
    format!("the bind works with {with}, and fails without {these}; for a server without {these}, use --with none")
}

/// Warns that the test had a privilege that the server may lack.
pub(super) fn plain_user(evidence: &BindEvidence) -> Option<String> {
    let BindEvidence { facts, port, attempts, setup, .. } = evidence;
    // The kernel has checked the privilege when it reports EADDRINUSE.
    let had_privilege =
        |attempt: &Attempt| matches!(attempt.bind, CallResult::Ok | CallResult::Failed(Errno::AddrInUse));
    let privileged = facts.privileged(*port) == Some(true) && attempts.iter().any(had_privilege);
    let start = facts.unprivileged_port_start.filter(|_| privileged && setup.user.is_none())?;
    Some(format!(
        "A plain user cannot bind port {port}, because it is below net.ipv4.ip_unprivileged_port_start ({start}). This test had \
         CAP_NET_BIND_SERVICE. If your server starts without it, test with --user NAME (ip(7))."
    ))
}

/// Explains why bind() or listen() failed with an errno other than EADDRINUSE, and what helps.
#[must_use]
pub fn denial(facts: &Facts, port: Port, attempt: &Attempt, errno: Errno) -> String {
    let on = match attempt.at.scope {
        Some(scope) => format!("{}%{}", attempt.at.addr, facts.interface_name(scope)),
        None => attempt.at.addr.to_string(),
    };
    if attempt.bind == CallResult::Ok {
        return listen_denial(&on, errno);
    }
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
            "EADDRNOTAVAIL: {on} is not an address of {} in this network namespace, or it is not usable yet. A server that must \
             bind before its address exists can set IP_FREEBIND, or use net.ipv4.ip_nonlocal_bind or \
             net.ipv6.ip_nonlocal_bind (ip(7)).",
            attempt.at.scope.map_or("any interface".into(), |scope| facts.interface_name(scope)),
        ),
        Errno::FamilyNotSupported if attempt.at.addr.is_ipv6() => {
            "EAFNOSUPPORT: IPv6 sockets cannot be created here. Bind an IPv4 address. The kernel has no IPv6 or was started with \
             ipv6.disable=1, or a sandbox refuses IPv6 (ipv6 in the kernel's documentation)."
                .into()
        }
        Errno::FamilyNotSupported => "EAFNOSUPPORT: IPv4 sockets cannot be created here. Bind an IPv6 address. A sandbox probably refuses \
             IPv4, for example RestrictAddressFamilies= of a systemd unit (socket(2))."
            .into(),
        Errno::Other("EINVAL") => format!("bind() to {on} fails with EINVAL: {}", invalid(attempt)),
        Errno::Other("ENODEV") => {
            format!("bind() to {on} fails with ENODEV: the interface no longer exists (ipv6(7)).")
        }
        Errno::Access | Errno::Other("EPERM") if facts.privileged(port) == Some(false) => format!(
            "bind() to {on} fails with {}, although the port needs no privilege. A security module or a sandbox refuses it \
             (bind(2)).",
            errno.name()
        ),
        Errno::Access => format!(
            "bind() to {on} fails with EACCES. net.ipv4.ip_unprivileged_port_start could not be read. If port {port} is below it, binding \
             the port needs CAP_NET_BIND_SERVICE (ip(7)). Otherwise a security module or a sandbox refuses it (bind(2))."
        ),
        Errno::Other("EPERM") => {
            format!("bind() to {on} fails with EPERM. A security module or a sandbox probably refuses it (bind(2)).")
        }
        other => format!("bind() to {on} fails with {} (bind(2)).", other.name()),
    }
}

fn listen_denial(on: &str, errno: Errno) -> String {
    let errno_name = errno.name();
    match errno {
        Errno::Access | Errno::Other("EPERM") => {
            format!("listen() on {on} fails with {errno_name}. A security module or a sandbox refuses it (listen(2)).")
        }
        _ => format!("listen() on {on} fails with {errno_name} (listen(2))."),
    }
}

/// Explains why bind() returns EINVAL for an address (`__inet6_bind` in net/ipv6/af_inet6.c).
fn invalid(attempt: &Attempt) -> &'static str {
    match attempt.at.addr {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() && attempt.v6only => {
            "the address is IPv4-mapped, and the socket accepts IPv6 only (IPV6_V6ONLY, ipv6(7))."
        }
        IpAddr::V6(v6) if v6.is_multicast() => "TCP has no multicast addresses.",
        IpAddr::V6(_) if attempt.at.lacks_scope() => {
            "a link-local address needs its interface as scope, like fe80::1%eth0 (ipv6(7))."
        }
        _ => "the kernel considers this address invalid (bind(2)).",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::bind::tests::attempt as attempt_on;
    use crate::model::facts::tests::facts;

    fn attempt(bind: CallResult, listen: Option<CallResult>) -> Attempt {
        Attempt { listen, ..attempt_on("0.0.0.0", bind) }
    }

    #[test]
    fn only_eacces_and_eperm_can_come_from_a_security_module() {
        let facts = Facts { unprivileged_port_start: Some(1024), ..facts() };
        let unread = Facts { unprivileged_port_start: None, ..facts.clone() };
        let bind =
            |facts: &Facts, port, errno| denial(facts, Port(port), &attempt(CallResult::Failed(errno), None), errno);
        for errno in [Errno::Access, Errno::Other("EPERM")] {
            let text = bind(&facts, 8080, errno);
            assert!(
                text.contains("although the port needs no privilege. A security module or a sandbox refuses"),
                "{text}"
            );
        }
        let text = bind(&facts, 80, Errno::Other("EPERM"));
        assert!(text.contains("EPERM. A security module or a sandbox probably refuses"), "{text}");
        let text = bind(&facts, 80, Errno::Access);
        assert!(text.contains("below net.ipv4.ip_unprivileged_port_start (1024)"), "{text}");
        let text = bind(&unread, 80, Errno::Access);
        assert!(text.contains("CAP_NET_BIND_SERVICE") && text.contains("Otherwise a security module"), "{text}");
        assert_eq!(bind(&facts, 8080, Errno::Other("ENOMEM")), "bind() to 0.0.0.0 fails with ENOMEM (bind(2)).");
    }

    #[test]
    fn a_denial_names_listen_if_bind_works_and_listen_fails() {
        let facts = Facts { unprivileged_port_start: Some(1024), ..facts() };
        let listen = |errno| denials(&facts, Port(80), &[attempt(CallResult::Ok, Some(CallResult::Failed(errno)))]);
        assert_eq!(
            listen(Errno::Access),
            ["listen() on 0.0.0.0 fails with EACCES. A security module or a sandbox refuses it (listen(2))."]
        );
        assert_eq!(listen(Errno::Other("ENOBUFS")), ["listen() on 0.0.0.0 fails with ENOBUFS (listen(2))."]);
    }
}
