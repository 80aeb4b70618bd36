//! Files: regular ones read within bounds, and new ones that appear whole or not at all.
//!
//! A new file has no name while it is written (O_TMPFILE in open(2)): whatever ends the program, the kernel frees it. Some
//! filesystems have no such files. There the file has a name of its own, which is removed when writing fails, and when one
//! of `ENDING` arrives; SIGKILL leaves it.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufWriter, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, RenameFlags, Stat, Uid};
use rustix::io::{Errno, retry_on_intr};

use super::errno::retry;

/// Signals that end a program unless it has a handler, and that are sent to programs that do nothing wrong.
const ENDING: [Signal; 13] = [
    Signal::SIGALRM,
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGIO,
    Signal::SIGPROF,
    Signal::SIGPWR,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGVTALRM,
    Signal::SIGXCPU,
    Signal::SIGXFSZ,
];

/// Opens a regular file. Anything else is refused: a FIFO would wait for a writer, and a device has no end.
pub fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    if retry(|| file.metadata())?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"))
    }
}

/// Reads a regular file of at most this many bytes.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![];
    open(path)?.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {most} bytes")));
    }
    Ok(bytes)
}

/// Reads the next line, with its line feed, in place of the last one; an empty line is the end of the file.
pub fn read_line(reader: &mut impl BufRead, most: u64, line: &mut Vec<u8>) -> io::Result<()> {
    line.clear();
    reader.take(most.saturating_add(1)).read_until(b'\n', line)?;
    if line.len() as u64 > most {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a line has more than {most} bytes")));
    }
    Ok(())
}

/// A file that gets its name from [`NewFile::finish`].
pub struct NewFile {
    place: Place,
    replace: bool,
    writer: BufWriter<File>,
    /// The name that it has until then, where it has to have one.
    partial: Option<Partial>,
}

impl NewFile {
    /// Begins the file. An existing one is refused unless `replace`; anything but a regular file is refused always, because
    /// it would be replaced and not written to.
    pub fn create(path: &Path, replace: bool) -> io::Result<Self> {
        let place = Place::of(path)?;
        let replaced = place.check(replace)?;
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let (file, partial) =
            match retry_on_intr(|| rustix::fs::openat(&place.folder, c".", flags | OFlags::TMPFILE, mode)) {
                Ok(file) => (file, None),
                // EISDIR comes from kernels before 3.11, and from filesystems that do not know the flag.
                Err(Errno::OPNOTSUPP | Errno::ISDIR) => {
                    let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
                    let (partial, file) =
                        Partial::new(&place, |name| rustix::fs::openat(&place.folder, name, flags, mode))?;
                    (file, Some(partial))
                }
                Err(error) => return Err(error.into()),
            };
        if let Some(replaced) = replaced {
            keep_owner_and_mode(&file, &replaced)?;
        }
        Ok(Self { place, replace, writer: BufWriter::new(file.into()), partial })
    }

    /// Lets [`Self::finish`] fail where the name is taken, whatever was said to [`Self::create`].
    pub fn keep_existing(&mut self) {
        self.replace = false;
    }

