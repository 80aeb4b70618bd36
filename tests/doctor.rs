//! `twtool doctor` on the real kernel, in situations that cause a note or a warning. Some tests then run the printed command, and assert
//! that the warning disappears.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use socket2::{SockRef, Socket};
use twtool::model::bind::ReuseOptions;
use twtool::sys::sysctl;

use crate::support::commands;
use crate::support::limits::{drop_capabilities_but_setfcap, refuse_netlink};
use crate::support::records::{DOCUMENT_KEYS, number, text};
use crate::support::situations::{addr, bucket_of_server, connect, listen};
use crate::support::twtool::{Keys, Run, twtool};
use crate::support::{kernel, procfs, suite};

suite! {
    pure: [],
    netns: [
        a_quiet_namespace_has_no_findings,
        doctor_reports_the_values_of_the_settings_and_changes_nothing,
        every_format_has_the_same_checks,
        the_page_has_warnings_first_and_verbose_explains_every_check,
        closes_above_the_bucket_limit_are_counted_and_cause_a_warning,
        a_server_port_in_the_range_causes_a_warning_until_it_is_reserved,
        listeners_whose_port_the_kernel_chose_cause_no_warning,
        a_listener_of_the_other_ip_version_is_left_out,
        a_completely_reserved_range_causes_a_warning,
        a_destination_with_few_ports_left_causes_a_warning,
        sockets_in_close_wait_are_counted_by_process_and_age,
        connections_that_a_server_does_not_accept_are_reported_with_its_port,
        a_warning_reports_that_reuse_needs_timestamps,
        missing_settings_are_unknown_and_reported,
        without_sock_diag_the_checks_still_have_results,
        missing_permissions_of_the_caller_are_reported,
    ],
}

/// The keys of a check, in order. Scripts rely on them.
const KEYS: [&str; 12] = [
    "id", "status", "value", "default", "does", "does_not", "finding", "evidence", "commands", "lasting", "advice",
    "sources",
];

#[track_caller]
fn doctor(args: &[&str], code: i32) -> (Run, BTreeMap<String, Value>) {
    let run = twtool([&["doctor", "--json"], args].concat()).code(code);
    let checks = run.records("checks").into_iter().map(|check| (text(&check, "id").to_owned(), check)).collect();
    (run, checks)
}

fn with_status(checks: &BTreeMap<String, Value>, status: &str) -> Vec<String> {
    checks.iter().filter(|(_, check)| check["status"] == status).map(|(id, _)| id.clone()).collect()
}

#[track_caller]
fn file(name: &str) -> String {
    fs::read_to_string(Path::new("/proc/sys/net").join(name)).expect("a setting").trim().to_owned()
}

fn a_quiet_namespace_has_no_findings() {
    let run = twtool(["doctor", "--json"]).ok();
    assert_eq!(Keys::of(&run.stdout), [DOCUMENT_KEYS.as_slice(), &["checks"]].concat());
    assert_eq!(run.json()["schema"], "twtool.doctor/1");
    assert_eq!((&run.json()["complete"], &run.json()["warnings"]), (&json!(true), &json!([])));
    let (run, checks) = doctor(&[], 0);
    assert_eq!(with_status(&checks, "ok").len(), checks.len(), "{run}");
    let line = twtool(["doctor"]).ok();
    assert!(line.stdout.starts_with("0 warnings, "), "{line}");
}

