//! `twtool wait` for timewait buckets on the real kernel: the wait ends when the port is free and not before, which the tests check
//! with binds of their own. Also tests the output, the command that twtool starts after the wait, and the terminal.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use twtool::lab::{ActiveCloser, Server};
use twtool::model::bind::ReuseOptions;
use twtool::sys::sysctl;

use crate::support::bind::bind;
use crate::support::crowd::Killer;
use crate::support::limits::refuse;
use crate::support::records::{DOCUMENT_KEYS, LIST_KEYS, number};
use crate::support::situations::{addr, connect, half_closed, listen, many_buckets};
use crate::support::twtool::{Keys, PATH, Run, command, twtool};
use crate::support::waiter::{Ended, Waiter};
use crate::support::{kernel, measured, private_proc, procfs, suite};

suite! {
    pure: [],
    netns: [
        slow_a_wait_lasts_through_the_whole_life_of_a_bucket,
        a_free_port_is_reported_at_once,
        a_bucket_that_is_removed_ends_the_wait,
        a_fin_wait_2_bucket_that_becomes_time_wait_is_reported_with_its_new_timer,
        a_bucket_that_shares_the_port_is_not_waited_for,
        thousands_of_buckets_are_waited_for_with_few_binds,
        without_sock_diag_the_wait_uses_procfs,
        a_timeout_of_zero_is_one_attempt,
        a_timeout_reports_what_blocks,
        quiet_prints_only_the_warnings_of_an_incomplete_answer,
        the_document_has_the_documented_keys,
        a_command_takes_the_place_of_twtool,
        a_command_on_a_reusable_port_comes_after_a_warning,
        a_command_is_not_run_when_the_time_is_over,
        a_command_gets_unchanged_signals_and_descriptors,
        a_terminal_shows_a_countdown_and_is_left_clean,
        an_interrupt_ends_the_wait_and_leaves_a_clean_line,
        an_ignored_interrupt_stays_ignored,
        a_wait_whose_output_is_not_read_can_be_interrupted,
    ],
}

const NONE: ReuseOptions = ReuseOptions::NONE;
const REUSEADDR: ReuseOptions = ReuseOptions::REUSEADDR;
/// The cause if only buckets block the bind, and even a bind with SO_REUSEADDR fails.
const BLOCKS: &str = "time-wait-without-reuseaddr";

/// The keys of a record. A document has the same keys after the common keys.
const KEYS: [&str; 11] =
    ["port", "addrs", "options", "as", "bindable", "waited_ms", "attempts", "blocked_by", "cause", "note_lost", "next"];

/// Makes a bucket of a server that closed a connection first. The server has ended when this function returns.
#[track_caller]
fn left_by(at: &str, to: &str, options: ReuseOptions) {
    let server = Server::listen(addr(at), options).expect("a server");
    connect(&server, to).close(ActiveCloser::Server).expect("a bucket");
}

/// The ends of the buckets on this port, as procfs lists them.
fn buckets(port: u16) -> Vec<(SocketAddr, SocketAddr)> {
    let on_port = procfs::buckets().into_iter().filter(|entry| entry.local.1 == port);
    on_port.map(|entry| (entry.local.into(), entry.remote.into())).collect()
}

fn destroy(port: u16) {
    kernel::needs(kernel::destroys_buckets(), "SOCK_DESTROY of buckets");
    let mut killer = Killer::new();
    for ends in buckets(port) {
        killer.destroy(ends);
    }
    assert_eq!(buckets(port), [], "no bucket is left");
}

/// Binds 0.0.0.0 and :: with these options, as a server does, and returns both results.
fn own_bind(port: u16, options: &[&str]) -> [String; 2] {
    ["0.0.0.0", "::"].map(|addr| bind(addr, port, options, false).0)
}

fn both_ok() -> [String; 2] {
    ["ok".into(), "ok".into()]
}

