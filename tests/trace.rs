//! `twtool trace`: for each way to close a connection, compares the reported process with the process that closed it.
//!
//! The script support/closers.py closes the connections and prints the expected reports.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use twtool::sys::sysctl;

use crate::support::kernel::bucket_cookies;
use crate::support::netns::on_thread_in_new_namespace;
use crate::support::outbound::set;
use crate::support::tracer::{Outside, Tracer, close, closers, expectations, needs_bpf, own_netns, until};
use crate::support::twtool::{Keys, PATH, twtool};
use crate::support::{measured, not_checked, suite};

suite! {
    pure: [
        invalid_arguments_are_refused,
    ],
    netns: [
        each_way_to_close_names_the_process,
        every_short_lived_process_is_named,
        rare_ways_to_close_name_the_process,
        a_process_that_only_delivers_a_fast_open_packet_is_not_named,
        an_orphan_in_fin_wait_2_is_reported_before_its_peer_closes,
        equal_ends_in_two_namespaces_are_two_closes,
        the_role_depends_on_the_port_range_of_the_namespace_of_the_close,
        a_record_has_the_documented_keys,
        a_signal_ends_the_trace_and_leaves_whole_records,
        count_and_filter_select_closes,
        no_bpf_program_stays_loaded_after_sigkill,
        groups_count_all_closes,
        a_connection_that_closed_before_the_start_has_no_process,
        nearly_every_close_is_seen_on_busy_cores,
        closes_that_a_stopped_tracer_misses_are_counted,
    ],
}

fn invalid_arguments_are_refused() {
    twtool(["trace", "-o", "csv"]).refused("'csv'");
    twtool(["trace", "--json"]).refused("'json'");
    twtool(["trace", "--top", "3"]).code(2).says("--by");
    twtool(["trace", "--by", "colour"]).refused("'colour'");
    twtool(["trace", "--by", "unit", "--top", "0"]).refused("'0'");
    twtool(["trace", "--count", "0"]).refused("'0'");
    twtool(["trace", "--count", "-1"]).refused("'-1'");
    twtool(["trace", "--duration", "soon"]).refused("'soon'");
    twtool(["trace", "--netns", "no such"]).refused("'no such'");
    twtool(["trace", "sport ="]).refused("filter");
    twtool(["trace", "expires < 5s"]).refused("remaining time");
    twtool(["trace", "--expires-under", "5s"]).refused("remaining time");
    twtool(["trace", "--local-port", "nosuch"]).refused("'nosuch'");
}

const WAYS: [&str; 16] = [
    "close",
    "shutdown",
    "accepted",
    "exit",
    "kill",
    "fork",
    "thread",
    "linger",
    "linger_0",
    "unread_data",
    "reset",
    "ipv6",
    "mapped",
    "passed",
    "in_flight",
    "renamed",
];

/// Asserts that a record has the cookie of a bucket if and only if its outcome is `time-wait` or `fin-wait-2`.
#[track_caller]
fn have_buckets(records: &[Value]) {
    // One dump can miss a bucket if another socket in the same hash chain ends during the dump (seen once on a busy machine).
    let cookies = &bucket_cookies() | &bucket_cookies();
    for record in records {
        let cookie: u64 = record["cookie"].as_str().and_then(|cookie| cookie.parse().ok()).expect("a cookie");
        let is_bucket = record["outcome"] == "time-wait" || record["outcome"] == "fin-wait-2";
        assert_eq!(cookies.contains(&cookie), is_bucket, "{record}");
    }
}

fn each_way_to_close_names_the_process() {
    let tracer = Tracer::start("");
    for way in WAYS {
        let expected = close(&[way]);
        assert!(!expected.is_empty(), "{way}");
        have_buckets(&tracer.check(&expected));
    }
}

fn rare_ways_to_close_name_the_process() {
    let tracer = Tracer::start("");
    for way in ["garbage", "io_uring", "both", "linger2"] {
        let expected = close(&[way]);
        assert!(!expected.is_empty(), "{way}");
        have_buckets(&tracer.check(&expected));
    }
}

