//! Runs printed commands as a user runs them: pasted into a shell on the machine where twtool ran.

use std::process::{Command, Stdio};

use super::kernel::NotChecked;
use super::twtool::Run;

/// The shells into which a user may paste a command. This machine may lack some of them.
pub(crate) const SHELLS: [&[&str]; 3] = [&["sh"], &["bash"], &["busybox", "sh"]];

/// Runs a printed command literally through `sh -c`, in the calling thread's namespaces.
pub(crate) fn run(line: &str) -> Run {
    run_in(&["sh"], line)
}

pub(crate) fn run_in(shell: &[&str], line: &str) -> Run {
    let mut command = Command::new(shell[0]);
    command.args(&shell[1..]).args(["-c", line]).stdin(Stdio::null());
    Run::of(&mut command)
}

/// Runs a printed command, and asserts that it succeeds with nothing on stderr.
#[track_caller]
pub(crate) fn succeeds(line: &str) -> Run {
    run(line).ok()
}

pub(crate) fn has(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", "command -v \"$0\"", program]).stdout(Stdio::null()).status();
    found.is_ok_and(|status| status.success())
}

/// Reports the calling test as not checked if the program is not installed.
pub(crate) fn needs_program(program: &str) {
    if !has(program) {
        std::panic::resume_unwind(Box::new(NotChecked(format!("{program} is not installed"))));
    }
}
