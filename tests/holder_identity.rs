//! The facts that `bind-test`, `wait` and `doctor` report about the processes whose sockets use a port: user, command line, systemd
//! unit, container, and the address to which docker-proxy forwards.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use caps::Capability;
use serde_json::{Value, json};
use socket2::Socket;
use twtool::model::bind::ReuseOptions;

use crate::support::cgroup::Cgroup;
use crate::support::limits::drop_capability;
use crate::support::situations::addr;
use crate::support::twtool::{PATH, Run, program, twtool};
use crate::support::{not_checked, suite};

suite! {
    pure: [],
    netns: [
        a_process_is_reported_with_its_user_and_its_whole_command_line,
        a_user_that_this_user_namespace_does_not_map_is_unknown,
        a_long_command_line_is_cut_and_escaped_in_a_table,
        docker_proxy_is_named_with_the_address_that_it_forwards_to,
        a_process_in_a_container_is_named_with_the_container,
        a_socket_that_systemd_holds_is_named_with_its_unit,
        if_a_process_is_hidden_the_cgroup_in_which_its_socket_was_created_is_named,
        doctor_reports_container_command_line_and_user_of_a_process,
    ],
}

/// The ID of a container.
const ID: &str = "4f5a1c0de0123456789abcdef0123456789abcdef0123456789abcdef0123456";

fn listener(at: &str) -> Socket {
    let socket = twtool::sys::bind::socket(addr(at).ip(), ReuseOptions::NONE).expect("a socket");
    socket.bind(&addr(at).into()).expect("bound");
    socket.listen(1).expect("listening");
    socket
}

/// A process. Dropping this value ends the process.
struct Running(Child);

impl Running {
    /// Starts a program that has the socket as its standard input.
    fn with(mut command: Command, socket: Socket) -> Self {
        let socket: OwnedFd = socket.into();
        Self(command.stdin(socket).stdout(Stdio::null()).spawn().expect("it can be started"))
    }
}

fn sleep() -> Command {
    let mut command = Command::new("sleep");
    command.arg("60");
    command
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().expect("our own child");
        self.0.wait().expect("our own child");
    }
}

/// Runs `bind-test 8080`. Returns its record of this process, and the run.
fn bind_test_record(pid: u32) -> (Value, Run) {
    let run = twtool(["bind-test", "8080", "--json"]).code(1);
    let document = run.json();
    let processes = document["holders"][0]["processes"].as_array().unwrap_or_else(|| panic!("no processes{run}"));
    let process = processes.iter().find(|process| process["pid"] == pid).unwrap_or_else(|| panic!("no {pid}{run}"));
    (process.clone(), run)
}

/// The words of /proc/PID/cmdline, read by the test.
fn words(pid: u32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).expect("our own child");
    let bytes = bytes.strip_suffix(b"\0").expect("a NUL at the end");
    bytes.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// The name of a user by getent(1), which asks the C library.
fn name_of(uid: u32) -> Value {
    let output = Command::new("getent").args(["passwd", &uid.to_string()]).output().expect("getent");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split(':').next().filter(|name| !name.is_empty()).map_or(Value::Null, Value::from)
}

fn a_process_is_reported_with_its_user_and_its_whole_command_line() {
    let long = "x".repeat(20_000);
    let mut command = Command::new("sh");
    command.args(["-c", "kill -STOP $$; :", "it's", "", "a b", &long, ""]);
    let child = Running::with(command, listener("127.0.0.1:8080"));
    let (process, run) = bind_test_record(child.0.id());
    assert_eq!(process["cmdline"], json!(words(child.0.id())), "{run}");
    assert_eq!(process["cmdline"][6], json!(long), "the whole command line, not a part of it");
    let uid = nix::unistd::geteuid().as_raw();
    assert_eq!((&process["uid"], &process["user"]), (&json!(uid), &name_of(uid)), "{run}");
    let holder = &run.json()["holders"][0];
    assert_eq!((&holder["uid"], &holder["user"]), (&json!(uid), &name_of(uid)), "{run}");
    assert_eq!((&process["container"], &process["forwards_to"]), (&json!(null), &json!(null)), "{run}");
    let user = name_of(uid);
    let page = twtool(["bind-test", "8080"]).code(1);
    let row = page.stdout.lines().find(|line| line.contains("sh -c ")).unwrap_or_else(|| panic!("no command{page}"));
    assert!(row.contains(r"sh -c 'kill -STOP $$; :' 'it'\''s' '' 'a b' xxx") && row.ends_with("..."), "{row}");
    assert!(user.as_str().is_none_or(|user| row.contains(&format!(" {user} "))), "{row}");
    let wait = twtool(["wait", "8080", "--timeout", "0"]).code(1);
    assert!(wait.stdout.contains("sh -c 'kill -STOP $$; :'"), "{wait}");
    let wait = twtool(["wait", "8080", "--timeout", "0", "--json"]).code(1);
    assert_eq!(wait.json()["blocked_by"][0]["processes"], run.json()["holders"][0]["processes"], "{wait}");
}

