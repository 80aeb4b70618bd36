//! `twtool list` on recordings of responses that are made by hand: refusals, broken and interrupted dumps, malformed datagrams. One test
//! uses a sandbox that refuses the netlink socket.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::json;
use twtool::model::facts::Facts;
use twtool::model::port::Port;
use twtool::model::services::Services;
use twtool::sock_diag::request::Walk;
use twtool::sock_diag::transport::TransportEvent;

use crate::support::datagrams::{
    EINVAL, ENOBUFS, ENOENT, ENOMEM, FIN_WAIT_2, LISTEN, NLM_F_DUMP_INTR, NLMSG_OVERRUN, SOCK_DIAG_BY_FAMILY, Sock,
    TCPDIAG_GETSOCK, done, dump_events, facts, flagged, message, recording, refusal,
};
use crate::support::limits::refuse_netlink;
use crate::support::records::{LIST_KEYS, cookies, number, sorted};
use crate::support::situations::{bucket_of_server, listen};
use crate::support::suite;
use crate::support::twtool::{Run, twtool};

suite! {
    pure: [
        a_replay_shows_every_field_as_the_kernel_sent_it,
        a_replay_prints_the_exact_bytes,
        if_the_dump_of_both_families_is_refused_each_family_is_dumped,
        listeners_decide_directions_in_a_dump_of_both_families_and_in_a_dump_of_each,
        a_missing_tcp_diag_is_named_with_a_hint,
        other_refusals_are_named,
        a_dump_that_the_kernel_breaks_off_is_an_error_that_names_the_errno,
        an_interrupted_dump_is_reported_as_incomplete,
        an_interrupted_dump_that_was_repeated_is_complete,
        lost_datagrams_are_errors,
        malformed_datagrams_are_errors,
        an_answer_without_an_end_is_an_error,
        full_sockets_do_not_count_as_buckets,
        facts_that_were_not_read_are_null_or_unknown,
        a_table_has_no_control_characters_from_names_in_a_recording,
        arbitrary_bytes_in_a_datagram_never_break_the_program,
    ],
    netns: [
        if_a_sandbox_refuses_netlink_the_error_names_sock_diag_and_has_a_hint,
    ],
}

fn replay(events: &[TransportEvent], args: &[&str]) -> Run {
    replay_with(&facts(), events, args)
}

fn replay_with(facts: &Facts, events: &[TransportEvent], args: &[&str]) -> Run {
    let (_folder, file) = recording(facts, events);
    twtool([&["list", "--replay", &file], args].concat())
}

fn bucket_v4() -> Sock {
    Sock::bucket("127.0.0.1:80", "127.0.0.1:40000", 41_300, 1)
}

fn bucket_v6() -> Sock {
    Sock::bucket("[2001:db8::1]:443", "[2001:db8::2]:50000", 12_000, 2)
}

fn bucket_mapped() -> Sock {
    Sock::bucket("[::ffff:192.0.2.1]:8080", "[::ffff:192.0.2.2]:50001", 0, 3)
}

fn by_family(sock: Sock) -> Sock {
    Sock { kind: SOCK_DIAG_BY_FAMILY, ..sock }
}

