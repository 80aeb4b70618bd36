//! `twtool watch -o ndjson`: its records, the ways in which it ends, and its recordings.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::records::{LIST_KEYS, number, text};
use crate::support::situations::{bucket_of_client, bucket_of_server, listen};
use crate::support::suite;
use crate::support::twtool::{Keys, Run, command, twtool};
use crate::support::watcher::Watcher;

suite! {
    pure: [
        invalid_arguments_are_refused,
        a_file_that_is_not_a_series_is_refused,
    ],
    netns: [
        a_sample_and_an_event_have_the_documented_keys,
        count_and_duration_limit_the_samples,
        the_filter_selects_rows_and_events,
        with_all_netns_the_samples_include_this_namespace,
        a_closed_pipe_or_a_signal_ends_watch,
        the_first_sample_reports_a_mistake_in_the_filter,
        a_replay_gives_the_same_bytes,
        a_replay_does_not_warn_about_a_long_interval_of_its_recording,
        a_replay_can_be_filtered,
        a_signal_ends_a_recording_and_keeps_it,
        a_recording_is_kept_if_the_reader_closes_the_pipe,
        list_refuses_a_series_and_watch_refuses_a_damaged_series,
        an_existing_file_is_not_replaced,
        an_interval_that_twtool_makes_longer_is_reported,
    ],
}

const SAMPLE_KEYS: [&str; 12] = [
    "type",
    "at",
    "netns",
    "netns_name",
    "time_wait",
    "fin_wait_2",
    "all_buckets",
    "max_tw_buckets",
    "overflows",
    "closes_per_s",
    "interval_ms",
    "complete",
];

fn invalid_arguments_are_refused() {
    twtool(["watch"]).refused("-o ndjson");
    twtool(["watch", "-o", "ndjson", "--count", "-1"]).refused("'-1'");
    twtool(["watch", "--json"]).refused("'json'");
    twtool(["watch", "-o", "csv"]).refused("'csv'");
    twtool(["watch", "-o", "ndjson", "--interval", "0s"]).refused("'0s'");
    twtool(["watch", "-o", "ndjson", "--interval", "1"]).refused("'1'");
    twtool(["watch", "-o", "ndjson", "--count", "0"]).refused("'0'");
    twtool(["watch", "-o", "ndjson", "--duration", "soon"]).refused("'soon'");
    twtool(["watch", "-o", "ndjson", "--replay", "a", "--interval", "1s"]).refused("--interval");
    twtool(["watch", "-o", "ndjson", "--replay", "a", "--record", "b"]).refused("--record");
    twtool(["watch", "-o", "ndjson", "--all-netns", "--record", "b"]).refused("--record");
    twtool(["watch", "-o", "ndjson", "--netns", "no such"]).refused("'no such'");
}

fn a_file_that_is_not_a_series_is_refused() {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("file");
    let replay = || twtool(["watch", "-o", "ndjson", "--replay", path.to_str().expect("UTF-8")]);
    replay().refused("No such file");
    for content in ["", "{}\n", "{\"looks\":1}\n"] {
        fs::write(&path, content).expect("written");
        replay().refused("cannot be replayed");
    }
}

/// The interval of [`watch`] in milliseconds. On a usual machine, a sample takes less than a quarter of this time, so twtool does not make
/// the interval longer.
const INTERVAL_MS: u64 = 200;

fn watch(more: &[&str]) -> Vec<String> {
    let interval = format!("{INTERVAL_MS}ms");
    let args = ["watch", "-o", "ndjson", "--interval", &interval].into_iter().chain(more.iter().copied());
    args.map(str::to_owned).collect()
}

/// Asserts exit code 0. If a sample has a longer interval, as on a slow machine, stderr must have the warning about it, and otherwise
/// nothing.
#[track_caller]
fn succeeds(run: Run) -> Run {
    let run = run.code(0);
    let rest: Vec<&str> = run.stderr.lines().filter(|line| !line.contains(LONGER)).collect();
    assert!(rest.is_empty(), "expected at most the warning about the interval on stderr{run}");
    let longer = run.ndjson().iter().any(|record| is(record, "sample") && number(record, "interval_ms") > INTERVAL_MS);
    assert_eq!(longer, run.stderr.contains(LONGER), "{run}");
    run
}

