//! Runs commands while system calls are refused, or fail because a resource is exhausted. A refusal can mean that a feature is absent,
//! and then twtool may continue without the feature. An exhausted resource never means that.

use std::fs;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use libc::{
    EACCES, EAFNOSUPPORT, EBADF, EFAULT, EIO, EMFILE, ENFILE, ENOBUFS, ENOMEM, ENOSYS, ENOTSOCK, EPERM,
    EPROTONOSUPPORT, SYS_bind, SYS_connect, SYS_getpeername, SYS_listen, SYS_pidfd_getfd, SYS_pidfd_open, SYS_socket,
};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use seccompiler::SeccompCmpOp::{self, Eq, Gt};
use socket2::{Domain, Socket, Type};

use crate::support::answers::{COMMANDS, MixedSituation, RunAnswer};
use crate::support::limits::{drop_capabilities_but_setfcap, refuse};
use crate::support::private_proc::{self, OwnPidNamespace};
use crate::support::situations::{addr, listen};
use crate::support::twtool::{PATH, Run, command, twtool};
use crate::support::{not_checked, suite};

suite! {
    pure: [],
    netns: [
        enfile_does_not_count_as_missing_ipv6,
        enobufs_does_not_count_as_missing_ipv6,
        enomem_does_not_count_as_missing_ipv6,
        emfile_does_not_count_as_missing_ipv6,
        a_refused_ipv6_socket_leaves_ipv6_out_with_a_warning,
        a_missing_family_leaves_ipv6_out_with_a_warning,
        procfs_is_read_if_netlink_is_refused,
        procfs_is_read_if_netlink_is_absent,
        a_full_file_table_causes_no_fallback_to_procfs,
        a_lack_of_memory_causes_no_fallback_to_procfs,
        procfs_is_read_if_connecting_netlink_is_refused,
        a_failed_netlink_connect_causes_no_fallback_to_procfs,
        few_descriptors_give_the_same_answer_or_an_error_that_names_them,
        a_soft_limit_of_descriptors_changes_no_answer,
        without_proc_only_answers_that_do_not_need_it_are_complete,
        without_proc_no_missing_permission_is_reported,
        hidden_processes_are_reported_as_hidden,
        an_errno_that_is_not_about_the_port_is_not_a_denial,
        an_errno_of_a_security_module_is_a_denial,
        a_refused_address_family_is_named,
        an_unlisted_bound_socket_is_found_or_reported_as_possibly_missing,
        without_proc_sys_answers_that_need_settings_are_incomplete,
        an_unreadable_services_file_is_reported_and_an_absent_one_is_not,
        signals_change_no_answer,
        with_little_memory_the_answer_is_the_same_or_an_error,
    ],
}

const INET6: u64 = 10;
const NETLINK: u64 = 16;

/// Asserts that `wait` and `bind-test` do not report port 7100 as usable if IPv6 sockets fail with this errno. The port is in use on IPv6,
/// and the errno does not mean that IPv6 is missing.
fn a_failed_ipv6_socket_never_gives_yes(errno: i32) {
    let situation = MixedSituation::make();
    refuse(SYS_socket, Some((0, Eq, INET6)), errno);
    for more in [&["--", "echo", "STARTED"] as &[_], &[]] {
        let run = twtool(["wait", "7100", "--timeout", "0"].iter().chain(more)).code(2).says("socket() for :: failed");
        assert!(!run.stdout.contains("STARTED"), "{run}");
    }
    twtool(["bind-test", "7100"]).refused("socket() for :: failed");
    // With -4, no socket blocks the port.
    twtool(["wait", "7100", "--timeout", "0", "-4", "--", "true"]).ok();
    drop(situation);
}

fn enfile_does_not_count_as_missing_ipv6() {
    a_failed_ipv6_socket_never_gives_yes(ENFILE);
}

fn enobufs_does_not_count_as_missing_ipv6() {
    a_failed_ipv6_socket_never_gives_yes(ENOBUFS);
}

fn enomem_does_not_count_as_missing_ipv6() {
    a_failed_ipv6_socket_never_gives_yes(ENOMEM);
}

fn emfile_does_not_count_as_missing_ipv6() {
    a_failed_ipv6_socket_never_gives_yes(EMFILE);
}

