//! The processes that `bind-test` names for each socket on the port (each *holder* of the port), and its warning if it cannot find
//! them.

use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use caps::Capability;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use seccompiler::SeccompCmpOp;
use serde_json::{Value, json};
use socket2::Socket;
use twtool::lab::{ActiveCloser, Server};
use twtool::model::bind::ReuseOptions;

use crate::support::limits::{drop_capability, refuse};
use crate::support::records::{number, sorted, text};
use crate::support::situations::{addr, connect};
use crate::support::twtool::{Keys, PATH, Run, program, twtool};
use crate::support::{commands, not_checked, suite};

suite! {
    pure: [],
    netns: [
        the_answer_has_the_process_the_inode_and_the_user_of_a_holder,
        every_process_that_has_the_socket_open_is_named,
        a_holder_has_the_documented_keys_in_order,
        no_process_owns_a_bucket_or_an_unaccepted_connection,
        control_characters_in_a_process_name_do_not_reach_the_terminal,
        processes_that_the_caller_cannot_inspect_are_unknown,
        processes_of_another_pid_namespace_are_unknown,
        a_process_whose_main_thread_has_ended_is_named,
        a_process_is_named_if_only_one_of_its_threads_has_the_socket_open,
        the_listener_of_an_mptcp_endpoint_belongs_to_the_kernel,
        no_process_is_found_for_a_socket_in_a_message,
        an_unlisted_bound_socket_is_found_through_its_process,
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

/// A process with the socket as its standard input. Dropping this value ends the process.
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

fn process(holder: &Value, pid: u32) -> &Value {
    let processes = holder["processes"].as_array().unwrap_or_else(|| panic!("no processes in {holder}"));
    processes.iter().find(|process| process["pid"] == pid).unwrap_or_else(|| panic!("no process {pid} in {holder}"))
}

fn the_answer_has_the_process_the_inode_and_the_user_of_a_holder() {
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
    assert!(advice.contains(&who), "the advice names the process: {advice}");
    twtool(["bind-test", "8080"]).code(1).prints(&who);
}

fn every_process_that_has_the_socket_open_is_named() {
    let socket = listener();
    let children = [(); 2].map(|()| Process::start(Command::new("sleep"), &socket));
    // The children keep the socket open.
    drop(socket);
    let document = answer(&[]);
    assert_eq!((&document["verdict"], &document["cause"]), (&json!("blocked"), &json!("listener")));
    let pids = children.each_ref().map(|child| u64::from(child.0.id()));
    let processes = document["holders"][0]["processes"].as_array().expect("processes");
    assert_eq!(sorted(processes.iter().map(|process| number(process, "pid"))), sorted(pids));
    let advice = document["advice"].to_string();
    assert!(advice.contains("2 processes") && advice.contains("only when all of them have closed it"), "{advice}");
    assert!(pids.iter().all(|pid| advice.contains(&pid.to_string())), "{advice}");
}

fn a_holder_has_the_documented_keys_in_order() {
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
    let in_order = |keys: &[String], documented: &[&str]| {
        let known: Vec<_> = keys.iter().filter(|key| documented.contains(&key.as_str())).collect();
        assert_eq!(known, documented, "in {keys:?}");
    };
    let document: Document = serde_json::from_str(&run.stdout).expect("a document");
    let documented = [crate::support::records::LIST_KEYS.as_slice(), &["inode", "processes", "blocks"]].concat();
    in_order(&document.holders[0].0, &documented);
    let Processes { holders: [holder] } = serde_json::from_str(&run.stdout).expect("a document");
    in_order(&holder.processes[0].0, &["pid", "comm", "cgroup"]);
}

fn no_process_owns_a_bucket_or_an_unaccepted_connection() {
    let socket = twtool::sys::bind::socket(addr("127.0.0.1:8080").ip(), ReuseOptions::NONE).expect("a socket");
    let child = Process::start(Command::new("sleep"), &socket);
    let server = Server::listen_on(socket, addr("127.0.0.1:8080")).expect("a server");
    connect(&server, "127.0.0.1:8080").close(ActiveCloser::Server).expect("a bucket");
    // This connection is not accepted yet, so it has no inode.
    let waiting = Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    waiting.connect(&addr("127.0.0.1:8080").into()).expect("connected");
    let document = answer(&[]);
    let has_no_process = |state| {
        let mut holders = document["holders"].as_array().expect("holders").iter();
        let holder = holders.find(|holder| holder["state"] == state).unwrap_or_else(|| panic!("no {state}"));
        assert_eq!((&holder["inode"], &holder["processes"]), (&json!(null), &json!([])), "{holder}");
    };
    has_no_process("time-wait");
    has_no_process("established");
    assert_eq!(process(&document["holders"][0], child.0.id())["comm"], "sleep");
    assert_eq!(document["warnings"], json!([]), "no warning, because no owner is unknown");
}

fn control_characters_in_a_process_name_do_not_reach_the_terminal() {
    const EVIL: &str = "\x1b[31m\r\ne v\"il";
    let folder = tempfile::tempdir().expect("a folder");
    let link = folder.path().join(EVIL);
    let sleep = program("sleep").expect("sleep is on PATH");
    std::os::unix::fs::symlink(sleep, &link).expect("a link");
    let socket = listener();
    let mut command = Command::new(&link);
    // A multi-call binary such as busybox selects its function by this name.
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

fn processes_that_the_caller_cannot_inspect_are_unknown() {
    let socket = listener();
    let _child = Process::start(Command::new("sleep"), &socket);
    drop(socket);
    // twtool runs as the user of the child process, but with fewer capabilities. So the kernel does not let twtool read the links of
    // the child's descriptors (ptrace(2), "Ptrace access mode checking").
    drop_capability(Capability::CAP_SYS_PTRACE);
    let run = twtool(["bind-test", "8080", "--json"]).code(1);
    unknown_owner(&run, "CAP_SYS_PTRACE");
    assert!(!run.json()["warnings"].to_string().contains("pid namespace"), "the process is in this pid namespace{run}");
}

fn processes_of_another_pid_namespace_are_unknown() {
    const NO_PROC: i32 = 77;
    let socket = listener();
    let _child = Process::start(Command::new("sleep"), &socket);
    if let Err(errno) = unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS) {
        return not_checked(format!("holders in another pid namespace: unshare(CLONE_NEWPID): {errno}"));
    }
    // /proc shows the processes of the pid namespace in which it was mounted, so the script mounts a new /proc.
    let script = "mount --make-rprivate / && mount -t proc proc /proc || exit 77; exec \"$0\" \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, PATH, "bind-test", "8080", "--json"]);
    let run = Run::of(&mut command);
    if run.code == Some(NO_PROC) {
        return not_checked(format!("holders in another pid namespace: {}", run.stderr.trim()));
    }
    unknown_owner(&run.code(1), "another pid namespace");
}

fn a_process_whose_main_thread_has_ended_is_named() {
    // The system call exit ends only the calling thread. The library function exit(3) would end the process.
    const SCRIPT: &str = "import ctypes, platform, threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
ctypes.CDLL(None).syscall({'x86_64': 60}.get(platform.machine(), 93), 0)";
    let Some(python) = program("python3") else { return not_checked("an ended main thread: no python3") };
    let socket = listener();
    let mut command = Command::new(python);
    command.args(["-c", SCRIPT]);
    let mut child = Process::start(command, &socket);
    drop(socket);
    let pid = child.0.id();
    let ended = || fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "));
    while !ended() {
        assert_eq!(child.0.try_wait().expect("our own child"), None, "the other thread keeps the process alive");
        std::thread::yield_now();
    }
    process(&answer(&[])["holders"][0], pid);
}

fn a_process_is_named_if_only_one_of_its_threads_has_the_socket_open() {
    // Each test runs on a thread with its own table of descriptors. So the main thread does not have this socket open.
    let socket = listener();
    let main = fs::read_dir(format!("/proc/{}/fd", std::process::id())).expect("our own descriptors");
    let links: Vec<PathBuf> = main.flatten().filter_map(|entry| fs::read_link(entry.path()).ok()).collect();
    if links.contains(&PathBuf::from(format!("socket:[{}]", inode(&socket)))) {
        return not_checked("a socket of one thread: unshare(CLONE_FILES) is refused");
    }
    process(&answer(&[])["holders"][0], std::process::id());
}

fn the_listener_of_an_mptcp_endpoint_belongs_to_the_kernel() {
    let mut command = Command::new("ip");
    let added = command.args(["mptcp", "endpoint", "add", "127.0.0.1", "port", "8080", "signal"]).output();
    if !added.as_ref().is_ok_and(|output| output.status.success()) {
        return not_checked(format!("the listener of an MPTCP endpoint: {added:?}"));
    }
    let run = twtool(["bind-test", "8080", "--json"]).code(1);
    let document = run.json();
    assert_eq!(document["holders"][0]["processes"], json!([]), "no process owns the listener{run}");
    assert!(
        document["advice"][0].as_str().is_some_and(|advice| advice.contains(": the kernel (MPTCP endpoint).")),
        "{run}"
    );
    assert_eq!(document["warnings"], json!([]), "{run}");
    // The `command` of the first step shows the endpoint, and the `purpose` of this step contains the command that deletes the endpoint.
    let advice = document["advice"][0].to_string();
    assert!(advice.contains("Delete the endpoint") && !advice.contains("Stop that server"), "{run}");
    let step = &document["next"][0];
    let shown = commands::succeeds(step["command"].as_str().expect("a command"));
    let id = shown.stdout.split("id ").nth(1).and_then(|rest| rest.split(' ').next()).expect("an id");
    let delete = step["purpose"].as_str().and_then(|purpose| purpose.split('`').nth(1)).expect("a command");
    commands::succeeds(&delete.replace("ID", id));
    twtool(["bind-test", "8080"]).code(0);
}

fn no_process_is_found_for_a_socket_in_a_message() {
    let socket = listener();
    let (sender, _receiver) = std::os::unix::net::UnixStream::pair().expect("a pair of sockets");
    let data = [std::io::IoSlice::new(b"x")];
    let descriptors = [socket.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&descriptors)];
    sendmsg::<()>(sender.as_raw_fd(), &data, &rights, MsgFlags::empty(), None).expect("sent");
    // Now only the message refers to the socket, and no process has the socket open.
    drop(socket);
    let run = twtool(["bind-test", "8080", "--json"]).code(1);
    let document = run.json();
    assert!(document["holders"][0]["processes"].is_null(), "{run}");
    let warnings = document["warnings"].to_string();
    if warnings.contains("CAP_SYS_PTRACE") {
        return not_checked("a socket that no process has open: not every process may be inspected");
    }
    assert!(warnings.contains("no process was found"), "{run}");
    // The initial pid namespace has this inode (PROC_PID_INIT_INO). In another one, the owner may be a process outside of it, and the
    // warning must say so.
    let initial = fs::read_link("/proc/1/ns/pid").is_ok_and(|link| link.ends_with("pid:[4026531836]"));
    assert_eq!(warnings.contains("pid namespace"), !initial, "{run}");
}

fn an_unlisted_bound_socket_is_found_through_its_process() {
    const NETLINK_SOCK_DIAG: u64 = 4;
    let bound = |at: &str, kind, prepare: fn(&Socket)| {
        let socket = Socket::new(socket2::Domain::for_address(addr(at)), kind, None).expect("a socket");
        prepare(&socket);
        socket.bind(&addr(at).into()).expect("bound");
        socket
    };
    let v6only: fn(&Socket) = |socket| socket.set_only_v6(true).expect("IPV6_V6ONLY");
    let on_lo: fn(&Socket) = |socket| socket.bind_device(Some(b"lo")).expect("SO_BINDTODEVICE");
    let sockets = [
        bound("127.0.0.1:8080", socket2::Type::STREAM, on_lo),
        bound("[::]:8080", socket2::Type::STREAM, v6only),
        // A socket on another TCP port, and a socket on UDP port 8080. Neither is a holder of TCP port 8080.
        bound("127.0.0.1:8081", socket2::Type::STREAM, |_| {}),
        bound("127.0.0.1:8080", socket2::Type::DGRAM, |_| {}),
    ];
    let inodes = sockets.each_ref().map(inode);
    let children = sockets.each_ref().map(|socket| Process::start(Command::new("sleep"), socket));
    drop(sockets);
    // Without sock_diag, twtool reads /proc/net/tcp, which does not list sockets that are only bound. On kernels before 6.8,
    // sock_diag does not list them either.
    refuse(libc::SYS_socket, Some((2, SeccompCmpOp::Eq, NETLINK_SOCK_DIAG)), libc::EPERM);
    let document = answer(&[]);
    assert_eq!((&document["verdict"], &document["cause"]), (&json!("blocked"), &json!("bound")), "{document}");
    let holders = document["holders"].as_array().expect("holders");
    assert_eq!(holders.len(), 2, "{document}");
    for (at, (local, interface)) in [("127.0.0.1", json!("lo")), ("::", json!(null))].into_iter().enumerate() {
        let holder =
            holders.iter().find(|holder| holder["local_addr"] == local).unwrap_or_else(|| panic!("{document}"));
        assert_eq!((&holder["state"], &holder["blocks"]), (&json!("bound-inactive"), &json!(true)), "{holder}");
        assert_eq!((&holder["inode"], &holder["interface"]), (&json!(inodes[at]), &interface), "{holder}");
        process(holder, children[at].0.id());
    }
    // bind-test does not change the sockets.
    assert_eq!(answer(&[])["holders"], document["holders"]);
    // Without this capability, twtool cannot copy the descriptors of the other processes.
    drop_capability(Capability::CAP_SYS_PTRACE);
    let document = answer(&[]);
    assert_eq!((&document["verdict"], &document["cause"]), (&json!("blocked"), &json!("unknown")), "{document}");
    assert_eq!(document["holders"], json!([]));
}