/// Words of the warning about a longer interval.
const LONGER: &str = "a quarter of a core";

fn is(record: &Value, kind: &str) -> bool {
    text(record, "type") == kind
}

fn a_sample_and_an_event_have_the_documented_keys() {
    let server = listen("127.0.0.1:8080");
    bucket_of_server(&server, "127.0.0.1:8080");
    let mut watcher = Watcher::start("10ms", &[]);
    bucket_of_server(&server, "127.0.0.1:8080");
    watcher.wait_for_buckets(2, 0);
    // A sample may show the bucket while it is still in FIN_WAIT_2.
    let entered = &watcher.events[0];
    assert_eq!((text(entered, "event"), entered["certain"].as_bool()), ("entered", Some(true)));
    assert_eq!(number(entered, "local_port"), 8080);
    assert!(watcher.events[1..].iter().all(|event| text(event, "event") == "became-time-wait"), "{:?}", watcher.events);

    let run = succeeds(twtool(watch(&["--count", "2"])));
    let lines: Vec<&str> = run.stdout.lines().collect();
    assert_eq!(lines.len(), 2, "{run}");
    assert_eq!(Keys::of(lines[0]), SAMPLE_KEYS);
    let samples = run.ndjson();
    let of = |key: &str| samples.iter().map(|sample| sample[key].clone()).collect::<Vec<_>>();
    assert_eq!(of("time_wait"), [2, 2]);
    assert_eq!(of("complete"), [true, true]);
    assert_eq!(of("overflows"), [0, 0]);
    let keys = [["type", "at", "event", "certain"].as_slice(), &LIST_KEYS].concat();
    assert_eq!(entered.as_object().expect("an object").len(), keys.len());
    assert!(keys.iter().all(|key| entered.get(*key).is_some()), "{entered}");
    // The first sample counts the closes of the last second. A slow machine may need more than a second to start twtool.
    let rate_after_a_close = || {
        bucket_of_server(&server, "127.0.0.1:8080");
        succeeds(twtool(watch(&["--count", "1"]))).ndjson()[0]["closes_per_s"].as_f64()
    };
    assert!((0..20).any(|_| rate_after_a_close().is_some_and(|rate| rate > 0.0)), "no close in the last second");
}

fn count_and_duration_limit_the_samples() {
    assert_eq!(succeeds(twtool(watch(&["--count", "3"]))).ndjson().len(), 3);
    assert_eq!(succeeds(twtool(watch(&["--duration", "0s"]))).ndjson().len(), 1);
    let samples = succeeds(twtool(watch(&["--duration", "500ms"]))).ndjson().len();
    assert!((1..=3).contains(&samples), "{samples}");
}

fn the_filter_selects_rows_and_events() {
    let (server, other) = (listen("127.0.0.1:8080"), listen("127.0.0.1:8081"));
    bucket_of_server(&other, "127.0.0.1:8081");
    let mut watcher = Watcher::start("10ms", &["sport = :8080"]);
    bucket_of_server(&other, "127.0.0.1:8081");
    bucket_of_server(&server, "127.0.0.1:8080");
    watcher.wait_for_buckets(1, 0);
    assert!(!watcher.events.is_empty());
    assert!(watcher.events.iter().all(|event| event["local_port"] == 8080), "{:?}", watcher.events);
    let samples = succeeds(twtool(watch(&["--count", "1", "--local-port", "8081"]))).ndjson();
    assert_eq!((number(&samples[0], "time_wait"), number(&samples[0], "all_buckets")), (2, 3));
}

fn with_all_netns_the_samples_include_this_namespace() {
    let server = listen("127.0.0.1:8080");
    bucket_of_client(&server, "127.0.0.1:8080");
    // Other namespaces may be unreadable, so the exit code is not checked.
    let run = twtool(watch(&["--all-netns", "--count", "2"]));
    let samples: Vec<Value> = run.ndjson().into_iter().filter(|record| is(record, "sample")).collect();
    let own = succeeds(twtool(watch(&["--count", "1"]))).ndjson();
    let of_own: Vec<&Value> = samples.iter().filter(|sample| sample["netns"] == own[0]["netns"]).collect();
    assert_eq!(of_own.len(), 2, "{run}");
    assert!(of_own.iter().all(|sample| sample["time_wait"] == 1), "{run}");
}

