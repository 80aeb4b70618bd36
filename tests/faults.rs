//! Makes single system calls fail with strace's `inject`. Then the command must give the same answer, or end with exit code 2 and a
//! reason. A few other ends are correct, too (`ACCEPTED_ENDS`). After EINTR, the answer must be the same, unless the program could not
//! be loaded.
//!
//! The matrix of runs: each command of `subjects`, each kind of call in `CALLS`, the 1st to the 24th call of that kind, and each error that
//! `CALLS` has for it. A normal run takes every 41st of them (`SAMPLE`), `TWTOOL_FULL=1` takes all.
//!
//! strace counts `when=N` separately for each thread. With `--netns` and `--all-netns`, twtool reads each namespace on a new thread, so
//! the N-th call of each thread fails. The test runs on one processor, so that twtool reads one namespace after the other.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use seccompiler::SeccompCmpOp;
use serde_json::Value;
use twtool::sys::sandbox;

use crate::support::answers::{COMMANDS, MixedSituation, RunAnswer};
use crate::support::bucket_namespaces::{BucketNamespace, show_only_own_processes};
use crate::support::limits::refuse;
use crate::support::netns::on_thread_in_new_namespace;
use crate::support::private_proc::OwnPidNamespace;
use crate::support::twtool::{PATH, Run, twtool};
use crate::support::{measured, not_checked, procfs, suite};

suite! {
    pure: [],
    netns: [
        a_call_that_fails_once_changes_no_answer_silently,
        a_call_that_fails_once_hides_no_namespace,
        a_file_that_cannot_be_read_is_named,
    ],
}

/// Calls, and the errors with which they fail.
const CALLS: [(&str, &[&str]); 25] = [
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
    ("linkat", &["EINTR", "EACCES", "ENOSPC"]),
    ("renameat", &["EINTR", "EACCES", "ENOSPC"]),
    ("renameat2", &["EINTR", "EINVAL", "ENOSPC"]),
    ("fchmod", &["EINTR", "EIO"]),
    ("write", &["EINTR", "ENOSPC", "EIO"]),
    ("pidfd_open", &["EMFILE", "ENOMEM", "ENOSYS"]),
    ("pidfd_getfd", &["EMFILE", "EPERM", "ENOSYS"]),
    ("kcmp", &["EPERM", "ENOSYS"]),
    ("setns", &["ENOMEM", "EPERM"]),
    ("getrandom", &["EINTR", "ENOSYS"]),
];

/// The maximum number of calls of one kind that are tested.
const CALLS_OF_A_KIND: u32 = 24;

/// A normal run tests one of this many cases of the matrix.
const SAMPLE: u32 = 41;

/// The exit code if the loader cannot load the program.
const NOT_LOADED: i32 = 127;

fn full() -> bool {
    std::env::var_os("TWTOOL_FULL").is_some()
}

fn injected(args: &[impl AsRef<OsStr>], call: &str, error: &str, when: u32) -> Run {
    let mut strace = Command::new("strace");
    strace.args(["--seccomp-bpf", "-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}")]);
    strace.args(["-e", &format!("inject={call}:error={error}:when={when}"), PATH]).args(args).stdin(Stdio::null());
    Run::of(&mut strace)
}

/// How many calls of each kind the command makes, in the thread that makes most of them.
fn counted(trace: &Path, args: &[impl AsRef<OsStr>]) -> BTreeMap<&'static str, u32> {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o"]).arg(trace).arg(PATH).args(args).stdin(Stdio::null());
    Run::of(&mut strace);
    let text = fs::read_to_string(trace).expect("a trace");
    // `4711 openat(AT_FDCWD, ...`
    let call = |line: &'_ str| {
        let (thread, rest) = line.split_once(' ')?;
        Some((rest.trim_start().split_once('(')?.0.to_owned(), thread.to_owned()))
    };
    let mut made: BTreeMap<(String, String), u32> = BTreeMap::new();
    for call in text.lines().filter_map(call) {
        *made.entry(call).or_default() += 1;
    }
    let most = |name: &str| made.iter().filter(|((call, _), _)| call == name).map(|(_, count)| *count).max();
    CALLS.iter().map(|(call, _)| (*call, most(call).unwrap_or(0))).collect()
}

/// The reason why strace cannot inject faults here; `None` if it can.
pub(crate) fn missing_strace() -> Option<String> {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o", "/dev/null", "-e", "inject=chdir:error=EINTR:when=1", "true"]);
    match strace.stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!("strace may not trace: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Some(format!("strace cannot be started: {error}")),
    }
}

/// A command whose calls fail.
struct Subject {
    name: &'static str,
    args: Vec<String>,
    /// What the command does besides printing an answer.
    does: Does,
}

