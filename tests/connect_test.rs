//! `twtool connect-test`: the JSON keys, the exit codes, the messages, and the commands that it prints. tests/connect_truth.rs compares
//! the verdicts with the kernel.

use caps::Capability;
use serde_json::{Value, json};
use socket2::Socket;
use twtool::sys::sysctl;

use crate::support::commands::{has, run, succeeds};
use crate::support::connects::Client;
use crate::support::kernel::bucket_cookies;
use crate::support::limits::{drop_capability, refuse_ipv6};
use crate::support::outbound::{LOW, bound, buckets, close_client_first, connect, narrow_range, serve, set};
use crate::support::records::{DOCUMENT_KEYS, number, text};
use crate::support::situations::addr;
use crate::support::twtool::{Keys, Run, twtool};
use crate::support::{addresses, kernel, netns, not_checked, suite};

suite! {
    pure: [
        an_error_names_the_wrong_argument_and_the_allowed_values,
    ],
    netns: [
        a_document_has_the_documented_keys_in_order,
        a_bucket_of_a_socket_without_reuseaddr_blocks_bind,
        if_the_bucket_and_the_client_have_reuseaddr_the_verdict_is_unknown_and_the_bucket_stays,
        the_step_with_reuseaddr_predicts_the_result_of_the_kernel,
        an_open_connection_blocks_the_connect,
        a_holder_is_named_with_its_process,
        ports_that_are_left_are_counted,
        bind_chooses_the_port_of_a_client_that_binds_only_an_address,
        free_in_is_the_remaining_time_of_the_bucket_that_ends_first,
        buckets_that_may_be_reusable_make_the_verdict_unknown,
        failures_that_are_not_about_ports_have_the_errno_of_the_kernel,
        forbidden_routes_have_the_errno_of_the_kernel,
        the_scope_of_an_address_names_the_interface,
        a_link_local_address_without_its_scope_is_named_as_the_reason,
        a_privileged_source_port_needs_the_capability,
        missing_ipv6_is_reported,
        an_option_without_effect_causes_a_warning,
        each_printed_command_has_the_effect_that_its_purpose_names,
    ],
}

const KEYS: [&str; 17] = [
    "from",
    "to",
    "with",
    "verdict",
    "cause",
    "call",
    "errno",
    "inferred",
    "free",
    "uncertain",
    "pool",
    "attempts",
    "holders",
    "free_in_ms",
    "advice",
    "next",
    "lasting",
];

const FROM: &str = "127.0.0.1:15060";
const TO: &str = "127.0.0.1:443";

/// Runs `connect-test` and checks stderr: one warning if the verdict is unknown (exit code 2), otherwise nothing. On a kernel
/// without IP_LOCAL_PORT_RANGE, twtool prints more warnings, so stderr is not checked.
#[track_caller]
fn ask(args: &[&str], code: i32) -> Run {
    let run = twtool([&["connect-test"], args].concat()).code(code);
    let unknown = run.stderr.lines().count() == 1 && run.stderr.starts_with("warning: the verdict is unknown: ");
    let expected = if code == 2 { unknown } else { run.stderr.is_empty() };
    assert!(expected || !kernel::has_port_range_option(), "stderr{run}");
    run
}

#[track_caller]
fn document(args: &[&str], code: i32) -> Value {
    ask(&[args, &["--json"]].concat(), code).json()
}

/// The verdict, the cause, the call that fails, and its errno; `-` for null.
fn answer(document: &Value) -> [&str; 4] {
    ["verdict", "cause", "call", "errno"].map(|key| document[key].as_str().unwrap_or("-"))
}

fn client(from: Option<&str>, to: &str, reuseaddr: bool) -> Client {
    Client { from: from.map(addr), to: addr(to), reuseaddr, no_port: false }
}

/// Leaves the bucket of a client on [`FROM`]. `reuseaddr`: whether the client sets SO_REUSEADDR.
fn bucket(server: &std::net::TcpListener, reuseaddr: bool) {
    let client = client(Some(FROM), TO, reuseaddr).connect().expect("a connection");
    client.set_linger(None).expect("SO_LINGER");
    close_client_first(client, server);
}