/// Starts twtool with these arguments, and waits for its first record.
fn running(args: &[String]) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = command(args).stdout(Stdio::piped()).spawn().expect("twtool starts");
    let mut out = BufReader::new(child.stdout.take().expect("a pipe"));
    out.read_line(&mut String::new()).expect("a record");
    (child, out)
}

fn a_closed_pipe_or_a_signal_ends_watch() {
    let (mut child, out) = running(&watch(&[]));
    drop(out);
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let (mut child, _out) = running(&watch(&[]));
        kill(Pid::from_raw(child.id().cast_signed()), signal).expect("a signal");
        assert_eq!(child.wait().expect("it ends").signal(), Some(signal as i32), "a shell reports 130 or 143");
    }
}

fn the_first_sample_reports_a_mistake_in_the_filter() {
    twtool(watch(&["sport ="])).refused("filter");
    twtool(watch(&["dev nosuch"])).refused("nosuch");
    twtool(watch(&["--local-port", "nosuch"])).refused("'nosuch'");
}

/// Records a series of samples. Its last sample has two buckets of the server on port 8080 and one of a client. Returns the path of
/// the recording and the output of twtool.
fn recorded(folder: &TempDir) -> (String, String) {
    let server = listen("127.0.0.1:8080");
    bucket_of_server(&server, "127.0.0.1:8080");
    bucket_of_client(&server, "127.0.0.1:8080");
    let path = folder.path().join("series").to_str().expect("UTF-8").to_owned();
    let args = watch(&["--record", &path]);
    let mut child = command(&args).stdout(Stdio::piped()).spawn().expect("twtool starts");
    let mut out = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut output = String::new();
    let mut made = false;
    // The events of a sample come after it.
    while !output.contains("\"event\"") {
        assert!(out.read_line(&mut output).expect("a record") > 0, "twtool has ended: {output}");
        if !made {
            bucket_of_server(&server, "127.0.0.1:8080");
            made = true;
        }
    }
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).expect("a signal");
    while out.read_line(&mut output).expect("a record") > 0 {}
    let status = child.wait().expect("it ends");
    assert_eq!(status.signal(), Some(Signal::SIGINT as i32), "{status:?}");
    (path, output)
}

fn a_replay_gives_the_same_bytes() {
    let folder = TempDir::new().expect("a folder");
    let (path, output) = recorded(&folder);
    assert_eq!(twtool(["watch", "-o", "ndjson", "--replay", &path]).ok().stdout, output);
    let first = twtool(["watch", "-o", "ndjson", "--replay", &path, "--count", "1"]).ok().stdout;
    assert_eq!(Some(first.trim_end()), output.lines().next());
}

fn a_replay_does_not_warn_about_a_long_interval_of_its_recording() {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("series").to_str().expect("UTF-8").to_owned();
    twtool(["watch", "-o", "ndjson", "--interval", "1h", "--count", "1", "--record", &path]).ok();
    let run = twtool(["watch", "-o", "ndjson", "--replay", &path]).ok();
    assert_eq!(number(&run.ndjson()[0], "interval_ms"), 3_600_000);
}

fn a_replay_can_be_filtered() {
    let folder = TempDir::new().expect("a folder");
    let (path, _) = recorded(&folder);
    let run = twtool(["watch", "-o", "ndjson", "--replay", &path, "dport = :8080"]).ok();
    assert!(run.ndjson().iter().all(|record| is(record, "sample") && record["time_wait"] == 1), "{run}");
}

fn a_signal_ends_a_recording_and_keeps_it() {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("series").to_str().expect("UTF-8").to_owned();
    let (mut child, out) = running(&watch(&["--record", &path]));
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).expect("a signal");
    assert_eq!(child.wait().expect("it ends").signal(), Some(Signal::SIGTERM as i32));
    drop(out);
    let samples = twtool(["watch", "-o", "ndjson", "--replay", &path]).ok().ndjson();
    assert!(!samples.is_empty());
}

