//! Confines the calling thread before it reads bytes from an unknown author: the recording of `--replay`, or requests to the exporter.
//! Each function says which of these three means it uses:
//!
//! 1. Capabilities: the thread drops all capabilities that the caller does not need.
//! 2. landlock(7): the thread may only read the paths and remove files from the folders that the caller lists. landlock refuses every other
//!    access that it controls. (For example, it does not control stat(2) and chmod(2).) Since version 4 of its interface it also refuses
//!    calls that bind or connect TCP sockets, and since version 6 signals to other processes.
//! 3. A seccomp(2) filter: the kernel refuses system calls that run programs, open files for writing, access or signal other processes, or
//!    type input for another program on the terminal. It also refuses interfaces of the kernel that need no capability and that twtool does
//!    not use. Except on the threads of the exporter that need them, it also refuses socket(2), bind(2) and connect(2).
//!
//! The filter lists the calls that are refused, because a list of the allowed calls would depend on the C library and its version.
//!
//! Each entry of the list delays the start by 4 µs, because the kernel runs a new filter once for every system call number. So the
//! list leaves out calls that change folders (`FILE_CALLS`) if landlock refuses them, and calls that need a dropped capability.
//!
//! A call that the filter refuses fails with EPERM, so that an error message can name the operation. A signal would end the program
//! without a message.
//!
//! The confinement holds for the calling thread and the threads that it starts. It cannot be removed. If the kernel or a container refuses
//! a part of it, twtool continues without that part.

use std::collections::BTreeMap;
use std::hash::RandomState;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use libc::c_long;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use super::capabilities::{self, Need};

/// The parts of a confinement that are in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActiveConfinement {
    /// The version of landlock's interface (ABI); `None` if landlock is not in force.
    pub landlock: Option<i32>,
    /// Whether the seccomp filter is in force.
    pub seccomp: bool,
}

/// Confines the calling thread by all three means. The thread can then only read the recording, and use the descriptors that it has.
#[must_use]
pub fn for_replay(recording: &Path) -> ActiveConfinement {
    seed_hash_maps();
    // Root must still be able to read the recording of another user.
    let _ = capabilities::keep_only(&[Need::ReadingFiles]);
    confine(&[recording], &[EXPORTER_CALLS])
}

/// Confines the calling thread by all three means. The thread can then only use the descriptors that it has.
#[must_use]
pub fn for_open_descriptors_only() -> ActiveConfinement {
    let _ = capabilities::keep_only(&[]);
    confine(&[], &[EXPORTER_CALLS])
}

/// Whether a seccomp filter is already in force. If so, do not confine further: a service manager or a container runtime has
/// confined the process, and its filter may end the process at a system call that it does not list, such as landlock's calls.
#[cfg(feature = "exporter")]
#[must_use]
pub fn is_filtered() -> bool {
    capabilities::status().is_ok_and(|status| capabilities::field(&status, "Seccomp:") == Some(b"2"))
}

/// Installs a filter that refuses bpf(2) and the calls that the exporter never makes. This function does not use landlock, because
/// landlock would refuse `/proc/PID/fd` of other processes, which the exporter reads.
#[cfg(feature = "exporter")]
pub fn for_exporter() {
    // The result is ignored, because `for_requests` reports whether filters work.
    let _ = refuse_calls(&[&[libc::SYS_bpf], CALLS, FILE_CALLS], &[]);
}

/// Installs the filter of [`for_exporter`] on the thread that traces closes, but allows it to read the counters of its BPF program.
#[cfg(feature = "exporter")]
pub fn for_tracing() {
    // include/uapi/linux/bpf.h
    const BPF_MAP_LOOKUP_ELEM: u64 = 1;
    const BPF_OBJ_GET_INFO_BY_FD: u64 = 15;
    let others = [BPF_MAP_LOOKUP_ELEM, BPF_OBJ_GET_INFO_BY_FD].map(|command| (0, SeccompCmpOp::Ne, command));
    let _ = refuse_calls(&[CALLS, FILE_CALLS], &[(libc::SYS_bpf, &others)]);
}

