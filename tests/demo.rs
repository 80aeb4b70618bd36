//! Checks the events of each scenario of `twtool demo` on this kernel: states, segments, errnos and results.

use std::collections::BTreeSet;

use seccompiler::SeccompCmpOp;
use serde_json::{Value, json};

use crate::support::experiment::{self, DemoRun, SCENARIOS, demo};
use crate::support::limits::{drop_capabilities_but_setfcap, refuse};
use crate::support::records::{DOCUMENT_KEYS, number, text};
use crate::support::suite;
use crate::support::twtool::{Keys, Run, command, twtool};

suite! {
    pure: [
        the_list_has_one_line_for_each_scenario,
        an_unknown_scenario_is_refused_with_the_existing_ones,
        options_that_cannot_be_combined_are_refused,
        steps_need_a_terminal,
    ],
    netns: [
        // This test comes first, because it takes longest, and the other tests can run at the same time.
        time_wait_lasts_at_least_sixty_seconds_with_tcp_fin_timeout_60_and_5,
        a_connection_ends_with_four_segments_and_the_first_closer_enters_time_wait,
        both_ends_enter_time_wait_if_they_close_at_the_same_time,
        one_direction_can_end_while_the_other_stays_open,
        a_reset_leaves_no_time_wait,
        only_time_wait_recovers_from_a_lost_last_ack,
        an_old_segment_reaches_a_new_connection_only_without_time_wait,
        a_reset_ends_time_wait_unless_tcp_rfc1337_is_set,
        the_reuse_scenario_tests_sixteen_combinations,
        one_destination_uses_up_eight_ports_and_connect_works_again_with_tcp_tw_reuse,
        bind_begins_with_odd_ports_and_connect_with_even_ports,
        json_and_ndjson_have_the_same_events,
        unexpected_behaviour_of_the_kernel_is_reported,
        scenarios_that_need_no_veth_run_without_it,
        an_error_explains_how_to_allow_forbidden_namespaces,
        an_error_explains_where_a_capture_can_be_written,
        no_privilege_is_needed,
    ],
}

/// Checks the states that the client and the server pass through in a part of a scenario.
#[track_caller]
fn passed(story: &DemoRun, part: &str, client: &[&str], server: &[&str]) {
    assert_eq!(story.states(part, "client"), client, "states of the client in {part:?}");
    assert_eq!(story.states(part, "server"), server, "states of the server in {part:?}");
}

const CONNECT: [&str; 3] = ["client SYN", "server SYN ACK", "client ACK"];

/// Checks the segments of a part: the three segments of connect(), then the segments `after_connecting`.
#[track_caller]
fn sent(story: &DemoRun, part: &str, after_connecting: &[&str]) {
    assert_eq!(story.segments(part), [CONNECT.as_slice(), after_connecting].concat(), "segments in {part:?}");
}

fn a_connection_ends_with_four_segments_and_the_first_closer_enters_time_wait() {
    let story = DemoRun::of("four-way");
    let active = |first| [first, "established", "fin-wait-1", "fin-wait-2", "time-wait"];
    let passive = |first| [first, "established", "close-wait", "last-ack", "gone"];
    let part = "The server closes first";
    passed(&story, part, &passive("syn-sent"), &active("syn-recv"));
    sent(&story, part, &["server FIN ACK", "client ACK", "client FIN ACK", "server ACK"]);
    let part = "The client closes first";
    passed(&story, part, &active("syn-sent"), &passive("syn-recv"));
    sent(&story, part, &["client FIN ACK", "server ACK", "server FIN ACK", "client ACK"]);

    // Sequence numbers count from each side's SYN. A FIN takes one number.
    let numbers: Vec<(u64, Option<u64>)> =
        story.carried(part).iter().map(|e| (number(&e["segment"], "seq"), e["segment"]["ack"].as_u64())).collect();
    let expected = [(0, None), (0, Some(1)), (1, Some(1)), (1, Some(1)), (1, Some(2)), (1, Some(2)), (2, Some(2))];
    assert_eq!(numbers, expected);
    let last = story.carried(part).last().map(|event| number(event, "timer_ms"));
    assert!(last.is_some_and(|timer| (40_000..=60_000).contains(&timer)), "{last:?}");
}

