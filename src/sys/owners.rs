//! Finds the processes that have a socket open, from /proc.
//!
//! 1. A descriptor of a process is a link in /proc/PID/fd. The link of a socket is `socket:[inode]`
//!    (proc_pid_fd(5)).
//! 2. /proc/PID/fd shows the descriptors of the main thread. A thread that has called unshare(CLONE_FILES) has its own descriptors.
//!    If the main thread has ended, /proc/PID/fd is empty while the other threads run. So kcmp(2) finds the threads that do
//!    not share the main thread's descriptors, and /proc/PID/task/TID/fd is read once for each set of descriptors. For a process
//!    with 2,000 threads, kcmp takes 3.5 ms, and reading every folder would take 870 ms (Linux 6.18, 2026-11-27).
//! 3. A socket that no process has open may belong to the kernel itself: `kernel_sockets` searches for evidence of
//!    that.
//! 4. The result "no process" requires that every folder could be read. It also states whether /proc shows every process of the
//!    machine, or only the processes of one pid namespace.
//! 5. A folder that cannot be read for a reason other than permission may contain further owners of any socket, so the
//!    whole result is incomplete.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read as _};
use std::num::NonZeroU32;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use procfs::ProcError;
use procfs::process::Process as ProcProcess;

use super::errno::{FailureClass, retry};
use super::folder::ProcGap;
use super::{capabilities, cgroup, folder, kernel_sockets, users};
use crate::model::name::text_of;
use crate::model::process::{Owners, Process, Processes};
use crate::model::socket::FullSocket;

/// The target of a link to the initial pid namespace (`PROC_PID_INIT_INO` in linux/proc_ns.h).
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";

/// The processes that [`find`] found for each socket.
#[derive(Debug, Default)]
pub struct SocketOwners {
    /// The owners of each socket. The keys are inodes.
    pub owners: BTreeMap<NonZeroU32, Owners>,
    /// Why some descriptors could not be read, if the reason is not permission. Then there may be more owners.
    pub failure: Option<String>,
}

/// Finds the owners of each socket that has an inode. Processes that end during the search are skipped.
#[must_use]
pub fn find<'a>(sockets: impl IntoIterator<Item = &'a FullSocket>) -> SocketOwners {
    let by_inode: BTreeMap<NonZeroU32, &FullSocket> =
        sockets.into_iter().filter_map(|socket| Some((socket.inode?, socket))).collect();
    if by_inode.is_empty() {
        return SocketOwners::default();
    }
    let mut search = DescriptorSearch { wanted: by_inode.keys().copied().collect(), found: BTreeMap::new() };
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
                    Ok(()) | Err(ReadError::Gone) => {}
                    Err(ReadError::Refused) => all_read = false,
                    Err(ReadError::Failed(why)) => drop(failure.get_or_insert(why)),
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
    SocketOwners { owners, failure }
}

/// The set of processes that /proc shows. It depends on the pid namespace in which /proc was mounted.
fn shown_processes() -> Processes {
    let initial = fs::read_link("/proc/1/ns/pid").is_ok_and(|link| link == Path::new(INITIAL_PID_NAMESPACE));
    if initial { Processes::All } else { Processes::OfPidNamespace }
}

/// Whether twtool is in the initial pid namespace, whose pids BPF programs see.
#[must_use]
pub fn in_initial_pid_namespace() -> bool {
    fs::read_link("/proc/self/ns/pid").is_ok_and(|link| link == Path::new(INITIAL_PID_NAMESPACE))
}

/// Reads the facts of a process by its pid and its start time (CLOCK_BOOTTIME in ns). `None` if the process has ended or cannot be
/// read, or if the pid now belongs to another process, which has another start time.
#[must_use]
pub fn process_started_at(pid: u32, start_ns: u64) -> Option<Process> {
    let process = process(i32::try_from(pid).ok()?).ok()?;
    let started = of_process(|| process.stat()).ok()?.starttime;
    let ticks = 1_000_000_000 / procfs::ticks_per_second();
    (started == start_ns / ticks).then(|| describe(&process).ok())?
}

/// The reason why descriptors, or facts about a process, could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
enum ReadError {
    /// The process or thread has ended.
    Gone,
    /// The caller has no permission.
    Refused,
    /// Another failure. There may be more owners than were found.
    Failed(String),
}

