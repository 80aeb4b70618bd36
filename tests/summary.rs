//! `twtool summary`: with hand-made recordings, every number must have the expected value. On the real kernel, the numbers must agree with
//! /proc and with each other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use twtool::lab::ActiveCloser;
use twtool::model::kernel_counts::{BucketFacts, TcpExt, TcpSockstat};
use twtool::sock_diag::request::Walk;
use twtool::sys::sysctl;

use crate::support::commands;
use crate::support::datagrams::{
    FIN_WAIT_2, LISTEN, NLM_F_DUMP_INTR, Sock, done, dump_events, facts, flagged, recording, recording_with_counts,
};
use crate::support::procfs::{self, Entry};
use crate::support::records::{DOCUMENT_KEYS, number, text};
use crate::support::situations::{Mixed, bucket_of_client, bucket_of_server, half_closed, listen, many_buckets};
use crate::support::twtool::{Keys, Run, command, twtool};
use crate::support::{kernel, suite};

suite! {
    pure: [
        every_number_of_a_recorded_dump_is_printed,
        a_recording_without_the_kernels_counts_gives_null,
        the_history_of_closes_uses_the_length_of_time_wait_of_the_kernel,
        an_interrupted_dump_is_incomplete,
        a_recording_without_fin_wait_2_is_refused,
        ndjson_is_the_payload_in_one_record,
        only_the_requested_groups_are_printed,
        the_locale_decides_which_characters_draw_the_bars,
        invalid_arguments_are_refused,
    ],
    netns: [
        an_empty_namespace_is_reported,
        buckets_count_in_the_seconds_in_which_they_were_made,
        groups_agree_with_a_count_of_proc_net_tcp,
        sockstat_counts_fin_wait_2_as_well,
        minus_4_and_minus_6_count_only_one_family,
        closes_above_the_maximum_are_reported_as_missing,
        with_a_maximum_of_0_the_closes_of_the_minute_are_unknown,
        the_kernel_counts_a_bucket_when_it_is_made,
        memory_is_measured_if_the_size_of_a_bucket_can_be_read,
        a_replay_gives_the_same_bytes,
    ],
}

fn summary(args: &[&str]) -> Run {
    twtool([&["summary"], args].concat())
}

/// A server on port 80 with a listener, two TIME_WAIT buckets and a FIN_WAIT_2 bucket, and the buckets of two clients. The bucket of
/// one client is IPv4-mapped. The bucket of the other client is IPv6, and its remaining time is 0 ms.
fn sockets() -> Vec<Vec<u8>> {
    let listener = Sock { state: LISTEN, timer: 0, ..Sock::bucket("0.0.0.0:80", "0.0.0.0:0", 0, 1) };
    let half = Sock { state: FIN_WAIT_2, ..Sock::bucket("192.0.2.1:80", "192.0.2.9:50001", 30_000, 5) };
    [
        listener,
        Sock::bucket("192.0.2.1:80", "192.0.2.9:50000", 59_999, 2),
        Sock::bucket("192.0.2.1:80", "192.0.2.9:50002", 59_000, 3),
        Sock::bucket("[::ffff:192.0.2.1]:40000", "[::ffff:192.0.2.7]:443", 500, 4),
        half,
        Sock::bucket("[2001:db8::1]:40001", "[2001:db8::2]:443", 0, 6),
    ]
    .iter()
    .map(Sock::message)
    .collect()
}

fn kernel() -> BucketFacts {
    let counters = [("TW", 70), ("TWRecycled", 3), ("TWKilled", 2), ("TCPTimeWaitOverflow", 4), ("PAWSEstab", 0)];
    BucketFacts {
        max_tw_buckets: Some(4096),
        tw_timeout_s: None,
        sockstat: Some(TcpSockstat { inuse: 1, orphan: 0, tw: 6, alloc: 2, mem: 0 }),
        tcp_ext: Some(TcpExt(counters.map(|(name, count)| (name.to_owned(), count)).into())),
        bucket_bytes: Some(300),
    }
}

