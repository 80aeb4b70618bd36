//! The commands that twtool prints as next steps, above all in `bind-test` and `wait`. The tests run most of them as they were printed,
//! and check their effect.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Stdio};

use caps::Capability;
use serde_json::Value;
use socket2::Socket;
use twtool::lab::{ActiveCloser, Server};
use twtool::model::bind::ReuseOptions;
use twtool::sys::sysctl;

use crate::support::addresses;
use crate::support::bind::{OpenSockets, bind};
use crate::support::commands::needs_program;
use crate::support::dialogue::Dialogue;
use crate::support::limits::{drop_capabilities_but_setfcap, drop_capability};
use crate::support::netns::on_thread_in_new_namespace;
use crate::support::private_proc::{self, Resident, in_new_namespace};
use crate::support::records::text;
use crate::support::situations::{addr, connect, half_closed};
use crate::support::twtool::{PATH, Run, program, twtool};
use crate::support::{kernel, not_checked, suite};

suite! {
    pure: [],
    netns: [
        the_printed_commands_wait_for_buckets_and_remove_them,
        buckets_on_other_addresses_stay,
        orphans_on_other_addresses_stay,
        buckets_of_another_namespace_are_waited_for_and_removed_there,
        the_process_that_holds_the_port_is_ended,
        the_wait_comes_before_ending_the_process_whose_pid_selects_the_namespace,
        a_server_in_a_named_namespace_is_started_there,
        a_server_with_workers_is_ended_by_one_command,
        commands_that_are_not_shown_are_counted,
        the_wait_comes_before_ending_a_client_that_uses_the_port,
        buckets_beside_a_listener_are_named,
        a_privileged_port_is_opened_to_every_user,
        a_missing_address_leads_to_a_command_that_lists_the_addresses,
        a_full_range_is_shown_by_capacity,
        a_range_is_widened_after_the_servers_in_it_are_listed,
        no_command_is_printed_if_a_bind_works,
        the_hint_for_a_rootless_container_works,
    ],
}

/// The commands of the next steps that a run with `--json` prints.
fn steps(args: &[&str]) -> Vec<String> {
    let run = twtool([args, &["--json"]].concat()).code(1);
    let next = run.json()["next"].clone();
    let steps = next.as_array().unwrap_or_else(|| panic!("no steps{run}"));
    assert!(steps.iter().all(|step| !text(step, "purpose").is_empty()), "{run}");
    steps.iter().map(|step| text(step, "command").to_owned()).collect()
}

/// A shell that runs the command as it was printed, in a folder with a `./server`.
fn shell(line: &str, folder: &tempfile::TempDir) -> Command {
    let server = folder.path().join("server");
    fs::write(&server, "#!/bin/sh\necho started\n").expect("written");
    fs::set_permissions(&server, fs::Permissions::from_mode(0o755)).expect("executable");
    let mut command = Command::new("sh");
    command.args(["-c", line]).current_dir(folder).stdin(Stdio::null());
    command
}

fn run(line: &str) -> Run {
    Run::of(&mut shell(line, &tempfile::tempdir().expect("a folder")))
}

/// Runs a command that asks first, and answers yes.
pub(crate) fn run_and_agree(line: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut dialogue = Dialogue::of(shell(line, &folder));
    dialogue.until("[y/N] ");
    dialogue.types("y");
    dialogue.end().code(0);
}

fn bucket(options: ReuseOptions) -> OpenSockets {
    let server = Server::listen(addr("127.0.0.1:8080"), options).expect("listening");
    connect(&server, "127.0.0.1:8080").close(ActiveCloser::Server).expect("a bucket");
    Box::new(())
}

fn fin_wait_2() -> OpenSockets {
    let server = Server::listen(addr("127.0.0.1:8080"), ReuseOptions::NONE).expect("listening");
    Box::new(half_closed(&server, "127.0.0.1:8080", ActiveCloser::Server))
}

/// The argument of `--with`, and the options of the bind that the test makes itself.
const SERVERS: [(&str, &[&str]); 2] = [("none", &[]), ("reuseaddr", &["SO_REUSEADDR"])];

