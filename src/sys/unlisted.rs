//! Finds TCP sockets that are bound to a port and that the kernel does not list. Before Linux 6.8, sock_diag does not list sockets
//! that are bound but neither listen nor are connected. /proc/net/tcp never lists such sockets.
//!
//! 1. The links in /proc/PID/fd show the sockets of each process in this network namespace.
//! 2. pidfd_getfd(2) (since 5.6) copies a descriptor, if the caller may trace the process (ptrace(2)).
//! 3. getsockname(2) on the copy returns the address. The copy is closed immediately.
//!
//! If the owner closes a socket while twtool has a copy, the socket stays open until twtool closes the copy. If a thread does not share
//! the descriptors of its main thread, the sockets of this thread are not found.

use std::fs;
use std::io;
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use socket2::{Domain, Protocol, Socket};

use super::errno::{FailureClass, if_present, if_visible, retry};
use super::folder;
use crate::model::port::Port;
use crate::model::socket::{Cookie, FourTuple, FullSocket, TcpState};

/// The sockets that [`bound_to`] found.
#[derive(Debug, Default)]
pub struct UnlistedSockets {
    /// The sockets.
    pub sockets: Vec<FullSocket>,
    /// Why sockets may be missing. A missing permission for one process and the end of a process do not count as
    /// reasons.
    pub failure: Option<String>,
}

/// Finds the TCP sockets that are bound to this port but neither listen nor are connected, in the processes of the calling thread's
/// network namespace. A socket is not found if the caller has no permission to trace its owner.
#[must_use]
pub fn bound_to(port: Port) -> UnlistedSockets {
    let mut found = UnlistedSockets::default();
    if let Err(error) = search(port, &mut found) {
        let gap = folder::proc_gap().ok().flatten();
        found.failure = Some(gap.map_or_else(|| error.to_string(), |gap| gap.to_string()));
    }
    found
}

fn search(port: Port, found: &mut UnlistedSockets) -> io::Result<()> {
    let here = retry(|| fs::read_link("/proc/thread-self/ns/net"))?;
    for pid in folder::pids()?.into_iter().filter(|pid| *pid != std::process::id()) {
        match search_process(pid, &here, port, &mut found.sockets) {
            Ok(()) => {}
            Err(error) if FailureClass::of(&error).is_definite() => {}
            Err(error) => drop(found.failure.get_or_insert_with(|| format!("process {pid}: {error}"))),
        }
    }
    Ok(())
}

fn search_process(pid: u32, here: &PathBuf, port: Port, found: &mut Vec<FullSocket>) -> io::Result<()> {
    if retry(|| fs::read_link(format!("/proc/{pid}/ns/net")))? != *here {
        return Ok(());
    }
    let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(()) };
    let pidfd = retry(|| Ok(pidfd_open(number, PidfdFlags::empty())?))?;
    let folder = format!("/proc/{pid}/fd");
    for name in folder::names_in(&folder)? {
        // The descriptor may have been closed since it was listed.
        let Some(link) = if_present(retry(|| fs::read_link(Path::new(&folder).join(&name))))? else { continue };
        if !link.as_os_str().as_encoded_bytes().starts_with(b"socket:[") {
            continue;
        }
        let Some(descriptor) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        let copy = match retry(|| Ok(pidfd_getfd(&pidfd, descriptor, PidfdGetfdFlags::empty())?)) {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::BADF) => continue,
            copy => copy?,
        };
        let socket = bound_socket(copy, port)?;
        found.extend(socket.filter(|new| found.iter().all(|known| known.inode != new.inode)));
    }
    Ok(())
}

fn bound_socket(copy: OwnedFd, port: Port) -> io::Result<Option<FullSocket>> {
    let stat = rustix::fs::fstat(&copy)?;
    let socket = Socket::from(copy);
    // Sockets of some families have no address.
    let Some(name) = if_present(retry(|| socket.local_addr()))? else { return Ok(None) };
    let Some(local) = name.as_socket().filter(|local| local.port() == port.0) else { return Ok(None) };
    if retry(|| socket.protocol())? != Some(Protocol::TCP) || retry(|| socket.is_listener())? {
        return Ok(None);
    }
    match retry(|| socket.peer_addr()) {
        Ok(_) => return Ok(None),
        Err(error) if Errno::from_io_error(&error) == Some(Errno::NOTCONN) => {}
        Err(error) => return Err(error),
    }
    let index = |name: Vec<u8>| if_present(retry(|| Ok(nix::net::if_::if_nametoindex(name.as_slice())?)));
    let device = if_visible(retry(|| socket.device()))?.flatten();
    let v6only = if retry(|| socket.domain())? == Domain::IPV6 { Some(retry(|| socket.only_v6())?) } else { None };
    let unset = (if local.is_ipv4() { [0; 4].into() } else { [0; 16].into() }, Port(0));
    Ok(Some(FullSocket {
        tuple: FourTuple::new((local.ip(), port), unset),
        state: TcpState::BoundInactive,
        uid: stat.st_uid,
        inode: u32::try_from(stat.st_ino).ok().and_then(NonZeroU32::new),
        interface: device.map(index).transpose()?.flatten().and_then(NonZeroU32::new),
        mark: None,
        v6only,
        last_ack_ms: None,
        cookie: if_visible(retry(|| socket.cookie()))?.and_then(Cookie::new),
    }))
}
