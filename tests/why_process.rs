//! A program behaves under `twtool why` as it does without twtool: job control, signals, socket activation. A second tracer is refused.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::commands::needs_program;
use crate::support::dialogue::Dialogue;
use crate::support::suite;
use crate::support::twtool::{PATH, Run, command, twtool};

suite! {
    pure: [],
    netns: [
        a_shell_controls_the_job_as_without_twtool,
        other_processes_that_the_same_signal_ends_are_not_reported,
        a_signal_to_the_group_does_not_end_twtool_before_its_summary,
        a_running_process_is_watched_and_runs_on,
        detach_ends_the_watch_when_the_program_listens,
        strace_f_around_why_and_strace_inside_why_are_refused,
        variables_of_socket_activation_have_the_pid_of_the_program,
    ],
}

/// Runs a script under `twtool why` in a process group of its own. When the script has written `begun`, calls `prepare` with the pid of
/// twtool, and sends SIGTERM to the whole group. Checks the exit code, and returns standard error.
fn ended_with_its_group(script: &str, prepare: impl FnOnce(Pid)) -> String {
    let mut why = command(["why", "sh", "-c", script]);
    let mut why =
        why.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("twtool can be started");
    let mut begun = String::new();
    BufReader::new(why.stdout.take().expect("a pipe")).read_line(&mut begun).expect("read");
    let group = Pid::from_raw(i32::try_from(why.id()).expect("a pid"));
    prepare(group);
    killpg(group, Signal::SIGTERM).expect("sent");
    let mut text = String::new();
    why.stderr.take().expect("a pipe").read_to_string(&mut text).expect("read");
    let status = why.wait().expect("it ends");
    assert!(status.code() == Some(143) && text.contains("ended with signal 15"), "{status}: {text}");
    text
}

fn other_processes_that_the_same_signal_ends_are_not_reported() {
    let text = ended_with_its_group("(trap 'exit 1' TERM; echo begun; while :; do sleep 0.01; done) | cat", |_| {});
    assert!(!text.contains("other process"), "{text}");
}

/// The program can end before twtool has read its own copy of the signal. Without `read_arrived` (src/sys/socket_calls/signals.rs), 8 to 26
/// of 100 runs failed on one processor, if twtool had the lowest priority and many new processes to watch.
fn a_signal_to_the_group_does_not_end_twtool_before_its_summary() {
    let mut one = CpuSet::new();
    let allowed = sched_getaffinity(Pid::from_raw(0)).expect("processors");
    let first = (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu) == Ok(true)).expect("a processor");
    one.set(first).expect("a processor");
    sched_setaffinity(Pid::from_raw(0), &one).expect("one processor");
    for _ in 0..30 {
        ended_with_its_group("echo begun; while :; do /bin/true; done", |twtool| {
            rustix::process::setpriority_process(rustix::process::Pid::from_raw(twtool.as_raw()), 19)
                .expect("the lowest priority");
            // Meanwhile the script starts processes, so that twtool falls behind.
            thread::sleep(Duration::from_millis(10));
        });
    }
}

/// Runs two jobs in a shell that has job control on its own terminal: Ctrl-Z stops the first job, and fg continues it. Ctrl-C ends the
/// second job.
fn a_shell_controls_the_job_as_without_twtool() {
    needs_program("bash");
    needs_program("setsid");
    let run_in_shell = |begin: &str| {
        let mut shell = Command::new("setsid");
        shell
            .args(["--ctty", "--wait", "bash", "--norc", "--noprofile", "-i"])
            .env("TW", PATH)
            .env("PS1", "")
            .env("HISTFILE", "/dev/null");
        let mut dialogue = Dialogue::of(shell);
        // The standard output of a dialogue is a pipe. So the shell writes to stderr, which is the terminal.
        dialogue.types("exec >&2");
        dialogue.types(&format!("{begin} sh -c 'echo be''gun; read x; echo got-$x; read x; exit 9'"));
        dialogue.until("begun");
        dialogue.types("one");
        dialogue.until("got-one");
        dialogue.types_control('Z');
        dialogue.until("Stopped");
        dialogue.types("fg");
        dialogue.await_child_named("sh");
        dialogue.types("two");
        dialogue.await_child_named("bash");
        dialogue.types("echo code-$?-end");
        dialogue.until("code-9-end");
        dialogue.types(&format!("{begin} sleep 1000"));
        dialogue.await_child_named("sleep");
        dialogue.types_control('C');
        dialogue.await_child_named("bash");
        dialogue.types("echo code-$?-end");
        dialogue.until("code-130-end");
        dialogue.types("exit");
        dialogue.end()
    };
    let _ = run_in_shell("");
    let _ = run_in_shell("$TW why -q");
}