fn recorded(kernel: &BucketFacts, sockets: &[Vec<u8>]) -> (TempDir, String) {
    let datagram = [sockets.concat(), done(0)].concat();
    recording_with_counts(&facts(), kernel, &dump_events(Walk::BothFamilies, [datagram]))
}

fn every_number_of_a_recorded_dump_is_printed() {
    let (_folder, file) = recorded(&kernel(), &sockets());
    let run = summary(&["--json", "--replay", &file]).ok();
    let document = run.json();
    let payload = ["source", "totals", "groups", "history", "remaining", "memory", "limits", "commands", "counters"];
    assert_eq!(Keys::of(&run.stdout), [DOCUMENT_KEYS.as_slice(), &payload].concat());
    assert_eq!(document["schema"], "twtool.summary/1");
    assert_eq!(
        document["totals"],
        json!({"time_wait": 4, "fin_wait_2": 1, "sockstat_tw": 6, "sockstat_difference": 1, "max_tw_buckets": 4096,
            "reconciliation": "tw of /proc/net/sockstat is 6: it counts TIME_WAIT and FIN_WAIT_2, 1 more than were listed a moment later: buckets \
                               came and went in between"})
    );
    let groups = &document["groups"];
    assert_eq!(
        groups["class"],
        json!({"top": [{"local_class": "well-known", "count": 3, "fin_wait_2": 1},
                       {"local_class": "registered", "count": 2, "fin_wait_2": 0}], "others": 0, "distinct": 2})
    );
    assert_eq!(
        groups["direction"]["top"],
        json!([{"direction": "inbound", "count": 3, "fin_wait_2": 1}, {"direction": "outbound", "count": 2, "fin_wait_2": 0}])
    );
    assert_eq!(
        groups["local_port"]["top"][0],
        json!({"local_port": 80, "local_class": "well-known", "local_service": "http", "count": 3, "fin_wait_2": 1})
    );
    assert_eq!(groups["remote_addr"]["top"][0], json!({"remote_addr": "192.0.2.9", "count": 3, "fin_wait_2": 1}));
    assert_eq!(groups["destination"]["distinct"], 5);
    assert_eq!(
        groups["destination"]["top"][0],
        json!({"remote_addr": "192.0.2.7", "remote_port": 443, "remote_class": "well-known", "remote_service": null,
            "count": 1, "fin_wait_2": 0})
    );
    let mut closes = vec![0; 60];
    (closes[59], closes[58], closes[0]) = (1, 1, 1);
    assert_eq!(
        document["history"],
        json!({"bucket_ms": 1000, "closes": closes, "total": 3, "now_per_s": 1, "mean_per_s": 0.05, "peak_per_s": 1,
            "peak_ago_ms": 0, "covered_ms": 60_000, "length_ms": 60_000, "length_source": "tcp-timewait-len",
            "largest_remaining_ms": 59_999})
    );
    let counts: Vec<u64> = run.records("remaining").iter().map(|span| number(span, "count")).collect();
    assert_eq!(counts, [1, 1, 0, 0, 0, 2, 0], "0 ms, up to 1, 5, 15, 30 and 60 s, and more");
    assert_eq!(document["memory"], json!({"bytes": 1500, "bytes_per_bucket": 300, "measured": true}));
    let limits = run.records("limits");
    let found: Vec<&str> =
        limits.iter().filter(|limit| limit["found"] == true).map(|limit| text(limit, "id")).collect();
    assert_eq!(found, ["overflow", "fin-wait-2", "due", "gone-early"]);
    assert_eq!(
        document["counters"],
        json!({"tw": 70, "tw_recycled": 3, "tw_killed": 2, "tcp_time_wait_overflow": 4, "paws_timewait": null,
            "paws_estab": 0, "tcp_ack_skipped_time_wait": null})
    );
}

fn a_recording_without_the_kernels_counts_gives_null() {
    let (_folder, file) = recorded(&BucketFacts::default(), &sockets());
    let document = summary(&["--json", "--replay", &file]).ok().json();
    for key in ["sockstat_tw", "sockstat_difference", "max_tw_buckets"] {
        assert_eq!(document["totals"][key], Value::Null, "{key}");
    }
    let counters = document["counters"].as_object().expect("an object");
    assert!(counters.len() == 7 && counters.values().all(Value::is_null), "{counters:?}");
    assert_eq!(document["memory"]["measured"], false);
    summary(&["--replay", &file]).ok().prints("an estimate").prints("not known here");
}

