//! A thread for one test, with descriptors and a network namespace of its own.
//!
//! CLONE_NEWNET moves one thread only; what it spawns inherits the namespace, which goes with the thread and its sockets.
//! The descriptor table is not shared either: a child that another test spawns would hold copies of this test's sockets
//! until it executes its program, and a listener that was dropped here would still listen.

use std::panic::resume_unwind;
use std::thread;

use nix::sched::{CloneFlags, unshare};
use twtool::sys::{sandbox, sysctl};

/// Set to 1, tests that need a namespace fail where none can be made.
pub(crate) const REQUIRE: &str = "TWTOOL_REQUIRE_NETNS=1";

/// Whether namespaces are required.
pub(crate) fn required() -> bool {
    let (name, value) = REQUIRE.split_once('=').expect("a name and a value");
    std::env::var_os(name).is_some_and(|set| set == value)
}

/// Enters a user namespace, and tries whether network namespaces can be made in it. To be called while the process has
/// one thread.
pub(crate) fn prepare() -> Result<(), String> {
    sandbox::enter_user_namespace().map_err(|error| error.to_string())?;
    thread::spawn(sandbox::enter_network_namespace)
        .join()
        .expect("entering a namespace does not panic")
        .map_err(|error| error.to_string())
}

/// Runs the test on a thread of its own. What the thread does to itself (capabilities, seccomp filters) ends with it.
pub(crate) fn alone(name: &str, test: impl FnOnce() + Send) {
    on_a_thread(name, || {
        // Where even this is forbidden, nothing with sockets runs, and copied pipes only make a run end later.
        let _ = unshare(CloneFlags::CLONE_FILES);
        test();
    });
}

/// The same, in a new network namespace with `lo` up.
pub(crate) fn isolated(name: &str, test: fn()) {
    alone(name, || {
        sandbox::enter_network_namespace().expect("a network namespace, as at the start of the run");
        test();
    });
}

/// Runs this in another new network namespace, and returns to the caller's.
pub(crate) fn elsewhere<T: Send>(run: impl FnOnce() -> T + Send) -> T {
    on_a_thread("elsewhere", || {
        sandbox::enter_network_namespace().expect("a second network namespace");
        run()
    })
}

/// Runs this in a new network namespace whose connections and buckets have a hash table of their own, with this many chains;
/// `None`: this kernel has no such tables (before 6.1).
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
