//! Landlock and seccomp: a replay is confined before it reads the recording, the exporter before it accepts a request, and
//! `--version --verbose` shows what is active. The programs of the systemd units work under the restrictions of these units.

use std::fs::{self, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::metrics::samples;
use crate::support::commands::needs_program;
use crate::support::exporter::{Exporter, ask, get};
use crate::support::kernel::NotChecked;
use crate::support::limits::refuse;
use crate::support::netns::has_user;
use crate::support::private_proc;
use crate::support::situations::{bucket_of_server, listen};
use crate::support::twtool::{PATH, Run, program, twtool};
use crate::support::{not_checked, suite};

suite! {
    pure: [
        the_version_shows_what_is_active,
        verbose_without_version_is_refused,
    ],
    netns: [
        a_replay_is_confined_before_it_reads_the_recording,
        a_replay_works_if_getrandom_is_refused,
        the_exporter_is_confined_and_answers,
        a_confined_exporter_removes_its_unix_socket,
        the_exporter_adds_nothing_to_a_filter_that_it_inherits,
        the_units_run_under_their_own_restrictions,
        a_drop_in_lets_the_exporter_name_owners,
        a_drop_in_lets_the_exporter_enter_other_namespaces,
    ],
}

/// Whether `--version --verbose` reports `landlock` or `seccomp` as active.
pub(crate) fn is_active(what: &str) -> bool {
    let version = twtool(["--version", "--verbose"]).ok();
    let line = version.stdout.lines().find_map(|line| line.strip_prefix(&format!("{what}: ")));
    line.unwrap_or_else(|| panic!("no line about {what}{version}")).starts_with("active")
}

/// The system calls of a command, one on each line; `None` if strace cannot be used here.
fn calls(args: &[&str]) -> Option<(Run, String)> {
    let Some(strace) = program("strace") else {
        not_checked(format!("the system calls of twtool {args:?}: strace is not installed"));
        return None;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    let run = Run::of(Command::new(strace).args(["-f", "-o"]).arg(&log).arg(PATH).args(args));
    let calls = fs::read_to_string(log).unwrap_or_default();
    if !calls.contains("execve(") {
        not_checked(format!("the system calls of twtool {args:?}: strace cannot trace here{run}"));
        return None;
    }
    Some((run, calls))
}

fn the_version_shows_what_is_active() {
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
        // The confinement refuses nothing that the replay needs.
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
        // The filter is in force on every thread, also on the threads that collect the metrics.
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
    // twtool makes no Landlock call if it inherits a seccomp filter, because a filter of systemd may end the process at such a call.
    refuse(libc::SYS_acct, None, libc::EPERM);
    let exporter = Exporter::start_with(&[], 0);
    let line = exporter.wait_for_line("listening");
    assert!(line.contains("confinement=inherited"), "{line}");
    assert_eq!(get("/metrics").status, 200);
}

/// The uid of a user without privileges, who runs the exporter.
const CALLER: u32 = 34;
/// The uid of another user, whose process has a socket open.
const OTHER: u32 = 33;

/// A folder that every user may enter. It has a unit of packaging/systemd, a drop-in, twtool, and the script that runs twtool under
/// the system call restrictions of the unit.
struct Unit(TempDir);

impl Unit {
    fn new(unit: &str, drop_in: &str) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folder = tempfile::tempdir().expect("a folder");
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("its own folder");
        for (from, name) in [
            (root.join("packaging/systemd").join(unit), "unit"),
            (root.join("tests/support/under_unit.py"), "under_unit.py"),
            (PathBuf::from(PATH), "twtool"),
        ] {
            fs::copy(&from, folder.path().join(name)).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
        }
        fs::write(folder.path().join("drop-in"), drop_in).expect("written");
        Self(folder)
    }

    /// The command that runs twtool with `args`. `user` has the arguments of setpriv for the user and the capabilities of
    /// twtool.
    fn run(&self, user: &[&str], args: &[&str]) -> Command {
        let mut command = Command::new("setpriv");
        command
            .arg("--no-new-privs")
            .args(user)
            .args(["python3", "under_unit.py", "unit:drop-in", "./twtool"])
            .args(args);
        // The PATH that systemd sets. Other users may not be able to enter every folder of root's PATH.
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.current_dir(self.0.path()).stdin(Stdio::null());
        command
    }
}

/// The arguments of setpriv for a unit without `AmbientCapabilities=`: no capability.
const NONE: [&str; 2] = ["--bounding-set=-all", "--inh-caps=-all"];

/// The last drop-in of docs/privileges.md that contains this text, and the arguments with which setpriv runs a program as [`CALLER`] with
/// the capabilities of the drop-in.
fn drop_in(text: &str) -> (String, Vec<String>) {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/privileges.md")).expect("the page");
    let blocks = page.split("```ini\n# systemctl edit twtool-exporter.service\n").skip(1);
    let blocks = blocks.filter_map(|rest| rest.split("```").next());
    let block = blocks.filter(|block| block.contains(text)).last().expect("a drop-in with this text").to_owned();
    let sets = ["AmbientCapabilities=", "CapabilityBoundingSet="].map(|name| {
        let value = block.lines().find_map(|line| line.strip_prefix(name)).expect("the setting");
        value.split(' ').map(|name| format!("+{}", &name.to_lowercase()["cap_".len()..])).collect::<Vec<_>>().join(",")
    });
    let [ambient, bounding] = sets;
    let user = format!(
        "--reuid={CALLER} --regid={CALLER} --clear-groups --inh-caps=-all,{ambient} --ambient-caps=-all,{ambient} \
         --bounding-set=-all,{bounding}"
    );
    (block, user.split_whitespace().map(str::to_owned).collect())
}

/// Runs the exporter under its unit with this drop-in, and scrapes it once. `user` has the arguments of setpriv. Returns the log line
/// `listening` and the metrics.
fn scrape(drop_in: &str, user: &[String], args: &[&str]) -> (String, String) {
    let unit = Unit::new("twtool-exporter.service", drop_in);
    let user: Vec<&str> = user.iter().map(String::as_str).collect();
    let exporter = Exporter::spawn(unit.run(&user, &[&["exporter"], args].concat()), 0);
    let line = exporter.wait_for_line("listening");
    let response = get("/metrics");
    assert_eq!(response.status, 200, "{line}");
    (line, response.body)
}

/// Skips the test if this machine cannot run a program under a unit, or as another user.
fn needs_units_and_users(users: &[u32]) {
    for name in ["setpriv", "python3", "systemd-analyze"] {
        needs_program(name);
    }
    // Exit code 77 means that libseccomp or systemd-analyze is missing.
    let version = Run::of(&mut Unit::new("twtool-metrics.service", "").run(&NONE, &["--version"]));
    if version.code == Some(77) || !users.iter().all(|user| has_user(*user)) {
        let why = "the restrictions of the units: libseccomp, systemd-analyze or users are missing";
        std::panic::resume_unwind(Box::new(NotChecked(why.into())));
    }
}

/// A process. Dropping this value ends the process.
struct Owner(Child);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.kill().and_then(|()| self.0.wait()).expect("it can be ended");
    }
}