fn a_replay_shows_every_field_as_the_kernel_sent_it() {
    let bound = Sock { interface: 1, cookie: u64::MAX, ..bucket_v4() };
    let unnamed = Sock { interface: 7, cookie: 1 << 32, expires_ms: u32::MAX, ..bucket_v6() };
    let answer = [bound.message(), unnamed.message(), bucket_mapped().message(), done(0)].concat();
    let run = replay(&dump_events(Walk::BothFamilies, [answer]), &["--json", "--sort", "none"]).ok();
    let document = run.json();
    assert_eq!(document["taken_at"], "2023-11-14T22:13:20.123Z");
    assert_eq!((&document["kernel"], &document["netns"]), (&json!("5.4.0-hand-made"), &json!(4_026_531_840_u64)));
    assert_eq!(
        document["sockets"],
        json!([
            {
                "netns": 4_026_531_840_u64, "netns_name": "1:init", "family": "ipv4", "state": "time-wait",
                "local_addr": "127.0.0.1", "local_port": 80, "local_class": "well-known", "local_service": "http",
                "remote_addr": "127.0.0.1", "remote_port": 40000, "remote_class": "registered", "remote_service": null,
                "direction": "unknown", "expires_ms": 41_300, "interface": "lo", "mark": null,
                "cookie": "18446744073709551615",
            },
            {
                "netns": 4_026_531_840_u64, "netns_name": "1:init", "family": "ipv6", "state": "time-wait",
                "local_addr": "2001:db8::1", "local_port": 443, "local_class": "well-known", "local_service": null,
                "remote_addr": "2001:db8::2", "remote_port": 50000, "remote_class": "dynamic", "remote_service": null,
                "direction": "unknown", "expires_ms": u32::MAX, "interface": "if7", "mark": null,
                "cookie": "4294967296",
            },
            {
                "netns": 4_026_531_840_u64, "netns_name": "1:init", "family": "ipv4-mapped", "state": "time-wait",
                "local_addr": "192.0.2.1", "local_port": 8080, "local_class": "registered", "local_service": null,
                "remote_addr": "192.0.2.2", "remote_port": 50001, "remote_class": "dynamic", "remote_service": null,
                "direction": "unknown", "expires_ms": 0, "interface": null, "mark": null,
                "cookie": "3",
            },
        ]),
        "{run}"
    );
}

fn a_replay_prints_the_exact_bytes() {
    let answer = [bucket_v4().message(), done(0)].concat();
    let events = dump_events(Walk::BothFamilies, [answer]);
    let record = "{\"netns\":4026531840,\"netns_name\":\"1:init\",\"family\":\"ipv4\",\"state\":\"time-wait\",\"local_addr\":\"127.0.0.1\",\
                  \"local_port\":80,\"local_class\":\"well-known\",\"local_service\":\"http\",\
                  \"remote_addr\":\"127.0.0.1\",\"remote_port\":40000,\"remote_class\":\"registered\",\
                  \"remote_service\":null,\"direction\":\"unknown\",\"expires_ms\":41300,\"interface\":null,\
                  \"mark\":null,\"cookie\":\"1\"}\n";
    assert_eq!(replay(&events, &["-o", "ndjson"]).ok().stdout, record);
    let csv = format!(
        "{}\n4026531840,1:init,ipv4,time-wait,127.0.0.1,80,well-known,http,127.0.0.1,40000,registered,,unknown,41300,,,1\n",
        LIST_KEYS.join(",")
    );
    assert_eq!(replay(&events, &["-o", "csv"]).ok().stdout, csv);
    let table = replay(&events, &[]).ok();
    for text in ["127.0.0.1", "80", "http", "40000", "41.3s", "1 TIME_WAIT, the next expires in 41.3s"] {
        assert!(table.stdout.contains(text), "expected {text:?}{table}");
    }
}

fn if_the_dump_of_both_families_is_refused_each_family_is_dumped() {
    for no in [refusal(EINVAL), done(EINVAL), refusal(ENOENT)] {
        let events = [
            dump_events(Walk::BothFamilies, [no]),
            dump_events(Walk::Ipv4, [by_family(bucket_v4()).message(), done(0)]),
            dump_events(
                Walk::Ipv6,
                [[by_family(bucket_v6()).message(), by_family(bucket_mapped()).message()].concat(), done(0)],
            ),
        ]
        .concat();
        for format in ["json", "ndjson"] {
            let run = replay(&events, &["-o", format]).ok();
            let records = if format == "json" { run.records("sockets") } else { run.ndjson() };
            assert_eq!(sorted(cookies(&records)), [1, 2, 3], "{run}");
        }
        assert_eq!(replay(&events, &["--count"]).ok().stdout, "3\n");
        assert_eq!(replay(&events, &["--count", "-4"]).ok().stdout, "2\n");
    }
}

