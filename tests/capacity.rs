//! `twtool capacity`: the records in every format, the order of the destinations, the exit codes and the messages.
//! tests/capacity_truth.rs compares the numbers with the kernel.

use serde_json::{Value, json};

use crate::support::commands::run;
use crate::support::outbound::{LOW, bound, buckets, connect, narrow_range, serve, set};
use crate::support::records::{DOCUMENT_KEYS, csv_field, number};
use crate::support::situations::addr;
use crate::support::twtool::{Keys, Run, twtool};
use crate::support::{addresses, kernel, suite};
use twtool::sys::sysctl;

suite! {
    pure: [
        bad_destinations_are_named_with_the_allowed_forms,
        bad_minimums_are_named_with_the_allowed_forms,
        addresses_that_no_connection_has_are_refused,
    ],
    netns: [
        a_document_has_the_documented_keys_in_order,
        every_format_has_the_same_records,
        the_destination_with_the_fewest_free_ports_comes_first,
        to_and_from_select_destinations,
        a_minimum_decides_the_exit_code,
        a_destination_without_a_route_is_an_error,
        the_page_shows_each_destination_and_names_each_reason_for_few_free_ports,
        advice_about_reserved_ports_comes_first_if_they_leave_few_ports,
        a_closed_pipe_is_no_failure,
        an_address_that_looks_like_an_address_and_port_gives_a_warning,
    ],
}

const KEYS: [&str; 17] = [
    "local_addr",
    "remote_addr",
    "remote_port",
    "pool",
    "established",
    "time_wait",
    "reusable",
    "reusable_within_1s",
    "other",
    "free",
    "uncertain",
    "closes_per_s",
    "closes_per_s_now",
    "sustainable_per_s",
    "exhausted_in_ms",
    "remote_service",
    "interface",
];

/// Three destinations, and a range of 16 ports. Two of the ports are reserved, and one is bound. The first destination has 10 buckets
/// and 2 connections, the second 5 connections, and the third 1 connection.
struct Mixed {
    _kept: Box<dyn std::any::Any>,
}

impl Mixed {
    /// Skips the test on a kernel without IP_LOCAL_PORT_RANGE, because the numbers of twtool are not exact there.
    fn make() -> Self {
        kernel::needs(kernel::has_port_range_option(), "IP_LOCAL_PORT_RANGE");
        narrow_range(16);
        let list = format!("8080,{LOW}-{}", LOW + 1);
        sysctl::write("ipv4.ip_local_reserved_ports", &list).expect("the namespace is ours");
        let idle = bound("127.0.0.9:40007");
        let servers = ["127.0.0.1:443", "127.0.0.1:444", "[::1]:443"].map(serve);
        buckets(10, "127.0.0.1", &servers[0]);
        let open =
            |count: usize, to| -> Vec<_> { (0..count).map(|_| connect(None, addr(to)).expect("connected")).collect() };
        let open = [open(2, "127.0.0.1:443"), open(5, "127.0.0.1:444"), open(1, "[::1]:443")];
        Self { _kept: Box::new((idle, servers, open)) }
    }
}

fn capacity(args: &[&str]) -> Run {
    twtool([&["capacity"], args].concat())
}

