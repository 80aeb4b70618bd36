//! Who holds a port, as `bind-test` tells it: processes found by /proc, and what is said where they cannot be: another
//! user's, and another pid namespace's.

use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use caps::Capability;
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use socket2::Socket;
use twtool::lab::{ActiveCloser, Server};
use twtool::model::bind::ReuseOptions;

use crate::support::limits::drop_capability;
use crate::support::records::{number, sorted, text};
use crate::support::situations::{addr, connect};
use crate::support::twtool::{Keys, PATH, Run, twtool};
use crate::support::{not_checked, suite};

suite! {
    pure: [],
    netns: [
        a_holder_has_its_process_its_inode_and_its_user,
        every_process_that_has_the_socket_open_is_named,
        a_holder_has_the_keys_of_the_contract,
        nobody_owns_a_bucket_or_an_orphan,
        names_that_a_process_gave_itself_do_not_reach_the_terminal,
        processes_that_may_not_be_looked_into_are_unknown,
        processes_of_another_pid_namespace_are_unknown,
    ],
}

fn answer(args: &[&str]) -> Value {
    twtool([&["bind-test", "8080", "--json"], args].concat()).json()
}

fn listener() -> Socket {
    let socket = twtool::sys::bind::socket(addr("127.0.0.1:8080").ip(), ReuseOptions::NONE).expect("a socket");
    socket.bind(&addr("127.0.0.1:8080").into()).expect("bound");
    socket.listen(1).expect("listening");
    socket
}

fn inode(socket: &Socket) -> u64 {
    let link = fs::read_link(format!("/proc/thread-self/fd/{}", socket.as_raw_fd())).expect("a descriptor");
    let text = link.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']'));
    text.and_then(|inode| inode.parse().ok()).expect("socket:[inode]")
}

/// A process with the socket as its standard input; ended with this value.
struct Process(Child);

