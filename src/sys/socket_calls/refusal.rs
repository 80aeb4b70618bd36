//! Explains why the kernel refuses to let twtool watch a program.

use std::io;
use std::path::Path;

use super::{WatchError, ptrace, target};
use crate::model::call::UnwatchableReason;
use crate::sys::setting;

/// Explains why the kernel refuses PTRACE_SEIZE (ptrace(2), "Ptrace access mode checking").
pub(super) fn refusal(error: &io::Error, pid: i32, own_child: bool) -> WatchError {
    let what =
        if own_child { "the command cannot be watched".to_owned() } else { format!("process {pid} cannot be watched") };
    let why = |why: String, hint| WatchError::Unwatchable(UnwatchableReason { why: format!("{what}: {why}"), hint });
    let tracer = target::tracer(pid).filter(|tracer| *tracer != 0);
    let scope = setting::read(Path::new("/proc/sys/kernel/yama/ptrace_scope")).ok();
    if let Some(tracer) = tracer {
        return why(
            format!(
                "{} (pid {tracer}) traces the process already, and a process can have only one tracer",
                target::comm(tracer)
            ),
            "end the other tracer, or run one of the two at a time: strace, gdb and twtool why exclude each other",
        );
    }
    if !matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::ENOSYS)) {
        return why(format!("{error}"), "please report it with the output of `uname -a`");
    }
    if !ptrace::is_answered_by_kernel() {
        return why(
            format!("a seccomp filter of this sandbox answers ptrace(2) with {error}"),
            "allow ptrace in the sandbox: `docker run --cap-add SYS_PTRACE`, or `--security-opt seccomp=unconfined`; in a \
             systemd unit, a SystemCallFilter= that includes @debug",
        );
    }
    let untraceable_reason = if own_child { None } else { target::untraceable_reason(pid) };
    if let Some(what) = untraceable_reason {
        return why(format!("{what} ({error})"), "no privilege makes this possible; `ps -e` lists other processes");
    }
    let (reason, hint) = by_setting(scope.as_deref(), own_child, error);
    why(reason, hint)
}

/// The reason for the refusal, and what would allow the trace. Both depend on kernel.yama.ptrace_scope (Yama in the kernel's
/// documentation).
fn by_setting(scope: Option<&str>, own_child: bool, error: &io::Error) -> (String, &'static str) {
    match (scope, own_child) {
        (Some("3"), _) => (
            format!("kernel.yama.ptrace_scope is 3, which forbids every trace ({error})"),
            "a value of 3 stays until the next boot; with 0, 1 or 2 after that, root can run this command",
        ),
        (Some("2"), _) => (
            format!("kernel.yama.ptrace_scope is 2, which requires CAP_SYS_PTRACE ({error})"),
            "run twtool as root, or set kernel.yama.ptrace_scope to 1 and start the program with twtool",
        ),
        (Some("1"), false) => (
            format!(
                "kernel.yama.ptrace_scope is 1, which requires CAP_SYS_PTRACE for a process that twtool did not start \
                 ({error})"
            ),
            "run twtool as root, or start the program with twtool: `twtool why -- ./server`",
        ),
        (_, false) => (
            format!("the process belongs to another user, or is not dumpable ({error})"),
            "run twtool as root (CAP_SYS_PTRACE), or start the program with twtool: `twtool why -- ./server`",
        ),
        (_, true) => (
            format!(
                "the kernel refuses ptrace(2) ({error}); a security module (AppArmor, SELinux) may forbid it, or the \
                 program file of twtool is unreadable for this user"
            ),
            "look for the denial in the kernel's log, make the program file readable, or run twtool outside the \
             confinement",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_of_ptrace_scope_has_its_reason() {
        let error = io::Error::from_raw_os_error(libc::EPERM);
        for (scope, own_child, reason, hint) in [
            (Some("3"), true, "is 3, which forbids every trace", "next boot"),
            (Some("3"), false, "is 3, which forbids every trace", "next boot"),
            (Some("2"), true, "is 2, which requires CAP_SYS_PTRACE", "as root"),
            (Some("2"), false, "is 2, which requires CAP_SYS_PTRACE", "as root"),
            (Some("1"), false, "that twtool did not start", "start the program with twtool"),
            (Some("1"), true, "the kernel refuses ptrace(2)", "kernel's log"),
            (Some("0"), false, "belongs to another user", "CAP_SYS_PTRACE"),
            (None, false, "belongs to another user", "CAP_SYS_PTRACE"),
            (None, true, "the kernel refuses ptrace(2)", "kernel's log"),
        ] {
            let (said, helps) = by_setting(scope, own_child, &error);
            assert!(said.contains(reason) && helps.contains(hint), "{scope:?} {own_child}: {said}; {helps}");
            assert!(said.contains("Operation not permitted"), "the errno: {said}");
        }
    }
}
