//! Runs the commands that twtool prints, exactly as it prints them, and checks that they solve the problem: in the caller's own
//! namespace, with --netns in another one, and as an ordinary user with sudo. A command that was printed for --netns must change
//! that namespace and leave the caller's namespace as it is. `PRODUCERS` names the tests of the commands that src/ builds.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::Value;
use socket2::Socket;
use twtool::lab::{ActiveCloser, Server};
use twtool::model::bind::ReuseOptions;
use twtool::sys::{sandbox, sysctl};

use crate::support::bind::{OpenSockets, bind};
use crate::support::dialogue::Dialogue;
use crate::support::outbound::{LOW, buckets, connect, narrow_range, serve, set};
use crate::support::private_proc::{inode, mount_private_folders, mount_proc_of_pid_namespace, name_this_namespace};
use crate::support::records::text;
use crate::support::settings::{read, reserved};
use crate::support::situations::{addr, connect as connect_client};
use crate::support::twtool::{PATH, Run, program, twtool};
use crate::support::{kernel, not_checked, procfs, suite};

suite! {
    pure: [
        every_producer_of_commands_is_known,
    ],
    netns: [
        commands_help_in_the_selected_namespace,
        commands_help_an_ordinary_user_who_has_sudo,
        the_commands_of_summary_read_the_same_namespace,
        a_bind_test_of_one_ip_version_prints_a_wait_for_that_version,
        the_unit_of_the_process_is_stopped,
        the_sockets_of_systemd_are_listed,
        containers_are_stopped_and_found_by_their_own_tool,
        the_name_of_a_namespace_that_has_gone_is_removed_as_the_hint_says,
    ],
}

/// The files of src/ that build commands, the number of calls that build a command, and the tests that run these commands.
const PRODUCERS: [(&str, usize, &[&str]); 12] = [
    (
        "analysis/call/connect.rs",
        2,
        &["the_commands_that_are_printed_work", "a_prohibited_route_is_not_reported_as_a_firewall"],
    ),
    ("analysis/call/in_use.rs", 1, &["the_commands_that_are_printed_work"]),
    ("analysis/call/mod.rs", 1, &["the_commands_that_are_printed_work"]),
    (
        "analysis/capacity/advice.rs",
        5,
        &[
            "commands_help_in_the_selected_namespace",
            "the_commands_of_capacity_give_connect_more_ports",
            "advice_about_reserved_ports_comes_first_if_they_leave_few_ports",
        ],
    ),
    (
        "analysis/connect/advice.rs",
        6,
        &[
            "each_printed_command_has_the_effect_that_its_purpose_names",
            "a_link_local_address_without_its_scope_is_named_as_the_reason",
            "bind_chooses_the_port_of_a_client_that_binds_only_an_address",
        ],
    ),
    ("analysis/doctor/sockets.rs", 1, &["the_command_that_reserves_a_port_keeps_lists_of_any_length_in_every_shell"]),
    // One command sets tcp_tw_recycle. No kernel since 4.12 has this setting, so no test runs the command.
    ("analysis/doctor/timewait.rs", 3, &["commands_help_in_the_selected_namespace"]),
    (
        "analysis/next.rs",
        8,
        &[
            "commands_help_in_the_selected_namespace",
            "commands_help_an_ordinary_user_who_has_sudo",
            "the_printed_commands_wait_for_buckets_and_remove_them",
            "a_full_range_is_shown_by_capacity",
        ],
    ),
    (
        "analysis/next/stop.rs",
        8,
        &[
            "the_process_that_holds_the_port_is_ended",
            "a_server_with_workers_is_ended_by_one_command",
            "the_unit_of_the_process_is_stopped",
            "the_sockets_of_systemd_are_listed",
            "a_socket_that_systemd_holds_is_named_with_its_unit",
            "containers_are_stopped_and_found_by_their_own_tool",
            "the_printed_command_ends_an_orphan",
        ],
    ),
    ("analysis/summary.rs", 1, &["the_commands_of_summary_read_the_same_namespace"]),
    // The hints of this file contain commands of other programs between backquotes: `ip netns`, `nsenter`.
    (
        "sys/netns/error.rs",
        0,
        &[
            "the_hint_for_a_rootless_container_works",
            "the_name_of_a_namespace_that_has_gone_is_removed_as_the_hint_says",
        ],
    ),
    (
        "watch/screen/details.rs",
        2,
        &[
            "each_kind_of_command_works_in_the_namespace_of_twtool",
            "commands_name_the_namespace_of_their_row",
            "the_key_k_proposes_a_kill_and_asks_before_it_runs",
        ],
    ),
];

