//! Tests the flags of `twtool list` that select, sort and print rows. A filtered list must equal the rows of the unfiltered list for which
//! a predicate of the test is true.

use serde_json::Value;
use twtool::lab::ActiveCloser;
use twtool::sys::sysctl;

use crate::support::records::{LIST_KEYS, cookies, number, sorted, text};
use crate::support::situations::{Mixed, addr, bucket_of_server, connect, connect_from, half_closed, listen};
use crate::support::twtool::{Run, twtool};
use crate::support::{not_checked, procfs, services, suite};

suite! {
    pure: [],
    netns: [
        ports_are_numbers_and_ranges_on_either_side,
        ports_may_be_service_names,
        addresses_and_prefixes_select_an_end,
        families_depend_on_the_packets_on_the_wire,
        classes_depend_on_the_local_port,
        directions_select_rows,
        a_duration_selects_the_buckets_that_expire_sooner,
        different_flags_must_all_hold,
        rows_are_sorted_by_the_requested_key,
        json_and_table_are_sorted_by_remaining_time,
        a_limit_cuts_after_sorting,
        columns_appear_in_the_order_of_the_argument,
        a_header_can_be_left_out,
        a_count_prints_only_the_number,
        quiet_only_sets_the_exit_code,
    ],
}

fn list(args: &[&str]) -> Vec<Value> {
    twtool([&["list", "--json"], args].concat()).ok().records("sockets")
}

/// Asserts that the list with these flags has exactly the rows for which `passes` returns true, and that `passes` returns true for some
/// rows and false for others.
#[track_caller]
fn selects(flags: &[&str], passes: impl Fn(&Value) -> bool) {
    let all = list(&["--fin-wait-2"]);
    let expected: Vec<_> = all.iter().filter(|row| passes(row)).cloned().collect();
    assert!(
        !expected.is_empty() && expected.len() < all.len(),
        "{flags:?} must select some rows and not others: {}",
        expected.len()
    );
    has_exactly(flags, &expected);
}

#[track_caller]
fn selects_nothing(flags: &[&str]) {
    has_exactly(flags, &[]);
}

#[track_caller]
fn has_exactly(flags: &[&str], expected: &[Value]) {
    let run = |more: &[&str]| twtool([&["list", "--fin-wait-2"], flags, more].concat());
    let json = run(&["--json"]).ok();
    assert_eq!(sorted(cookies(&json.records("sockets"))), sorted(cookies(expected)), "{json}");
    let ndjson = run(&["-o", "ndjson"]).ok();
    assert_eq!(sorted(cookies(&ndjson.ndjson())), sorted(cookies(expected)), "{ndjson}");
    let count = run(&["--count"]).ok();
    assert_eq!(count.stdout, format!("{}\n", expected.len()), "{count}");
    let quiet = run(&["--quiet"]).code(i32::from(expected.is_empty()));
    assert!(quiet.stdout.is_empty() && quiet.stderr.is_empty(), "{quiet}");
}

fn ports_are_numbers_and_ranges_on_either_side() {
    let mixed = Mixed::make();
    let local = |row: &Value| number(row, "local_port");
    let remote = |row: &Value| number(row, "remote_port");
    selects(&["--local-port", "8080"], |row| local(row) == 8080);
    selects(&["--remote-port", "8080"], |row| remote(row) == 8080);
    selects(&["--port", "8080"], |row| local(row) == 8080 || remote(row) == 8080);
    selects(&["--local-port", "8080-8081"], |row| (8080..=8081).contains(&local(row)));
    selects(&["--remote-port", "1-10000"], |row| remote(row) <= 10000);
    selects(&["--port", "8081-8082"], |row| [local(row), remote(row)].iter().any(|p| (8081..=8082).contains(p)));
    selects(&["--local-port", "8080", "--local-port", "8082"], |row| [8080, 8082].contains(&local(row)));
    selects(&["--remote-port", "8080", "--remote-port", "8082-9000"], |row| {
        remote(row) == 8080 || (8082..=9000).contains(&remote(row))
    });
    selects(&["--port", "8080", "--port", "8081"], |row| {
        [local(row), remote(row)].iter().any(|p| [8080, 8081].contains(p))
    });
    selects_nothing(&["--port", "1"]);
    selects_nothing(&["--local-port", "0"]);
    mixed.end();
}

fn ports_may_be_service_names() {
    let Some(service) = services::tcp().into_iter().find(|s| (1..1024).contains(&s.port) && !s.aliases.is_empty())
    else {
        return not_checked("service names as port arguments: /etc/services has no TCP entry with an alias");
    };
    let server = listen(&format!("127.0.0.1:{}", service.port));
    bucket_of_server(&server, &format!("127.0.0.1:{}", service.port));
    let other = listen("127.0.0.1:50001");
    bucket_of_server(&other, "127.0.0.1:50001");
    for name in [&service.name, &service.aliases[0]] {
        selects(&["--local-port", name], |row| number(row, "local_port") == u64::from(service.port));
        selects(&["--port", name], |row| number(row, "local_port") == u64::from(service.port));
        selects_nothing(&["--remote-port", name]);
    }
}