/// Confines the calling thread by landlock and a filter. The thread can then only use its sockets, read /proc, and remove files from
/// `folders`.
#[cfg(feature = "exporter")]
#[must_use]
pub fn for_requests(folders: &[&Path]) -> ActiveConfinement {
    seed_hash_maps();
    let landlock = restrict_access(&[Path::new("/proc")], folders).ok().flatten();
    ActiveConfinement { landlock, seccomp: refuse_calls(&[REQUEST_CALLS], &[]).is_ok() }
}

/// Makes std prepare the seeds of hash maps before the confinement. If getrandom(2) is refused, std reads `/dev/urandom` instead, and
/// panics if it cannot open that file. A confined thread cannot open it.
fn seed_hash_maps() {
    let _ = RandomState::new();
}

fn confine(readable: &[&Path], more: &[&[c_long]]) -> ActiveConfinement {
    let landlock = restrict_access(readable, &[]).ok().flatten();
    let files = if landlock.is_none() { FILE_CALLS } else { &[] };
    ActiveConfinement {
        landlock,
        seccomp: refuse_calls(&[&[&[libc::SYS_bpf], CALLS, files], more].concat(), &[]).is_ok(),
    }
}

/// Makes landlock allow reading `readable`, removing files from `folders`, and no other access. Returns the version of landlock's
/// interface; `None` if landlock is not in force.
fn restrict_access(readable: &[&Path], folders: &[&Path]) -> Result<Option<i32>, RulesetError> {
    // The landlock crate leaves out access rights that an older kernel does not know.
    let newest = ABI::V10;
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(newest))?
        .handle_access(AccessNet::from_all(newest))?
        .scope(Scope::from_all(newest))?
        .create()?;
    let reading: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
    for (paths, access) in [(readable, reading), (folders, AccessFs::RemoveFile.into())] {
        // Skip a path that cannot be opened: the command reports the error when it opens the path later.
        for path in paths.iter().filter_map(|path| PathFd::new(path).ok()) {
            rules = rules.add_rule(PathBeneath::new(path, access))?;
        }
    }
    let status = rules.restrict_self()?;
    Ok(match status.landlock {
        LandlockStatus::Available { effective_abi, kernel_abi } if status.ruleset != RulesetStatus::NotEnforced => {
            Some(kernel_abi.unwrap_or(effective_abi as i32))
        }
        _ => None,
    })
}

/// Installs a filter. These calls then fail with EPERM: the calls of `lists`; a call of `when`, if its arguments match all its
/// conditions; opening a file for writing; input for another program on the terminal; signals to other processes.
fn refuse_calls(lists: &[&[c_long]], when: &[(c_long, &[Condition])]) -> Result<(), seccompiler::Error> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for call in lists.iter().copied().flatten() {
        rules.insert(number(*call), vec![]);
    }
    for (call, conditions) in when {
        let conditions = conditions.iter().cloned().map(|(argument, operator, value)| {
            SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
        });
        rules.insert(number(*call), vec![SeccompRule::new(conditions.collect::<Result<_, _>>()?)?]);
    }
    let write = [libc::O_WRONLY, libc::O_RDWR, libc::O_ACCMODE].map(|mode| (libc::O_ACCMODE, mode));
    let change = [libc::O_CREAT, libc::O_TRUNC].map(|flag| (flag, flag));
    let writes =
        |argument| write.into_iter().chain(change).map(move |(mask, value)| masked_rule(argument, mask, value));
    rules.insert(number(libc::SYS_openat), writes(2).collect::<Result<_, _>>()?);
    #[cfg(target_arch = "x86_64")]
    rules.insert(number(libc::SYS_open), writes(1).collect::<Result<_, _>>()?);
    let inputs = [libc::TIOCSTI, libc::TIOCLINUX].map(|request| rule(1, SeccompCmpOp::Eq, request));
    rules.insert(number(libc::SYS_ioctl), inputs.into_iter().collect::<Result<_, _>>()?);
    let own = u64::from(std::process::id());
    for call in [libc::SYS_kill, libc::SYS_tgkill] {
        rules.insert(number(call), vec![rule(0, SeccompCmpOp::Ne, own)?]);
    }
    let arch = std::env::consts::ARCH.try_into()?;
    let refused = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter: BpfProgram = SeccompFilter::new(rules, SeccompAction::Allow, refused, arch)?.try_into()?;
    seccompiler::apply_filter(&filter)
}

