//! Another program in place of this one (execve(2)).

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use super::descriptors;

/// Runs the program with its arguments in place of this one, by PATH where its name has no slash. Returns only where that
/// fails. std gives it SIGPIPE's default action and an empty signal mask; every descriptor of ours but 0, 1 and 2 is closed
/// by then (O_CLOEXEC), and the limit of descriptors is the one that twtool was started with.
#[must_use]
pub fn replace(program: &OsString, args: &[OsString]) -> io::Error {
    descriptors::restore_limit();
    Command::new(program).args(args).exec()
}
