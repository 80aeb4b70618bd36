//! A pid namespace and a private /proc, /run and /etc, so that twtool sees only the network namespaces of the test.
//!
//! A thread whose children belong to another pid namespace cannot start threads (clone(2)). So the test's own thread enters the
//! network namespaces of the test, one after the other, and returns to its first namespace each time.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use twtool::sys::sandbox;

const OWN: &str = "/proc/thread-self/ns/net";

/// The inode number of the calling thread's network namespace.
pub(crate) fn inode() -> u64 {
    fs::metadata(OWN).expect("a namespace").ino()
}

/// Runs a function in a new network namespace on the same thread, and returns to the caller's namespace.
pub(crate) fn in_new_namespace<T>(run: impl FnOnce() -> T) -> T {
    let home = File::open(OWN).expect("a namespace");
    sandbox::enter_network_namespace().expect("another network namespace");
    let result = run();
    setns(home, CloneFlags::CLONE_NEWNET).expect("back again");
    result
}

/// A process that does nothing, in the network namespace of the thread that starts it. Dropping this value ends the process.
pub(crate) struct Resident(Child);

impl Resident {
    /// Starts `cat`, which waits for input.
    pub(crate) fn start() -> Self {
        Self::start_as(Path::new("cat"))
    }

    /// Starts this program, which is a copy of `cat` and can have another name.
    pub(crate) fn start_as(program: &Path) -> Self {
        let child = Command::new(program).stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
        Self(child.unwrap_or_else(|error| panic!("starting {}: {error}", program.display())))
    }

    /// The process ID in the pid namespace of the test program.
    pub(crate) fn pid(&self) -> String {
        self.0.id().to_string()
    }

    /// The process ID in the pid namespace of the process itself.
    pub(crate) fn inner_pid(&self) -> u32 {
        // The name of a process need not be UTF-8.
        let status = fs::read(format!("/proc/{}/status", self.0.id())).expect("it is there");
        let status = String::from_utf8_lossy(&status);
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).expect("its numbers");
        numbers.split_whitespace().last().and_then(|number| number.parse().ok()).expect("a number")
    }

    /// Ends the process without reading its exit status, so that it stays a zombie.
    pub(crate) fn become_zombie(&mut self) {
        self.0.kill().expect("it can be killed");
        let stat = || fs::read_to_string(format!("/proc/{}/stat", self.0.id())).expect("a zombie is there");
        while !stat().contains(") Z ") {
            std::thread::yield_now();
        }
    }
}

impl Drop for Resident {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A pid namespace, held open by its first process. If this process ends, the kernel ends all other processes of the namespace.
pub(crate) struct OwnPidNamespace {
    _init: Resident,
}

impl OwnPidNamespace {
    /// Gives the calling thread the private folders, and its future children the new pid namespace.
    pub(crate) fn enter() -> Self {
        mount_private_folders();
        unshare(CloneFlags::CLONE_NEWPID).expect("a pid namespace");
        let init = Resident::start();
        assert_eq!(init.inner_pid(), 1);
        Self { _init: init }
    }
}

/// Mounts a /proc that shows only the processes of the pid namespace. A child process does this, because the calling thread does not
/// belong to that namespace. Returns false if the kernel does not allow it, for example in a container, where other
/// mounts cover parts of /proc.
#[must_use]
pub(crate) fn mount_proc_of_pid_namespace() -> bool {
    mount_proc("hidepid=0")
}

/// Mounts a /proc of the pid namespace that shows a reader only the processes that the reader is permitted to trace. It uses hidepid=4,
/// because hidepid=2 shows all processes to the group of root. Returns false if the kernel does not allow it.
#[must_use]
pub(crate) fn mount_proc_with_hidepid() -> bool {
    mount_proc("hidepid=4")
}

fn mount_proc(option: &str) -> bool {
    let mut mount = Command::new("mount");
    mount.args(["-t", "proc", "-o", option, "proc", "/proc"]).stdin(Stdio::null()).stderr(Stdio::null());
    mount.status().is_ok_and(|status| status.success())
}

/// Mounts a private /run and /etc for the calling thread and its children. They contain only the folders of ip-netns(8) and a copy
/// of /etc/services.
pub(crate) fn mount_private_folders() {
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
    let services = fs::read("/etc/services").unwrap_or_default();
    for folder in ["/run", "/etc"] {
        mount(Some("tmpfs"), folder, Some("tmpfs"), MsFlags::empty(), none).expect("a tmpfs");
    }
    fs::create_dir("/run/netns").expect("a folder");
    fs::create_dir("/etc/netns").expect("a folder");
    fs::write("/etc/services", services).expect("written");
}

/// Gives the calling thread's network namespace a name, as `ip netns add` does.
pub(crate) fn name_this_namespace(name: impl AsRef<Path>) {
    let file = Path::new("/run/netns").join(name);
    File::create_new(&file).expect("a file");
    mount(Some(OWN), &file, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("a name");
}
