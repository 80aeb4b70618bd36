//! Determines which ports connect() skips because a socket has bound them explicitly. The module tests each port with a connect()
//! that sends nothing.
//!
//! 1. With IP_LOCAL_PORT_RANGE (ip(7), since Linux 6.3) connect() may choose only the tested port. EADDRNOTAVAIL means
//!    that it skips that port.
//! 2. With TCP_FASTOPEN_CONNECT and TCP_FASTOPEN_NO_COOKIE, connect() chooses the port but delays the SYN until there is data
//!    (`tcp_fastopen_defer_connect` in net/ipv4/tcp_fastopen.c; tcp(7)).
//! 3. The destination is port 0 of an unused loopback address. No server can listen on port 0, so the test cannot conflict with a
//!    real connection.
//!
//! The test holds the port for 1-2 µs. A server that binds the port during this time succeeds with SO_REUSEADDR, because the test
//! sets this option, too. Without the option, the bind to a wildcard address fails.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use nix::sys::socket::{setsockopt, sockopt};
use nix::{setsockopt_impl, sockopt_impl};
use socket2::{Domain, SockAddr, SockAddrStorage, Socket, Type};

use super::errno::{FailureClass, retry};
use crate::model::port::Port;
use crate::model::port_set::PortSet;

/// The reason why ports could not be tested.
#[derive(Debug, thiserror::Error)]
#[error("{call} failed: {source}")]
pub struct ProbeError {
    call: &'static str,
    source: io::Error,
}

impl ProbeError {
    /// Whether a repeated test would fail, too: this kernel does not support the test, or a sandbox forbids it.
    #[must_use]
    pub fn is_definite(&self) -> bool {
        FailureClass::of(&self.source).is_definite() || self.source.raw_os_error() == Some(libc::EINPROGRESS)
    }
}

fn call<T>(call: &'static str, make: impl FnMut() -> io::Result<T>) -> Result<T, ProbeError> {
    retry(make).map_err(|source| ProbeError { call, source })
}

/// An unused address of 127.0.0.0/8.
const UNUSED: Ipv4Addr = Ipv4Addr::new(127, 84, 87, 84);

/// Returns the subset of `ports` that connect() skips for every destination in the calling thread's network namespace. All `ports` must
/// be in the `ip_local_port_range` of that namespace, and not in its `ip_local_reserved_ports`.
pub fn skipped_by_connect(ports: &[Port]) -> Result<PortSet, ProbeError> {
    let mut skipped = PortSet::default();
    if ports.is_empty() {
        return Ok(skipped);
    }
    let mut probe = Probe::new()?;
    for port in ports {
        if !probe.may_choose(*port)? {
            skipped.insert(*port);
        }
    }
    Ok(skipped)
}

struct Probe {
    socket: Socket,
    unused: SockAddr,
}

impl Probe {
    fn new() -> Result<Self, ProbeError> {
        let socket = call("socket()", || Socket::new(Domain::IPV4, Type::STREAM, None))?;
        // If a SYN is sent nevertheless, connect() does not wait for the response.
        call("fcntl(O_NONBLOCK)", || socket.set_nonblocking(true))?;
        call("setsockopt(SO_REUSEADDR)", || socket.set_reuse_address(true))?;
        call("setsockopt(TCP_FASTOPEN_NO_COOKIE)", || Ok(setsockopt(&socket, FastOpenNoCookie, &true)?))?;
        call("setsockopt(TCP_FASTOPEN_CONNECT)", || Ok(setsockopt(&socket, sockopt::TcpFastOpenConnect, &true)?))?;
        call("setsockopt(IP_BIND_ADDRESS_NO_PORT)", || Ok(setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?))?;
        let unused = SockAddr::from(SocketAddr::from((UNUSED, 0)));
        call("bind() to an address of 127.0.0.0/8", || socket.bind(&unused))?;
        Ok(Self { socket, unused })
    }

    fn may_choose(&mut self, port: Port) -> Result<bool, ProbeError> {
        let only = u32::from(port.0) | u32::from(port.0) << 16;
        call("setsockopt(IP_LOCAL_PORT_RANGE)", || Ok(setsockopt(&self.socket, LocalPortRange, &only)?))?;
        match retry(|| self.socket.connect(&self.unused)) {
            Ok(()) => {
                call("connect(AF_UNSPEC)", || self.socket.connect(&unspecified_addr()))?;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => Ok(false),
            // EINPROGRESS is an error, too: this kernel does not delay the SYN, so the test must not be used.
            Err(source) => Err(ProbeError { call: "connect() without a SYN", source }),
        }
    }
}

const IP_LOCAL_PORT_RANGE: libc::c_int = 51;

sockopt_impl!(
    /// `IP_LOCAL_PORT_RANGE` of uapi/linux/in.h: the lowest port in the low 16 bits, the highest port in the high 16 bits.
    LocalPortRange,
    SetOnly,
    libc::IPPROTO_IP,
    IP_LOCAL_PORT_RANGE,
    u32
);

sockopt_impl!(
    /// `TCP_FASTOPEN_NO_COOKIE` of uapi/linux/tcp.h.
    FastOpenNoCookie,
    SetOnly,
    libc::IPPROTO_TCP,
    libc::TCP_FASTOPEN_NO_COOKIE,
    bool
);

/// An address of family AF_UNSPEC. A connect() to it dissolves the connection and releases the port (connect(2)).
fn unspecified_addr() -> SockAddr {
    // sizeof(struct sockaddr_in)
    const LENGTH: libc::socklen_t = 16;
    #[expect(unsafe_code, reason = "socket2 has no safe form of an address without a family")]
    // SAFETY: all bytes of the storage are initialised, AF_UNSPEC is 0, and the storage is longer than LENGTH.
    unsafe {
        SockAddr::new(SockAddrStorage::zeroed(), LENGTH)
    }
}