/// Counts the calls per file, so that a new command fails this test until somebody updates `PRODUCERS`.
fn every_producer_of_commands_is_known() {
    let tests: String = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests"))
        .expect("a folder")
        .filter_map(|entry| fs::read_to_string(entry.expect("an entry").path()).ok())
        .collect();
    for name in PRODUCERS.iter().flat_map(|(_, _, tests)| *tests) {
        assert!(tests.contains(&format!("fn {name}()")), "there is no test {name}");
    }
    for (path, text) in crate::layers::sources() {
        let code = text.split("#[cfg(test)]").next().unwrap_or(&text);
        let calls = ["Step::new(", "shell.change(", "shell.reserve(", "shell.set("];
        let made: usize = calls.iter().map(|call| code.matches(call).count()).sum();
        let known = PRODUCERS.iter().find(|(file, _, _)| *file == path).map_or(0, |(_, count, _)| *count);
        if path != "model/command.rs" && !path.contains("/tests") {
            assert_eq!(made, known, "src/{path} makes commands: each needs a test that runs it");
        }
    }
}

const OWN: &str = "/proc/thread-self/ns/net";

/// A problem for which twtool prints commands, and the check that they have solved it.
struct Case {
    what: &'static str,
    make: fn() -> OpenSockets,
    args: &'static [&'static str],
    printed: fn(&Value) -> Value,
    /// Returns whether the problem is solved in the calling thread's namespace. Before the commands run, it returns false.
    helped: fn() -> bool,
}

impl Case {
    /// Whether the commands only show something, so that they cannot solve the problem.
    fn only_shows(&self) -> bool {
        self.what.contains("missing") || self.what.contains("full")
    }

    /// Whether twtool can print a command on this kernel. The command that allows buckets again sets the default of tcp_max_tw_buckets.
    /// The default depends on the number of entries of the hash table, which older kernels do not report.
    fn applies(&self) -> bool {
        !self.what.contains("no buckets") || kernel::has_setting("ipv4.tcp_ehash_entries")
    }
}

fn next(document: &Value) -> Value {
    document["next"].clone()
}

fn commands(document: &Value) -> Value {
    document["commands"].clone()
}

fn of_checks(document: &Value) -> Value {
    let checks = document["checks"].as_array().expect("checks");
    checks.iter().flat_map(|check| check["commands"].as_array().expect("commands").clone()).collect()
}

/// Makes a bucket on port 8080. The socket of the server had neither SO_REUSEADDR nor SO_REUSEPORT.
fn bucket() -> OpenSockets {
    let server = Server::listen(addr("127.0.0.1:8080"), ReuseOptions::NONE).expect("listening");
    connect_client(&server, "127.0.0.1:8080").close(ActiveCloser::Server).expect("a bucket");
    Box::new(())
}

fn binds(port: u16) -> bool {
    bind("0.0.0.0", port, &["SO_REUSEADDR"], false).0 == "ok"
}

/// Makes and closes a connection to 127.0.0.1:9999. Returns whether the close leaves a bucket.
fn a_close_leaves_a_bucket() -> bool {
    let before = procfs::bucket_count();
    let server = TcpListener::bind("127.0.0.1:9999").expect("a server");
    let client = TcpStream::connect("127.0.0.1:9999").expect("a connection");
    drop(server.accept().expect("the other end"));
    drop(client);
    let deadline = Instant::now() + kernel::patience(Duration::from_millis(300));
    while procfs::bucket_count() <= before && Instant::now() < deadline {
        std::thread::yield_now();
    }
    procfs::bucket_count() > before
}

