//! Watches the bind, listen and connect calls of a program, and stops the calling thread at the end of each call.
//!
//! 1. `start` starts the program through a second twtool process, the *stub*. The stub installs a seccomp filter. Of all system calls, only
//!    these three and io_uring_setup then stop the program. (The program also stops when it gets a signal, starts a process or a thread, or
//!    executes a program.) twtool attaches with PTRACE_SEIZE before the stub executes the program.
//! 2. At the beginning of a call, `target` reads the address and the options of the socket. Later the options can be different: a
//!    failed bind to a link-local address leaves SO_BINDTODEVICE set.
//! 3. At the end of the call, `tracer` reports the call with its result to an observer. The calling thread is stopped until
//!    the observer returns, so that the observer sees the state that made the call fail.
//! 4. `signals` passes twtool's own signals on to the program, and stops twtool when the program stops, so that the job
//!    control of a shell works.
//!
//! A running process (`--pid`) has no filter, twtool cannot detach from a process with a filter (`--detach`), the kernel may refuse the
//! filter, and twtool sets none before Linux 5.9. In these cases, plain PTRACE_SYSCALL stops the program at every system call.
//!
//! | | seccomp and ptrace | plain ptrace |
//! |---|---|---|
//! | requests per second of nginx, keep-alive | 0.98 of unwatched | 0.02 of unwatched |
//! | socket, bind, close (6 µs unwatched) | 90 µs | 180 µs |
//!
//! (Measured with a prototype, in paired runs, Linux 6.18, x86-64.)
//!
//! seccomp user notification was tried and rejected: twtool would get the result of a call only if it made the call itself, with its
//! own privileges.

mod arch;
mod filter;
mod ptrace;
mod refusal;
mod signals;
mod start;
mod stub;
mod target;
mod tracer;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::time::Duration;

pub use self::stub::run_stub;
use crate::model::call::{ProgramEnd, SocketCall, UnwatchableReason, WatchNote};

/// The program to watch.
#[derive(Clone, Debug)]
pub enum ProgramTarget {
    /// A program to start, with its arguments.
    Command {
        /// The words of the command; at least one.
        words: Vec<OsString>,
        /// Whether to detach after the first listen() that succeeds.
        detach: bool,
    },
    /// A running process, and the processes that it starts from now on.
    Process(i32),
}

/// An event that [`watch`] passes to its observer.
#[derive(Debug)]
pub enum ProgramEvent<'a> {
    /// A call has ended. The calling thread is stopped until the observer returns.
    Call {
        /// The call.
        call: SocketCall,
        /// The processes that are watched.
        watched: &'a BTreeSet<i32>,
    },
    /// A fact about the watch itself.
    Note(WatchNote),
}

/// How a watch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchEnd {
    /// The command has ended, and no other process is watched any more.
    Ended(ProgramEnd),
    /// The command could not be executed. The stub has reported why.
    NotStarted(ProgramEnd),
    /// With `--pid`: every watched process has ended, or twtool has detached because the timeout had passed.
    ProcessLeft,
    /// A signal ended the watch of `--pid`. The process continues to run.
    Interrupted(i32),
}

/// The reason why a program could not be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The process does not exist, or the kernel refuses to let twtool watch it.
    #[error("{}", .0.why)]
    Unwatchable(UnwatchableReason),
    /// A system call failed.
    #[error("{call} failed: {source}")]
    Failed {
        /// The call.
        call: &'static str,
        /// Its error.
        source: io::Error,
    },
}

fn failed(call: &'static str) -> impl FnOnce(io::Error) -> WatchError {
    move |source| WatchError::Failed { call, source }
}

/// Watches a program until it ends, or until `timeout` has passed. Returns how the watch ended, and how long it took. The observer gets
/// each event with the time since the start.
///
/// After `timeout`, twtool detaches from the program. It cannot detach from a process with a filter, so a command without `detach` must
/// have no timeout.
///
/// # Errors
/// The program cannot be watched.
pub fn watch(
    target: &ProgramTarget,
    timeout: Option<Duration>,
    observer: &mut dyn FnMut(ProgramEvent, Duration),
) -> Result<(WatchEnd, Duration), WatchError> {
    let signals = signals::CommandSignals::block().map_err(failed("signalfd()"))?;
    let started = match target {
        ProgramTarget::Command { words, detach } => start::command(words, *detach, &signals)?,
        ProgramTarget::Process(pid) => start::process(*pid)?,
    };
    tracer::CallTracer::new(started, signals, timeout, observer).run()
}
