//! Reads how much memory the kernel's slab allocator uses for one timewait bucket. Only root has permission to read it.

use std::io;
use std::path::Path;

use super::errno::{if_visible, retry};
use super::{file, setting};

/// The slab caches of IPv4 and IPv6 buckets. The kernel never merges these caches with other caches, because RCU readers may still use
/// freed objects (`SLAB_TYPESAFE_BY_RCU`). So each cache keeps its name.
const CACHES: [&str; 2] = ["tw_sock_TCP", "tw_sock_TCPv6"];

/// The maximum size of /proc/slabinfo in bytes, which has a line of about 120 bytes for each cache.
const MAX_BYTES: u64 = 4 << 20;

/// Returns the size of a bucket in bytes, including its alignment. If the sizes of IPv4 and IPv6 buckets differ, returns the larger
/// one. (On Linux 6.18 both are the same.) `None` if the kernel does not report the size, or not to this user.
pub fn timewait_bucket_bytes() -> io::Result<Option<u64>> {
    let mut most = None;
    for name in CACHES {
        let path = Path::new("/sys/kernel/slab").join(name).join("slab_size");
        let text = if_visible(setting::read(&path))?;
        most = most.max(text.and_then(|text| text.parse().ok()));
    }
    if most.is_some() {
        return Ok(most);
    }
    // /sys/kernel/slab does not exist, or this user has no permission to read it.
    let text = if_visible(retry(|| file::read(Path::new("/proc/slabinfo"), MAX_BYTES)))?;
    Ok(text.and_then(|text| object_size(&String::from_utf8_lossy(&text))))
}

/// Parses `<objsize>` in slabinfo(5), which is the fourth word in the line of a cache.
#[must_use]
pub fn object_size(slabinfo: &str) -> Option<u64> {
    let of_line = |line: &str| {
        let mut words = line.split_whitespace();
        let known = words.next().is_some_and(|name| CACHES.contains(&name));
        known.then(|| words.nth(2)?.parse().ok()).flatten()
    };
    slabinfo.lines().filter_map(of_line).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_size_of_slabinfo_is_read() {
        let line = "tw_sock_TCP          208    272    256   16    1 : tunables    0    0    0 : slabdata     17     17      0";
        assert_eq!(object_size(&format!("slabinfo - version: 2.1\nsock 1 2 3\n{line}\n")), Some(256));
        assert_eq!(object_size("tw_sock_TCP 208\ntw_sock_UDP 1 2 512 3\n"), None);
    }
}
