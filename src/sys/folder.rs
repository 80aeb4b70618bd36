//! Lists folders, reads the status of files, and checks which processes /proc shows. These functions repeat a call after EINTR,
//! because std does not.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use super::errno::{FailureClass, retry};

/// The names of the files in a folder.
pub fn names_in(folder: &str) -> io::Result<Vec<OsString>> {
    retry(|| fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name())).collect())
}

/// Returns the status of a file (stat(2)).
pub fn metadata(path: &Path) -> io::Result<fs::Metadata> {
    retry(|| fs::metadata(path))
}

/// The pids of all processes that /proc shows, in ascending order.
pub fn pids() -> io::Result<Vec<u32>> {
    let mut pids: Vec<u32> = names_in("/proc")?.iter().filter_map(|name| name.to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    Ok(pids)
}

/// The reason why /proc does not show every process of its pid namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcGap {
    /// The folder /proc belongs to another filesystem, or does not exist.
    NotMounted,
    /// Processes that the caller has no permission to trace are hidden (proc(5), hidepid).
    Hidepid,
    /// The caller has no permission to read /proc, or a sandbox refuses the access.
    Refused,
}

impl fmt::Display for ProcGap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotMounted => "/proc is not mounted here",
            Self::Hidepid => "/proc hides the processes of other users (it is mounted with hidepid)",
            Self::Refused => "this user, or its sandbox, has no permission to read /proc",
        })
    }
}

/// Determines why /proc does not show every process of its pid namespace; `None` if it does.
pub fn proc_gap() -> io::Result<Option<ProcGap>> {
    // Every pid namespace has a process 1. If /proc shows it, this function assumes that /proc shows all processes.
    match metadata(Path::new("/proc/1")) {
        Ok(_) => Ok(None),
        Err(error) => match FailureClass::of(&error) {
            FailureClass::Absent => {
                let mounted = retry(|| Ok(rustix::fs::statfs("/proc")?));
                let is_proc = mounted.is_ok_and(|mounted| mounted.f_type == rustix::fs::PROC_SUPER_MAGIC);
                Ok(Some(if is_proc { ProcGap::Hidepid } else { ProcGap::NotMounted }))
            }
            FailureClass::Refused => Ok(Some(ProcGap::Refused)),
            _ => Err(error),
        },
    }
}
