//! Compares `twtool list` with /proc/net/tcp and other interfaces of the same kernel: the rows, each field of a row, and the remaining
//! times.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;
use std::time::SystemTime;

use caps::{CapSet, Capability};
use serde_json::{Value, json};
use socket2::{Domain, Socket as OsSocket, Type};
use twtool::lab::{ActiveCloser, Server};
use twtool::sys::interfaces;
use twtool::sys::rtnetlink::{self, VethEnd};

use crate::support::procfs::{self, Entry, UNIT_MS};
use crate::support::records::{
    DOCUMENT_KEYS, LIST_KEYS, cookies, csv_field, identity, number, of_entries, of_records, sorted, text,
};
use crate::support::situations::{
    Mixed, addr, bucket_of_client, bucket_of_server, connect, connect_from, listen, many_buckets,
};
use crate::support::twtool::{Keys, twtool};
use crate::support::{kernel, netns, not_checked, services, suite};

suite! {
    pure: [],
    netns: [
        lists_equal_proc_net_tcp_row_for_row,
        lists_equal_proc_net_tcp_in_every_format,
        a_list_of_many_datagrams_equals_proc_net_tcp,
        a_namespace_without_buckets_gives_an_empty_list_in_every_format,
        every_remaining_time_lies_between_two_readings_of_proc_net_tcp,
        a_document_has_the_documented_keys_in_order,
        records_have_the_documented_keys_in_order_in_every_format,
        csv_rows_equal_ndjson_records,
        each_end_has_the_class_and_the_service_of_its_port,
        direction_follows_from_listeners_and_the_ephemeral_range,
        a_bucket_has_the_cookie_of_its_connection,
        the_interface_is_named_if_the_socket_was_bound_to_one,
        an_interface_is_looked_up_in_its_namespace_whichever_thread_asks,
        an_interface_whose_name_is_not_utf8_is_printed_the_same_way_live_and_in_a_replay,
        the_mark_is_a_number_with_cap_net_admin_and_null_without,
        the_table_shows_every_row_and_counts_them_in_its_last_line,
        a_listener_of_another_namespace_is_not_seen,
    ],
}

fn list(args: &[&str]) -> Vec<Value> {
    twtool([&["list", "--json"], args].concat()).ok().records("sockets")
}

fn lists_equal_proc_net_tcp_row_for_row() {
    let mixed = Mixed::make();
    assert_eq!(of_records(&list(&[])), of_entries(&procfs::time_wait()));
    assert_eq!(of_records(&list(&["--fin-wait-2"])), of_entries(&procfs::buckets()));
    let half: Vec<_> = list(&["--fin-wait-2"]).into_iter().filter(|r| r["state"] == "fin-wait-2").collect();
    assert_eq!(half.len(), Mixed::FIN_WAIT_2, "only buckets: two full sockets are in FIN_WAIT_2, too");
    mixed.end();
}

fn lists_equal_proc_net_tcp_in_every_format() {
    let mixed = Mixed::make();
    let oracle = of_entries(&procfs::buckets());
    let args = ["list", "--fin-wait-2", "-o"];
    let run = |format| twtool(args.into_iter().chain([format])).ok();
    assert_eq!(of_records(&run("json").records("sockets")), oracle);
    assert_eq!(of_records(&run("ndjson").ndjson()), oracle);
    let (header, rows) = run("csv").csv();
    let column = |name: &str| header.iter().position(|key| key == name).expect("a documented column");
    let row = |row: &Vec<String>| {
        let text = |name| row[column(name)].clone();
        let port = |name| text(name).parse().expect("a port");
        (
            text("family"),
            text("local_addr"),
            port("local_port"),
            text("remote_addr"),
            port("remote_port"),
            text("state"),
        )
    };
    assert_eq!(sorted(rows.iter().map(row)), oracle);
    mixed.end();
}

fn a_list_of_many_datagrams_equals_proc_net_tcp() {
    let server = listen("127.0.0.1:8080");
    many_buckets(&server, "127.0.0.1:8080", 1000);
    let oracle = of_entries(&procfs::time_wait());
    assert!(oracle.len() >= 1000, "only {} buckets", oracle.len());
    assert_eq!(of_records(&list(&[])), oracle);
    assert_eq!(of_records(&twtool(["list", "-o", "ndjson"]).ok().ndjson()), oracle);
    let cookies = cookies(&list(&[]));
    let mut distinct = sorted(cookies.clone());
    distinct.dedup();
    assert_eq!(distinct.len(), cookies.len(), "every bucket has a cookie of its own");
}

