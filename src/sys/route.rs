//! Determines the local address that the kernel would use for a connection, according to its routes.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Socket, Type};

use super::errno::retry;

/// The ports to try for the UDP socket, in this order. The highest 256 ports come first: they lie above the default ephemeral range
/// (32768-60999), so programs rarely use them. A bind fails if the port is in use, or if it is privileged because
/// `ip_unprivileged_port_start` is high. Port 0 comes last: the kernel then chooses a port of the ephemeral range, which is never
/// privileged.
fn ports() -> impl Iterator<Item = u16> {
    (65_280..=65_535).chain([0])
}

/// Returns the local address of a connection to `to`: `from` if it is one address, otherwise (`None` or a wildcard) the kernel's choice.
/// Fails if `from` cannot be bound, or if there is no route. This function connects a UDP socket: the kernel looks up the route, and sends
/// nothing (connect(2)).
///
/// The socket is bound first. Otherwise connect() would choose a port of `ip_local_port_range`, and would fail if UDP has no free
/// port there. Free UDP ports are irrelevant for TCP.
pub fn source(from: Option<SocketAddr>, to: SocketAddr) -> io::Result<IpAddr> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let from = from.unwrap_or_else(|| SocketAddr::new(any, 0));
    let socket = retry(|| Socket::new(Domain::for_address(to), Type::DGRAM, None))?;
    for port in ports() {
        let mut at = from;
        at.set_port(port);
        match retry(|| socket.bind(&at.into())) {
            Ok(()) => break,
            Err(error) if port != 0 && is_about_the_port(&error) => {}
            Err(error) => return Err(error),
        }
    }
    match retry(|| socket.connect(&to.into())) {
        // connect() of a TCP socket to a broadcast address fails with ENETUNREACH (`tcp_v4_connect` in net/ipv4/tcp_ipv4.c).
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && is_broadcast(&socket, to) => {
            return Err(io::Error::from_raw_os_error(libc::ENETUNREACH));
        }
        connected => connected?,
    }
    let local = socket.local_addr()?.as_socket();
    local.map(|addr| addr.ip()).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// Whether UDP reaches this address only with SO_BROADCAST.
fn is_broadcast(socket: &Socket, to: SocketAddr) -> bool {
    socket.set_broadcast(true).is_ok() && socket.connect(&to.into()).is_ok()
}

fn is_about_the_port(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied)
}