fn the_history_of_closes_uses_the_length_of_time_wait_of_the_kernel() {
    let bucket = |expires_ms, cookie| Sock::bucket("192.0.2.1:80", "192.0.2.9:50000", expires_ms, cookie).message();
    let (_folder, file) = recorded(&BucketFacts { tw_timeout_s: Some(20), ..kernel() }, &[bucket(15_500, 2)]);
    let document = summary(&["--json", "--replay", &file]).ok().json();
    let history = &document["history"];
    assert_eq!((&history["length_ms"], &history["length_source"]), (&json!(20_000), &json!("tcp-tw-timeout")));
    assert_eq!(
        (&history["closes"][55], &history["closes"][40], &history["closes"][39]),
        (&json!(1), &json!(0), &json!(null))
    );
    assert_eq!((&history["covered_ms"], &history["mean_per_s"]), (&json!(20_000), &json!(0.05)));

    let (_folder, file) = recorded(&kernel(), &[bucket(119_500, 2), bucket(70_000, 3)]);
    let run = summary(&["--json", "--replay", &file]).ok();
    let history = &run.json()["history"];
    assert_eq!((&history["length_ms"], &history["length_source"]), (&json!(120_000), &json!("largest-remaining")));
    assert_eq!((&history["closes"][59], &history["closes"][9], &history["total"]), (&json!(1), &json!(1), &json!(2)));
    assert!(run.records("limits").iter().any(|limit| limit["id"] == "length" && limit["count"] == 120));
}

fn an_interrupted_dump_is_incomplete() {
    let datagram = [sockets().concat(), flagged(done(0), NLM_F_DUMP_INTR)].concat();
    // The dump is repeated three times, and each time the count starts again.
    let events = vec![dump_events(Walk::BothFamilies, [datagram]); 4].concat();
    let (_folder, file) = recording(&facts(), &events);
    let document = summary(&["--json", "--replay", &file]).code(2).says("table changed").json();
    assert_eq!((&document["complete"], &document["totals"]["time_wait"]), (&json!(false), &json!(4)));
    assert_eq!(document["groups"]["destination"]["distinct"], 5);
    let mut facts = facts();
    facts.local_port_range = None;
    let (_folder, file) = recording(&facts, &dump_events(Walk::BothFamilies, [[sockets().concat(), done(0)].concat()]));
    let run = summary(&["--json", "--replay", &file]).code(2).says("ip_local_port_range");
    assert_eq!(run.json()["complete"], false);
    summary(&["--json", "--by", "local-port", "--replay", &file]).ok();
}

fn a_recording_without_fin_wait_2_is_refused() {
    let datagram = [sockets().concat(), done(0)].concat();
    let mut events = dump_events(Walk::BothFamilies, [datagram]);
    let twtool::sock_diag::transport::TransportEvent::Request(request) = &mut events[0] else { panic!("no request") };
    request.states = twtool::model::socket::StateSet::of(&[
        twtool::model::socket::TcpState::Listen,
        twtool::model::socket::TcpState::TimeWait,
    ]);
    let (_folder, file) = recording(&facts(), &events);
    summary(&["--replay", &file]).refused("recording").says("hint:");
}

fn ndjson_is_the_payload_in_one_record() {
    let (_folder, file) = recorded(&kernel(), &sockets());
    let (run, document) =
        (summary(&["-o", "ndjson", "--replay", &file]).ok(), summary(&["--json", "--replay", &file]).ok().json());
    let [record] = &run.ndjson()[..] else { panic!("one record{run}") };
    for (key, value) in record.as_object().expect("an object") {
        assert_eq!(&document[key], value, "{key}");
    }
    assert_eq!(record["totals"]["time_wait"], 4);
}