fn a_namespace_without_buckets_gives_an_empty_list_in_every_format() {
    assert_eq!(procfs::buckets(), [], "there is no bucket");
    let table = twtool(["list"]).ok();
    assert_eq!(table.stdout, "no TIME_WAIT sockets\n", "{table}");
    assert_eq!(twtool(["list", "--owner"]).ok().stdout, table.stdout);
    for owner in [&[][..], &["--owner"]] {
        let bare = twtool(["list", "--no-header"].iter().chain(owner)).ok();
        assert!(bare.stdout.is_empty(), "{bare}");
    }
    assert_eq!(list(&[]), [] as [Value; 0]);
    let ndjson = twtool(["list", "-o", "ndjson"]).ok();
    assert!(ndjson.stdout.is_empty(), "{ndjson}");
    let (header, rows) = twtool(["list", "-o", "csv"]).ok().csv();
    assert_eq!((header.as_slice(), rows.len()), (LIST_KEYS.map(str::to_owned).as_slice(), 0));
    assert_eq!(twtool(["list", "--count"]).ok().stdout, "0\n");
    let quiet = twtool(["list", "-q"]).code(1);
    assert!(quiet.stdout.is_empty() && quiet.stderr.is_empty(), "{quiet}");
}

fn every_remaining_time_lies_between_two_readings_of_proc_net_tcp() {
    let mixed = Mixed::make();
    for _ in 0..3 {
        let before = procfs::buckets();
        let rows = list(&["--fin-wait-2"]);
        let after = procfs::buckets();
        assert_eq!(
            (rows.len(), after.len()),
            (before.len(), before.len()),
            "a bucket was made or ended during the run"
        );
        for row in &rows {
            let identity = identity(row);
            let when = |entries: &[Entry]| {
                entries
                    .iter()
                    .find(|entry| entry.identity() == identity)
                    .map(|entry| entry.when)
                    .expect("procfs has this bucket, too")
            };
            // procfs rounds down to units of 10 ms, and the remaining time only decreases.
            let (most, least) = ((when(&before) + 1) * UNIT_MS, when(&after) * UNIT_MS);
            let expires = number(row, "expires_ms");
            assert!((least..=most).contains(&expires), "{expires} ms is not in {least}..={most}: {row}");
            assert!(expires > 0, "a fresh bucket has time left: {row}");
        }
    }
    mixed.end();
}

fn netns_inode() -> u64 {
    std::fs::metadata("/proc/thread-self/ns/net").expect("a namespace").ino()
}

fn millis(time: SystemTime) -> u128 {
    time.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_millis()
}

fn a_document_has_the_documented_keys_in_order() {
    let mixed = Mixed::make();
    let before = millis(SystemTime::now());
    let run = twtool(["list", "--json"]).ok();
    let after = millis(SystemTime::now());
    let document = run.json();
    let keys = [DOCUMENT_KEYS.as_slice(), &["source", "sockets"]].concat();
    assert_eq!(Keys::of(&run.stdout), keys, "{run}");
    assert_eq!(document["schema"], "twtool.list/1");
    assert_eq!(document["source"], "sock_diag");
    assert_eq!(document["kernel"], kernel().as_str());
    assert_eq!(document["netns"], netns_inode());
    assert_eq!((&document["complete"], &document["warnings"]), (&json!(true), &json!([])));
    let taken_at = text(&document, "taken_at");
    assert!(
        taken_at.len() == "2026-01-02T03:04:05.678Z".len() && taken_at.ends_with('Z'),
        "RFC 3339 in UTC with milliseconds: {taken_at}"
    );
    let taken: jiff::Timestamp = taken_at.parse().expect("RFC 3339");
    let taken = u128::try_from(taken.as_millisecond()).expect("after 1970");
    assert!((before..=after).contains(&taken), "{taken} is not in {before}..={after}");
    assert!(run.stdout.ends_with('\n'), "{run}");
    assert_eq!(twtool(["list", "-o", "json"]).ok().records("sockets").len(), Mixed::TIME_WAIT, "--json is -o json");
    mixed.end();
}

