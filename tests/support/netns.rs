//! A thread for one test, with its own descriptor table and network namespace.
//!
//! CLONE_NEWNET moves only one thread. Its children inherit the namespace, which ends with the thread and its sockets. The
//! descriptor table is not shared, because a child that another test spawns would keep copies of this test's sockets until it
//! executes its program. A dropped listener would still listen until then.

use std::panic::resume_unwind;
use std::thread;

use nix::sched::{CloneFlags, unshare};
use twtool::sys::{sandbox, sysctl};

/// With this environment variable, tests that need a namespace fail if none can be made.
pub(crate) const REQUIRE: &str = "TWTOOL_REQUIRE_NETNS=1";

/// Whether namespaces are required.
pub(crate) fn required() -> bool {
    let (name, value) = REQUIRE.split_once('=').expect("a name and a value");
    std::env::var_os(name).is_some_and(|set| set == value)
}

/// Enters a user namespace, and tests whether network namespaces can be made in it. The process must have a single thread.
pub(crate) fn prepare() -> Result<(), String> {
    sandbox::enter_user_namespace().map_err(|error| error.to_string())?;
    thread::spawn(sandbox::enter_network_namespace)
        .join()
        .expect("entering a namespace does not panic")
        .map_err(|error| error.to_string())
}

/// Runs the test on its own thread. The thread's capabilities and seccomp filters end with it.
pub(crate) fn alone(name: &str, test: impl FnOnce() + Send) {
    on_a_thread(name, || {
        // If even this is forbidden, no test with sockets runs, and copied pipes only delay the end of a run.
        let _ = unshare(CloneFlags::CLONE_FILES);
        test();
    });
}

/// Runs the test on its own thread in a new network namespace with `lo` up.
pub(crate) fn isolated(name: &str, test: fn()) {
    alone(name, || {
        sandbox::enter_network_namespace().expect("a network namespace, as at the start of the run");
        test();
    });
}

/// Runs a function on a new thread in a new network namespace.
pub(crate) fn elsewhere<T: Send>(run: impl FnOnce() -> T + Send) -> T {
    on_a_thread("elsewhere", || {
        sandbox::enter_network_namespace().expect("a second network namespace");
        run()
    })
}

/// Runs a function in a new network namespace with its own hash table of connections and buckets, which has this many chains.
/// Returns `None` if the kernel has no such tables (before 6.1).
pub(crate) fn with_chains<T: Send>(chains: u32, run: impl FnOnce() -> T + Send) -> Option<T> {
    elsewhere(|| {
        sysctl::write("ipv4.tcp_child_ehash_entries", &chains.to_string()).ok()?;
        Some(elsewhere(run))
    })
}

fn on_a_thread<T: Send>(name: &str, run: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, run).expect("a thread");
        thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}
