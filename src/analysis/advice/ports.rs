//! Advice about the port itself: holders that the kernel does not list, the ephemeral range, and UDP.

use super::Evidence;

/// The advice when no listed socket explains EADDRINUSE.
pub(super) fn unseen(evidence: &Evidence) -> String {
    if evidence.port.reserved_by_rfc() {
        return "The kernel finds no free port in net.ipv4.ip_local_port_range. bind() to port 0 reports that as EADDRINUSE \
                (bind(2))."
            .into();
    }
    let hidden = if evidence.bound_sockets_are_listed {
        "Probably a socket holds the port that this kernel does not list: one that is bound and does not listen. Kernels list \
         such sockets only since about Linux 6.8."
    } else {
        "Probably a socket holds the port that /proc/net/tcp does not list: one that is bound and does not listen. sock_diag \
         can list such sockets."
    };
    format!(
        "{hidden} It is also possible that the socket ended after the bind and before the list was read (sock_diag(7))."
    )
}

/// How to keep connect() off a server's port that lies in the ephemeral range.
pub(super) fn ephemeral(evidence: &Evidence) -> Option<String> {
    let Evidence { facts, port, .. } = *evidence;
    let applies = facts.ephemeral(port) == Some(true) && facts.locally_reserved(port) == Some(false);
    let range = facts.local_port_range.filter(|_| applies)?;
    Some(format!(
        "Port {port} lies in net.ipv4.ip_local_port_range ({}), so connect() may choose it as a source port while no socket \
         has bound it. Reserve it for servers in net.ipv4.ip_local_reserved_ports (ip-sysctl in the kernel's documentation).",
        range.0
    ))
}

/// The note that a UDP socket on the same port number does not matter.
pub(super) fn udp(evidence: &Evidence) -> String {
    format!("A UDP socket uses port {} too. It does not matter here: TCP and UDP have separate ports.", evidence.port)
}