fn a_document_has_the_documented_keys_in_order() {
    let run = ask(&[TO, "--from", FROM, "--json"], 0);
    assert_eq!(Keys::of(&run.stdout), [DOCUMENT_KEYS.as_slice(), &KEYS].concat());
    let document = run.json();
    assert_eq!(document["schema"], "twtool.connect-test/1");
    assert_eq!(document["from"], json!({"addr": "127.0.0.1", "port": 15060, "service": null, "interface": null}));
    assert_eq!(document["to"], json!({"addr": "127.0.0.1", "port": 443, "service": "https", "interface": null}));
    assert_eq!((&document["with"], &document["free"]), (&json!("none"), &Value::Null));
    assert_eq!(answer(&document), ["free", "none", "-", "-"]);
    let record = ask(&[TO, "--from", FROM, "-o", "ndjson"], 0);
    assert_eq!(Keys::of(&record.stdout), KEYS);
    let page = ask(&[TO, "--from", FROM], 0);
    assert_eq!(page.stdout, "connect() from 127.0.0.1:15060 to 127.0.0.1:443: free\n");
    // The kernel chooses the source address.
    let any = self::document(&["127.0.0.2:443", "--from", "0.0.0.0:15060"], 0);
    assert_eq!((&any["from"]["addr"], &any["attempts"][0]["addr"]), (&json!("127.0.0.1"), &json!("0.0.0.0")));
}

fn a_bucket_of_a_socket_without_reuseaddr_blocks_bind() {
    let server = serve(TO);
    bucket(&server, false);
    let cookies = bucket_cookies();
    for (to, with) in [(TO, "none"), (TO, "reuseaddr"), ("127.0.0.1:444", "none"), ("127.0.0.1:444", "reuseaddr")] {
        let document = document(&[to, "--from", FROM, "--with", with], 1);
        assert_eq!(answer(&document), ["blocked", "time-wait", "bind", "EADDRINUSE"], "{to} {with}");
        assert!((40_000..=60_000).contains(&number(&document, "free_in_ms")), "{document}");
        let failure = client(Some(FROM), to, with == "reuseaddr").connect_failure();
        assert_eq!(failure, Some(("bind", "EADDRINUSE".into())));
    }
    let page = ask(&[TO, "--from", FROM], 1);
    page.prints("fails with EADDRINUSE (Address already in use) because of 1 TIME_WAIT socket; free in 5")
        .prints("Let connect() choose the source port")
        .prints("net.ipv4.tcp_tw_reuse does not help")
        .prints("the kernel alone");
    assert_eq!(bucket_cookies(), cookies);
    assert_eq!(cookies.len(), 1);
}

fn if_the_bucket_and_the_client_have_reuseaddr_the_verdict_is_unknown_and_the_bucket_stays() {
    for timestamps in [1, 0] {
        netns::on_thread_in_new_namespace(|| {
            set("ipv4.tcp_timestamps", timestamps);
            // This setting must have no effect.
            set("ipv4.tcp_tw_reuse", 1 - timestamps);
            let server = serve(TO);
            bucket(&server, true);
            let cookies = bucket_cookies();
            let none = document(&[TO, "--from", FROM], 1);
            assert_eq!(answer(&none), ["blocked", "time-wait", "bind", "EADDRINUSE"]);
            assert_eq!(
                none["attempts"][1],
                json!({"addr": "127.0.0.1", "options": ["SO_REUSEADDR"], "bind": "ok", "listen": null})
            );
            let args = [TO, "--from", FROM, "--with", "reuseaddr"];
            let document = document(&args, 2);
            assert_eq!(answer(&document), ["unknown", "time-wait", "connect", "EADDRNOTAVAIL"]);
            let inferred = if timestamps == 1 { "free" } else { "blocked" };
            assert_eq!((&document["inferred"], &document["complete"]), (&json!(inferred), &json!(false)));
            assert_eq!(document["holders"][0]["blocks"], true);
            ask(&args, 2).prints(&format!(": unknown, probably {inferred} (inferred)"));
            // For another destination there is no bucket with the same ends.
            ask(&["127.0.0.1:444", "--from", FROM, "--with", "reuseaddr"], 0);
            assert_eq!(bucket_cookies(), cookies, "twtool leaves the bucket alone");
            assert_eq!(cookies.len(), 1);
            let failure = client(Some(FROM), TO, true).connect_failure();
            let expected = (timestamps == 0).then(|| ("connect", "EADDRNOTAVAIL".to_owned()));
            assert_eq!(failure, expected, "timestamps {timestamps}");
        });
    }
}

