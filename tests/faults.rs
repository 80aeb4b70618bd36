//! Single system calls that fail, by strace's `inject`: every command gives the same answer, or ends with exit code 2 and a
//! reason, or says that its answer is not complete. After EINTR it gives the same answer.
//!
//! The matrix: each command, each call that it makes of these kinds, the 1st to the 24th, with the errors that the kernel
//! gives there. A normal run takes every n-th of them, always the same ones; `TWTOOL_FULL=1` takes all.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use seccompiler::SeccompCmpOp;
use twtool::sys::sandbox;

use crate::support::answers::{Answer, COMMANDS, Situation};
use crate::support::limits::refuse;
use crate::support::twtool::{PATH, Run};
use crate::support::{measured, not_checked, suite};

suite! {
    pure: [],
    netns: [
        a_call_that_fails_once_changes_no_answer_silently,
        a_file_that_cannot_be_read_is_named,
    ],
}

/// Calls, and the errors with which they fail.
const CALLS: [(&str, &[&str]); 15] = [
    ("socket", &["EINTR", "EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"]),
    ("openat", &["EINTR", "EMFILE", "ENFILE", "EACCES", "EIO"]),
    ("read", &["EINTR", "EIO", "ENOMEM"]),
    ("bind", &["EINTR", "ENOMEM", "ENOBUFS"]),
    ("connect", &["EINTR", "ENOBUFS", "ENOMEM"]),
    ("recvfrom", &["EINTR", "ENOBUFS", "ENOMEM"]),
    ("sendto", &["EINTR", "ENOBUFS"]),
    ("getdents64", &["EINTR", "EIO", "ENOMEM"]),
    ("setsockopt", &["EINTR", "ENOPROTOOPT", "ENOMEM"]),
    ("getsockopt", &["EINTR", "ENOPROTOOPT"]),
    ("statx", &["EINTR", "EACCES", "EIO"]),
    ("ioctl", &["EINTR", "EIO"]),
    ("getsockname", &["ENOBUFS"]),
    ("readlink", &["EIO"]),
    ("clone3", &["EAGAIN"]),
];

/// The calls of one kind that fail, one in each run.
const CALLS_OF_A_KIND: u32 = 24;

/// A normal run takes every so many-th.
const SAMPLE: u32 = 23;

/// The exit code where the loader cannot load the program.
const NOT_LOADED: i32 = 127;

fn full() -> bool {
    std::env::var_os("TWTOOL_FULL").is_some()
}

/// Runs the command while one call fails.
fn injected(args: &[&str], call: &str, error: &str, when: u32) -> Run {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}")]);
    strace.args(["-e", &format!("inject={call}:error={error}:when={when}"), PATH]).args(args).stdin(Stdio::null());
    Run::of(&mut strace)
}

/// How many calls of each kind the command makes.
fn counted(trace: &Path, args: &[&str]) -> BTreeMap<&'static str, u32> {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o"]).arg(trace).arg(PATH).args(args).stdin(Stdio::null());
    Run::of(&mut strace);
    let text = fs::read_to_string(trace).expect("a trace");
    // `4711 openat(AT_FDCWD, ...`
    let name = |line: &'_ str| Some(line.split_once(' ')?.1.trim_start().split_once('(')?.0.to_owned());
    let made: Vec<String> = text.lines().filter_map(name).collect();
    let count = |call: &str| u32::try_from(made.iter().filter(|made| *made == call).count()).expect("few");
    CALLS.iter().map(|(call, _)| (*call, count(call))).collect()
}

/// Why there can be no faults here.
pub(crate) fn missing_strace() -> Option<String> {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o", "/dev/null", "-e", "inject=chdir:error=EINTR:when=1", "true"]);
    match strace.stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!("strace may not trace: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Some(format!("strace cannot be started: {error}")),
    }
}