/// If a process ends while its folder in /proc is open, the kernel returns ESRCH.
impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        match FailureClass::of(&error) {
            FailureClass::Absent => Self::Gone,
            FailureClass::Refused => Self::Refused,
            _ => Self::Failed(error.to_string()),
        }
    }
}

/// The maximum size of a file of a process in bytes. The path of a cgroup has at most 4096 bytes.
const MAX_BYTES: u64 = 64 * 1024;

/// The maximum size of the arguments of a process in bytes; longer arguments count as unread. execve(2) passes at most 6 MiB. But
/// twtool keeps the arguments for each socket of the process, and a process can have ten thousand sockets on a port.
const MAX_ARGUMENTS: u64 = 64 * 1024;

impl From<ProcError> for ReadError {
    fn from(error: ProcError) -> Self {
        match error {
            ProcError::NotFound(_) => Self::Gone,
            ProcError::PermissionDenied(_) => Self::Refused,
            ProcError::Io(error, _) => error.into(),
            other => Self::Failed(other.to_string()),
        }
    }
}

/// Repeats a call after EINTR.
fn of_process<T>(mut read: impl FnMut() -> Result<T, ProcError>) -> Result<T, ReadError> {
    loop {
        match read() {
            Err(ProcError::Io(error, _)) if FailureClass::of(&error) == FailureClass::Interrupted => {}
            result => return Ok(result?),
        }
    }
}

fn process(pid: i32) -> Result<ProcProcess, ReadError> {
    of_process(|| ProcProcess::new(pid))
}

struct DescriptorSearch {
    wanted: BTreeSet<NonZeroU32>,
    found: BTreeMap<NonZeroU32, Vec<Process>>,
}

impl DescriptorSearch {
    fn read_process(&mut self, process: &ProcProcess) -> Result<(), ReadError> {
        let mut held = BTreeSet::new();
        let of_main = self.read_descriptors(&format!("/proc/{}/fd", process.pid()), &mut held);
        let of_threads = self.read_threads(process.pid(), of_main.is_ok(), &mut held);
        if !held.is_empty() {
            let described = describe(process)?;
            for inode in held {
                self.found.entry(inode).or_default().push(described.clone());
            }
        }
        // If the main thread has ended, it has no descriptors, and its folder belongs to root.
        let ended = || of_process(|| process.stat()).is_ok_and(|stat| matches!(stat.state, 'Z' | 'X'));
        match of_main {
            Err(ReadError::Refused) if !ended() => Err(ReadError::Refused),
            Err(ReadError::Failed(why)) => Err(ReadError::Failed(why)),
            _ => of_threads,
        }
    }

    /// Reads each set of descriptors of the other threads once.
    fn read_threads(&self, pid: i32, main_was_read: bool, held: &mut BTreeSet<NonZeroU32>) -> Result<(), ReadError> {
        /// A folder has a link from its parent, a link from itself, and a link from each folder in it.
        const LINKS_OF_ONE_THREAD: u64 = 3;
        let folder = format!("/proc/{pid}/task");
        if folder::metadata(Path::new(&folder))?.nlink() <= LINKS_OF_ONE_THREAD {
            return Ok(());
        }
        // One thread of each set of descriptors, in the order of kcmp(2).
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
                Ok(()) | Err(ReadError::Gone) => {}
                Err(why) => unread = Err(why),
            }
        }
        unread
    }

    fn read_descriptors(&self, folder: &str, held: &mut BTreeSet<NonZeroU32>) -> Result<(), ReadError> {
        for name in folder::names_in(folder)? {
            match retry(|| fs::read_link(Path::new(folder).join(&name))).map_err(ReadError::from) {
                Ok(target) => held.extend(socket_inode(&target).filter(|inode| self.wanted.contains(inode))),
                // The descriptor was closed between readdir and readlink, so it is gone and not hidden.
                Err(ReadError::Gone) => {}
                Err(why) => return Err(why),
            }
        }
        Ok(())
    }
}