/// For a client without SO_REUSEADDR, twtool may print a step that repeats the test with SO_REUSEADDR. The purpose of the step must
/// name the result that the client then really has.
fn the_step_with_reuseaddr_predicts_the_result_of_the_kernel() {
    let purpose = |to: &str| {
        let document = document(&[to, "--from", FROM], 1);
        let steps = document["next"].as_array().expect("steps");
        steps
            .iter()
            .find(|step| text(step, "command").contains("--with reuseaddr"))
            .map(|step| text(step, "purpose").to_owned())
    };
    for timestamps in [0, 1] {
        netns::on_thread_in_new_namespace(|| {
            set("ipv4.tcp_timestamps", timestamps);
            let server = serve(TO);
            bucket(&server, true);
            let same = purpose(TO).expect("a step");
            assert!(same.contains("its bind() works now, and its connect() depends on the TCP timestamps"), "{same}");
            let other = purpose("127.0.0.1:444").expect("a step");
            assert!(other.ends_with("which works now"), "{other}");
            assert_eq!(purpose("192.0.2.1:443"), None, "no step without a route");
            // The destination of the bucket comes last, because a connect() to it can take the bucket over.
            for (to, expected) in [
                ("127.0.0.1:444", None),
                ("192.0.2.1:443", Some(("connect", "ENETUNREACH"))),
                (TO, (timestamps == 0).then_some(("connect", "EADDRNOTAVAIL"))),
            ] {
                let expected = expected.map(|(call, errno): (_, &str)| (call, errno.to_owned()));
                assert_eq!(client(Some(FROM), to, true).connect_failure(), expected, "{to}, timestamps {timestamps}");
            }
        });
    }
    // If the same connection is open, bind() works with SO_REUSEADDR, but connect() fails. So there is no step.
    let _server = serve(TO);
    let _open = client(Some(FROM), TO, true).connect().expect("a connection");
    assert_eq!(purpose(TO), None);
    assert_eq!(client(Some(FROM), TO, true).connect_failure(), Some(("connect", "EADDRNOTAVAIL".into())));
}

fn an_open_connection_blocks_the_connect() {
    let _server = serve(TO);
    let open = client(Some(FROM), TO, true).connect().expect("a connection");
    let args = [TO, "--from", FROM, "--with", "reuseaddr"];
    let blocked = document(&args, 1);
    assert_eq!(answer(&blocked), ["blocked", "address-in-use", "connect", "EADDRNOTAVAIL"]);
    assert_eq!(client(Some(FROM), TO, true).connect_failure(), Some(("connect", "EADDRNOTAVAIL".into())));
    ask(&args, 1).prints("because this connection exists already (a connection (established): ");
    let plain = document(&[TO, "--from", FROM], 1);
    assert_eq!(answer(&plain), ["blocked", "address-in-use", "bind", "EADDRINUSE"]);
    ask(&["127.0.0.1:444", "--from", FROM, "--with", "reuseaddr"], 0);
    drop(open);
    ask(&args, 0);
}

fn a_holder_is_named_with_its_process() {
    let own = format!("(pid {})", std::process::id());
    let holds = |holder: Box<dyn std::any::Any>, words: &str| {
        let run = ask(&[TO, "--from", FROM], 1).prints(&format!("because of {words}")).prints(&own);
        let document = document(&[TO, "--from", FROM], 1);
        assert_eq!(answer(&document), ["blocked", "bound", "bind", "EADDRINUSE"], "{run}");
        let steps = steps(&[TO, "--from", FROM]);
        assert!(steps[0].starts_with("kill ") && steps[1].contains(" wait "), "kill(1), then wait: {steps:?}");
        // On 127.0.0.2, only the listener blocks, because it is bound to the wildcard address. A holder that does not block is not
        // shown.
        let beside = ask(&["127.0.0.2:443", "--from", "127.0.0.2:15060"], i32::from(words.contains("listener")));
        assert_eq!(beside.stdout.contains("STATE"), words.contains("listener"), "{beside}");
        drop(holder);
    };
    holds(Box::new(serve("0.0.0.0:15060")), "a listener: ");
    if kernel::lists_bound_sockets() {
        holds(Box::new(bound(FROM)), "a bound socket: ");
    }
}

