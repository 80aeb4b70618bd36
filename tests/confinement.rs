//! Landlock and seccomp: a replay is confined before it reads the recording, the exporter before it accepts a request, and
//! `--version --verbose` says what is active. The programs of the systemd units work under the restrictions of these units.

use std::fs;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;

use crate::metrics::samples;
use crate::support::exporter::{Exporter, ask, get};
use crate::support::limits::refuse;
use crate::support::situations::{bucket_of_server, listen};
use crate::support::twtool::{PATH, Run, program, twtool};
use crate::support::{not_checked, suite};

suite! {
    pure: [
        the_version_says_what_is_active,
        verbose_without_version_is_refused,
    ],
    netns: [
        a_replay_is_confined_before_it_reads_the_recording,
        a_replay_works_if_getrandom_is_refused,
        the_exporter_is_confined_and_answers,
        a_confined_exporter_removes_its_unix_socket,
        the_exporter_adds_nothing_to_a_filter_that_it_inherits,
        the_units_run_under_their_own_restrictions,
    ],
}

/// Whether the line of `--version --verbose` says that this is active.
fn is_active(what: &str) -> bool {
    let version = twtool(["--version", "--verbose"]).ok();
    let line = version.stdout.lines().find_map(|line| line.strip_prefix(&format!("{what}: ")));
    line.unwrap_or_else(|| panic!("no line about {what}{version}")).starts_with("active")
}

/// The calls of a command, one a line; `None` if strace cannot be used here.
fn calls(args: &[&str]) -> Option<(Run, String)> {
    let Some(strace) = program("strace") else {
        not_checked("the calls of a replay: strace is not installed");
        return None;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    let run = Run::of(Command::new(strace).args(["-f", "-o"]).arg(&log).arg(PATH).args(args));
    let calls = fs::read_to_string(log).unwrap_or_default();
    if !calls.contains("execve(") {
        not_checked(format!("the calls of a replay: strace cannot trace here{run}"));
        return None;
    }
    Some((run, calls))
}

fn the_version_says_what_is_active() {
    let plain = twtool(["--version"]).ok().stdout;
    let verbose = twtool(["--version", "--verbose"]).ok().stdout;
    let lines: Vec<&str> = verbose.strip_prefix(&plain).expect("the same lines first").lines().collect();
    let [landlock, seccomp] = lines[..] else { panic!("{verbose}") };
    assert!(landlock == "landlock: not available" || landlock.starts_with("landlock: active (ABI "), "{verbose}");
    assert!(["seccomp: not available", "seccomp: active"].contains(&seccomp), "{verbose}");
    let Some((_, calls)) = calls(&["--version", "--verbose"]) else { return };
    let succeeds = |call: &str| calls.lines().any(|line| line.contains(call) && line.trim_end().ends_with("= 0"));
    assert_eq!(is_active("landlock"), succeeds("landlock_restrict_self("), "{calls}");
    assert_eq!(is_active("seccomp"), succeeds("seccomp(SECCOMP_SET_MODE_FILTER"), "{calls}");
}

fn verbose_without_version_is_refused() {
    twtool(["--verbose", "list"]).refused("--verbose");
    twtool(["list", "--verbose"]).refused("--verbose");
}

fn a_replay_is_confined_before_it_reads_the_recording() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).into_os_string().into_string().expect("UTF-8");
    let (one, series) = (path("one"), path("series"));
    let server = listen("127.0.0.1:8080");
    bucket_of_server(&server, "127.0.0.1:8080");
    let list = twtool(["list", "--fin-wait-2", "--record", &one]).ok();
    twtool(["watch", "-o", "ndjson", "--count", "1", "--record", &series]).ok();
    let (landlock, seccomp) = (is_active("landlock"), is_active("seccomp"));
    if !(landlock && seccomp) {
        not_checked(format!("the whole confinement: landlock is active: {landlock}, seccomp: {seccomp}"));
    }
    for args in [
        &["list", "--replay", &one][..],
        &["summary", "--replay", &one],
        &["watch", "-o", "ndjson", "--replay", &series],
    ] {
        let Some((run, calls)) = calls(args) else { return };
        run.ok();
        let at = |text: &str| calls.lines().position(|line| line.contains(text));
        let file = Path::new(args[args.len() - 1]).file_name().and_then(|name| name.to_str()).expect("a name");
        let opened = at(&format!("/{file}\", O_RDONLY|O_NOCTTY"))
            .unwrap_or_else(|| panic!("the recording is not opened\n{calls}"));
        for (active, call) in [(landlock, "landlock_restrict_self("), (seccomp, "seccomp(SECCOMP_SET_MODE_FILTER")] {
            assert!(!active || at(call).is_some_and(|confined| confined < opened), "{args:?}: {call}\n{calls}");
        }
        // Nothing that the replay needs is refused. So the confinement changes no answer.
        let after: Vec<&str> = calls.lines().skip(opened).collect();
        let refused = |line: &&&str| line.contains("EPERM") || line.contains("EACCES");
        assert_eq!(after.iter().find(refused), None, "{args:?}");
    }
    assert_eq!(twtool(["list", "--fin-wait-2", "--replay", &one]).ok().stdout, list.stdout);
}

