//! The calling thread's network namespace: its identity, its interfaces, and the kernel that it runs on.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::os::unix::fs::MetadataExt;

/// Inode number of the namespace, as `readlink /proc/self/ns/net` shows it (namespaces(7)).
#[must_use]
pub fn inode() -> Option<u64> {
    std::fs::metadata("/proc/thread-self/ns/net").ok().map(|ns| ns.ino())
}

/// Names of its interfaces by index; empty where they cannot be listed.
#[must_use]
pub fn interfaces() -> BTreeMap<NonZeroU32, String> {
    let Ok(list) = nix::net::if_::if_nameindex() else { return BTreeMap::new() };
    list.iter().filter_map(|i| Some((NonZeroU32::new(i.index())?, i.name().to_string_lossy().into_owned()))).collect()
}

/// `uname -r`.
#[must_use]
pub fn kernel_release() -> String {
    nix::sys::utsname::uname().map_or_else(|_| "unknown".into(), |name| name.release().to_string_lossy().into_owned())
}