fn doctor_reports_the_values_of_the_settings_and_changes_nothing() {
    let all = || -> BTreeMap<_, _> {
        let files = ["ipv4", "ipv6"].map(|family| fs::read_dir(format!("/proc/sys/net/{family}")));
        let paths = files.into_iter().flatten().flatten().map(|entry| entry.expect("an entry").path());
        paths.filter(|path| path.is_file()).map(|path| (path.clone(), fs::read_to_string(path).ok())).collect()
    };
    for (name, value) in [
        ("ipv4.tcp_tw_reuse", "1"),
        ("ipv4.tcp_max_tw_buckets", "1234"),
        ("ipv4.tcp_fin_timeout", "17"),
        ("ipv4.tcp_rfc1337", "1"),
        ("ipv4.ip_local_port_range", "30000 30999"),
        ("ipv4.ip_local_reserved_ports", "30000,30010-30019"),
        ("ipv4.ip_nonlocal_bind", "1"),
    ] {
        sysctl::write(name, value).expect("the namespace is ours");
    }
    let before = all();
    let (run, checks) = doctor(&[], 0);
    assert_eq!(all(), before, "doctor changes nothing");
    for id in
        ["tcp_tw_reuse", "tcp_max_tw_buckets", "tcp_fin_timeout", "tcp_timestamps", "tcp_rfc1337", "ip_nonlocal_bind"]
    {
        assert_eq!(checks[id]["value"].to_string(), file(&format!("ipv4/{id}")), "{id}{run}");
    }
    assert_eq!(checks["ip_local_port_range"]["value"], "30000 30999");
    assert_eq!(checks["ip_local_reserved_ports"]["value"], json!(["30000", "30010-30019"]));
    assert_eq!(checks["ip_local_reserved_ports"]["evidence"]["ports_left_in_ephemeral_range"], 989);
    let mut notes = vec!["ip_local_port_range", "ip_nonlocal_bind", "tcp_fin_timeout"];
    // The default of tcp_max_tw_buckets is half the number of entries of the hash table of sockets. The kernel reports the number of
    // entries since 6.1. The number is negative if the namespace uses the table of the initial namespace.
    let entries = sysctl::read("ipv4.tcp_ehash_entries").ok();
    let entries = entries.map(|text| text.parse::<i64>().expect("a number").unsigned_abs());
    assert_eq!(checks["tcp_max_tw_buckets"]["default"], json!(entries.map(|entries| entries / 2)));
    notes.extend(entries.map(|_| "tcp_max_tw_buckets"));
    assert_eq!(with_status(&checks, "note"), notes);
}

fn every_format_has_the_same_checks() {
    let run = twtool(["doctor", "--json"]).ok();
    let records = run.records("checks");
    let ndjson = twtool(["doctor", "-o", "ndjson"]).ok();
    assert_eq!(ndjson.ndjson(), records);
    for line in ndjson.stdout.lines() {
        assert_eq!(Keys::of(line), KEYS);
    }
    let table = twtool(["doctor"]).ok();
    for record in &records {
        assert!(table.stdout.contains(text(record, "id")), "{table}");
        assert!(!record["sources"].as_array().expect("sources").is_empty(), "{record}");
    }
}

fn the_page_has_warnings_first_and_verbose_explains_every_check() {
    let _server = Sleeper::with(vec![listener("127.0.0.1:40000")]);
    sysctl::write("ipv4.tcp_rfc1337", "1").expect("the namespace is ours");
    sysctl::write("ipv4.tcp_fin_timeout", "17").expect("the namespace is ours");
    for args in [["doctor"].as_slice(), &["doctor", "--verbose"]] {
        let page = twtool(args).code(1).prints("1 warning, 1 note, ");
        let at = |text: &str| page.stdout.find(text).unwrap_or_else(|| panic!("no {text:?}{page}"));
        assert!(at("\nwarning") < at("\nnote") && at("\nnote") < at("tcp_rfc1337"), "{page}");
        assert!(page.stdout.contains("\n           sh -c '{ read x; echo 40000 >&0; } <>/proc/sys/net/"), "{page}");
    }
    let verbose = twtool(["doctor", "-v"]).code(1);
    let (_, checks) = doctor(&[], 1);
    for check in checks.values() {
        for key in ["does", "does_not"] {
            assert!(verbose.stdout.contains(text(check, key)), "{key} of {check}{verbose}");
        }
        for source in check["sources"].as_array().expect("sources") {
            assert!(verbose.stdout.contains(source.as_str().expect("text")), "{source}{verbose}");
        }
    }
}

fn counter(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/thread-self/net/netstat").expect("counters");
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, numbers) = (lines.next().expect("names"), lines.next().expect("numbers"));
    let mut pairs = names.split(' ').zip(numbers.split(' '));
    pairs.find(|(found, _)| *found == name).and_then(|(_, number)| number.parse().ok()).expect("the counter")
}