fn only_the_requested_groups_are_printed() {
    let (_folder, file) = recorded(&kernel(), &sockets());
    let keys = |args: &[&str]| -> BTreeSet<String> {
        let document = summary(&[&["--json", "--replay", &file], args].concat()).ok().json();
        document["groups"].as_object().expect("an object").keys().cloned().collect()
    };
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(keys(&[]), set(&["class", "direction", "local_port", "remote_addr", "destination"]));
    assert_eq!(keys(&["--by", "remote-port,class", "--by", "class"]), set(&["remote_port", "class"]));
    let top = summary(&["--json", "--replay", &file, "--by", "destination", "--top", "2"]).ok().json();
    assert_eq!(
        (top["groups"]["destination"]["top"].as_array().map(Vec::len), &top["groups"]["destination"]["others"]),
        (Some(2), &json!(3))
    );
}

fn the_locale_decides_which_characters_draw_the_bars() {
    let (_folder, file) = recorded(&kernel(), &sockets());
    let drawn = |lc_all: &str, lang: &str, term: &str| {
        let mut command = command(["summary", "--replay", &file]);
        command.env("LC_ALL", lc_all).env_remove("LC_CTYPE").env("LANG", lang).env("TERM", term);
        Run::of(&mut command).ok().stdout
    };
    assert!(drawn("", "de_DE.UTF-8", "xterm").contains('█'));
    for (lc_all, lang, term) in
        [("C", "de_DE.UTF-8", "xterm"), ("", "C", "xterm"), ("", "", "xterm"), ("", "C.UTF-8", "dumb")]
    {
        let page = drawn(lc_all, lang, term);
        assert!(page.is_ascii() && page.contains("|#"), "{lc_all} {lang} {term}: {page}");
    }
}

fn invalid_arguments_are_refused() {
    summary(&["-o", "csv"]).refused("csv");
    for by in ["netns-of-mine", "class,colour", "local_port"] {
        summary(&["--by", by]).refused(by.split(',').next_back().unwrap_or(by)).says("local-port");
    }
    for top in ["-1", "many", "1.5"] {
        let run = summary(&["--top", top]).code(2);
        assert!(run.stdout.is_empty() && run.stderr.contains(top), "{run}");
    }
    summary(&["--force"]).refused("").says("--record");
}

fn an_empty_namespace_is_reported() {
    summary(&[]).ok().prints("0 TIME_WAIT buckets").prints("over the last minute: none");
    let document = summary(&["--json"]).ok().json();
    assert_eq!((&document["totals"]["time_wait"], &document["totals"]["sockstat_tw"]), (&json!(0), &json!(0)));
    assert_eq!(document["history"]["closes"], json!(vec![0; 60]));
    assert_eq!(document["history"]["largest_remaining_ms"], Value::Null);
    assert_eq!(document["groups"]["destination"], json!({"top": [], "others": 0, "distinct": 0}));
    let most = sysctl::read("ipv4.tcp_max_tw_buckets").expect("a setting");
    assert_eq!(document["totals"]["max_tw_buckets"].to_string(), most);
}

fn buckets_count_in_the_seconds_in_which_they_were_made() {
    let server = listen("127.0.0.1:8080");
    let batch = |count: usize| {
        let from = Instant::now();
        (0..count).for_each(|_| bucket_of_server(&server, "127.0.0.1:8080"));
        (count as u64, from, Instant::now())
    };
    let first = batch(5);
    thread::sleep(Duration::from_millis(2500));
    let second = batch(3);
    thread::sleep(Duration::from_millis(1200));
    let asked = Instant::now();
    let document = summary(&["--json"]).ok().json();
    let answered = Instant::now();
    let closes: Vec<u64> =
        document["history"]["closes"].as_array().expect("60").iter().filter_map(Value::as_u64).collect();
    assert_eq!((closes.len(), closes.iter().sum::<u64>()), (60, 8), "{closes:?}");
    // A kernel's tick is at most 10 ms, and the timer is set a moment after the close.
    let slack = Duration::from_millis(30);
    let seconds = |(_, from, until): (u64, Instant, Instant)| {
        let (least, most) = ((asked - until).saturating_sub(slack), answered - from + slack);
        let index = |age: Duration| 59 - usize::try_from(age.as_secs()).expect("few").min(59);
        index(most)..=index(least)
    };
    assert!(!seconds(second).contains(&59), "the second batch is at least 1 s old");
    let of = |batch| closes[seconds(batch)].iter().sum::<u64>();
    if seconds(first).end() < seconds(second).start() {
        assert_eq!((of(first), of(second)), (first.0, second.0), "{closes:?}");
    } else {
        // On a very slow machine, both batches can be in the same second.
        assert_eq!(closes[*seconds(first).start()..=*seconds(second).end()].iter().sum::<u64>(), 8);
    }
}

