//! Finds the processes of network namespaces.

use std::io;
use std::path::{Path, PathBuf};

use procfs::process::Process;

use super::names::id;
use crate::model::name::text_of;
use crate::model::netns::{NetnsId, NetnsName};
use crate::sys::errno::{if_visible, retry};
use crate::sys::file;
use crate::sys::folder::{metadata, pids};

pub(super) fn namespace_of(pid: u32) -> PathBuf {
    format!("/proc/{pid}/ns/net").into()
}

pub(super) fn comm(pid: u32) -> io::Result<String> {
    let comm = retry(|| file::read(Path::new(&format!("/proc/{pid}/comm")), 4096))?;
    Ok(text_of(comm.strip_suffix(b"\n").unwrap_or(&comm)))
}

/// Whether a process is a thread of the kernel: `flags` in proc_pid_stat(5) contains PF_KTHREAD (include/linux/sched.h).
pub(super) fn is_kernel_thread(pid: u32) -> bool {
    const PF_KTHREAD: u32 = 0x0020_0000;
    let stat = i32::try_from(pid).ok().and_then(|pid| Process::new(pid).ok()?.stat().ok());
    stat.is_some_and(|stat| stat.flags & PF_KTHREAD != 0)
}

/// Names a namespace after a process. `None` if the process has ended or is in another namespace, or if the caller has no permission to
/// read its namespace. `None` also for twtool itself, because most commands end before a user can use the name.
pub(super) fn process_name(pid: u32, netns: NetnsId) -> io::Result<Option<NetnsName>> {
    if pid == std::process::id() || !is_in(pid, netns)? {
        return Ok(None);
    }
    Ok(if_visible(comm(pid))?.map(|comm| NetnsName::LowestPid { pid, comm }))
}

fn is_in(pid: u32, netns: NetnsId) -> io::Result<bool> {
    Ok(if_visible(metadata(&namespace_of(pid)))?.is_some_and(|file| id(&file) == netns))
}

pub(super) fn lowest_process_name(netns: NetnsId) -> io::Result<Option<NetnsName>> {
    for pid in pids()? {
        if let Some(name) = process_name(pid, netns)? {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

pub(super) fn path_of(netns: NetnsId) -> io::Result<Option<PathBuf>> {
    for pid in pids()? {
        if is_in(pid, netns)? {
            return Ok(Some(namespace_of(pid)));
        }
    }
    Ok(None)
}