/// Returns the command `wait` and the command `kill`. twtool prints no `kill` if this kernel cannot remove buckets.
fn wait_and_kill(lines: Vec<String>) -> (String, Option<String>) {
    let mut lines = lines.into_iter();
    let (wait, kill) = (lines.next().expect("a step"), lines.next());
    assert!(wait.contains(" wait ") && lines.next().is_none(), "{wait} {kill:?}");
    assert_eq!(kill.is_some(), kernel::destroys_buckets(), "{kill:?}");
    if kill.is_none() {
        not_checked("the command that removes a bucket: this kernel has no SOCK_DESTROY of buckets");
    }
    (wait, kill)
}

fn the_printed_commands_wait_for_buckets_and_remove_them() {
    if !kernel::destroys_buckets() {
        // A bucket in FIN_WAIT_2 ends after 20 s with this setting, so the wait is short.
        sysctl::write("ipv4.tcp_fin_timeout", "20").expect("the namespace is ours");
        let _kept = fin_wait_2();
        let (wait, _) = wait_and_kill(steps(&["bind-test", "8080", "--with", "none"]));
        assert_eq!(steps(&["wait", "8080", "--with", "none", "--timeout", "0"]), [""; 0]);
        return drop(run(&wait).code(0).prints("started"));
    }
    let situations: [fn() -> OpenSockets; 2] = [|| bucket(ReuseOptions::NONE), fin_wait_2];
    for situation in situations {
        for (with, options) in SERVERS {
            let binds = || bind("0.0.0.0", 8080, options, false).0;
            on_thread_in_new_namespace(|| {
                let _kept = situation();
                let (wait, kill) = wait_and_kill(steps(&["bind-test", "8080", "--with", with]));
                let kill = kill.expect("two steps");
                assert_eq!(binds(), "EADDRINUSE");
                let folder = tempfile::tempdir().expect("a folder");
                let waiting = shell(&wait, &folder).stdout(Stdio::piped()).spawn().expect("a shell");
                run_and_agree(&kill);
                // `twtool wait` must have ended, because its bind could block the bind of the test.
                let output = waiting.wait_with_output().expect("it ends");
                assert_eq!(String::from_utf8_lossy(&output.stdout), "started\n", "{wait}");
                assert_eq!(binds(), "ok", "{kill}");
            });
            on_thread_in_new_namespace(|| {
                let _kept = situation();
                let [kill] = steps(&["wait", "8080", "--with", with, "--timeout", "0"]).try_into().expect("one step");
                run_and_agree(&kill);
                assert_eq!(binds(), "ok", "{kill}");
            });
        }
    }
}

fn kill_step(args: &[&str]) -> String {
    let lines = steps(args);
    lines.iter().find(|line| line.contains(" kill ")).unwrap_or_else(|| panic!("no kill: {lines:?}")).clone()
}

fn buckets_on(addrs: &[&str]) {
    for ip in addrs {
        let at = if ip.contains(':') { format!("[{ip}]:8080") } else { format!("{ip}:8080") };
        let server = Server::listen(addr(&at), ReuseOptions::NONE).expect("listening");
        connect(&server, &at).close(ActiveCloser::Server).expect("a bucket");
    }
}

fn buckets_on_other_addresses_stay() {
    const ADDRS: [&str; 3] = ["127.0.0.1", "127.0.0.2", "::1"];
    // The arguments, and the addresses whose buckets the printed command removes.
    let cases: [(&[&str], &[&str]); 7] = [
        (&["--addr", "127.0.0.1"], &["127.0.0.1"]),
        (&["--addr", "::ffff:127.0.0.1"], &["127.0.0.1"]),
        (&["--addr", "::1"], &["::1"]),
        (&["--addr", "127.0.0.1", "--addr", "::1"], &["127.0.0.1", "::1"]),
        (&["--addr", "0.0.0.0"], &["127.0.0.1", "127.0.0.2"]),
        (&["-4"], &["127.0.0.1", "127.0.0.2"]),
        (&[], &ADDRS),
    ];
    kernel::needs(kernel::destroys_buckets(), "SOCK_DESTROY of buckets");
    for (asked, removed) in cases {
        on_thread_in_new_namespace(|| {
            buckets_on(&ADDRS);
            let kill = kill_step(&[&["bind-test", "8080"], asked].concat());
            run_and_agree(&kill);
            for ip in ADDRS {
                let expected = if removed.contains(&ip) { "ok" } else { "EADDRINUSE" };
                assert_eq!(bind(ip, 8080, &[], false).0, expected, "{ip} after {kill}");
            }
        });
    }
    // A socket on `::` without IPV6_V6ONLY conflicts with IPv4 sockets.
    for (v6only, expected) in [("1", "EADDRINUSE"), ("0", "ok")] {
        on_thread_in_new_namespace(|| {
            buckets_on(&ADDRS);
            sysctl::write("ipv6.bindv6only", v6only).expect("the namespace is ours");
            run_and_agree(&kill_step(&["bind-test", "8080", "-6"]));
            let after = (bind("::1", 8080, &[], false).0, bind("127.0.0.1", 8080, &[], false).0);
            assert_eq!(after, ("ok".into(), expected.into()), "bindv6only={v6only}");
        });
    }
}

