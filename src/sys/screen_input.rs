//! Waits for everything that a screen reacts to: keys, signals, finished work of another thread, and time.
//!
//! One thread waits for all of them with one poll(2). So nothing reads the terminal while another program uses it, and a
//! signal arrives between two steps of the screen, never within one.

use std::io::{self, PipeReader, PipeWriter, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// The signals that a screen handles. SIGINT comes from other processes only, because Ctrl-C is a key in raw mode.
const HELD: [Signal; 6] =
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGTSTP, Signal::SIGCONT, Signal::SIGWINCH];

/// What the screen has to react to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wakeup {
    /// A key can be read.
    Key,
    /// The terminal has another size.
    Resize,
    /// A [`Waker`] was used.
    Work,
    /// A signal that ends or stops the program, once the terminal is restored: see [`ScreenInput::let_through`].
    Signal(HeldSignal),
    /// The program was stopped and continues. A shell may have changed the terminal meanwhile.
    Continued,
    /// The terminal is gone.
    HangUp,
    /// The time is over.
    Time,
}

/// A signal that was held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldSignal(Signal);

impl HeldSignal {
    /// What Ctrl-C sends outside of raw mode.
    pub const INTERRUPT: Self = Self(Signal::SIGINT);
    /// What Ctrl-Z sends outside of raw mode.
    pub const STOP: Self = Self(Signal::SIGTSTP);
}

/// The input of a screen. The signals are held back until it is dropped.
pub struct ScreenInput {
    signals: SignalFd,
    before: SigSet,
    work: PipeReader,
    waker: PipeWriter,
}

/// Wakes the screen from another thread.
pub struct Waker(PipeWriter);

impl Waker {
    /// Makes [`ScreenInput::wait`] return.
    pub fn wake(&self) {
        // The pipe has room, because the screen reads each byte before it asks for more work.
        let _ = (&self.0).write(&[0]);
    }
}

fn held() -> SigSet {
    HELD.into_iter().collect()
}

impl ScreenInput {
    /// Holds the signals back in the calling thread, and in the threads that it starts afterwards.
    ///
    /// # Errors
    /// A descriptor cannot be made.
    pub fn open() -> io::Result<Self> {
        let signals = SignalFd::with_flags(&held(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let (work, waker) = io::pipe()?;
        let before = held().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        Ok(Self { signals, before, work, waker })
    }

    /// Creates a waker for another thread.
    ///
    /// # Errors
    /// The descriptor cannot be copied.
    pub fn waker(&self) -> io::Result<Waker> {
        self.waker.try_clone().map(Waker)
    }

    /// Waits, at most for this time.
    ///
    /// # Errors
    /// poll(2) fails.
    pub fn wait(&self, time: Option<Duration>) -> io::Result<Wakeup> {
        let end = time.map(|time| Instant::now() + time);
        let stdin = io::stdin();
        loop {
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            // poll(2) counts whole milliseconds. The time is rounded up, so that the loop does not spin at its end.
            let rounded = |left| PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX);
            let timeout = left.map_or(PollTimeout::NONE, rounded);
            let poll_in = |descriptor| PollFd::new(descriptor, PollFlags::POLLIN);
            let descriptors: [BorrowedFd; 3] = [self.signals.as_fd(), self.work.as_fd(), stdin.as_fd()];
            let mut descriptors = descriptors.map(poll_in);
            match poll(&mut descriptors, timeout) {
                Ok(0) if left == Some(Duration::ZERO) => return Ok(Wakeup::Time),
                Ok(0) | Err(Errno::EINTR) => continue,
                Ok(_) => {}
                Err(errno) => return Err(errno.into()),
            }
            let [signals, work, stdin] = descriptors.map(|one| one.revents().unwrap_or(PollFlags::empty()));
            if !signals.is_empty()
                && let Some(wakeup) = self.signal()?
            {
                return Ok(wakeup);
            }
            if !work.is_empty() {
                (&self.work).read_exact(&mut [0])?;
                return Ok(Wakeup::Work);
            }
            // crossterm would read from a terminal that is gone without end.
            if stdin.intersects(PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL) {
                return Ok(Wakeup::HangUp);
            }
            if !stdin.is_empty() {
                return Ok(Wakeup::Key);
            }
        }
    }

    fn signal(&self) -> io::Result<Option<Wakeup>> {
        let came = self.signals.read_signal()?.and_then(|info| i32::try_from(info.ssi_signo).ok());
        Ok(came.and_then(|number| Signal::try_from(number).ok()).map(|signal| match signal {
            Signal::SIGWINCH => Wakeup::Resize,
            Signal::SIGCONT => Wakeup::Continued,
            other => Wakeup::Signal(HeldSignal(other)),
        }))
    }

    /// Gives the signal its normal effect. Returns if the program was stopped and continues, or if it was started with the
    /// signal ignored.
    ///
    /// # Errors
    /// The signal cannot be raised.
    pub fn let_through(&self, signal: HeldSignal) -> io::Result<()> {
        self.released(|| raise(signal.0))??;
        Ok(())
    }

    /// Calls a function that starts a program, which inherits the mask of signals.
    ///
    /// # Errors
    /// The mask cannot be changed.
    pub fn released<T>(&self, run: impl FnOnce() -> T) -> io::Result<T> {
        self.before.thread_set_mask()?;
        let result = run();
        held().thread_block()?;
        Ok(result)
    }

    /// Discards the signals that came while another program used the terminal: Ctrl-C there is for that program.
    ///
    /// # Errors
    /// The signals cannot be read.
    pub fn discard_interrupts(&self) -> io::Result<Option<Wakeup>> {
        loop {
            match self.signal()? {
                Some(Wakeup::Signal(signal)) if signal != HeldSignal::INTERRUPT && signal != HeldSignal::STOP => {
                    return Ok(Some(Wakeup::Signal(signal)));
                }
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }
}

impl Drop for ScreenInput {
    fn drop(&mut self) {
        // This cannot fail, because the mask was valid before.
        let _ = self.before.thread_set_mask();
    }
}
