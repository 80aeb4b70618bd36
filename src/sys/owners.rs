//! Who has a socket open, read from /proc.
//!
//! 1. Every descriptor of a process is a link in /proc/PID/fd; that of a socket reads `socket:[inode]` (proc_pid_fd(5)).
//! 2. /proc/PID/fd shows the descriptors of the main thread. Another thread has different ones after unshare(CLONE_FILES),
//!    and when the main thread has ended /proc/PID/fd is empty while the other threads run. So kcmp(2) finds the threads
//!    that do not share the main thread's descriptors, and /proc/PID/task/TID/fd of one thread for each such set is read.
//!    With 2,000 threads kcmp takes 3.5 ms, and reading every folder 870 ms (Linux 6.18, 2026-11-27).
//! 3. A socket that no process has open may belong to the kernel itself: `kernel_sockets` looks for evidence of that.
//! 4. Absence from /proc proves nothing by itself. "No process" therefore needs that no folder was refused, and the
//!    answer says whether /proc shows every process of the machine or those of one pid namespace.
//! 5. A folder that cannot be read for another reason than permission may name further owners of any socket, so the whole
//!    answer is not complete.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read as _};
use std::num::NonZeroU32;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use procfs::ProcError;
use procfs::process::Process as ProcProcess;

use super::errno::{Refusal, retry};
use super::folder::ProcGap;
use super::{folder, kernel_sockets};
use crate::model::name::text_of;
use crate::model::process::{Owners, Process, Processes};
use crate::model::socket::FullSocket;

/// The pid namespace in which the machine started, as its links read (`PROC_PID_INIT_INO` in linux/proc_ns.h).
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";

/// What [`find`] found.
#[derive(Debug, Default)]
pub struct Found {
    /// The owners of each socket, by its inode.
    pub owners: BTreeMap<NonZeroU32, Owners>,
    /// Why some descriptors could not be read, where the reason is not permission: there may be more owners.
    pub failure: Option<String>,
}

/// The owners of each of these sockets that has an inode. Processes that end meanwhile are passed over.
#[must_use]
pub fn find<'a>(sockets: impl IntoIterator<Item = &'a FullSocket>) -> Found {
    let by_inode: BTreeMap<NonZeroU32, &FullSocket> =
        sockets.into_iter().filter_map(|socket| Some((socket.inode?, socket))).collect();
    if by_inode.is_empty() {
        return Found::default();
    }
    let mut search = Search { wanted: by_inode.keys().copied().collect(), found: BTreeMap::new() };
    let gap = folder::proc_gap();
    let mut all_read = matches!(gap, Ok(None));
    let mut failure = match gap {
        Ok(Some(ProcGap::NotMounted)) => Some(ProcGap::NotMounted.to_string()),
        Ok(_) => None,
        Err(error) => Some(error.to_string()),
    };
    match retry(folder::pids) {
        Err(error) => drop(failure.get_or_insert(error.to_string())),
        Ok(pids) => {
            for pid in pids.into_iter().filter_map(|pid| i32::try_from(pid).ok()) {
                match process(pid).and_then(|process| search.read_process(&process)) {
                    Ok(()) | Err(Unread::Gone) => {}
                    Err(Unread::Refused) => all_read = false,
                    Err(Unread::Failed(why)) => drop(failure.get_or_insert(why)),
                }
            }
        }
    }
    all_read &= failure.is_none();
    let missing: Vec<FullSocket> =
        by_inode.iter().filter(|(inode, _)| !search.found.contains_key(*inode)).map(|(_, socket)| **socket).collect();
    let shown = if missing.is_empty() { Processes::OfPidNamespace } else { shown_processes() };
    let kernels = kernel_sockets::find(&missing, all_read && shown == Processes::All).unwrap_or_else(|error| {
        failure.get_or_insert(error.to_string());
        BTreeMap::new()
    });
    let owners = |inode: NonZeroU32, processes: Option<Vec<Process>>| {
        if let Some(processes) = processes {
            return Owners::Found(processes);
        }
        match kernels.get(&inode) {
            Some(part) => Owners::Kernel(*part),
            None if all_read => Owners::NotFound(shown),
            None if failure.is_some() => Owners::NotRead,
            None => Owners::NotPermitted,
        }
    };
    let owners = by_inode.into_keys().map(|inode| (inode, owners(inode, search.found.remove(&inode)))).collect();
    Found { owners, failure }
}