fn listeners_decide_directions_in_a_dump_of_both_families_and_in_a_dump_of_each() {
    let wildcard_peer = |local: &str| if local.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
    let listener = |local: &str| Sock { state: LISTEN, timer: 0, ..Sock::bucket(local, wildcard_peer(local), 0, 9) };
    let out = Sock::bucket("127.0.0.1:40000", "192.0.2.1:443", 1000, 4);
    let (on_four, on_six) = (listener("0.0.0.0:80"), listener("[2001:db8::1]:443"));
    let whole =
        [on_four.message(), on_six.message(), bucket_v4().message(), bucket_v6().message(), out.message(), done(0)];
    let one = dump_events(Walk::BothFamilies, [whole.concat()]);
    let [on_four, on_six, four, six, out] =
        [on_four, on_six, bucket_v4(), bucket_v6(), out].map(by_family).map(|s| s.message());
    let each = [
        dump_events(Walk::BothFamilies, [refusal(EINVAL)]),
        dump_events(Walk::Ipv4, [[on_four, four, out].concat(), done(0)]),
        dump_events(Walk::Ipv6, [[on_six, six].concat(), done(0)]),
    ]
    .concat();
    for events in [one, each] {
        for format in ["json", "ndjson"] {
            let run = replay(&events, &["-o", format]).ok();
            let records = if format == "json" { run.records("sockets") } else { run.ndjson() };
            let found: BTreeMap<_, _> =
                cookies(&records).into_iter().zip(records.iter().map(|r| r["direction"].clone())).collect();
            let expected = [(1, json!("inbound")), (2, json!("inbound")), (4, json!("outbound"))];
            assert_eq!(found, BTreeMap::from(expected), "{run}");
        }
    }
}

/// Asserts that every format ends with exit code 2 and with an error whose first line contains this text.
#[track_caller]
fn fails(events: &[TransportEvent], text: &str) -> Run {
    for format in ["table", "ndjson", "csv"] {
        // Before the error, ndjson and csv may have written rows.
        let run = replay(events, &["-o", format]).code(2);
        let first = run.stderr.lines().next().unwrap_or_default();
        assert!(first.contains(text), "expected {text:?} in the first line of stderr{run}");
    }
    replay(events, &["--count"]).refused(text);
    replay(events, &["--json"]).refused(text)
}

fn a_missing_tcp_diag_is_named_with_a_hint() {
    let events = [Walk::BothFamilies, Walk::Ipv4, Walk::Ipv6].map(|walk| dump_events(walk, [refusal(ENOENT)])).concat();
    fails(&events, "refuse").says("hint:").says("tcp_diag");
    replay(&events, &["-q"]).refused("refuse");
}

fn other_refusals_are_named() {
    for (errno, text) in
        [(1, "Operation not permitted"), (EINVAL, "Invalid argument"), (ENOMEM, "Cannot allocate memory")]
    {
        let events =
            [Walk::BothFamilies, Walk::Ipv4, Walk::Ipv6].map(|walk| dump_events(walk, [refusal(errno)])).concat();
        let run = fails(&events, text);
        assert!(!run.stderr.contains("tcp_diag"), "the hint about tcp_diag is only for ENOENT{run}");
    }
    // If the kernel refuses one family, twtool fails, because the rows of this family are missing.
    let events = [
        dump_events(Walk::BothFamilies, [refusal(EINVAL)]),
        dump_events(Walk::Ipv4, [by_family(bucket_v4()).message(), done(0)]),
        dump_events(Walk::Ipv6, [refusal(EINVAL)]),
    ]
    .concat();
    fails(&events, "IPv6");
}

fn a_dump_that_the_kernel_breaks_off_is_an_error_that_names_the_errno() {
    for end in [done(ENOMEM), refusal(ENOMEM)] {
        fails(&dump_events(Walk::BothFamilies, [bucket_v4().message(), end.clone()]), "Cannot allocate memory");
        fails(&dump_events(Walk::BothFamilies, [[bucket_v4().message(), end].concat()]), "Cannot allocate memory");
    }
}

fn an_interrupted_dump_is_reported_as_incomplete() {
    for answer in [
        [flagged(bucket_v4().message(), NLM_F_DUMP_INTR), bucket_v6().message(), done(0)],
        [bucket_v4().message(), bucket_v6().message(), flagged(done(0), NLM_F_DUMP_INTR)],
    ] {
        let events = dump_events(Walk::BothFamilies, answer);
        let run = replay(&events, &["--json"]).code(2);
        let document = run.json();
        assert_eq!(document["complete"], false, "{run}");
        assert_eq!(document["warnings"].as_array().map(Vec::len), Some(1), "{run}");
        assert_eq!(sorted(cookies(&run.records("sockets"))), [1, 2], "the rows that arrived are shown{run}");
        for format in ["ndjson", "csv", "table"] {
            let run = replay(&events, &["-o", format]).code(2);
            assert!(run.stdout.lines().count() >= 2 && !run.stderr.is_empty(), "{run}");
        }
        let count = replay(&events, &["--count"]).code(2);
        assert!(!count.stderr.is_empty(), "{count}");
    }
}