/// For each user that the user namespace does not map, the kernel reports the overflow uid. Usually this is the uid of `nobody`, so
/// twtool must not print it as a user.
fn a_user_that_this_user_namespace_does_not_map_is_unknown() {
    let Some(unshare) = program("unshare") else {
        return not_checked("a user of another user namespace: there is no unshare(1)");
    };
    // The shell keeps the socket open, as its standard input.
    let script = r#""$0" why -o ndjson -- "$0" bind-test 8080 --with reuseport --json </dev/null"#;
    let socket: OwnedFd = listener("127.0.0.1:8080").into();
    let mut command = Command::new(unshare);
    command.args(["--user", "sh", "-c", &format!("{script}; exit $?"), PATH]).stdin(socket);
    let run = Run::of(&mut command);
    if run.stderr.starts_with("unshare: ") {
        return not_checked("a user of another user namespace: unshare --user does not work here");
    }
    let document = run.json();
    let holder = &document["holders"][0];
    assert_eq!((&holder["uid"], &holder["user"]), (&json!(null), &json!(null)), "{run}");
    let process = &holder["processes"][0];
    assert_eq!(
        (&process["comm"], &process["uid"], &process["user"]),
        (&json!("sh"), &json!(null), &json!(null)),
        "{run}"
    );
    assert!(document["advice"].to_string().contains("The user of a socket is unknown"), "{run}");
    let records = run.stderr.lines().filter(|line| line.contains(r#""errno":"EADDRINUSE""#));
    let records: Vec<Value> = records.map(|line| serde_json::from_str(line).expect("a record")).collect();
    assert!(!records.is_empty() && records.iter().all(|record| record["process"]["uid"].is_null()), "{run}");
}

fn a_long_command_line_is_cut_and_escaped_in_a_table() {
    let mut command = Command::new("sh");
    command.args(["-c", "kill -STOP $$; :", "\x1b[2J\r\u{202e}", &"中".repeat(100)]);
    let child = Running::with(command, listener("127.0.0.1:8080"));
    let page = twtool(["bind-test", "8080"]).code(1);
    assert!(!page.stdout.contains(['\x1b', '\r', '\u{202e}']), "{:?}", page.stdout);
    let row = page.stdout.lines().find(|line| line.contains("sh -c ")).unwrap_or_else(|| panic!("no command{page}"));
    let shown = row.split_once("sh -c ").expect("the command").1;
    assert!(unicode_width::UnicodeWidthStr::width(shown) <= 80 - "sh -c ".len(), "{row}");
    assert_eq!(bind_test_record(child.0.id()).0["cmdline"], json!(words(child.0.id())));
}

fn docker_proxy_is_named_with_the_address_that_it_forwards_to() {
    let folder = tempfile::tempdir().expect("a folder");
    let link = folder.path().join("docker-proxy");
    std::os::unix::fs::symlink(program("sh").expect("a shell"), &link).expect("a link");
    let mut command = Command::new(&link);
    command.arg0("/usr/bin/docker-proxy").args(["-c", "kill -STOP $$; :", "-proto", "tcp", "-host-ip", "127.0.0.1"]);
    command.args(["-host-port", "8080", "-container-ip", "172.17.0.2", "-container-port", "80"]);
    let child = Running::with(command, listener("127.0.0.1:8080"));
    let (process, run) = bind_test_record(child.0.id());
    assert_eq!(process["forwards_to"], "172.17.0.2:80", "{run}");
    let step = run.json()["next"][0]["command"].to_string();
    // The container continues when docker-proxy ends. So the step shows the container, and does not end docker-proxy.
    assert!(step.contains("docker ps --filter publish=8080"), "{run}");
    let page = twtool(["bind-test", "8080"]).code(1);
    let first = page.stdout.lines().next().unwrap_or_default().to_owned();
    assert!(first.contains("docker-proxy (pid ") && first.contains("forwards to 172.17.0.2:80)"), "{page}");
}

/// Makes a cgroup of this name. If that is not possible, notes the reason and returns `None`.
fn cgroup(name: &str) -> Option<Cgroup> {
    Cgroup::make(name).map_err(|why| not_checked(format!("the cgroup {name} of a process: {why}"))).ok()
}

fn a_process_in_a_container_is_named_with_the_container() {
    for (name, runtime) in [("docker", json!("docker")), ("libpod", json!("podman")), ("crio", json!("cri-o"))] {
        let Some(cgroup) = cgroup(&format!("{name}-{ID}.scope")) else { return };
        let child = Running::with(sleep(), listener("127.0.0.1:8080"));
        if let Err(error) = cgroup.add(child.0.id()) {
            return not_checked(format!("a process in a container: {error}"));
        }
        let (process, run) = bind_test_record(child.0.id());
        assert_eq!(process["container"], json!({ "runtime": runtime, "id": ID }), "{run}");
        assert_eq!(process["cgroup"], cgroup.path(), "{run}");
        let first = twtool(["bind-test", "8080"]).code(1).stdout;
        let runtime = runtime.as_str().expect("a name");
        assert!(first.contains(&format!(", {runtime} container {})", &ID[..12])), "{first}");
        let step = run.json()["next"][0]["command"].to_string();
        match name {
            "docker" => assert!(step.contains(&format!("docker stop {}", &ID[..12])), "{step}"),
            "libpod" => assert!(step.contains(&format!("podman stop {}", &ID[..12])), "{step}"),
            _ => assert!(step.contains(&format!("kill {}", child.0.id())), "{step}"),
        }
        drop(child);
    }
}

/// A Python program that creates a listener in a cgroup, leaves that cgroup, and changes the name of its process.
const CREATES: &str = "import socket, sys, time
name, count = sys.argv[1], (len(sys.argv) - 2) // 2
def move(files):
    for file in files: open(file, 'w').write('0')
move(sys.argv[2:2 + count])
s = socket.socket()
s.bind(('127.0.0.1', 8080))
s.listen()
move(sys.argv[2 + count:])
open('/proc/self/comm', 'w').write(name)
print('ready', flush=True)
time.sleep(60)";

/// Runs [`CREATES`] with this cgroup. The process gets the name `comm`. If that is not possible, notes the reason and returns `None`.
fn creates_in(cgroup: &Cgroup, comm: &str) -> Option<Running> {
    let Some(python) = program("python3") else {
        not_checked("the cgroup of a socket: no python3");
        return None;
    };
    let mut command = Command::new(python);
    command.args(["-c", CREATES, comm]).args(cgroup.files()).args(cgroup.root_files());
    let mut child = Running(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("python3"));
    let mut line = String::new();
    BufReader::new(child.0.stdout.take().expect("a pipe")).read_line(&mut line).expect("read");
    if line.trim() == "ready" {
        return Some(child);
    }
    let mut why = String::new();
    let _ = std::io::Read::read_to_string(&mut child.0.stderr.take().expect("a pipe"), &mut why);
    not_checked(format!("the cgroup of a socket: {}", why.lines().last().unwrap_or_default()));
    None
}

/// Whether this kernel reports the cgroup in which a socket was created (since 5.8). If it does not, notes that this is not checked.
fn reports_cgroups() -> bool {
    let reports = twtool::source::kernel_facts().kernel_since(5, 8) != Some(false);
    if !reports {
        not_checked("the cgroup of a socket: this kernel does not report it");
    }
    reports
}

fn a_socket_that_systemd_holds_is_named_with_its_unit() {
    let Some(cgroup) = cgroup("demo.socket") else { return };
    let Some(child) = creates_in(&cgroup, "systemd").filter(|_| reports_cgroups()) else { return };
    let pid = child.0.id();
    let (process, run) = bind_test_record(pid);
    assert_eq!((&process["unit"], &process["comm"]), (&json!("demo.socket"), &json!("systemd")), "{run}");
    assert_ne!(process["cgroup"], cgroup.path(), "the process itself is in another cgroup{run}");
    assert_eq!(run.json()["holders"][0]["created_in"], cgroup.path(), "{run}");
    let page = twtool(["bind-test", "8080"]).code(1);
    assert!(page.stdout.contains(&format!("systemd (pid {pid}, demo.socket)")), "{page}");
    // The process is called systemd but is not process 1, so twtool takes it for the systemd manager of a user.
    assert_eq!(run.json()["next"][0]["command"], "systemctl --user stop demo.socket", "{run}");
    // In place of systemctl, a script ends the process.
    let folder = tempfile::tempdir().expect("a folder");
    let script = folder.path().join("systemctl");
    fs::write(&script, format!("#!/bin/sh\n[ \"$*\" = '--user stop demo.socket' ] && kill {pid}\n")).expect("written");
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("executable");
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").expect("PATH"));
    let line = run.json()["next"][0]["command"].as_str().expect("a command").to_owned();
    assert!(Command::new("sh").args(["-c", &line]).env("PATH", path).status().expect("a shell").success(), "{line}");
    drop(child);
    twtool(["bind-test", "8080"]).code(0);

    // For a process with another name, twtool does not take the unit from the cgroup in which the socket was created.
    let Some(child) = creates_in(&cgroup, "inetd") else { return };
    let (process, run) = bind_test_record(child.0.id());
    assert_ne!(process["unit"], "demo.socket", "{run}");
}

fn if_a_process_is_hidden_the_cgroup_in_which_its_socket_was_created_is_named() {
    let Some(cgroup) = cgroup("demo.service") else { return };
    let Some(_child) = creates_in(&cgroup, "demo").filter(|_| reports_cgroups()) else { return };
    drop_capability(Capability::CAP_SYS_PTRACE);
    let run = twtool(["bind-test", "8080", "--json"]).code(1);
    let document = run.json();
    let holder = &document["holders"][0];
    assert_eq!((&holder["processes"], &holder["created_in"]), (&json!(null), &json!(cgroup.path())), "{run}");
    let uid = nix::unistd::geteuid().as_raw();
    let user = name_of(uid).as_str().map_or(String::new(), |name| format!(", {name}"));
    let page = twtool(["bind-test", "8080"]).code(1);
    page.prints(&format!(
        "a process that this user has no permission to see (uid {uid}{user}; the socket was created in demo.service)"
    ))
    .prints(&format!("uid {uid}{user}, created in demo.service: no permission to see the process"));
}

fn doctor_reports_container_command_line_and_user_of_a_process() {
    let Some(cgroup) = cgroup(&format!("docker-{ID}.scope")) else { return };
    let child = Running::with(sleep(), listener("127.0.0.1:40000"));
    if let Err(error) = cgroup.add(child.0.id()) {
        return not_checked(format!("a process in a container: {error}"));
    }
    let run = twtool(["doctor", "--json"]);
    let document = run.json();
    let checks = document["checks"].as_array().expect("checks");
    let check = checks.iter().find(|check| check["id"] == "ephemeral_listeners").expect("the check");
    let process = &check["evidence"]["listeners"][0]["processes"][0];
    assert_eq!(process["container"], json!({ "runtime": "docker", "id": ID }), "{run}");
    assert_eq!(process["cmdline"], json!(["sleep", "60"]), "{run}");
    assert_eq!(process["uid"], nix::unistd::geteuid().as_raw(), "{run}");
    let name = format!("sleep pid {} (docker container {})", child.0.id(), &ID[..12]);
    assert!(check["finding"].as_str().is_some_and(|finding| finding.contains(&name)), "{run}");
}