fn a_drop_in_lets_the_exporter_name_owners() {
    needs_units_and_users(&[CALLER, OTHER]);
    // A process of another user keeps a socket whose peer has closed.
    let server = listen("127.0.0.1:8080");
    let client = std::net::TcpStream::connect("127.0.0.1:8080").expect("connected");
    let accepted: OwnedFd = server.accept().expect("accepted").into();
    drop(client);
    let mut sleep = Command::new("sleep");
    let _owner = Owner(sleep.arg("60").uid(OTHER).stdin(accepted).stdout(Stdio::null()).spawn().expect("sleep starts"));
    let (block, user) = drop_in("CAP_DAC_READ_SEARCH");
    let unknown = |body: &str| {
        let values = body.lines().filter_map(|line| line.strip_prefix("twtool_close_wait_unknown_owner_sockets"));
        values.filter_map(|rest| rest.split(' ').next_back()?.parse::<f64>().ok()).sum::<f64>()
    };
    // The exporter counts a CLOSE_WAIT socket by its owner, or as one of an unknown owner, only if the last ACK of the peer is at least
    // this old.
    let idle = ["--close-wait-after", "1ms"];
    let (line, body) = scrape(&block, &user, &idle);
    let no_capabilities = user.iter().filter(|word| !word.contains("-caps=-all,")).cloned();
    let no_capabilities: Vec<String> = no_capabilities.collect();
    let (without, body_without) = scrape("", &no_capabilities, &idle);
    assert!(line.contains("capabilities=CAP_SYS_PTRACE,CAP_DAC_READ_SEARCH confinement=inherited"), "{line}");
    assert!(without.contains("capabilities=none"), "{without}");
    assert_eq!((unknown(&body), unknown(&body_without)), (0.0, 1.0), "{body}\n{body_without}");
}

fn a_drop_in_lets_the_exporter_enter_other_namespaces() {
    needs_units_and_users(&[CALLER, OTHER]);
    private_proc::mount_private_folders();
    private_proc::in_new_namespace(|| private_proc::name_this_namespace("other"));
    let (block, user) = drop_in("RestrictNamespaces=net");
    let (line, body) = scrape(&block, &user, &["--all-netns"]);
    assert!(line.contains("capabilities=CAP_SYS_PTRACE,CAP_SYS_ADMIN"), "{line}");
    let has_other =
        |body: &str| body.lines().any(|line| line.starts_with("twtool_timewait") && line.contains("\"other\""));
    assert!(has_other(&body), "{body}");
    // twtool-metrics.service runs as root, with the capabilities of the bounding set.
    let bounding: Vec<&str> =
        user.iter().filter(|word| word.starts_with("--bounding-set")).map(String::as_str).collect();
    let root = [&bounding[..], &["--inh-caps=-all"]].concat();
    let metrics = Unit::new("twtool-metrics.service", &block);
    assert!(has_other(&Run::of(&mut metrics.run(&root, &["metrics", "--all-netns"])).stdout));
    // Without the line RestrictNamespaces=net, the exporter cannot enter the other namespace.
    let (_, body) = scrape(&block.replace("RestrictNamespaces=net", ""), &user, &["--all-netns"]);
    assert!(!has_other(&body), "{body}");
}

fn the_units_run_under_their_own_restrictions() {
    needs_units_and_users(&[]);
    let metrics = Run::of(&mut Unit::new("twtool-metrics.service", "").run(&NONE, &["metrics"])).ok();
    assert!(samples(&metrics.stdout).len() > 10, "{metrics}");
    let unit = Unit::new("twtool-exporter.service", "");
    // `why` needs ptrace, which the unit does not allow. So a failure of `why` shows that the filter of the unit is in force.
    let refused = Run::of(&mut unit.run(&NONE, &["why", "--", "true"]));
    assert_ne!(refused.code, Some(0), "the unit does not allow ptrace{refused}");
    let mut exporter = Exporter::spawn(unit.run(&NONE, &["exporter"]), 0);
    let line = exporter.wait_for_line("listening");
    assert!(line.contains("capabilities=none confinement=inherited"), "{line}");
    assert_eq!(exporter.status("Seccomp"), "2");
    for path in ["/metrics", "/", "/-/healthy"] {
        assert_eq!(get(path).status, 200, "{path}");
    }
    exporter.signal(Signal::SIGTERM);
    assert!(exporter.wait().success());
}