fn a_replay_works_if_getrandom_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let recording = folder.path().join("one").into_os_string().into_string().expect("UTF-8");
    let server = listen("127.0.0.1:8080");
    bucket_of_server(&server, "127.0.0.1:8080");
    let list = twtool(["list", "--record", &recording]).ok().stdout;
    for errno in [libc::EPERM, libc::ENOSYS] {
        std::thread::spawn({
            let (recording, list) = (recording.clone(), list.clone());
            move || {
                refuse(libc::SYS_getrandom, None, errno);
                assert_eq!(twtool(["list", "--replay", &recording]).ok().stdout, list, "errno {errno}");
            }
        })
        .join()
        .expect("the replay prints the list");
    }
}

fn the_exporter_is_confined_and_answers() {
    let mut exporter = Exporter::start_with(&[], 0);
    let line = exporter.wait_for_line("listening");
    let active: Vec<&str> = ["landlock", "seccomp"].into_iter().filter(|what| is_active(what)).collect();
    let active = if active.is_empty() { "none".to_owned() } else { active.join(",") };
    assert!(line.contains(&format!("confinement={active}")), "{line}");
    for _ in 0..2 {
        assert_eq!(get("/metrics").status, 200);
    }
    assert_eq!(get("/").status, 200);
    if active.contains("seccomp") {
        // The filter is in force on every thread, also on the threads of collections.
        let filters = |name: &str| exporter.status(name);
        assert_eq!((filters("Seccomp").as_str(), filters("NoNewPrivs").as_str()), ("2", "1"));
        for task in fs::read_dir(format!("/proc/{}/task", exporter.pid())).expect("it runs").flatten() {
            let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
            assert!(status.is_empty() || status.contains("Seccomp:\t2"), "{status}");
        }
    }
    exporter.signal(Signal::SIGTERM);
    assert!(exporter.wait().success());
}

fn a_confined_exporter_removes_its_unix_socket() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("socket");
    let mut exporter = Exporter::start(&["--listen", &format!("unix:{}", socket.display())]);
    let stream = std::os::unix::net::UnixStream::connect(&socket).expect("it listens");
    assert_eq!(ask(stream, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").status, 200);
    exporter.signal(Signal::SIGTERM);
    assert!(exporter.wait().success());
    assert!(!socket.exists());
}

fn the_exporter_adds_nothing_to_a_filter_that_it_inherits() {
    // A filter of systemd may end the process at the calls of landlock.
    refuse(libc::SYS_acct, None, libc::EPERM);
    let exporter = Exporter::start_with(&[], 0);
    let line = exporter.wait_for_line("listening");
    assert!(line.contains("confinement=inherited"), "{line}");
    assert_eq!(get("/metrics").status, 200);
}

/// Runs `twtool` with these arguments without capabilities, under the system call restrictions of a unit.
fn under_unit(unit: &str, args: &[&str]) -> Command {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new("setpriv");
    command.args(["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "python3"]);
    command.arg(root.join("tests/support/under_unit.py")).arg(root.join("packaging/systemd").join(unit));
    command.arg(PATH).args(args);
    command
}

fn the_units_run_under_their_own_restrictions() {
    for name in ["setpriv", "python3", "systemd-analyze"] {
        if program(name).is_none() {
            return not_checked(format!("the restrictions of the units: {name} is not installed"));
        }
    }
    // Python has the same filter, so a call that the unit refuses shows that the filter is in force.
    let metrics = under_unit("twtool-metrics.service", &["metrics"]).output().expect("setpriv starts");
    if metrics.status.code() == Some(77) {
        return not_checked("the restrictions of the units: libseccomp or the groups of systemd-analyze are missing");
    }
    let metrics = Run::ended(&under_unit("twtool-metrics.service", &["metrics"]), &metrics).ok();
    assert!(samples(&metrics.stdout).len() > 10, "{metrics}");
    let refused = Run::of(&mut under_unit("twtool-exporter.service", &["why", "--", "true"]));
    assert_ne!(refused.code, Some(0), "ptrace is not in the filter{refused}");
    let mut exporter = Exporter::spawn(under_unit("twtool-exporter.service", &["exporter"]), 0);
    let line = exporter.wait_for_line("listening");
    assert!(line.contains("capabilities=none confinement=inherited"), "{line}");
    assert_eq!(exporter.status("Seccomp"), "2");
    for path in ["/metrics", "/", "/-/healthy"] {
        assert_eq!(get(path).status, 200, "{path}");
    }
    exporter.signal(Signal::SIGTERM);
    assert!(exporter.wait().success());
}
