//! Checks the reason (`obstacle`) that twtool prints with a command that cannot work where twtool runs, for example because a capability is
//! missing. The tests run most of the commands: a command with a reason must fail, and a command without a reason must work.

use std::fs;
use std::process::{Command, Stdio};

use caps::Capability;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statvfs::{FsFlags, statvfs};
use serde_json::Value;
use twtool::lab::{ActiveCloser, Server};
use twtool::model::bind::ReuseOptions;
use twtool::sys::sysctl;

use crate::support::commands;
use crate::support::limits::drop_capability;
use crate::support::private_proc::Resident;
use crate::support::records::text;
use crate::support::situations::{addr, bucket_of_server, connect, half_closed, listen};
use crate::support::twtool::{PATH, Run, program, twtool};
use crate::support::{kernel, not_checked, procfs, suite};

suite! {
    pure: [],
    netns: [
        without_cap_net_admin_kill_has_a_reason_and_fails,
        only_commands_for_a_setting_that_cannot_be_written_have_a_reason,
        a_read_only_proc_sys_is_named,
        without_cap_sys_admin_commands_that_enter_a_namespace_have_a_reason,
        with_no_new_privs_commands_with_sudo_have_a_reason,
    ],
}

const LACKS_NET_ADMIN: &str = "needs CAP_NET_ADMIN, which root lacks here";
const READ_ONLY: &str = "cannot work here: /proc/sys/net is mounted read-only";

/// Makes a TIME_WAIT socket on port 8080. The server had set no option on its socket.
fn bucket() {
    let server = Server::listen(addr("127.0.0.1:8080"), ReuseOptions::NONE).expect("listening");
    connect(&server, "127.0.0.1:8080").close(ActiveCloser::Server).expect("a bucket");
}

/// The command of a step, and the reason why the command fails here, if twtool prints one.
fn parts(step: &Value) -> (&str, Option<&str>) {
    assert!(step.get("obstacle").is_some(), "no key: {step}");
    (text(step, "command"), step["obstacle"].as_str())
}

fn find<'a>(steps: &'a Value, word: &str) -> (&'a str, Option<&'a str>) {
    let steps = steps.as_array().expect("steps");
    parts(steps.iter().find(|step| text(step, "command").contains(word)).unwrap_or_else(|| panic!("{word}: {steps:?}")))
}

fn without_cap_net_admin_kill_has_a_reason_and_fails() {
    kernel::needs(kernel::destroys_buckets(), "SOCK_DESTROY of buckets");
    bucket();
    let document = || twtool(["bind-test", "8080", "--json"]).code(1).json()["next"].clone();
    assert_eq!(find(&document(), " kill ").1, None);
    drop_capability(Capability::CAP_NET_ADMIN);
    let next = document();
    assert_eq!(find(&next, " wait ").1, None, "wait needs no privilege");
    let (kill, obstacle) = find(&next, " kill ");
    assert_eq!(obstacle, Some(LACKS_NET_ADMIN));
    commands::run(&format!("{kill} --yes")).code(2).says("CAP_NET_ADMIN");
    assert_eq!(procfs::bucket_count(), 1, "{kill}");
    // The text output and the hint of kill also have the reason.
    twtool(["bind-test", "8080"]).code(1).prints(&format!("({LACKS_NET_ADMIN}):"));
    let server = listen("127.0.0.1:8081");
    let _peer = half_closed(&server, "127.0.0.1:8081", ActiveCloser::Server);
    let hint = twtool(["kill", "--local-port", "8081", "--dry-run"]).code(1);
    hint.says("--fin-wait-2 selects it: ").says(&format!("({LACKS_NET_ADMIN})"));
}

/// The steps of `doctor` and `capacity` that change settings.
fn steps_about_settings(netns: &[&str]) -> Vec<Value> {
    let doctor = twtool([&["doctor", "--json"], netns].concat()).code(1).json();
    let checks = doctor["checks"].as_array().expect("checks").iter();
    let of_checks = checks.flat_map(|check| check["commands"].as_array().expect("commands").clone());
    let capacity = twtool([&["capacity", "--json"], netns].concat()).json();
    let all = of_checks.chain(capacity["commands"].as_array().expect("commands").clone());
    all.filter(|step| ["sysctl", "/proc/sys"].iter().any(|word| text(step, "command").contains(word))).collect()
}