fn counts<K: Ord>(keys: impl Iterator<Item = K>) -> BTreeMap<K, u64> {
    keys.fold(BTreeMap::new(), |mut counts, key| {
        *counts.entry(key).or_default() += 1;
        counts
    })
}

fn groups_agree_with_a_count_of_proc_net_tcp() {
    let mixed = Mixed::make();
    let server = listen("127.0.0.1:443");
    many_buckets(&server, "127.0.0.1:443", 40);
    for _ in 0..5 {
        bucket_of_client(&server, "127.0.0.1:443");
    }
    let by = "class,local-port,remote-addr,remote-port,destination,direction";
    let document = summary(&["--json", "--by", by, "--top", "1000"]).ok().json();
    let entries = procfs::buckets();
    let lines = |group: &str| document["groups"][group]["top"].as_array().expect("lines").clone();
    let remote = |entry: &Entry| entry.remote.0.to_canonical().to_string();
    let class = |port: u16| match port {
        0..1024 => "well-known",
        1024..49152 => "registered",
        _ => "dynamic",
    };

    let shown = |group: &str, key: &dyn Fn(&Value) -> String| -> BTreeMap<String, u64> {
        lines(group).iter().map(|line| (key(line), number(line, "count"))).collect()
    };
    assert_eq!(
        shown("local_port", &|line| line["local_port"].to_string()),
        counts(entries.iter().map(|e| e.local.1.to_string()))
    );
    assert_eq!(
        shown("remote_port", &|line| line["remote_port"].to_string()),
        counts(entries.iter().map(|e| e.remote.1.to_string()))
    );
    assert_eq!(shown("remote_addr", &|line| text(line, "remote_addr").into()), counts(entries.iter().map(remote)));
    assert_eq!(
        shown("class", &|line| text(line, "local_class").into()),
        counts(entries.iter().map(|e| class(e.local.1).to_owned()))
    );
    assert_eq!(
        shown("destination", &|line| format!("{} {}", text(line, "remote_addr"), line["remote_port"])),
        counts(entries.iter().map(|e| format!("{} {}", remote(e), e.remote.1)))
    );
    // Each group counts every bucket of both states, and its lines are sorted by their count.
    for group in by.split(',').map(|name| name.replace('-', "_")) {
        let lines = lines(&group);
        let sum = |key| lines.iter().map(|line| number(line, key)).sum::<u64>();
        assert_eq!((sum("count"), sum("fin_wait_2")), (entries.len() as u64, Mixed::FIN_WAIT_2 as u64), "{group}");
        assert!(lines.is_sorted_by(|a, b| number(a, "count") >= number(b, "count")), "{group}");
    }
    // `others` is the number of buckets in the lines that are not shown.
    let document = summary(&["--json", "--top", "2"]).ok().json();
    for group in ["local_port", "remote_addr", "destination", "class", "direction"] {
        let group = &document["groups"][group];
        let top: u64 = group["top"].as_array().expect("lines").iter().map(|line| number(line, "count")).sum();
        assert_eq!(top + number(group, "others"), entries.len() as u64, "{group}");
    }
    // `summary` counts the directions that `list` infers.
    let list = twtool(["list", "--fin-wait-2", "--json"]).ok().records("sockets");
    let directions = |line: &Value| text(line, "direction").to_owned();
    let document = summary(&["--json", "--by", "direction"]).ok().json();
    let lines = document["groups"]["direction"]["top"].as_array().expect("lines").clone();
    let shown: BTreeMap<String, u64> = lines.iter().map(|line| (directions(line), number(line, "count"))).collect();
    assert_eq!(shown, counts(list.iter().map(directions)));
    assert!(shown.len() >= 2, "{shown:?}");
    mixed.end();
}