fn both_ends_enter_time_wait_if_they_close_at_the_same_time() {
    let story = DemoRun::of("four-way");
    let part = "Both close at the same time";
    let states: Vec<Value> = story.carried(part)[3..].iter().map(|event| event["states"].clone()).collect();
    // The states of each segment: the state of the sender while the segment was under way, and the state of the receiver after the
    // segment had arrived.
    let both = |client: &str, server: &str| json!({ "client": client, "server": server });
    let expected = [
        both("fin-wait-1", "closing"),
        both("closing", "fin-wait-1"),
        both("closing", "time-wait"),
        both("time-wait", "closing"),
    ];
    assert_eq!(states, expected);
    for side in ["client", "server"] {
        let check =
            story.checks.iter().find(|check| text(check, "part") == part && text(check, "what").ends_with(side));
        let observed = text(check.expect("a result"), "observed");
        assert!(observed.ends_with("established, fin-wait-1, closing, time-wait"), "{observed}");
    }
    sent(&story, part, &["client FIN ACK", "server FIN ACK", "client ACK", "server ACK"]);
}

fn one_direction_can_end_while_the_other_stays_open() {
    let story = DemoRun::of("four-way");
    let part = "Half-close";
    passed(
        &story,
        part,
        &["syn-sent", "established", "fin-wait-1", "fin-wait-2", "time-wait"],
        &["syn-recv", "established", "close-wait", "last-ack", "gone"],
    );
    let segments = ["client FIN ACK", "server ACK", "server PSH ACK", "client ACK", "server FIN ACK", "client ACK"];
    sent(&story, part, &segments);
    assert_eq!(story.read(part), "more", "the client reads after it has sent a FIN");
}

fn a_reset_leaves_no_time_wait() {
    let story = DemoRun::of("four-way");
    let part = "A reset";
    passed(&story, part, &["syn-sent", "established", "gone"], &["syn-recv", "established", "gone"]);
    sent(&story, part, &["server RST ACK"]);
    assert_eq!(story.errnos(part), ["ECONNRESET"]);
}

fn only_time_wait_recovers_from_a_lost_last_ack() {
    let story = DemoRun::of("lost-ack");
    let to_last_ack = ["server FIN ACK", "client ACK", "client FIN ACK"];
    let part = "The last ACK is lost, with TIME_WAIT";
    sent(&story, part, &[to_last_ack.as_slice(), &["client FIN ACK", "server ACK"]].concat());
    assert_eq!(story.lost(part), ["server ACK", "client FIN ACK", "client FIN ACK"]);
    let look = story.only_event(part, "look");
    let again = &story.carried(part)[6];
    assert_eq!((text(&look["states"], "client"), text(&look["states"], "server")), ("last-ack", "time-wait"));
    // Since the bucket was made, two retransmission timers of at least 200 ms each have run out.
    assert!(number(look, "timer_ms") <= 59_700, "{look}");
    assert!(number(again, "timer_ms") > number(look, "timer_ms"), "the timer restarts: {look} {again}");
    assert_eq!(story.errnos(part), [""; 0]);

    let part = "The last ACK is lost, without TIME_WAIT";
    sent(&story, part, &[to_last_ack.as_slice(), &["client FIN ACK", "server RST"]].concat());
    assert_eq!(story.lost(part), ["server ACK"]);
    assert_eq!(story.errnos(part), ["ECONNRESET"], "a connection that ended well looks broken");
}

fn an_old_segment_reaches_a_new_connection_only_without_time_wait() {
    let story = DemoRun::of("stale-segment");
    let part = "The old data meets TIME_WAIT";
    let late = story.only_event(part, "late");
    assert_eq!((number(&late["segment"], "raw_seq"), text(&late["segment"], "data")), (1001, "old-bytes!"));
    assert_eq!(late["states"], json!({ "client": null, "server": "time-wait" }));
    assert_eq!(story.lost(part), ["server ACK"], "the response of the bucket");
    assert_eq!(story.read(part), "old-bytes!", "read once, before the connection ended");

    let part = "The old data meets a new connection";
    let late = story.only_event(part, "late");
    assert_eq!(late["states"], json!({ "client": "established", "server": "established" }));
    let syns: Vec<u64> = story
        .carried(part)
        .iter()
        .filter(|event| event["segment"]["flags"] == json!(["SYN"]))
        .map(|event| number(&event["segment"], "raw_seq"))
        .collect();
    // The server's sequence numbers are not always suitable, so the lab may make several attempts. The last two SYNs belong to the
    // attempt that succeeded.
    assert_eq!(
        syns[syns.len() - 2..],
        [1000, 990],
        "the new connection has the lower sequence number, as after a wrap"
    );
    assert!(
        story.read(part).ends_with("old-bytes!new-bytes.old-bytes!"),
        "both connections' reads, one after the other"
    );
    let no_time_wait = |side| !story.states(part, side).iter().any(|state| state == "time-wait");
    assert!(no_time_wait("client") && no_time_wait("server"), "there is no TIME_WAIT");
    let last = story.events.iter().rfind(|event| event["event"] == "call").expect("a call");
    assert_eq!((text(last, "what"), text(last, "data")), ("read()", "new-bytes.old-bytes!"));
}