fn yes_without_ipv6(errno: i32) {
    refuse(SYS_socket, Some((0, Eq, INET6)), errno);
    let run = twtool(["bind-test", "7100", "--json"]).code(0).says(":: is left out");
    assert_eq!(run.json()["attempts"].as_array().map(Vec::len), Some(4), "IPv4 alone{run}");
    twtool(["wait", "7100", "--timeout", "0", "--", "true"]).code(0).says(":: is left out");
}

fn a_refused_ipv6_socket_leaves_ipv6_out_with_a_warning() {
    yes_without_ipv6(EACCES);
}

fn a_missing_family_leaves_ipv6_out_with_a_warning() {
    yes_without_ipv6(EAFNOSUPPORT);
}

/// The commands that can read /proc/net/tcp instead of sock_diag.
fn readers() -> impl Iterator<Item = &'static [&'static str]> {
    COMMANDS.into_iter().filter(|(name, _)| !matches!(*name, "kill" | "list dev" | "list procfs")).map(|(_, args)| args)
}

fn procfs_answers() {
    for args in readers() {
        let run = twtool(args);
        assert_ne!(run.code, None, "{run}");
        // `doctor` reports the fallback in a check, the other commands in a warning.
        assert!(run.stderr.contains("/proc/net/tcp") || run.stdout.contains("sock_diag"), "{run}");
    }
    twtool(["kill", "--all", "--dry-run"]).refused("sock_diag").says("hint:");
}

fn procfs_does_not_answer(errno: i32, reason: &str) {
    let situation = MixedSituation::make();
    refuse(SYS_socket, Some((0, Eq, NETLINK)), errno);
    for args in readers() {
        let run = twtool(args).code(2).says(reason);
        assert!(!run.stderr.contains("reads /proc/net/tcp"), "{run}");
    }
    let run = twtool(["wait", "7100", "--timeout", "0", "-4", "--", "echo", "STARTED"]).code(2);
    assert!(!run.stdout.contains("STARTED"), "{run}");
    twtool(["kill", "--all", "--dry-run"]).refused("sock_diag").says(reason);
    drop(situation);
}

fn procfs_is_read_if_netlink_is_refused() {
    refuse(SYS_socket, Some((0, Eq, NETLINK)), EPERM);
    procfs_answers();
}

fn procfs_is_read_if_netlink_is_absent() {
    refuse(SYS_socket, Some((0, Eq, NETLINK)), EPROTONOSUPPORT);
    procfs_answers();
}

fn a_full_file_table_causes_no_fallback_to_procfs() {
    procfs_does_not_answer(ENFILE, "Too many open files in system");
}

fn a_lack_of_memory_causes_no_fallback_to_procfs() {
    procfs_does_not_answer(ENOBUFS, "No buffer space available");
}

/// The length of `struct sockaddr_nl`. The addresses of other families have other lengths.
const SOCKADDR_NL: u64 = 12;

fn procfs_is_read_if_connecting_netlink_is_refused() {
    refuse(SYS_connect, Some((2, Eq, SOCKADDR_NL)), EACCES);
    procfs_answers();
}

fn a_failed_netlink_connect_causes_no_fallback_to_procfs() {
    let situation = MixedSituation::make();
    refuse(SYS_connect, Some((2, Eq, SOCKADDR_NL)), ENOMEM);
    for args in readers() {
        twtool(args).code(2).says("Cannot allocate memory");
    }
    drop(situation);
}

/// Runs twtool with this limit. `flag` is an option of the shell's `ulimit`.
fn with_limit(flag: &str, limit: u32, args: &[&str]) -> Run {
    let script = format!("ulimit {flag} {limit} && exec \"$0\" \"$@\"");
    Run::of(Command::new("sh").args(["-c", &script, PATH]).args(args))
}