/// Makes problems for `doctor` and `capacity`: a listener in the ephemeral range, timestamps that are off, and a full range.
fn settings_are_wrong() -> impl Sized {
    sysctl::write("ipv4.tcp_timestamps", "0").expect("the namespace is ours");
    sysctl::write("ipv4.tcp_tw_reuse", "1").expect("the namespace is ours");
    sysctl::write("ipv4.ip_local_port_range", "40000 40000").expect("the namespace is ours");
    let server = listen("127.0.0.1:40000");
    bucket_of_server(&server, "127.0.0.1:40000");
    server
}

/// Asserts that each step has this reason, then runs the step, which must fail if it has a reason and work if it has none.
fn check(steps: &[Value], expected: Option<&str>) {
    assert!(steps.len() >= 3, "doctor prints two commands, and capacity prints one: {steps:?}");
    for step in steps {
        let (line, obstacle) = parts(step);
        assert_eq!(obstacle, expected, "{line}");
        let run = commands::run(line);
        assert_eq!(run.code == Some(0), obstacle.is_none(), "{run}");
    }
}

fn missing_program() -> bool {
    let missing = ["sysctl", "nsenter"].into_iter().find(|name| program(name).is_none());
    if let Some(name) = missing {
        not_checked(format!("commands that cannot work: {name} is not installed"));
    }
    missing.is_some()
}

fn only_commands_for_a_setting_that_cannot_be_written_have_a_reason() {
    if missing_program() {
        return;
    }
    let _wrong = settings_are_wrong();
    drop_capability(Capability::CAP_NET_ADMIN);
    // Only user 0 of the initial user namespace can write a setting without a capability.
    let writable = fs::OpenOptions::new().write(true).open("/proc/sys/net/ipv4/tcp_timestamps").is_ok();
    check(&steps_about_settings(&[]), (!writable).then_some(LACKS_NET_ADMIN));
}

fn a_read_only_proc_sys_is_named() {
    if missing_program() {
        return;
    }
    let _wrong = settings_are_wrong();
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
    // In a user namespace, the kernel locks the flags of the existing mount, so the remount must have them, too.
    let held = statvfs("/proc/sys").expect("/proc/sys").flags();
    let locked = [
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
    ];
    let locked: MsFlags =
        locked.into_iter().filter(|(held_one, _)| held.contains(*held_one)).map(|(_, flag)| flag).collect();
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | locked;
    let mounted = mount(Some("/proc/sys"), "/proc/sys", none, MsFlags::MS_BIND | MsFlags::MS_REC, none)
        .and_then(|()| mount(none, "/proc/sys", none, flags, none));
    if let Err(error) = mounted {
        return not_checked(format!("a read-only /proc/sys: it cannot be mounted here: {error}"));
    }
    check(&steps_about_settings(&[]), Some(READ_ONLY));
}

fn without_cap_sys_admin_commands_that_enter_a_namespace_have_a_reason() {
    if missing_program() {
        return;
    }
    let _wrong = settings_are_wrong();
    // The resident process is in the caller's own network namespace. twtool need not enter it, but the printed nsenter tries to enter it.
    let resident = Resident::start();
    let pid = resident.pid();
    drop_capability(Capability::CAP_SYS_ADMIN);
    check(&steps_about_settings(&["--netns", &pid]), Some("needs CAP_SYS_ADMIN, which root lacks here"));
}

fn with_no_new_privs_commands_with_sudo_have_a_reason() {
    kernel::needs(kernel::destroys_buckets(), "SOCK_DESTROY of buckets");
    let (Some(unshare), Some(setpriv)) = (program("unshare"), program("setpriv")) else {
        return not_checked("no_new_privs: unshare or setpriv is not installed");
    };
    bucket();
    for (no_new_privs, expected) in
        [(true, Some("needs root, and sudo cannot work here: no_new_privs is set")), (false, None)]
    {
        let mut command = Command::new(&unshare);
        command.args(["-U", "--map-user=1000", "--map-group=1000"]);
        if no_new_privs {
            command.arg(&setpriv).arg("--no-new-privs");
        }
        let run = Run::of(command.args([PATH, "bind-test", "8080", "--json"]).stdin(Stdio::null()));
        if run.stderr.starts_with("unshare: ") {
            return not_checked("no_new_privs: unshare --map-user does not work here");
        }
        let next = run.json()["next"].clone();
        let (line, obstacle) = find(&next, " kill ");
        assert!(line.starts_with("sudo "), "{run}");
        assert_eq!(obstacle, expected, "{run}");
        assert_eq!(find(&next, " wait ").1, None, "{run}");
    }
}