fn a_reset_ends_time_wait_unless_tcp_rfc1337_is_set() {
    let story = DemoRun::of("assassination");
    for (part, left) in [("tcp_rfc1337 = 0, the default", json!(null)), ("tcp_rfc1337 = 1", json!("time-wait"))] {
        let carried = story.carried(part);
        let reset = carried.last().expect("segments");
        assert_eq!((text(&reset["segment"], "from"), &reset["segment"]["flags"]), ("client", &json!(["RST"])));
        assert_eq!(reset["states"], json!({ "client": null, "server": left }), "{part}");
    }
}

fn the_reuse_scenario_tests_sixteen_combinations() {
    let story = DemoRun::of("reuse");
    let sets = ["no option", "SO_REUSEADDR", "SO_REUSEPORT", "SO_REUSEADDR and SO_REUSEPORT"];
    // The old and the new socket must have an option in common (socket(7)). Each row is an old socket, each digit is a new socket, and 1
    // means that bind() works.
    let expected = ["0000", "0101", "0011", "0111"];
    for (old, cells) in sets.into_iter().zip(expected) {
        for (new, cell) in sets.into_iter().zip(cells.chars()) {
            let checks: Vec<_> =
                story.checks.iter().filter(|c| text(c, "part") == old && text(c, "what") == new).collect();
            let [check] = checks.as_slice() else { panic!("one cell for {old}, {new}: {checks:?}") };
            assert_eq!(text(check, "observed"), if cell == '1' { "ok" } else { "EADDRINUSE" }, "{old}, {new}");
        }
        let binds = story.events.iter().filter(|e| text(e, "part") == old && text(e, "actor") == "server").count();
        assert_eq!(binds, 4 + 3, "four binds, and three segments of the server, after {old}");
    }
    assert_eq!(story.checks.len(), 16);
}

fn one_destination_uses_up_eight_ports_and_connect_works_again_with_tcp_tw_reuse() {
    let story = DemoRun::of("exhaustion");
    let part = "Eight ports, one destination";
    let connects: Vec<&Value> = story
        .events
        .iter()
        .filter(|event| text(event, "part") == part && event["event"] == "call")
        .filter(|event| text(event, "what") == "connect() to 127.0.0.1:8080")
        .collect();
    let ports: BTreeSet<&str> = connects[..8].iter().map(|event| text(event, "data")).collect();
    let expected: BTreeSet<String> = (40_000..=40_007).map(|port| format!("port {port}")).collect();
    assert_eq!(ports, expected.iter().map(String::as_str).collect(), "eight ports, each once");
    assert_eq!((connects.len(), &connects[8]["errno"]), (9, &json!("EADDRNOTAVAIL")));
    for other in ["connect() to 127.0.0.1:8081", "connect() to 127.0.0.2:8080"] {
        assert_eq!(story.only_call(part, other)["errno"], json!(null), "{other}");
    }
    assert_eq!(story.only_call(part, "bind(0)")["errno"], "EADDRINUSE");

    let part = "How long until connect() works again";
    let tried: Vec<_> = story.calls(part, "connect() to 127.0.0.1:8080").iter().map(|e| e["errno"].clone()).collect();
    let (failed, worked) = (json!("EADDRNOTAVAIL"), json!(null));
    assert_eq!(tried[tried.len() - 3..], [worked.clone(), failed, worked], "tcp_tw_reuse = 1, 0, 2");
}