/// Makes a destination for which buckets use all eight ports of the ephemeral range. `timestamps` and `reuse` are the values of
/// net.ipv4.tcp_timestamps and net.ipv4.tcp_tw_reuse.
fn used_up(timestamps: u32, reuse: u32) -> OpenSockets {
    narrow_range(8);
    set("ipv4.tcp_timestamps", timestamps);
    set("ipv4.tcp_tw_reuse", reuse);
    let server = serve("127.0.0.1:7000");
    buckets(8, "127.0.0.1", &server);
    Box::new(server)
}

fn connects() -> bool {
    let from = IpAddr::V4(Ipv4Addr::LOCALHOST);
    connect(Some(from), addr("127.0.0.1:7000")).is_ok()
}

const CASES: [Case; 12] = [
    Case {
        what: "a bucket is waited for or removed",
        make: bucket,
        args: &["bind-test", "8080"],
        printed: next,
        helped: || binds(8080),
    },
    Case {
        what: "an address is missing",
        make: || Box::new(()),
        args: &["bind-test", "8080", "--addr", "192.0.2.7"],
        printed: next,
        // Listing the addresses changes nothing.
        helped: || false,
    },
    Case {
        what: "the range is full",
        make: || {
            sysctl::write("ipv4.ip_local_port_range", "40000 40000").expect("the namespace is ours");
            Box::new(Server::listen(addr("[::]:40000"), ReuseOptions::NONE).expect("listening"))
        },
        args: &["bind-test", "0"],
        printed: next,
        helped: || false,
    },
    Case {
        what: "a server's port in the ephemeral range, by bind-test",
        make: || {
            let server = Server::listen(addr("127.0.0.1:40000"), ReuseOptions::NONE).expect("listening");
            connect_client(&server, "127.0.0.1:40000").close(ActiveCloser::Server).expect("a bucket");
            Box::new(())
        },
        args: &["bind-test", "40000"],
        printed: |document| document["reserve"].clone(),
        helped: || reserved().contains(&40_000),
    },
    Case {
        what: "servers' ports in the ephemeral range, by doctor",
        make: || Box::new((serve("127.0.0.1:40001"), serve("127.0.0.1:40003"))),
        args: &["doctor"],
        printed: of_checks,
        helped: || reserved() == [40_001, 40_003],
    },
    Case {
        what: "tcp_max_tw_buckets is reached",
        make: || {
            set("ipv4.tcp_max_tw_buckets", 1);
            bucket()
        },
        args: &["doctor"],
        printed: of_checks,
        helped: a_close_leaves_a_bucket,
    },
    Case {
        what: "no buckets are allowed",
        make: || {
            set("ipv4.tcp_max_tw_buckets", 0);
            Box::new(())
        },
        args: &["doctor"],
        printed: of_checks,
        helped: a_close_leaves_a_bucket,
    },
    Case {
        what: "timestamps are off, by doctor",
        make: || {
            set("ipv4.tcp_timestamps", 0);
            set("ipv4.tcp_tw_reuse", 1);
            Box::new(())
        },
        args: &["doctor"],
        printed: of_checks,
        helped: || read("ipv4.tcp_timestamps") == "1",
    },
    Case {
        what: "connections use the range up",
        make: || {
            narrow_range(8);
            let server = serve("127.0.0.1:7000");
            let open: Vec<_> = (0..8).map(|_| connect(None, addr("127.0.0.1:7000")).expect("a port")).collect();
            Box::new((server, open))
        },
        args: &["capacity", "--to", "127.0.0.1:7000"],
        printed: commands,
        helped: connects,
    },
    Case {
        what: "no port is left at all",
        make: || {
            narrow_range(4);
            sysctl::write("ipv4.ip_local_reserved_ports", &format!("{LOW}-{}", LOW + 3))
                .expect("the namespace is ours");
            Box::new(serve("127.0.0.1:7000"))
        },
        args: &["capacity"],
        printed: commands,
        helped: connects,
    },
    Case {
        what: "buckets with timestamps use the range up",
        make: || used_up(1, 0),
        args: &["capacity", "--to", "127.0.0.1:7000"],
        // The command that widens the range is left out, because it would solve the problem without tcp_tw_reuse.
        printed: |document| only(&commands(document), "tcp_tw_reuse"),
        helped: connects,
    },
    Case {
        what: "buckets without timestamps use the range up",
        make: || used_up(0, 1),
        args: &["capacity", "--to", "127.0.0.1:7000"],
        printed: |document| only(&commands(document), "tcp_timestamps"),
        // The setting affects new connections only.
        helped: || read("ipv4.tcp_timestamps") == "1",
    },
];