#[derive(Clone, PartialEq)]
enum Does {
    Nothing,
    /// It removes sockets, so each run needs new ones.
    Removes,
    /// It writes this file. Before each run the file is missing, or contains these bytes, which a run that fails must not replace.
    Writes(PathBuf, Option<Vec<u8>>),
    /// It waits for a port that stays in use. So it must not start the command that it has as an argument.
    Waits,
}

impl Subject {
    fn new(name: &'static str, args: &str, does: Does) -> Self {
        Self { name, args: args.split(' ').map(str::to_owned).collect(), does }
    }

    /// The arguments. The ID of the process in the other network namespace replaces the word `PID`.
    fn args(&self, world: &World) -> Vec<String> {
        self.args.iter().map(|arg| arg.replace("PID", &world.other.resident.pid())).collect()
    }

    fn prepare(&self, world: &mut World) {
        match &self.does {
            Does::Removes => world.renew(),
            Does::Writes(file, before) => {
                let _ = fs::remove_file(file);
                if let Some(before) = before {
                    fs::write(file, before).expect("written");
                }
            }
            Does::Nothing | Does::Waits => {}
        }
    }

    /// The wrong effect of the run, if there is one. `before` is the number of buckets before the run.
    fn fault(&self, run: &Run, before: usize) -> Option<&'static str> {
        match &self.does {
            Does::Nothing => None,
            Does::Removes => {
                let document: Option<Value> = serde_json::from_str(&run.stdout).ok();
                let count = |key: &str| document.as_ref().map(|document| document[key].as_u64().unwrap_or(0));
                // `destroyed` also counts orphans, which are not buckets, so it can be larger than the number of removed buckets. If
                // a response of the kernel is lost, a removed bucket may be reported as gone.
                let lost = run.code == Some(2) && run.stderr.contains("some responses of the kernel are missing");
                let removed = count("destroyed")? + if lost { count("gone")? } else { 0 };
                let gone = before.saturating_sub(procfs::bucket_count()) as u64;
                (removed < gone).then_some("more was removed than reported")
            }
            Does::Writes(file, before) => {
                let folder = file.parent().expect("a folder");
                let others = fs::read_dir(folder).expect("the folder").count() > usize::from(file.exists());
                // The replay must give the same answer. After exit code 2, it is enough that the file can be replayed.
                let faithful = || {
                    let replay = twtool(["list", "--replay", file.to_str().expect("UTF-8"), "-o", "csv"]);
                    let same = replay.code == run.code && replay.stdout == run.stdout;
                    same || (run.code == Some(2) && !replay.stderr.contains("cannot be replayed"))
                };
                let kept = before.is_some() && fs::read(file).ok() == *before;
                // If the answer cannot be printed, it is still recorded.
                let failed = run.code == Some(NOT_LOADED)
                    || (run.stderr.contains("error: ") && !run.stderr.contains("writing the answer failed"));
                if others {
                    Some("a partial file is left")
                } else if failed && before.is_some() {
                    (!kept).then_some("a failure has replaced a recording")
                } else if file.exists() && !faithful() {
                    Some("the file replays another answer")
                } else if !file.exists() && run.code == Some(0) {
                    Some("the file is missing")
                } else {
                    None
                }
            }
            Does::Waits => run.stdout.contains("started").then_some("the command was started on an occupied port"),
        }
    }
}

/// The situation that the commands read. A world lasts less than a minute, because its buckets end after 60 s.
struct World {
    situation: MixedSituation,
    /// Another network namespace, with a bucket and a process.
    other: BucketNamespace,
}

impl World {
    fn make() -> Self {
        Self { situation: MixedSituation::make(), other: BucketNamespace::make(42_001) }
    }

    /// Makes the situation again in a new namespace.
    fn renew(&mut self) {
        sandbox::enter_network_namespace().expect("another namespace");
        *self = Self::make();
    }
}

