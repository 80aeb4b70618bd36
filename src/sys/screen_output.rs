//! Writes a screen to the terminal on standard output. If the terminal accepts no text, a signal or a time limit ends the wait.
//!
//! A terminal accepts no text while its output is stopped, or while the program at its other side does not read, for example because
//! an ssh connection is stuck. A blocking write(2) would then wait, and only SIGKILL could end the program.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::screen_signals::ScreenSignals;

/// The output of a screen. A write fails if the terminal accepts no text and a signal arrives that ends or stops the program.
pub struct ScreenOutput {
    terminal: File,
    signals: Rc<ScreenSignals>,
}

impl ScreenOutput {
    pub(super) fn new(signals: Rc<ScreenSignals>) -> io::Result<Self> {
        Ok(Self { terminal: open()?, signals })
    }

    fn wait(&self) -> io::Result<()> {
        while !self.signals.has_ending_signal()? {
            let mut descriptors = [
                PollFd::new(self.terminal.as_fd(), PollFlags::POLLOUT),
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut descriptors, PollTimeout::NONE) {
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
                Ok(_) if descriptors[0].revents().is_some_and(|events| !events.is_empty()) => return Ok(()),
                Ok(_) => {}
            }
        }
        Err(io::Error::other("a signal arrived while the terminal accepted no text"))
    }
}

impl Write for ScreenOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.terminal.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait()?,
                result => return result,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Opens the terminal again with O_NONBLOCK. On the inherited descriptor, the flag would also affect the shell and other programs that
/// share it. If opening is not permitted, for example after su(1), this function returns a copy of the descriptor, and writes can block.
fn open() -> io::Result<File> {
    let again = File::options().write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open("/proc/self/fd/1");
    again.or_else(|_| io::stdout().as_fd().try_clone_to_owned().map(File::from))
}

/// Writes all bytes to the terminal within `time`.
///
/// # Errors
/// The terminal is gone, or has not accepted all bytes within `time`.
pub fn write_within(time: Duration, mut bytes: &[u8]) -> io::Result<()> {
    let mut terminal = open()?;
    let end = Instant::now() + time;
    while !bytes.is_empty() {
        match terminal.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let left = end.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "it accepts no text"));
                }
                let mut descriptors = [PollFd::new(terminal.as_fd(), PollFlags::POLLOUT)];
                let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
                match poll(&mut descriptors, timeout) {
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
