//! Which address of its own the kernel would use towards another, as its routes have it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Socket, Type};

use super::errno::retry;

/// Ports to bind the socket of the question to, tried in this order. A port can be in use, or privileged where
/// `ip_unprivileged_port_start` is high. At port 0 the kernel chooses one, which is never privileged.
fn ports() -> impl Iterator<Item = u16> {
    (65_280..=65_535).chain([0])
}

/// The local address of a connection to `to`: `from`, where it is given and may be used, or the kernel's choice. A UDP
/// socket is connected, which asks the routes and sends nothing (connect(2)).
///
/// The socket is bound first. Otherwise connect() chooses a port of `ip_local_port_range`, and fails where UDP has none
/// left, which says nothing about TCP.
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
    retry(|| socket.connect(&to.into()))?;
    let local = socket.local_addr()?.as_socket();
    local.map(|addr| addr.ip()).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

fn is_about_the_port(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied)
}
