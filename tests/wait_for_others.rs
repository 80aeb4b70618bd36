//! `twtool wait` for listeners, connections, bound sockets and missing addresses, and cases in which a wait is not possible.

use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use caps::Capability;
use serde_json::json;
use socket2::Socket;
use twtool::lab::{ActiveCloser, Server};
use twtool::model::bind::ReuseOptions;

use crate::support::bind::bind;
use crate::support::crowd::Killer;
use crate::support::limits::{drop_capability, refuse_ipv6};
use crate::support::records::{number, text};
use crate::support::situations::{addr, connect};
use crate::support::twtool::{PATH, Run, twtool};
use crate::support::waiter::{Ended, Waiter};
use crate::support::{addresses, kernel, measured, procfs, suite};

suite! {
    pure: [],
    netns: [
        a_listener_is_waited_for_and_named,
        a_wait_lasts_until_every_listener_that_shares_the_port_ends,
        a_connection_is_waited_for_and_then_its_bucket,
        a_socket_that_is_only_bound_is_waited_for,
        an_address_that_is_added_ends_the_wait,
        a_bind_that_is_denied_ends_the_wait_at_once,
        invalid_arguments_are_refused,
    ],
}

fn socket(at: &str, options: ReuseOptions) -> Socket {
    let socket = twtool::sys::bind::socket(addr(at).ip(), options).expect("a socket");
    socket.bind(&addr(at).into()).unwrap_or_else(|error| panic!("binding {at}: {error}"));
    socket
}

/// Starts a process that holds the socket as its standard input.
fn holder(socket: Socket) -> Child {
    let mut sleep = Command::new("sleep");
    sleep.arg("600").stdin(OwnedFd::from(socket)).stdout(Stdio::null());
    sleep.spawn().expect("sleep can be started")
}

fn end(mut child: Child) {
    child.kill().expect("our own child");
    child.wait().expect("our own child");
}

/// Asserts that the wait ends with a free port, after at most this number of binds.
#[track_caller]
fn ended(waiter: Waiter, what: &str, most_binds: u64) {
    let gone = std::time::Instant::now();
    let Ended { run, last } = waiter.end();
    let late = gone.elapsed();
    run.code(0);
    assert_eq!((&last["bindable"], &last["cause"]), (&json!(true), &json!("none")), "{last}");
    let attempts = number(&last, "attempts");
    assert!(attempts <= most_binds, "{what}: {attempts} binds");
    assert_eq!(bind("::", 8080, &[], false).0, "ok");
    measured(format!("wait: it ended {late:.0?} after the end of {what}, with {attempts} binds"));
}

fn a_listener_is_waited_for_and_named() {
    for (at, with) in [("0.0.0.0:8080", "reuseaddr"), ("[::1]:8080", "none"), ("127.0.0.1:8080", "reuseport")] {
        let socket = socket(at, ReuseOptions::REUSEADDR);
        socket.listen(1).expect("listening");
        let child = holder(socket);
        let mut waiter = Waiter::start(&["8080", "--with", with]);
        let record = waiter.blocked("listener");
        let [blocks] = record["blocked_by"].as_array().expect("holders").as_slice() else { panic!("{record}") };
        assert_eq!((text(blocks, "state"), text(&blocks["processes"][0], "comm")), ("listen", "sleep"), "{record}");
        assert_eq!(blocks["processes"][0]["pid"], child.id());
        let run = twtool(["wait", "8080", "--timeout", "100ms"]).code(1);
        assert!(run.stdout.contains(&format!("sleep (pid {}", child.id())) && run.stdout.contains("listens"), "{run}");
        std::thread::sleep(Duration::from_millis(1200));
        assert!(!waiter.has_ended());
        end(child);
        ended(waiter, &format!("a listener on {at}"), 15);
    }
}

fn a_wait_lasts_until_every_listener_that_shares_the_port_ends() {
    let listener = || {
        let socket = socket("0.0.0.0:8080", ReuseOptions::REUSEPORT);
        socket.listen(1).expect("listening");
        socket
    };
    let mut listeners: Vec<Socket> = (0..3).map(|_| listener()).collect();
    twtool(["wait", "8080", "--with", "reuseport", "--timeout", "0"]).ok();
    let mut waiter = Waiter::start(&["8080"]);
    assert_eq!(waiter.blocked("listener")["blocked_by"].as_array().map(Vec::len), Some(3));
    // A look-up by address and port returns only one of the three listeners. It would not show the end of another listener.
    std::thread::sleep(Duration::from_millis(1500));
    listeners.pop();
    assert_eq!(waiter.blocked("listener")["blocked_by"].as_array().map(Vec::len), Some(2));
    assert!(!waiter.has_ended());
    drop(listeners);
    ended(waiter, "the last of three listeners", 25);
}

