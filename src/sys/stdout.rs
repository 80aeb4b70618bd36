//! Writes to standard output and reports every failure.
//!
//! Before main(), the Rust runtime opens /dev/null in place of a closed descriptor 1, so `twtool list >&-` would appear to succeed.
//! The module `inherited` records whether the descriptor was closed.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;

use super::inherited;

/// A buffered writer to standard output. The caller must flush it at the end. It does not use std's handle, because that handle
/// treats EBADF as success.
pub struct Stdout(io::Result<BufWriter<File>>);

impl Stdout {
    /// Opens the writer. If standard output is closed, this call succeeds, and each write fails.
    #[must_use]
    pub fn open() -> Self {
        if inherited::stdout_was_closed() {
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
