//! Blocks signals for a screen, whose input and output then read them.
//!
//! The signals are read from a descriptor (signalfd(2)), so that a signal arrives between two steps of the screen, never within one.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// The signals that end or stop the program by default, and two signals that report a change: the program continues (SIGCONT), or the
/// terminal has another size (SIGWINCH). In raw mode, SIGINT and SIGTSTP come from other processes only, because Ctrl-C and Ctrl-Z
/// are keys. The list has no signal that reports a fault of the program, no real-time signal, and none of SIGPIPE, SIGTTIN and
/// SIGTTOU.
const BLOCKED: [Signal; 17] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGVTALRM,
    Signal::SIGPROF,
    Signal::SIGIO,
    Signal::SIGPWR,
    Signal::SIGSTKFLT,
    Signal::SIGXCPU,
    Signal::SIGXFSZ,
    Signal::SIGTSTP,
    Signal::SIGCONT,
    Signal::SIGWINCH,
];

pub(super) fn blocked_signals() -> SigSet {
    BLOCKED.into_iter().collect()
}

/// Blocks signals in the thread that makes this value, and in the threads that this thread starts afterwards.
pub(super) struct ScreenSignals {
    descriptor: SignalFd,
    /// The signal mask before [`Self::block`].
    pub(super) before: SigSet,
    /// Signals that [`Self::read_all`] has read, and that the input has not reported yet.
    came: RefCell<VecDeque<Signal>>,
}

impl ScreenSignals {
    pub(super) fn block() -> io::Result<Self> {
        let descriptor = SignalFd::with_flags(&blocked_signals(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let before = blocked_signals().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        Ok(Self { descriptor, before, came: RefCell::default() })
    }

    pub(super) fn has_unreported_signal(&self) -> bool {
        !self.came.borrow().is_empty()
    }

    pub(super) fn next(&self) -> io::Result<Option<Signal>> {
        let waiting = self.came.borrow_mut().pop_front();
        if waiting.is_some() { Ok(waiting) } else { self.read() }
    }

    fn read(&self) -> io::Result<Option<Signal>> {
        let came = self.descriptor.read_signal()?.and_then(|info| i32::try_from(info.ssi_signo).ok());
        Ok(came.and_then(|number| Signal::try_from(number).ok()))
    }

    fn read_all(&self) -> io::Result<()> {
        while let Some(signal) = self.read()? {
            self.came.borrow_mut().push_back(signal);
        }
        Ok(())
    }

    /// Discards the unwanted signals that have arrived, and keeps all others for [`Self::next`].
    pub(super) fn discard(&self, unwanted: &[Signal]) -> io::Result<()> {
        self.read_all()?;
        self.came.borrow_mut().retain(|signal| !unwanted.contains(signal));
        Ok(())
    }

    /// Whether one of the signals that have arrived ends or stops the program. [`Self::next`] still returns all of them.
    pub(super) fn has_ending_signal(&self) -> io::Result<bool> {
        self.read_all()?;
        Ok(self.came.borrow().iter().any(|signal| !matches!(signal, Signal::SIGCONT | Signal::SIGWINCH)))
    }
}

impl AsFd for ScreenSignals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}
