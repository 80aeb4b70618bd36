//! Writes a file for the textfile collector of node_exporter. The file appears complete or not at all.

use std::io::{self, Write as _};
use std::path::Path;

use crate::sys::file::NewFile;

/// Writes or replaces the file. node_exporter runs as its own user, so every user can read a new file, unless the umask prevents this.
/// An existing file keeps its owner and mode.
///
/// # Errors
/// The file cannot be written, or the name belongs to something other than a regular file.
pub fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut file = NewFile::create_public(path, true)?;
    file.write_all(text.as_bytes())?;
    file.finish()
}
