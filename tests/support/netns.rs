//! Runs each test on its own thread, with its own descriptor table and network namespace.
//!
//! CLONE_NEWNET moves only one thread into a new namespace. The children of the thread inherit the namespace. The kernel removes the
//! namespace when no process, socket, open file or mount uses it.
//!
//! If tests shared the descriptor table, a child that another test spawns would have copies of this test's sockets until it executes
//! its program. A dropped listener would still listen until then.

use std::io::{Read as _, Write as _};
use std::panic::resume_unwind;
use std::process::{Command, Stdio};
use std::thread;

use nix::sched::{CloneFlags, unshare};
use twtool::sys::{sandbox, sysctl};

/// If no network namespace can be made, the tests that need one fail with this environment variable, and are ignored without it.
pub(crate) const REQUIRE: &str = "TWTOOL_REQUIRE_NETNS=1";

pub(crate) fn required() -> bool {
    let (name, value) = REQUIRE.split_once('=').expect("a name and a value");
    std::env::var_os(name).is_some_and(|set| set == value)
}

/// Enters a user namespace. Returns an error if that fails, or if network namespaces cannot be made in it. The process must have a
/// single thread.
pub(crate) fn prepare() -> Result<(), String> {
    if !(nix::unistd::geteuid().is_root() && enter_user_namespace_with_users()) {
        sandbox::enter_user_namespace().map_err(|error| error.to_string())?;
    }
    thread::spawn(sandbox::enter_network_namespace)
        .join()
        .expect("entering a namespace does not panic")
        .map_err(|error| error.to_string())
}

/// The number of user IDs in the user namespace that root makes. Only a process outside of the namespace can map more than one
/// (user_namespaces(7)).
const USERS: u32 = 65536;

/// Enters a user namespace with many user IDs, so that tests can run programs as other users. Needs root. Returns false if that is
/// not possible. Then nothing has changed.
fn enter_user_namespace_with_users() -> bool {
    let script =
        format!("read pid && for m in uid gid; do echo 0 0 {USERS} >/proc/$pid/${{m}}_map || exit; done; echo done");
    let helper = Command::new("sh").args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let Ok(mut helper) = helper else { return false };
    let entered = unshare(CloneFlags::CLONE_NEWUSER).is_ok();
    let mut answer = String::new();
    if entered && let (Some(stdin), Some(stdout)) = (&mut helper.stdin, &mut helper.stdout) {
        let asked = writeln!(stdin, "{}", std::process::id());
        let _ = asked.and_then(|()| stdout.read_to_string(&mut answer));
    }
    // wait() closes the input of the helper. So the helper also ends if no line was written.
    let _ = helper.wait();
    let mapped = answer.trim() == "done";
    // In a user namespace without a map, this process would have no valid user ID.
    assert!(mapped || !entered, "a new user namespace got no users");
    mapped
}

/// Whether tests can run programs as this user.
pub(crate) fn has_user(uid: u32) -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.lines().any(|line| {
        let numbers: Vec<u32> = line.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        matches!(numbers[..], [first, _, count] if uid >= first && uid - first < count)
    })
}

/// Runs the test on its own thread. The thread's capabilities and seccomp filters end with it.
pub(crate) fn on_own_thread(name: &str, test: impl FnOnce() + Send) {
    on_a_thread(name, || {
        // If unshare() is forbidden, network namespaces are forbidden, too, so no test with sockets runs.
        let _ = unshare(CloneFlags::CLONE_FILES);
        test();
    });
}

/// Runs the test on its own thread in a new network namespace with `lo` up.
pub(crate) fn isolated(name: &str, test: fn()) {
    on_own_thread(name, || {
        sandbox::enter_network_namespace().expect("a network namespace, as at the start of the run");
        test();
    });
}

/// Asserts that this thread is not in the network namespace of the host.
#[track_caller]
pub(crate) fn assert_isolated() {
    let of = |thread: &str| std::fs::read_link(format!("/proc/{thread}/ns/net")).expect("a namespace");
    // `self` shows the main thread, which stays in the namespace of the host.
    assert_ne!(of("thread-self"), of("self"), "a test with sockets belongs to `netns` of its suite, not to `pure`");
}

pub(crate) fn on_thread_in_new_namespace<T: Send>(run: impl FnOnce() -> T + Send) -> T {
    on_a_thread("new-namespace", || {
        sandbox::enter_network_namespace().expect("a second network namespace");
        run()
    })
}

/// Runs a function in a new network namespace with its own hash table of connections and buckets. The table has this many chains.
/// Returns `None` if all namespaces of this kernel share one table (before 6.1).
pub(crate) fn with_chains<T: Send>(chains: u32, run: impl FnOnce() -> T + Send) -> Option<T> {
    on_thread_in_new_namespace(|| {
        sysctl::write("ipv4.tcp_child_ehash_entries", &chains.to_string()).ok()?;
        Some(on_thread_in_new_namespace(run))
    })
}

fn on_a_thread<T: Send>(name: &str, run: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, run).expect("a thread");
        thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}