impl Process {
    fn start(mut command: Command, socket: &Socket) -> Self {
        let socket: OwnedFd = socket.try_clone().expect("a second descriptor").into();
        let child = command.arg("60").stdin(socket).stdout(Stdio::null()).spawn();
        Self(child.expect("sleep can be started"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().expect("our own child");
        self.0.wait().expect("our own child");
    }
}

/// The process of this id among those of a holder.
fn process(holder: &Value, pid: u32) -> &Value {
    let processes = holder["processes"].as_array().unwrap_or_else(|| panic!("no processes in {holder}"));
    processes.iter().find(|process| process["pid"] == pid).unwrap_or_else(|| panic!("no process {pid} in {holder}"))
}

fn a_holder_has_its_process_its_inode_and_its_user() {
    let socket = listener();
    let child = Process::start(Command::new("sleep"), &socket);
    let pid = child.0.id();
    let run = twtool(["bind-test", "8080", "--json"]).code(1);
    let document = run.json();
    let holder = &document["holders"][0];
    assert_eq!(holder["inode"], inode(&socket));
    assert_eq!(holder["uid"], nix::unistd::getuid().as_raw());
    assert_eq!(text(process(holder, pid), "comm"), "sleep");
    assert_eq!((&document["warnings"], run.stderr.as_str()), (&json!([]), ""));
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let paths: Vec<&str> = groups.lines().filter_map(|line| line.splitn(3, ':').nth(2)).collect();
    match process(holder, pid)["cgroup"].as_str() {
        Some(cgroup) => assert!(paths.contains(&cgroup), "{cgroup} among {paths:?}"),
        None => assert_eq!(paths, [""; 0]),
    }
    let who = format!("sleep (pid {pid}");
    let advice = document["advice"][0].as_str().expect("advice");
    assert!(advice.starts_with(&who), "the advice says who: {advice}");
    twtool(["bind-test", "8080"]).code(1).prints(&who).prints(&format!("sleep pid {pid}"));
}

fn every_process_that_has_the_socket_open_is_named() {
    let socket = listener();
    let children = [(); 2].map(|()| Process::start(Command::new("sleep"), &socket));
    // The socket outlives its maker.
    drop(socket);
    let document = answer(&[]);
    assert_eq!((&document["verdict"], &document["cause"]), (&json!("blocked"), &json!("listener")));
    let pids = children.each_ref().map(|child| u64::from(child.0.id()));
    let processes = document["holders"][0]["processes"].as_array().expect("processes");
    assert_eq!(sorted(processes.iter().map(|process| number(process, "pid"))), sorted(pids));
}

fn a_holder_has_the_keys_of_the_contract() {
    #[derive(serde::Deserialize)]
    struct Document {
        holders: Vec<Keys>,
    }
    #[derive(serde::Deserialize)]
    struct Processes {
        holders: [Holder; 1],
    }
    #[derive(serde::Deserialize)]
    struct Holder {
        processes: Vec<Keys>,
    }
    let socket = listener();
    let _child = Process::start(Command::new("sleep"), &socket);
    let run = twtool(["bind-test", "8080", "--json"]).code(1);
    let in_order = |keys: &[String], contract: &[&str]| {
        let known: Vec<_> = keys.iter().filter(|key| contract.contains(&key.as_str())).collect();
        assert_eq!(known, contract, "in {keys:?}");
    };
    let document: Document = serde_json::from_str(&run.stdout).expect("a document");
    let contract = [crate::support::records::LIST_KEYS.as_slice(), &["inode", "processes", "blocks"]].concat();
    in_order(&document.holders[0].0, &contract);
    let Processes { holders: [holder] } = serde_json::from_str(&run.stdout).expect("a document");
    in_order(&holder.processes[0].0, &["pid", "comm", "cgroup"]);
}

fn nobody_owns_a_bucket_or_an_orphan() {
    let socket = twtool::sys::bind::socket(addr("127.0.0.1:8080").ip(), ReuseOptions::NONE).expect("a socket");
    let child = Process::start(Command::new("sleep"), &socket);
    let server = Server::listen_on(socket, addr("127.0.0.1:8080")).expect("a server");
    connect(&server, "127.0.0.1:8080").close(ActiveCloser::Server).expect("a bucket");
    // Accepted by nobody yet: it has no inode.
    let waiting = Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    waiting.connect(&addr("127.0.0.1:8080").into()).expect("connected");
    let document = answer(&[]);
    let nobodys = |state| {
        let mut holders = document["holders"].as_array().expect("holders").iter();
        let holder = holders.find(|holder| holder["state"] == state).unwrap_or_else(|| panic!("no {state}"));
        assert_eq!((&holder["inode"], &holder["processes"]), (&json!(null), &json!([])), "{holder}");
    };
    nobodys("time-wait");
    nobodys("established");
    assert_eq!(process(&document["holders"][0], child.0.id())["comm"], "sleep");
    assert_eq!(document["warnings"], json!([]), "everything is known");
}

/// The program of this name on PATH.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

fn names_that_a_process_gave_itself_do_not_reach_the_terminal() {
    const EVIL: &str = "\x1b[31m\r\ne v\"il";
    let folder = tempfile::tempdir().expect("a folder");
    let link = folder.path().join(EVIL);
    let sleep = program("sleep").expect("sleep is on PATH");
    std::os::unix::fs::symlink(sleep, &link).expect("a link");
    let socket = listener();
    let mut command = Command::new(&link);
    // Multi-call binaries go by the name that they are given.
    command.arg0("sleep");
    let child = Process::start(command, &socket);
    assert_eq!(process(&answer(&[])["holders"][0], child.0.id())["comm"], EVIL);
    let page = twtool(["bind-test", "8080"]).code(1);
    assert!(!page.stdout.contains(['\x1b', '\r']) && !page.stderr.contains(['\x1b', '\r']), "{:?}", page.stdout);
    assert!(page.stdout.contains("e v\"il"), "{page}");
    let json = twtool(["bind-test", "8080", "--json"]).code(1);
    assert!(!json.stdout.contains(['\x1b', '\r']), "{:?}", json.stdout);
}

fn unknown_owner(run: &Run, warning: &str) {
    let document = run.json();
    let holder = &document["holders"][0];
    assert_eq!((&holder["state"], &holder["blocks"]), (&json!("listen"), &json!(true)), "{run}");
    assert!(holder["processes"].is_null(), "unknown is null{run}");
    let warnings = document["warnings"].to_string();
    assert!(warnings.contains(warning), "expected {warning:?} in the warnings{run}");
    assert_eq!((&document["verdict"], &document["cause"]), (&json!("blocked"), &json!("listener")), "{run}");
}

fn processes_that_may_not_be_looked_into_are_unknown() {
    let socket = listener();
    let _child = Process::start(Command::new("sleep"), &socket);
    // Same user, fewer capabilities than the holder: ptrace(2), "Ptrace access mode checking", forbids to read its links.
    drop_capability(Capability::CAP_SYS_PTRACE);
    let run = twtool(["bind-test", "8080", "--json"]).code(1);
    unknown_owner(&run, "CAP_SYS_PTRACE");
    assert!(!run.json()["warnings"].to_string().contains("pid namespace"), "it lives in this one{run}");
}

fn processes_of_another_pid_namespace_are_unknown() {
    const NO_PROC: i32 = 77;
    let socket = listener();
    let _child = Process::start(Command::new("sleep"), &socket);
    if let Err(errno) = unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS) {
        return not_checked(format!("holders in another pid namespace: unshare(CLONE_NEWPID): {errno}"));
    }
    // /proc shows the processes of the namespace in which it was mounted.
    let script = "mount --make-rprivate / && mount -t proc proc /proc || exit 77; exec \"$0\" \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, PATH, "bind-test", "8080", "--json"]);
    let run = Run::of(&mut command);
    if run.code == Some(NO_PROC) {
        return not_checked(format!("holders in another pid namespace: {}", run.stderr.trim()));
    }
    unknown_owner(&run.code(1), "another pid namespace");
}
