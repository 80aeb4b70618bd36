//! twtool reads sockets from /proc/net/tcp and tcp6 with --source procfs, or if sock_diag is refused. The rows are the same as from
//! sock_diag, except for the values that procfs does not have.

use serde_json::Value;

use crate::support::limits::refuse_netlink;
use crate::support::procfs::UNIT_MS;
use crate::support::records::{LIST_KEYS, identity, number, text};
use crate::support::situations::{bucket_of_server, connect_from, listen};
use crate::support::suite;
use crate::support::twtool::{Keys, Run, twtool};
use crate::support::varied::{BUCKETS, FIN_WAIT_2_BUCKETS, Varied};

suite! {
    pure: [],
    netns: [
        both_sources_give_the_same_rows,
        both_sources_select_the_same_rows,
        a_direction_that_procfs_does_not_show_is_reported,
        filters_on_facts_that_procfs_does_not_show_are_refused,
        every_format_has_the_same_rows_from_procfs,
        without_sock_diag_procfs_is_read_with_a_warning,
        without_sock_diag_accepted_connections_do_not_count_for_a_destination,
        port_and_bind_test_work_without_sock_diag,
        a_source_cannot_be_chosen_for_a_recording,
    ],
}

/// The keys of the values that procfs does not contain.
const UNKNOWN: [&str; 3] = ["interface", "mark", "cookie"];

/// The rows of `twtool list` from this source, sorted by identity.
#[track_caller]
fn rows(source: &str, more: &[&str]) -> Vec<Value> {
    let run = twtool(["list", "--json", "--source", source].iter().chain(more)).code(0);
    let document = run.json();
    assert_eq!(document["source"], source, "{run}");
    assert_eq!(document["complete"], true, "{run}");
    // procfs does not report whether a listener on [::] accepts IPv4.
    let warnings = document["warnings"].as_array().expect("an array");
    assert!(warnings.iter().all(|warning| source == "procfs" && text_of(warning).contains("IPV6_V6ONLY")), "{run}");
    let mut rows = run.records("sockets");
    rows.sort_by_cached_key(identity);
    rows
}

fn both_sources_give_the_same_rows() {
    let varied = Varied::make();
    let before = rows("sock_diag", &["--fin-wait-2"]);
    let from_procfs = rows("procfs", &["--fin-wait-2"]);
    let after = rows("sock_diag", &["--fin-wait-2"]);
    assert_eq!(from_procfs.len(), BUCKETS.len() + FIN_WAIT_2_BUCKETS.len());
    assert_eq!((before.len(), after.len()), (from_procfs.len(), from_procfs.len()));
    for ((before, row), after) in before.iter().zip(&from_procfs).zip(&after) {
        for key in LIST_KEYS {
            if UNKNOWN.contains(&key) {
                assert!(row[key].is_null(), "procfs does not know {key}: {row}");
            } else if key == "expires_ms" {
                let (earliest, latest) = (number(after, key), number(before, key));
                // procfs rounds down to its unit.
                let fits = number(row, key) <= latest + UNIT_MS && number(row, key) + UNIT_MS >= earliest;
                assert!(fits, "{earliest}..={latest} ms by sock_diag: {row}");
                assert!(number(row, key).is_multiple_of(UNIT_MS), "{row}");
            } else if key == "direction" && row["family"] == "ipv4-mapped" {
                // The listener is on [::].
                assert!(row[key] == "unknown" || row[key] == before[key], "{row}");
            } else {
                assert_eq!(row[key], before[key], "{key} of {row}");
            }
        }
    }
    varied.end();
}

fn text_of(warning: &Value) -> &str {
    warning.as_str().expect("text")
}