fn closes_above_the_bucket_limit_are_counted_and_cause_a_warning() {
    sysctl::write("ipv4.tcp_max_tw_buckets", "10").expect("the namespace is ours");
    let server = listen("127.0.0.1:8080");
    for _ in 0..8 {
        bucket_of_server(&server, "127.0.0.1:8080");
    }
    let (run, checks) = doctor(&[], 0);
    let status = if kernel::has_setting("ipv4.tcp_ehash_entries") { "note" } else { "ok" };
    assert_eq!(checks["tcp_max_tw_buckets"]["status"], status, "10 is far below a known default{run}");
    bucket_of_server(&server, "127.0.0.1:8080");
    let (run, checks) = doctor(&[], 1);
    assert_eq!(with_status(&checks, "warning"), ["tcp_max_tw_buckets"], "9 of 10{run}");
    assert_eq!(checks["tcp_max_tw_buckets"]["evidence"]["buckets"], 9);
    bucket_of_server(&server, "127.0.0.1:8080");

    // These closes leave no bucket, so the test does not wait for one.
    for _ in 0..3 {
        let open = connect(&server, "127.0.0.1:8080");
        drop(open.server);
        drop(open.client);
    }
    let patience = std::time::Instant::now();
    while counter("TCPTimeWaitOverflow") < 3 && patience.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let overflown = counter("TCPTimeWaitOverflow");
    assert!(overflown >= 3, "the kernel has counted {overflown}");
    let (run, checks) = doctor(&[], 1);
    assert_eq!(checks["tcp_timewait_overflow"]["value"], overflown, "{run}");
    assert_eq!(with_status(&checks, "warning"), ["tcp_max_tw_buckets", "tcp_timewait_overflow"]);

    // After the printed command, the limit causes no warning. The count of closes above the limit still causes a warning.
    apply(&checks["tcp_max_tw_buckets"]);
    let (_, checks) = doctor(&[], 1);
    assert_eq!(with_status(&checks, "warning"), ["tcp_timewait_overflow"]);
}

/// Runs the first command of a check, as it is printed.
#[track_caller]
fn apply(check: &Value) {
    commands::succeeds(text(&check["commands"][0], "command"));
}

/// Makes a listener whose program has chosen the port. The socket has no options.
#[track_caller]
fn listener(at: &str) -> Socket {
    let socket = twtool::sys::bind::socket(addr(at).ip(), ReuseOptions::NONE).expect("a socket");
    socket.bind(&addr(at).into()).expect("bound");
    socket.listen(16).expect("listening");
    socket
}

/// Opens connections until connect() fails. Returns their local ports and the error.
fn ports_given(to: SocketAddr) -> (Vec<u16>, io::Error) {
    let mut open = vec![];
    loop {
        match TcpStream::connect(to) {
            Ok(stream) => open.push(stream),
            Err(error) => {
                let mut ports: Vec<u16> = open.iter().map(|s| s.local_addr().expect("an address").port()).collect();
                ports.sort_unstable();
                // A reset leaves no bucket that would keep the port.
                let reset = |s: &TcpStream| SockRef::from(s).set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
                open.iter().for_each(reset);
                return (ports, error);
            }
        }
    }
}

fn a_server_port_in_the_range_causes_a_warning_until_it_is_reserved() {
    sysctl::write("ipv4.ip_local_port_range", "40000 40007").expect("the namespace is ours");
    sysctl::write("ipv4.ip_local_reserved_ports", "8080,9000-9010").expect("the namespace is ours");
    let server = listener("127.0.0.1:40002");
    let second = listener("[::]:40003");
    let _outside = listener("127.0.0.1:7000");
    let (run, checks) = doctor(&[], 1);
    let check = &checks["ephemeral_listeners"];
    assert_eq!(with_status(&checks, "warning"), ["ephemeral_listeners"], "{run}");
    assert_eq!(check["value"], 2);
    let ports: Vec<u64> =
        check["evidence"]["listeners"].as_array().expect("listeners").iter().map(|one| number(one, "port")).collect();
    assert_eq!(ports, [40002, 40003]);
    assert_eq!(check["evidence"]["ip_local_reserved_ports"], "8080,9000-9010,40002-40003");

    // The warning is true: while the servers are down, connect() chooses their ports.
    drop((server, second));
    let busy = listener("127.0.0.1:7001");
    let to = busy.local_addr().ok().and_then(|addr| addr.as_socket()).expect("an address");
    let (ports, error) = ports_given(to);
    assert_eq!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL));
    assert_eq!(ports, [40000, 40001, 40002, 40003, 40004, 40005, 40006, 40007]);

    // The printed command keeps the reserved ports, and adds the ports of the servers. Then there is no warning.
    apply(check);
    assert_eq!(file("ipv4/ip_local_reserved_ports"), "8080,9000-9010,40002-40003");
    let other = listener("127.0.0.2:7001");
    let to = other.local_addr().ok().and_then(|addr| addr.as_socket()).expect("an address");
    let (ports, error) = ports_given(to);
    assert_eq!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL));
    assert_eq!(ports, [40000, 40001, 40004, 40005, 40006, 40007]);
    let _server = listener("127.0.0.3:40002");
    let _second = listener("127.0.0.3:40003");
    let (run, checks) = doctor(&[], 0);
    assert_eq!(checks["ephemeral_listeners"]["status"], "ok", "{run}");
}