/// The number of an argument, and how it compares with a value.
type Condition = (u8, SeccompCmpOp, u64);

fn masked_rule(argument: u8, mask: i32, value: i32) -> Result<SeccompRule, BackendError> {
    rule(argument, SeccompCmpOp::MaskedEq(mask.unsigned_abs().into()), value.unsigned_abs().into())
}

fn rule(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?])
}

#[allow(clippy::useless_conversion, reason = "c_long has 32 bits on some machines")]
fn number(call: c_long) -> i64 {
    i64::from(call)
}

/// Calls that neither a replay nor the exporter makes. The list does not contain bpf(2), because the tracing thread of the exporter
/// calls it. The list contains openat2(2), because a filter cannot read the flags of this call.
const CALLS: &[c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_openat2,
    libc::SYS_truncate,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_creat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    libc::SYS_unshare,
    libc::SYS_perf_event_open,
    libc::SYS_io_uring_setup,
    libc::SYS_userfaultfd,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
];

/// Calls that create, rename or remove entries of a folder. Every version of landlock refuses them.
const FILE_CALLS: &[c_long] = &[
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_renameat2,
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    libc::SYS_renameat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_link,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_symlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mkdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mknod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rmdir,
];

/// Calls that the exporter makes and a replay does not.
const EXPORTER_CALLS: &[c_long] = &[
    libc::SYS_socket,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_sendmsg,
    libc::SYS_unlinkat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
];

/// Calls that the exporter makes, but not on the thread that handles requests.
#[cfg(feature = "exporter")]
const REQUEST_CALLS: &[c_long] = &[libc::SYS_socket, libc::SYS_connect, libc::SYS_bind, libc::SYS_setns];

#[cfg(test)]
mod tests {
    use std::fs::{self, File, OpenOptions};
    use std::io;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;
    use std::process::Command;
    use std::thread;

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::{Pid, getppid};

    use super::*;

    /// Runs `work` on a thread that may read only `file`.
    fn confined<T: Send>(file: &Path, work: impl FnOnce() -> T + Send) -> (ActiveConfinement, T) {
        thread::scope(|scope| scope.spawn(|| (for_replay(file), work())).join().expect("no panic"))
    }

    fn refusal<T>(result: io::Result<T>) -> Option<i32> {
        result.map(|_| ()).expect_err("it is refused").raw_os_error()
    }