/// The processes that /proc shows: those of the pid namespace in which it was mounted.
fn shown_processes() -> Processes {
    let initial = fs::read_link("/proc/1/ns/pid").is_ok_and(|link| link == Path::new(INITIAL_PID_NAMESPACE));
    if initial { Processes::All } else { Processes::OfPidNamespace }
}

/// Why descriptors, or facts of a process, were not read.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Unread {
    /// The process or thread has ended.
    Gone,
    /// The caller may not read them.
    Refused,
    /// For another reason, which says nothing about them.
    Failed(String),
}

/// /proc answers ESRCH for a process that ended while its folder was open.
impl From<io::Error> for Unread {
    fn from(error: io::Error) -> Self {
        match Refusal::of(&error) {
            Refusal::Absent => Self::Gone,
            Refusal::Refused => Self::Refused,
            _ => Self::Failed(error.to_string()),
        }
    }
}

/// The most bytes of a file of a process that are read; a path of a cgroup has 4096 at most.
const MOST: u64 = 64 * 1024;
impl From<ProcError> for Unread {
    fn from(error: ProcError) -> Self {
        match error {
            ProcError::NotFound(_) => Self::Gone,
            ProcError::PermissionDenied(_) => Self::Refused,
            ProcError::Io(error, _) => error.into(),
            other => Self::Failed(other.to_string()),
        }
    }
}

/// Reads something of a process, again after EINTR.
fn of_process<T>(mut read: impl FnMut() -> Result<T, ProcError>) -> Result<T, Unread> {
    loop {
        match read() {
            Err(ProcError::Io(error, _)) if Refusal::of(&error) == Refusal::Interrupted => {}
            result => return Ok(result?),
        }
    }
}

fn process(pid: i32) -> Result<ProcProcess, Unread> {
    of_process(|| ProcProcess::new(pid))
}

/// The sockets that are looked for, and the processes that have them open.
struct Search {
    wanted: BTreeSet<NonZeroU32>,
    found: BTreeMap<NonZeroU32, Vec<Process>>,
}

impl Search {
    fn read_process(&mut self, process: &ProcProcess) -> Result<(), Unread> {
        let mut held = BTreeSet::new();
        let of_main = self.read_descriptors(&format!("/proc/{}/fd", process.pid()), &mut held);
        let of_threads = self.read_threads(process.pid(), of_main.is_ok(), &mut held);
        if !held.is_empty() {
            let comm = read(process, "comm")?;
            let comm = text_of(comm.strip_suffix(b"\n").unwrap_or(&comm));
            let cgroup = match read(process, "cgroup") {
                Ok(cgroups) => cgroup_path(&cgroups),
                Err(Unread::Failed(why)) => return Err(Unread::Failed(why)),
                // A kernel without cgroups has no such file.
                Err(Unread::Gone | Unread::Refused) => None,
            };
            let parent = match of_process(|| process.stat()) {
                Ok(stat) => Some(stat.ppid).filter(|parent| *parent > 0),
                Err(Unread::Failed(why)) => return Err(Unread::Failed(why)),
                Err(Unread::Gone | Unread::Refused) => None,
            };
            for inode in held {
                let described = Process { pid: process.pid(), comm: comm.clone(), parent, cgroup: cgroup.clone() };
                self.found.entry(inode).or_default().push(described);
            }
        }
        // A main thread that has ended has no descriptors, and its folder belongs to root.
        let ended = || of_process(|| process.stat()).is_ok_and(|stat| matches!(stat.state, 'Z' | 'X'));
        match of_main {
            Err(Unread::Refused) if !ended() => Err(Unread::Refused),
            Err(Unread::Failed(why)) => Err(Unread::Failed(why)),
            _ => of_threads,
        }
    }