fn a_direction_that_procfs_does_not_show_is_reported() {
    // An IPv4 server left the bucket and ended. Now a server on [::] listens on the same port.
    bucket_of_server(&listen("127.0.0.1:8080"), "127.0.0.1:8080");
    let _dual = listen("[::]:8080");
    let list = |source: &str, args: &[&str]| twtool(["list", "--source", source].iter().chain(args));
    assert_eq!(list("sock_diag", &["--json"]).ok().records("sockets")[0]["direction"], "inbound");
    let run = list("procfs", &["--json"]).code(0);
    assert_eq!(run.records("sockets")[0]["direction"], "unknown");
    assert!(text_of(&run.json()["warnings"][0]).contains("IPV6_V6ONLY"), "{run}");
    for args in [["-o", "table"].as_slice(), &["-o", "ndjson"], &["-o", "csv"]] {
        list("procfs", args).code(0).says("IPV6_V6ONLY");
    }
    // An answer that depends on that direction would be wrong.
    for args in [["--direction", "inbound", "--count"], ["--direction", "unknown", "-q"]] {
        list("procfs", &args).refused("IPV6_V6ONLY");
    }
    let run = list("procfs", &["--direction", "inbound", "--json"]).code(2);
    assert_eq!(run.json()["complete"], false, "{run}");
    // -6 leaves out the IPv4 bucket with the unknown direction, so the answer is complete.
    let run = list("procfs", &["--direction", "inbound", "-6", "--count"]).ok();
    assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("0\n", ""));
}

fn both_sources_select_the_same_rows() {
    let varied = Varied::make();
    let selected = |source: &str, args: &[&str]| -> Vec<_> { rows(source, args).iter().map(identity).collect() };
    for args in [
        ["sport = :443"].as_slice(),
        &["src 10.0.0.0/8 and not dport = :40001"],
        &["src [2001:db8::]/32 or mapped"],
        &["autobound"],
        &["expires > 500ms and class = dynamic"],
        &["direction = inbound", "-6"],
        &["direction = outbound", "-6"],
        &["state = fin-wait-2"],
        &["-6"],
        &["-4", "--fin-wait-2", "--port", "8080"],
        &["--limit", "0"],
    ] {
        let found = selected("procfs", args);
        assert_eq!(found, selected("sock_diag", args), "{args:?}");
        assert!(found.len() < BUCKETS.len(), "{args:?} must not select every row");
    }
    for args in [["-q", "sport = :443"], ["-q", "sport = :444"], ["--count", "sport = :443"], ["--count", "-6"]] {
        let [diag, proc] =
            ["sock_diag", "procfs"].map(|source| twtool(["list", "--source", source].iter().chain(&args)));
        assert_eq!((diag.code, &diag.stdout, &diag.stderr), (proc.code, &proc.stdout, &proc.stderr), "{args:?}");
    }
    varied.end();
}

fn filters_on_facts_that_procfs_does_not_show_are_refused() {
    let varied = Varied::make();
    for expression in ["dev = lo", "dev != lo", "dev = 0", "fwmark = 1", "not fwmark = 1"] {
        let word = if expression.contains("dev") { "dev" } else { "fwmark" };
        for args in [["-o", "table"].as_slice(), &["--json"], &["-o", "ndjson"], &["-o", "csv"], &["--count"], &["-q"]]
        {
            twtool(["list", "--source", "procfs", expression].iter().chain(args)).refused(word);
        }
    }
    let partly = ["list", "--source", "procfs", "dev = lo or sport = :443"];
    for args in [["-o", "table"].as_slice(), &["--json"], &["--count"]] {
        twtool(partly.iter().chain(args)).refused("dev");
    }
    twtool(partly.iter().chain(&["-o", "csv"])).code(2).says("dev");
    varied.end();
}

