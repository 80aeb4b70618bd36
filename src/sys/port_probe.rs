//! Which ports the kernel keeps from connect() because some socket bound them explicitly: asked of the kernel itself, port
//! by port, by connects that send nothing.
//!
//! connect() chooses the port and then, on a socket with TCP_FASTOPEN_CONNECT that needs no cookie, puts the SYN off until
//! there is data (`tcp_fastopen_defer_connect` in net/ipv4/tcp_fastopen.c; tcp(7)). With IP_LOCAL_PORT_RANGE (ip(7), since
//! 6.3) it may choose the one port only, so EADDRNOTAVAIL says that this port is kept from it. The other end is a loopback
//! address that nobody uses, and port 0 there, where nobody can listen, so that no real connection is in the way.
//!
//! The port is held for a microsecond or two. SO_REUSEADDR lets a server that binds in that moment and sets it, too, pass.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use nix::sys::socket::{setsockopt, sockopt};
use nix::{setsockopt_impl, sockopt_impl};
use socket2::{Domain, SockAddr, SockAddrStorage, Socket, Type};

use super::errno::{Refusal, retry};
use crate::model::port::Port;
use crate::model::port_set::PortSet;

/// Why the kernel could not be asked.
#[derive(Debug, thiserror::Error)]
#[error("{call} failed: {source}")]
pub struct ProbeError {
    call: &'static str,
    source: io::Error,
}

impl ProbeError {
    /// Whether this kernel, or the caller's sandbox, has no such question. Otherwise the kernel may well answer the next time.
    #[must_use]
    pub fn is_answer(&self) -> bool {
        Refusal::of(&self.source).is_answer() || self.source.raw_os_error() == Some(libc::EINPROGRESS)
    }
}

fn call<T>(call: &'static str, make: impl FnMut() -> io::Result<T>) -> Result<T, ProbeError> {
    retry(make).map_err(|source| ProbeError { call, source })
}

/// An address of 127.0.0.0/8 that nobody uses.
const NOBODY: Ipv4Addr = Ipv4Addr::new(127, 84, 87, 84);

/// Those of the ports that connect() may not choose, for no destination, in the calling thread's network namespace. All of
/// them must lie in its `ip_local_port_range` and not in its `ip_local_reserved_ports`.
pub fn kept_from_connect(ports: &[Port]) -> Result<PortSet, ProbeError> {
    let mut kept = PortSet::default();
    if ports.is_empty() {
        return Ok(kept);
    }
    let mut probe = Probe::new()?;
    for port in ports {
        if !probe.may_choose(*port)? {
            kept.insert(*port);
        }
    }
    Ok(kept)
}

struct Probe {
    socket: Socket,
    nobody: SockAddr,
}

impl Probe {
    fn new() -> Result<Self, ProbeError> {
        let socket = call("socket()", || Socket::new(Domain::IPV4, Type::STREAM, None))?;
        // Should a SYN be sent after all, nothing here waits for its answer.
        call("fcntl(O_NONBLOCK)", || socket.set_nonblocking(true))?;
        call("setsockopt(SO_REUSEADDR)", || socket.set_reuse_address(true))?;
        call("setsockopt(TCP_FASTOPEN_NO_COOKIE)", || Ok(setsockopt(&socket, FastOpenNoCookie, &true)?))?;
        call("setsockopt(TCP_FASTOPEN_CONNECT)", || Ok(setsockopt(&socket, sockopt::TcpFastOpenConnect, &true)?))?;
        call("setsockopt(IP_BIND_ADDRESS_NO_PORT)", || Ok(setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?))?;
        let nobody = SockAddr::from(SocketAddr::from((NOBODY, 0)));
        call("bind() to an address of 127.0.0.0/8", || socket.bind(&nobody))?;
        Ok(Self { socket, nobody })
    }

    fn may_choose(&mut self, port: Port) -> Result<bool, ProbeError> {
        let only = u32::from(port.0) | u32::from(port.0) << 16;
        call("setsockopt(IP_LOCAL_PORT_RANGE)", || Ok(setsockopt(&self.socket, LocalPortRange, &only)?))?;
        match retry(|| self.socket.connect(&self.nobody)) {
            Ok(()) => {
                call("connect(AF_UNSPEC)", || self.socket.connect(&unspecified()))?;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => Ok(false),
            // EINPROGRESS too: this kernel does not put the SYN off, so it is not to be asked in this way.
            Err(source) => Err(ProbeError { call: "connect() without a SYN", source }),
        }
    }
}

/// Of uapi/linux/in.h.
const IP_LOCAL_PORT_RANGE: libc::c_int = 51;

sockopt_impl!(
    /// `IP_LOCAL_PORT_RANGE` of uapi/linux/in.h: the lowest port in the low half, the highest in the high one.
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

/// An address of family AF_UNSPEC: connect() to it takes a connection and its port back (connect(2)).
fn unspecified() -> SockAddr {
    // sizeof(struct sockaddr_in)
    const LENGTH: libc::socklen_t = 16;
    #[expect(unsafe_code, reason = "socket2 has no safe form of an address without a family")]
    // SAFETY: all bytes of the storage are initialised, AF_UNSPEC is 0, and the length lies within it.
    unsafe {
        SockAddr::new(SockAddrStorage::zeroed(), LENGTH)
    }
}
