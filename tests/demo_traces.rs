//! Checks that `twtool demo` changes nothing in the network namespace where it starts (the *host* of these tests), also if a signal or a
//! panic ends the demo. Also checks the text pages, `--step` and the capture files of `--pcap`.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use crate::support::dialogue::Dialogue;
use crate::support::experiment::{DemoRun, Lines, SCENARIOS, demo};
use crate::support::not_checked;
use crate::support::procfs::{self, Entry};
use crate::support::records::number;
use crate::support::situations::{bucket_of_client, bucket_of_server, listen};
use crate::support::suite;
use crate::support::twtool::{Run, command};

suite! {
    pure: [],
    netns: [
        the_host_is_the_same_after_a_demo,
        the_host_is_the_same_after_an_interrupt,
        the_host_is_the_same_after_a_panic,
        a_closed_pipe_ends_the_demo_without_an_error,
        every_page_fits_eighty_columns_and_an_ascii_terminal,
        with_step_a_page_waits_for_the_enter_key,
        a_capture_has_the_segments_of_the_events,
        tshark_reads_the_capture,
        an_existing_capture_is_replaced_only_with_force,
    ],
}

/// What a program could change in a namespace: interfaces, settings, sockets.
#[derive(Debug, PartialEq)]
struct Host {
    interfaces: Vec<String>,
    sysctls: BTreeMap<String, String>,
    sockets: Vec<Entry>,
}

impl Host {
    fn now() -> Self {
        let table = fs::read_to_string("/proc/thread-self/net/dev").expect("interfaces");
        let interfaces = table.lines().skip(2).filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()));
        let mut sysctls = BTreeMap::new();
        read_below(Path::new("/proc/sys/net"), &mut sysctls);
        assert!(sysctls.len() > 100, "{} settings", sysctls.len());
        Self { interfaces: interfaces.collect(), sysctls, sockets: procfs::sockets() }
    }

    /// Asserts that the state is unchanged, except the timers of sockets.
    #[track_caller]
    fn same(&self) {
        let timeless = |host: &Self| -> Vec<Entry> { host.sockets.iter().map(|e| Entry { when: 0, ..*e }).collect() };
        let now = Self::now();
        assert_eq!(now.interfaces, self.interfaces);
        assert_eq!(now.sysctls, self.sysctls);
        assert_eq!(timeless(&now), timeless(self));
    }
}

fn read_below(folder: &Path, found: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(folder).expect("a folder of sysctls").flatten() {
        let path = entry.path();
        if path.is_dir() {
            read_below(&path, found);
        } else if let Ok(text) = fs::read_to_string(&path) {
            found.insert(path.display().to_string(), text);
        }
    }
}

/// Makes a server on port 8080 of the host, the bucket of a connection that the server accepted, and the bucket of a client. The demos
/// use the same port in their own namespaces.
fn busy_host() -> (twtool::lab::Server, Host) {
    let server = listen("0.0.0.0:8080");
    bucket_of_server(&server, "127.0.0.1:8080");
    bucket_of_client(&server, "127.0.0.1:8080");
    let host = Host::now();
    (server, host)
}

fn the_host_is_the_same_after_a_demo() {
    let (_server, host) = busy_host();
    for scenario in SCENARIOS.iter().filter(|scenario| **scenario != "length") {
        DemoRun::of(scenario);
        host.same();
    }
}

fn the_host_is_the_same_after_an_interrupt() {
    let (_server, host) = busy_host();
    for (scenario, what) in [("length", "close() on port 8081, before the client"), ("lost-ack", "shutdown(SHUT_WR)")] {
        let folder = tempfile::tempdir().expect("a folder");
        let capture = folder.path().join("unfinished.pcap");
        let mut child = command(["demo", scenario, "-o", "ndjson", "--pcap"])
            .arg(&capture)
            .stdout(Stdio::piped())
            .spawn()
            .expect("twtool starts");
        let mut lines = Lines::of(&mut child);
        lines.until(|event| event["what"] == what);
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
        kill(pid, Signal::SIGINT).expect("our own child");
        let status = child.wait().expect("it ends");
        // A shell reports a death by SIGINT as 130. `lost-ack` may have ended before the signal.
        let ended = status.signal() == Some(Signal::SIGINT as i32) || (scenario == "lost-ack" && status.success());
        assert!(ended, "{status}");
        if !status.success() {
            assert_eq!(fs::read_dir(folder.path()).expect("the folder").count(), 0, "no file is left");
        }
        host.same();
    }
}

fn the_host_is_the_same_after_a_panic() {
    let (_server, host) = busy_host();
    for scenario in ["four-way", "reuse"] {
        let test_binary = std::env::current_exe().expect("this program");
        let mut child = Command::new(test_binary);
        let run = Run::of(child.env(PANICKING, scenario).stdin(Stdio::null()));
        assert_eq!(run.code, Some(101), "it panics{run}");
        assert!(run.stderr.contains("in the middle of the experiment"), "{run}");
        host.same();
    }
}