fn a_call_that_fails_once_changes_no_answer_silently() {
    if let Some(why) = missing_strace() {
        not_checked(format!("single system calls that fail: {why}"));
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let trace = folder.path().join("trace");
    let step = if full() { 1 } else { SAMPLE };
    let (mut number, mut wrong) = (0_u32, vec![]);
    let mut ends: BTreeMap<&str, u32> = BTreeMap::new();
    let mut situation = Situation::make();
    for (name, args) in COMMANDS {
        let mut usual = Answer::now(args);
        let made = counted(&trace, args);
        for (call, errors) in CALLS {
            for error in errors {
                for when in 1..=made[call].min(CALLS_OF_A_KIND) {
                    number += 1;
                    if !number.is_multiple_of(step) {
                        continue;
                    }
                    if !situation.lasts() {
                        sandbox::enter_network_namespace().expect("another namespace");
                        situation = Situation::make();
                        usual = Answer::now(args);
                    }
                    let run = injected(args, call, error, when);
                    let end = judge(&run, &usual, error);
                    *ends.entry(end).or_default() += 1;
                    if !ACCEPTED.contains(&end) {
                        wrong.push(format!("{name}, {call} {error} {when}: {end}{run}"));
                    }
                }
            }
        }
    }
    measured(format!("faults: {ends:?}"));
    let first: Vec<&String> = wrong.iter().take(if full() { 400 } else { 8 }).collect();
    assert!(wrong.is_empty(), "{} answers changed\n{}", wrong.len(), first.into_iter().cloned().collect::<String>());
}

/// Runs the command while this file cannot be opened.
fn without(path: &str, error: &str, args: &[&str]) -> Run {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o", "/dev/null", "-P", path, "-e", &format!("inject=openat:error={error}"), PATH]);
    Run::of(strace.args(args).stdin(Stdio::null()))
}

fn a_file_that_cannot_be_read_is_named() {
    if let Some(why) = missing_strace() {
        not_checked(format!("files that cannot be read: {why}"));
        return;
    }
    let udp = "/proc/thread-self/net/udp";
    let bind_test = ["bind-test", "8080", "--json"];
    let run =
        without(udp, "EIO", &bind_test).code(2).says("whether a UDP socket has the port too is unknown").says(udp);
    assert_eq!(run.json()["complete"], false, "{run}");
    for (file, args, text) in [
        ("/proc/thread-self/status", ["doctor"].as_slice(), "/proc/thread-self/status could not be read"),
        ("/proc/sys/net/ipv4/tcp_ehash_entries", &["doctor"], "reading /proc/sys/net/ipv4/tcp_ehash_entries failed"),
    ] {
        without(file, "EIO", args).code(2).says(text);
    }
    // What is absent or refused is no failure.
    for error in ["ENOENT", "EACCES"] {
        without(udp, error, &bind_test).code(0);
    }
    // The counts matter where sock_diag does not list every socket.
    refuse(libc::SYS_socket, Some((0, SeccompCmpOp::Eq, 16)), libc::EPERM);
    for file in ["sockstat", "sockstat6"] {
        let path = format!("/proc/thread-self/net/{file}");
        let run = without(&path, "EIO", &["capacity", "--json"]).code(2).says("in no list could not be read");
        assert_eq!(run.json()["complete"], false, "{run}");
    }
    without("/proc/thread-self/net/sockstat6", "ENOENT", &["capacity"]).code(0);
}

const ACCEPTED: [&str; 5] = [
    "the same answer",
    "exit code 2 and a reason",
    "not loaded",
    "what may not be seen is null",
    "an option that kernels may lack",
];

/// How a run with one failed call ended.
fn judge(run: &Run, usual: &Answer, error: &str) -> &'static str {
    let answer = Answer::of(run);
    match run.code {
        Some(NOT_LOADED) => "not loaded",
        None => "ended by a signal",
        _ if run.stderr.contains("panicked") => "a panic",
        _ if answer == *usual => "the same answer",
        _ if error == "EINTR" => "EINTR changed the answer",
        Some(2) if run.stderr.is_empty() => "exit code 2 without a reason",
        Some(2) => "exit code 2 and a reason",
        // Where a plain user may not look, these are null in every answer.
        _ if error == "EACCES" && answer.without_the_hidden() == usual.without_the_hidden() => {
            "what may not be seen is null"
        }
        // Before 6.3 there is no IP_LOCAL_PORT_RANGE: `capacity` names the ports that are uncertain for that reason.
        _ if error == "ENOPROTOOPT" && !run.stderr.is_empty() => "an option that kernels may lack",
        _ if run.stderr.is_empty() => "another answer without a word",
        _ => "another answer with a warning",
    }
}
