//! Which address of its own the kernel would use towards another, as its routes have it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Socket, Type};

/// Ports at which a socket for the question may be bound; where every one is in use, the last answer is an error.
const PORTS: std::ops::Range<u16> = 65_280..65_535;

/// The local address of a connection to `to`: `from`, where it is given and may be used, or the kernel's choice. A UDP
/// socket is connected, which asks the routes and sends nothing (connect(2)).
///
/// It has a port before, for connect() would choose one of `ip_local_port_range`, and it is no answer about TCP that UDP has
/// none left there.
pub fn source(from: Option<SocketAddr>, to: SocketAddr) -> io::Result<IpAddr> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let from = from.unwrap_or_else(|| SocketAddr::new(any, 0));
    let mut ports = PORTS;
    let socket = loop {
        let socket = Socket::new(Domain::for_address(to), Type::DGRAM, None)?;
        let mut at = from;
        at.set_port(ports.next().unwrap_or(PORTS.end));
        match socket.bind(&at.into()) {
            Ok(()) => break socket,
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && !ports.is_empty() => {}
            Err(error) => return Err(error),
        }
    };
    socket.connect(&to.into())?;
    let local = socket.local_addr()?.as_socket();
    local.map(|addr| addr.ip()).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}