fn only(commands: &Value, part: &str) -> Value {
    let commands = commands.as_array().expect("commands");
    commands.iter().filter(|step| text(step, "command").contains(part)).cloned().collect()
}

/// Waits up to 8 s until `helped` returns true: connect() can take over a bucket only after a second or two.
fn helps_in_time(helped: fn() -> bool) -> bool {
    let deadline = Instant::now() + kernel::patience(Duration::from_secs(8));
    while !helped() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::yield_now();
    }
    true
}

/// A temporary folder in which the printed commands run. It contains `./server`, which a printed `twtool wait` starts, and scripts in the
/// place of real programs. The folder comes first in PATH.
struct CommandFolder(tempfile::TempDir);

impl CommandFolder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().expect("a folder"));
        folder.program("server", "echo started\n");
        // The test's thread already has the privileges of its namespace, so this sudo only runs the command.
        folder.program("sudo", "exec \"$@\"\n");
        folder
    }

    fn program(&self, name: &str, script: &str) {
        let file = self.0.path().join(name);
        fs::write(&file, format!("#!/bin/sh\n{script}")).expect("written");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("executable");
    }

    fn shell(&self, line: &str) -> Command {
        let path = std::env::var("PATH").expect("PATH");
        let mut shell = Command::new("sh");
        shell.args(["-c", line]).current_dir(&self.0).stdin(Stdio::null());
        shell.env("PATH", format!("{}:{path}", self.0.path().display()));
        shell
    }

    /// Runs the line, and answers yes if the command asks.
    #[track_caller]
    fn run(&self, line: &str) -> Run {
        let shell = self.shell(line);
        let asks = line.contains("twtool") && line.contains(" kill ");
        let run = if asks {
            let mut dialogue = Dialogue::of(shell);
            dialogue.until("[y/N] ");
            dialogue.types("y");
            dialogue.end()
        } else {
            Run::of(&mut { shell })
        };
        // The exit code 1 of these commands means "no" or "warnings", not a failure.
        let may_be_1 = line.contains("capacity") || line.contains("doctor") || line.contains("bind-test");
        assert!(run.code == Some(0) || (may_be_1 && run.code == Some(1)), "a printed command fails{run}");
        run
    }
}

/// The commands that twtool printed in this run of the case. Asserts that each has a purpose and no obstacle.
#[track_caller]
fn printed(case: &Case, run: &Run) -> Vec<String> {
    let steps = (case.printed)(&run.json());
    let steps = steps.as_array().unwrap_or_else(|| panic!("{}: no commands{run}", case.what));
    assert!(steps.iter().all(|step| !text(step, "purpose").is_empty() && step["obstacle"].is_null()), "{run}");
    steps.iter().map(|step| text(step, "command").to_owned()).collect()
}

fn missing_program() -> bool {
    let missing: Vec<&str> = ["ip", "sysctl", "nsenter"].into_iter().filter(|name| program(name).is_none()).collect();
    if !missing.is_empty() {
        not_checked(format!("what the printed commands do: {missing:?} are not installed"));
    }
    !missing.is_empty()
}