/// This test takes as long as the kernel keeps a bucket, which is more than a minute.
fn slow_a_wait_lasts_through_the_whole_life_of_a_bucket() {
    left_by("127.0.0.1:8080", "127.0.0.1:8080", NONE);
    left_by("[::]:8081", "127.0.0.1:8081", NONE);
    left_by("[::1]:8082", "[::1]:8082", REUSEADDR);
    let cases = [(8080, "reuseaddr", true), (8081, "both", true), (8082, "none", false)];
    let waiters: Vec<(u16, Duration, Instant, Waiter)> = cases
        .into_iter()
        .map(|(port, with, reuseaddr)| {
            let options: &[&str] = if reuseaddr { &["SO_REUSEADDR"] } else { &[] };
            assert!(own_bind(port, options).contains(&"EADDRINUSE".to_owned()), "{port}");
            let since = Instant::now();
            let left = procfs::buckets().iter().filter(|entry| entry.local.1 == port).map(|entry| entry.when).max();
            let left = Duration::from_millis(left.expect("a bucket") * procfs::UNIT_MS);
            let mut waiter = Waiter::start(&[&port.to_string(), "--with", with]);
            waiter.blocked(if reuseaddr { BLOCKS } else { "time-wait" });
            (port, left, since, waiter)
        })
        .collect();
    std::thread::scope(|scope| {
        for (port, left, since, mut waiter) in waiters {
            scope.spawn(move || {
                let mut cpu = Duration::ZERO;
                // Poll slowly at first, and fast when the bucket ends, to measure how long after the bucket twtool ends.
                while !waiter.has_ended() && !buckets(port).is_empty() {
                    cpu = waiter.cpu().unwrap_or(cpu);
                    let nearly = since.elapsed() > left;
                    std::thread::sleep(Duration::from_millis(if nearly { 5 } else { 500 }));
                }
                let gone = Instant::now();
                let age = waiter.age();
                let Ended { run, last } = waiter.end();
                let late = gone.elapsed();
                run.ok();
                assert_eq!((&last["bindable"], &last["cause"]), (&json!(true), &json!("none")), "{last}");
                assert_eq!(last["blocked_by"], json!([]));
                assert_eq!(own_bind(port, &[]), both_ok(), "a server that sets no option gets the port");
                let (waited, attempts) = (number(&last, "waited_ms"), number(&last, "attempts"));
                assert!(gone.duration_since(since) >= left, "the bucket ended before its timer, which had {left:.1?}");
                assert!(attempts < 120, "{attempts} binds in {waited} ms");
                assert!(cpu * 100 < kernel::patience(age), "{cpu:?} on a processor in {age:?}");
                measured(format!(
                    "wait: {waited} ms for a bucket with {left:.2?} to go; it ended {late:.0?} after the bucket, after \
                     {attempts} binds and {cpu:.1?} on a processor ({:.2} %)",
                    cpu.as_secs_f64() * 100.0 / age.as_secs_f64()
                ));
            });
        }
    });
}

fn a_free_port_is_reported_at_once() {
    let run = twtool(["wait", "8080"]).ok();
    let line = run.stdout.lines().next().expect("a line");
    assert!(line.contains("8080") && line.contains("bindable with SO_REUSEADDR"), "{run}");
    assert_eq!(run.stdout.lines().count(), 1);
    let document = twtool(["wait", "8080", "--json"]).ok().json();
    assert_eq!((&document["bindable"], &document["attempts"]), (&json!(true), &json!(2)));
    left_by("127.0.0.1:8080", "127.0.0.1:8080", NONE);
    twtool(["wait", "8080", "--addr", "127.0.0.2", "--with", "none"]).ok();
    twtool(["wait", "8080", "--addr", "::1", "--with", "none"]).ok();
    twtool(["wait", "8080", "-6", "--addr", "::1"]).ok();
    twtool(["wait", "8081", "-4"]).ok();
}

/// Starts a wait, and removes the bucket after the wait has reported it. Asserts that the wait ends long before the bucket's timer.
#[track_caller]
fn ends_with_the_bucket(name: &str, args: &[&str], remove: impl FnOnce()) -> Value {
    let mut waiter = Waiter::start(&[&["8080"], args].concat());
    let first = waiter.blocked(BLOCKS);
    let left = first["blocked_by"].as_array().expect("holders").iter().map(|holder| number(holder, "expires_ms")).max();
    let before = number(&first, "attempts");
    remove();
    let gone = Instant::now();
    let Ended { run, last } = waiter.end();
    let late = gone.elapsed();
    run.ok();
    assert_eq!((&last["bindable"], &last["blocked_by"]), (&json!(true), &json!([])), "{name}: {last}");
    let (timer, took) = (left.expect("a holder"), number(&last, "waited_ms"));
    let attempts = number(&last, "attempts");
    assert!(took + 5000 < timer, "{name}: it waited {took} ms, although the timer had {timer} ms");
    assert!(attempts <= before + 12, "{name}: {attempts} binds, {before} of them at first");
    measured(format!("wait: it ended {late:.0?} after {name} was removed, with {attempts} binds"));
    last
}