fn few_descriptors_give_the_same_answer_or_an_error_that_names_them() {
    let mut situation = MixedSituation::make();
    for (_, args) in COMMANDS {
        situation.refresh();
        let usual = RunAnswer::now(args);
        for limit in [4, 5, 6, 7, 8, 12] {
            let run = with_limit("-n", limit, args);
            // The limit is too low to load the program.
            if run.code == Some(127) {
                continue;
            }
            if run.code == Some(2) && usual.code != Some(2) {
                assert!(run.stderr.contains("Too many open files"), "a limit of {limit}: stderr lacks the reason{run}");
                assert!(!run.stderr.contains("seccomp"), "stderr blames a sandbox for a limit of {limit}{run}");
            } else {
                let answer = RunAnswer::of(&run);
                assert_eq!(answer, usual, "a limit of {limit}{run}");
            }
        }
    }
    let wait = ["wait", "7100", "--timeout", "0", "--", "echo", "STARTED"];
    for limit in 4..16 {
        let run = with_limit("-n", limit, &wait);
        assert!(run.code != Some(0) && !run.stdout.contains("STARTED"), "a limit of {limit}{run}");
    }
    drop(situation);
}

fn a_soft_limit_of_descriptors_changes_no_answer() {
    let mut situation = MixedSituation::make();
    for (_, args) in COMMANDS {
        situation.refresh();
        let usual = RunAnswer::now(args);
        assert_eq!(RunAnswer::of(&with_limit("-Sn", 5, args)), usual, "{args:?}");
    }
    // The command that `wait` starts gets the limit with which twtool was started.
    let wait = ["wait", "7101", "--timeout", "0", "-q", "--", "sh", "-c", "ulimit -Sn"];
    assert_eq!(with_limit("-Sn", 99, &wait).ok().stdout, "99\n");
    drop(situation);
}

