//! Which processes have a socket open: /proc/PID/fd links to `socket:[inode]` (proc_pid_fd(5)).
//!
//! "Nobody has it" is said only when every process was looked into; a folder or a link that may not be read makes it
//! "not permitted". So the links are read here: procfs's own walk passes over those that it may not read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::num::NonZeroU32;
use std::path::Path;

use procfs::ProcError;
use procfs::process::{Process as ProcProcess, all_processes};

use crate::model::process::{Owners, Process};

/// The owners of each of these socket inodes, in one walk of /proc. Processes that end meanwhile are passed over.
#[must_use]
pub fn of(inodes: &BTreeSet<NonZeroU32>) -> BTreeMap<NonZeroU32, Owners> {
    if inodes.is_empty() {
        return BTreeMap::new();
    }
    let mut found: BTreeMap<NonZeroU32, Vec<Process>> = BTreeMap::new();
    // Every pid namespace has a process 1; where it is not shown, /proc hides processes (mounted with hidepid).
    let mut all_seen = Path::new("/proc/1").exists();
    match all_processes() {
        Err(_) => all_seen = false,
        Ok(processes) => {
            for process in processes {
                match process.map_err(|error| not_gone(&error)).and_then(|p| look_into(&p, inodes, &mut found)) {
                    Ok(()) | Err(Looked::Gone) => {}
                    Err(Looked::Refused) => all_seen = false,
                }
            }
        }
    }
    let missing = if all_seen { Owners::NotVisible } else { Owners::NotPermitted };
    inodes.iter().map(|&inode| (inode, found.remove(&inode).map_or(missing.clone(), Owners::Found))).collect()
}

/// Why a process was not looked into.
enum Looked {
    /// It has ended.
    Gone,
    /// It may not be.
    Refused,
}

fn not_gone(error: &ProcError) -> Looked {
    match error {
        ProcError::NotFound(_) => Looked::Gone,
        _ => Looked::Refused,
    }
}

/// ESRCH is what /proc gives for a process that ended while its folder was open.
fn not_gone_io(error: &io::Error) -> Looked {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ESRCH) => Looked::Gone,
        _ => Looked::Refused,
    }
}

fn look_into(
    process: &ProcProcess,
    inodes: &BTreeSet<NonZeroU32>,
    found: &mut BTreeMap<NonZeroU32, Vec<Process>>,
) -> Result<(), Looked> {
    let mut held = BTreeSet::new();
    let folder = fs::read_dir(format!("/proc/{}/fd", process.pid())).map_err(|error| not_gone_io(&error))?;
    for entry in folder {
        let link = entry.and_then(|entry| fs::read_link(entry.path()));
        match link {
            Ok(target) => held.extend(socket_inode(&target).filter(|inode| inodes.contains(inode))),
            // A descriptor closed between readdir and readlink is gone, not hidden.
            Err(error) => match not_gone_io(&error) {
                Looked::Gone => {}
                Looked::Refused => return Err(Looked::Refused),
            },
        }
    }
    if held.is_empty() {
        return Ok(());
    }
    let comm = process.stat().map_err(|error| not_gone(&error))?.comm;
    for inode in held {
        let described = Process { pid: process.pid(), comm: comm.clone(), cgroup: cgroup(process) };
        found.entry(inode).or_default().push(described);
    }
    Ok(())
}

/// The inode in `socket:[4711]`.
fn socket_inode(target: &Path) -> Option<NonZeroU32> {
    target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// The path in the unified hierarchy, or in systemd's own where cgroup v1 is mounted (cgroups(7)).
fn cgroup(process: &ProcProcess) -> Option<String> {
    let groups = process.cgroups().ok()?.0;
    let unified = groups.iter().find(|g| g.hierarchy == 0);
    let systemd = groups.iter().find(|g| g.controllers.iter().any(|c| c == "name=systemd"));
    systemd.or(unified).map(|g| g.pathname.clone())
}
