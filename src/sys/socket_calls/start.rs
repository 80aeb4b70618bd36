//! Starts a program so that it is traced from its first instruction, or attaches to a running process.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;

use rustix::process::{Pid, Signal, WaitOptions, kill_process, test_kill_process, waitpid};

use super::ptrace::{TraceRequest, request};
use super::refusal::refusal;
use super::signals::CommandSignals;
use super::{WatchError, failed, stub, target};
use crate::model::call::{SlowReason, UnwatchableReason};
use crate::sys::folder;

/// Options of ptrace(2). With them, the kernel also attaches twtool to each process and thread that a traced thread starts, reports each
/// execve(2), and sets a flag in each stop that a system call causes (`PTRACE_O_TRACESYSGOOD`).
const FOLLOW: i32 = libc::PTRACE_O_TRACEFORK
    | libc::PTRACE_O_TRACEVFORK
    | libc::PTRACE_O_TRACECLONE
    | libc::PTRACE_O_TRACEEXEC
    | libc::PTRACE_O_TRACESYSGOOD;

pub(super) struct TracedProgram {
    /// The process of the command; `None` for a running process.
    pub(super) command: Option<i32>,
    pub(super) threads: BTreeSet<i32>,
    /// Why every system call stops the program; `None` if only the watched calls stop it.
    pub(super) slow: Option<SlowReason>,
    /// Whether to detach after the first listen() that succeeds.
    pub(super) detach: bool,
}

/// Starts a command through the stub. When this function returns, the stub is traced, and is about to execute the command.
pub(super) fn command(words: &[OsString], detach: bool, signals: &CommandSignals) -> Result<TracedProgram, WatchError> {
    // Before Linux 5.9, /proc does not show the number of filters. Then twtool could not detect the filter, so it sets none.
    let own_filters = target::seccomp_filters(std::process::id().cast_signed());
    let wants_filter = !detach && own_filters.is_some();
    let child = signals.with_old_mask(|| stub::spawn(words, wants_filter)).map_err(failed("starting the program"))?;
    let pid = i32::try_from(child.id()).map_err(io::Error::other).map_err(failed("starting the program"))?;
    let seized = await_stop(pid).and_then(|()| {
        let filtered = wants_filter && target::seccomp_filters(pid) > own_filters;
        let slow = match (detach, filtered) {
            (true, _) => Some(SlowReason::Detach),
            (false, true) => None,
            (false, false) => Some(SlowReason::NoFilter),
        };
        // With a filter, the processes must end together with twtool: without a tracer their calls would fail with ENOSYS.
        let options = if filtered { FOLLOW | libc::PTRACE_O_TRACESECCOMP | libc::PTRACE_O_EXITKILL } else { FOLLOW };
        request(TraceRequest::Seize, pid, options)?;
        Ok(slow)
    });
    let slow = seized.map_err(|error| {
        let why = refusal(&error, pid, true);
        // If the stub has already ended, kill() may fail, which does not matter.
        let _ = to_pid(pid).and_then(|pid| {
            kill_process(pid, Signal::KILL)?;
            Ok(waitpid(Some(pid), WaitOptions::empty())?)
        });
        why
    })?;
    to_pid(pid).and_then(|pid| Ok(kill_process(pid, Signal::CONT)?)).map_err(failed("kill()"))?;
    Ok(TracedProgram { command: Some(pid), threads: BTreeSet::from([pid]), slow, detach })
}

fn to_pid(pid: i32) -> io::Result<Pid> {
    Pid::from_raw(pid).ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
}

fn await_stop(pid: i32) -> io::Result<()> {
    loop {
        match waitpid(Some(to_pid(pid)?), WaitOptions::UNTRACED) {
            Ok(Some((_, status))) if status.stopped() => return Ok(()),
            Ok(Some(_)) => return Err(io::Error::other("it ended before it could be watched")),
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

pub(super) fn process(pid: i32) -> Result<TracedProgram, WatchError> {
    let mut threads = BTreeSet::new();
    loop {
        // If a traced thread starts a thread meanwhile, the kernel attaches twtool to the new thread. A thread that is not traced yet can
        // also start a thread. The next iteration finds it.
        let names = folder::names_in(&format!("/proc/{pid}/task")).map_err(|_| unlisted_threads_error(pid))?;
        let new: Vec<i32> =
            names.iter().filter_map(|name| name.to_str()?.parse().ok()).filter(|tid| !threads.contains(tid)).collect();
        if new.is_empty() {
            break;
        }
        for tid in new {
            match request(TraceRequest::Seize, tid, FOLLOW).and_then(|()| request(TraceRequest::Interrupt, tid, 0)) {
                Ok(()) => drop(threads.insert(tid)),
                // The thread has ended.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                // twtool traces the thread already, because it traced the thread that started it.
                Err(_) if target::tracer(tid) == Some(std::process::id().cast_signed()) => drop(threads.insert(tid)),
                Err(error) => return Err(refusal(&error, pid, false)),
            }
        }
    }
    if threads.is_empty() {
        Err(no_such_process(pid))
    } else {
        Ok(TracedProgram { command: None, threads, slow: Some(SlowReason::Running), detach: false })
    }
}

/// The error for a process whose threads /proc does not list.
fn unlisted_threads_error(pid: i32) -> WatchError {
    // kill(2) also finds a process that /proc hides.
    let exists = to_pid(pid).and_then(|pid| Ok(test_kill_process(pid)?));
    match exists {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => no_such_process(pid),
        _ => WatchError::Unwatchable(UnwatchableReason {
            why: format!("process {pid} cannot be watched: /proc hides its threads (hidepid)"),
            hint: "run twtool as root (CAP_SYS_PTRACE), or start the program with twtool: `twtool why -- ./server`",
        }),
    }
}

fn no_such_process(pid: i32) -> WatchError {
    WatchError::Unwatchable(UnwatchableReason {
        why: format!("process {pid} cannot be watched: this process does not exist"),
        hint: "`ps -e` lists the processes of this pid namespace",
    })
}
