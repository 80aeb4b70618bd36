//! `twtool port`: classes by RFC 6335, names by /etc/services, and the settings and sockets of the network namespace.

use serde_json::{Value, json};
use twtool::sys::sysctl;

use crate::support::records::{DOCUMENT_KEYS, csv_field, number};
use crate::support::situations::{bucket_of_client, bucket_of_server, connect, listen};
use crate::support::twtool::{Keys, twtool};
use crate::support::{not_checked, services, suite};

suite! {
    pure: [],
    netns: [
        a_document_has_the_documented_keys_in_order,
        classes_follow_rfc_6335,
        port_0_is_explained,
        names_and_aliases_are_accepted_as_ports,
        ranges_and_several_arguments_give_a_record_each,
        the_ephemeral_range_is_that_of_the_namespace,
        the_list_of_reserved_ports_is_that_of_the_namespace,
        the_first_unprivileged_port_is_that_of_the_namespace,
        listening_and_time_wait_are_about_sockets_with_this_local_port,
        every_format_has_the_same_records,
        the_table_shows_ports_and_classes_in_lines_of_at_most_120_characters,
    ],
}

const KEYS: [&str; 9] = [
    "port",
    "class",
    "service",
    "reserved_by_rfc",
    "ephemeral",
    "locally_reserved",
    "privileged",
    "listening",
    "time_wait",
];

fn ports(args: &[&str]) -> Vec<Value> {
    twtool([&["port", "--json"], args].concat()).ok().records("ports")
}

#[track_caller]
fn port(arg: &str) -> Value {
    let mut records = ports(&[arg]);
    assert_eq!(records.len(), 1, "{records:?}");
    records.remove(0)
}

fn a_document_has_the_documented_keys_in_order() {
    let run = twtool(["port", "80", "--json"]).ok();
    assert_eq!(Keys::of(&run.stdout), [DOCUMENT_KEYS.as_slice(), &["ports"]].concat());
    assert_eq!(Keys::of_records(&run.stdout), [KEYS]);
    let document = run.json();
    assert_eq!(document["schema"], "twtool.port/1");
    assert_eq!((&document["complete"], &document["warnings"]), (&json!(true), &json!([])));
}

fn classes_follow_rfc_6335() {
    for (arg, class) in [
        ("0", "well-known"),
        ("1", "well-known"),
        ("1023", "well-known"),
        ("1024", "registered"),
        ("49151", "registered"),
        ("49152", "dynamic"),
        ("65535", "dynamic"),
    ] {
        let record = port(arg);
        assert_eq!((record["port"].to_string().as_str(), &record["class"]), (arg, &json!(class)));
        assert_eq!(record["reserved_by_rfc"], arg == "0", "{record}");
        assert_eq!(record["service"], json!(services::name(number(&record, "port"))), "{record}");
    }
}

fn port_0_is_explained() {
    sysctl::write("ipv4.ip_unprivileged_port_start", "1024").expect("the namespace is ours");
    let record = port("0");
    assert_eq!(
        record,
        json!({
            "port": 0, "class": "well-known", "service": null, "reserved_by_rfc": true, "ephemeral": false,
            "locally_reserved": false, "privileged": false, "listening": false, "time_wait": 0,
        })
    );
    let table = twtool(["port", "0"]).ok();
    let text = table.stdout.to_lowercase();
    assert!(text.contains("reserved") && text.contains("choose"), "{table}");
}

fn names_and_aliases_are_accepted_as_ports() {
    let tcp = services::tcp();
    let Some(service) =
        tcp.iter().find(|s| !s.aliases.is_empty() && tcp.iter().filter(|o| o.port == s.port).count() == 1)
    else {
        return not_checked("names as ports: /etc/services has no TCP entry with an alias");
    };
    for name in [&service.name, &service.aliases[0]] {
        let record = port(name);
        assert_eq!(
            (number(&record, "port"), record["service"].as_str()),
            (service.port.into(), Some(service.name.as_str()))
        );
    }
    if let Some(dashed) = tcp.iter().find(|s| s.name.contains('-')) {
        assert_eq!(
            number(&port(&dashed.name), "port"),
            u64::from(dashed.port),
            "a name with a dash is not a range: {}",
            dashed.name
        );
    }
}

fn ranges_and_several_arguments_give_a_record_each() {
    let numbers = |args: &[&str]| -> Vec<u64> { ports(args).iter().map(|record| number(record, "port")).collect() };
    assert_eq!(numbers(&["1020-1026"]), [1020, 1021, 1022, 1023, 1024, 1025, 1026]);
    assert_eq!(numbers(&["22", "443", "8080"]), [22, 443, 8080]);
    assert_eq!(numbers(&["22", "1020-1022", "65535"]), [22, 1020, 1021, 1022, 65535]);
    assert_eq!(numbers(&["0-65535"]).len(), 65536);
}