/// The commands of support/answers.rs, and the commands of `more`.
fn subjects(folder: &Path) -> Vec<Subject> {
    let file = |name: &str| {
        let own = folder.join(name);
        fs::create_dir(&own).expect("a folder");
        own.join("bug.twrec")
    };
    let (new, old, replayed) = (file("new"), file("old"), folder.join("replayed.twrec"));
    // This recording is from another namespace, so that its replay gives another answer.
    let before = on_thread_in_new_namespace(|| {
        twtool(["list", "--record", old.to_str().expect("UTF-8")]).ok();
        fs::read(&old).expect("a recording")
    });
    let owned = |args: &[&str]| args.iter().map(|&arg| arg.to_owned()).collect();
    let usual = COMMANDS.iter().map(|(name, args)| Subject { name, args: owned(args), does: Does::Nothing });
    let mut subjects: Vec<Subject> = usual.collect();
    twtool(["list", "--record", replayed.to_str().expect("UTF-8")]).ok();
    let more = [
        ("kill --yes", "kill --all --yes --json".to_owned(), Does::Removes),
        ("kill --orphans", "kill --all --orphans --yes --json".to_owned(), Does::Removes),
        ("record", format!("list --record {} -o csv", new.display()), Does::Writes(new, None)),
        ("record --force", format!("list --record {} --force -o csv", old.display()), Does::Writes(old, Some(before))),
        ("replay", format!("list --replay {} --json --sort local", replayed.display()), Does::Nothing),
        ("netns", "list --netns PID --json".to_owned(), Does::Nothing),
        ("bind-test netns", "bind-test 8080 --netns PID --json".to_owned(), Does::Nothing),
        ("wait -- command", "wait 7100 --addr 127.0.0.1 --timeout 0 -- true".to_owned(), Does::Nothing),
        ("wait -- blocked", "wait 7100 --timeout 0 -- echo started".to_owned(), Does::Waits),
        ("capacity --to", "capacity --to 127.0.0.1:443 --json".to_owned(), Does::Nothing),
        ("connect-test", "connect-test 127.0.0.1:443 --json".to_owned(), Does::Nothing),
        ("connect-test --from", "connect-test 127.0.0.1:443 --from 127.0.0.1:7100 --json".to_owned(), Does::Nothing),
    ];
    subjects.extend(more.into_iter().map(|(name, args, does)| Subject::new(name, &args, does)));
    let chosen = std::env::var("TWTOOL_FAULTS").ok();
    subjects.retain(|subject| chosen.as_ref().is_none_or(|chosen| chosen.split(',').any(|name| name == subject.name)));
    subjects
}

/// How many runs ended in each way, and a description of each run that ended in a wrong way.
#[derive(Default)]
struct Findings {
    number: u32,
    ends: BTreeMap<&'static str, u32>,
    wrong: Vec<String>,
}

impl Findings {
    /// Whether the next case of the matrix is tested.
    fn takes_next(&mut self) -> bool {
        self.number += 1;
        full() || self.number.is_multiple_of(SAMPLE)
    }

    fn add(&mut self, end: &'static str, what: impl FnOnce() -> String) {
        *self.ends.entry(end).or_default() += 1;
        if !ACCEPTED_ENDS.contains(&end) {
            self.wrong.push(format!("{end}: {}", what()));
        }
    }

    fn conclude(self) {
        measured(format!("faults: {:?}", self.ends));
        let first: String = self.wrong.iter().take(if full() { 400 } else { 8 }).cloned().collect();
        assert!(self.wrong.is_empty(), "{} runs ended in a wrong way\n{first}", self.wrong.len());
    }
}

/// Lets the test's thread and the programs that it starts run on one processor only.
fn use_one_processor() {
    let own = Pid::from_raw(0);
    let allowed = sched_getaffinity(own).expect("the processors");
    let first = (0..CpuSet::count()).find(|&cpu| allowed.is_set(cpu).unwrap_or(false)).expect("a processor");
    let mut one = CpuSet::new();
    one.set(first).expect("a processor");
    sched_setaffinity(own, &one).expect("one processor");
}

fn a_call_that_fails_once_changes_no_answer_silently() {
    if let Some(why) = missing_strace() {
        not_checked(format!("single system calls that fail: {why}"));
        return;
    }
    use_one_processor();
    let folder = tempfile::tempdir().expect("a folder");
    let trace = folder.path().join("trace");
    let mut world = World::make();
    let mut findings = Findings::default();
    for subject in subjects(folder.path()) {
        let name = subject.name;
        // The previous command may have removed something.
        world.renew();
        let mut usual = answer(&subject, &mut world);
        subject.prepare(&mut world);
        let made = counted(&trace, &subject.args(&world));
        for (call, errors) in CALLS {
            for error in errors {
                for when in 1..=made[call].min(CALLS_OF_A_KIND) {
                    if !findings.takes_next() {
                        continue;
                    }
                    if !world.situation.is_young() {
                        world.renew();
                        usual = answer(&subject, &mut world);
                    }
                    subject.prepare(&mut world);
                    let before = procfs::bucket_count();
                    let run = injected(&subject.args(&world), call, error, when);
                    let end = judge(&run, &usual, error);
                    let end = subject.fault(&run, before).unwrap_or(end);
                    findings.add(end, || format!("{name}, {call} {error} {when}{run}"));
                }
            }
        }
    }
    findings.conclude();
}

