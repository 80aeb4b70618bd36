//! Settings of any length and sign: what twtool reads is what one read(2) of the test gives.

use std::fs;
use std::io::Read as _;
use std::net::{TcpListener, TcpStream};

use serde_json::{Value, json};
use twtool::sys::sysctl;

use crate::support::records::{number, text};
use crate::support::settings::{every_second, read, reserve, reserved};
use crate::support::twtool::twtool;
use crate::support::{procfs, suite};

suite! {
    pure: [],
    netns: [
        a_list_of_reserved_ports_of_any_length_is_read_whole,
        negative_settings_are_values,
    ],
}

#[track_caller]
fn check(id: &str) -> Value {
    let checks = twtool(["doctor", "--json"]).records("checks");
    checks.into_iter().find(|check| check["id"] == id).unwrap_or_else(|| panic!("no check {id}"))
}

/// Lists of no port, of 30 to 40 bytes, of 600 bytes, 4 KB, 5 KB and 140 KB, and the longest one that there can be.
fn a_list_of_reserved_ports_of_any_length_is_read_whole() {
    sysctl::write("ipv4.ip_local_port_range", "10000 64999").expect("the namespace is ours");
    let folder = tempfile::tempdir().expect("a folder");
    for (i, count) in [0, 1, 5, 6, 7, 100, 682, 683, 850, 23_000, 27_500].into_iter().enumerate() {
        let ports = every_second(10_001, count);
        reserve(&ports);
        let list = read("ipv4.ip_local_reserved_ports");
        let capacity = twtool(["capacity", "--to", "127.0.0.1:9", "--json"]);
        let document = capacity.json();
        assert_eq!(document["reserved_ports"], list, "{} bytes", list.len());
        assert_eq!(number(&document, "pool"), 55_000 - u64::from(count), "{} bytes", list.len());
        let doctor = check("ip_local_reserved_ports");
        let value: Vec<&str> = doctor["value"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
        assert_eq!(value.join(","), list);
        if let Some(last) = ports.last() {
            let records = twtool(["port", &last.to_string(), &(last - 1).to_string(), "--json"]).ok().records("ports");
            assert_eq!([&records[0]["locally_reserved"], &records[1]["locally_reserved"]], [true, false]);
        }
        let file = folder.path().join(i.to_string());
        twtool(["list", "--record", file.to_str().expect("UTF-8")]).ok();
        let recording = fs::read_to_string(file).expect("a recording");
        let header: Value = serde_json::from_str(recording.lines().next().expect("a header")).expect("JSON");
        let recorded = header["local_reserved_ports"].as_array().expect("a list");
        assert_eq!(recorded.iter().map(|range| number_at(range, 0)).collect::<Vec<_>>(), reserved());
    }
}

#[track_caller]
fn number_at(range: &Value, i: usize) -> u16 {
    range[i].as_u64().and_then(|port| port.try_into().ok()).expect("a port")
}

/// Closes a connection, and reports which of the two counts of the kernel it raised: buckets, or closes without one.
fn a_close_leaves_a_bucket() -> bool {
    let server = TcpListener::bind("127.0.0.1:0").expect("a server");
    let mut client = TcpStream::connect(server.local_addr().expect("an address")).expect("a connection");
    drop(server.accept().expect("the other end"));
    let end_of_file = client.read(&mut [0]).expect("the server's FIN");
    assert_eq!(end_of_file, 0);
    drop(client);
    loop {
        if procfs::bucket_count() > 0 {
            return true;
        }
        if check("tcp_timewait_overflow")["value"] != 0 {
            return false;
        }
    }
}

fn negative_settings_are_values() {
    sysctl::write("ipv4.tcp_max_tw_buckets", "-1").expect("the kernel accepts it");
    sysctl::write("ipv4.tcp_fin_timeout", "-7").expect("the kernel accepts it");
    let keeps = a_close_leaves_a_bucket();

    let maximum = check("tcp_max_tw_buckets");
    assert_eq!(maximum["value"], -1);
    let meaning = if keeps { "no maximum" } else { "no close leaves a bucket" };
    assert!(text(&maximum, "finding").contains(meaning), "{maximum}");
    let timeout = check("tcp_fin_timeout");
    assert_eq!((&timeout["value"], &timeout["status"]), (&json!(-7), &json!("note")), "{timeout}");

    let summary = twtool(["summary", "--json"]).ok().json();
    assert_eq!(summary["totals"]["max_tw_buckets"], -1);
    let limits = summary["limits"].as_array().expect("limits");
    assert!(limits.iter().all(|limit| limit["id"] != "at-maximum"), "{limits:?}");
    twtool(["summary"]).ok().prints("tcp_max_tw_buckets is -1");
}