    /// Reads the descriptors of each thread that does not share those of a thread that was read before.
    fn read_threads(&self, pid: i32, main_was_read: bool, held: &mut BTreeSet<NonZeroU32>) -> Result<(), Unread> {
        /// A folder has a link from its parent and from itself, and one from each folder in it.
        const LINKS_OF_ONE_THREAD: u64 = 3;
        let folder = format!("/proc/{pid}/task");
        if folder::metadata(Path::new(&folder))?.nlink() <= LINKS_OF_ONE_THREAD {
            return Ok(());
        }
        // One thread of each set of descriptors, in the kernel's order of the sets.
        let mut read: Vec<i32> = main_was_read.then_some(pid).into_iter().collect();
        let mut unread = Ok(());
        for name in folder::names_in(&folder)? {
            let Some(thread) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            if thread == pid {
                continue;
            }
            let mut certain = true;
            let place = read.binary_search_by(|&other| {
                compare_descriptors(other, thread).unwrap_or_else(|| {
                    certain = false;
                    Ordering::Less
                })
            });
            let Err(place) = place else { continue };
            match self.read_descriptors(&format!("{folder}/{thread}/fd"), held) {
                Ok(()) if certain => read.insert(place, thread),
                Ok(()) | Err(Unread::Gone) => {}
                Err(why) => unread = Err(why),
            }
        }
        unread
    }

    fn read_descriptors(&self, folder: &str, held: &mut BTreeSet<NonZeroU32>) -> Result<(), Unread> {
        for name in folder::names_in(folder)? {
            match retry(|| fs::read_link(Path::new(folder).join(&name))).map_err(Unread::from) {
                Ok(target) => held.extend(socket_inode(&target).filter(|inode| self.wanted.contains(inode))),
                // A descriptor that was closed between readdir and readlink is gone, not hidden.
                Err(Unread::Gone) => {}
                Err(why) => return Err(why),
            }
        }
        Ok(())
    }
}

/// The kernel's order of the sets of descriptors of two threads; equal: they share one. A kernel or sandbox without kcmp(2)
/// makes that unknown, and then the descriptors of each thread are read.
fn compare_descriptors(one: i32, other: i32) -> Option<Ordering> {
    /// `KCMP_FILES` of linux/kcmp.h.
    const KCMP_FILES: libc::c_long = 2;
    // SAFETY: kcmp with KCMP_FILES takes numbers alone and changes nothing.
    #[expect(unsafe_code, reason = "kcmp has no safe wrapper")]
    let compared = unsafe {
        libc::syscall(libc::SYS_kcmp, libc::c_long::from(one), libc::c_long::from(other), KCMP_FILES, 0_usize, 0_usize)
    };
    match compared {
        0 => Some(Ordering::Equal),
        1 => Some(Ordering::Less),
        2 => Some(Ordering::Greater),
        // 3 is "different, without an order"; a negative number is an errno.
        _ => None,
    }
}

/// The inode in `socket:[4711]`.
fn socket_inode(target: &Path) -> Option<NonZeroU32> {
    target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// A file of the process: short, and of the same process even if its number has been given away.
fn read(process: &ProcProcess, file: &str) -> Result<Vec<u8>, Unread> {
    let mut bytes = vec![];
    let opened = of_process(|| process.open_relative(file))?;
    opened.take(MOST).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The path in the unified hierarchy, or in systemd's own where cgroup v1 is mounted (cgroups(7)): of the lines
/// `number:controllers:path`.
#[must_use]
pub fn cgroup_path(cgroups: &[u8]) -> Option<String> {
    let find = |wanted: fn(&[u8], &[u8]) -> bool| {
        cgroups.split(|byte| *byte == b'\n').find_map(|line| {
            let mut fields = line.splitn(3, |byte| *byte == b':');
            let (number, controllers) = (fields.next()?, fields.next()?);
            fields.next().filter(|_| wanted(number, controllers)).map(text_of)
        })
    };
    let systemd = |_: &[u8], controllers: &[u8]| {
        controllers.split(|byte| *byte == b',').any(|controller| controller == b"name=systemd")
    };
    find(systemd).or_else(|| find(|number, controllers| number == b"0" && controllers.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup_is_that_of_systemd_or_of_the_unified_hierarchy() {
        let path = |text: &[u8]| cgroup_path(text);
        assert_eq!(path(b"0::/a:b\n").as_deref(), Some("/a:b"));
        assert_eq!(path(b"3:cpu,cpuacct:/x\n1:name=systemd:/unit\n0::/\n").as_deref(), Some("/unit"));
        assert_eq!(path(b"0::/\xff\n").as_deref(), Some(r"/\xff"));
        assert_eq!((path(b"3:cpu:/x\n"), path(b"0::"), path(b"")), (None, Some(String::new()), None));
        assert_eq!(path(b"0:cpu,:/x\n"), None);
    }
}