fn ports_that_are_left_are_counted() {
    kernel::needs(kernel::has_port_range_option(), "IP_LOCAL_PORT_RANGE");
    narrow_range(8);
    let server = serve(TO);
    let no_port = [TO, "--from", "127.0.0.1", "--with", "bind-address-no-port"];
    for (from, args) in [(None, [TO].as_slice()), (Some("127.0.0.1:0"), &no_port)] {
        ask(args, 0).prints(" from 127.0.0.1 to 127.0.0.1:443: free, 8 of 8 ports are left\n");
        let mut open: Vec<Socket> = vec![];
        for left in (0..8).rev() {
            let client = Client { no_port: true, ..client(from, TO, false) };
            open.push(client.connect().expect("a connection"));
            let document = document(args, i32::from(left == 0));
            assert_eq!((number(&document, "free"), number(&document, "pool")), (left, 8));
            assert_eq!(document["uncertain"], 0);
        }
        let document = document(args, 1);
        assert_eq!(answer(&document), ["blocked", "exhausted", "connect", "EADDRNOTAVAIL"]);
        assert_eq!(document["free_in_ms"], Value::Null, "no timer ends an open connection");
        ask(args, 1)
            .prints("fails with EADDRNOTAVAIL (Cannot assign requested address) because none of 8 ports is left");
        // Another destination has all ports.
        ask(&["127.0.0.1:444"], 0).prints("8 of 8");
        ask(&["127.0.0.2:443"], 0).prints("8 of 8");
    }
    drop(server);
}

fn bind_chooses_the_port_of_a_client_that_binds_only_an_address() {
    kernel::needs(kernel::has_port_range_option(), "IP_LOCAL_PORT_RANGE");
    narrow_range(8);
    let _server = serve(TO);
    let address_only =
        Client { from: Some(addr("127.0.0.1:0")), to: addr("127.0.0.1:444"), reuseaddr: false, no_port: false };
    let (args, other) = ([TO, "--from", "127.0.0.1"], ["127.0.0.1:444", "--from", "127.0.0.1"]);
    ask(&args, 0).prints("from 127.0.0.1 to 127.0.0.1:443: free, 8 of 8 ports are left\n");
    // Each port has a connection to one server. For another server, connect() may choose these ports again, but bind() may not.
    let one = Client { to: addr(TO), no_port: true, ..address_only };
    let open: Vec<Socket> = (0..8).map(|_| one.connect().expect("a connection")).collect();
    assert_eq!(address_only.connect_failure(), Some(("bind", "EADDRINUSE".into())));
    let blocked = document(&other, 1);
    assert_eq!(answer(&blocked), ["blocked", "exhausted", "bind", "EADDRINUSE"]);
    assert_eq!((&blocked["with"], &blocked["attempts"][0]["bind"]), (&json!("none"), &json!("EADDRINUSE")));
    ask(&other, 1)
        .prints("because each port that bind() may choose is in use on 127.0.0.1")
        .prints("connect() then chooses the port, and 8 of 8 ports can serve this destination");
    run(&step(&other, "bind-address-no-port"))
        .code(0)
        .prints("free, 8 of 8 ports are left")
        .prints("Without IP_BIND_ADDRESS");
    assert_eq!(Client { no_port: true, ..address_only }.connect_failure(), None);
    // For the server of these connections, neither bind() nor connect() finds a port.
    assert_eq!(answer(&document(&args, 1)), ["blocked", "exhausted", "bind", "EADDRINUSE"]);
    assert!(!steps(&args).iter().any(|step| step.contains("no-port")), "connect() finds no port either");
    drop(open);
    // connect() does not choose a port that a socket has bound on 127.0.0.9, but bind() of 127.0.0.1 may choose this port.
    let _others: Vec<Socket> = (0..8).map(|i| bound(&format!("127.0.0.9:{}", LOW + i))).collect();
    ask(&[TO], 1).prints("because all ports of 40000-40007 are reserved or explicitly bound");
    let free = document(&args, 0);
    assert_eq!((answer(&free), &free["free"]), (["free", "none", "-", "-"], &json!(0)));
    ask(&args, 0)
        .prints(": free, bind() finds a port")
        .prints("With IP_BIND_ADDRESS_NO_PORT, connect() would fail with EADDRNOTAVAIL");
    assert_eq!(Client { to: addr(TO), ..address_only }.connect_failure(), None, "bind() finds a port");
    let no_port = [args.as_slice(), &["--with", "bind-address-no-port"]].concat();
    assert_eq!(answer(&document(&no_port, 1)), ["blocked", "exhausted", "connect", "EADDRNOTAVAIL"]);
    ask(&no_port, 1).prints("without IP_BIND_ADDRESS_NO_PORT still gets a port");
    assert_eq!(
        Client { no_port: true, to: addr(TO), ..address_only }.connect_failure(),
        Some(("connect", "EADDRNOTAVAIL".into()))
    );
}

