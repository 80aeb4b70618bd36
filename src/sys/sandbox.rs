//! A private user and network namespace for experiments: no root needed, the host is not touched.

use std::fs;
use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getgid, getuid};

/// Which step of making the namespace failed.
#[derive(Debug, thiserror::Error)]
#[error("no private network namespace can be made: {step} failed: {source}")]
pub struct SandboxError {
    step: &'static str,
    source: io::Error,
}

fn step<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> SandboxError {
    move |source| SandboxError { step, source: source.into() }
}

/// Moves this process into a user namespace of its own, in which it may make network namespaces. Must be called before
/// the process has a second thread (unshare(2)). A process that may make network namespaces anyway needs no user
/// namespace and keeps its own where it gets none.
pub fn enter_user_namespace() -> Result<(), SandboxError> {
    let (uid, gid) = (getuid(), getgid());
    match unshare(CloneFlags::CLONE_NEWUSER) {
        Ok(()) => {}
        Err(_) if uid.is_root() => return Ok(()),
        Err(errno) => return Err(step("unshare(CLONE_NEWUSER)")(errno)),
    }
    // user_namespaces(7): setgroups must be denied before an unprivileged process may write its gid_map.
    let map = |file: &str, text: String| fs::write(format!("/proc/self/{file}"), text);
    map("setgroups", "deny".into()).map_err(step("writing /proc/self/setgroups"))?;
    let mapped = map("uid_map", format!("0 {uid} 1")).and_then(|()| map("gid_map", format!("0 {gid} 1")));
    match mapped {
        // Uid 0 may not map itself without CAP_SETFCAP (since 5.12). Only programs started in here would need the map.
        Err(error) if uid.is_root() && error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        mapped => mapped.map_err(step("writing /proc/self/uid_map and gid_map")),
    }
}

/// Moves the calling thread into a new, empty network namespace with `lo` up.
pub fn enter_network_namespace() -> Result<(), SandboxError> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(step("unshare(CLONE_NEWNET)"))?;
    raise_loopback().map_err(step("raising lo"))
}

/// RTM_NEWLINK for `lo`, always interface 1, with IFF_UP (rtnetlink(7)): `struct nlmsghdr`, `struct ifinfomsg`.
fn raise_loopback() -> io::Result<()> {
    const RTM_NEWLINK: u16 = 16;
    const IFF_UP: u32 = 1;
    const LOOPBACK: i32 = 1;
    let flags = netlink_packet_core::NLM_F_REQUEST | netlink_packet_core::NLM_F_ACK;
    let mut request = Vec::with_capacity(32);
    request.extend_from_slice(&32_u32.to_ne_bytes());
    request.extend_from_slice(&RTM_NEWLINK.to_ne_bytes());
    request.extend_from_slice(&flags.to_ne_bytes());
    request.extend_from_slice(&[0; 8]);
    request.extend_from_slice(&[0; 4]);
    request.extend_from_slice(&LOOPBACK.to_ne_bytes());
    request.extend_from_slice(&IFF_UP.to_ne_bytes());
    request.extend_from_slice(&IFF_UP.to_ne_bytes());

    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&request, 0)?;
    let mut answer = Vec::with_capacity(4096);
    socket.recv(&mut answer, 0)?;
    match answer.get(16..20).and_then(|code| code.try_into().ok()).map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        None => Err(io::Error::from(io::ErrorKind::InvalidData)),
    }
}
