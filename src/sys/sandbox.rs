//! Creates private user and network namespaces for experiments. This needs no privilege if the system permits user namespaces.

use std::fs::{self, File};
use std::io;

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{getgid, getuid};

use super::rtnetlink;

/// The step that failed when a namespace was created or entered.
#[derive(Debug, thiserror::Error)]
#[error("no private network namespace can be used: {step} failed: {source}")]
pub struct SandboxError {
    step: &'static str,
    source: io::Error,
}

fn step<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> SandboxError {
    move |source| SandboxError { step, source: source.into() }
}

/// Moves this process into a new user namespace, in which it may create network namespaces. Call this function before the process has
/// a second thread (unshare(2)). If the kernel refuses the user namespace, root continues in the old one, because root can
/// usually create network namespaces there.
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
        // Since Linux 5.12, uid 0 needs CAP_SETFCAP to map itself. This process can continue without the map: only programs that it
        // starts would need the map.
        Err(error) if uid.is_root() && error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        mapped => mapped.map_err(step("writing /proc/self/uid_map and gid_map")),
    }
}

/// Moves the calling thread into a new, empty network namespace with `lo` up.
pub fn enter_network_namespace() -> Result<(), SandboxError> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(step("unshare(CLONE_NEWNET)"))?;
    rtnetlink::raise(rtnetlink::LOOPBACK).map_err(step("raising lo"))
}

/// A private network namespace. The kernel keeps it as long as this value, a thread in it or a socket in it exists.
#[derive(Debug)]
pub struct PrivateNetns(File);

impl PrivateNetns {
    /// Creates a namespace with `lo` up, and moves the calling thread into it.
    pub fn create() -> Result<Self, SandboxError> {
        enter_network_namespace()?;
        File::open("/proc/thread-self/ns/net").map(Self).map_err(step("opening /proc/thread-self/ns/net"))
    }

    /// Moves the calling thread into the namespace.
    pub fn enter(&self) -> Result<(), SandboxError> {
        setns(&self.0, CloneFlags::CLONE_NEWNET).map_err(step("setns(CLONE_NEWNET)"))
    }
}