fn sockstat_counts_fin_wait_2_as_well() {
    let mixed = Mixed::make();
    let document = summary(&["--json"]).ok().json();
    let totals = &document["totals"];
    assert_eq!((number(totals, "time_wait"), number(totals, "fin_wait_2")), (7, 3));
    assert_eq!(number(totals, "sockstat_tw"), procfs::bucket_count() as u64);
    assert_eq!(totals["sockstat_difference"], 0);
    assert!(text(totals, "reconciliation").contains("(7 + 3)"), "{totals}");
    assert_eq!(document["history"]["total"], 7, "an orphan in FIN_WAIT_2 does not count as a close of the minute");
    summary(&[])
        .ok()
        .prints("7 TIME_WAIT and 3 FIN_WAIT_2 buckets")
        .prints("minute does not contain FIN_WAIT_2 buckets");
    mixed.end();
}

fn minus_4_and_minus_6_count_only_one_family() {
    let mixed = Mixed::make();
    let on_the_wire = |entry: &&Entry| entry.local.0.to_canonical().is_ipv4();
    let ipv4 = procfs::buckets().iter().filter(on_the_wire).count() as u64;
    let ipv6 = procfs::buckets().len() as u64 - ipv4;
    for (flag, expected) in [("-4", ipv4), ("-6", ipv6)] {
        let run = summary(&["--json", flag]).ok();
        let document = run.json();
        let totals = &document["totals"];
        assert_eq!(number(totals, "time_wait") + number(totals, "fin_wait_2"), expected, "{flag}");
        assert!(text(totals, "reconciliation").contains("IPv4 and IPv6 together"));
        assert!(run.records("limits").iter().any(|limit| limit["id"] == "one-family"));
        // The direction is the same as in a list of that family.
        let list = twtool(["list", "--fin-wait-2", "--json", flag]).ok().records("sockets");
        let inbound = list.iter().filter(|row| row["direction"] == "inbound").count() as u64;
        let lines = document["groups"]["direction"]["top"].as_array().expect("lines").clone();
        let shown = lines.iter().find(|line| line["direction"] == "inbound").map_or(0, |line| number(line, "count"));
        assert_eq!(shown, inbound, "{flag}");
    }
    assert!(ipv4 > 0 && ipv6 > 0);
    mixed.end();
}

fn wait_for(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + kernel::patience(Duration::from_secs(20));
    while !done() {
        assert!(Instant::now() < deadline, "waited too long for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn closes_above_the_maximum_are_reported_as_missing() {
    sysctl::write("ipv4.tcp_max_tw_buckets", "3").expect("the namespace is ours");
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 8080)).expect("a server");
    let before = procfs::tcp_ext("TCPTimeWaitOverflow");
    for _ in 0..8 {
        let client = TcpStream::connect((Ipv4Addr::LOCALHOST, 8080)).expect("a connection");
        let (accepted, _) = server.accept().expect("a connection");
        drop(client);
        drop(accepted);
    }
    wait_for("an overflow", || procfs::tcp_ext("TCPTimeWaitOverflow") >= before + 5);
    let run = summary(&["--json"]).ok();
    let document = run.json();
    assert_eq!(document["counters"]["tcp_time_wait_overflow"], procfs::tcp_ext("TCPTimeWaitOverflow"));
    assert_eq!((&document["totals"]["max_tw_buckets"], &document["totals"]["time_wait"]), (&json!(3), &json!(3)));
    let limits = run.records("limits");
    let found: Vec<&str> =
        limits.iter().filter(|limit| limit["found"] == true).map(|limit| text(limit, "id")).collect();
    assert_eq!(found, ["at-maximum", "overflow"]);
    let page = summary(&[]).ok().prints("100.0 % of tcp_max_tw_buckets (3)").prints("TCPTimeWaitOverflow is");
    // The next step, typed as it is printed, leads to the command that raises the maximum.
    let step = text(&document["commands"][0], "command");
    assert!(page.stdout.contains(&format!(":\n  {step}\n")), "{page}");
    commands::run(step).code(1).prints("sysctl -w net.ipv4.tcp_max_tw_buckets=");
}