fn every_format_has_the_same_rows_from_procfs() {
    let varied = Varied::make();
    let run = |args: &[&str]| twtool(["list", "--source", "procfs"].iter().chain(args)).code(0);
    let document = run(&["--json"]);
    assert_eq!(Keys::of_records(&document.stdout)[0], LIST_KEYS, "every key is there, also if its value is unknown");
    let sorted = |rows: Vec<Value>| {
        let mut rows: Vec<_> = rows.iter().map(identity).collect();
        rows.sort();
        rows
    };
    let expected = sorted(document.records("sockets"));
    assert_eq!(expected.len(), BUCKETS.len());
    assert_eq!(sorted(run(&["-o", "ndjson"]).ndjson()), expected);
    let (header, csv) = run(&["-o", "csv"]).csv();
    assert_eq!(header, LIST_KEYS);
    assert_eq!(csv.len(), expected.len());
    assert!(csv.iter().all(|row| row[14..] == ["", "", ""]), "unknown is empty");
    let table = run(&[]);
    for (_, local, remote) in BUCKETS {
        let port = |end: &str| end.rsplit_once(':').expect("an end").1.to_owned();
        let has = |line: &str| line.contains(&port(local)) && line.contains(&port(remote));
        assert!(table.stdout.lines().any(has), "{local} {remote}{table}");
    }
    assert_eq!(run(&["--limit", "3", "-o", "ndjson"]).ndjson().len(), 3);
    varied.end();
}

#[track_caller]
fn warns_of_the_fallback(warning: &str, run: &Run) {
    for word in ["sock_diag", "Operation not permitted", "/proc/net/tcp"] {
        assert!(warning.contains(word), "expected {word:?} in the warning{run}");
    }
}

fn without_sock_diag_procfs_is_read_with_a_warning() {
    let varied = Varied::make();
    let mut known: Vec<_> = rows("sock_diag", &[]).iter().map(identity).collect();
    known.sort();
    refuse_netlink();
    for more in [[].as_slice(), &["--source", "auto"]] {
        let run = twtool(["list", "--json"].iter().chain(more)).code(0);
        let document = run.json();
        assert_eq!((&document["source"], &document["complete"]), (&"procfs".into(), &true.into()), "{run}");
        let warnings = document["warnings"].as_array().expect("an array");
        let said: Vec<String> = warnings.iter().map(|warning| format!("warning: {}\n", text_of(warning))).collect();
        let (directions, others): (Vec<&Value>, Vec<&Value>) =
            warnings.iter().partition(|warning| text_of(warning).contains("listener on ::"));
        assert_eq!((directions.len(), others.len()), (1, 1), "{run}");
        warns_of_the_fallback(text_of(others[0]), &run);
        assert_eq!(run.stderr, said.concat(), "the warnings of the document, each once{run}");
        let mut found: Vec<_> = run.records("sockets").iter().map(identity).collect();
        found.sort();
        assert_eq!(found, known);
        for row in run.records("sockets") {
            assert!(UNKNOWN.iter().all(|key| row[key].is_null()), "{row}");
        }
    }
    for (args, code) in [
        (["-o", "table"].as_slice(), 0),
        (&["-o", "ndjson"], 0),
        (&["-o", "csv"], 0),
        (&["--count"], 0),
        (&["-q"], 0),
        (&["-q", "sport = :1"], 1),
        (&["-o", "ndjson", "sport = :443 and expires < 2m"], 0),
    ] {
        let run = twtool(["list"].iter().chain(args)).code(code);
        let others = run.stderr.lines().filter(|line| !line.contains("listener on ::"));
        assert_eq!(others.count(), 1, "one warning{run}");
        warns_of_the_fallback(&run.stderr, &run);
    }
    assert_eq!(twtool(["list", "--count"]).stdout, format!("{}\n", BUCKETS.len()));
    // With --source procfs, twtool does not warn that it reads procfs.
    twtool(["list", "--source", "procfs", "--count"]).ok();
    for format in ["table", "json", "ndjson", "csv"] {
        twtool(["list", "--source", "sock_diag", "-o", format]).refused("sock_diag").says("hint:");
    }
    twtool(["list", "-q", "fwmark = 1"]).code(2);
    varied.end();
}

