//! One bind attempt: a socket made, its options set, bound, perhaps listened on, and closed again.
//!
//! This is the only place that touches the tested port. It holds it for microseconds, and never listens unless asked.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::num::NonZeroU32;

use nix::errno::Errno as NixErrno;
use socket2::{Domain, Socket, Type};

use super::errno::name;
use crate::model::bind::{Attempt, BindAddr, CallResult, Errno, ReuseOptions};
use crate::model::port::Port;

/// Why an attempt could not be made at all.
#[derive(Debug, thiserror::Error)]
#[error("{call} for {addr} failed: {source}")]
pub struct AttemptError {
    call: &'static str,
    addr: IpAddr,
    source: io::Error,
}

/// Tries every option set on every address; the result is in the order of the addresses and of [`ReuseOptions::ALL`].
///
/// A successful bind with SO_REUSEPORT leaves a note in the port's bind bucket for as long as any other socket keeps the
/// bucket alive (`inet_csk_update_fastreuse` in net/ipv4/inet_connection_sock.c), and by that note the kernel lets later
/// SO_REUSEPORT binds of the same user in without looking for conflicts. A bind without the option takes the note back. So
/// on each address those with it come first, IPv6 goes before IPv4, and where no other bind worked afterwards one on an
/// address that nobody uses does: no attempt is answered by the note of another, and none is left for the real server.
pub fn attempts(addrs: &[BindAddr], port: Port, listen: bool) -> Result<Vec<Attempt>, AttemptError> {
    const ORDER: [ReuseOptions; 4] =
        [ReuseOptions::REUSEPORT, ReuseOptions::BOTH, ReuseOptions::REUSEADDR, ReuseOptions::NONE];
    let (ipv6, ipv4) = addrs.iter().copied().partition::<Vec<_>, _>(|at| at.addr.is_ipv6());
    let mut made = vec![];
    for at in ipv6.into_iter().chain(ipv4) {
        let mut noted = false;
        for options in ORDER {
            let attempt = attempt(at, port, options, listen)?;
            if attempt.bind == CallResult::Ok {
                noted = options.reuseport;
            }
            made.push(attempt);
        }
        if noted && !port.reserved_by_rfc() {
            forget_reuseport(port);
        }
    }
    let place = |attempt: &Attempt| {
        let address = addrs.iter().position(|at| *at == attempt.at);
        (address, ReuseOptions::ALL.iter().position(|options| *options == attempt.options))
    };
    made.sort_by_key(place);
    Ok(made)
}

/// Tries one option set on one address, and leaves no note of it: see [`attempts`].
pub fn attempt_alone(at: BindAddr, port: Port, options: ReuseOptions) -> Result<Attempt, AttemptError> {
    let attempt = attempt(at, port, options, false)?;
    if attempt.bind == CallResult::Ok && options.reuseport {
        forget_reuseport(port);
    }
    Ok(attempt)
}

/// Makes the kernel forget a SO_REUSEPORT bind: see [`attempts`]. Where a wildcard holds the port this fails, and then the
/// note is that socket's own.
fn forget_reuseport(port: Port) {
    let unused = BindAddr { addr: Ipv4Addr::new(127, 84, 87, 84).into(), scope: None };
    if let Ok(socket) = socket(unused.addr, ReuseOptions::NONE) {
        let _ = socket.bind(&socket_addr(unused, port).into());
    }
}

/// Tries it. What the kernel says of the address and port is an answer; anything else is an error.
///
/// # Errors
/// socket() failed for another reason than its family, or an option could not be set.
fn attempt(at: BindAddr, port: Port, options: ReuseOptions, listen: bool) -> Result<Attempt, AttemptError> {
    let failed = |call| move |source| AttemptError { call, addr: at.addr, source };
    let mut attempt = Attempt { at, options, v6only: false, bind: CallResult::Ok, listen: None, bound: None };
    let socket = match socket(at.addr, options) {
        Ok(socket) => socket,
        Err(error) if errno(&error) == Errno::FamilyNotSupported => {
            attempt.bind = CallResult::Failed(Errno::FamilyNotSupported);
            return Ok(attempt);
        }
        Err(error) => return Err(failed("socket()")(error)),
    };
    if at.addr.is_ipv6() {
        attempt.v6only = socket.only_v6().map_err(failed("getsockopt(IPV6_V6ONLY)"))?;
    }
    attempt.bind = result(socket.bind(&socket_addr(at, port).into()));
    if attempt.bind == CallResult::Ok {
        let name = socket.local_addr().map_err(failed("getsockname()"))?;
        attempt.bound = name.as_socket().map(|addr| Port(addr.port()));
        if listen {
            attempt.listen = Some(result(socket.listen(1)));
        }
    }
    Ok(attempt)
}

/// Why AF_INET6 sockets cannot be made, where they cannot (`ipv6.disable=1`, or a sandbox).
#[must_use]
pub fn no_ipv6_sockets() -> Option<io::Error> {
    Socket::new(Domain::IPV6, Type::STREAM, None).err()
}

/// A TCP socket with these options, neither bound nor connected; IPV6_V6ONLY stays as the system has it.
pub fn socket(addr: IpAddr, options: ReuseOptions) -> io::Result<Socket> {
    let domain = if addr.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::STREAM, None)?;
    socket.set_reuse_address(options.reuseaddr)?;
    socket.set_reuse_port(options.reuseport)?;
    Ok(socket)
}

/// The address in the form that bind() takes.
#[must_use]
pub fn socket_addr(at: BindAddr, port: Port) -> SocketAddr {
    match at.addr {
        IpAddr::V4(v4) => (v4, port.0).into(),
        IpAddr::V6(v6) => SocketAddrV6::new(v6, port.0, 0, at.scope.map_or(0, NonZeroU32::get)).into(),
    }
}

fn result(call: io::Result<()>) -> CallResult {
    call.map_or_else(|error| CallResult::Failed(errno(&error)), |()| CallResult::Ok)
}

/// The errno of a failed call, by name.
#[must_use]
pub fn errno(error: &io::Error) -> Errno {
    match error.raw_os_error().map(NixErrno::from_raw) {
        Some(NixErrno::EADDRINUSE) => Errno::AddrInUse,
        Some(NixErrno::EACCES) => Errno::Access,
        Some(NixErrno::EADDRNOTAVAIL) => Errno::AddrNotAvailable,
        Some(NixErrno::EAFNOSUPPORT) => Errno::FamilyNotSupported,
        Some(other) => Errno::Other(name(other as i32)),
        None => Errno::Other("unknown"),
    }
}