fn addresses_and_prefixes_select_an_end() {
    let mixed = Mixed::make();
    let elsewhere = listen("127.9.8.7:8090");
    connect_from(&elsewhere, "127.9.8.7:8090", "127.1.0.1:8091").close(ActiveCloser::Server).expect("a bucket");
    let local = |row: &Value| text(row, "local_addr").to_owned();
    let remote = |row: &Value| text(row, "remote_addr").to_owned();
    selects(&["--local", "127.9.8.7"], |row| local(row) == "127.9.8.7");
    selects(&["--remote", "127.1.0.1"], |row| remote(row) == "127.1.0.1");
    selects(&["--local", "127.0.0.0/8"], |row| local(row).starts_with("127."));
    selects(&["--local", "127.0.0.0/30"], |row| local(row).starts_with("127.0.0."));
    selects(&["--local", "127.9.0.0/16"], |row| local(row).starts_with("127.9."));
    selects(&["--local", "127.0.0.2/32"], |row| local(row) == "127.0.0.2");
    selects(&["--local", "0.0.0.0/0"], |row| !local(row).contains(':'));
    // As in ss, an IPv6 prefix is compared with the mapped form (::ffff:...) of a mapped socket's address. -6 excludes mapped sockets.
    selects(&["--local", "::/0"], |row| text(row, "family") != "ipv4");
    selects(&["--local", "::/0", "-6"], |row| local(row).contains(':'));
    selects(&["--remote", "::1"], |row| remote(row) == "::1");
    selects(&["--remote", "::1/128"], |row| remote(row) == "::1");
    selects(&["--local", "::ffff:127.0.0.2"], |row| local(row) == "127.0.0.2");
    selects_nothing(&["--local", "192.0.2.1"]);
    selects_nothing(&["--local", "fe80::1%lo"]);
    mixed.end();
}

fn families_depend_on_the_packets_on_the_wire() {
    let mixed = Mixed::make();
    selects(&["-4"], |row| ["ipv4", "ipv4-mapped"].contains(&text(row, "family")));
    selects(&["-6"], |row| text(row, "family") == "ipv6");
    assert!(list(&["-4"]).iter().any(|row| row["family"] == "ipv4-mapped"), "mapped sockets speak IPv4");
    mixed.end();
}

fn classes_depend_on_the_local_port() {
    let web = listen("127.0.0.1:80");
    bucket_of_server(&web, "127.0.0.1:80");
    let registered = listen("127.0.0.1:8080");
    bucket_of_server(&registered, "127.0.0.1:8080");
    connect_from(&web, "127.0.0.1:80", "127.0.0.1:60001").close(ActiveCloser::Client).expect("a bucket");
    for (class, port) in [("well-known", 80), ("registered", 8080), ("dynamic", 60001)] {
        selects(&["--class", class], |row| number(row, "local_port") == port);
    }
}

fn directions_select_rows() {
    let server = listen("127.0.0.1:8080");
    bucket_of_server(&server, "127.0.0.1:8080");
    connect(&server, "127.0.0.1:8080").close(ActiveCloser::Client).expect("a bucket");
    let gone = listen("127.0.0.1:8081");
    bucket_of_server(&gone, "127.0.0.1:8081");
    drop(gone);
    selects(&["--direction", "inbound"], |row| number(row, "local_port") == 8080);
    selects(&["--direction", "outbound"], |row| number(row, "remote_port") == 8080);
    selects(&["--direction", "unknown"], |row| number(row, "local_port") == 8081);
}

fn a_duration_selects_the_buckets_that_expire_sooner() {
    let server = listen("127.0.0.1:8080");
    bucket_of_server(&server, "127.0.0.1:8080");
    let sooner = halves(&server, &[20, 40]);
    selects(&["--expires-under", "30s"], |row| number(row, "expires_ms") < 30_000);
    selects(&["--expires-under", "30000ms"], |row| number(row, "expires_ms") < 30_000);
    selects(&["--expires-under", "45s"], |row| number(row, "expires_ms") < 45_000);
    selects_nothing(&["--expires-under", "500ms"]);
    selects_nothing(&["--expires-under", "0s"]);
    assert_eq!(list(&["--fin-wait-2", "--expires-under", "2m"]).len(), 3);
    drop(sooner);
}