fn a_document_has_the_documented_keys_in_order() {
    let _mixed = Mixed::make();
    let run = capacity(&["--json"]).ok();
    let payload = [
        "source",
        "range",
        "reserved",
        "explicitly_bound",
        "uncertain",
        "pool",
        "reserved_ports",
        "explicitly_bound_ports",
        "time_wait_ms",
        "tcp_tw_reuse",
        "tcp_tw_reuse_delay_ms",
        "tcp_timestamps",
        "total",
        "below_min_free",
        "destinations",
        "verdict",
        "commands",
        "lasting",
        "advice",
    ];
    assert_eq!(Keys::of(&run.stdout), [DOCUMENT_KEYS.as_slice(), &payload].concat());
    assert!(Keys::of_records(&run.stdout).iter().all(|keys| keys == &KEYS), "{run}");
    let document = run.json();
    let of = |keys: &[&str]| keys.iter().map(|key| document[*key].clone()).collect::<Vec<_>>();
    assert_eq!(document["schema"], "twtool.capacity/1");
    assert_eq!(of(&["complete", "warnings", "source"]), [json!(true), json!([]), json!("sock_diag")]);
    assert_eq!(document["range"], json!({"low": LOW, "high": LOW + 15, "size": 16}));
    assert_eq!(of(&["reserved", "explicitly_bound", "uncertain", "pool"]), [2, 1, 0, 13].map(Value::from));
    assert_eq!(of(&["reserved_ports", "explicitly_bound_ports"]), ["40000-40001", "40007"].map(Value::from));
    assert_eq!(of(&["time_wait_ms", "tcp_tw_reuse", "tcp_tw_reuse_delay_ms"]), [60_000, 0, 1000].map(Value::from));
    assert_eq!(of(&["tcp_timestamps", "total", "below_min_free"]), [json!(true), json!(3), Value::Null]);

    let first = &document["destinations"][0];
    let of = |keys: &[&str]| keys.iter().map(|key| first[*key].clone()).collect::<Vec<_>>();
    assert_eq!(of(&["local_addr", "remote_addr", "remote_port"]), [json!("127.0.0.1"), json!("127.0.0.1"), json!(443)]);
    let counts = ["pool", "established", "time_wait", "reusable", "reusable_within_1s", "other", "free", "uncertain"];
    assert_eq!(of(&counts), [13, 2, 10, 0, 0, 0, 1, 0].map(Value::from));
    assert_eq!(first["closes_per_s"], json!(10.0 / 60.0), "10 in the last minute");
    assert_eq!(first["sustainable_per_s"], json!(13.0 / 60.0));
    assert_eq!(first["interface"], Value::Null);
    // `closes_per_s_now` covers at most the last 10 s. On a machine so slow that the closes are older, the rate is 0.
    let (rate, left) = (first["closes_per_s_now"].as_f64().expect("a rate"), first["exhausted_in_ms"].as_u64());
    assert_eq!(left.is_some(), rate > 0.0, "{first}");
    if let Some(left) = left {
        let left = f64::from(u32::try_from(left).expect("less than a minute"));
        assert!(
            (left - 1000.0 / rate).abs() <= 1.0,
            "one port is left, and no bucket ends before this port is used: {first}"
        );
    }
}

fn every_format_has_the_same_records() {
    let _mixed = Mixed::make();
    // Rates change from one run to the next.
    let stable = |key: &str| !key.starts_with("closes") && key != "exhausted_in_ms";
    let keep = |mut record: Value| {
        record.as_object_mut().expect("an object").retain(|key, _| stable(key));
        record
    };
    let records: Vec<Value> = capacity(&["--json"]).ok().records("destinations").into_iter().map(keep).collect();
    let ndjson = capacity(&["-o", "ndjson"]).ok();
    assert_eq!(ndjson.ndjson().into_iter().map(keep).collect::<Vec<_>>(), records);
    for line in ndjson.stdout.lines() {
        assert_eq!(Keys::of(line), KEYS);
    }
    let (header, rows) = capacity(&["-o", "csv"]).ok().csv();
    assert_eq!(header, KEYS);
    let fields = |record: &Value| -> Vec<String> {
        KEYS.iter().filter(|key| stable(key)).map(|key| csv_field(&record[*key])).collect()
    };
    let kept = |row: Vec<String>| -> Vec<String> {
        KEYS.iter().zip(row).filter(|(key, _)| stable(key)).map(|(_, field)| field).collect()
    };
    assert_eq!(rows.into_iter().map(kept).collect::<Vec<_>>(), records.iter().map(fields).collect::<Vec<_>>());
}

fn the_destination_with_the_fewest_free_ports_comes_first() {
    let _mixed = Mixed::make();
    let order = |args: &[&str]| -> Vec<(u64, u64)> {
        let run = capacity(&[&["--json"], args].concat()).ok();
        run.records("destinations").iter().map(|one| (number(one, "remote_port"), number(one, "free"))).collect()
    };
    assert_eq!(order(&[]), [(443, 1), (444, 8), (443, 12)]);
    assert_eq!(order(&["--top", "2"]), [(443, 1), (444, 8)]);
    assert_eq!(order(&["--top", "0"]), []);
    assert_eq!(order(&["-6"]), [(443, 12)]);
    assert_eq!(order(&["-4"]), [(443, 1), (444, 8)]);
    let run = capacity(&["--top", "1"]).ok();
    run.prints("the 1 most urgent of 3 destinations");
}

