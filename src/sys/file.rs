//! Reads regular files up to a maximum size, and writes new files that appear complete or not at all.
//!
//! A new file has no name while it is written (O_TMPFILE in open(2)). If the program ends, the kernel frees the file. On a
//! filesystem that does not support O_TMPFILE, the file has a temporary name. twtool removes this file if writing fails, or if a
//! signal of `ENDING` arrives. After SIGKILL the file remains.

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

/// Signals that end a program that has no handler for them, and that do not indicate a fault of the program.
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

/// Opens a regular file for reading. Anything else is refused, because a FIFO may have no writer and a device may have no end.
pub fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    if retry(|| file.metadata())?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"))
    }
}

/// Reads a regular file of at most `most` bytes.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let file = open(path)?;
    // Reserve the size in advance, so that the bytes of a large file are not copied while the buffer grows. Files of /proc report
    // the size 0.
    let size = file.metadata().map_or(0, |file| file.len()).min(most);
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0).saturating_add(1));
    file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {most} bytes")));
    }
    Ok(bytes)
}

/// Replaces the content of `line` with the next line of at most `most` bytes, with its line feed. At the end of the file, `line` is empty.
pub fn read_line(reader: &mut impl BufRead, most: u64, line: &mut Vec<u8>) -> io::Result<()> {
    line.clear();
    reader.take(most.saturating_add(1)).read_until(b'\n', line)?;
    if line.len() as u64 > most {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a line has more than {most} bytes")));
    }
    Ok(())
}

/// A file that is being written. It gets its name when [`NewFile::finish`] is called.
pub struct NewFile {
    location: Location,
    replace: bool,
    writer: BufWriter<File>,
    /// The temporary name, if the filesystem does not support O_TMPFILE.
    partial: Option<TempName>,
}

impl NewFile {
    /// Creates the file with the mode 0600, or with the owner, the group and the mode of the file that it replaces. An existing file is
    /// refused unless `replace` is true. Anything other than a regular file is always refused.
    pub fn create(path: &Path, replace: bool) -> io::Result<Self> {
        Self::with_mode(path, replace, Mode::RUSR | Mode::WUSR)
    }

    /// Creates a file like [`Self::create`], but with the mode 0666 without the bits of the umask.
    pub fn create_public(path: &Path, replace: bool) -> io::Result<Self> {
        let all = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::WGRP | Mode::ROTH | Mode::WOTH;
        Self::with_mode(path, replace, all)
    }

    fn with_mode(path: &Path, replace: bool, mode: Mode) -> io::Result<Self> {
        let location = Location::new(path)?;
        let replaced = location.check(replace)?;
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let (file, partial) =
            match retry_on_intr(|| rustix::fs::openat(&location.folder, c".", flags | OFlags::TMPFILE, mode)) {
                Ok(file) => (file, None),
                // Filesystems that do not support the flag return EOPNOTSUPP. Kernels before 3.11 return EISDIR.
                Err(Errno::OPNOTSUPP | Errno::ISDIR) => {
                    let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
                    let (partial, file) =
                        TempName::new(&location, |name| rustix::fs::openat(&location.folder, name, flags, mode))?;
                    (file, Some(partial))
                }
                Err(error) => return Err(error.into()),
            };
        if let Some(replaced) = replaced {
            keep_owner_and_mode(&file, &replaced)?;
        }
        Ok(Self { location, replace, writer: BufWriter::new(file.into()), partial })
    }

    /// Makes [`Self::finish`] fail if the name is taken, even if [`Self::create`] was called with `replace`.
    pub fn keep_existing(&mut self) {
        self.replace = false;
    }