fn a_bucket_that_is_removed_ends_the_wait() {
    for with in ["none", "reuseaddr", "reuseport", "both"] {
        left_by("127.0.0.1:8080", "127.0.0.1:8080", NONE);
        ends_with_the_bucket(&format!("an IPv4 bucket (--with {with})"), &["--with", with], || destroy(8080));
        assert_eq!(own_bind(8080, &[]), both_ok());
    }
    left_by("[::1]:8080", "[::1]:8080", NONE);
    ends_with_the_bucket("an IPv6 bucket", &[], || destroy(8080));
    left_by("[::]:8080", "127.0.0.1:8080", NONE);
    ends_with_the_bucket("an IPv4-mapped bucket", &["--addr", "127.0.0.1"], || destroy(8080));
    let server = Server::listen(addr("127.0.0.1:8080"), NONE).expect("a server");
    let open = half_closed(&server, "127.0.0.1:8080", ActiveCloser::Server);
    drop(server);
    ends_with_the_bucket("a FIN_WAIT_2 bucket", &[], || destroy(8080));
    drop(open);
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.bind_device(Some(b"lo")).expect("SO_BINDTODEVICE");
    let server = Server::listen_on(socket, addr("127.0.0.1:8080")).expect("a server");
    connect(&server, "127.0.0.1:8080").close(ActiveCloser::Server).expect("a bucket");
    drop(server);
    let mut waiter = Waiter::start(&["8080"]);
    let first = waiter.blocked(BLOCKS);
    assert_eq!(first["blocked_by"][0]["interface"], "lo");
    assert!(!waiter.has_ended(), "the wait finds the bucket, which is bound to an interface");
    waiter.end_by(Signal::SIGTERM);
}

fn a_fin_wait_2_bucket_that_becomes_time_wait_is_reported_with_its_new_timer() {
    sysctl::write("ipv4.tcp_fin_timeout", "20").expect("the namespace is ours");
    let server = Server::listen(addr("127.0.0.1:8080"), NONE).expect("a server");
    let open = half_closed(&server, "127.0.0.1:8080", ActiveCloser::Server);
    drop(server);
    let mut waiter = Waiter::start(&["8080"]);
    let half = waiter.blocked(BLOCKS)["blocked_by"][0].clone();
    drop(open);
    let whole = waiter.blocked(BLOCKS)["blocked_by"][0].clone();
    assert_eq!((&half["state"], &whole["state"]), (&json!("fin-wait-2"), &json!("time-wait")));
    assert_eq!(half["cookie"], whole["cookie"], "the same bucket");
    assert!(number(&half, "expires_ms") <= 20_000 && number(&whole, "expires_ms") > 50_000, "{half} {whole}");
    waiter.end_by(Signal::SIGTERM);
}

fn a_bucket_that_shares_the_port_is_not_waited_for() {
    left_by("127.0.0.1:8080", "127.0.0.1:8080", REUSEADDR);
    twtool(["wait", "8080", "--timeout", "0"]).ok();
    twtool(["wait", "8080", "--timeout", "0", "--with", "both"]).ok();
    twtool(["wait", "8080", "--timeout", "0", "--with", "none"]).code(1);
    twtool(["wait", "8080", "--timeout", "0", "--with", "reuseport"]).code(1);
    // If another bucket does not share the port, `blocked_by` has both, because the kernel does not report which one blocks.
    left_by("127.0.0.2:8080", "127.0.0.2:8080", NONE);
    let blocking = buckets(8080).into_iter().find(|(local, _)| *local == addr("127.0.0.2:8080")).expect("a bucket");
    kernel::needs(kernel::destroys_buckets(), "SOCK_DESTROY of buckets");
    ends_with_the_bucket("one of two buckets", &[], || Killer::new().destroy(blocking));
    assert_eq!(buckets(8080).len(), 1);
    assert_eq!(own_bind(8080, &["SO_REUSEADDR"]), both_ok());
}