fn listeners_whose_port_the_kernel_chose_cause_no_warning() {
    let _given = TcpListener::bind("127.0.0.1:0").expect("a port");
    let unbound = Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None).expect("a socket");
    // Without bind(), listen() makes the kernel choose a port.
    unbound.listen(1).expect("listening");
    let (run, checks) = doctor(&[], 0);
    let check = &checks["ephemeral_listeners"];
    assert_eq!((&check["value"], &check["evidence"]["ports_the_kernel_chose"]), (&json!(0), &json!(2)), "{run}");
    let _chosen = listener("127.0.0.1:40000");
    let (run, checks) = doctor(&[], 1);
    let check = &checks["ephemeral_listeners"];
    assert_eq!((&check["value"], &check["evidence"]["ports_the_kernel_chose"]), (&json!(1), &json!(2)), "{run}");
    assert_eq!(check["evidence"]["ip_local_reserved_ports"], "40000");
}

fn a_listener_of_the_other_ip_version_is_left_out() {
    let _v6 = listener("[::1]:40000");
    doctor(&["-4"], 0);
    doctor(&["-6"], 1);
    // This listener accepts IPv4, too.
    let _dual = listener("[::]:40001");
    let (_, checks) = doctor(&["-4"], 1);
    assert_eq!(checks["ephemeral_listeners"]["evidence"]["ip_local_reserved_ports"], "40001");
}

fn a_completely_reserved_range_causes_a_warning() {
    sysctl::write("ipv4.ip_local_port_range", "40000 40003").expect("the namespace is ours");
    sysctl::write("ipv4.ip_local_reserved_ports", "39999-40004").expect("the namespace is ours");
    let server = listener("127.0.0.1:7000");
    let (run, checks) = doctor(&[], 1);
    assert_eq!(with_status(&checks, "warning"), ["ip_local_reserved_ports"], "{run}");
    // The finding is true: connect() and bind() to port 0 fail with the errnos that it names.
    let to = server.local_addr().ok().and_then(|addr| addr.as_socket()).expect("an address");
    assert_eq!(TcpStream::connect(to).map_err(|e| e.raw_os_error()).err(), Some(Some(libc::EADDRNOTAVAIL)));
    assert_eq!(TcpListener::bind("127.0.0.1:0").map_err(|e| e.raw_os_error()).err(), Some(Some(libc::EADDRINUSE)));
}

fn a_destination_with_few_ports_left_causes_a_warning() {
    sysctl::write("ipv4.ip_local_port_range", "42000 42099").expect("the namespace is ours");
    // By default (tcp_tw_reuse = 2), connect() can take over a bucket on loopback after a second.
    sysctl::write("ipv4.tcp_tw_reuse", "0").expect("the namespace is ours");
    let server = listener("127.0.0.1:7000");
    let to = server.local_addr().ok().and_then(|addr| addr.as_socket()).expect("an address");
    // The connections stay open. Without closes there is no forecast, so only the number of free ports decides: 10 of 100 are enough.
    let mut open: Vec<_> = (0..90).map(|_| pair(&server, to)).collect();
    let (run, checks) = doctor(&[], 0);
    assert_eq!(
        (&checks["destinations"]["status"], &checks["destinations"]["value"]),
        (&json!("ok"), &json!(0)),
        "{run}"
    );
    open.extend((0..4).map(|_| pair(&server, to)));
    let (run, checks) = doctor(&[], 1);
    assert_eq!(with_status(&checks, "warning"), ["destinations"], "{run}");
    let check = &checks["destinations"];
    let most = if kernel::lists_bound_sockets() { "6" } else { "at most 6" };
    let finding = format!("From 127.0.0.1 to 127.0.0.1:7000, {most} of 100 ports are left");
    assert!(text(check, "finding").starts_with(&finding), "{run}");
    let short = &check["evidence"]["short"][0];
    assert_eq!((&short["free"], &short["established"], &short["remote_port"]), (&json!(6), &json!(94), &json!(7000)));
    doctor(&["-6"], 0);

    // The finding is true: six more connects work, and the next one fails with EADDRNOTAVAIL.
    let more: Vec<_> = (0..6).map(|_| pair(&server, to)).collect();
    assert_eq!(TcpStream::connect(to).map_err(|e| e.raw_os_error()).err(), Some(Some(libc::EADDRNOTAVAIL)));
    drop(more);
    sysctl::write("ipv4.ip_local_port_range", "42000 43999").expect("the namespace is ours");
    let (_, checks) = doctor(&[], 0);
    assert_eq!(checks["destinations"]["status"], "ok");
}

