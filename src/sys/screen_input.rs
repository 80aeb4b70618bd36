//! Waits for everything that a screen reacts to: keys, signals, finished work of another thread, and time.
//!
//! One thread waits for all of them with one poll(2). So nothing reads the terminal while a program that the screen has started uses the
//! terminal.

use std::io::{self, PipeReader, PipeWriter, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, raise};

use super::screen_output::ScreenOutput;
use super::screen_signals::{ScreenSignals, blocked_signals};

/// What the screen has to react to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wakeup {
    /// A key can be read.
    Key,
    /// The terminal has another size.
    Resize,
    /// A [`Waker`] was used.
    Work,
    /// A signal that ends or stops the program. Restore the terminal, then call [`ScreenInput::deliver`].
    Signal(PendingSignal),
    /// The program was stopped and continues. A shell may have changed the terminal meanwhile.
    Continued,
    /// The terminal is gone.
    HangUp,
    /// The time limit of [`ScreenInput::wait`] has passed.
    Time,
}

/// A signal for [`ScreenInput::deliver`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PendingSignal(Signal);

impl PendingSignal {
    /// The signal that Ctrl-C sends if the terminal is not in raw mode.
    pub const INTERRUPT: Self = Self(Signal::SIGINT);
    /// The signal that Ctrl-Z sends if the terminal is not in raw mode.
    pub const STOP: Self = Self(Signal::SIGTSTP);
}

/// The input of a screen. The signals of a screen are blocked until this value is dropped.
pub struct ScreenInput {
    signals: Rc<ScreenSignals>,
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

impl ScreenInput {
    /// Opens the input. Blocks the signals of a screen in the calling thread, and in the threads that it starts afterwards.
    ///
    /// # Errors
    /// A descriptor cannot be created.
    pub fn open() -> io::Result<Self> {
        let (work, waker) = io::pipe()?;
        Ok(Self { signals: Rc::new(ScreenSignals::block()?), work, waker })
    }

    /// Creates a waker for another thread.
    ///
    /// # Errors
    /// The descriptor cannot be copied.
    pub fn waker(&self) -> io::Result<Waker> {
        self.waker.try_clone().map(Waker)
    }

    /// Opens the output of the screen.
    ///
    /// # Errors
    /// The terminal cannot be opened.
    pub fn output(&self) -> io::Result<ScreenOutput> {
        ScreenOutput::new(Rc::clone(&self.signals))
    }

    /// Whether a signal has been read that [`Self::wait`] has not reported yet. If a write has failed and this signal ends or stops
    /// the program, the signal can be the reason.
    #[must_use]
    pub fn has_unreported_signal(&self) -> bool {
        self.signals.has_unreported_signal()
    }

    /// Waits for an event that the screen must react to, at most for `time`.
    ///
    /// # Errors
    /// A system call fails.
    pub fn wait(&self, time: Option<Duration>) -> io::Result<Wakeup> {
        let end = time.map(|time| Instant::now() + time);
        let stdin = io::stdin();
        loop {
            if self.signals.has_unreported_signal()
                && let Some(wakeup) = self.signal()?
            {
                return Ok(wakeup);
            }
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
            // If the terminal is gone, crossterm would try to read from it forever.
            if stdin.intersects(PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL) {
                return Ok(Wakeup::HangUp);
            }
            if !stdin.is_empty() {
                return Ok(Wakeup::Key);
            }
        }
    }

    fn signal(&self) -> io::Result<Option<Wakeup>> {
        Ok(self.signals.next()?.map(|signal| match signal {
            Signal::SIGWINCH => Wakeup::Resize,
            Signal::SIGCONT => Wakeup::Continued,
            other => Wakeup::Signal(PendingSignal(other)),
        }))
    }

    /// Gives the signal its normal effect. Returns if that does not end the program: it was stopped and continues, or ignores the signal.
    ///
    /// # Errors
    /// The signal cannot be raised.
    pub fn deliver(&self, signal: PendingSignal) -> io::Result<()> {
        self.with_old_mask(|| raise(signal.0))??;
        Ok(())
    }

    /// Calls a function with the old signal mask. A program that the function starts inherits this mask.
    ///
    /// # Errors
    /// The mask cannot be changed.
    pub fn with_old_mask<T>(&self, run: impl FnOnce() -> T) -> io::Result<T> {
        self.signals.before.thread_set_mask()?;
        let result = run();
        blocked_signals().thread_block()?;
        Ok(result)
    }

    /// Discards the signals that the terminal and the shell sent while another program used the terminal. For example, a Ctrl-C was
    /// meant for that program.
    ///
    /// # Errors
    /// The signals cannot be read.
    pub fn discard_terminal_signals(&self) -> io::Result<()> {
        self.signals.discard(&[Signal::SIGINT, Signal::SIGTSTP, Signal::SIGCONT, Signal::SIGWINCH])
    }

    /// Discards each SIGCONT that has arrived, so that [`Self::wait`] does not report [`Wakeup::Continued`] for it.
    ///
    /// # Errors
    /// The signals cannot be read.
    pub fn discard_continued(&self) -> io::Result<()> {
        self.signals.discard(&[Signal::SIGCONT])
    }
}

impl Drop for ScreenInput {
    fn drop(&mut self) {
        // This cannot fail, because the mask was valid before.
        let _ = self.signals.before.thread_set_mask();
    }
}