/// Covers a folder with an empty filesystem, for the calling thread and its children.
fn cover(folder: &str) {
    private_proc::mount_private_folders();
    mount(Some("tmpfs"), folder, Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("a tmpfs");
}

fn every_command_reports_an_incomplete_answer() {
    for (_, args) in COMMANDS {
        let run = twtool(args).code(2);
        assert!(run.stderr.contains("could not be read") || run.stderr.contains("/proc"), "no reason given{run}");
    }
}

fn without_proc_only_answers_that_do_not_need_it_are_complete() {
    let situation = MixedSituation::make();
    cover("/proc");
    every_command_reports_an_incomplete_answer();
    // Answers that do not depend on /proc are complete, and a server is not started on a port that is in use.
    assert_eq!(twtool(["list", "--count"]).code(0).stdout, "1\n");
    let run = twtool(["wait", "7100", "--timeout", "0", "--", "echo", "STARTED"]).code(2);
    assert!(!run.stdout.contains("STARTED"), "{run}");
    twtool(["list", "--all-netns"]).code(2).says("/proc");
    drop(situation);
}

fn without_proc_no_missing_permission_is_reported() {
    let server = listen("127.0.0.1:8080");
    cover("/proc");
    for args in [["bind-test", "8080", "--json"].as_slice(), &["wait", "8080", "--timeout", "0", "--json"]] {
        let run = twtool(args).code(2).says("/proc is not mounted here");
        assert!(!run.stderr.contains("CAP_SYS_PTRACE") && !run.stderr.contains("hidepid"), "{run}");
    }
    let run = twtool(["list", "--all-netns"]).code(2).says("/proc is not mounted here");
    assert!(!run.stderr.contains("hidepid"), "{run}");
    drop(server);
}

fn hidden_processes_are_reported_as_hidden() {
    let _pid_namespace = OwnPidNamespace::enter();
    // The socket listens, because older kernels do not list a socket that is only bound.
    let _holder = held(std::net::TcpListener::bind("127.0.0.1:8080").expect("a listener"));
    if !private_proc::mount_proc_with_hidepid() {
        return not_checked("hidepid: a private /proc cannot be mounted here");
    }
    // Process 1 and the process with the socket have capabilities that twtool lacks, so twtool has no permission to trace them.
    drop_capabilities_but_setfcap();
    let reason = "/proc hides the processes of other users (it is mounted with hidepid)";
    for args in [["bind-test", "8080", "--json"].as_slice(), &["wait", "8080", "--timeout", "0", "--json"]] {
        let run = twtool(args).says(reason);
        assert!(matches!(run.code, Some(1 | 2)) && run.json()["holders"][0]["processes"].is_null(), "{run}");
    }
    twtool(["list", "--all-netns"]).code(2).says(reason);
    // Process 1 exists, but /proc hides it.
    twtool(["list", "--netns", "1"]).refused("'1'").says("or it is hidden").says(reason);
}

fn an_errno_that_is_not_about_the_port_is_not_a_denial() {
    for errno in [EIO, EFAULT, ENOSYS, EBADF, ENOTSOCK] {
        on_a_thread_that_refuses(SYS_bind, errno, || {
            let name = twtool::sys::errno::name(errno);
            twtool(["bind-test", "8080"]).refused("bind() for ").says(name);
            let run =
                twtool(["wait", "8080", "--timeout", "0", "--", "echo", "STARTED"]).refused("bind() for ").says(name);
            assert!(!run.stdout.contains("STARTED"), "{run}");
        });
    }
    on_a_thread_that_refuses(SYS_listen, EIO, || {
        twtool(["bind-test", "8080", "--listen"]).refused("listen() for ").says("EIO");
    });
}

fn an_errno_of_a_security_module_is_a_denial() {
    for errno in [EACCES, EPERM] {
        on_a_thread_that_refuses(SYS_bind, errno, || {
            let run = twtool(["bind-test", "8080", "--json"]).code(1);
            assert_eq!(run.json()["verdict"], "denied", "{run}");
            let advice = run.json()["advice"].to_string();
            let name = twtool::sys::errno::name(errno);
            assert!(
                advice.contains(&format!("bind() to :: fails with {name}")) && advice.contains("sandbox"),
                "{advice}"
            );
            assert!(!advice.contains(":::"), "{advice}");
        });
    }
}

/// Runs a function on another thread in the same network namespace. On that thread, the system call fails.
fn on_a_thread_that_refuses(call: i64, errno: i32, run: impl FnOnce() + Send) {
    // bind() must still work for netlink sockets, whose address has 12 bytes. The addresses of Internet sockets are longer.
    let argument = (call == SYS_bind).then_some((2, Gt, 12));
    on_a_thread_that_refuses_some(call, argument, errno, run);
}

fn on_a_thread_that_refuses_some(
    call: i64,
    argument: Option<(u8, SeccompCmpOp, u64)>,
    errno: i32,
    run: impl FnOnce() + Send,
) {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            refuse(call, argument, errno);
            run();
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

/// A process in the calling thread's network namespace that holds a socket open. Dropping this value ends the process.
struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn idle_holder(at: &str) -> Holder {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&addr(at).into()).expect("bound");
    held(socket)
}

fn a_refused_address_family_is_named() {
    for (domain, addr, family, other) in
        [(libc::AF_INET, "127.0.0.1", "IPv4", "IPv6"), (libc::AF_INET6, "::1", "IPv6", "IPv4")]
    {
        on_a_thread_that_refuses_some(SYS_socket, Some((0, Eq, domain.cast_unsigned().into())), EAFNOSUPPORT, || {
            let run = twtool(["bind-test", "8080", "--addr", addr]).code(1);
            assert!(run.stdout.contains(&format!("denied: {family} sockets cannot be created here")), "{run}");
            assert!(run.stdout.contains(&format!("Bind an {other} address.")), "{run}");
        });
    }
}

/// Starts a process that holds the socket as its standard input.
fn held(socket: impl Into<OwnedFd>) -> Holder {
    let child = Command::new("sleep").arg("1000").stdin(socket.into()).spawn();
    Holder(child.expect("sleep can be started"))
}

fn an_unlisted_bound_socket_is_found_or_reported_as_possibly_missing() {
    let holder = idle_holder("127.0.0.1:8080");
    let bind_test = ["bind-test", "8080", "--addr", "127.0.0.1", "--json"];
    on_a_thread_that_refuses_some(SYS_socket, Some((0, Eq, NETLINK)), EPERM, || {
        let run = twtool(bind_test).code(1);
        assert_eq!((&run.json()["cause"], &run.json()["complete"]), (&"bound".into(), &true.into()), "{run}");
        assert_eq!(run.records("holders")[0]["processes"][0]["pid"], holder.0.id(), "{run}");
        assert!(run.stderr.contains("only if this user has permission to trace its process"), "{run}");
        assert!(!run.stderr.contains("They do not list a socket that is bound"), "{run}");
        let wait = twtool(["wait", "8080", "--addr", "127.0.0.1", "--timeout", "0", "--json"]).code(1);
        assert!(!wait.stderr.contains("They do not list a socket that is bound"), "{wait}");
        // If a call fails for another reason than permission, a warning reports that a socket may be missing.
        for (call, errno) in
            [(SYS_pidfd_getfd, EMFILE), (SYS_pidfd_getfd, ENFILE), (SYS_pidfd_open, EMFILE), (SYS_getpeername, ENOBUFS)]
        {
            on_a_thread_that_refuses(call, errno, || {
                let run = twtool(bind_test).code(2).says("a socket that is bound and does not listen may be missing");
                assert_eq!(run.json()["complete"], false, "{run}");
            });
        }
        // Without pidfd_getfd(), twtool cannot find the socket, so the cause is unknown.
        for errno in [EPERM, ENOSYS] {
            on_a_thread_that_refuses(SYS_pidfd_getfd, errno, || {
                let run = twtool(bind_test).code(2);
                assert_eq!(
                    (&run.json()["cause"], &run.json()["complete"]),
                    (&"unknown".into(), &false.into()),
                    "{run}"
                );
            });
        }
    });
    drop(holder);
}

fn without_proc_sys_answers_that_need_settings_are_incomplete() {
    let situation = MixedSituation::make();
    cover("/proc/sys");
    every_command_reports_an_incomplete_answer();
    drop(situation);
}

fn an_unreadable_services_file_is_reported_and_an_absent_one_is_not() {
    let situation = MixedSituation::make();
    private_proc::mount_private_folders();
    fs::remove_file("/etc/services").expect("removed");
    let usual = twtool(["list", "--json"]).ok();
    assert!(usual.records("sockets")[0]["remote_service"].is_null(), "{usual}");
    twtool(["port", "https"]).refused("https");
    fs::create_dir("/etc/services").expect("a folder");
    for (_, args) in COMMANDS {
        twtool(args).code(2).says("/etc/services could not be read");
    }
    twtool(["port", "https"]).refused("/etc/services could not be read");
    twtool(["list", "--port", "https"]).refused("/etc/services could not be read");
    drop(situation);
}

/// Runs the command while it gets many signals. By default, SIGWINCH and SIGCHLD are ignored. SIGSTOP and SIGCONT stop and continue the
/// process, which interrupts some system calls even without a handler (signal(7)).
fn under_signals(args: &[&str]) -> Run {
    let mut command = command(args);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("twtool can be started");
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a process"));
    while child.try_wait().expect("our own child").is_none() {
        for signal in [Signal::SIGWINCH, Signal::SIGCHLD, Signal::SIGSTOP, Signal::SIGCONT] {
            // The process keeps its ID until try_wait() returns its exit status, so the signal reaches no other process.
            let _ = kill(pid, signal);
        }
        thread::sleep(Duration::from_micros(300));
    }
    let output = child.wait_with_output().expect("it has ended");
    Run::ended(&command, &output)
}

fn signals_change_no_answer() {
    let mut situation = MixedSituation::make();
    for (_, args) in COMMANDS {
        situation.refresh();
        let usual = RunAnswer::now(args);
        for _ in 0..3 {
            let run = under_signals(args);
            assert_eq!(RunAnswer::of(&run), usual, "{run}");
        }
    }
    under_signals(&["wait", "7100", "--timeout", "200ms"]).code(1);
    drop(situation);
}

fn with_little_memory_the_answer_is_the_same_or_an_error() {
    let mut situation = MixedSituation::make();
    for (_, args) in COMMANDS {
        situation.refresh();
        let usual = RunAnswer::now(args);
        for kib in [4_000, 6_000, 8_000, 12_000, 20_000, 50_000] {
            let run = with_limit("-v", kib, args);
            match run.code {
                // The loader or an allocation of the program failed, so there is no answer.
                Some(126 | 127) | None => assert!(run.stdout.is_empty() || run.stderr.contains("alloc"), "{run}"),
                Some(2) => assert!(!run.stderr.is_empty(), "{run}"),
                _ => assert_eq!(RunAnswer::of(&run), usual, "{kib} KiB{run}"),
            }
        }
    }
    drop(situation);
}