/// Since Linux 6.9, the kernel starts to close the connection while it handles a packet that an unrelated process has sent.
fn a_process_that_only_delivers_a_fast_open_packet_is_not_named() {
    let tracer = Tracer::start("");
    let expected = close(&["fast_open"]).remove(0);
    if let Some(why) = expected["not_checked"].as_str() {
        return not_checked(why);
    }
    let record = tracer.wait_for(&expected);
    assert_eq!((&record["role"], &record["outcome"]), (&expected["role"], &expected["outcome"]), "{record}");
    // Kernels without the commit "tcp: defer shutdown(SEND_SHUTDOWN) for TCP_SYN_RECV sockets" (Linux 6.9) start to close in shutdown()
    // itself. Then the record has the process that calls shutdown().
    let unknown = record["process"].is_null() && record["certain"] == false;
    assert!(unknown || record["process"]["pid"] == expected["pid"], "{expected}\n{record}");
    measured(format!("trace: Fast Open, shutdown in SYN_RECV: the process is {}", record["process"]["pid"]));
}

fn every_short_lived_process_is_named() {
    // Otherwise connect() may take over a bucket on a slow machine, and then two closes would have the same ends.
    set("ipv4.tcp_tw_reuse", 0);
    let tracer = Tracer::start("");
    let expected = close(&["short_lived"]);
    assert_eq!(expected.len(), 100);
    have_buckets(&tracer.check(&expected));
}