/// Compares the sets of descriptors of two threads in the kernel's order. `Equal` means that they share one set. `None`
/// if the kernel or a sandbox does not permit kcmp(2); then the descriptors of every thread are read.
fn compare_descriptors(one: i32, other: i32) -> Option<Ordering> {
    /// `KCMP_FILES` of linux/kcmp.h.
    const KCMP_FILES: libc::c_long = 2;
    // SAFETY: kcmp with KCMP_FILES takes only numbers and changes nothing.
    #[expect(unsafe_code, reason = "kcmp has no safe wrapper")]
    let compared = unsafe {
        libc::syscall(libc::SYS_kcmp, libc::c_long::from(one), libc::c_long::from(other), KCMP_FILES, 0_usize, 0_usize)
    };
    match compared {
        0 => Some(Ordering::Equal),
        1 => Some(Ordering::Less),
        2 => Some(Ordering::Greater),
        // 3 is "different, without an order"; -1 is a failure.
        _ => None,
    }
}

/// Parses the inode in `socket:[4711]`.
fn socket_inode(target: &Path) -> Option<NonZeroU32> {
    target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// Facts that the kernel does not have, or does not show, are unknown.
fn describe(process: &ProcProcess) -> Result<Process, ReadError> {
    let comm = read(process, "comm", MAX_BYTES)?;
    let cgroups = if_shown(read(process, "cgroup", MAX_BYTES))?;
    let stat = if_shown(of_process(|| process.stat()))?;
    let uid =
        if_shown(read(process, "status", MAX_BYTES))?.and_then(|status| capabilities::effective_id(&status, "Uid:"));
    let cmdline = if_shown(read(process, "cmdline", MAX_ARGUMENTS + 1))?;
    Ok(Process {
        pid: process.pid(),
        comm: text_of(comm.strip_suffix(b"\n").unwrap_or(&comm)),
        parent: stat.map(|stat| stat.ppid).filter(|parent| *parent > 0),
        cgroup: cgroups.and_then(|cgroups| cgroup::path_of_process(&cgroups)),
        user: uid.and_then(users::user),
        cmdline: cmdline.filter(|bytes| bytes.len() as u64 <= MAX_ARGUMENTS).and_then(|bytes| arguments(&bytes)),
        socket_unit: None,
    })
}

/// Converts [`ReadError::Gone`] and [`ReadError::Refused`] to `None`: the kernel has no such file, or does not show it to this user.
fn if_shown<T>(read: Result<T, ReadError>) -> Result<Option<T>, ReadError> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(ReadError::Gone | ReadError::Refused) => Ok(None),
        Err(failed) => Err(failed),
    }
}

/// Parses the arguments in /proc/PID/cmdline. A NUL follows each argument. `None` if there are no arguments, for example because the
/// process is a thread of the kernel.
fn arguments(bytes: &[u8]) -> Option<Vec<String>> {
    let bytes = bytes.strip_suffix(b"\0").unwrap_or(bytes);
    let mut arguments: Vec<&[u8]> = bytes.split(|byte| *byte == 0).collect();
    // A program that writes a title over its arguments (setproctitle(3)) fills the rest with NUL.
    let is_title = arguments.first().is_some_and(|first| first.contains(&b' '));
    while is_title && arguments.last().is_some_and(|last| last.is_empty()) {
        arguments.pop();
    }
    (!bytes.is_empty()).then(|| arguments.into_iter().map(text_of).collect())
}

/// Fails if the process has ended, even if the pid now belongs to another process.
fn read(process: &ProcProcess, file: &str, most: u64) -> Result<Vec<u8>, ReadError> {
    let mut bytes = vec![];
    let opened = of_process(|| process.open_relative(file))?;
    opened.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_separated_by_nul_and_a_title_is_one_argument() {
        let of = |bytes: &[u8]| arguments(bytes).map(|arguments| arguments.join("|"));
        assert_eq!(of(b"a\0-b\0c d\0").as_deref(), Some("a|-b|c d"));
        assert_eq!(of(b"a\0\0\0").as_deref(), Some("a||"), "two empty arguments");
        assert_eq!(of(b"nginx: master process\0\0\0\0").as_deref(), Some("nginx: master process"));
        assert_eq!(of(b"no end").as_deref(), Some("no end"));
        assert_eq!(of(b"a\xff\0").as_deref(), Some(r"a\xff"));
        assert_eq!((of(b""), of(b"\0")), (None, None));
    }
}