fn commands_help_in_the_selected_namespace() {
    if missing_program() {
        return;
    }
    mount_private_folders();
    let home = File::open(OWN).expect("a namespace");
    for (i, case) in CASES.iter().filter(|case| case.applies()).enumerate() {
        // First, the caller's own namespace has the problem, and twtool gets no --netns. Second, another namespace has the same problem,
        // and twtool gets --netns.
        for netns in [None, Some(format!("web{i}"))] {
            let mut kept = vec![];
            let mut make = |netns: Option<&String>| {
                sandbox::enter_network_namespace().expect("a namespace");
                netns.inspect(|netns| name_this_namespace(netns));
                kept.push((case.make)());
                File::open(OWN).expect("a namespace")
            };
            let there = make(netns.as_ref());
            let here = if netns.is_some() { make(None) } else { there.try_clone().expect("a descriptor") };
            let within = |namespace: &File, helped: fn() -> bool| {
                setns(namespace, CloneFlags::CLONE_NEWNET).expect("that namespace");
                let helped = helps_in_time(helped);
                setns(&here, CloneFlags::CLONE_NEWNET).expect("the caller's");
                helped
            };
            assert!(!(case.helped)(), "{}: the problem does not exist before the commands run", case.what);
            let asked: Vec<&str> = netns.iter().flat_map(|netns| ["--netns", netns]).collect();
            let run = twtool([case.args, &asked, &["--json"]].concat());
            let lines = printed(case, &run);
            assert!(!lines.is_empty(), "{}: no command{run}", case.what);
            let folder = CommandFolder::new();
            // Commands that wait come last, because they end only after the other commands have helped.
            let (waits, others): (Vec<&String>, Vec<&String>) = lines.iter().partition(|line| line.contains(" wait "));
            others.iter().chain(&waits).for_each(|line| drop(folder.run(line)));
            let changes = !case.only_shows();
            if changes {
                assert!(within(&there, case.helped), "{}: {lines:?} did not help", case.what);
            }
            // If the only command is a wait, the buckets of both namespaces have ended, so the comparison would prove nothing.
            if changes && netns.is_some() && !others.is_empty() {
                assert!(!(case.helped)(), "{}: {lines:?} changed the caller's namespace", case.what);
            }
            setns(&home, CloneFlags::CLONE_NEWNET).expect("back");
        }
    }
}

/// Runs twtool as user 1000 of a user namespace of its own, without any privilege over the network namespace.
fn as_user(args: &[&str]) -> Option<Run> {
    let unshare = program("unshare")?;
    let mut command = Command::new(unshare);
    command.args(["-U", "--map-user=1000", "--map-group=1000", PATH]).args(args).stdin(Stdio::null());
    let run = Run::of(&mut command);
    (!run.stderr.starts_with("unshare: ")).then_some(run)
}

fn commands_help_an_ordinary_user_who_has_sudo() {
    const PRIVILEGED: Case = Case {
        what: "a privileged port",
        make: || Box::new(()),
        args: &["bind-test", "80"],
        printed: next,
        helped: || as_user(&["bind-test", "80"]).is_some_and(|run| run.code == Some(0)),
    };
    if missing_program() {
        return;
    }
    let home = File::open(OWN).expect("a namespace");
    for case in CASES.iter().filter(|case| case.applies()).chain([&PRIVILEGED]) {
        sandbox::enter_network_namespace().expect("a namespace");
        let _kept = (case.make)();
        let Some(run) = as_user(&[case.args, &["--json"]].concat()) else {
            return not_checked("printed commands for an ordinary user: unshare --map-user does not work here");
        };
        let lines = printed(case, &run);
        assert!(!lines.is_empty(), "{}: no command{run}", case.what);
        let (waits, others): (Vec<&String>, Vec<&String>) = lines.iter().partition(|line| line.contains(" wait "));
        let folder = CommandFolder::new();
        for line in others.iter().chain(&waits) {
            // "<>" opens a setting for writing. Every user may read a setting.
            let needs_root = ["sysctl", " kill ", "<>/proc/sys"].iter().any(|word| line.contains(word));
            assert!(!needs_root || line.starts_with("sudo "), "{}: {line} needs root", case.what);
            folder.run(line);
        }
        if !case.only_shows() {
            assert!(helps_in_time(case.helped), "{}: {lines:?} did not help", case.what);
        }
    }
    // The blocking process belongs to another user, so only root can name the process. So twtool prints `bind-test` with sudo.
    sandbox::enter_network_namespace().expect("a namespace");
    let owner = Owner::of(listening());
    let run = as_user(&["bind-test", "8080", "--json"]).expect("as before");
    let named = next(&run.json());
    let line = text(&named[0], "command");
    assert!(line.starts_with("sudo ") && line.contains("bind-test 8080"), "{line}");
    let shown = CommandFolder::new().run(line);
    assert!(shown.stdout.contains(&format!("pid {}", owner.0.id())), "{shown}");
    setns(&home, CloneFlags::CLONE_NEWNET).expect("back");
}