fn a_connection_is_waited_for_and_then_its_bucket() {
    let server = Server::listen(addr("127.0.0.1:8080"), ReuseOptions::NONE).expect("a server");
    let connection = connect(&server, "127.0.0.1:8080");
    drop(server);
    let mut waiter = Waiter::start(&["8080"]);
    let record = waiter.blocked("connection");
    assert_eq!(text(&record["blocked_by"][0], "state"), "established");
    let cookie = text(&record["blocked_by"][0], "cookie").to_owned();
    connection.close(ActiveCloser::Server).expect("a bucket");
    // A record may show the connection in a state before TIME_WAIT.
    let bucket = loop {
        let record = waiter.record();
        assert_eq!(record["bindable"], false, "{record}");
        if record["cause"] == "time-wait-without-reuseaddr" && record["blocked_by"][0]["state"] == "time-wait" {
            break record;
        }
    };
    let blocks = &bucket["blocked_by"][0];
    assert_eq!((text(blocks, "cookie"), &blocks["processes"]), (cookie.as_str(), &json!([])), "{bucket}");
    kernel::needs(kernel::destroys_buckets(), "SOCK_DESTROY of buckets");
    let entry = procfs::buckets()[0];
    Killer::new().destroy((entry.local.into(), entry.remote.into()));
    ended(waiter, "a connection and its bucket", 20);
}

fn a_socket_that_is_only_bound_is_waited_for() {
    let idle = socket("0.0.0.0:8080", ReuseOptions::NONE);
    let mut waiter = Waiter::start(&["8080"]);
    // Kernels before 6.8 do not list a socket that is only bound. Then the cause may be unknown.
    let record = waiter.record();
    assert!(record["cause"] == "bound" || record["cause"] == "unknown", "{record}");
    std::thread::sleep(Duration::from_millis(1200));
    assert!(!waiter.has_ended());
    drop(idle);
    ended(waiter, "a bound socket", 20);
}

fn an_address_that_is_added_ends_the_wait() {
    let mut waiter = Waiter::start(&["8080", "--addr", "192.0.2.1", "--addr", "127.0.0.1"]);
    let record = waiter.blocked("address-not-local");
    assert_eq!((&record["addrs"], &record["blocked_by"]), (&json!(["192.0.2.1", "127.0.0.1"]), &json!([])));
    addresses::add("192.0.2.1");
    let Ended { run, last } = waiter.end();
    run.ok();
    assert!(last["bindable"] == true && number(&last, "attempts") < 20, "{last}");
    let run = twtool(["wait", "8080", "--addr", "192.0.2.2", "--timeout", "200ms"]).code(1).says("192.0.2.2");
    assert!(run.stdout.contains("does not have the address yet"), "{run}");
}

fn a_bind_that_is_denied_ends_the_wait_at_once() {
    let denied = |args: &[&str], cause: &str, word: &str| {
        let run = twtool([&["wait"], args, &["--json"]].concat()).code(1).says(word);
        let document = run.json();
        assert_eq!((&document["bindable"], &document["complete"]), (&json!(false), &json!(true)), "{run}");
        assert_eq!((text(&document, "cause"), number(&document, "waited_ms") < 30_000), (cause, true), "{run}");
        assert!(document["warnings"].to_string().contains(word), "{run}");
        let run = twtool([&["wait"], args].concat()).code(1).says(word);
        assert!(run.stdout.contains("denied"), "{run}");
        let run = twtool([&["wait", "-q"], args, &["--", "echo", "started"]].concat()).code(1);
        assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("", ""), "{run}");
        // On a terminal, stdout and stderr are one text. The verdict comes first.
        let mut shell = Command::new("sh");
        shell.args(["-c", "exec \"$@\" 2>&1", "sh", PATH, "wait"]).args(args);
        let run = Run::of(&mut shell).code(1);
        let place = |text: &str| run.stdout.find(text).unwrap_or_else(|| panic!("no {text:?}{run}"));
        assert!(place("denied") < place("warning: "), "{run}");
        let document = twtool([&["bind-test"], args, &["--json"]].concat()).code(1).json();
        assert_eq!((text(&document, "verdict"), text(&document, "cause")), ("denied", cause));
    };
    denied(&["8080", "--addr", "fe80::1"], "unknown", "scope");
    drop_capability(Capability::CAP_NET_BIND_SERVICE);
    denied(&["80"], "privileged-port", "CAP_NET_BIND_SERVICE");
    refuse_ipv6();
    denied(&["8080", "--addr", "::1"], "family-unsupported", "EAFNOSUPPORT");
    let run = twtool(["wait", "8080", "--json"]).code(0).says("::");
    assert_eq!(run.json()["addrs"], json!(["0.0.0.0"]));
}

fn invalid_arguments_are_refused() {
    for (args, word) in [
        (["0"].as_slice(), "'0'"),
        (&["8080-8090"], "8080-8090"),
        (&["65536"], "65536"),
        (&["-1"], "-1"),
        (&["httpz"], "httpz"),
        (&[""], "''"),
        (&["8080", "8081"], "8081"),
        (&["8080", "-o", "csv"], "csv"),
        (&["8080", "--with", "everything"], "everything"),
        (&["8080", "--addr", "localhost"], "localhost"),
        (&["8080", "--addr", "127.0.0.1%lo"], "lo"),
        (&["8080", "-4", "--addr", "::1"], "::1"),
        (&["8080", "--timeout", "5"], "'5'"),
        (&["8080", "--timeout", "soon"], "soon"),
        (&["8080", "--timeout=-1s"], "-1s"),
        (&["8080", "--timeout", ""], "--timeout"),
        (&["8080", "--frob"], "--frob"),
        (&["8080", "sh", "-c", "true"], "sh"),
    ] {
        twtool([&["wait"], args].concat()).refused(word);
    }
    assert!(twtool(["wait"]).code(2).stdout.is_empty());
}