fn an_interrupted_dump_that_was_repeated_is_complete() {
    let events = [
        dump_events(Walk::BothFamilies, [flagged(bucket_v4().message(), NLM_F_DUMP_INTR), done(0)]),
        dump_events(Walk::BothFamilies, [bucket_v4().message(), bucket_v6().message(), done(0)]),
    ]
    .concat();
    let run = replay(&events, &["--json"]).ok();
    assert_eq!((&run.json()["complete"], run.records("sockets").len()), (&json!(true), 2));
}

fn lost_datagrams_are_errors() {
    let mut events = dump_events(Walk::BothFamilies, [bucket_v4().message()]);
    events.push(TransportEvent::RecvFailed(ENOBUFS));
    fails(&events, "No buffer space available");
    fails(&dump_events(Walk::BothFamilies, [bucket_v4().message(), message(NLMSG_OVERRUN, &[0; 4])]), "OVERRUN");
}

fn malformed_datagrams_are_errors() {
    let sock = bucket_v4().message();
    let changed = |at: usize, value: u8| {
        let mut bytes = sock.clone();
        bytes[at] = value;
        bytes
    };
    let attribute = |bytes: &[u8]| message(TCPDIAG_GETSOCK, &[bucket_v4().payload().as_slice(), bytes].concat());
    for (what, datagram) in [
        ("an empty datagram", vec![]),
        ("a cut header", sock[..10].to_vec()),
        ("a cut message", sock[..40].to_vec()),
        ("a message longer than its datagram", changed(0, 200)),
        ("a message of no length", changed(0, 0)),
        ("a message shorter than its header", changed(0, 8)),
        ("a record of 71 bytes", message(TCPDIAG_GETSOCK, &bucket_v4().payload()[..71])),
        ("a record of nothing", message(TCPDIAG_GETSOCK, &[])),
        ("an unknown family", changed(16, 99)),
        ("no state", changed(17, 0)),
        ("an unknown state", changed(17, 40)),
        ("a bucket that listens", changed(17, LISTEN)),
        ("TIME_WAIT without a bucket's timer", changed(18, 0)),
        ("another request's answer", changed(8, 9)),
        ("an unknown kind of message", changed(4, 99)),
        ("a cut attribute", attribute(&[8, 0])),
        ("an attribute beyond the message", attribute(&[200, 0, 15, 0, 1, 2, 3, 4])),
        ("a mark of one byte", attribute(&[5, 0, 15, 0, 1, 0, 0, 0])),
        ("an end without a status", message(3, &[])),
        ("an end with a positive status", message(3, &5_i32.to_ne_bytes())),
    ] {
        let events = dump_events(Walk::BothFamilies, [bucket_v6().message(), datagram, done(0)]);
        let run = fails(&events, "");
        let first = run.stderr.lines().next().unwrap_or_default();
        assert!(first.len() > 20 && run.stderr.lines().count() <= 2, "{what}: a clear line, and at most a hint{run}");
    }
}

fn an_answer_without_an_end_is_an_error() {
    fails(&dump_events(Walk::BothFamilies, [bucket_v4().message()]), "end");
    fails(&dump_events(Walk::BothFamilies, []), "end");
    fails(&[], "recording");
    let events = [
        dump_events(Walk::BothFamilies, [refusal(EINVAL)]),
        dump_events(Walk::Ipv4, [by_family(bucket_v4()).message(), done(0)]),
    ];
    fails(&events.concat(), "recording");
}

fn full_sockets_do_not_count_as_buckets() {
    // A socket with timer 3 is a bucket.
    let fin_wait_2 = |timer, cookie| Sock { state: FIN_WAIT_2, timer, cookie, ..bucket_v4() };
    let answer =
        [fin_wait_2(0, 11), fin_wait_2(2, 12), fin_wait_2(3, 13), bucket_v4()].map(|sock| sock.message()).concat();
    let events = dump_events(Walk::BothFamilies, [answer, done(0)]);
    let run = replay(&events, &["--json", "--fin-wait-2"]).ok();
    assert_eq!(sorted(cookies(&run.records("sockets"))), [1, 13]);
    assert_eq!(cookies(&replay(&events, &["--json"]).ok().records("sockets")), [1]);
}

