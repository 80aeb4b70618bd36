//! Advice about the port itself: unlisted sockets on the port, the ephemeral range, and UDP.

use super::BindEvidence;

pub(super) fn unlisted_socket_advice(evidence: &BindEvidence) -> String {
    if evidence.port.reserved_by_rfc() {
        return "The kernel finds no free port in net.ipv4.ip_local_port_range. bind() to port 0 reports this as EADDRINUSE \
                (bind(2))."
            .into();
    }
    not_listed(evidence.bound_sockets_are_listed).into()
}

const fn not_listed(bound_sockets_are_listed: bool) -> &'static str {
    if bound_sockets_are_listed {
        "Probably the socket ended after the bind and before the list was read: the kernel lists no socket on the port \
         (sock_diag(7)). Run the command again."
    } else {
        "Probably a socket that is bound and does not listen holds the port. The list does not have such sockets: only sock_diag \
         lists them, since Linux 6.8. It is also possible that the socket ended after the bind and before the list was read \
         (sock_diag(7))."
    }
}

pub(super) fn ephemeral(evidence: &BindEvidence) -> Option<String> {
    let BindEvidence { facts, port, .. } = *evidence;
    let applies = facts.ephemeral(port) == Some(true) && facts.locally_reserved(port) == Some(false);
    let range = facts.local_port_range.filter(|_| applies)?;
    Some(format!(
        "Port {port} lies in net.ipv4.ip_local_port_range ({}), so connect() may choose it as a source port while no socket \
         has bound it. Reserve it for servers in net.ipv4.ip_local_reserved_ports (ip-sysctl in the kernel's documentation).",
        range.0
    ))
}

pub(super) fn udp(evidence: &BindEvidence) -> String {
    format!(
        "A UDP socket uses port {} too. That does not matter here, because TCP and UDP have separate ports.",
        evidence.port
    )
}

#[cfg(test)]
mod tests {
    use super::not_listed;

    #[test]
    fn advice_suspects_a_bound_socket_only_if_the_kernel_does_not_list_such_sockets() {
        assert!(not_listed(false).starts_with("Probably a socket that is bound and does not listen"));
        assert!(not_listed(true).starts_with("Probably the socket ended") && !not_listed(true).contains("6.8"));
    }
}