    /// Gives the file its name, whole.
    pub fn finish(self) -> io::Result<()> {
        let Self { place, replace, writer, partial } = self;
        let file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
        let Some(partial) = partial else {
            // linkat(2) shows this way for callers without the capability that AT_EMPTY_PATH needs. The descriptors are those
            // of this thread, which may have unshared them.
            let unnamed = format!("/proc/thread-self/fd/{}", file.as_raw_fd());
            let link =
                |name: &OsString| rustix::fs::linkat(CWD, &unnamed, &place.folder, name, AtFlags::SYMLINK_FOLLOW);
            return match retry_on_intr(|| link(&place.name)) {
                // A name can replace another, a link cannot.
                Err(Errno::EXIST) if replace => Partial::new(&place, link)?.0.rename(&place, true),
                linked => Ok(linked?),
            };
        };
        partial.rename(&place, replace)
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

/// A name in a folder. Every operation uses the same folder, whatever is moved to its path meanwhile.
struct Place {
    folder: Arc<OwnedFd>,
    name: OsString,
}

impl Place {
    fn of(path: &Path) -> io::Result<Self> {
        let name = path.file_name().filter(|_| !path.as_os_str().as_bytes().ends_with(b"/"));
        let name = name.ok_or_else(|| io::Error::new(io::ErrorKind::IsADirectory, "it is not the name of a file"))?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = retry_on_intr(|| rustix::fs::open(folder, flags, Mode::empty()))?;
        Ok(Self { folder: folder.into(), name: name.to_owned() })
    }

    /// Refuses a name that a file may not take, and returns what is replaced.
    fn check(&self, replace: bool) -> io::Result<Option<Stat>> {
        match retry_on_intr(|| rustix::fs::statat(&self.folder, &self.name, AtFlags::SYMLINK_NOFOLLOW)) {
            Ok(found) if replace && FileType::from_raw_mode(found.st_mode) == FileType::RegularFile => Ok(Some(found)),
            Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Gives the new file the owner, the group and the permissions of the one that it replaces. A file of another user is not
/// replaced where the caller may not give files away, because the other user would lose it.
fn keep_owner_and_mode(file: &OwnedFd, replaced: &Stat) -> io::Result<()> {
    let new = rustix::fs::fstat(file)?;
    let (uid, gid) = (replaced.st_uid, replaced.st_gid);
    if (new.st_uid, new.st_gid) != (uid, gid) {
        let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        retry_on_intr(|| rustix::fs::fchown(file, owner.0, owner.1)).map_err(|errno| {
            let error = io::Error::from(errno);
            io::Error::new(error.kind(), format!("its owner (uid {uid}, gid {gid}) cannot be kept: {error}"))
        })?;
    }
    // After the owner, because a change of it clears bits of the mode.
    Ok(retry_on_intr(|| rustix::fs::fchmod(file, Mode::from_raw_mode(replaced.st_mode & 0o777)))?)
}

/// The names of files that are being written, for the handler of signals.
static PARTIALS: Mutex<Vec<(Arc<OwnedFd>, OsString)>> = Mutex::new(vec![]);

fn partials() -> MutexGuard<'static, Vec<(Arc<OwnedFd>, OsString)>> {
    PARTIALS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A name beside the final one, which is removed with this.
struct Partial {
    folder: Arc<OwnedFd>,
    name: OsString,
}

impl Partial {
    /// Makes the file under a name that does not exist yet.
    fn new<T>(place: &Place, make: impl Fn(&OsString) -> Result<T, Errno>) -> io::Result<(Self, T)> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        catch_signals();
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = OsString::from(format!(".twtool-{}-{number}.partial", std::process::id()));
            // The handler knows the name before the file exists, so that no signal comes between.
            partials().push((Arc::clone(&place.folder), name.clone()));
            match retry_on_intr(|| make(&name)) {
                Ok(new) => return Ok((Self { folder: Arc::clone(&place.folder), name }, new)),
                Err(error) => {
                    partials().retain(|(_, other)| *other != name);
                    // A process of the same number has left it.
                    if error != Errno::EXIST || number == 1000 {
                        return Err(error.into());
                    }
                }
            }
        }
    }

    /// Gives the file its final name.
    fn rename(self, place: &Place, replace: bool) -> io::Result<()> {
        place.check(replace)?;
        let Self { folder, name } = &self;
        if replace {
            return Ok(retry_on_intr(|| rustix::fs::renameat(folder, name, folder, &place.name))?);
        }
        let rename = || rustix::fs::renameat_with(folder, name, folder, &place.name, RenameFlags::NOREPLACE);
        match retry_on_intr(rename) {
            // A filesystem or kernel without the flag. The other name is removed with this value.
            Err(Errno::INVAL | Errno::NOSYS) => {
                Ok(retry_on_intr(|| rustix::fs::linkat(folder, name, folder, &place.name, AtFlags::empty()))?)
            }
            renamed => Ok(renamed?),
        }
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        let _ = rustix::fs::unlinkat(&self.folder, &self.name, AtFlags::empty());
        partials().retain(|(_, other)| *other != self.name);
    }
}

/// Removes the partial file and ends the program, as the signal would without this.
extern "C" fn remove_and_end(signal: libc::c_int) {
    // The lock is taken only where the file does not exist yet, or not any more.
    for (folder, name) in PARTIALS.try_lock().iter().flat_map(|partials| partials.iter()) {
        let _ = rustix::fs::unlinkat(folder, name, AtFlags::empty());
    }
    // SA_RESETHAND has brought back the signal's own action.
    if let Ok(signal) = Signal::try_from(signal) {
        let _ = raise(signal);
    }
}

/// Has the partial file removed by signals that would end the program.
#[expect(unsafe_code, reason = "no safe wrapper sets a handler")]
fn catch_signals() {
    let action = SigAction::new(SigHandler::Handler(remove_and_end), SaFlags::SA_RESETHAND, SigSet::empty());
    for signal in ENDING {
        // SAFETY: the handler calls only unlinkat(2) and raise(3), and tries a lock without waiting for it.
        let before = unsafe { sigaction(signal, &action) };
        if let Ok(before) = before
            && !matches!(before.handler(), SigHandler::SigDfl)
        {
            // nohup(1) has it ignored, and it stays so. SAFETY: this was the action before.
            let _ = unsafe { sigaction(signal, &before) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_within_bounds_are_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        std::fs::write(&path, "four").expect("written");
        assert_eq!(read(&path, 4).expect("read"), b"four");
        assert_eq!(read(&path, 3).map_err(|error| error.kind()), Err(io::ErrorKind::FileTooLarge));
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
        for other in [fifo.as_path(), folder.path(), Path::new("/dev/zero"), Path::new("/dev/urandom")] {
            assert_eq!(read(other, 4).map_err(|error| error.kind()), Err(io::ErrorKind::InvalidInput), "{other:?}");
        }
    }

    #[test]
    fn a_replaced_file_keeps_its_owner_and_its_mode() {
        use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        let write = |replace| {
            let mut file = NewFile::create(&path, replace)?;
            file.write_all(b"new")?;
            file.finish()
        };
        write(false).expect("written");
        let facts =
            || std::fs::metadata(&path).map(|file| (file.mode() & 0o7777, file.uid(), file.gid())).expect("there");
        let (mode, uid, gid) = facts();
        assert_eq!(mode, 0o600);
        for mode in [0o640, 0o444, 0o666, 0o755] {
            std::fs::write(&path, "old").expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("changed");
            write(true).expect("replaced");
            assert_eq!((facts(), std::fs::read(&path).expect("read").as_slice()), ((mode, uid, gid), &b"new"[..]));
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("changed");
        }
        // Only a caller with CAP_CHOWN can make a file of another user.
        if chown(&path, Some(12), Some(34)).is_ok() {
            write(true).expect("replaced");
            assert_eq!(facts(), (0o600, 12, 34));
        }
    }

    #[test]
    fn lines_are_read_one_by_one_and_a_long_one_is_refused() {
        let mut reader = b"one\n\ntwo".as_slice();
        let mut line = vec![];
        let mut next = || read_line(&mut reader, 4, &mut line).map(|()| line.clone());
        assert_eq!(
            [next(), next(), next(), next()].map(|line| line.expect("a line")),
            [&b"one\n"[..], b"\n", b"two", b""]
        );
        assert!(read_line(&mut b"three\n".as_slice(), 4, &mut vec![]).is_err());
    }
}