fn kernel() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("a release").trim().to_owned()
}

fn records_have_the_documented_keys_in_order_in_every_format() {
    let mixed = Mixed::make();
    let json = twtool(["list", "--json", "--fin-wait-2"]).ok();
    let records = Keys::of_records(&json.stdout);
    assert_eq!(records.len(), Mixed::TIME_WAIT + Mixed::FIN_WAIT_2);
    for keys in records {
        assert_eq!(keys, LIST_KEYS, "{json}");
    }
    let ndjson = twtool(["list", "-o", "ndjson"]).ok();
    assert_eq!(ndjson.ndjson().len(), Mixed::TIME_WAIT);
    for line in ndjson.stdout.lines() {
        assert_eq!(Keys::of(line), LIST_KEYS, "{ndjson}");
    }
    assert_eq!(twtool(["list", "-o", "csv"]).ok().csv().0, LIST_KEYS);
    for record in list(&["--fin-wait-2"]) {
        assert_eq!(record["netns"], netns_inode());
        let nullable = ["netns_name", "local_service", "remote_service", "interface", "mark"];
        for key in LIST_KEYS {
            assert!(nullable.contains(&key) || !record[key].is_null(), "{key} is always known: {record}");
            assert_ne!(record[key], "", "unknown is null: {record}");
        }
    }
    mixed.end();
}

fn csv_rows_equal_ndjson_records() {
    let mixed = Mixed::make();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("recording").into_os_string().into_string().expect("UTF-8");
    twtool(["list", "--fin-wait-2", "--count", "--record", &file]).ok();
    let same = |format| twtool(["list", "--fin-wait-2", "-o", format, "--replay", &file]).ok();
    let records = same("ndjson").ndjson();
    let (header, rows) = same("csv").csv();
    assert_eq!(records.len(), Mixed::TIME_WAIT + Mixed::FIN_WAIT_2);
    let fields = |record: &Value| -> Vec<String> { header.iter().map(|key| csv_field(&record[key])).collect() };
    assert_eq!(rows, records.iter().map(fields).collect::<Vec<_>>());
    mixed.end();
}

fn each_end_has_the_class_and_the_service_of_its_port() {
    let servers =
        ["127.0.0.1:80", "127.0.0.1:1023", "127.0.0.1:1024", "127.0.0.1:49151", "127.0.0.1:49152", "127.0.0.1:65535"];
    for at in servers {
        bucket_of_server(&listen(at), at);
    }
    let class = |port| match port {
        0..=1023 => "well-known",
        1024..=49151 => "registered",
        _ => "dynamic",
    };
    let rows = list(&[]);
    assert_eq!(rows.len(), servers.len());
    for row in rows {
        for (port, class_key, service) in
            [("local_port", "local_class", "local_service"), ("remote_port", "remote_class", "remote_service")]
        {
            let port = number(&row, port);
            assert_eq!(text(&row, class_key), class(port), "{row}");
            assert_eq!(row[service], json!(services::name(port)), "{row}");
        }
    }
}

