//! Passes the signals that twtool gets to the command that it watches, and after the end of the command to the other processes that the
//! command started.
//!
//! 1. All signals are blocked, and read from a descriptor (signalfd(2)).
//! 2. A signal that a process sent is passed on. But if the sender signalled the whole process group, the command got its own copy.
//!    twtool sees every signal that reaches the command, and does not pass on a signal if the command got one with the same number from
//!    the same sender in the last second (`SAME_CALL`). If the command's copy is still pending when twtool passes on a signal, the kernel
//!    merges the two, except real-time signals (signal(7)).
//! 3. A signal that the terminal sent (Ctrl-C) has also reached the command if the command is in twtool's process group. Otherwise
//!    twtool passes it on.

use std::io;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, getpgid, getpgrp};

/// The largest code of a signal that a process sent (kill(2), sigqueue(3), tgkill(2)). A signal of the terminal has a larger code
/// (sigaction(2)).
const SI_USER: i32 = 0;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Arrival {
    pub(super) signal: i32,
    pub(super) code: i32,
    pub(super) sender: i32,
}

/// Keeps all signals blocked, and reads them. Dropping this value restores the old signal mask.
pub(super) struct CommandSignals {
    descriptor: SignalFd,
    before: SigSet,
    /// Signals that processes sent to the command. twtool may still get a copy of each.
    seen: Vec<(Arrival, Instant)>,
}

/// The maximum time between the command's copy and twtool's copy of a signal to the process group. The kernel sends both copies in one
/// system call, so twtool reads both within a much shorter time.
const SAME_CALL: Duration = Duration::from_secs(1);

impl CommandSignals {
    /// Blocks all signals in this thread, and in the threads that it starts.
    pub(super) fn block() -> io::Result<Self> {
        let all = SigSet::all();
        let descriptor = SignalFd::with_flags(&all, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let before = all.thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
        Ok(Self { descriptor, before, seen: vec![] })
    }

    /// Runs a function with the old signal mask. A process that the function starts inherits this mask.
    pub(super) fn with_old_mask<T>(&self, run: impl FnOnce() -> T) -> T {
        // This cannot fail, because both masks were valid before.
        let _ = self.before.thread_set_mask();
        let result = run();
        let _ = SigSet::all().thread_set_mask();
        result
    }

    /// Waits for a signal, at most for `time`. SIGCHLD ends the wait, too: the kernel sends it at each stop of the program.
    pub(super) fn wait(&self, time: Option<Duration>) -> io::Result<()> {
        let timeout = match time {
            None => PollTimeout::NONE,
            Some(time) => PollTimeout::try_from(time + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX),
        };
        match poll(&mut [PollFd::new(self.descriptor.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Reads the signals that have arrived, and leaves out SIGCHLD.
    pub(super) fn read_arrived(&self) -> io::Result<Vec<Arrival>> {
        let mut arrived = vec![];
        while let Some(info) = self.descriptor.read_signal()? {
            let signal = info.ssi_signo.cast_signed();
            if signal != libc::SIGCHLD {
                arrived.push(Arrival { signal, code: info.ssi_code, sender: info.ssi_pid.cast_signed() });
            }
        }
        Ok(arrived)
    }

    /// Records a signal that the command is about to get.
    pub(super) fn reached_command(&mut self, arrival: Arrival) {
        let now = Instant::now();
        self.seen.retain(|(_, at)| now.duration_since(*at) < SAME_CALL);
        if arrival.code <= SI_USER && arrival.sender != std::process::id().cast_signed() {
            self.seen.push((arrival, now));
        }
    }

    /// Passes a signal on to these processes, unless they have already got a copy of it.
    pub(super) fn pass_on(&mut self, arrival: Arrival, to: &[i32]) {
        let sent_to_group = self.seen.iter().position(|(seen, at)| *seen == arrival && at.elapsed() < SAME_CALL);
        if let Some(at) = sent_to_group {
            self.seen.remove(at);
            return;
        }
        let terminal = arrival.code > SI_USER;
        for pid in to {
            if !terminal || getpgid(Some(Pid::from_raw(*pid))).is_ok_and(|group| group != getpgrp()) {
                send(*pid, arrival.signal);
            }
        }
    }
}

impl Drop for CommandSignals {
    fn drop(&mut self) {
        // This cannot fail, because the mask was valid before.
        let _ = self.before.thread_set_mask();
    }
}

/// Sends a signal. The process may have ended.
pub(super) fn send(pid: i32, signal: i32) {
    // SAFETY: kill takes two numbers.
    #[expect(unsafe_code, reason = "the safe wrappers do not have real-time signals")]
    let _ = unsafe { libc::kill(pid, signal) };
}

pub(super) fn stop_here() {
    let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGSTOP);
}
