//! Replaces twtool with another program (execve(2)).

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::execvpe;
use rustix::fs::{Access, AtFlags};

use super::errno::retry;
use super::folder::metadata;
use super::{descriptors, inherited};

/// Executes a program in this process. For a name without a slash, this function searches the folders of PATH. Returns only if the
/// execution fails.
///
/// The program gets the action for SIGPIPE and the limit of descriptors that twtool was started with. It inherits the descriptors that
/// twtool was started with. Descriptors that twtool opens have O_CLOEXEC, except /dev/null, which the Rust runtime opens for a closed
/// standard descriptor.
#[must_use]
pub fn replace(program: &OsString, args: &[OsString]) -> io::Error {
    descriptors::restore_limit();
    replace_with(program, args, inherited::sigpipe_was_ignored(), std::env::vars_os())
}

/// std's `exec` is not used, because it always sets the default action for SIGPIPE.
pub(super) fn replace_with(
    program: &OsStr,
    args: &[OsString],
    ignores_sigpipe: bool,
    environment: impl Iterator<Item = (OsString, OsString)>,
) -> io::Error {
    let text = |text: &OsStr| CString::new(text.as_bytes()).map_err(io::Error::from);
    let name = text(program);
    let args: io::Result<Vec<CString>> =
        std::iter::once(program).chain(args.iter().map(OsString::as_os_str)).map(text).collect();
    let environment: io::Result<Vec<CString>> =
        environment.map(|(name, value)| text(&[name.as_os_str(), value.as_os_str()].join(OsStr::new("=")))).collect();
    let (name, args, environment) = match (name, args, environment) {
        (Ok(name), Ok(args), Ok(environment)) => (name, args, environment),
        (Err(error), _, _) | (_, Err(error), _) | (_, _, Err(error)) => return error,
    };
    // The Rust runtime ignores SIGPIPE, and execve(2) would keep this action.
    set_sigpipe(if ignores_sigpipe { SigHandler::SigIgn } else { SigHandler::SigDfl });
    let Err(errno) = execvpe(&name, &args, &environment);
    set_sigpipe(SigHandler::SigIgn);
    errno.into()
}

/// Checks that [`replace`] would find a program of this name, and that this user is allowed to run it. The content of the file is not
/// checked, so execve(2) may still refuse the file.
///
/// # Errors
/// As in execvp(3): `NotFound` if there is no such file; `PermissionDenied` if there are only files that this user is not allowed to
/// run.
pub fn find(program: &OsStr) -> io::Result<()> {
    let check = |path: &Path| {
        retry(|| Ok(rustix::fs::accessat(rustix::fs::CWD, path, Access::EXEC_OK, AtFlags::EACCESS)?))?;
        if metadata(path)?.is_dir() { Err(io::ErrorKind::PermissionDenied.into()) } else { Ok(()) }
    };
    if program.as_bytes().contains(&b'/') {
        return check(Path::new(program));
    }
    let mut result: io::Error = io::Error::from_raw_os_error(libc::ENOENT);
    for folder in std::env::split_paths(&std::env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into())) {
        match check(&folder.join(program)) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => result = error,
            Err(_) => {}
        }
    }
    Err(result)
}

fn set_sigpipe(action: SigHandler) {
    // SAFETY: neither of the two actions runs code of this process.
    #[expect(unsafe_code, reason = "the wrapper is unsafe because of handlers")]
    let result = unsafe { signal(Signal::SIGPIPE, action) };
    // This cannot fail: the action of SIGPIPE can be changed.
    let _ = result;
}