fn the_commands_of_summary_read_the_same_namespace() {
    mount_private_folders();
    let home = File::open(OWN).expect("a namespace");
    sandbox::enter_network_namespace().expect("a namespace");
    name_this_namespace("web");
    let there = inode();
    set("ipv4.tcp_max_tw_buckets", 1);
    let server = serve("127.0.0.1:7000");
    buckets(1, "127.0.0.1", &server);
    setns(&home, CloneFlags::CLONE_NEWNET).expect("back");
    let run = twtool(["summary", "--json", "--netns", "web"]).ok();
    let steps = run.records("commands");
    let lines: Vec<&str> = steps.iter().map(|step| text(step, "command")).collect();
    for word in ["doctor", "capacity"] {
        let line = lines.iter().find(|line| line.contains(word)).unwrap_or_else(|| panic!("no {word}{run}"));
        assert_eq!(CommandFolder::new().run(&format!("{line} --json")).json()["netns"], there, "{line}");
    }
}

fn a_bind_test_of_one_ip_version_prints_a_wait_for_that_version() {
    // On IPv6, a listener holds port 8080 during the whole test. On IPv4, only a bucket does. So `bind-test -4` prints a wait that ends
    // after the bucket is removed, and the wait of `bind-test -6` would not end.
    let _other = serve("[::1]:8080");
    bucket();
    for (flag, ends) in [("-4", true), ("-6", false)] {
        let run = twtool([flag, "bind-test", "8080", "--json"]).code(1);
        let steps = next(&run.json());
        let steps = steps.as_array().expect("steps");
        let line = steps.iter().map(|step| text(step, "command")).find(|line| line.contains(" wait ")).expect("a wait");
        if ends {
            if kernel::destroys_buckets() {
                let mut lines = steps.iter().map(|step| text(step, "command"));
                CommandFolder::new().run(lines.find(|line| line.contains(" kill ")).expect("kill"));
            }
            CommandFolder::new().run(line).prints("started");
        } else {
            assert!(line.contains("--addr ::") && !line.contains("0.0.0.0"), "{line}");
        }
    }
}

/// A process with the socket as its standard input.
struct Owner(Child);

impl Owner {
    fn of(socket: Socket) -> Self {
        Self::named("sleep", socket)
    }