fn free_in_is_the_remaining_time_of_the_bucket_that_ends_first() {
    kernel::needs(kernel::has_port_range_option(), "IP_LOCAL_PORT_RANGE");
    narrow_range(4);
    let server = serve(TO);
    buckets(3, "127.0.0.1", &server);
    let open = connect(Some("127.0.0.1".parse().expect("an address")), addr(TO)).expect("a connection");
    let expiries = || {
        let records = twtool(["list", "-o", "ndjson"]).ok().ndjson();
        records.iter().map(|record| number(record, "expires_ms")).min().expect("buckets")
    };
    let before = expiries();
    let free_in = number(&document(&[TO], 1), "free_in_ms");
    assert!((expiries()..=before).contains(&free_in), "{free_in} of {before}");
    ask(&[TO], 1).prints("; the first port is free in ");
    drop(open);
}

fn buckets_that_may_be_reusable_make_the_verdict_unknown() {
    kernel::needs(kernel::has_exact_ages(), "tcp_tw_reuse_delay");
    narrow_range(4);
    let server = serve(TO);
    buckets(4, "127.0.0.1", &server);
    set("ipv4.tcp_tw_reuse", 1);
    set("ipv4.tcp_tw_reuse_delay", 1);
    // The buckets must be older than the delay of 1 ms. Their age has the resolution of a tick, which is at most 10 ms.
    std::thread::sleep(std::time::Duration::from_millis(25));
    let cookies = bucket_cookies();
    let document = document(&[TO], 2);
    assert_eq!(answer(&document), ["unknown", "time-wait", "connect", "EADDRNOTAVAIL"]);
    assert_eq!((&document["inferred"], number(&document, "free")), (&json!("free"), 4));
    ask(&[TO], 2).prints(": unknown, probably free (inferred): every port is in use");
    assert_eq!(bucket_cookies(), cookies);
    assert_eq!(cookies.len(), 4);
    assert_eq!(client(None, TO, false).connect_failure(), None);
}

/// Checks that the verdict is `denied`, and that twtool names the call and the errno with which the kernel refuses this client.
#[track_caller]
fn is_denied(client: &Client, cause: &str) {
    let failure = client.connect_failure();
    let words = client.arguments();
    let args: Vec<&str> = words[1..].iter().map(String::as_str).collect();
    let document = document(&args, 1);
    let (call, errno) = failure.unwrap_or_else(|| panic!("{client:?} works"));
    assert_eq!(answer(&document), ["denied", cause, call, &errno], "{client:?}");
}