fn direction_follows_from_listeners_and_the_ephemeral_range() {
    twtool::sys::sysctl::write("ipv4.ip_local_port_range", "40000 45000").expect("the namespace is ours");
    let direction = |port: u64| {
        let rows = list(&[]);
        let on_port: Vec<_> = rows.iter().filter(|row| row["local_port"] == port).collect();
        assert_eq!(on_port.len(), 1, "one bucket on {port}");
        text(on_port[0], "direction").to_owned()
    };

    let server = listen("127.0.0.1:8080");
    bucket_of_server(&server, "127.0.0.1:8080");
    assert_eq!(direction(8080), "inbound", "its server listens here");
    connect_from(&server, "127.0.0.1:8080", "127.0.0.1:40001").close(ActiveCloser::Client).expect("a bucket");
    assert_eq!(direction(40001), "outbound", "the local port is ephemeral, the remote port is not");
    connect_from(&server, "127.0.0.1:8080", "127.0.0.1:50000").close(ActiveCloser::Client).expect("a bucket");
    assert_eq!(direction(50000), "outbound", "the local port is not ephemeral, but its server listens here");
    drop(server);
    assert_eq!(direction(50000), "unknown", "the local port is not ephemeral, and there is no listener");
    assert_eq!(direction(8080), "unknown", "its listener is gone");
    let elsewhere = listen("127.0.0.2:8080");
    assert_eq!(direction(8080), "unknown", "a listener on another address does not count");
    let v6only = v6only_listener("[::]:8080");
    assert_eq!(direction(8080), "unknown", "a listener for IPv6 only does not count");
    drop((elsewhere, v6only));
    let dual = listen("[::]:8080");
    assert_eq!(direction(8080), "inbound", "a dual-stack wildcard covers IPv4");
    drop(dual);
    let any = listen("0.0.0.0:8080");
    assert_eq!(direction(8080), "inbound", "a wildcard covers every address");
    drop(any);

    let both = listen("127.0.0.1:40500");
    connect_from(&both, "127.0.0.1:40500", "127.0.0.1:40003").close(ActiveCloser::Client).expect("a bucket");
    assert_eq!(direction(40003), "outbound", "both ports are ephemeral, and the server listens here");
    connect(&both, "127.0.0.1:40500").close(ActiveCloser::Server).expect("a bucket");
    assert_eq!(direction(40500), "inbound", "a listener outweighs the range");

    let six = listen("[::1]:8086");
    bucket_of_server(&six, "[::1]:8086");
    assert_eq!(direction(8086), "inbound");
    drop(six);
    let four = listen("0.0.0.0:8086");
    assert_eq!(direction(8086), "unknown", "an IPv4 wildcard covers no IPv6");
    drop(four);
}

fn v6only_listener(at: &str) -> Server {
    let socket = OsSocket::new(Domain::IPV6, Type::STREAM, None).expect("a socket");
    socket.set_reuse_address(true).expect("SO_REUSEADDR");
    socket.set_only_v6(true).expect("IPV6_V6ONLY");
    Server::listen_on(socket, addr(at)).expect("a listener")
}

fn a_bucket_has_the_cookie_of_its_connection() {
    let server = listen("127.0.0.1:8080");
    let connection = connect(&server, "127.0.0.1:8080");
    let cookie = connection.server.cookie().expect("SO_COOKIE");
    connection.close(ActiveCloser::Server).expect("a bucket");
    assert_eq!(cookies(&list(&[])), [cookie]);
    assert_eq!(cookies(&list(&[])), [cookie], "a second list has the same cookie");
}

fn the_interface_is_named_if_the_socket_was_bound_to_one() {
    let socket = OsSocket::new(Domain::IPV6, Type::STREAM, None).expect("a socket");
    socket.bind_device(Some(b"lo")).expect("SO_BINDTODEVICE");
    let bound = Server::listen_on(socket, addr("[::1]:8081")).expect("a listener");
    bucket_of_server(&bound, "[::1]:8081");
    let free = listen("[::1]:8082");
    bucket_of_server(&free, "[::1]:8082");
    let interface = |args: &[&str]| -> Vec<Value> { list(args).iter().map(|row| row["interface"].clone()).collect() };
    assert_eq!(interface(&["--local-port", "8081"]), ["lo"]);
    assert_eq!(interface(&["--local-port", "8082"]), [Value::Null]);
    assert_eq!(interface(&["--local", "::1%lo"]), ["lo"], "the scope of an address selects the interface");
    assert_eq!(interface(&["--local", "::1%1"]), ["lo"], "a scope may be the number of the interface");
    assert_eq!(interface(&["--local", "::1"]).len(), 2);
}