fn thousands_of_buckets_are_waited_for_with_few_binds() {
    const COUNT: usize = 2000;
    let server = Server::listen(addr("127.0.0.1:8080"), NONE).expect("a server");
    many_buckets(&server, "127.0.0.1:8080", COUNT);
    drop(server);
    for with in ["none", "reuseaddr"] {
        let mut waiter = Waiter::start(&["8080", "--with", with, "--timeout", "3s"]);
        let first = waiter.blocked(BLOCKS);
        // On a slow machine the first buckets may have expired. Each bucket that exists now also existed at the first record.
        let there = buckets(8080).len();
        assert!(first["blocked_by"].as_array().is_some_and(|holders| there > 0 && holders.len() >= there));
        let before = waiter.cpu().unwrap_or_default();
        std::thread::sleep(Duration::from_secs(2));
        let cpu = waiter.cpu().map(|cpu| cpu.saturating_sub(before)).unwrap_or_default();
        let Ended { run, last } = waiter.end();
        run.code(1);
        assert!(number(&last, "attempts") < 10, "{}", last["attempts"]);
        measured(format!("wait --with {with}: {COUNT} buckets cost {cpu:.1?} on a processor in 2 s"));
    }
    ends_with_the_bucket("2000 buckets", &[], || destroy(8080));
}

fn without_sock_diag_the_wait_uses_procfs() {
    const NETLINK: u64 = 16;
    // Without netlink, the test cannot remove a bucket. So it uses a FIN_WAIT_2 bucket, which lasts 1 s with this setting.
    sysctl::write("ipv4.tcp_fin_timeout", "1").expect("the namespace is ours");
    let server = Server::listen(addr("127.0.0.1:8080"), NONE).expect("a server");
    let mut connection = connect(&server, "127.0.0.1:8080");
    drop(server);
    connection.server.set_reuse_address(false).expect("SO_REUSEADDR");
    let client = std::mem::replace(
        &mut connection.client,
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket"),
    );
    drop(connection);
    refuse(libc::SYS_socket, Some((0, seccompiler::SeccompCmpOp::Eq, NETLINK)), libc::EACCES);
    let run = twtool(["wait", "8080", "--json"]).code(0).says("/proc/net/tcp");
    let document = run.json();
    assert_eq!((&document["bindable"], &document["complete"]), (&json!(true), &json!(true)), "{run}");
    assert_eq!(own_bind(8080, &[]), both_ok());
    drop(client);
}

fn a_timeout_of_zero_is_one_attempt() {
    for zero in ["0", "0s", "0ms"] {
        twtool(["wait", "8080", "--timeout", zero]).ok();
    }
    left_by("127.0.0.1:8080", "127.0.0.1:8080", NONE);
    let run = twtool(["wait", "8080", "--timeout", "0", "-4", "--json"]).code(1);
    let document = run.json();
    assert_eq!((&document["bindable"], &document["attempts"]), (&json!(false), &json!(1)), "{run}");
    assert_eq!(document["blocked_by"].as_array().map(Vec::len), Some(1));
    assert_eq!(twtool(["wait", "8080", "--timeout", "0", "-o", "ndjson"]).code(1).ndjson().len(), 1);
}

fn a_timeout_reports_what_blocks() {
    left_by("127.0.0.1:8080", "127.0.0.1:8080", NONE);
    let run = twtool(["wait", "8080", "--timeout", "300ms"]).code(1);
    let first = run.stdout.lines().next().unwrap_or_default();
    assert!(run.stderr.is_empty(), "{run}");
    for text in ["8080", "not bindable with SO_REUSEADDR, after ", "1 TIME_WAIT socket, 5", "to go"] {
        assert!(first.contains(text), "{text}{run}");
    }
    let run = twtool(["wait", "8080", "--timeout", "300ms", "--json"]).code(1);
    let document = run.json();
    assert!(number(&document, "waited_ms") >= 300, "{run}");
    assert_eq!((&document["complete"], &document["cause"]), (&json!(true), &json!(BLOCKS)), "{run}");
    assert!(own_bind(8080, &["SO_REUSEADDR"]).contains(&"EADDRINUSE".to_owned()));
}