fn with_a_maximum_of_0_the_closes_of_the_minute_are_unknown() {
    sysctl::write("ipv4.tcp_max_tw_buckets", "0").expect("the namespace is ours");
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 8080)).expect("a server");
    let before = procfs::tcp_ext("TCPTimeWaitOverflow");
    let client = TcpStream::connect((Ipv4Addr::LOCALHOST, 8080)).expect("a connection");
    drop(server.accept().expect("a connection"));
    drop(client);
    wait_for("an overflow", || procfs::tcp_ext("TCPTimeWaitOverflow") > before);
    summary(&[])
        .ok()
        .prints("0 TIME_WAIT buckets\ntcp_max_tw_buckets is 0: the kernel keeps no bucket after a close")
        .prints("closes per second over the last minute: unknown")
        .prints("so the minute contains no closes");
}

fn the_kernel_counts_a_bucket_when_it_is_made() {
    let server = listen("127.0.0.1:8080");
    let counters = || {
        let document = summary(&["--json"]).ok().json();
        (document["counters"]["tw"].as_u64(), document["counters"]["tw_killed"].as_u64())
    };
    let (Some(tw), Some(killed)) = counters() else { panic!("no counters") };
    (0..3).for_each(|_| bucket_of_server(&server, "127.0.0.1:8080"));
    assert_eq!(procfs::time_wait().len(), 3, "none has ended");
    kernel::needs(procfs::tcp_ext("TW") > tw, "count of buckets at their beginning (it counts them at their end)");
    assert_eq!(counters(), (Some(tw + 3), Some(killed)));
    // If the first timer of a bucket is at most 4 s, the kernel counts the bucket in TWKilled. Here, the first timer is 2 s.
    sysctl::write("ipv4.tcp_fin_timeout", "2").expect("the namespace is ours");
    let half = half_closed(&server, "127.0.0.1:8080", ActiveCloser::Server);
    assert_eq!(counters(), (Some(procfs::tcp_ext("TW")), Some(killed + 1)));
    assert_eq!(procfs::tcp_ext("TW"), tw + 3);
    drop(half);
}

fn memory_is_measured_if_the_size_of_a_bucket_can_be_read() {
    let mixed = Mixed::make();
    let size = std::fs::read_to_string("/sys/kernel/slab/tw_sock_TCP/slab_size").ok();
    let size: Option<u64> = size.and_then(|text| text.trim().parse().ok());
    let document = summary(&["--json"]).ok().json();
    let memory = &document["memory"];
    assert_eq!(memory["measured"], size.is_some() || std::fs::read("/proc/slabinfo").is_ok());
    if let Some(size) = size {
        assert_eq!(memory["bytes_per_bucket"], size);
    }
    assert_eq!(number(memory, "bytes"), 10 * number(memory, "bytes_per_bucket"));
    mixed.end();
}

fn a_replay_gives_the_same_bytes() {
    let (mixed, folder) = (Mixed::make(), tempfile::tempdir().expect("a folder"));
    for format in ["table", "json", "ndjson"] {
        let path = folder.path().join(format).into_os_string().into_string().expect("UTF-8");
        let live = summary(&["-o", format, "--record", &path]).ok();
        assert!(live.stdout.contains("sockstat"), "{live}");
        let replay =
            crate::support::netns::on_thread_in_new_namespace(|| summary(&["-o", format, "--replay", &path]).ok());
        assert_eq!(live.stdout, replay.stdout, "{format}");
        summary(&["-o", format, "--record", &path]).refused(&path);
    }
    // A recording of list can be used, too, if it contains both states.
    let path = folder.path().join("list").into_os_string().into_string().expect("UTF-8");
    twtool(["list", "--fin-wait-2", "--record", &path]).ok();
    assert_eq!(summary(&["--json", "--replay", &path]).ok().json()["totals"]["sockstat_tw"], 10);
    mixed.end();
}
