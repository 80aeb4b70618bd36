//! Changes the limit of open descriptors (RLIMIT_NOFILE, getrlimit(2)).
//!
//! twtool reads network namespaces on one thread per core, and each thread needs several descriptors. The soft limit, which is
//! usually 1024, would allow only 128 threads (see [`workers`]). So twtool raises its soft limit to the hard limit at the start. It
//! restores the old limit before it executes a program of the user, because that program may use select(2), which cannot use
//! descriptors of 1024 and above.

use std::sync::OnceLock;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// The soft and the hard limit that twtool was started with, if it has raised the soft limit.
static BEFORE: OnceLock<(u64, u64)> = OnceLock::new();

/// Raises the soft limit of open descriptors to the hard limit. If that fails, the old limit remains, and calls that exceed it fail
/// with EMFILE.
pub fn raise_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok()
    {
        let _ = BEFORE.set((soft, hard));
    }
}

/// The maximum number of descriptors of one thread that reads a network namespace, with a margin. The thread opens the namespace,
/// a netlink socket, a socket for interface names, and a file in /proc.
const PER_WORKER: u64 = 8;

/// The number of threads that can read network namespaces at the same time within the limit of open descriptors; at least one.
#[must_use]
pub fn workers() -> usize {
    let soft = getrlimit(Resource::RLIMIT_NOFILE).map_or(PER_WORKER, |(soft, _)| soft);
    usize::try_from(soft / PER_WORKER).unwrap_or(usize::MAX).max(1)
}

/// Restores the limit of open descriptors that twtool was started with. The kernel always permits a process to lower its soft limit.
pub fn restore_limit() {
    if let Some((soft, hard)) = BEFORE.get() {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, *soft, *hard);
    }
}