/// The environment variable that contains the name of a scenario. If it is set, this test program plays the scenario and panics in the
/// middle.
pub(crate) const PANICKING: &str = "TWTOOL_TEST_PANICKING_DEMO";

/// Plays a scenario and panics in the middle. The process must have only one thread.
pub(crate) fn panic_in(scenario: &str) {
    let scenario = twtool::model::experiment::Scenario::ALL.into_iter().find(|s| s.name() == scenario);
    twtool::lab::enter().expect("a user namespace");
    let mut events = 0;
    let _ = twtool::lab::run(scenario.expect("a scenario"), &mut |_| {
        events += 1;
        assert!(events < 12, "in the middle of the experiment");
        Ok(())
    });
}

fn a_closed_pipe_ends_the_demo_without_an_error() {
    for format in ["table", "ndjson", "json"] {
        let mut child = command(["demo", "lost-ack", "-o", format])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("twtool starts");
        let mut reader = child.stdout.take().expect("a pipe");
        let mut first = [0];
        if format != "json" {
            reader.read_exact(&mut first).expect("a byte");
        }
        drop(reader);
        let output = child.wait_with_output().expect("it ends");
        assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0), "{format}: {output:?}");
    }
}

fn every_page_fits_eighty_columns_and_an_ascii_terminal() {
    let page = |scenario: &str, locale: &str| {
        let mut command = command(["demo", scenario]);
        for name in ["LC_ALL", "LC_CTYPE", "TERM"] {
            command.env_remove(name);
        }
        Run::of(command.env("LANG", locale)).ok().stdout
    };
    for scenario in SCENARIOS.iter().filter(|scenario| **scenario != "length") {
        let (unicode, ascii) = (page(scenario, "C.UTF-8"), page(scenario, "C"));
        for line in unicode.lines().chain(ascii.lines()) {
            assert!(line.chars().count() <= 80, "{scenario}: {} columns: {line}", line.chars().count());
            assert_eq!(line.trim_end(), line, "{scenario}: blanks at the end");
        }
        assert!(ascii.is_ascii() && !ascii.contains('\x1b'), "{ascii}");
        assert!(unicode.contains('─') || !unicode.contains("SERVER\n"), "{unicode}");
    }
}

fn with_step_a_page_waits_for_the_enter_key() {
    let mut dialogue = Dialogue::start(&["demo", "assassination", "--step"]);
    let mut pressed = 0;
    dialogue.until("[Enter]");
    // Without a wait, the demo would continue within this time and ask again.
    std::thread::sleep(std::time::Duration::from_millis(100));
    while dialogue.asks("[Enter]") {
        assert_eq!(dialogue.shown("[Enter]"), pressed + 1, "it asks once for each key");
        dialogue.types("");
        pressed += 1;
    }
    let run = dialogue.end().code(0).prints("in all 8 points");
    // A step is a call with the segments that it causes, or one later segment.
    assert!(pressed > 20, "{pressed} steps{run}");
}

/// A frame of a capture file.
struct Captured {
    nanoseconds: u64,
    frame: Vec<u8>,
}

/// Decodes a capture file: a header of 24 bytes, and before each frame a header of 16 bytes.
fn captured(bytes: &[u8]) -> Vec<Captured> {
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    assert_eq!((word(0), bytes[4], bytes[6], word(20)), (0xa1b2_3c4d, 2, 4, 1), "nanoseconds, 2.4, Ethernet");
    let (mut at, mut frames) = (24, vec![]);
    while at < bytes.len() {
        let nanoseconds = u64::from(word(at)) * 1_000_000_000 + u64::from(word(at + 4));
        let length = word(at + 8) as usize;
        assert_eq!(word(at + 12) as usize, length, "nothing is cut");
        frames.push(Captured { nanoseconds, frame: bytes[at + 16..at + 16 + length].to_vec() });
        at += 16 + length;
    }
    frames
}