fn an_orphan_in_fin_wait_2_is_reported_before_its_peer_closes() {
    let tracer = Tracer::start("");
    let mut child = closers(&["orphan"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3");
    let mut out = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut first = String::new();
    out.read_line(&mut first).expect("a line");
    out.read_line(&mut first).expect("a line");
    let expected = expectations(first.as_bytes());
    have_buckets(&tracer.check(&expected));
    drop(child.stdin.take());
    out.read_to_string(&mut first).expect("the end");
    assert!(child.wait().expect("it ends").success());
}

fn equal_ends_in_two_namespaces_are_two_closes() {
    let tracer = Tracer::start("");
    let (expected, other) = (
        close(&["same_ends"]),
        on_thread_in_new_namespace(|| {
            let other = Tracer::start("");
            let expected = close(&["same_ends"]);
            other.check(&expected)
        }),
    );
    let own = tracer.check(&expected);
    have_buckets(&own);
    assert_ne!(own[0]["cookie"], other[0]["cookie"]);
    assert_ne!(own[0]["netns"], other[0]["netns"]);
    assert_ne!(own[0]["process"]["pid"], other[0]["process"]["pid"]);
    assert_eq!(tracer.records().iter().filter(|record| record["local_port"] == 40097).count(), 1);
}

fn the_role_depends_on_the_port_range_of_the_namespace_of_the_close() {
    sysctl::write("ipv4.ip_local_port_range", "2000 2999").expect("the namespace is ours");
    let tracer = Tracer::start("");
    let records = tracer.check(&close(&["close"]));
    assert!(records.iter().all(|record| record["local_port"].as_u64() < Some(3000)), "{records:?}");
    // The tracer runs in another namespace, whose range contains 40097.
    let record = tracer.wait_for(&close(&["same_ends"])[0]);
    assert_eq!((record["local_port"].as_u64(), record["role"].as_str()), (Some(40097), Some("unknown")), "{record}");
}

const KEYS: [&str; 19] = [
    "at",
    "netns",
    "netns_name",
    "cookie",
    "family",
    "local_addr",
    "local_port",
    "local_class",
    "local_service",
    "remote_addr",
    "remote_port",
    "remote_class",
    "remote_service",
    "interface",
    "outcome",
    "role",
    "process",
    "method",
    "certain",
];

fn a_record_has_the_documented_keys() {
    let tracer = Tracer::start("");
    let mut child = closers(&["orphan"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3");
    let (mut line, mut out) = (String::new(), BufReader::new(child.stdout.take().expect("a pipe")));
    out.read_line(&mut line).expect("a line");
    // The process still runs, so its arguments can be read.
    let record = tracer.wait_for(&expectations(line.as_bytes())[0]);
    let text = tracer.outside.stdout();
    assert_eq!(Keys::of(text.lines().next().expect("a record")), KEYS);
    let arguments = record["process"]["cmdline"].as_array().expect("arguments");
    assert!(arguments[0].as_str().is_some_and(|program| program.ends_with("python3")), "{record}");
    assert_eq!(arguments.last().expect("an argument"), "orphan");
    assert_eq!(record["process"]["comm"], "python3");
    assert_eq!(record["process"]["uid"], 0);
    assert_eq!(record["process"]["kernel"], false);
    drop(child.stdin.take());
    assert!(child.wait().expect("it ends").success());
}

fn a_signal_ends_the_trace_and_leaves_whole_records() {
    let tracer = Tracer::start("");
    let run = tracer.stop(Signal::SIGTERM);
    assert_eq!(run.code, Some(128 + 15), "{run}");
    assert!(!run.ndjson().is_empty(), "{run}");
    assert!(run.stderr.is_empty(), "{run}");
}

fn close_one_to_8097() {
    let server = TcpListener::bind("127.0.0.1:8097").expect("a server");
    let client = TcpStream::connect("127.0.0.1:8097").expect("a connection");
    let accepted = server.accept().expect("a connection");
    drop(client);
    drop(accepted);
}

fn count_and_filter_select_closes() {
    needs_bpf();
    let line = format!("'{PATH}' trace --duration 5m --netns {} -o ndjson --count 3 'dport = :8097'", own_netns());
    let outside = Outside::start(&line).expect("a shell");
    until("three closes", || {
        close(&["close"]);
        close_one_to_8097();
        (outside.stdout().lines().count() == 3).then_some(())
    });
    let run = outside.end().code(0);
    assert!(run.ndjson().iter().all(|record| record["remote_port"] == 8097), "{run}");
}

/// A Python program that prints the ids of the loaded BPF programs with the name `twtool_closes`.
const LOADED: &str = "
import ctypes, platform, struct
number = {'x86_64': 321, 'aarch64': 280}[platform.machine()]
call = ctypes.CDLL(None, use_errno=True).syscall
def bpf(command, attributes):
    return call(number, command, attributes, len(attributes))
at = 0
while True:
    attributes = ctypes.create_string_buffer(struct.pack('III', at, 0, 0))
    if bpf(11, attributes) < 0:
        break
    at = struct.unpack_from('II', attributes)[1]
    fd = bpf(13, ctypes.create_string_buffer(struct.pack('III', at, 0, 0)))
    if fd < 0:
        continue
    info = ctypes.create_string_buffer(256)
    if bpf(15, ctypes.create_string_buffer(struct.pack('IIQ', fd, 256, ctypes.addressof(info)))) == 0 and b'twtool_closes' in info.raw:
        print(at)
";

/// The ids of the BPF programs of twtool that the kernel has loaded.
pub(crate) fn loaded_bpf_programs() -> BTreeSet<u32> {
    let line = format!("python3 -c \"$(echo '{}' | base64 -d)\"", base64(LOADED.as_bytes()));
    let run = Outside::start(&line).expect("a shell").end().code(0);
    run.stdout.lines().map(|line| line.parse().expect("an id")).collect()
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |chunk: &[u8]| {
        let bits = chunk.iter().fold(0, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        let digit =
            |i: usize| if i <= chunk.len() { DIGITS[(bits >> (18 - 6 * i) & 63) as usize] as char } else { '=' };
        (0..4).map(digit).collect::<String>()
    };
    bytes.chunks(3).map(group).collect()
}

fn no_bpf_program_stays_loaded_after_sigkill() {
    needs_bpf();
    let before = loaded_bpf_programs();
    let tracer = Tracer::start("");
    let own: Vec<u32> = loaded_bpf_programs().difference(&before).copied().collect();
    assert!(!own.is_empty(), "the tracer has loaded no program");
    tracer.stop(Signal::SIGKILL);
    // `own` may also have programs of the tracer of another test. So the test waits until two programs are gone: twtool loads two copies.
    until("the two copies of the program are gone", || {
        (loaded_bpf_programs().intersection(&own.iter().copied().collect()).count() + 2 <= own.len()).then_some(())
    });
}

fn groups_count_all_closes() {
    needs_bpf();
    let arguments = "--by destination --count 3 'dport = :8097' -o json";
    let line = format!("'{PATH}' trace --duration 5m --netns {} {arguments}", own_netns());
    let outside = Outside::start(&line).expect("a shell");
    until("a document", || {
        close_one_to_8097();
        (!outside.stdout().is_empty()).then_some(())
    });
    let run = outside.end().code(0);
    let document = run.json();
    assert_eq!(
        (document["schema"].as_str(), document["by"].as_str()),
        (Some("twtool.trace/1"), Some("destination")),
        "{run}"
    );
    assert_eq!((document["lost"].as_u64(), document["complete"].as_bool()), (Some(0), Some(true)), "{run}");
    let groups = run.records("groups");
    assert_eq!(groups.len(), 1, "{run}");
    let of = |key: &str| groups[0][key].as_u64();
    assert_eq!((of("remote_port"), of("closes"), of("buckets_60s")), (Some(8097), Some(3), Some(3)), "{run}");
    assert_eq!(groups[0]["share"].as_f64(), Some(1.0), "{run}");
}

fn a_connection_that_closed_before_the_start_has_no_process() {
    needs_bpf();
    let mut child = closers(&["half"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3");
    let (mut line, mut out) = (String::new(), BufReader::new(child.stdout.take().expect("a pipe")));
    out.read_line(&mut line).expect("a line");
    let expected = expectations(line.as_bytes()).remove(0);
    let tracer = Tracer::start("");
    drop(child.stdin.take());
    assert!(child.wait().expect("it ends").success());
    let record = tracer.wait_for(&expected);
    assert_eq!(record["process"], Value::Null, "{record}");
    assert_eq!((record["certain"].as_bool(), record["outcome"].as_str()), (Some(false), Some("time-wait")), "{record}");
}

pub(crate) fn close_many(threads: u32, each: u32) {
    let server = TcpListener::bind("127.0.0.1:8096").expect("a server");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..threads * each {
                let (mut accepted, _) = server.accept().expect("a connection");
                let _ = accepted.read(&mut [0]);
            }
        });
        for _ in 0..threads {
            scope.spawn(|| {
                for _ in 0..each {
                    drop(TcpStream::connect("127.0.0.1:8096").expect("a connection"));
                }
            });
        }
    });
}

/// A tracer that counts the closes of this namespace with the remote port 8096, and ends when it gets SIGTERM.
fn counting() -> Outside {
    needs_bpf();
    let line = format!(
        "'{PATH}' trace --method bpf --netns {} --by netns --serve socket -o json 'dport = :8096'",
        own_netns()
    );
    let outside = Outside::start(&line).expect("a shell");
    // The tracer makes the socket after it has attached its program.
    until("the program is attached", || outside.file("socket").exists().then_some(()));
    outside
}

/// Some closes reach only the second copy of the BPF program (src/trace/program.rs).
fn nearly_every_close_is_seen_on_busy_cores() {
    let outside = counting();
    close_many(4, 2000);
    kill(outside.pid(), Signal::SIGTERM).expect("a signal");
    let run = outside.end();
    let document = run.json();
    let [closes, named, lost, skipped] =
        ["closes", "named", "lost", "skipped"].map(|key| document[key].as_u64().expect("a number"));
    measured(format!("trace: {closes} of 8000 closes seen, {named} named, {lost} lost, up to {skipped} skipped"));
    // The losses of all namespaces are counted together, because the kernel does not report which closes are lost.
    assert!(closes <= 8000 && closes + lost + skipped >= fewest_counted(8000), "{run}");
    assert!(named + skipped >= closes, "{run}");
    assert_eq!(document["complete"], lost + skipped == 0, "{run}");
}

/// The smallest number of these closes that the tracer must report, or count as lost or skipped. Some kernels (not mainline) skip every
/// BPF program while process 1 is current, unless process 1 has loaded it. On them, up to 5 % of the closes may be missing.
pub(crate) fn fewest_counted(closes: u64) -> u64 {
    let types = std::fs::read("/sys/kernel/btf/vmlinux").expect("the type information that the tracer has read");
    let spares_process_1 = types.windows(12).any(|name| name == b"\0init_owned\0");
    if spares_process_1 { closes * 95 / 100 } else { closes }
}

fn closes_that_a_stopped_tracer_misses_are_counted() {
    let outside = counting();
    kill(outside.pid(), Signal::SIGSTOP).expect("a signal");
    close_many(4, 5000);
    kill(outside.pid(), Signal::SIGCONT).expect("a signal");
    kill(outside.pid(), Signal::SIGTERM).expect("a signal");
    let run = outside.end();
    let document = run.json();
    let [closes, lost, skipped] = ["closes", "lost", "skipped"].map(|key| document[key].as_u64().expect("a number"));
    // On a slow machine, the kernel also skips the BPF program for a few closes: for 6 of these 20,000 in emulation (Linux 7.2).
    assert!(
        lost > 0 && closes + lost + skipped >= fewest_counted(20_000),
        "the buffer has room for 15,887 closes: {run}"
    );
    assert_eq!(document["complete"], false, "{run}");
    run.says("missing, because twtool did not read them in time");
}