fn an_interface_whose_name_is_not_utf8_is_printed_the_same_way_live_and_in_a_replay() {
    let socket = OsSocket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind_device(Some(b"lo")).expect("SO_BINDTODEVICE");
    bucket_of_server(&Server::listen_on(socket, addr("127.0.0.1:8081")).expect("a listener"), "127.0.0.1:8081");
    let ip = |words: &[&[u8]]| {
        let words = words.iter().map(|word| OsStr::from_bytes(word));
        Command::new("ip").args(["link", "set"]).args(words).output().is_ok_and(|output| output.status.success())
    };
    if !ip(&[b"lo", b"down"]) || !ip(&[b"lo", b"name", b"l\xffo"]) {
        not_checked("an interface whose name is not UTF-8: ip(8) does not rename lo here");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    for format in ["json", "ndjson", "csv"] {
        let file = folder.path().join(format).into_os_string().into_string().expect("UTF-8");
        let live = twtool(["list", "-o", format, "--record", &file]).ok();
        let shown = if format == "csv" { r",l\xffo," } else { r#""interface":"l\\xffo""# };
        assert!(live.stdout.contains(shown), "{live}");
        assert_eq!(twtool(["list", "-o", format, "--replay", &file]).ok().stdout, live.stdout);
    }
    assert_eq!(list(&["dev", r"l\xffo"]).len(), 1, "the printed name can be typed");
}

fn an_interface_is_looked_up_in_its_namespace_whichever_thread_asks() {
    let (here, there) = (
        interfaces::here(),
        netns::on_thread_in_new_namespace(|| {
            let end = |index, name| VethEnd { index, name, mac: [2, 0, 0, 0, 0, 7] };
            rtnetlink::create_veth(end(70, "there0"), end(71, "there1")).expect("a pair of interfaces");
            interfaces::here()
        }),
    );
    let (lo, veth) = (NonZeroU32::MIN, NonZeroU32::new(71).expect("not 0"));
    // In the second pass, the names come from the cache.
    for _ in 0..2 {
        assert_eq!([lo, veth].map(|index| there.name(index)), ["lo", "there1"].map(|name| Some(name.to_owned())));
        assert_eq!([lo, veth].map(|index| here.name(index)), [Some("lo".to_owned()), None]);
    }
    let mut kept = there.clone();
    kept.store_names([veth]);
    assert_eq!([lo, veth].map(|index| kept.name(index)), [None, Some("there1".to_owned())]);
}

fn the_mark_is_a_number_with_cap_net_admin_and_null_without() {
    kernel::needs(kernel::lists_marks_of_buckets(), "marks of buckets");
    let marked = |mark, at| {
        let socket = OsSocket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.set_mark(mark).expect("SO_MARK");
        let server = Server::listen_on(socket, addr(at)).expect("a listener");
        bucket_of_server(&server, at);
    };
    marked(0, "127.0.0.1:8080");
    marked(4_000_000_007, "127.0.0.1:8081");
    let marks = || -> Vec<Value> {
        ["8080", "8081"].iter().flat_map(|port| list(&["--local-port", port])).map(|row| row["mark"].clone()).collect()
    };
    assert_eq!(marks(), [json!(0), json!(4_000_000_007_u32)]);

    // A program that root starts gets the capabilities of the bounding set. So the capability is dropped from this set, too.
    for set in [CapSet::Bounding, CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        caps::drop(None, set, Capability::CAP_NET_ADMIN).expect("a capability can be dropped");
    }
    assert_eq!(marks(), [Value::Null, Value::Null], "unknown is not 0");
    let (header, rows) = twtool(["list", "-o", "csv"]).ok().csv();
    let mark = header.iter().position(|key| key == "mark").expect("a column");
    assert!(rows.iter().all(|row| row[mark].is_empty()), "{rows:?}");
}

fn the_table_shows_every_row_and_counts_them_in_its_last_line() {
    let mixed = Mixed::make();
    let run = twtool(["list"]).ok();
    let lines: Vec<_> = run.stdout.lines().collect();
    let last = lines.last().expect("a last line");
    assert!(last.starts_with(&format!("{} TIME_WAIT, the next expires in ", Mixed::TIME_WAIT)), "{run}");
    assert!(last.ends_with('s'), "a time with a unit: {run}");
    for entry in procfs::time_wait() {
        let ends =
            [entry.local, entry.remote].map(|(addr, port)| SocketAddr::new(addr.to_canonical(), port).to_string());
        let has = |line: &&&str| ends.iter().all(|end| line.split_whitespace().any(|word| word == end));
        assert_eq!(lines.iter().filter(has).count(), 1, "one line for {ends:?}{run}");
    }
    assert!(!run.stdout.contains("::ffff:"), "mapped addresses print as plain IPv4{run}");
    mixed.end();
}

fn a_listener_of_another_namespace_is_not_seen() {
    let server = listen("127.0.0.1:8080");
    bucket_of_client(&server, "127.0.0.1:8080");
    let here = netns_inode();
    let (there, rows) = crate::support::netns::on_thread_in_new_namespace(|| (netns_inode(), list(&[])));
    assert_ne!(here, there);
    assert_eq!(rows, [] as [Value; 0]);
    assert_eq!(list(&[]).len(), 1);
}