/// Whether the sum of RFC 1071 over these bytes is all ones. That is the case if the bytes contain a correct checksum.
fn sums_to_ones(bytes: impl Iterator<Item = u8>) -> bool {
    let bytes: Vec<u8> = bytes.collect();
    let mut sum: u32 = bytes.chunks(2).map(|two| u32::from(two[0]) << 8 | u32::from(*two.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum == 0xffff
}

/// Flags, sequence and acknowledgement number, decoded from the bytes of a frame.
fn tcp(frame: &[u8]) -> (u8, u32, u32) {
    assert_eq!((frame[12], frame[13], frame[14] >> 4, frame[23]), (8, 0, 4, 6), "IPv4 and TCP");
    let ip = &frame[14..];
    let header = usize::from(ip[0] & 15) * 4;
    let tcp = &ip[header..usize::from(ip[2]) << 8 | usize::from(ip[3])];
    assert!(sums_to_ones(ip[..header].iter().copied()), "IPv4's checksum");
    let length = u16::try_from(tcp.len()).expect("short").to_be_bytes();
    let pseudo = ip[12..20].iter().copied().chain([0, 6]).chain(length);
    assert!(sums_to_ones(pseudo.chain(tcp.iter().copied())), "TCP's checksum");
    let word = |at: usize| u32::from_be_bytes(tcp[at..at + 4].try_into().expect("four bytes"));
    (tcp[13], word(4), word(8))
}

/// Flags, sequence and acknowledgement number of an event.
fn tcp_of(event: &Value) -> (u8, u32, u32) {
    let segment = &event["segment"];
    let bit = |flag: &Value| match flag.as_str().expect("a flag") {
        "FIN" => 1,
        "SYN" => 2,
        "RST" => 4,
        "PSH" => 8,
        "ACK" => 16,
        other => panic!("{other}"),
    };
    let flags = segment["flags"].as_array().expect("flags").iter().map(bit).sum();
    let number = |key| u32::try_from(segment[key].as_u64().unwrap_or_default()).expect("32 bits");
    (flags, number("raw_seq"), number("raw_ack"))
}

/// Runs the scenario with --pcap. Returns the events that have a segment, and the path of the capture.
fn with_capture(scenario: &str, folder: &Path) -> (Vec<Value>, std::path::PathBuf) {
    let path = folder.join(format!("{scenario}.pcap"));
    let run = demo(scenario, &["--json", "--pcap", path.to_str().expect("UTF-8")]).ok();
    let events = run.records("events").into_iter().filter(|event| !event["segment"].is_null()).collect();
    (events, path)
}

fn a_capture_has_the_segments_of_the_events() {
    let folder = tempfile::tempdir().expect("a folder");
    for scenario in SCENARIOS.iter().filter(|scenario| **scenario != "length") {
        let (events, path) = with_capture(scenario, folder.path());
        let frames = captured(&fs::read(path).expect("the capture"));
        let expected: Vec<_> = events.iter().map(tcp_of).collect();
        let kept: Vec<_> = frames.iter().map(|captured| tcp(&captured.frame)).collect();
        assert!(kept.len() > 5, "{scenario}");
        assert_eq!(kept, expected, "{scenario}");
        // The capture and the events use the same clock. The differences are signed, because a segment can have an earlier time
        // stamp than the segment that was read before it: 1 ms earlier was seen.
        let signed = |number: u64| i64::try_from(number).expect("63 bits");
        for (event, captured) in events.iter().zip(&frames) {
            let in_file = (signed(captured.nanoseconds) - signed(frames[0].nanoseconds)) / 1_000_000;
            let in_event = signed(number(event, "t_ms")) - signed(number(&events[0], "t_ms"));
            assert!(in_event.abs_diff(in_file) <= 1, "{scenario}: {in_event} ms and {in_file} ms");
        }
    }
}

fn tshark_reads_the_capture() {
    let tshark = |arguments: &[&str]| Command::new("tshark").args(arguments).stdin(Stdio::null()).output();
    if !tshark(&["--version"]).is_ok_and(|output| output.status.success()) {
        not_checked("a capture of demo in tshark: tshark is not installed");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    for scenario in ["four-way", "stale-segment", "exhaustion"] {
        let (events, path) = with_capture(scenario, folder.path());
        let path = path.to_str().expect("UTF-8");
        let check = ["-o", "tcp.check_checksum:TRUE", "-o", "tcp.relative_sequence_numbers:FALSE"];
        let fields = ["-T", "fields", "-e", "tcp.flags", "-e", "tcp.seq", "-e", "tcp.ack", "-e", "tcp.checksum.status"];
        let output = tshark(&[["-n", "-r", path].as_slice(), &check, &fields].concat()).expect("tshark runs");
        assert!(output.status.success(), "{output:?}");
        let lines = String::from_utf8(output.stdout).expect("text");
        let seen: Vec<(u8, u32, u32)> = lines
            .lines()
            .map(|line| {
                let fields: Vec<&str> = line.split('\t').collect();
                assert_eq!(fields[3], "1", "tshark finds the checksum good: {line}");
                let flags = u16::from_str_radix(fields[0].trim_start_matches("0x"), 16).expect("flags");
                let number = |field: &str| field.parse().expect("a number");
                (u8::try_from(flags & 0x1f).expect("five bits"), number(fields[1]), number(fields[2]))
            })
            .collect();
        assert_eq!(seen, events.iter().map(tcp_of).collect::<Vec<_>>(), "{scenario}");
    }
}

fn an_existing_capture_is_replaced_only_with_force() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("kept.pcap");
    fs::write(&path, "precious").expect("a file");
    let text_path = path.to_str().expect("UTF-8");
    let run = demo("reuse", &["--pcap", text_path]).refused("kept.pcap").says("--force");
    assert_eq!(fs::read(&path).expect("the file"), b"precious", "{run}");
    demo("reuse", &["--pcap", text_path, "--force"]).ok();
    assert!(captured(&fs::read(&path).expect("the file")).len() > 20);
    assert_eq!(fs::read_dir(folder.path()).expect("the folder").count(), 1, "nothing else is left");
    for bad in ["/dev/null", "/nowhere/x.pcap"] {
        demo("reuse", &["--pcap", bad, "--force"]).refused(bad);
    }
}