fn failures_that_are_not_about_ports_have_the_errno_of_the_kernel() {
    addresses::add("10.0.0.1");
    addresses::add("2001:db8::1");
    for (from, to, cause) in [
        (None, "192.0.2.1:443", "no-route"),
        (None, "255.255.255.255:443", "no-route"),
        (None, "[2001:db8:9::1]:443", "no-route"),
        (None, "[fe80::7]:443", "no-route"),
        (None, "[::ffff:192.0.2.1]:443", "no-route"),
        (Some("192.0.2.9:0"), TO, "address-not-local"),
        (Some("192.0.2.9:15060"), TO, "address-not-local"),
        (Some("[2001:db8::9]:0"), "[::1]:443", "address-not-local"),
        (Some("[fe80::7]:15060"), "[::1]:443", "unknown"),
        // bind() fails before connect() looks for a route.
        (Some("192.0.2.9:15060"), "192.0.2.1:443", "address-not-local"),
    ] {
        is_denied(&client(from, to, false), cause);
    }
    ask(&["192.0.2.1:443"], 1)
        .prints("ENETUNREACH (Network is unreachable) because the kernel has no route to this address");
    sysctl::write("ipv6.bindv6only", "1").expect("the namespace is ours");
    is_denied(&client(None, "[::ffff:10.0.0.1]:443", false), "no-route");
    sysctl::write("ipv6.bindv6only", "0").expect("the namespace is ours");
    ask(&["[::ffff:10.0.0.1]:443", "--from", "::ffff:10.0.0.1"], 0);
    sysctl::write("ipv6.conf.all.disable_ipv6", "1").expect("the namespace is ours");
    is_denied(&client(None, "[::1]:443", false), "no-route");
    is_denied(&client(Some("[::1]:0"), "[::1]:443", false), "address-not-local");
    ask(&["[::1]:443"], 1).prints("because this network namespace has no address that can be the source");
}

fn forbidden_routes_have_the_errno_of_the_kernel() {
    if !has("ip") {
        return not_checked("connect-test on forbidden routes: there is no ip(8)");
    }
    for line in [
        "ip route add unreachable 192.0.2.1",
        "ip route add prohibit 192.0.2.2",
        "ip route add blackhole 192.0.2.3",
        "ip addr add 10.9.0.1/24 brd 10.9.0.255 dev lo",
        "ip route add 192.0.2.64/26 dev lo",
        "ip route add broadcast 192.0.2.127 dev lo table local",
        "ip -6 route add unreachable 2001:db8:9::1",
        "ip -6 route add prohibit 2001:db8:9::2",
    ] {
        succeeds(line);
    }
    for to in [
        "192.0.2.1:443",
        "192.0.2.2:443",
        "192.0.2.3:443",
        "10.9.0.255:443",
        "192.0.2.127:443",
        "[2001:db8:9::1]:443",
        "[2001:db8:9::2]:443",
    ] {
        let client = client(None, to, false);
        // connect() may succeed over some of these routes. twtool must agree with the kernel in both cases.
        if client.connect_failure().is_some() {
            is_denied(&client, "no-route");
        } else {
            ask(&[to], 0);
        }
    }
    is_denied(&client(None, "192.0.2.127:443", false), "no-route");
}

fn the_scope_of_an_address_names_the_interface() {
    addresses::add("fe80::1");
    let _server = serve("[fe80::1%1]:443");
    let document = document(&["[fe80::1%lo]:443", "--from", "fe80::1%lo"], 0);
    let end =
        |port: Value, service: Value| json!({"addr": "fe80::1", "port": port, "service": service, "interface": "lo"});
    assert_eq!(document["to"], end(json!(443), json!("https")));
    assert_eq!(document["from"], end(Value::Null, Value::Null));
    assert_eq!(client(Some("[fe80::1%1]:0"), "[fe80::1%1]:443", false).connect_failure(), None);
    is_denied(&client(None, "[fe80::1]:443", false), "no-route");
    let fixed = ask(&["[fe80::1%lo]:443", "--from", "[fe80::1%lo]:15060"], 0);
    fixed.prints("connect() from [fe80::1%lo]:15060 to [fe80::1%lo]:443: free");
    let open = client(Some("[fe80::1%1]:15060"), "[fe80::1%1]:443", true).connect().expect("a connection");
    let blocked = self::document(&["[fe80::1%lo]:443", "--from", "[fe80::1%lo]:15060", "--with", "reuseaddr"], 1);
    assert_eq!(answer(&blocked), ["blocked", "address-in-use", "connect", "EADDRNOTAVAIL"]);
    assert_eq!(
        client(Some("[fe80::1%1]:15060"), "[fe80::1%1]:443", true).connect_failure(),
        Some(("connect", "EADDRNOTAVAIL".into()))
    );
    drop(open);
}