/// Makes FIN_WAIT_2 buckets on the server's port that last for these numbers of seconds. When a returned socket is dropped, the bucket
/// of its connection enters TIME_WAIT.
fn halves(server: &twtool::lab::Server, seconds: &[u32]) -> Vec<socket2::Socket> {
    let mut open = vec![];
    for seconds in seconds {
        sysctl::write("ipv4.tcp_fin_timeout", &seconds.to_string()).expect("the namespace is ours");
        let to = server.addr().expect("an address").to_string();
        open.push(half_closed(server, &to, ActiveCloser::Server));
    }
    open
}

fn different_flags_must_all_hold() {
    let mixed = Mixed::make();
    let local = |row: &Value| number(row, "local_port");
    selects(&["--local-port", "8082", "-4"], |row| local(row) == 8082 && text(row, "family") != "ipv6");
    selects(&["--local-port", "8082", "-6"], |row| local(row) == 8082 && text(row, "family") == "ipv6");
    selects(&["--port", "8080", "--direction", "inbound"], |row| {
        local(row) == 8080 && text(row, "direction") == "inbound"
    });
    selects(&["--local", "127.0.0.0/8", "--remote-port", "8080", "--class", "registered"], |row| {
        text(row, "local_addr").starts_with("127.")
            && number(row, "remote_port") == 8080
            && text(row, "local_class") == "registered"
    });
    selects_nothing(&["--local-port", "8080", "--remote-port", "8080"]);
    selects_nothing(&["-6", "--local", "127.0.0.0/8"]);
    mixed.end();
}

fn rows_are_sorted_by_the_requested_key() {
    let servers: Vec<_> = ["127.0.0.1:8083", "127.0.0.1:8081", "127.0.0.1:8084", "127.0.0.1:8082"].map(listen).into();
    for (server, from) in servers.iter().zip([9002, 9004, 9001, 9003]) {
        let to = server.addr().expect("an address");
        let from = addr(&format!("127.0.0.1:{from}"));
        server.connect(to, Some(from)).and_then(|c| c.close(ActiveCloser::Server)).expect("a bucket");
    }
    let half = halves(&servers[0], &[50, 20, 40, 30]);
    // `by` uses one recording, because the order of buckets with almost equal remaining times can change from one live list to the next.
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("recording").into_os_string().into_string().expect("UTF-8");
    twtool(["list", "--fin-wait-2", "--record", &file]).ok();
    let by = |key: &str, args: &[&str]| -> Vec<u64> {
        let args = [&["--fin-wait-2", "--replay", &file], args].concat();
        let rows = list(&args);
        assert_eq!(rows.len(), 8);
        let same = twtool([&["list", "-o", "ndjson"], args.as_slice()].concat()).ok().ndjson();
        assert_eq!(cookies(&same), cookies(&rows), "every format has the same order");
        rows.iter().map(|row| number(row, key)).collect()
    };
    let backwards = |mut values: Vec<u64>| {
        values.reverse();
        values
    };
    for (sort, key) in [("expires", "expires_ms"), ("local", "local_port"), ("remote", "remote_port")] {
        let rows = by(key, &["--sort", sort]);
        assert_eq!(rows, sorted(rows.clone()), "--sort {sort}");
        let rows = by(key, &["--sort", sort, "--reverse"]);
        assert_eq!(backwards(rows.clone()), sorted(rows), "--sort {sort} --reverse");
    }
    assert_eq!(by("remote_port", &["--sort", "none"]).len(), 8);
    // Without sorting, the rows are in the order of the kernel's hash table, which is the same for each list.
    let kernel = list(&["--sort", "none", "--fin-wait-2"]);
    assert_eq!(cookies(&kernel), cookies(&twtool(["list", "-o", "ndjson", "--fin-wait-2"]).ok().ndjson()));
    let (_, csv) = twtool(["list", "-o", "csv", "--fin-wait-2", "--columns", "cookie"]).ok().csv();
    assert_eq!(csv.concat(), cookies(&kernel).iter().map(u64::to_string).collect::<Vec<_>>());
    drop(half);
}

fn json_and_table_are_sorted_by_remaining_time() {
    let server = listen("127.0.0.1:8080");
    let half = halves(&server, &[50, 20, 40, 30]);
    let rows = list(&["--fin-wait-2"]);
    let expires: Vec<_> = rows.iter().map(|row| number(row, "expires_ms")).collect();
    assert_eq!(expires, sorted(expires.clone()));
    let ports: Vec<_> = rows.iter().map(|row| number(row, "remote_port").to_string()).collect();
    let table = twtool(["list", "--fin-wait-2"]).ok();
    let shown: Vec<_> =
        table.stdout.lines().filter_map(|line| ports.iter().find(|port| line.contains(port.as_str()))).collect();
    assert_eq!(shown, ports.iter().collect::<Vec<_>>(), "{table}");
    drop(half);
}