fn to_and_from_select_destinations() {
    addresses::add("10.0.0.1");
    let _mixed = Mixed::make();
    let found = |args: &[&str]| -> Vec<(String, u64)> {
        let run = capacity(&[&["--json"], args].concat()).ok();
        let of = |one: &Value| (one["local_addr"].as_str().expect("an address").to_owned(), number(one, "free"));
        run.records("destinations").iter().map(of).collect()
    };
    let at = |addr: &str, free| (addr.to_owned(), free);
    assert_eq!(found(&["--to", "127.0.0.1"]), [at("127.0.0.1", 1), at("127.0.0.1", 8)]);
    assert_eq!(found(&["--to", "::ffff:127.0.0.1"]), [at("127.0.0.1", 1), at("127.0.0.1", 8)]);
    assert_eq!(found(&["--to", "::1"]), [at("::1", 12)]);
    assert_eq!(found(&["--to", "[::1]:443"]), [at("::1", 12)]);
    assert_eq!(found(&["--to", "127.0.0.1:444"]), [at("127.0.0.1", 8)]);
    assert_eq!(found(&["--from", "::1"]), [at("::1", 12)]);
    assert_eq!(found(&["--from", "127.0.0.2"]), []);
    assert_eq!(found(&["--to", "127.0.0.1:9"]), [at("127.0.0.1", 13)], "no socket uses that destination");
    assert_eq!(found(&["--to", "127.0.0.1:443", "--from", "10.0.0.1"]), [at("10.0.0.1", 13)]);
    assert_eq!(found(&["--to", "127.0.0.9"]), []);
    capacity(&["--to", "127.0.0.9"]).ok().prints("no outbound connections");
}

fn a_minimum_decides_the_exit_code() {
    let _mixed = Mixed::make();
    for (args, code, below) in [
        (["--min-free", "1"].as_slice(), 0, 0),
        (&["--min-free", "2"], 1, 1),
        (&["--min-free", "9"], 1, 2),
        (&["--min-free", "7%"], 0, 0),
        (&["--min-free", "8%"], 1, 1),
        (&["--min-free", "100%"], 1, 3),
        (&["--min-free", "0"], 0, 0),
        // All selected destinations count, whether they are shown or not. Other destinations do not count.
        (&["--min-free", "9", "--top", "1"], 1, 2),
        (&["--min-free", "9", "--to", "::1"], 0, 0),
        (&["--min-free", "9", "--to", "127.0.0.1:444"], 1, 1),
        (&["--min-free", "14", "--to", "127.0.0.1:9"], 1, 1),
    ] {
        let run = capacity(&[&["--json"], args].concat()).code(code);
        assert_eq!(run.json()["below_min_free"], json!(below), "{run}");
        assert_eq!(capacity(args).code(code).stderr, "");
    }
}

fn a_destination_without_a_route_is_an_error() {
    addresses::add("10.0.0.1");
    capacity(&["--to", "192.0.2.1:443"]).refused("192.0.2.1:443").says("unreachable");
    capacity(&["--to", "10.0.0.1:443", "--from", "192.0.2.9"]).refused("10.0.0.1:443").says("Cannot assign");
    // If --to has a port, twtool adds a row even if no connection exists, and so needs a route. Without a port, no row is added.
    assert_eq!(capacity(&["--to", "192.0.2.1", "--json"]).code(0).records("destinations"), [] as [Value; 0]);
}

fn advice_about_reserved_ports_comes_first_if_they_leave_few_ports() {
    use crate::support::settings::{ports, read, reserve};
    narrow_range(16);
    let server = serve("127.0.0.1:443");
    let to = server.local_addr().expect("an address");
    let works = || std::net::TcpStream::connect(to).is_ok();
    for count in [16, 15, 2] {
        let list: Vec<u16> = (LOW..LOW + count).collect();
        reserve(&list);
        assert_eq!(works(), count < 16);
        let document = capacity(&["--to", "127.0.0.1:443", "--json"]).code(0).json();
        let first = document["commands"][0]["command"].as_str().unwrap_or_default();
        let shows = first.starts_with("dd if=/proc/sys/net/ipv4/ip_local_reserved_ports ");
        assert_eq!(shows, count > 2, "{document}");
        if !shows {
            assert_eq!(document["commands"], json!([]), "{document}");
            continue;
        }
        assert_eq!(ports(run(first).code(0).stdout.trim()), list);
        let advice = document["advice"][0].as_str().unwrap_or_default();
        assert!(
            advice.starts_with(&format!("{count} ports of the range are in net.ipv4.ip_local_reserved_ports")),
            "{document}"
        );
        assert_eq!(document.to_string().matches("ports of the range are in net").count(), 1, "{document}");
        for step in document["commands"].as_array().expect("commands") {
            let command = step["command"].as_str().expect("a command");
            assert!(!command.contains("ip_local_reserved_ports="), "no command replaces the list: {command}");
        }
        let next = twtool(["connect-test", "127.0.0.1:443", "--json"]).code(1).json();
        assert_eq!(next["next"][1]["command"], first);
        assert_eq!(ports(&read("ipv4.ip_local_reserved_ports")), list, "the list is as it was");
    }
}