    #[test]
    fn a_confined_thread_can_read_only_its_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let (allowed, other) = (folder.path().join("allowed"), folder.path().join("other"));
        for path in [&allowed, &other] {
            fs::write(path, "text").expect("written");
        }
        let (in_force, ()) = confined(&allowed, || {
            assert_eq!(fs::read_to_string(&allowed).expect("allowed"), "text");
        });
        let landlock = in_force.landlock.is_some();
        confined(&allowed, || {
            if landlock {
                for path in [&other, &"/etc/passwd".into(), &"/proc/self/status".into(), &folder.path().to_owned()] {
                    assert_eq!(refusal(File::open(path)), Some(libc::EACCES), "{}", path.display());
                }
            }
        });
        assert!(File::open(&other).is_ok(), "other threads are not confined");
    }

    #[test]
    fn a_confined_thread_cannot_run_programs_change_files_or_connect() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        fs::write(&path, "text").expect("written");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let address = listener.local_addr().expect("an address");
        let (in_force, results) = confined(&path, || {
            [
                ("run a program", refusal(Command::new("/bin/true").status())),
                ("write", refusal(OpenOptions::new().write(true).open(&path))),
                ("append", refusal(OpenOptions::new().append(true).open(&path))),
                ("read and write", refusal(OpenOptions::new().read(true).write(true).open(&path))),
                ("create", refusal(File::create(folder.path().join("new")))),
                ("remove", refusal(fs::remove_file(&path))),
                ("rename", refusal(fs::rename(&path, folder.path().join("new")))),
                ("link", refusal(fs::hard_link(&path, folder.path().join("new")))),
                ("make a folder", refusal(fs::create_dir(folder.path().join("new")))),
                ("connect", refusal(TcpStream::connect(address))),
                ("listen", refusal(TcpListener::bind("127.0.0.1:0"))),
                ("a signal", refusal(kill(getppid(), None::<Signal>).map_err(io::Error::from))),
                ("unshare", refusal(nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER).map_err(Into::into))),
            ]
        });
        // The filter refuses a call with EPERM, and landlock refuses most calls with EACCES.
        if in_force.seccomp {
            for (what, errno) in results {
                assert!(matches!(errno, Some(libc::EPERM | libc::EACCES)), "{what}: {errno:?}");
            }
        }
        assert_eq!(fs::read_to_string(&path).expect("it is there"), "text");
    }

    #[cfg(feature = "exporter")]
    #[test]
    fn the_request_thread_can_only_read_proc_and_remove_its_socket() {
        let (folder, other) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let (socket, file) = (folder.path().join("socket"), other.path().join("file"));
        for path in [&socket, &file] {
            fs::write(path, "").expect("written");
        }
        let work = || {
            for_exporter();
            let in_force = for_requests(&[folder.path()]);
            fs::read("/proc/self/statm").expect("the exporter reports its memory");
            let results = [refusal(TcpListener::bind("127.0.0.1:0")), refusal(Command::new("/bin/true").status())];
            let by_landlock =
                in_force.landlock.map(|_| [refusal(File::open("/etc/passwd")), refusal(fs::remove_file(&file))]);
            fs::remove_file(&socket).expect("its own socket");
            (in_force, results, by_landlock)
        };
        let (in_force, results, by_landlock) = thread::scope(|scope| scope.spawn(work).join().expect("no panic"));
        if in_force.seccomp {
            assert_eq!(results[0], Some(libc::EPERM));
            assert!(matches!(results[1], Some(libc::EPERM | libc::EACCES)), "{results:?}");
        }
        assert!(by_landlock.is_none_or(|results| results == [Some(libc::EACCES); 2]), "{by_landlock:?}");
    }

    #[cfg(feature = "exporter")]
    #[test]
    fn the_tracing_thread_can_read_bpf_maps_but_not_make_them() {
        let make = || crate::sys::bpf::make_map(crate::sys::bpf::MapKind::Array, 4, 8, 1);
        let Ok(map) = make() else { return };
        let work = || {
            for_tracing();
            let filtered = is_filtered();
            (filtered, crate::sys::bpf::read_array(&map, 0).expect("it reads"), make().err())
        };
        let (filtered, value, error) = thread::scope(|scope| scope.spawn(work).join().expect("no panic"));
        assert_eq!(value, 0);
        assert_eq!(error.and_then(|error| error.raw_os_error()), filtered.then_some(libc::EPERM));
    }

    #[test]
    fn a_confined_thread_can_start_threads_and_signal_itself() {
        let (_, ()) = confined(Path::new("/nonexistent"), || {
            assert_eq!(thread::spawn(|| 1).join().expect("a thread"), 1);
            // crossterm, which reads the keys for `twtool watch --replay`, receives signals through a socket pair.
            UnixStream::pair().expect("a socket pair");
            kill(Pid::this(), None::<Signal>).expect("a signal to itself");
        });
    }
}
