//! Passes the owners of closed connections from a tracer (`twtool trace --serve`) to readers, through a Unix socket. The tracer numbers the
//! closes.
//!
//! 1. A reader connects, sends `since NUMBER`, and shuts down its sending side. The released twtool 0.2.0 sends nothing.
//! 2. The tracer sends the owner of each close that it remembers and that has a larger number, and closes the connection. If the
//!    reader sent nothing, the number is 0.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::stat::{Mode, umask};

use super::errno::retry;

/// The maximum number of readers at a time. Further readers wait in the backlog of the socket.
const MAX_READERS: usize = 4;

/// The time limit for each write of the tracer, and for each read and write of a reader. Without this limit, a reader that stops
/// reading would keep memory of the tracer in use.
const PATIENCE: Duration = Duration::from_secs(5);

/// The time limit for each read of a request. It is short, because old readers send no request.
const REQUEST: Duration = Duration::from_millis(200);

const SINCE: &str = "since ";

/// The listening socket of a tracer, which answers readers.
pub struct OwnerSocket {
    listener: UnixListener,
    path: PathBuf,
    /// The inode of the socket's file, so that `drop` removes no other file.
    inode: u64,
    /// The number of readers that are being answered.
    busy: Arc<AtomicUsize>,
}

impl OwnerSocket {
    /// Creates the socket with the mode 0600. Replaces a socket that refuses connections, because no program listens on it.
    ///
    /// # Errors
    /// The path belongs to a file that is not a socket, or to a socket that a program may use, or the socket cannot be created.
    pub fn open(path: &Path) -> io::Result<Self> {
        match fs::symlink_metadata(path) {
            Ok(file) if !file.file_type().is_socket() => {
                return Err(io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    "the path is taken by a file that is no socket",
                ));
            }
            Ok(_) => remove_unused(path)?,
            Err(_) => {}
        }
        // Other users must not have access to the file, not even for a moment.
        let before = umask(Mode::from_bits_truncate(0o177));
        let bound = UnixListener::bind(path);
        umask(before);
        let listener = bound?;
        listener.set_nonblocking(true)?;
        let inode = fs::symlink_metadata(path)?.ino();
        Ok(Self { listener, path: path.to_owned(), inode, busy: Arc::default() })
    }

    /// Accepts waiting readers, until four readers are being answered.
    ///
    /// # Errors
    /// accept(2) failed. It is no error if no reader waits.
    pub fn readers(&self) -> io::Result<Vec<UnixStream>> {
        let mut readers = vec![];
        while self.busy.load(Ordering::Relaxed) + readers.len() < MAX_READERS {
            match retry(|| self.listener.accept()) {
                Ok((reader, _)) => readers.push(reader),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(readers)
    }

    /// Reads the request of a reader, and writes the answer. Both happen on another thread, so a slow reader does not delay the
    /// caller. `answer` gets the number of the request, or 0 if there is none.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn answer(
        &self,
        mut reader: UnixStream,
        answer: impl FnOnce(u64) -> Vec<u8> + Send + 'static,
    ) -> io::Result<()> {
        let busy = Arc::clone(&self.busy);
        busy.fetch_add(1, Ordering::Relaxed);
        let write = move || {
            // Errors are ignored: the reader may have closed the connection.
            let _ = reader.set_nonblocking(false);
            let _ = reader.set_read_timeout(Some(REQUEST));
            let _ = reader.set_write_timeout(Some(PATIENCE));
            let _ = reader.write_all(&answer(request(&reader)));
            busy.fetch_sub(1, Ordering::Relaxed);
        };
        let started = std::thread::Builder::new().name("reader".into()).spawn(write);
        if started.is_err() {
            self.busy.fetch_sub(1, Ordering::Relaxed);
        }
        started.map(drop)
    }
}

impl Drop for OwnerSocket {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|file| file.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// It is no error if another program removes the file first.
fn remove_unused(path: &Path) -> io::Result<()> {
    match retry(|| UnixStream::connect(path)) {
        Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another program serves this socket")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        },
        // For example EPROTOTYPE: a program may use the socket for datagrams.
        Err(error) => {
            let why = format!("the path is taken by a socket that may be in use: {error}");
            Err(io::Error::new(io::ErrorKind::AddrInUse, why))
        }
    }
}

fn request(reader: &UnixStream) -> u64 {
    let mut text = String::new();
    // If the reader sends nothing, this ends with an error after the time limit.
    let _ = reader.take(64).read_to_string(&mut text);
    text.strip_prefix(SINCE).and_then(|number| number.trim_end().parse().ok()).unwrap_or(0)
}

/// Reads the owners that a tracer serves on a socket. Requests only closes with numbers above `number`.
///
/// # Errors
/// Connecting to the socket fails, the tracer does not answer in time, or it sends more than `most` bytes.
pub fn read(path: &Path, number: u64, most: u64) -> io::Result<Vec<u8>> {
    let mut stream = retry(|| UnixStream::connect(path))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // Errors are ignored: the tracer of the released twtool 0.2.0 may have sent all owners and closed the connection already.
    let _ = writeln!(stream, "{SINCE}{number}");
    let _ = stream.shutdown(Shutdown::Write);
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut bytes = vec![];
    stream.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {most} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn readers_get_answers_through_a_private_file_that_is_removed_at_the_end() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("socket");
        let socket = OwnerSocket::open(&path).expect("a socket");
        assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o600);
        assert!(OwnerSocket::open(&path).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse));
        // The attempt to open the socket again has left a connection, which is answered first.
        let old = || {
            let mut bytes = vec![];
            UnixStream::connect(&path).expect("a socket").read_to_end(&mut bytes).expect("an answer");
            bytes
        };
        let answers = std::thread::scope(|scope| {
            let readers = [
                scope.spawn(|| read(&path, 7, 100).expect("an answer")),
                scope.spawn(|| read(&path, 0, 100).expect("an answer")),
                scope.spawn(old),
            ];
            while readers.iter().any(|reader| !reader.is_finished()) {
                for waiting in socket.readers().expect("readers") {
                    socket.answer(waiting, |number| format!("from {number}").into_bytes()).expect("answered");
                }
            }
            readers.map(|reader| String::from_utf8(reader.join().expect("a reader")).expect("text"))
        });
        assert_eq!(answers, ["from 7", "from 0", "from 0"]);
        drop(socket);
        assert!(!path.exists());
        assert!(read(&path, 0, 100).is_err());
    }

    #[test]
    fn a_socket_without_a_server_is_replaced_but_another_file_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("socket");
        drop(UnixListener::bind(&path).expect("a socket"));
        drop(OwnerSocket::open(&path).expect("it is replaced"));
        fs::write(&path, "mine").expect("written");
        assert!(OwnerSocket::open(&path).is_err());
        assert_eq!(fs::read_to_string(&path).expect("a file"), "mine");
    }

    #[test]
    fn a_socket_that_its_program_has_just_removed_is_no_error() {
        let folder = tempfile::tempdir().expect("a folder");
        remove_unused(&folder.path().join("socket")).expect("nothing to remove");
    }

    #[test]
    fn only_a_socket_that_refuses_connections_is_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("socket");
        let datagrams = std::os::unix::net::UnixDatagram::bind(&path).expect("a socket");
        assert!(OwnerSocket::open(&path).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse));
        assert!(path.exists(), "a program uses the socket");
        drop(datagrams);
        assert!(OwnerSocket::open(&path).is_ok());
        drop(UnixListener::bind(&path).expect("a socket"));
        assert!(OwnerSocket::open(&path).is_ok());
    }
}