fn a_link_local_address_without_its_scope_is_named_as_the_reason() {
    addresses::add("fe80::1");
    let _server = serve("[fe80::1%1]:443");
    for (from, to, addr, cause) in [
        (None, "[fe80::1]:443", "fe80::1", "no-route"),
        (Some("[::1]:0"), "[fe80::1]:443", "fe80::1", "no-route"),
        (Some("[::]:15060"), "[fe80::1]:443", "fe80::1", "no-route"),
        (Some("[fe80::1]:0"), "[fe80::1%1]:443", "fe80::1", "unknown"),
        (Some("[fe80::1]:15060"), "[::1]:443", "fe80::1", "unknown"),
        (Some("[fe80::7]:0"), "[fe80::1]:443", "fe80::7", "unknown"),
    ] {
        let client = client(from, to, false);
        is_denied(&client, cause);
        let words = client.arguments();
        let args: Vec<&str> = words[1..].iter().map(String::as_str).collect();
        ask(&args, 1)
            .prints(&format!(
                "EINVAL (Invalid argument) because the link-local address {addr} does not name its interface"
            ))
            .prints("%eth0");
        let steps = steps(&args);
        assert_eq!(steps, ["ip -6 address show scope link"], "{args:?}");
        if has("ip") {
            succeeds(&steps[0]).prints("fe80::1");
        }
    }
    // bind() to an address with a scope sets the interface of the socket. So the destination needs no scope.
    assert_eq!(client(Some("[fe80::1%1]:0"), "[fe80::1]:443", false).connect_failure(), None);
    ask(&["[fe80::1]:443", "--from", "fe80::1%lo"], 0);
    // Other commands also name a missing scope.
    let bind = twtool(["bind-test", "0", "--addr", "fe80::1", "--json"]).code(1).json();
    assert_eq!((&bind["cause"], &bind["next"]), (&json!("unknown"), &json!([])));
    assert!(bind["advice"][0].as_str().is_some_and(|why| why.contains("needs its interface as scope")), "{bind}");
    twtool(["capacity", "--to", "[fe80::1]:443"]).code(2).says("needs its interface as scope, like fe80::1%eth0");
    let elsewhere = twtool(["capacity", "--to", "192.0.2.1:443"]).code(2);
    assert!(!elsewhere.stderr.contains("scope"), "{elsewhere}");
}

fn a_privileged_source_port_needs_the_capability() {
    ask(&[TO, "--from", "127.0.0.1:99"], 0);
    drop_capability(Capability::CAP_NET_BIND_SERVICE);
    is_denied(&client(Some("127.0.0.1:99"), TO, false), "privileged-port");
    ask(&[TO, "--from", "127.0.0.1:99"], 1).prints("EACCES (Permission denied) because the source port needs");
    ask(&[TO, "--from", "127.0.0.1"], 0);
}

fn missing_ipv6_is_reported() {
    refuse_ipv6();
    for args in [["[::1]:443"].as_slice(), &["[::1]:443", "--from", "[::1]:15060"], &["[::1]:443", "--from", "::1"]] {
        assert_eq!(answer(&document(args, 1)), ["denied", "family-unsupported", "socket", "EAFNOSUPPORT"]);
    }
    ask(&["[::1]:443"], 1).prints("because IPv6 sockets cannot be created here");
    ask(&[TO], 0);
}

fn an_option_without_effect_causes_a_warning() {
    let run = twtool(["connect-test", TO, "--from", "127.0.0.1", "--with", "reuseaddr"]).code(0);
    run.says("--with reuseaddr has no effect without a source port");
    for from in [[].as_slice(), &["--from", FROM]] {
        let run = twtool([&["connect-test", TO, "--with", "bind-address-no-port"], from].concat()).code(0);
        run.says("--with bind-address-no-port has an effect only with an address without a port");
    }
}

/// The commands that `connect-test` prints for these arguments.
fn steps(args: &[&str]) -> Vec<String> {
    let document = twtool([&["connect-test", "--json"], args].concat()).json();
    document["next"].as_array().expect("commands").iter().map(|step| text(step, "command").to_owned()).collect()
}

#[track_caller]
fn step(args: &[&str], part: &str) -> String {
    let steps = steps(args);
    steps.iter().find(|step| step.contains(part)).unwrap_or_else(|| panic!("no {part} in {steps:?}")).clone()
}

