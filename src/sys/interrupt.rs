//! Blocks signals, so that twtool can finish a task before a signal ends twtool: erase its output on the terminal, or clean up after a
//! bind.
//!
//! [`Interrupts`] blocks SIGINT and SIGTERM and reads them from a descriptor (signalfd(2)), so that no handler interrupts the code.
//! When it is dropped, the signals have their normal effect again. [`BlockedSignals`] blocks all signals for a short time.

use std::io;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
pub use nix::sys::signal::Signal;
use nix::sys::signal::{SigSet, SigmaskHow, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Blocks SIGINT and SIGTERM until it is dropped.
pub struct Interrupts {
    descriptor: SignalFd,
    before: SigSet,
}

impl Interrupts {
    /// Blocks the signals in the calling thread and in the threads that it starts.
    pub fn block() -> io::Result<Self> {
        let mut blocked = SigSet::empty();
        blocked.add(Signal::SIGINT);
        blocked.add(Signal::SIGTERM);
        let descriptor = SignalFd::with_flags(&blocked, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let before = blocked.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        Ok(Self { descriptor, before })
    }

    /// Sleeps for `time`. If a signal arrives earlier, returns that signal.
    pub fn wait(&self, time: Duration) -> io::Result<Option<Signal>> {
        let end = Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            // poll(2) counts whole milliseconds. The time is rounded up, so that the loop does not spin at its end.
            let timeout = PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX);
            let mut descriptors = [PollFd::new(self.descriptor.as_fd(), PollFlags::POLLIN)];
            match poll(&mut descriptors, timeout) {
                Ok(0) if end <= Instant::now() => return Ok(None),
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => {
                    let came = self.descriptor.read_signal()?.and_then(|info| i32::try_from(info.ssi_signo).ok());
                    return Ok(came.and_then(|number| Signal::try_from(number).ok()));
                }
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// The descriptor that becomes readable when a signal arrives.
    #[cfg(feature = "trace")]
    #[must_use]
    pub fn descriptor(&self) -> std::os::fd::BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    /// Unblocks the signals in the calling thread, so that pending signals are delivered. They remain blocked in other threads.
    pub fn release(&self) {
        // This cannot fail, because the mask was valid before.
        let _ = self.before.thread_set_mask();
    }

    /// Raises a signal with the signal mask from before [`Self::block`], so that it has its normal effect: usually it ends the program.
    pub fn deliver(&self, signal: Signal) -> io::Result<()> {
        let blocked = self.before.thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
        raise(signal)?;
        blocked.thread_set_mask()?;
        Ok(())
    }
}

/// Blocks every signal in the calling thread, and in the threads that it starts. When the value is dropped, the signals are delivered.
/// SIGKILL and SIGSTOP cannot be blocked.
pub struct BlockedSignals {
    before: Option<SigSet>,
}

impl BlockedSignals {
    /// Blocks all signals.
    #[must_use]
    pub fn block_all() -> Self {
        // The call fails only for invalid arguments.
        Self { before: SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK).ok() }
    }

    /// Unblocks the signals in the calling thread. If another thread has blocked them, they remain blocked there.
    pub fn release(&self) {
        if let Some(before) = &self.before {
            let _ = before.thread_set_mask();
        }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        self.release();
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        self.release();
    }
}
