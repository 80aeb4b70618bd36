//! Runs the stub, a second twtool process that becomes the watched program. The stub installs the filter, stops until the first process
//! traces it, and executes the program. So twtool needs no code of its own between fork and exec, where a process with several threads may
//! call only async-signal-safe functions (fork(2)).

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};

use nix::sys::signal::{Signal, raise};
use rustix::process::set_parent_process_death_signal;

use super::filter;
use crate::sys::{descriptors, exec, inherited};

/// The first argument of the stub.
const STUB: &str = "{why-stub}";

const FILTER: &str = "filter";
const NO_FILTER: &str = "no-filter";

/// The action for SIGPIPE that twtool was started with. std sets the default action for every process that it starts.
const PIPE_IGNORED: &str = "sigpipe-ignored";
const PIPE_DEFAULT: &str = "sigpipe-default";

/// Variables that a service manager sets to the pid of the process that it starts (sd_listen_fds(3), sd_watchdog_enabled(3)). The
/// stub changes the pid of twtool in them to the pid of the program.
const PID_VARIABLES: [&str; 2] = ["LISTEN_PID", "WATCHDOG_PID"];

pub(super) fn spawn(command: &[OsString], filter: bool) -> io::Result<Child> {
    // The program gets the limit of descriptors that twtool was started with.
    descriptors::restore_limit();
    let mut stub = Command::new("/proc/self/exe");
    let pipe = if inherited::sigpipe_was_ignored() { PIPE_IGNORED } else { PIPE_DEFAULT };
    stub.arg0("twtool").arg(STUB).arg(if filter { FILTER } else { NO_FILTER }).arg(pipe).args(command);
    let child = stub.spawn();
    descriptors::raise_limit();
    child
}

/// Runs the stub if `args` are its arguments; otherwise returns `None`. If the program cannot be executed, returns the name of the
/// program and the error.
#[must_use]
pub fn run_stub(args: &[OsString]) -> Option<(OsString, io::Error)> {
    let [_, stub, filter, pipe, program, arguments @ ..] = args else { return None };
    if stub != STUB {
        return None;
    }
    // If twtool ends before it has attached, the kernel must end the stub, which would otherwise stay stopped.
    let _ = set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    if filter == FILTER {
        // If the filter cannot be installed, twtool detects this in /proc, and stops the program at every system call.
        let _ = filter::install();
    }
    let _ = raise(Signal::SIGSTOP);
    let _ = set_parent_process_death_signal(None);
    let parent = nix::unistd::getppid().to_string();
    let environment = std::env::vars_os().map(|(name, value)| {
        let is_parent = PID_VARIABLES.iter().any(|pid| name == *pid) && value == *parent;
        (name, if is_parent { std::process::id().to_string().into() } else { value })
    });
    Some((program.clone(), exec::replace_with(program, arguments, pipe == PIPE_IGNORED, environment)))
}