fn facts_that_were_not_read_are_null_or_unknown() {
    let facts =
        Facts { netns: None, netns_name: None, local_port_range: None, services: Services::default(), ..facts() };
    let events = dump_events(Walk::BothFamilies, [[bucket_v4().message(), done(0)].concat()]);
    let run = replay_with(&facts, &events, &["--json"]);
    let document = run.json();
    assert!(document["netns"].is_null(), "{run}");
    let record = &document["sockets"][0];
    assert_eq!(
        (&record["netns"], &record["local_service"], &record["direction"]),
        (&json!(null), &json!(null), &json!("unknown"))
    );
    assert_eq!(number(record, "local_port"), 80);
}

fn a_table_has_no_control_characters_from_names_in_a_recording() {
    let evil = "\x1b[31mevil\r\n\t";
    let facts = Facts {
        services: Services::new([(Port(80), [evil])]),
        interfaces: [(NonZeroU32::MIN, evil.to_owned())].into_iter().collect(),
        ..facts()
    };
    let bound = Sock { interface: 1, ..bucket_v4() };
    let events = dump_events(Walk::BothFamilies, [[bound.message(), done(0)].concat()]);
    let table = replay_with(&facts, &events, &["--columns", "local_port,local_service,interface"]).ok();
    assert!(!table.stdout.contains(['\x1b', '\r', '\t']), "{:?}", table.stdout);
    assert!(table.stdout.contains("evil"), "{table}");
    let plain = replay_with(&facts, &events, &[]).ok();
    assert!(!plain.stdout.contains(['\x1b', '\r', '\t']), "{:?}", plain.stdout);
    // JSON and csv contain the whole names.
    let json = replay_with(&facts, &events, &["--json"]).ok();
    assert_eq!(json.records("sockets")[0]["interface"], evil);
    assert!(!json.stdout.contains('\x1b'), "JSON escapes control characters: {:?}", json.stdout);
    assert_eq!(replay_with(&facts, &events, &["-o", "csv", "--columns", "interface"]).ok().csv().1, [[evil]]);
}

fn arbitrary_bytes_in_a_datagram_never_break_the_program() {
    let whole = [bucket_v4().message(), bucket_v6().message(), bucket_mapped().message(), done(0)].concat();
    let config = Config { cases: 64, failure_persistence: None, ..Config::default() };
    let changes = proptest::collection::vec((0..whole.len(), any::<u8>()), 1..4);
    let outcome = TestRunner::new(config).run(&(changes, 0..whole.len()), |(changes, cut)| {
        let mut bytes = whole.clone();
        for (at, value) in changes {
            bytes[at] = value;
        }
        for bytes in [bytes.clone(), bytes[..cut].to_vec()] {
            let run = replay(&dump_events(Walk::BothFamilies, [bytes]), &["--json"]);
            prop_assert!(matches!(run.code, Some(0 | 2)), "{}", run);
            prop_assert!(!run.stderr.contains("panicked"), "{}", run);
            prop_assert!(run.code == Some(0) || !run.stderr.is_empty(), "{}", run);
        }
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}

fn if_a_sandbox_refuses_netlink_the_error_names_sock_diag_and_has_a_hint() {
    let server = listen("127.0.0.1:8080");
    bucket_of_server(&server, "127.0.0.1:8080");
    refuse_netlink();
    let sock_diag = ["list", "--source", "sock_diag"];
    let refused = |more: &[&str]| {
        twtool(sock_diag.iter().chain(more)).refused("sock_diag").says("Operation not permitted").says("hint:");
    };
    for format in ["table", "json", "ndjson", "csv"] {
        refused(&["-o", format]);
    }
    refused(&["-q"]);
    refused(&["--count"]);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("recording");
    twtool(["list".as_ref(), "--record".as_ref(), file.as_os_str()]).refused("sock_diag");
    assert!(!file.exists(), "no partial file is left");
}