/// Both ends of a connection to a listener, open.
fn pair(server: &Socket, to: SocketAddr) -> (TcpStream, Socket) {
    let client = TcpStream::connect(to).expect("connected");
    (client, server.accept().expect("accepted").0)
}

/// A process that has these sockets open and does nothing. Dropping this value ends the process.
struct Sleeper(Child);

impl Sleeper {
    fn with(sockets: Vec<Socket>) -> Self {
        for socket in &sockets {
            socket.set_cloexec(false).expect("FD_CLOEXEC");
        }
        let child = Command::new("sleep").arg("60").stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        // Close the copies of this process, so that only the child has the sockets.
        drop(sockets);
        Self(child.expect("sleep can be started"))
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.0.kill().expect("our own child");
        self.0.wait().expect("our own child");
    }
}

/// Makes sockets in CLOSE_WAIT whose peers closed at least `since_ms` milliseconds ago.
#[track_caller]
fn closed_by_peers(count: usize, since_ms: u64) -> Vec<Socket> {
    let there = in_close_wait();
    let server = listen("127.0.0.1:8080");
    let accepted = (0..count).map(|_| connect(&server, "127.0.0.1:8080").server).collect();
    wait_for_close_wait(there + count);
    std::thread::sleep(Duration::from_millis(since_ms));
    accepted
}

/// The number of sockets in CLOSE_WAIT (8 in net/tcp_states.h).
fn in_close_wait() -> usize {
    procfs::sockets().iter().filter(|entry| entry.state == 8).count()
}