fn values(arg: &str, key: &str) -> Vec<Value> {
    ports(&[arg]).into_iter().map(|record| record[key].clone()).collect()
}

fn the_ephemeral_range_is_that_of_the_namespace() {
    sysctl::write("ipv4.ip_local_port_range", "40000 45000").expect("the namespace is ours");
    assert_eq!(values("39999-40001", "ephemeral"), [false, true, true]);
    assert_eq!(values("44999-45001", "ephemeral"), [true, true, false]);
    assert_eq!(values("49152", "ephemeral"), [false], "the dynamic class is not the ephemeral range");
    sysctl::write("ipv4.ip_local_port_range", "1024 65535").expect("the namespace is ours");
    assert_eq!(values("1023-1024", "ephemeral"), [false, true]);
}

fn the_list_of_reserved_ports_is_that_of_the_namespace() {
    assert_eq!(values("8080", "locally_reserved"), [false]);
    sysctl::write("ipv4.ip_local_reserved_ports", "8080,9000-9002").expect("the namespace is ours");
    assert_eq!(values("8079-8081", "locally_reserved"), [false, true, false]);
    assert_eq!(values("8999-9003", "locally_reserved"), [false, true, true, true, false]);
    assert_eq!(values("8080", "reserved_by_rfc"), [false]);
}

fn the_first_unprivileged_port_is_that_of_the_namespace() {
    for (start, expected) in
        [("1024", [true, false, false]), ("1025", [true, true, false]), ("0", [false, false, false])]
    {
        sysctl::write("ipv4.ip_unprivileged_port_start", start).expect("the namespace is ours");
        assert_eq!(values("1023-1025", "privileged"), expected, "start {start}");
    }
}

fn listening_and_time_wait_are_about_sockets_with_this_local_port() {
    let server = listen("127.0.0.1:8080");
    let second = listen("127.0.0.2:8080");
    let six = listen("[::1]:8081");
    for _ in 0..3 {
        bucket_of_server(&server, "127.0.0.1:8080");
    }
    bucket_of_server(&second, "127.0.0.2:8080");
    bucket_of_server(&six, "[::1]:8081");
    bucket_of_client(&server, "127.0.0.1:8080");
    let gone = listen("127.0.0.1:8082");
    bucket_of_server(&gone, "127.0.0.1:8082");
    drop(gone);
    let open = connect(&server, "127.0.0.1:8080");
    let client = open.client.local_addr().ok().and_then(|a| a.as_socket()).expect("an address").port().to_string();

    let of = |arg: &str| {
        let record = port(arg);
        (record["listening"].clone(), record["time_wait"].clone())
    };
    assert_eq!(of("8080"), (json!(true), json!(4)), "both listeners' buckets, not the client's");
    assert_eq!(of("8081"), (json!(true), json!(1)));
    assert_eq!(of("8082"), (json!(false), json!(1)));
    assert_eq!(of("8083"), (json!(false), json!(0)));
    assert_eq!(
        of(&client),
        (json!(false), json!(0)),
        "an open connection is neither a listener nor a TIME_WAIT socket"
    );
}

fn every_format_has_the_same_records() {
    let server = listen("127.0.0.1:8080");
    bucket_of_server(&server, "127.0.0.1:8080");
    let args = ["0", "22", "1020-1026", "8080", "60000"];
    let records = ports(&args);
    let run = |format| twtool([["port", "-o", format].as_slice(), &args].concat()).ok();
    let ndjson = run("ndjson");
    assert_eq!(ndjson.ndjson(), records);
    for line in ndjson.stdout.lines() {
        assert_eq!(Keys::of(line), KEYS);
    }
    let (header, rows) = run("csv").csv();
    assert_eq!(header, KEYS);
    let fields = |record: &Value| -> Vec<String> { KEYS.iter().map(|key| csv_field(&record[*key])).collect() };
    assert_eq!(rows, records.iter().map(fields).collect::<Vec<_>>());
}

fn the_table_shows_ports_and_classes_in_lines_of_at_most_120_characters() {
    let server = listen("127.0.0.1:8080");
    bucket_of_server(&server, "127.0.0.1:8080");
    let one = twtool(["port", "8080"]).ok();
    assert!(one.stdout.contains("8080") && one.stdout.contains("registered"), "{one}");
    let several = twtool(["port", "22", "8080", "50000"]).ok();
    for text in ["22", "8080", "50000", "well-known", "registered", "dynamic"] {
        assert!(several.stdout.contains(text), "expected {text}{several}");
    }
    assert!(several.stdout.lines().all(|line| line.chars().count() <= 120), "{several}");
}