fn a_running_process_is_watched_and_runs_on() {
    needs_program("python3");
    let script = "import socket, sys\nfor line in sys.stdin:\n try: socket.socket().bind(('192.0.2.7', 8080))\n except OSError as e: print(e.errno, flush=True)\n";
    let mut target = Command::new("python3");
    let mut target =
        target.args(["-u", "-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("started");
    let mut answers = BufReader::new(target.stdout.take().expect("a pipe"));
    let mut ask = |target: &mut std::process::Child| {
        writeln!(target.stdin.as_mut().expect("a pipe")).expect("written");
        let mut line = String::new();
        answers.read_line(&mut line).expect("read");
        assert_eq!(line, "99\n");
    };
    ask(&mut target);
    let pid = target.id().to_string();
    let mut why = command(["why", "-o", "ndjson", "--pid", &pid]).stderr(Stdio::piped()).spawn().expect("started");
    let mut lines = BufReader::new(why.stderr.take().expect("a pipe")).lines().map(|line| line.expect("a line"));
    let slow = lines.next().expect("a note");
    assert!(slow.contains("slow"), "{slow}");
    ask(&mut target);
    let call: Value = serde_json::from_str(&lines.next().expect("a call")).expect("a record");
    assert_eq!(
        (&call["call"], &call["addr"], &call["errno"]),
        (&"bind".into(), &"192.0.2.7".into(), &"EADDRNOTAVAIL".into())
    );
    let number = Pid::from_raw(i32::try_from(why.id()).expect("a pid"));
    kill(number, Signal::SIGTERM).expect("sent");
    assert_eq!(why.wait().expect("it ends").code(), Some(143));
    ask(&mut target);
    drop(target.stdin.take());
    assert!(target.wait().expect("it ends").success());
    twtool(["why", "--pid", "2147483647"]).code(125);
}

fn detach_ends_the_watch_when_the_program_listens() {
    needs_program("python3");
    let script = "import socket, re\ns = socket.create_server(('127.0.0.1', 8080))\nwhile not re.search('TracerPid:\\\\t0', open('/proc/self/status').read()): pass\nprint('alone')\nraise SystemExit(7)";
    let run = twtool(["why", "--detach", "python3", "-c", script]).code(7);
    assert_eq!(run.stdout, "alone\n", "{run}");
    assert!(run.stderr.contains("listens on 127.0.0.1:8080"), "{run}");
}

fn strace_f_around_why_and_strace_inside_why_are_refused() {
    needs_program("strace");
    let strace = |args: &[&str]| Run::of(Command::new("strace").args(["-o", "/dev/null"]).args(args));
    let refused = strace(&["-f", PATH, "why", "echo", "started"]).code(125);
    assert!(refused.stderr.contains("strace (pid") && refused.stdout.is_empty(), "{refused}");
    assert_eq!(strace(&[PATH, "why", "-q", "echo", "started"]).code(0).stdout, "started\n");
    let inside = twtool(["why", "strace", "-o", "/dev/null", "echo", "started"]).code(1);
    assert!(inside.stdout.is_empty(), "{inside}");
}

fn variables_of_socket_activation_have_the_pid_of_the_program() {
    let script =
        "LISTEN_PID=$$ WATCHDOG_PID=$$ exec \"$0\" why -q sh -c 'echo $(($LISTEN_PID - $$)) $(($WATCHDOG_PID - $$))'";
    let run = Run::of(Command::new("sh").args(["-c", script, PATH])).code(0);
    assert_eq!(run.stdout, "0 0\n", "{run}");
    let other = Run::of(command(["why", "-q", "sh", "-c", "echo $LISTEN_PID"]).env("LISTEN_PID", "1")).code(0);
    assert_eq!(other.stdout, "1\n", "{other}");
}
