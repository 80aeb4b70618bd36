//! Checks whether a uid in this user namespace identifies one user (user_namespaces(7)).

use std::path::Path;
use std::sync::OnceLock;

use super::errno::{FailureClass, retry};
use super::{file, setting};

/// The maximum size of uid_map in bytes. The file has at most 340 lines.
const MAX_BYTES: u64 = 64 * 1024;

/// Whether a uid that the kernel reports identifies one user. The kernel reports the overflow uid for every user that has no uid
/// in this user namespace. The overflow uid usually also belongs to a user of this namespace, `nobody`.
#[must_use]
pub(super) fn is_certain(uid: u32) -> bool {
    static UNCERTAIN: OnceLock<Option<u32>> = OnceLock::new();
    *UNCERTAIN.get_or_init(|| {
        let map = retry(|| file::read(Path::new("/proc/self/uid_map"), MAX_BYTES));
        // A kernel without user namespaces has no such file.
        let has_all = map.map_or_else(|error| FailureClass::of(&error) == FailureClass::Absent, |map| maps_all(&map));
        (!has_all).then(overflow_uid)
    }) != Some(uid)
}

fn overflow_uid() -> u32 {
    /// `DEFAULT_OVERFLOWUID` in linux/highuid.h.
    const DEFAULT: u32 = 65534;
    let value = setting::read(Path::new("/proc/sys/kernel/overflowuid"));
    value.ok().and_then(|value| value.trim().parse().ok()).unwrap_or(DEFAULT)
}

/// Whether a map contains all uids, 0 to 4294967294, as in the initial namespace. The lines of a map are `first-inside first-outside
/// count`.
fn maps_all(map: &[u8]) -> bool {
    let count = |line: &str| line.split_ascii_whitespace().nth(2).and_then(|count| count.parse::<u64>().ok());
    let counts = str::from_utf8(map).unwrap_or_default().lines().filter_map(count);
    counts.sum::<u64>() >= u64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_complete_only_if_it_contains_all_uids() {
        assert!(maps_all(b"         0          0 4294967295\n"));
        assert!(maps_all(b"0 100 1\n1 0 100\n101 101 4294967194\n"));
        for map in [&b"0 1000 1\n1 100000 65536\n"[..], b"0 1000 1\n", b"", b"0 0 many\n", b"\xff"] {
            assert!(!maps_all(map), "{map:?}");
        }
    }
}
