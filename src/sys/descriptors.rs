//! The limit of open descriptors (RLIMIT_NOFILE, getrlimit(2)).
//!
//! A descriptor for every network namespace may be more than the soft limit allows, which is 1024 by custom. So the program
//! raises its soft limit to the hard one when it starts, and gives the old limit to the program that replaces it: select(2)
//! of that program may not be able to use larger descriptors.

use std::sync::OnceLock;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// The limits at the start, where they were changed.
static BEFORE: OnceLock<(u64, u64)> = OnceLock::new();

/// Raises the soft limit to the hard one. A limit that cannot be raised stays, and calls that meet it report EMFILE.
pub fn raise_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok()
    {
        let _ = BEFORE.set((soft, hard));
    }
}

/// What one thread that reads a network namespace has open at most, with a margin: the namespace, a netlink socket, a socket for
/// interface names, a file of /proc.
const OF_A_WORKER: u64 = 8;

/// How many threads may read network namespaces at the same time, so that none of them meets the limit; at least one.
#[must_use]
pub fn workers() -> usize {
    let soft = getrlimit(Resource::RLIMIT_NOFILE).map_or(OF_A_WORKER, |(soft, _)| soft);
    usize::try_from(soft / OF_A_WORKER).unwrap_or(usize::MAX).max(1)
}

/// Restores the limit that the program was started with. The kernel always lets a process lower it.
pub fn restore_limit() {
    if let Some((soft, hard)) = BEFORE.get() {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, *soft, *hard);
    }
}
