//! Clears the note that a bind with SO_REUSEPORT leaves in the kernel.
//!
//! The kernel keeps one structure for each bound port (`struct inet_bind_bucket`), as long as any socket is on the
//! port. A bind with SO_REUSEPORT stores its user and address there (`inet_csk_update_fastreuse` in
//! net/ipv4/inet_connection_sock.c); this is the *note*. Later SO_REUSEPORT binds of that user to a matching address
//! succeed without a search for conflicts (`sk_reuseport_match`). A bind without SO_REUSEPORT clears the note. So a
//! test whose last bind has SO_REUSEPORT leaves a note. A second server of that user can then bind the port with
//! SO_REUSEPORT and listen on it, although another server already listens.
//!
//! The bind that clears the note needs an address without conflicts. `NoteGuard::clear` tries these binds in order. In this list, a
//! *holder* is another socket on the port (measured on Linux 6.18):
//! 1. an unused IPv6 address, IPv6 only, with SO_REUSEADDR. The bind succeeds beside every IPv4 holder, beside a holder on a specific
//!    IPv6 address, and beside a holder on `::` that has SO_REUSEADDR and does not listen;
//! 2. an unused IPv4 address with SO_REUSEADDR. The bind succeeds beside every holder that is IPv6 only, beside a holder on a
//!    specific address, and beside a wildcard holder that has SO_REUSEADDR and does not listen;
//! 3. an unused IPv4 address with TCP_REPAIR, which skips the search for conflicts. The bind succeeds beside every holder, and needs
//!    CAP_NET_ADMIN.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Socket, Type};

use super::errno::{if_visible, retry};
use crate::model::port::Port;

/// Addresses that no server uses: one in the discard prefix (RFC 6666), and one in the loopback block.
const UNUSED_IPV6: Ipv6Addr = Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0x7477, 0x746f);
const UNUSED_IPV4: Ipv4Addr = Ipv4Addr::new(127, 84, 87, 84);

/// Clears the note of a port when this value is dropped.
pub(super) struct NoteGuard {
    ipv6: Option<Socket>,
    ipv4: Option<Socket>,
    port: Option<Port>,
}

impl NoteGuard {
    /// Creates the sockets that can clear a note. Call this before the bind that leaves a note, so that a lack of descriptors or memory
    /// is an error before that bind.
    ///
    /// The sockets are bound to the device of the attempt, because a device of a VRF has its own ports and notes
    /// (`inet_sk_bound_l3mdev`).
    pub(super) fn prepare(device: Option<NonZeroU32>) -> io::Result<Self> {
        let ipv6 = none_if_refused(retry(|| socket(Domain::IPV6, device)))?;
        let ipv4 = none_if_refused(retry(|| socket(Domain::IPV4, device)))?;
        Ok(Self { ipv6, ipv4, port: None })
    }

    /// Records that a bind with SO_REUSEPORT has succeeded on this port, and so left a note.
    pub(super) const fn set_port(&mut self, port: Port) {
        self.port = Some(port);
    }

    /// Clears the note now. Returns false if no bind could clear it.
    pub(super) fn clear(mut self) -> bool {
        self.try_to_clear()
    }

    fn try_to_clear(&mut self) -> bool {
        let Some(Port(port)) = self.port.take() else { return true };
        let binds = |socket: &Option<Socket>, addr: SocketAddr| {
            socket.as_ref().is_some_and(|socket| retry(|| socket.bind(&addr.into())).is_ok())
        };
        let (ipv6, ipv4) = ((UNUSED_IPV6, port).into(), (UNUSED_IPV4, port).into());
        let repair = || {
            let socket = self.ipv4.as_ref()?;
            retry(|| Ok(setsockopt(socket, sockopt::TcpRepair, &1)?)).ok()
        };
        binds(&self.ipv6, ipv6) || binds(&self.ipv4, ipv4) || (repair().is_some() && binds(&self.ipv4, ipv4))
    }
}

impl Drop for NoteGuard {
    fn drop(&mut self) {
        self.try_to_clear();
    }
}

/// Creates a socket that can be bound to an address that this machine does not have.
fn socket(domain: Domain, device: Option<NonZeroU32>) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::STREAM, None)?;
    if device.is_some() {
        // On a kernel before 5.7, binding to a device needs CAP_NET_RAW. Without the device, the later bind clears every note except a
        // note in a VRF.
        if_visible(retry(|| socket.bind_device_by_index_v4(device)))?;
    }
    socket.set_reuse_address(true)?;
    if domain == Domain::IPV6 {
        socket.set_only_v6(true)?;
        socket.set_freebind_v6(true)?;
    } else {
        socket.set_freebind_v4(true)?;
    }
    Ok(socket)
}

/// The kernel may lack the address family or an option (IPV6_FREEBIND exists since 4.15), or a sandbox may refuse the family.
fn none_if_refused(socket: io::Result<Socket>) -> io::Result<Option<Socket>> {
    if_visible(socket)
}