fn bind_begins_with_odd_ports_and_connect_with_even_ports() {
    let story = DemoRun::of("port-zero");
    let ports = |part: &str, call: &str| -> Vec<u16> {
        text(story.only_call(part, call), "data").split(' ').map(|port| port.parse().expect("a port")).collect()
    };
    for (part, call, first, errno) in [
        ("bind(0) until sixteen ports are used up", "bind(0)", 1, "EADDRINUSE"),
        ("connect() until sixteen ports are used up", "connect()", 0, "EADDRNOTAVAIL"),
    ] {
        let ports = ports(part, &format!("{call}, 16 times"));
        assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), 16, "{ports:?}");
        assert!(ports[..8].iter().all(|port| port % 2 == first), "{call} begins with {ports:?}");
        assert!(ports[8..].iter().all(|port| port % 2 != first), "{call} goes on with {ports:?}");
        assert_eq!(story.only_call(part, &format!("{call} once more"))["errno"], errno);
    }
    let part = "Reserved ports";
    let chosen = ports(part, "bind(0), 12 times");
    assert!(chosen.iter().all(|port| !(40_002..=40_005).contains(port)), "{chosen:?}");
    assert_eq!(story.only_call(part, "bind(40002)")["errno"], json!(null));
}

fn time_wait_lasts_at_least_sixty_seconds_with_tcp_fin_timeout_60_and_5() {
    let mut child = command(["demo", "length", "-o", "ndjson"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("twtool starts");
    let mut lines = experiment::Lines::of(&mut child);
    lines.until(|event| event["what"] == "close() on port 8081, before the client");
    // The test also reads the buckets itself, from /proc/net/tcp of the namespace in which `twtool demo` runs.
    let buckets = experiment::time_wait_of(child.id());
    assert_eq!(buckets, [8080, 8081].into(), "both ports are in TIME_WAIT there");
    lines.rest();
    let status = child.wait().expect("it ends");
    assert!(status.success(), "{status}: {:#?}", lines.events);
    let gone = |port: u64| {
        let what = format!("port {port}: the bucket is gone");
        let born = lines.find("call", &format!("close() on port {port}, before the client"));
        number(lines.find("call", &what), "t_ms") - number(born, "t_ms")
    };
    for port in [8080, 8081] {
        // TIME_WAIT lasts 60 s; 100 ms are a tolerance.
        assert!(gone(port) >= 59_900, "port {port}: {} ms", gone(port));
    }
    let blocked = lines.events.iter().filter(|event| event["errno"] == "EADDRINUSE").count();
    let due = lines.events.iter().filter(|e| e["what"] == "port 8080: the timer is at 0").count();
    assert_eq!(blocked, due, "bind() fails while the bucket exists, also after its timer has reached 0");
    assert_eq!(lines.find("call", "bind() of port 8080")["event"], "call");
}

fn json_and_ndjson_have_the_same_events() {
    const KEYS: [&str; 13] = [
        "scenario", "part", "step", "t_ms", "actor", "event", "what", "segment", "states", "timer_ms", "errno", "data",
        "note",
    ];
    for scenario in ["lost-ack", "port-zero"] {
        let run = demo(scenario, &["--json"]).ok();
        let payload = ["scenario", "title", "events", "checks", "agrees"];
        assert_eq!(Keys::of(&run.stdout), [DOCUMENT_KEYS.as_slice(), &payload].concat());
        let document = run.json();
        assert_eq!((&document["schema"], &document["netns"]), (&json!("twtool.demo/1"), &json!(null)));
        assert_eq!((&document["agrees"], &document["complete"]), (&json!(true), &json!(true)));
        for check in run.records("checks") {
            assert_eq!(check["agrees"], json!(true), "{check}");
        }
        let stream = demo(scenario, &["-o", "ndjson"]).ok();
        let mut steps = vec![];
        for line in stream.stdout.lines() {
            let event: Value = serde_json::from_str(line).expect("JSON");
            steps.push((number(&event, "step"), number(&event, "t_ms")));
            if event["event"] == "check" {
                assert_eq!(event["agrees"], json!(true), "{event}");
            } else {
                assert_eq!(Keys::of(line), KEYS);
            }
        }
        assert!(steps.is_sorted_by_key(|(step, _)| step), "{steps:?}");
        let shape = |events: &[Value]| -> Vec<(String, String, Value)> {
            let part = |e: &Value| (text(e, "part").to_owned(), text(e, "event").to_owned(), e["what"].clone());
            // Retransmissions and combined ACKs of a busy machine may differ between runs.
            let others = events.iter().filter(|e| e["event"] != "check" && e["segment"].is_null());
            others.map(part).collect()
        };
        assert_eq!(shape(&run.records("events")), shape(&stream.ndjson()), "the same events");
    }
}

fn unexpected_behaviour_of_the_kernel_is_reported() {
    // With this filter, setsockopt(SO_REUSEADDR) returns 0 and has no effect.
    refuse(libc::SYS_setsockopt, Some((2, SeccompCmpOp::Eq, 2)), 0);
    let run = demo("reuse", &["--json"]).code(1).says("report");
    assert_eq!(run.json()["agrees"], json!(false));
    let wrong = run.records("checks").iter().filter(|check| check["agrees"] == json!(false)).count();
    assert_eq!(wrong, 3, "the combinations that work only with SO_REUSEADDR{run}");
    demo("reuse", &[]).code(1).prints("differently than expected in 3 of 16 points");
}

fn scenarios_that_need_no_veth_run_without_it() {
    // The request that creates the veth pair is the only request to rtnetlink of 100 bytes or more.
    refuse(libc::SYS_sendto, Some((2, SeccompCmpOp::Ge, 100)), libc::EOPNOTSUPP);
    for scenario in ["four-way", "lost-ack", "stale-segment", "assassination"] {
        let run = demo(scenario, &["--json"]).refused("veth").says("hint:").says("modprobe veth");
        for other in ["reuse", "exhaustion", "length", "port-zero"] {
            assert!(run.stderr.contains(other), "{other} needs none{run}");
        }
    }
    DemoRun::of("reuse");
    DemoRun::of("port-zero");
}

fn an_error_explains_how_to_allow_forbidden_namespaces() {
    refuse(libc::SYS_unshare, None, libc::EPERM);
    for scenario in SCENARIOS {
        demo(scenario, &["--json"]).refused("namespace").says("hint:").says("user.max_user_namespaces");
    }
    // The list of scenarios needs no namespace.
    demo_list();
}

fn an_error_explains_where_a_capture_can_be_written() {
    // twtool makes the capture as a file without a name.
    let flag = u64::from(libc::O_TMPFILE.cast_unsigned());
    refuse(libc::SYS_openat, Some((2, SeccompCmpOp::MaskedEq(flag), flag)), libc::EACCES);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("x.pcap");
    let run = demo("reuse", &["--pcap", path.to_str().expect("UTF-8")]).refused("x.pcap' cannot be written");
    let advice = "if you used sudo, run demo without it; otherwise choose a directory that you can write to";
    run.says("Permission denied").says(advice);
}

fn no_privilege_is_needed() {
    drop_capabilities_but_setfcap();
    for scenario in SCENARIOS.iter().filter(|scenario| **scenario != "length") {
        DemoRun::of(scenario);
    }
}

#[track_caller]
fn demo_list() -> Run {
    let run = twtool(["demo"]).ok();
    let names: Vec<&str> = run.stdout.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(names, SCENARIOS);
    run
}

fn the_list_has_one_line_for_each_scenario() {
    let run = demo_list();
    assert!(run.stdout.lines().all(|line| line.len() <= 80), "{run}");
    let names = |records: Vec<Value>| records.iter().map(|r| text(r, "scenario").to_owned()).collect::<Vec<_>>();
    assert_eq!(names(twtool(["demo", "--json"]).ok().records("scenarios")), SCENARIOS);
    assert_eq!(names(twtool(["demo", "-o", "ndjson"]).ok().ndjson()), SCENARIOS);
}

fn an_unknown_scenario_is_refused_with_the_existing_ones() {
    let run = twtool(["demo", "five-way"]).refused("five-way");
    for scenario in SCENARIOS {
        assert!(run.stderr.contains(scenario), "{scenario} is allowed{run}");
    }
}

fn options_that_cannot_be_combined_are_refused() {
    for (args, word) in [
        (["demo", "reuse", "-o", "csv"].as_slice(), "csv"),
        (&["demo", "-o", "csv"], "csv"),
        (&["demo", "reuse", "-6"], "-6"),
        (&["demo", "reuse", "--step", "--json"], "--step"),
        (&["demo", "reuse", "--step", "-o", "ndjson"], "--step"),
        (&["demo", "--step"], "required"),
        (&["demo", "--pcap", "x.pcap"], "required"),
        (&["demo", "reuse", "--force"], "required"),
    ] {
        twtool(args).refused(word);
    }
}

fn steps_need_a_terminal() {
    twtool(["demo", "reuse", "--step"]).refused("--step").says("terminal");
}