    /// Writes the rest of the buffer, and gives the file its name.
    pub fn finish(self) -> io::Result<()> {
        let Self { location, replace, writer, partial } = self;
        let file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
        let Some(partial) = partial else {
            // linkat(2) documents this path for callers without the capability that AT_EMPTY_PATH needs. The path contains
            // "thread-self", because the thread may have unshared its descriptors.
            let unnamed = format!("/proc/thread-self/fd/{}", file.as_raw_fd());
            let link =
                |name: &OsString| rustix::fs::linkat(CWD, &unnamed, &location.folder, name, AtFlags::SYMLINK_FOLLOW);
            return match retry_on_intr(|| link(&location.name)) {
                // rename(2) can replace a file, linkat(2) cannot.
                Err(Errno::EXIST) if replace => TempName::new(&location, link)?.0.rename(&location, true),
                linked => Ok(linked?),
            };
        };
        partial.rename(&location, replace)
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

/// A name in an open folder. Every operation uses the same folder, even if the path of this folder later leads to another folder.
struct Location {
    folder: Arc<OwnedFd>,
    name: OsString,
}

impl Location {
    fn new(path: &Path) -> io::Result<Self> {
        let name = path.file_name().filter(|_| !path.as_os_str().as_bytes().ends_with(b"/"));
        let name = name.ok_or_else(|| io::Error::new(io::ErrorKind::IsADirectory, "it is not the name of a file"))?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = retry_on_intr(|| rustix::fs::open(folder, flags, Mode::empty()))?;
        Ok(Self { folder: folder.into(), name: name.to_owned() })
    }

    /// Returns the status of the file that the new file replaces. Fails if that file must not be replaced.
    fn check(&self, replace: bool) -> io::Result<Option<Stat>> {
        match retry_on_intr(|| rustix::fs::statat(&self.folder, &self.name, AtFlags::SYMLINK_NOFOLLOW)) {
            Ok(found) if replace && FileType::from_raw_mode(found.st_mode) == FileType::RegularFile => Ok(Some(found)),
            Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Gives the new file the owner, the group and the permissions of the file that it replaces. Fails if the caller has no permission to
/// change the owner, because the owner of the old file would lose access.
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
    Ok(retry_on_intr(|| rustix::fs::fchmod(file, Mode::from_raw_mode(replaced.st_mode & 0o777)))?)
}

/// The temporary names of the files that are being written. The signal handler removes them.
static PARTIALS: Mutex<Vec<(Arc<OwnedFd>, OsString)>> = Mutex::new(vec![]);

fn partials() -> MutexGuard<'static, Vec<(Arc<OwnedFd>, OsString)>> {
    PARTIALS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The maximum number of temporary names that are tried for one file.
const MAX_NAMES: u32 = 1000;

/// A temporary name in the folder of the final name. The name is removed when the value is dropped.
struct TempName {
    folder: Arc<OwnedFd>,
    name: OsString,
}

impl TempName {
    fn new<T>(location: &Location, make: impl Fn(&OsString) -> Result<T, Errno>) -> io::Result<(Self, T)> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        catch_signals();
        let mut attempts = 0;
        loop {
            attempts += 1;
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = OsString::from(format!(".twtool-{}-{number}.partial", std::process::id()));
            // The list gets the name before the file exists, so that a signal in between leaves no file.
            partials().push((Arc::clone(&location.folder), name.clone()));
            match retry_on_intr(|| make(&name)) {
                Ok(new) => return Ok((Self { folder: Arc::clone(&location.folder), name }, new)),
                Err(error) => {
                    partials().retain(|(_, other)| *other != name);
                    // EEXIST: the name is taken, so the next number is tried.
                    if error != Errno::EXIST || attempts == MAX_NAMES {
                        return Err(error.into());
                    }
                }
            }
        }
    }

    fn rename(self, location: &Location, replace: bool) -> io::Result<()> {
        location.check(replace)?;
        let Self { folder, name } = &self;
        if replace {
            return Ok(retry_on_intr(|| rustix::fs::renameat(folder, name, folder, &location.name))?);
        }
        let rename = || rustix::fs::renameat_with(folder, name, folder, &location.name, RenameFlags::NOREPLACE);
        match retry_on_intr(rename) {
            // The filesystem or the kernel does not support the flag. `drop` removes the temporary name.
            Err(Errno::INVAL | Errno::NOSYS) => {
                Ok(retry_on_intr(|| rustix::fs::linkat(folder, name, folder, &location.name, AtFlags::empty()))?)
            }
            renamed => Ok(renamed?),
        }
    }
}

impl Drop for TempName {
    fn drop(&mut self) {
        let _ = rustix::fs::unlinkat(&self.folder, &self.name, AtFlags::empty());
        partials().retain(|(_, other)| *other != self.name);
    }
}

/// Removes the partial files and ends the program, as the signal would without a handler.
extern "C" fn remove_and_end(signal: libc::c_int) {
    // If a thread holds the lock, this handler removes nothing. At that moment the file of that thread does not have its temporary name:
    // the thread has not created the file yet, or has removed or renamed it. Temporary files of other threads then remain.
    for (folder, name) in PARTIALS.try_lock().iter().flat_map(|partials| partials.iter()) {
        let _ = rustix::fs::unlinkat(folder, name, AtFlags::empty());
    }
    // SA_RESETHAND has restored the default action.
    if let Ok(signal) = Signal::try_from(signal) {
        let _ = raise(signal);
    }
}

#[expect(unsafe_code, reason = "no safe wrapper sets a handler")]
fn catch_signals() {
    let action = SigAction::new(SigHandler::Handler(remove_and_end), SaFlags::SA_RESETHAND, SigSet::empty());
    for signal in ENDING {
        // SAFETY: the handler calls only unlinkat(2) and raise(3), and tries a lock without waiting for it.
        let before = unsafe { sigaction(signal, &action) };
        if let Ok(before) = before
            && !matches!(before.handler(), SigHandler::SigDfl)
        {
            // If the signal had another action than the default one, for example because of nohup(1), restore that action. SAFETY:
            // this action was valid before.
            let _ = unsafe { sigaction(signal, &before) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_up_to_the_maximum_size_are_read() {
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
    fn at_most_1000_temporary_names_are_tried_for_each_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let location = Location::new(&folder.path().join("file")).expect("a location");
        for _ in 0..3 {
            let tries = std::cell::Cell::new(0);
            let make = |_: &OsString| {
                tries.set(tries.get() + 1);
                assert!(tries.get() <= MAX_NAMES, "the search goes on");
                Err::<(), _>(Errno::EXIST)
            };
            let error = TempName::new(&location, make).err().expect("every name exists");
            assert_eq!((error.kind(), tries.get()), (io::ErrorKind::AlreadyExists, MAX_NAMES));
        }
    }

    #[test]
    fn a_new_file_has_the_owner_and_the_mode_of_the_file_that_it_replaces() {
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
