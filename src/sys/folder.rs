//! Folders and files by name, read again after EINTR, which std does not do for these calls.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;

use super::errno::retry;

/// The names of the files in a folder.
pub fn names_in(folder: &str) -> io::Result<Vec<OsString>> {
    retry(|| fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name())).collect())
}

/// stat(2).
pub fn metadata(path: &Path) -> io::Result<fs::Metadata> {
    retry(|| fs::metadata(path))
}

/// The numbers of all processes that /proc shows, the lowest first.
pub fn pids() -> io::Result<Vec<u32>> {
    // Other names in /proc are not numbers.
    let mut pids: Vec<u32> = names_in("/proc")?.iter().filter_map(|name| name.to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    Ok(pids)
}