fn a_limit_cuts_after_sorting() {
    let server = listen("127.0.0.1:8080");
    let half = halves(&server, &[50, 20, 40, 30]);
    let all = cookies(&list(&["--fin-wait-2"]));
    for limit in 0..=5 {
        let some = cookies(&list(&["--fin-wait-2", "--limit", &limit.to_string()]));
        assert_eq!(some, all[..limit.min(4)]);
    }
    let stream =
        |args: &[&str]| cookies(&twtool([&["list", "-o", "ndjson", "--fin-wait-2"], args].concat()).ok().ndjson());
    assert_eq!(stream(&["--limit", "2"]), stream(&[])[..2]);
    assert_eq!(stream(&["--limit", "2", "--sort", "expires"]), all[..2]);
    assert_eq!(twtool(["list", "--fin-wait-2", "-o", "csv", "--limit", "3"]).ok().csv().1.len(), 3);
    drop(half);
}

fn columns_appear_in_the_order_of_the_argument() {
    let mixed = Mixed::make();
    let csv = |columns: &str| twtool(["list", "-o", "csv", "--columns", columns]).ok().csv();
    let (header, rows) = csv("state,local_port,cookie");
    assert_eq!(header, ["state", "local_port", "cookie"]);
    let (_, all) = twtool(["list", "-o", "csv"]).ok().csv();
    let at = |key| LIST_KEYS.iter().position(|k| *k == key).expect("a key");
    let expected: Vec<_> =
        all.iter().map(|row| ["state", "local_port", "cookie"].map(|key| row[at(key)].clone()).to_vec()).collect();
    assert_eq!(rows, expected);
    for key in LIST_KEYS {
        assert_eq!(csv(key).0, [key], "every key is a column");
        assert_eq!(csv(key).1.len(), Mixed::TIME_WAIT);
    }
    let table = twtool(["list", "--columns", "cookie,remote_port"]).ok();
    for row in list(&[]) {
        let (cookie, port) = (text(&row, "cookie"), number(&row, "remote_port").to_string());
        let line = table.stdout.lines().find(|line| line.split_whitespace().any(|word| word == cookie));
        let line = line.unwrap_or_else(|| panic!("no line with cookie {cookie}{table}"));
        let (cookie_at, port_at) = (line.find(cookie), line.rfind(port.as_str()));
        assert!(cookie_at < port_at, "the order of the argument{table}");
        assert!(!line.contains("time-wait"), "no other column{table}");
    }
    for format in ["json", "ndjson"] {
        twtool(["list", "-o", format, "--columns", "local_port"]).refused("--columns");
    }
    mixed.end();
}

fn a_header_can_be_left_out() {
    let mixed = Mixed::make();
    let lines = |args: &[&str]| -> Vec<String> {
        let run: Run =
            twtool([&["list", "--columns", "local_port,remote_port", "--sort", "local"], args].concat()).ok();
        run.stdout.lines().map(str::to_owned).collect()
    };
    let (with, without) = (lines(&["-o", "csv"]), lines(&["-o", "csv", "--no-header"]));
    assert_eq!(with[0], "local_port,remote_port");
    assert_eq!(with[1..], without);
    let (with, without) = (lines(&[]), lines(&["--no-header"]));
    assert!(without.len() < with.len());
    let rows = |lines: &[String]| lines.iter().filter(|line| line.contains("808")).count();
    assert_eq!(rows(&with), rows(&without), "{with:?} {without:?}");
    assert!(without[0].contains("808"), "the first line is a row: {without:?}");
    mixed.end();
}

fn a_count_prints_only_the_number() {
    let mixed = Mixed::make();
    let count = |args: &[&str]| twtool([&["list", "--count"], args].concat()).ok().stdout;
    assert_eq!(count(&[]), format!("{}\n", procfs::time_wait().len()));
    assert_eq!(count(&["--fin-wait-2"]), format!("{}\n", procfs::buckets().len()));
    assert_eq!(count(&["--local-port", "1"]), "0\n");
    mixed.end();
}

fn quiet_only_sets_the_exit_code() {
    let server = listen("127.0.0.1:8080");
    let quiet = |args: &[&str], code| {
        let run = twtool([&["list", "-q"], args].concat()).code(code);
        assert!(run.stdout.is_empty() && run.stderr.is_empty(), "{run}");
    };
    quiet(&[], 1);
    let half = halves(&server, &[60]);
    quiet(&[], 1);
    quiet(&["--fin-wait-2"], 0);
    bucket_of_server(&server, "127.0.0.1:8080");
    quiet(&[], 0);
    quiet(&["--json"], 0);
    quiet(&["--local-port", "8080"], 0);
    quiet(&["--local-port", "8081"], 1);
    drop(half);
}