fn quiet_prints_only_the_warnings_of_an_incomplete_answer() {
    left_by("127.0.0.1:8080", "127.0.0.1:8080", NONE);
    for (args, code) in [
        (["8080", "--timeout", "0", "-q"].as_slice(), 1),
        (&["8080", "--timeout", "50ms", "--quiet", "--json"], 1),
        (&["8080", "--timeout", "50ms", "--quiet", "-o", "ndjson"], 1),
        (&["8081", "-q"], 0),
    ] {
        let run = twtool([&["wait"], args].concat()).code(code);
        assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("", ""), "{run}");
    }
    private_proc::mount_private_folders();
    fs::remove_file("/etc/services").expect("removed");
    fs::create_dir("/etc/services").expect("a folder");
    let run = twtool(["wait", "8080", "--timeout", "0", "-q"]).code(2).says("warning: /etc/services could not be read");
    assert!(run.stdout.is_empty() && run.stderr.lines().count() == 1, "{run}");
}

fn the_document_has_the_documented_keys() {
    #[derive(serde::Deserialize)]
    struct Document {
        blocked_by: Vec<Keys>,
    }
    left_by("127.0.0.1:8080", "127.0.0.1:8080", NONE);
    let run = twtool(["wait", "8080", "--timeout", "0", "--with", "both", "--json"]).code(1);
    assert_eq!(Keys::of(&run.stdout), DOCUMENT_KEYS.into_iter().chain(KEYS).collect::<Vec<_>>());
    let document = run.json();
    assert_eq!(document["schema"], "twtool.wait/1");
    assert_eq!((&document["port"], &document["addrs"]), (&json!(8080), &json!(["0.0.0.0", "::"])));
    assert_eq!(document["options"], json!(["SO_REUSEADDR", "SO_REUSEPORT"]));
    let Document { blocked_by } = serde_json::from_str(&run.stdout).expect("a document");
    let documented = [LIST_KEYS.as_slice(), &["inode", "processes", "blocks"]].concat();
    let known: Vec<_> = blocked_by[0].0.iter().filter(|key| documented.contains(&key.as_str())).collect();
    assert_eq!(known, documented);
    assert_eq!(
        (&document["blocked_by"][0]["blocks"], &document["blocked_by"][0]["processes"]),
        (&json!(true), &json!([]))
    );
    let record = twtool(["wait", "8080", "--timeout", "0", "-o", "ndjson"]).code(1);
    assert_eq!(Keys::of(&record.stdout), KEYS);
}

