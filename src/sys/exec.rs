//! Replaces twtool by another program (execve(2)).

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use super::descriptors;

/// Replaces this process by the program. A name without a slash is searched in PATH. Returns only if that fails.
///
/// The program gets the default action for SIGPIPE and an empty signal mask (std sets both), only the descriptors 0, 1
/// and 2 (all others have O_CLOEXEC), and the limit of descriptors that twtool was started with.
#[must_use]
pub fn replace(program: &OsString, args: &[OsString]) -> io::Error {
    descriptors::restore_limit();
    Command::new(program).args(args).exec()
}
