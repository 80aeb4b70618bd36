//! Advice about the port itself: holders that the kernel does not list, and the ephemeral range.

use super::Evidence;

/// Nothing was found that would explain EADDRINUSE.
pub(super) fn unseen(evidence: &Evidence) -> String {
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

/// The port lies where connect() looks for its own ports: how to keep it out.
pub(super) fn ephemeral(evidence: &Evidence) -> Option<String> {
    let Evidence { facts, port, .. } = *evidence;
    let applies = facts.ephemeral(port) == Some(true) && facts.locally_reserved(port) == Some(false);
    let range = facts.local_port_range.filter(|_| applies)?;
    Some(format!(
        "Port {port} lies in net.ipv4.ip_local_port_range ({}), so connect() may take it as a client's port whenever \
         nothing has bound it. Reserve it for servers in net.ipv4.ip_local_reserved_ports (ip-sysctl in the kernel's \
         documentation).",
        range.0
    ))
}

/// That a UDP socket on the port does not matter.
pub(super) fn udp(evidence: &Evidence) -> String {
    format!(
        "A UDP socket has port {} too. This answer is about TCP: the ports of UDP and TCP are apart.",
        evidence.port
    )
}
