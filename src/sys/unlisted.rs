//! TCP sockets that are bound to a port and that no list of the kernel has: before 6.8 sock_diag lists no socket that is
//! bound and neither listens nor is connected, and /proc/net/tcp never does.
//!
//! 1. The links in /proc/PID/fd of each process of this network namespace name its sockets.
//! 2. pidfd_getfd(2) (since 5.6) makes a copy of a descriptor, for a caller that may trace the process (ptrace(2)).
//! 3. getsockname(2) on the copy tells the address. The copy is closed at once.
//!
//! A socket whose owner closes it in that moment stays open for some microseconds longer. A descriptor of a thread that
//! shares none with its main thread is not found.

use std::fs;
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::path::Path;

use procfs::process::all_processes;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use socket2::{Domain, Protocol};

use crate::model::port::Port;
use crate::model::socket::{Cookie, FourTuple, FullSocket, TcpState};

/// The sockets that are bound to this port in the calling thread's network namespace, as far as the caller may know.
#[must_use]
pub fn bound_to(port: Port) -> Vec<FullSocket> {
    let Ok(here) = fs::read_link("/proc/thread-self/ns/net") else { return vec![] };
    let own = i32::try_from(std::process::id()).ok();
    let pids = all_processes().into_iter().flatten().flatten().map(|process| process.pid());
    let mut found: Vec<FullSocket> = vec![];
    for pid in pids.filter(|pid| Some(*pid) != own) {
        if fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|netns| netns == here) {
            for socket in bound_by(pid, port) {
                if found.iter().all(|known| known.inode != socket.inode) {
                    found.push(socket);
                }
            }
        }
    }
    found
}

fn bound_by(pid: i32, port: Port) -> Vec<FullSocket> {
    let pidfd = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    let (Some(pidfd), Ok(folder)) = (pidfd, fs::read_dir(format!("/proc/{pid}/fd"))) else { return vec![] };
    let number = |path: &Path| path.file_name()?.to_str()?.parse().ok();
    let is_socket = |path: &Path| {
        fs::read_link(path).is_ok_and(|link| link.as_os_str().as_encoded_bytes().starts_with(b"socket:["))
    };
    let sockets = folder.flatten().map(|entry| entry.path()).filter(|path| is_socket(path));
    let copies = sockets.filter_map(|path| pidfd_getfd(&pidfd, number(&path)?, PidfdGetfdFlags::empty()).ok());
    copies.filter_map(|copy| bound_socket(copy, port)).collect()
}

/// What this is, if it is a TCP socket that is bound to the port and neither listens nor is connected.
fn bound_socket(copy: OwnedFd, port: Port) -> Option<FullSocket> {
    let stat = rustix::fs::fstat(&copy).ok()?;
    let socket = socket2::Socket::from(copy);
    let local = socket.local_addr().ok()?.as_socket()?;
    let idle = socket.peer_addr().is_err() && !socket.is_listener().ok()?;
    if local.port() != port.0 || socket.protocol().ok()? != Some(Protocol::TCP) || !idle {
        return None;
    }
    let unset = (if local.is_ipv4() { [0; 4].into() } else { [0; 16].into() }, Port(0));
    let index = |name: Vec<u8>| nix::net::if_::if_nametoindex(name.as_slice()).ok();
    Some(FullSocket {
        tuple: FourTuple::new((local.ip(), port), unset),
        state: TcpState::BoundInactive,
        uid: stat.st_uid,
        inode: u32::try_from(stat.st_ino).ok().and_then(NonZeroU32::new),
        interface: socket.device().ok().flatten().and_then(index).and_then(NonZeroU32::new),
        mark: None,
        v6only: socket.domain().is_ok_and(|domain| domain == Domain::IPV6).then(|| socket.only_v6().ok()).flatten(),
        last_ack_ms: None,
        cookie: socket.cookie().ok().and_then(Cookie::new),
    })
}
