//! Time that passes until a signal would end the program, so that there is a moment to tidy up the terminal first.
//!
//! SIGINT and SIGTERM are blocked and read from a descriptor (signalfd(2)), so that no handler has to run between two
//! instructions; afterwards they do what they would have done.

use std::io;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Holds the signals back while it lives.
pub struct Interrupts {
    descriptor: SignalFd,
    before: SigSet,
}

impl Interrupts {
    /// Begins to hold them back, in the calling thread and those that it starts.
    pub fn hold() -> io::Result<Self> {
        let mut held = SigSet::empty();
        held.add(Signal::SIGINT);
        held.add(Signal::SIGTERM);
        let descriptor = SignalFd::with_flags(&held, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let before = held.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        Ok(Self { descriptor, before })
    }

    /// Lets time pass; a signal that comes first is returned.
    pub fn wait(&self, time: Duration) -> io::Result<Option<Signal>> {
        let end = Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            // poll(2) counts whole milliseconds: rounded up, so that no time is spent in turning round.
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

    /// Lets them through to the calling thread, those too that came meanwhile; other threads hold them back still.
    pub fn release(&self) {
        // It was a valid mask before.
        let _ = self.before.thread_set_mask();
    }

    /// Lets a signal that was held back do what it does: end the program, unless whoever started it has it ignored.
    pub fn let_through(&self, signal: Signal) -> io::Result<()> {
        let held = self.before.thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
        raise(signal)?;
        held.thread_set_mask()?;
        Ok(())
    }
}

/// Holds back every signal in the calling thread, and in the threads that it starts, while this lives. They are delivered
/// afterwards. SIGKILL and SIGSTOP cannot be held back.
pub struct Held {
    before: Option<SigSet>,
}

impl Held {
    /// Begins to hold them back.
    #[must_use]
    pub fn all() -> Self {
        // It fails for invalid arguments only.
        Self { before: SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK).ok() }
    }

    /// Lets them through to the calling thread. Where that is not the thread that held them back, the other still does.
    pub fn release(&self) {
        if let Some(before) = &self.before {
            let _ = before.thread_set_mask();
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.release();
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        self.release();
    }
}
