//! Printed commands, run as a reader would run them: pasted into a shell where twtool ran.

use std::process::{Command, Stdio};

use super::kernel::NotChecked;
use super::twtool::Run;

/// The shells that a command may be pasted into, as far as this machine has them.
pub(crate) const SHELLS: [&[&str]; 3] = [&["sh"], &["bash"], &["busybox", "sh"]];

/// Runs a printed command literally through `sh -c`, in the calling thread's namespaces.
pub(crate) fn run(line: &str) -> Run {
    run_in(&["sh"], line)
}

/// The same through another shell.
pub(crate) fn run_in(shell: &[&str], line: &str) -> Run {
    let mut command = Command::new(shell[0]);
    command.args(&shell[1..]).args(["-c", line]).stdin(Stdio::null());
    Run::of(&mut command)
}

/// Runs it, and asserts that it succeeds and complains of nothing.
#[track_caller]
pub(crate) fn succeeds(line: &str) -> Run {
    run(line).ok()
}

/// Whether there is such a program.
pub(crate) fn has(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", "command -v \"$0\"", program]).stdout(Stdio::null()).status();
    found.is_ok_and(|status| status.success())
}

/// Reports the calling test as not checked if there is no such program.
pub(crate) fn needs_program(program: &str) {
    if !has(program) {
        std::panic::resume_unwind(Box::new(NotChecked(format!("{program} is not installed"))));
    }
}