fn the_page_shows_each_destination_and_names_each_reason_for_few_free_ports() {
    let _mixed = Mixed::make();
    let page = capacity(&[]).ok();
    let lines: Vec<Vec<&str>> = page.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        page.stdout.lines().next(),
        Some("ports 40000-40015 (16), 2 reserved, 1 explicitly bound: 13 for each local address and destination"),
        "{page}"
    );
    let line = |free: &str| {
        let found = lines.iter().find(|line| line.first() == Some(&"127.0.0.1") && line.contains(&free));
        found.unwrap_or_else(|| panic!("no line with {free} free{page}")).join(" ")
    };
    assert!(line("8").contains("127.0.0.1:444") && line("8").ends_with("8 0.0 0.22 no closes"), "{page}");
    assert!(line("1").contains("127.0.0.1:443"), "{page}");
    // Fewer than a tenth of the ports are left, so the page names each reason: TIME_WAIT, reserved ports, a bound port, and the
    // narrow range.
    page.prints("From 127.0.0.1 to 127.0.0.1:443, 1 of 13 ports is left")
        .prints("10 ports are in TIME_WAIT")
        .prints("2 ports of the range are in net.ipv4.ip_local_reserved_ports")
        .prints("(40007)")
        .prints("net.ipv4.ip_local_port_range is 40000-40015")
        .prints("net.ipv4.tcp_tw_reuse is 0");
    set("ipv4.tcp_tw_reuse", 1);
    kernel::needs(kernel::has_exact_ages(), "tcp_tw_reuse_delay");
    set("ipv4.tcp_tw_reuse_delay", 1);
    let page = capacity(&[]).ok().prints("free includes reusable buckets, which connect() can take over");
    assert!(!page.stdout.contains("tcp_tw_reuse is"), "{page}");
}

fn a_closed_pipe_is_no_failure() {
    let _mixed = Mixed::make();
    let mut command = crate::support::twtool::command(["capacity", "--json"]);
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().expect("started");
    drop(child.stdout.take());
    assert_eq!(child.wait().expect("ended").code(), Some(0));
}

fn refused(args: &[&str], word: &str, allowed: &str) {
    let run = capacity(args).refused(word);
    assert!(run.stderr.contains(allowed), "expected {allowed:?} on stderr{run}");
}

fn an_address_that_looks_like_an_address_and_port_gives_a_warning() {
    capacity(&["--to", "::1:80"]).code(0).says("[::1]:80");
    for plain in ["::1", "2001:db8::1", "10.0.0.1"] {
        let run = capacity(&["--to", plain]).code(0);
        assert!(!run.stderr.contains("is an address without a port"), "{run}");
    }
}

fn bad_destinations_are_named_with_the_allowed_forms() {
    for bad in ["localhost:443", "1.2.3:443", "1.2.3.256", "10.0.0.0/8", "::g", "fe80::1%"] {
        refused(&["--to", bad], bad.trim_start_matches("fe80::1").trim_end_matches(":443"), "IPv6");
    }
    for bad in ["127.0.0.1:65536", "127.0.0.1:80-", "[::1]:httpz", "127.0.0.1:"] {
        let port = bad.rsplit(':').next().expect("a port");
        refused(&["--to", bad], port, "0-65535");
    }
    for bad in ["127.0.0.1:0", "127.0.0.1:80-90"] {
        refused(&["--to", bad], bad.rsplit(':').next().expect("a port"), "1-65535");
    }
    refused(&["--from", "127.0.0.1:80"], "127.0.0.1:80", "IPv6");
    refused(&["--to", "fe80::1%nosuch"], "nosuch", "lo");
    refused(&["--top", "many"], "many", "invalid");
}

fn bad_minimums_are_named_with_the_allowed_forms() {
    for bad in ["few", "101%", "-1%", "%", "1.5", "65537", "10 %", "+5", "99999999999999999999"] {
        refused(&[&format!("--min-free={bad}")], bad, "0%-100%");
    }
}

fn addresses_that_no_connection_has_are_refused() {
    for bad in ["0.0.0.0", "::", "224.0.0.1", "ff02::1"] {
        refused(&["--to", bad], bad, "single address");
        refused(&["--from", bad], bad, "single address");
    }
    refused(&["--to", "127.0.0.1", "--from", "::1"], "::1", "other IP version");
    refused(&["--to", "127.0.0.1:443", "-6"], "127.0.0.1", "-6");
    refused(&["--from", "::1", "-4"], "::1", "-4");
}