fn each_printed_command_has_the_effect_that_its_purpose_names() {
    let server = serve(TO);
    // The bucket blocks a client without SO_REUSEADDR. The printed commands test again with this option, wait for the end of the bucket,
    // and remove the bucket.
    bucket(&server, true);
    let plain = [TO, "--from", FROM];
    let again = run(&step(&plain, "--with reuseaddr")).code(2);
    assert!(again.stdout.contains("127.0.0.1:15060 to 127.0.0.1:443: unknown"), "{again}");
    let other = step(&["127.0.0.1:444", "--from", FROM], "--with reuseaddr");
    succeeds(&other);
    assert_eq!(client(Some(FROM), "127.0.0.1:444", true).connect_failure(), None);
    let wait = step(&plain, " wait ");
    let waiting = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| run(&wait));
        if kernel::destroys_buckets() {
            let kill = step(&plain, " kill ");
            run(&format!("{kill} --yes")).code(0);
        }
        waiting.join().expect("a run")
    });
    waiting.code(0);
    assert_eq!(client(Some(FROM), TO, false).connect_failure(), None);

    // If connections use all ports of the range, one command shows what uses them, and another one widens the range.
    narrow_range(2);
    let open: Vec<Socket> =
        (0..2).map(|_| connect(Some("127.0.0.1".parse().expect("an address")), addr(TO)).expect("a port")).collect();
    for args in [[TO].as_slice(), &[TO, "--from", "127.0.0.1"]] {
        run(&step(args, " capacity ")).code(0).prints("0 of 2");
    }
    run(&step(&[TO], "ip_local_port_range")).code(0);
    assert_eq!(client(None, TO, false).connect_failure(), None, "the wider range helps");
    drop(open);

    if !has("ip") {
        return not_checked("what connect-test prints about routes: there is no ip(8)");
    }
    let routes = succeeds(&step(&["192.0.2.1:443"], "ip route"));
    assert!(!routes.stdout.contains("192.0.2"), "{routes}");
    succeeds(&step(&["[2001:db8::1]:443"], "ip -6 route"));
    sysctl::write("ipv6.conf.all.disable_ipv6", "1").expect("the namespace is ours");
    let addresses = succeeds(&step(&["[::1]:443"], "ip -6 address"));
    assert!(!addresses.stdout.contains("::1"), "{addresses}");
    succeeds(&step(&[TO, "--from", "192.0.2.9"], "ip address"));
}

fn an_error_names_the_wrong_argument_and_the_allowed_values() {
    let refused = |args: &[&str], word: &str, allowed: &str| {
        let run = twtool([&["connect-test"], args].concat()).refused(word);
        assert!(run.stderr.contains(allowed), "expected {allowed:?} on stderr{run}");
    };
    refused(&["127.0.0.1"], "127.0.0.1", "needs a port");
    refused(&["::1:443"], "::1:443", "[2001:db8::1]:443");
    refused(&["localhost:443"], "localhost", "not resolved");
    refused(&["0.0.0.0:443"], "0.0.0.0", "127.0.0.1");
    refused(&["[::]:443"], "::", "::1");
    refused(&["224.0.0.1:443"], "224.0.0.1", "multicast");
    refused(&["[ff02::1]:443"], "ff02::1", "multicast");
    refused(&["127.0.0.1:0"], "0", "1-65535");
    refused(&["127.0.0.1:80-90"], "80-90", "1-65535");
    refused(&["127.0.0.1:nosuch"], "nosuch", "0-65535");
    refused(&["[fe80::1%nosuch]:443"], "nosuch", "lo");
    refused(&["[2001:db8::1%lo]:443"], "2001:db8::1%lo", "link-local");
    refused(&[TO, "--from", "::1"], "::1", "other IP version");
    refused(&["[::ffff:127.0.0.1]:443", "--from", "::1"], "::1", "other IP version");
    refused(&["[::1]:443", "--from", "127.0.0.1"], "127.0.0.1", "other IP version");
    refused(&[TO, "--from", "127.0.0.1:8-9"], "8-9", "one source port");
    refused(&[TO, "--from", "224.0.0.1"], "224.0.0.1", "multicast");
    refused(&[TO, "--from", "nosuch"], "nosuch", "IPv6");
    refused(&[TO, "--with", "reuseport"], "reuseport", "reuseaddr");
    refused(&[TO, "-6"], "127.0.0.1", "-6");
    refused(&["[::1]:443", "-4"], "::1", "-4");
    refused(&[TO, "-o", "csv"], "csv", "json");
    refused(&[], "required", "<ADDR:PORT>");
}