#[track_caller]
fn wait_for_close_wait(count: usize) {
    let patience = std::time::Instant::now();
    while in_close_wait() < count {
        assert!(patience.elapsed() < Duration::from_secs(20), "fewer than {count} sockets in CLOSE_WAIT");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn sockets_in_close_wait_are_counted_by_process_and_age() {
    let many = Sleeper::with(closed_by_peers(12, 0));
    let few = Sleeper::with(closed_by_peers(3, 120));
    // By default, a socket counts as silent if no ACK has arrived for a minute.
    let (run, checks) = doctor(&[], 0);
    let check = &checks["close_wait"];
    assert_eq!(
        (&check["status"], &check["value"], &check["evidence"]["silent"]),
        (&json!("ok"), &json!(15), &json!(0)),
        "{run}"
    );

    let (run, checks) = doctor(&["--close-wait-after", "100ms"], 1);
    let check = &checks["close_wait"];
    assert_eq!((&check["status"], &check["evidence"]["silent"]), (&json!("warning"), &json!(15)), "{run}");
    assert_eq!(with_status(&checks, "warning"), ["close_wait"]);
    let owners = check["evidence"]["owners"].as_array().expect("owners");
    let owner = |owner: &Value| (number(owner, "pid"), text(owner, "comm").to_owned(), number(owner, "close_wait"));
    let (many_pid, few_pid) = (u64::from(many.0.id()), u64::from(few.0.id()));
    assert_eq!(
        owners.iter().map(owner).collect::<Vec<_>>(),
        [(many_pid, "sleep".into(), 12), (few_pid, "sleep".into(), 3)]
    );
    for owner in owners {
        assert!(number(owner, "longest_ms") >= 100, "{owner}");
    }
    let finding = text(check, "finding");
    assert!(
        finding.contains(&format!("sleep pid {many_pid}")) && !finding.contains(&format!("pid {few_pid} ")),
        "{finding}"
    );

    // Three sockets do not prove a leak.
    drop(many);
    let (_, checks) = doctor(&["--close-wait-after", "100ms"], 0);
    assert_eq!((&checks["close_wait"]["status"], &checks["close_wait"]["value"]), (&json!("note"), &json!(3)));
}

fn connections_that_a_server_does_not_accept_are_reported_with_its_port() {
    let server = listener("127.0.0.1:7000");
    let to = server.local_addr().ok().and_then(|addr| addr.as_socket()).expect("an address");
    for _ in 0..11 {
        drop(TcpStream::connect(to).expect("connected"));
    }
    wait_for_close_wait(11);
    std::thread::sleep(Duration::from_millis(60));
    let (run, checks) = doctor(&["--close-wait-after", "50ms"], 1);
    let owners = &checks["close_wait"]["evidence"]["owners"];
    assert_eq!((&owners[0]["not_accepted_on_port"], &owners[0]["close_wait"]), (&json!(7000), &json!(11)), "{run}");
    assert_eq!((&owners[0]["pid"], &owners[0]["uid"]), (&Value::Null, &Value::Null));
    assert!(text(&checks["close_wait"], "finding").contains("port 7000"), "{run}");
}

fn a_warning_reports_that_reuse_needs_timestamps() {
    sysctl::write("ipv4.tcp_timestamps", "0").expect("the namespace is ours");
    let (_, checks) = doctor(&[], 0);
    // By default, connect() reuses buckets only on loopback, so this is not a warning.
    assert_eq!(with_status(&checks, "note"), ["tcp_timestamps"]);
    sysctl::write("ipv4.tcp_tw_reuse", "1").expect("the namespace is ours");
    let (_, checks) = doctor(&[], 1);
    assert_eq!(with_status(&checks, "warning"), ["tcp_timestamps"]);
    apply(&checks["tcp_timestamps"]);
    doctor(&[], 0);
}

fn missing_settings_are_unknown_and_reported() {
    // This thread gets a mount namespace of its own, in which an empty folder hides the settings.
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("mounts of our own");
    mount(Some("none"), "/proc/sys/net", Some("tmpfs"), MsFlags::MS_RDONLY, none).expect("an empty folder");
    let _server = listener("127.0.0.1:40000");
    let (run, checks) = doctor(&[], 2);
    assert_eq!(run.json()["complete"], false);
    let unknown = with_status(&checks, "unknown");
    for id in
        ["tcp_tw_reuse", "tcp_max_tw_buckets", "ip_local_port_range", "ip_local_reserved_ports", "ephemeral_listeners"]
    {
        assert!(unknown.contains(&id.to_owned()), "{id}{run}");
        assert_eq!(checks[id]["value"], Value::Null);
        assert!(!checks[id]["finding"].is_null(), "{id} gives the reason");
    }
    assert!(with_status(&checks, "warning").is_empty(), "an unknown fact does not cause a warning{run}");
    // Checks that do not depend on the hidden settings still have results.
    assert_eq!(
        (&checks["tcp_timewait_overflow"]["value"], &checks["tcp_tw_recycle"]["status"]),
        (&json!(0), &json!("ok"))
    );
    let page = twtool(["doctor"]).code(2);
    assert!(page.stdout.starts_with("0 warnings, ") && page.stdout.contains("unknown  tcp_tw_reuse"), "{page}");
}

fn without_sock_diag_the_checks_still_have_results() {
    let mut open = closed_by_peers(10, 0);
    open.push(listener("127.0.0.1:40000"));
    let _process = Sleeper::with(open);
    refuse_netlink();
    let (run, checks) = doctor(&["--close-wait-after", "1ms"], 0);
    assert_eq!(checks["tcp_diag"]["value"], "procfs");
    assert!(text(&checks["tcp_diag"], "finding").contains("Operation not permitted"), "{run}");
    // /proc/net/tcp does not show who chose the port (program or kernel), nor the time in CLOSE_WAIT. So there is no warning.
    assert_eq!(with_status(&checks, "note"), ["close_wait", "ephemeral_listeners", "tcp_diag"], "{run}");
    assert_eq!(checks["close_wait"]["evidence"]["silent"], Value::Null);
    assert_eq!(checks["close_wait"]["value"], 10);
}

fn missing_permissions_of_the_caller_are_reported() {
    let names = ["CAP_DAC_READ_SEARCH", "CAP_NET_BIND_SERVICE", "CAP_NET_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_ADMIN"];
    drop_capabilities_but_setfcap();
    let (run, checks) = doctor(&[], 0);
    let check = &checks["capabilities"];
    assert_eq!((&check["value"], &check["evidence"]["missing"]), (&json!([]), &json!(names)), "{run}");
    for name in names {
        assert!(text(check, "finding").contains(name) && text(check, "does").contains(name), "{run}");
    }
}