    fn named(program: &str, socket: Socket) -> Self {
        let socket: OwnedFd = socket.into();
        let child = Command::new(program).arg("60").stdin(socket).stdout(Stdio::null()).spawn();
        Self(child.unwrap_or_else(|error| panic!("starting {program}: {error}")))
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn listening() -> Socket {
    let at = addr("127.0.0.1:8080");
    let socket = twtool::sys::bind::socket(at.ip(), ReuseOptions::NONE).expect("a socket");
    socket.bind(&at.into()).expect("bound");
    socket.listen(1).expect("listening");
    socket
}

/// In this test, `systemctl stop` is a script that does what systemd does: it ends the process if its cgroup is that of the unit.
fn the_unit_of_the_process_is_stopped() {
    mount_private_folders();
    let folder = CommandFolder::new();
    let mut owner = Owner::of(listening());
    let pid = owner.0.id();
    let cgroup = folder.0.path().join("cgroup");
    fs::write(&cgroup, "0::/system.slice/system-web.slice/web@one.service\n").expect("written");
    let shown = format!("/proc/{pid}/cgroup");
    if let Err(error) = mount(Some(&cgroup), shown.as_str(), None::<&str>, MsFlags::MS_BIND, None::<&str>) {
        return not_checked(format!("the command that stops a unit: {shown} cannot be replaced here: {error}"));
    }
    let script = format!(
        "[ \"$#\" = 2 ] && [ \"$1\" = stop ] || exit 64\n\
         case $(cat {shown}) in */\"$2\") kill {pid} ;; *) exit 5 ;; esac\n"
    );
    folder.program("systemctl", &script);
    let run = twtool(["bind-test", "8080", "--json"]).code(1);
    let steps = next(&run.json());
    assert_eq!(text(&steps[0], "command"), "systemctl stop web@one.service", "{run}");
    folder.run(text(&steps[0], "command"));
    owner.0.wait().expect("it ends");
    assert!(binds(8080), "the process of the unit has ended");
    not_checked("`systemctl stop UNIT` by systemd itself: a script did it in the test");
}

/// In this test, process 1 of a new pid namespace is a copy of sleep(1) with the name `systemd`.
fn the_sockets_of_systemd_are_listed() {
    mount_private_folders();
    let (Some(sleep), folder) = (program("sleep"), CommandFolder::new()) else {
        return not_checked("the command for a socket of systemd: sleep(1) is not installed");
    };
    let systemd = folder.0.path().join("systemd");
    fs::copy(sleep, &systemd).expect("a copy");
    unshare(CloneFlags::CLONE_NEWPID).expect("a pid namespace");
    let _first = Owner::named(systemd.to_str().expect("UTF-8"), listening());
    if !mount_proc_of_pid_namespace() {
        return not_checked("the command for a socket of systemd: no /proc of its own can be mounted here");
    }
    let run = twtool(["bind-test", "8080", "--json"]).code(1);
    let steps = next(&run.json());
    assert_eq!(text(&steps[0], "command"), "systemctl list-sockets --all", "{run}");
    folder.program("systemctl", "[ \"$*\" = 'list-sockets --all' ] || exit 64\n");
    folder.run(text(&steps[0], "command"));
    not_checked("`systemctl list-sockets --all` by systemd itself: it is not process 1 of the test");
}

/// In this test, `docker` is a script: `docker stop` ends the process of the container, and `docker ps` succeeds.
fn containers_are_stopped_and_found_by_their_own_tool() {
    const ID: &str = "4f5a1c0de0123456789abcdef0123456789abcdef0123456789abcdef0123456";
    mount_private_folders();
    let folder = CommandFolder::new();
    let mut owner = Owner::of(listening());
    let pid = owner.0.id();
    let cgroup = folder.0.path().join("cgroup");
    fs::write(&cgroup, format!("0::/docker/{ID}\n")).expect("written");
    let shown = format!("/proc/{pid}/cgroup");
    if let Err(error) = mount(Some(&cgroup), shown.as_str(), None::<&str>, MsFlags::MS_BIND, None::<&str>) {
        return not_checked(format!("the command that stops a container: {shown} cannot be replaced here: {error}"));
    }
    folder.program("docker", &format!("[ \"$*\" = 'stop {}' ] && kill {pid}\n", &ID[..12]));
    let run = twtool(["bind-test", "8080", "--json"]).code(1);
    folder.run(text(&next(&run.json())[0], "command"));
    owner.0.wait().expect("it ends");
    assert!(binds(8080), "the process of the container has ended");

    // docker-proxy holds the published port of a container. The test uses a shell with the name and the arguments of docker-proxy. The
    // shell stops itself with SIGSTOP, so that it keeps the socket.
    let proxy = folder.0.path().join("docker-proxy");
    std::os::unix::fs::symlink(program("sh").expect("a shell"), &proxy).expect("a link");
    let socket: OwnedFd = listening().into();
    let mut command = Command::new(&proxy);
    command.args(["-c", "kill -STOP $$; :", "-container-ip", "172.17.0.2", "-container-port", "80"]).stdin(socket);
    let _owner = Owner(command.spawn().expect("started"));
    drop(command);
    folder.program("docker", "[ \"$*\" = 'ps --filter publish=8080' ]\n");
    let run = twtool(["bind-test", "8080", "--json"]).code(1);
    folder.run(text(&next(&run.json())[0], "command"));
    not_checked("`docker stop` and `docker ps` by docker itself: a script did it in the test");
}

fn the_name_of_a_namespace_that_has_gone_is_removed_as_the_hint_says() {
    if missing_program() {
        return;
    }
    mount_private_folders();
    // A name of `ip netns` is a mount on a file in /run/netns. This file has no mount, so it names no namespace.
    File::create_new("/run/netns/gone").expect("a file");
    let refused = twtool(["list", "--netns", "gone"]).code(2).says("ip netns delete");
    CommandFolder::new().run("ip netns delete gone");
    assert!(!Path::new("/run/netns/gone").exists(), "{refused}");
}
