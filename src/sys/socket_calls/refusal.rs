//! Explains why the kernel refuses to let twtool watch a program.

use std::io;
use std::path::Path;

use super::{WatchError, ptrace, target};
use crate::model::call::Unwatchable;
use crate::sys::setting;

/// Why the kernel refuses PTRACE_SEIZE (ptrace(2), "Ptrace access mode checking").
pub(super) fn refusal(error: &io::Error, pid: i32, own_child: bool) -> WatchError {
    let what =
        if own_child { "the command cannot be watched".to_owned() } else { format!("process {pid} cannot be watched") };
    let why = |why: String, hint| WatchError::Unwatchable(Unwatchable { why: format!("{what}: {why}"), hint });
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
    let untraceable = if own_child { None } else { target::untraceable(pid) };
    if let Some(what) = untraceable {
        return why(format!("{what} ({error})"), "no privilege makes this possible; `ps -e` lists other processes");
    }
    match (scope.as_deref(), own_child) {
        (Some("3"), _) => why(
            format!("kernel.yama.ptrace_scope is 3, which forbids every trace ({error})"),
            "a value of 3 stays until the next boot; with 0, 1 or 2 after that, root can run this command",
        ),
        (Some("2"), _) => why(
            format!("kernel.yama.ptrace_scope is 2, which requires CAP_SYS_PTRACE ({error})"),
            "run twtool as root, or set kernel.yama.ptrace_scope to 1",
        ),
        (Some("1"), false) => why(
            format!(
                "kernel.yama.ptrace_scope is 1, which requires CAP_SYS_PTRACE for a process that twtool did not start \
                 ({error})"
            ),
            "run twtool as root, or start the program with twtool: `twtool why -- ./server`",
        ),
        (_, false) => why(
            format!("the process belongs to another user, or is not dumpable ({error})"),
            "run twtool as root (CAP_SYS_PTRACE), or start the program with twtool: `twtool why -- ./server`",
        ),
        (_, true) => why(
            format!(
                "the kernel refuses ptrace(2) ({error}); a security module (AppArmor, SELinux) may forbid it, or this \
                 user cannot read the program file of twtool"
            ),
            "look for the denial in the kernel's log, make the program file readable, or run twtool outside the \
             confinement",
        ),
    }
}
