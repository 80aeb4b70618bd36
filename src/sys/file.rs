//! Files that are written whole or not at all, and read whole.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

/// A file without a name until [`NewFile::finish`] gives it one, so that nothing is left behind where a program ends early.
pub struct NewFile {
    path: PathBuf,
    replace: bool,
    writer: BufWriter<File>,
}

/// The folder of a file that is named without one is the current one.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

impl NewFile {
    /// Begins the file. An existing one is refused unless `replace`; anything but a regular file is refused always, for
    /// it would be replaced and not written to.
    pub fn create(path: &Path, replace: bool) -> io::Result<Self> {
        match fs::symlink_metadata(path) {
            Ok(found) if !found.is_file() => {
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it exists and is no regular file"));
            }
            Ok(_) if !replace => return Err(io::Error::from(io::ErrorKind::AlreadyExists)),
            _ => {}
        }
        let writer = BufWriter::new(tempfile::tempfile_in(folder_of(path))?);
        Ok(Self { path: path.to_owned(), replace, writer })
    }

    /// Gives the file its name, whole.
    pub fn finish(self) -> io::Result<()> {
        let mut content = self.writer.into_inner().map_err(io::IntoInnerError::into_error)?;
        content.rewind()?;
        // A copy inside the kernel, under another name until it is whole.
        let folder = folder_of(&self.path);
        let mut file = tempfile::Builder::new().prefix(".twtool-").suffix(".partial").tempfile_in(folder)?;
        io::copy(&mut content, file.as_file_mut())?;
        let named = if self.replace { file.persist(&self.path) } else { file.persist_noclobber(&self.path) };
        named.map(drop).map_err(|error| error.error)
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// Everything in a file whose first line has at most this many bytes; of any other only the beginning.
pub fn read(path: &Path, first_line: u64) -> io::Result<Vec<u8>> {
    let mut reader = BufReader::new(File::open(path)?);
    let mut bytes = vec![];
    reader.by_ref().take(first_line).read_until(b'\n', &mut bytes)?;
    if bytes.ends_with(b"\n") {
        reader.read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}
