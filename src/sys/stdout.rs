//! Writes to standard output and reports every failure.
//!
//! The Rust runtime opens /dev/null in place of a closed descriptor 1 before main(), so `twtool list >&-` would look
//! like success. So this module checks the descriptor before the runtime starts.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

static CLOSED_AT_START: AtomicBool = AtomicBool::new(false);

extern "C" fn remember() {
    // SAFETY: fcntl(F_GETFD) only reads the state of a descriptor number; any number is allowed. nix's wrapper takes a
    // borrowed descriptor, which guarantees that it is open, but this code checks exactly that.
    #[expect(unsafe_code, reason = "no safe wrapper takes a descriptor that may be closed")]
    let closed = unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) } == -1;
    CLOSED_AT_START.store(closed, Ordering::Relaxed);
}

// SAFETY: functions in .init_array run once before main(), single-threaded, as extern "C" fn() (System V ABI). This one
// makes a system call and stores to a static. It does not need the Rust runtime.
#[expect(unsafe_code, reason = "placing a static in a named section")]
#[used]
#[unsafe(link_section = ".init_array")]
static REMEMBER: extern "C" fn() = remember;

/// A buffered writer to standard output. The caller must flush it at the end. It has its own descriptor, because std's
/// handle treats EBADF as success.
pub struct Stdout(io::Result<BufWriter<File>>);

impl Stdout {
    /// Opens the writer. If standard output is closed, writing fails, not this call.
    #[must_use]
    pub fn open() -> Self {
        if CLOSED_AT_START.load(Ordering::Relaxed) {
            return Self(Err(io::Error::from_raw_os_error(libc::EBADF)));
        }
        let descriptor = io::stdout().as_fd().try_clone_to_owned();
        Self(descriptor.map(|own| BufWriter::with_capacity(64 * 1024, File::from(own))))
    }
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Ok(writer) => writer.write(bytes),
            Err(closed) => Err(io::Error::from_raw_os_error(closed.raw_os_error().unwrap_or(libc::EBADF))),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.as_mut().map_or(Ok(()), Write::flush)
    }
}