fn orphans_on_other_addresses_stay() {
    kernel::needs(kernel::ends_orphans(), "SOCK_DESTROY that ends an orphan");
    // With a timeout of more than 60 s, the kernel does not put an orphan into a bucket at first.
    sysctl::write("ipv4.tcp_fin_timeout", "120").expect("the namespace is ours");
    let half_closed = |at: &str| {
        let server = Server::listen(addr(at), ReuseOptions::NONE).expect("listening");
        connect(&server, at).close_half(ActiveCloser::Server).expect("half closed")
    };
    let _peers = [half_closed("127.0.0.1:8080"), half_closed("127.0.0.2:8080")];
    let kill = kill_step(&["bind-test", "8080", "--addr", "127.0.0.1"]);
    assert!(kill.contains("--orphans"), "{kill}");
    run_and_agree(&kill);
    let after = ["127.0.0.1", "127.0.0.2"].map(|ip| bind(ip, 8080, &[], false).0);
    assert_eq!(after, ["ok", "EADDRINUSE"], "{kill}");
}

fn buckets_of_another_namespace_are_waited_for_and_removed_there() {
    let (resident, there) = in_new_namespace(|| {
        bucket(ReuseOptions::NONE);
        (Resident::start(), fs::File::open("/proc/thread-self/ns/net").expect("a namespace"))
    });
    let _here = bucket(ReuseOptions::NONE);
    let (wait, kill) = wait_and_kill(steps(&["bind-test", "8080", "--netns", &resident.pid()]));
    let Some(kill) = kill else {
        return assert_eq!(wait.matches("--netns").count(), 1, "{wait}");
    };
    assert_eq!(wait.matches("--netns").count() + kill.matches("--netns").count(), 2, "{wait} {kill}");
    run_and_agree(&kill);
    assert_eq!(bind("127.0.0.1", 8080, &[], false).0, "EADDRINUSE", "the bucket here is untouched");
    let home = fs::File::open("/proc/thread-self/ns/net").expect("a namespace");
    nix::sched::setns(&there, nix::sched::CloneFlags::CLONE_NEWNET).expect("there");
    assert_eq!(bind("127.0.0.1", 8080, &[], false).0, "ok", "the bucket there is gone");
    nix::sched::setns(&home, nix::sched::CloneFlags::CLONE_NEWNET).expect("back");
    run(&wait).code(0).prints("bindable");
}

/// A process with the socket as its standard input. Dropping this value ends the process.
struct Owner(Child);

