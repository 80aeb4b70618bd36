//! Which address of its own the kernel would use towards another, as its routes have it.

use std::io;
use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Socket, Type};

/// The local address of a connection to `to`: `from`, where it is given and may be used, or the kernel's choice. A UDP
/// socket is connected, which asks the routes and sends nothing (connect(2)).
pub fn source(from: Option<SocketAddr>, to: SocketAddr) -> io::Result<IpAddr> {
    let socket = Socket::new(Domain::for_address(to), Type::DGRAM, None)?;
    if let Some(from) = from {
        socket.bind(&from.into())?;
    }
    socket.connect(&to.into())?;
    let local = socket.local_addr()?.as_socket();
    local.map(|addr| addr.ip()).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}