fn a_command_takes_the_place_of_twtool() {
    let shell = |script: &str| twtool(["wait", "8080", "--", "sh", "-c", script]);
    let run = shell("echo started; echo aside >&2; exit 7").code(7);
    assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("started\n", "aside\n"), "{run}");
    let run = twtool(["wait", "8080", "-q", "--", "printf", "%s|", "a b", "--json", "-4", ""]).ok();
    assert_eq!(run.stdout, "a b|--json|-4||", "twtool does not interpret the arguments of the command");
    let run = twtool(["wait", "8080", "--json", "--", "echo", "started"]).code(0);
    assert_eq!(run.stdout, "started\n", "only the command writes to standard output{run}");
    let document: Value = serde_json::from_str(&run.stderr).expect("the document is on stderr");
    assert_eq!(document["bindable"], true);
    // The command is the same process as twtool.
    let script = r#"[ "$PPID" = "$1" ]"#;
    let run = Run::of(Command::new("sh").args(["-c", r#""$0" wait 8080 -- sh -c "$1" x "$$"; exit $?"#, PATH, script]));
    run.code(0);
    twtool(["wait", "8080", "--", "/nosuch"]).code(127).says("/nosuch");
    // If PATH has a folder that the user is not permitted to search, the exit code is 126, as with env(1). So the test sets PATH to folders
    // that every user can search.
    let mut unknown = command(["wait", "8080", "--", "nosuch-program"]);
    Run::of(unknown.env("PATH", "/usr/bin:/bin")).code(127).says("nosuch-program");
    twtool(["wait", "8080", "--", "/dev/null"]).code(126).says("/dev/null");
    twtool(["wait", "8080", "--", "/"]).code(126);
    // A missing command is reported before the wait, which would last an hour here.
    let blocked = listen("127.0.0.1:8081");
    twtool(["wait", "8081", "--timeout", "1h", "--", "/nosuch"]).code(127).says("/nosuch");
    twtool(["wait", "8081", "--timeout", "1h", "--", "/dev/null"]).code(126).says("/dev/null");
    drop(blocked);
    twtool(["wait", "8080", "--", "/nosuch\x1b[2J"]).code(127).says("\\u{1b}");
    // twtool does not change how a signal ends the command.
    assert_eq!(shell("kill -TERM $$").code, None);
    // The port is free for the command, because twtool holds no socket.
    left_by("127.0.0.1:8080", "127.0.0.1:8080", REUSEADDR);
    let listen = format!("{PATH} bind-test 8080 --listen -q >/dev/null 2>&1; {PATH} wait 8080 --timeout 0 -q");
    let run = shell(&listen).code(0);
    assert_eq!(run.stderr.lines().count(), 1, "the warning that the port is only reusable{run}");
}

fn a_command_on_a_reusable_port_comes_after_a_warning() {
    left_by("127.0.0.1:8080", "127.0.0.1:8080", REUSEADDR);
    let [plain, reuseaddr] = ["none", "reuseaddr"]
        .map(|with| twtool(["wait", "8080", "--with", with, "--timeout", "0", "-q"]).code.expect("a code"));
    assert_eq!((plain, reuseaddr), (1, 0));
    let start =
        |args: &[&str]| twtool([&["wait", "8080"], args, &["--", "sh", "-c", "echo started >&2"]].concat()).code(0);
    let note = "warning: the bind works with SO_REUSEADDR, and fails without this option; for a server without this \
                option, use --with none";
    let run = start(&[]);
    let lines: Vec<&str> = run.stderr.lines().collect();
    assert!(lines.len() == 2 && lines[0].starts_with(note) && lines[1] == "started", "{run}");
    let run = start(&["--json"]);
    assert!(run.stderr.contains("\"bindable\":true") && run.stderr.contains(note), "{run}");
    assert_eq!(start(&["-q"]).stderr, "started\n");
    // Without a command, twtool starts no server, so there is no warning.
    twtool(["wait", "8080"]).ok();
    // On an address without the bucket, and on a port without any socket, every server can bind.
    for args in [&["--addr", "127.0.0.2"][..], &["--addr", "::1"]] {
        assert_eq!(start(args).stderr, "started\n", "{args:?}");
    }
    if kernel::destroys_buckets() {
        destroy(8080);
        assert_eq!(start(&[]).stderr, "started\n");
    }
}

fn a_command_is_not_run_when_the_time_is_over() {
    left_by("127.0.0.1:8080", "127.0.0.1:8080", NONE);
    let run = twtool(["wait", "8080", "--timeout", "50ms", "--", "echo", "started"]).code(1);
    assert_eq!(run.stdout, "");
    run.says("1 TIME_WAIT socket");
    let mut waiter = Waiter::start(&["8080", "--", "sh", "-c", "echo '{}'; exit 7"]);
    let bindable = |line: &str| serde_json::from_str::<Value>(line).expect("a record")["bindable"].clone();
    assert_eq!(bindable(&waiter.error_line()), false);
    assert!(!waiter.has_ended());
    destroy(8080);
    assert_eq!(waiter.record(), json!({}), "nothing else on standard output");
    let run = waiter.end().run.code(7);
    assert_eq!(run.stderr.lines().map(bindable).collect::<Vec<_>>(), [true]);
}

fn a_command_gets_unchanged_signals_and_descriptors() {
    let script = "grep -E '^Sig(Blk|Ign|Cgt)' /proc/self/status; ls /proc/self/fd | wc -l";
    let of = |command: &mut Command| Run::of(command.stdin(Stdio::null())).code(0).stdout;
    let without = of(Command::new("sh").args(["-c", script]));
    let with = of(&mut command(["wait", "8080", "-q", "--", "sh", "-c", script]));
    assert_eq!(with, without);
}

impl Waiter {
    fn end_by(self, signal: Signal) {
        let id = i32::try_from(self.id()).expect("a process");
        kill(Pid::from_raw(id), signal).expect("our own child");
        assert_eq!(self.end().run.code, None);
    }
}

/// Runs `twtool wait 8080` with a pseudo-terminal of this width as its standard error. Returns the text on the terminal and the exit
/// status. Calls `meanwhile` with the process ID and the text so far, after each part of the text.
fn on_a_terminal(width: u16, args: &[&str], meanwhile: impl Fn(Pid, &str)) -> (String, std::process::ExitStatus) {
    let size = Winsize { ws_row: 24, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = openpty(Some(&size), None).expect("a pseudo-terminal");
    let mut command = command([&["wait", "8080"], args].concat());
    let slave: OwnedFd = pty.slave;
    let mut child = command.stdout(Stdio::null()).stderr(slave).spawn().expect("twtool can be started");
    // This closes the copy of the slave in `command`, so that read() of the master reports the end of the child.
    drop(command);
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a process"));
    let mut master = std::fs::File::from(pty.master);
    let (mut text, mut buffer) = (String::new(), [0; 4096]);
    while let Ok(length @ 1..) = master.read(&mut buffer) {
        text.push_str(std::str::from_utf8(&buffer[..length]).expect("ASCII"));
        meanwhile(pid, &text);
    }
    (text, child.wait().expect("our own child"))
}

/// The text that is visible on the last line after these bytes. A carriage return moves the cursor to the beginning of the line.
fn left_on_the_line(text: &str) -> String {
    let mut line: Vec<char> = vec![];
    for part in text.rsplit('\n').next().unwrap_or_default().split('\r') {
        for (at, letter) in part.chars().enumerate() {
            if at < line.len() {
                line[at] = letter;
            } else {
                line.push(letter);
            }
        }
    }
    line.into_iter().collect::<String>().trim_end().to_owned()
}

fn a_terminal_shows_a_countdown_and_is_left_clean() {
    left_by("127.0.0.1:8080", "127.0.0.1:8080", NONE);
    for width in [80, 40, 20] {
        let (text, status) = on_a_terminal(width, &["--timeout", "1s"], |_, _| {});
        assert_eq!(status.code(), Some(1), "{text:?}");
        assert!(!text.contains(['\n', '\x1b']), "one line: {text:?}");
        let drawn: Vec<&str> = text.split('\r').filter(|line| !line.trim().is_empty()).collect();
        assert!(drawn.len() > 1 && drawn.len() < 20, "redrawn about ten times a second: {text:?}");
        assert!(drawn.iter().all(|line| line.len() < usize::from(width)), "{text:?}");
        assert!(drawn[0].starts_with("port 8080: 1 T"), "{text:?}");
        if width == 80 {
            assert!(drawn[0].contains("1 TIME_WAIT socket, 5") && drawn[0].contains("s to go"), "{text:?}");
            assert!(drawn[0].contains("; timeout in ") && drawn[0].contains('['), "{text:?}");
        }
        assert_eq!(left_on_the_line(&text), "");
    }
    let (text, _) = on_a_terminal(80, &["--timeout", "1s", "-q"], |_, _| {});
    assert_eq!(text, "");
    kernel::needs(kernel::destroys_buckets(), "SOCK_DESTROY of buckets");
    // The countdown also leaves a clean line if the bucket is removed before its timer ends.
    let (text, status) = on_a_terminal(80, &[], |_, text| {
        if text.matches('\r').count() >= 2 {
            destroy(8080);
        }
    });
    assert_eq!(status.code(), Some(0), "{text:?}");
    assert!(text.contains("to go") && !text.contains('\n') && left_on_the_line(&text).is_empty(), "{text:?}");
    // Without a bucket, nothing is drawn.
    let (text, status) = on_a_terminal(80, &[], |_, _| {});
    assert_eq!((text.as_str(), status.code()), ("", Some(0)));
}

fn an_interrupt_ends_the_wait_and_leaves_a_clean_line() {
    left_by("127.0.0.1:8080", "127.0.0.1:8080", NONE);
    let interrupted_with = |signal: Signal, args: &[&str]| {
        let (text, status) = on_a_terminal(80, args, |pid, text| {
            if text.matches('\r').count() >= 2 {
                kill(pid, signal).expect("our own child");
            }
        });
        assert_eq!(status.signal(), Some(signal as i32));
        assert!(text.contains("to go") && left_on_the_line(&text).is_empty(), "{text:?}");
    };
    let interrupted = |signal: Signal| interrupted_with(signal, &[]);
    interrupted(Signal::SIGTERM);
    // With --netns, twtool waits on another thread.
    interrupted_with(Signal::SIGTERM, &["--netns", "/proc/self/ns/net"]);
    interrupted(Signal::SIGINT);
    let mut waiter = Waiter::start(&["8080"]);
    waiter.blocked(BLOCKS);
    waiter.end_by(Signal::SIGINT);
    // A shell reports this signal as exit code 130.
    let script = r#"sh -c 'echo $$; exec "$0" wait 8080 -o ndjson' "$0"; exit $?"#;
    let (pid, mut shell) = started_by(script);
    kill(pid, Signal::SIGINT).expect("a child of our child");
    assert_eq!(shell.wait().expect("our own child").code(), Some(130));
}

fn an_ignored_interrupt_stays_ignored() {
    left_by("127.0.0.1:8080", "127.0.0.1:8080", NONE);
    let (pid, mut child) = started_by(r#"trap '' INT; echo $$; exec "$0" wait 8080 -o ndjson"#);
    assert!(ignores_sigint(pid));
    kill(pid, Signal::SIGINT).expect("our own child");
    destroy(8080);
    assert_eq!(child.wait().expect("our own child").code(), Some(0));
}

fn a_wait_whose_output_is_not_read_can_be_interrupted() {
    // The output about 400 buckets is longer than a pipe can hold.
    let server = Server::listen(addr("127.0.0.1:8080"), REUSEADDR).expect("listening");
    many_buckets(&server, "127.0.0.1:8080", 400);
    drop(server);
    for more in [[].as_slice(), &["--netns", "/proc/self/ns/net"]] {
        let args = [&["wait", "8080", "--with", "none", "--timeout", "0", "--json"], more].concat();
        let pty = openpty(None, None).expect("a pseudo-terminal");
        let slave: OwnedFd = pty.slave;
        let mut child = command(args).stdout(Stdio::piped()).stderr(slave).spawn().expect("twtool can be started");
        child.stdout.as_mut().expect("a pipe").read_exact(&mut [0]).expect("the beginning of the answer");
        kill(Pid::from_raw(i32::try_from(child.id()).expect("a process")), Signal::SIGTERM).expect("our own child");
        let deadline = Instant::now() + kernel::patience(Duration::from_secs(10));
        let status = loop {
            match child.try_wait().expect("our own child") {
                Some(status) => break status,
                None if Instant::now() > deadline => {
                    child.kill().expect("our own child");
                    panic!("{more:?}: the signal does not end twtool");
                }
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        assert_eq!(status.signal(), Some(Signal::SIGTERM as i32));
    }
}

/// Whether the process ignores SIGINT (SigIgn in proc_pid_status(5)).
fn ignores_sigint(pid: Pid) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).expect("a mask");
    let mask = u64::from_str_radix(mask.trim(), 16).expect("a hexadecimal number");
    mask & 1 << (Signal::SIGINT as i32 - 1) != 0
}

/// Runs a shell script that prints a process ID, and starts `twtool wait -o ndjson` with this ID. Returns the ID and the shell when
/// twtool waits.
fn started_by(script: &str) -> (Pid, std::process::Child) {
    let mut shell = Command::new("sh");
    let started = shell.args(["-c", script, PATH]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut shell = started.expect("sh can be started");
    let pipe = shell.stdout.as_mut().expect("a pipe");
    let mut lines = BufReader::new(pipe).lines().map(|line| line.expect("a line"));
    let pid = lines.next().and_then(|line| line.parse().ok()).expect("the process");
    assert!(lines.next().is_some_and(|record| record.contains(BLOCKS)));
    (Pid::from_raw(pid), shell)
}