impl Owner {
    fn of(socket: Socket) -> Self {
        let socket: OwnedFd = socket.into();
        let child = Command::new("sleep").arg("60").stdin(socket).stdout(Stdio::null()).spawn();
        Self(child.expect("sleep can be started"))
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn socket(listens: bool) -> Socket {
    let at = addr("127.0.0.1:8080");
    let socket = twtool::sys::bind::socket(at.ip(), ReuseOptions::NONE).expect("a socket");
    socket.bind(&at.into()).expect("bound");
    if listens {
        socket.listen(1).expect("listening");
    }
    socket
}

fn the_process_that_holds_the_port_is_ended() {
    for command in [&["bind-test", "8080"][..], &["wait", "8080", "--timeout", "0"]] {
        on_thread_in_new_namespace(|| {
            let mut owner = Owner::of(socket(true));
            let kill = format!("kill {}", owner.0.id());
            let document = twtool([command, &["--json"]].concat()).code(1).json();
            let unit = document.to_string().contains(".service\"");
            let lines = steps(command);
            if unit {
                // The tests themselves run in a systemd unit here, and stopping it would end the tests.
                assert!(lines[0].contains("systemctl"), "{lines:?}");
                return not_checked(
                    "the command that ends the process on the port: the process belongs to the unit of the tests",
                );
            }
            assert_eq!(lines[0], kill);
            assert!(lines[1..].iter().all(|line| line.contains(" wait 8080")), "{lines:?}");
            run(&lines[0]).ok();
            owner.0.wait().expect("it ends");
            assert_eq!(bind("127.0.0.1", 8080, &[], false).0, "ok", "{lines:?}");
        });
    }
}

fn the_wait_comes_before_ending_the_process_whose_pid_selects_the_namespace() {
    let mut owner = in_new_namespace(|| Owner::of(socket(true)));
    let pid = owner.0.id().to_string();
    let lines = steps(&["bind-test", "8080", "--netns", &pid]);
    if lines.iter().any(|line| line.contains("systemctl")) {
        return not_checked(
            "a wait in the namespace of a process that is ended: the process belongs to the unit of the tests",
        );
    }
    assert!(lines[0].contains(" wait 8080") && lines[1] == format!("kill {pid}"), "{lines:?}");
    let folder = tempfile::tempdir().expect("a folder");
    let mut waiter = shell(&format!("exec {} -o ndjson", lines[0]), &folder);
    let mut waiter = waiter.stdout(Stdio::piped()).spawn().expect("it can be started");
    // When twtool prints its first record, it has opened the namespace. Before that, the end of the process would also end the namespace.
    let mut records = BufReader::new(waiter.stdout.take().expect("a pipe"));
    let mut record = String::new();
    records.read_line(&mut record).expect("a record");
    run(&lines[1]).ok();
    owner.0.wait().expect("it ends");
    let mut rest = String::new();
    records.read_to_string(&mut rest).expect("more records");
    assert!(waiter.wait().expect("it ends").success(), "{record}{rest}");
}

fn a_server_in_a_named_namespace_is_started_there() {
    needs_program("ip");
    private_proc::mount_private_folders();
    in_new_namespace(|| {
        private_proc::name_this_namespace("web");
        bucket(ReuseOptions::NONE)
    });
    let (wait, kill) = wait_and_kill(steps(&["bind-test", "8080", "--netns", "web"]));
    assert!(wait.ends_with("-- ip netns exec web ./server"), "{wait}");
    let Some(kill) = kill else {
        return not_checked("a server in a named namespace: this kernel cannot remove the bucket in its way");
    };
    run_and_agree(&kill);
    run(&wait).code(0).prints("started");
}

/// The command and the purpose of the step at this index. `None` if the step would stop a systemd unit instead of the processes.
fn step_about_processes(document: &Value, at: usize) -> Option<(String, String)> {
    if document.to_string().contains(".service\"") {
        not_checked("the command that ends a server: the server belongs to the unit that runs the tests");
        return None;
    }
    let step = &document["next"][at];
    Some((text(step, "command").to_owned(), text(step, "purpose").to_owned()))
}

fn a_server_with_workers_is_ended_by_one_command() {
    let script = "exec 3<&0; sleep 60 & a=$!; sleep 60 & b=$!; trap 'kill $a $b; exit' TERM; echo ready; wait";
    let mut parent = Command::new("sh")
        .args(["-c", script])
        .stdin(OwnedFd::from(socket(true)))
        .stdout(Stdio::piped())
        .spawn()
        .expect("a shell");
    let mut ready = [0; 6];
    std::io::Read::read_exact(parent.stdout.as_mut().expect("a pipe"), &mut ready).expect("the workers have started");
    let document = twtool(["bind-test", "8080", "--json"]).code(1).json();
    assert_eq!(document["holders"][0]["processes"].as_array().map(Vec::len), Some(3), "{document}");
    let Some((command, purpose)) = step_about_processes(&document, 0) else {
        parent.kill().expect("our own child");
        return drop(parent.wait());
    };
    assert_eq!(command, format!("kill {}", parent.id()), "{document}");
    assert!(purpose.contains("the parent of 2 more processes that have the socket open"), "{purpose}");
    assert!(text(&document["next"][1], "command").contains(" wait 8080"), "one command for all: {document}");
    run(&command).ok();
    parent.wait().expect("it ends");
    run(text(&document["next"][1], "command")).code(0).prints("started");
}

fn commands_that_are_not_shown_are_counted() {
    let listener = |at: &str| {
        let socket = twtool::sys::bind::socket(addr(at).ip(), ReuseOptions::NONE).expect("a socket");
        socket.bind(&addr(at).into()).expect("bound");
        socket.listen(1).expect("listening");
        Owner::of(socket)
    };
    let mut owners: Vec<Owner> = (1..=5).map(|last| listener(&format!("127.0.0.{last}:8080"))).collect();
    let asserts_count = |count: &str| {
        let document = twtool(["bind-test", "8080", "--json"]).code(1).json();
        if let Some((_, purpose)) = step_about_processes(&document, 3) {
            assert!(purpose.contains(&format!("({count} necessary; --json lists all holders)")), "{document}");
        }
    };
    asserts_count("1 more command is");
    owners.push(listener("127.0.0.6:8080"));
    asserts_count("2 more commands are");
}

fn the_wait_comes_before_ending_a_client_that_uses_the_port() {
    let server = Server::listen(addr("127.0.0.1:443"), ReuseOptions::NONE).expect("listening");
    let client = twtool::sys::bind::socket(addr("127.0.0.1:443").ip(), ReuseOptions::NONE).expect("a socket");
    client.bind(&addr("127.0.0.1:45000").into()).expect("bound");
    client.connect(&addr("127.0.0.1:443").into()).expect("connected");
    let mut owner = Owner::of(client);
    let run = twtool(["bind-test", "45000", "--json"]).code(1);
    let document = run.json();
    assert!(
        document["advice"].to_string().contains("A client on this machine opened the connection (inferred)"),
        "{run}"
    );
    let next = document["next"].as_array().expect("steps");
    let (first, second) = (&next[0], &next[1]);
    assert!(text(first, "command").contains(" wait 45000"), "{run}");
    assert!(text(second, "purpose").contains("a client whose connection uses the port"), "{run}");
    // The server's end of the same connection is not a client's socket, so the answer about port 443 must not name a client.
    let accepted = twtool(["bind-test", "443", "--json"]).code(1);
    assert!(
        !accepted.stdout.contains("client whose") && !accepted.stdout.contains("A client on this machine"),
        "{accepted}"
    );
    if document.to_string().contains(".service\"") {
        return not_checked("the command that ends a client: the client belongs to the unit that runs the tests");
    }
    Run::of(&mut shell(text(second, "command"), &tempfile::tempdir().expect("a folder"))).ok();
    owner.0.wait().expect("it ends");
    drop(server);
}

fn buckets_beside_a_listener_are_named() {
    let server = Server::listen(addr("127.0.0.1:8080"), ReuseOptions::REUSEADDR).expect("listening");
    connect(&server, "127.0.0.1:8080").close(ActiveCloser::Server).expect("a bucket");
    let advice = || twtool(["bind-test", "8080", "--json"]).code(1).json()["advice"].to_string();
    let one = advice();
    assert!(one.contains("1 TIME_WAIT socket holds the port too, at least until its timer ends"), "{one}");
    connect(&server, "127.0.0.1:8080").close(ActiveCloser::Server).expect("a bucket");
    let two = advice();
    assert!(two.contains("2 TIME_WAIT sockets hold the port too, at least until"), "{two}");
}

fn a_privileged_port_is_opened_to_every_user() {
    if program("sysctl").is_none() {
        return not_checked("the command that opens a privileged port: sysctl is not installed");
    }
    drop_capability(Capability::CAP_NET_BIND_SERVICE);
    for command in [&["bind-test", "80"][..], &["wait", "80"]] {
        sysctl::write("ipv4.ip_unprivileged_port_start", "1024").expect("the namespace is ours");
        let [open] = steps(command).try_into().expect("one step");
        assert_eq!(bind("0.0.0.0", 80, &[], false).0, "EACCES");
        run(&open).ok();
        assert_eq!(bind("0.0.0.0", 80, &[], false).0, "ok", "{open}");
    }
}

fn a_missing_address_leads_to_a_command_that_lists_the_addresses() {
    let [list] = steps(&["bind-test", "8080", "--addr", "192.0.2.7"]).try_into().expect("one step");
    if program("ip").is_none() {
        return not_checked("the command that lists addresses: ip is not installed");
    }
    addresses::add("192.0.2.7");
    run(&list).ok().prints("192.0.2.7");
}

fn a_range_is_widened_after_the_servers_in_it_are_listed() {
    sysctl::write("ipv4.ip_local_port_range", "40000 40000").expect("the namespace is ours");
    let _full = Server::listen(addr("[::]:40000"), ReuseOptions::NONE).expect("listening");
    let _server = Server::listen(addr("127.0.0.1:5000"), ReuseOptions::NONE).expect("listening");
    let _below = Server::listen(addr("127.0.0.1:500"), ReuseOptions::NONE).expect("listening");
    let run_of_capacity = twtool(["capacity", "--json"]).code(0);
    let document = run_of_capacity.json();
    let command = |at: usize| text(&document["commands"][at], "command");
    if ["ss", "sysctl"].iter().any(|name| program(name).is_none()) {
        return not_checked("the commands that widen the range: ss or sysctl is not installed");
    }
    let list = run(command(0)).ok();
    let lists = |port: &str| list.stdout.contains(port);
    assert!(lists(":5000 ") && lists(":40000 ") && !lists(":500 "), "{run_of_capacity}{list}");
    run(command(1)).ok();
    assert_eq!(sysctl::read("ipv4.ip_local_port_range").expect("a range"), "1024\t65535");
}

fn a_full_range_is_shown_by_capacity() {
    sysctl::write("ipv4.ip_local_port_range", "40000 40000").expect("the namespace is ours");
    let _full = Server::listen(addr("[::]:40000"), ReuseOptions::NONE).expect("listening");
    let [capacity] = steps(&["bind-test", "0"]).try_into().expect("one step");
    let shown = run(&capacity);
    assert!(matches!(shown.code, Some(0 | 1)) && shown.stdout.contains("40000"), "{shown}");
}

fn no_command_is_printed_if_a_bind_works() {
    let next = |args: &[&str]| twtool(args).code(0).json()["next"].clone();
    assert_eq!(next(&["bind-test", "8080", "--json"]), Value::Array(vec![]));
    bucket(ReuseOptions::REUSEADDR);
    assert_eq!(next(&["bind-test", "8080", "--json"]), Value::Array(vec![]), "reusable");
    assert_eq!(next(&["wait", "8080", "--json"]), Value::Array(vec![]));
}

fn the_hint_for_a_rootless_container_works() {
    let (Some(unshare), Some(_)) = (program("unshare"), program("nsenter")) else {
        return not_checked("the hint for a rootless container: unshare or nsenter is not installed");
    };
    // Without CAP_SYS_ADMIN, twtool cannot enter the namespace of the container, and prints the hint.
    drop_capabilities_but_setfcap();
    let mut container = Command::new(unshare);
    container.args(["-U", "-r", "-n", "cat"]).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut container = container.spawn().expect("unshare can be started");
    let pid = container.id();
    let comm = || fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    while comm() != "cat\n" {
        if container.try_wait().expect("our own child").is_some() {
            return not_checked("the hint for a rootless container: no user namespace can be made here");
        }
        std::thread::yield_now();
    }
    let refused = twtool(["list", "--netns", &pid.to_string()]).code(2);
    let hint = refused.stderr.split('`').nth(1).unwrap_or_else(|| panic!("no command{refused}"));
    let line = hint.replace("PID", &pid.to_string()).replace("twtool ...", &format!("{PATH} bind-test 8080 --json"));
    let inside = run(&line).ok();
    let namespace = fs::read_link(format!("/proc/{pid}/ns/net")).expect("a namespace");
    assert_eq!(namespace.to_string_lossy(), format!("net:[{}]", inside.json()["netns"]), "{inside}");
    container.kill().expect("our own child");
    container.wait().expect("our own child");
}