/// The answer of a run without a fault.
fn answer(subject: &Subject, world: &mut World) -> RunAnswer {
    subject.prepare(world);
    RunAnswer::of(&twtool(subject.args(world)))
}

/// Tests `--all-netns` in a pid namespace (see support/private_proc.rs). The test cannot make its network namespaces again when their
/// buckets end: after /proc shows only the processes of the pid namespace, the test's thread has no /proc/thread-self.
fn a_call_that_fails_once_hides_no_namespace() {
    const ARGS: [&str; 4] = ["list", "--all-netns", "-o", "csv"];
    if let Some(why) = missing_strace() {
        not_checked(format!("single system calls that fail with --all-netns: {why}"));
        return;
    }
    use_one_processor();
    let folder = tempfile::tempdir().expect("a folder");
    let pid_namespace = OwnPidNamespace::enter();
    let _there = [BucketNamespace::make(42_001), BucketNamespace::make(42_002)];
    let began = Instant::now();
    if !show_only_own_processes(&pid_namespace) {
        return;
    }
    let usual = RunAnswer::now(&ARGS);
    let made = counted(&folder.path().join("trace"), &ARGS);
    let mut findings = Findings::default();
    for (call, errors) in CALLS {
        for error in errors {
            for when in 1..=made[call].min(CALLS_OF_A_KIND) {
                if !findings.takes_next() {
                    continue;
                }
                if began.elapsed() > Duration::from_secs(50) {
                    not_checked(format!(
                        "calls that fail with --all-netns: {call} and later calls, because the buckets are too old"
                    ));
                    return findings.conclude();
                }
                let run = injected(&ARGS, call, error, when);
                let end = judge(&run, &usual, error);
                findings.add(end, || format!("--all-netns, {call} {error} {when}{run}"));
            }
        }
    }
    findings.conclude();
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
        without(udp, "EIO", &bind_test).code(2).says("it is unknown whether a UDP socket uses the port").says(udp);
    assert_eq!(run.json()["complete"], false, "{run}");
    for (file, args, text) in [
        ("/proc/thread-self/status", ["doctor"].as_slice(), "/proc/thread-self/status could not be read"),
        ("/proc/sys/net/ipv4/tcp_ehash_entries", &["doctor"], "reading /proc/sys/net/ipv4/tcp_ehash_entries failed"),
    ] {
        without(file, "EIO", args).code(2).says(text);
    }
    // It is no failure if the file is absent (ENOENT), or if twtool has no permission to read it (EACCES).
    for error in ["ENOENT", "EACCES"] {
        without(udp, error, &bind_test).code(0);
    }
    // The list of procfs does not contain every socket. So without sock_diag, twtool needs the counts of sockstat and sockstat6.
    // 16 is AF_NETLINK.
    refuse(libc::SYS_socket, Some((0, SeccompCmpOp::Eq, 16)), libc::EPERM);
    for file in ["sockstat", "sockstat6"] {
        let path = format!("/proc/thread-self/net/{file}");
        let run = without(&path, "EIO", &["capacity", "--json"])
            .code(2)
            .says("that the kernel does not list could not be read");
        assert_eq!(run.json()["complete"], false, "{run}");
    }
    without("/proc/thread-self/net/sockstat6", "ENOENT", &["capacity"]).code(0);
}

/// The ends of a run that are correct.
const ACCEPTED_ENDS: [&str; 5] = [
    "the same answer",
    "exit code 2 and a reason",
    "not loaded",
    "a privileged value is null",
    "an option that kernels may lack",
];

/// How a run with one failed call ended.
fn judge(run: &Run, usual: &RunAnswer, error: &str) -> &'static str {
    let answer = RunAnswer::of(run);
    match run.code {
        Some(NOT_LOADED) => "not loaded",
        None => "ended by a signal",
        _ if run.stderr.contains("panicked") => "a panic",
        _ if answer == *usual => "the same answer",
        _ if error == "EINTR" => "EINTR changed the answer",
        Some(2) if run.stderr.is_empty() => "exit code 2 without a reason",
        Some(2) => "exit code 2 and a reason",
        // For a user without privileges, these values may be null, too.
        _ if error == "EACCES" && answer.without_privileged_values() == usual.without_privileged_values() => {
            "a privileged value is null"
        }
        // Older kernels do not have IP_LOCAL_PORT_RANGE. There `capacity` reports the ports that it cannot test as uncertain.
        _ if error == "ENOPROTOOPT" && !run.stderr.is_empty() => "an option that kernels may lack",
        _ if run.stderr.is_empty() => "another answer without a warning",
        _ => "another answer with a warning",
    }
}