fn port_and_bind_test_work_without_sock_diag() {
    let server = listen("127.0.0.1:8080");
    bucket_of_server(&server, "127.0.0.1:8080");
    let gone = listen("127.0.0.1:8081");
    bucket_of_server(&gone, "127.0.0.1:8081");
    drop(gone);
    refuse_netlink();
    let run = twtool(["port", "8080", "8081", "8082", "--json"]).code(0);
    let facts: Vec<_> =
        run.records("ports").iter().map(|port| (port["listening"].clone(), number(port, "time_wait"))).collect();
    assert_eq!(facts, [(true.into(), 1), (false.into(), 1), (false.into(), 0)], "{run}");
    warns_of_the_fallback(run.json()["warnings"][0].as_str().expect("a warning"), &run);
    warns_of_the_fallback(&run.stderr, &run);

    for (port, verdict, cause, code, states) in [
        ("8080", "blocked", "listener", 1, ["listen", "time-wait"].as_slice()),
        ("8081", "reusable", "time-wait", 0, &["time-wait"]),
        ("8082", "free", "none", 0, &[]),
    ] {
        let run = twtool(["bind-test", port, "--addr", "127.0.0.1", "--json"]).code(code);
        let document = run.json();
        assert_eq!((text(&document, "verdict"), text(&document, "cause")), (verdict, cause), "{run}");
        let mut holders: Vec<_> =
            run.records("holders").iter().map(|holder| text(holder, "state").to_owned()).collect();
        holders.sort();
        assert_eq!(holders, states, "{run}");
        let warnings = document["warnings"].as_array().expect("an array");
        let said = warnings.iter().filter_map(Value::as_str).find(|warning| warning.contains("/proc/net/tcp"));
        warns_of_the_fallback(said.unwrap_or_default(), &run);
        assert_eq!(document["free_in_ms"].is_number(), verdict == "reusable", "{run}");
        twtool(["bind-test", port, "--addr", "127.0.0.1"]).code(code).says("/proc/net/tcp").prints(verdict);
    }
}

fn without_sock_diag_accepted_connections_do_not_count_for_a_destination() {
    let destinations = |run: &Run| -> Vec<(String, u64)> {
        let ends = |row: &Value| (text(row, "remote_addr").to_owned(), number(row, "remote_port"));
        run.records("destinations").iter().map(ends).collect()
    };
    // The ports of the servers are ephemeral, and the ports of the clients are not. The second server accepts IPv4 through ::.
    let servers = [
        ("127.0.0.1:40000", "127.0.0.1:40000", "127.0.0.1:5000"),
        ("[::]:40001", "127.0.0.1:40001", "127.0.0.1:5001"),
        ("[::1]:40002", "[::1]:40002", "[::1]:5002"),
    ];
    let open: Vec<_> = servers
        .iter()
        .map(|(at, to, from)| {
            let server = listen(at);
            let connection = connect_from(&server, to, from);
            (server, connection)
        })
        .collect();
    let by_sock_diag = twtool(["capacity", "--json"]).code(0);
    assert_eq!(destinations(&by_sock_diag), [], "{by_sock_diag}");
    refuse_netlink();
    let run = twtool(["capacity", "--json"]).code(2).says("1 connection of unknown direction").says("IPV6_V6ONLY");
    assert_eq!(destinations(&run), [], "{run}");
    assert_eq!(run.json()["complete"], false, "{run}");
    twtool(["doctor"]).code(2).says("1 connection of unknown direction");
    // Without a listener on ::, no direction is unknown.
    drop(open);
    let server = listen("[::1]:443");
    let client = connect_from(&server, "[::1]:443", "[::1]:40003");
    let run = twtool(["capacity", "--json"]);
    assert_eq!(destinations(&run), [("::1".into(), 443)], "{run}");
    assert!(!run.stderr.contains("direction"), "{run}");
    drop(client);
}

fn a_source_cannot_be_chosen_for_a_recording() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("recording").into_os_string().into_string().expect("UTF-8");
    for source in ["auto", "sock_diag", "procfs"] {
        for how in ["--record", "--replay"] {
            twtool(["list", how, &file, "--source", source]).refused("--source");
        }
    }
    twtool(["list", "--record", &file]).ok();
    assert_eq!(twtool(["list", "--replay", &file, "--json"]).ok().json()["source"], "sock_diag");
    twtool(["list", "--source", "netlink"]).refused("netlink");
}