fn a_recording_is_kept_if_the_reader_closes_the_pipe() {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("series").to_str().expect("UTF-8").to_owned();
    let (mut child, out) = running(&watch(&["--record", &path]));
    drop(out);
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
    assert!(!twtool(["watch", "-o", "ndjson", "--replay", &path]).ok().ndjson().is_empty());
}

fn list_refuses_a_series_and_watch_refuses_a_damaged_series() {
    let folder = TempDir::new().expect("a folder");
    let (path, _) = recorded(&folder);
    twtool(["list", "--replay", &path]).refused("series").says("twtool watch");
    let whole = fs::read_to_string(&path).expect("read");
    let lines: Vec<&str> = whole.lines().collect();
    let other = folder.path().join("other").to_str().expect("UTF-8").to_owned();
    let refused = |content: &str, why: &str| {
        fs::write(&other, content).expect("written");
        twtool(["watch", "-o", "ndjson", "--replay", &other]).code(2).says("cannot be replayed").says(why);
    };
    let text_of = |lines: &[&str]| lines.join("\n") + "\n";
    let (headers, ends): (Vec<_>, Vec<_>) = (starts(&lines, "{\"format\""), starts(&lines, "{\"end\""));
    assert!(headers.len() >= 2 && ends.len() == headers.len(), "{whole}");
    // The file is cut after a line: after the first sample, twice within the second one, after it, and before the last line.
    for end in [ends[0] + 1, headers[1] + 1, ends[1], ends[1] + 1, lines.len() - 1] {
        refused(&text_of(&lines[..end]), "its end is missing, so it was cut off");
    }
    // The file is cut within a line: in a header, in a datagram, and in the last line.
    for line in [headers[1], headers[1] + 2, lines.len() - 1] {
        let before = text_of(&lines[..line]);
        refused(&(before + &lines[line][..lines[line].len() / 2]), "its end is missing, so it was cut off");
    }
    refused(&text_of(&lines[1..]), "its beginning is missing");
    refused(&text_of(&lines[ends[0] + 1..]), &format!("it has {} of its {} samples", headers.len() - 1, headers.len()));
    // A line is missing, damaged, or of an unknown kind, or something follows the end.
    refused(&text_of(&[&lines[..headers[1]], &lines[headers[1] + 1..]].concat()), "neither the beginning of a sample");
    refused(&whole.replacen("datagram\":\"", "datagram\":\"00", 1), "its checksum does not match");
    refused(&whole.replacen("{\"datagram", "{\"datum", 1), "neither an event nor the end");
    refused(&(whole.clone() + "x"), "continues after its end");
    fs::remove_file(&other).expect("removed");
    twtool(["list", "--record", &other]).code(0);
    twtool(["watch", "-o", "ndjson", "--replay", &other]).refused("it is no series of samples").says("`twtool list`");
}

/// The numbers of the lines that start with this text.
fn starts(lines: &[&str], text: &str) -> Vec<usize> {
    (0..lines.len()).filter(|number| lines[*number].starts_with(text)).collect()
}

fn an_existing_file_is_not_replaced() {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("series").to_str().expect("UTF-8").to_owned();
    fs::write(&path, "mine").expect("written");
    twtool(watch(&["--count", "1", "--record", &path])).refused("exists");
    assert_eq!(fs::read_to_string(&path).expect("read"), "mine");
    succeeds(twtool(watch(&["--count", "1", "--record", &path, "--force"])));
    assert_eq!(twtool(["watch", "-o", "ndjson", "--replay", &path]).ok().ndjson().len(), 1);
}

fn an_interval_that_twtool_makes_longer_is_reported() {
    let run = twtool(["watch", "-o", "ndjson", "--interval", "1ms", "--count", "3"]).code(0);
    let longer = run.ndjson().iter().any(|sample| number(sample, "interval_ms") > 1);
    assert_eq!(longer, run.stderr.contains(LONGER), "{run}");
}
