//! The *note* of SO_REUSEPORT: the user and address that a bind with SO_REUSEPORT stores in the kernel, so that the kernel does not
//! check later SO_REUSEPORT binds of this user for conflicts (docs/commands/bind-test.md). A note of `bind-test` must not change the
//! results of `bind-test`, and must be gone or reported when `bind-test` ends.

use std::process::Command;

use caps::Capability;
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use twtool::lab::{ActiveCloser, Server};
use twtool::model::bind::ReuseOptions;

use crate::support::bind::{OpenSockets, bind};
use crate::support::limits::drop_capability;
use crate::support::netns::on_thread_in_new_namespace;
use crate::support::situations::{addr, connect};
use crate::support::twtool::{PATH, Run, program, twtool};
use crate::support::{measured, not_checked, suite};

suite! {
    pure: [],
    netns: [
        no_result_depends_on_a_note_and_a_note_that_stays_is_reported,
        a_lost_note_of_a_server_is_reported,
        an_interrupted_bind_test_leaves_no_note,
        a_bind_test_that_runs_out_of_descriptors_leaves_no_note,
    ],
}

/// A socket on port 8080 that exists while bind-test runs.
#[derive(Clone, Copy, Debug)]
struct OtherSocket {
    at: &'static str,
    v6only: bool,
    options: ReuseOptions,
    listens: bool,
    /// If this is an address, a server with SO_REUSEPORT first leaves a bucket on it.
    bucket: Option<&'static str>,
}

impl OtherSocket {
    /// Every combination of three wildcard sockets, four sets of options, listening or not, and three choices of the bucket.
    fn all() -> Vec<Self> {
        let mut all = vec![];
        for (at, v6only) in [("0.0.0.0", false), ("::", false), ("::", true)] {
            for options in ReuseOptions::ALL {
                for listens in [false, true] {
                    for bucket in [None, Some("127.0.0.1"), Some("::1")] {
                        all.push(Self { at, v6only, options, listens, bucket });
                    }
                }
            }
        }
        all
    }

    /// Makes the bucket and then the socket; `None` if the bucket blocks bind() or listen() of the socket.
    fn make(&self) -> Option<OpenSockets> {
        if let Some(bucket) = self.bucket {
            let at = if bucket.contains(':') { format!("[{bucket}]:8080") } else { format!("{bucket}:8080") };
            let server = Server::listen(addr(&at), ReuseOptions::REUSEPORT).expect("listening");
            connect(&server, &at).close(ActiveCloser::Server).expect("a bucket");
        }
        let ipv6 = self.at.contains(':');
        let socket = Socket::new(if ipv6 { Domain::IPV6 } else { Domain::IPV4 }, Type::STREAM, None).expect("a socket");
        socket.set_reuse_address(self.options.reuseaddr).expect("SO_REUSEADDR");
        socket.set_reuse_port(self.options.reuseport).expect("SO_REUSEPORT");
        if ipv6 {
            socket.set_only_v6(self.v6only).expect("IPV6_V6ONLY");
        }
        let at = if ipv6 { format!("[{}]:8080", self.at) } else { format!("{}:8080", self.at) };
        socket.bind(&addr(&at).into()).ok()?;
        if self.listens {
            socket.listen(1).ok()?;
        }
        // The note of an IPv6-only socket with SO_REUSEPORT would change later results. This bind clears it. Beside a wildcard socket of
        // another kind, this bind fails.
        let _ = bind("127.0.0.77", 8080, &[], false);
        Some(Box::new(socket))
    }
}

const ADDRS: [&str; 2] = ["::", "0.0.0.0"];
const SHARED: &[&str] = &["SO_REUSEPORT"];

/// The result of a second server's bind on each of [`ADDRS`]; `None` if `other` cannot be made.
fn second_server(other: &OtherSocket) -> Option<Vec<String>> {
    let get = |at: &&str| on_thread_in_new_namespace(|| other.make().map(|_kept| bind(at, 8080, SHARED, false).0));
    ADDRS.iter().map(get).collect()
}

/// Runs bind-test, and then makes the bind of a second server on `at`. Without `admin`, bind-test lacks CAP_NET_ADMIN. Returns the JSON
/// and the run of bind-test, and the result of the bind.
fn second_server_after(other: &OtherSocket, at: &str, admin: bool) -> Option<(Value, Run, String)> {
    on_thread_in_new_namespace(|| {
        let _kept = other.make()?;
        if !admin {
            drop_capability(Capability::CAP_NET_ADMIN);
        }
        let run = twtool(["bind-test", "8080", "--json"]);
        let after = bind(at, 8080, SHARED, false).0;
        Some((run.json(), run, after))
    })
}

fn no_result_depends_on_a_note_and_a_note_that_stays_is_reported() {
    let (mut checked, mut left) = (0, vec![]);
    for other in OtherSocket::all() {
        let Some(expected) = second_server(&other) else { continue };
        for (at, expected) in ADDRS.iter().zip(&expected) {
            for admin in [true, false] {
                let Some((document, run, after)) = second_server_after(&other, at, admin) else { continue };
                checked += 1;
                if document["note_lost"] == true {
                    left.push((other, admin));
                    continue;
                }
                assert_eq!(&after, expected, "SO_REUSEPORT on {at} after the test, {other:?}{run}");
                let attempts = document["attempts"].as_array().expect("attempts");
                let own = attempts.iter().find(|one| one["addr"] == *at && one["options"] == serde_json::json!(SHARED));
                assert_eq!(own.expect("every address")["bind"], **expected, "on {at} beside {other:?}{run}");
            }
        }
    }
    measured(format!("bind-test: a note stayed in {} of {checked} situations", left.len()));
    assert!(checked > 200, "{checked}");
    // A note may stay only beside a dual-stack wildcard socket (`::` without IPV6_V6ONLY), because there every ordinary bind that would
    // clear the note can conflict. With CAP_NET_ADMIN, bind-test clears the note there, too (TCP_REPAIR).
    assert!(left.iter().all(|(other, admin)| other.at == "::" && !other.v6only && !admin), "{left:?}");
}

/// Makes a listener on ::1. Then a server on 0.0.0.0 with SO_REUSEPORT runs and ends, and leaves a bucket and a note. Because
/// of the note, the kernel does not check a bind on `::` with SO_REUSEPORT against ::1, so the bind works. Returns the listener.
fn note_of_a_server() -> Server {
    let ipv6 = Server::listen(addr("[::1]:8080"), ReuseOptions::NONE).expect("listening");
    let server = Server::listen(addr("0.0.0.0:8080"), ReuseOptions::REUSEPORT).expect("listening");
    connect(&server, "127.0.0.1:8080").close(ActiveCloser::Server).expect("a bucket");
    ipv6
}

fn a_lost_note_of_a_server_is_reported() {
    let before = on_thread_in_new_namespace(|| {
        let _ipv6 = note_of_a_server();
        [(); 2].map(|()| bind("::", 8080, SHARED, false).0)
    });
    if before != ["ok", "ok"] {
        return not_checked(
            "a bind-test that erases the note of a server: on this kernel, a note for 0.0.0.0 does not admit a bind on ::",
        );
    }
    for args in [&["--with", "reuseport"][..], &["--addr", "::", "--with", "reuseport"]] {
        on_thread_in_new_namespace(|| {
            let _ipv6 = note_of_a_server();
            let run = twtool([&["bind-test", "8080", "--json"], args].concat()).code(1);
            let document = run.json();
            assert_eq!((&document["note_lost"], &document["verdict"]), (&true.into(), &"blocked".into()), "{run}");
            assert!(document["warnings"].to_string().contains("note"), "{run}");
            assert_eq!(
                bind("::", 8080, SHARED, false).0,
                "EADDRINUSE",
                "a server gets the result that bind-test reported{run}"
            );
            let again = twtool([&["bind-test", "8080", "--json"], args].concat()).code(1);
            assert_eq!(again.json()["note_lost"], false, "the note is gone{again}");
        });
        on_thread_in_new_namespace(|| {
            let _ipv6 = note_of_a_server();
            let wait = twtool([&["wait", "8080", "--timeout", "0", "--json"], args].concat()).code(1);
            assert_eq!(wait.json()["bindable"], false, "a server would be refused now{wait}");
        });
    }
}

/// A bound socket with SO_REUSEADDR, and the bucket of a server that had SO_REUSEPORT. A bind on `::` with both options works, and
/// leaves a note. With this note, a bind on 0.0.0.0 with SO_REUSEPORT alone would work, too. Without the note, it fails.
const SECOND_SERVER_NEEDS_NOTE: OtherSocket =
    OtherSocket { at: "0.0.0.0", v6only: false, options: ReuseOptions::REUSEADDR, listens: false, bucket: Some("::1") };

/// Asserts that no note lets a second server bind the port.
fn refused(what: &str) {
    assert_eq!(bind("0.0.0.0", 8080, SHARED, false).0, "EADDRINUSE", "a second server after {what}");
}

fn an_interrupted_bind_test_leaves_no_note() {
    let Some(strace) = program("strace") else {
        return not_checked("a bind-test that is interrupted between its binds: strace is not installed");
    };
    let _kept = SECOND_SERVER_NEEDS_NOTE.make().expect("made");
    refused("nothing");
    let mut ended = 0;
    let signals = ["SIGINT", "SIGTERM", "SIGALRM"];
    for signal in signals {
        for bind in 1..=12 {
            let mut command = Command::new(&strace);
            command.args(["-f", "-o", "/dev/null", "-e", "trace=bind", "-e"]);
            command.arg(format!("inject=bind:signal={signal}:when={bind}"));
            let run = Run::of(command.args([PATH, "bind-test", "8080"]));
            ended += usize::from(run.code != Some(1));
            refused(&format!("{signal} at bind {bind}{run}"));
        }
    }
    if ended == 0 {
        return not_checked("a bind-test that is interrupted between its binds: strace cannot trace here");
    }
    assert_eq!(ended, signals.len() * 12, "each signal ends bind-test, after bind-test has cleared the note");
}

fn a_bind_test_that_runs_out_of_descriptors_leaves_no_note() {
    let _kept = SECOND_SERVER_NEEDS_NOTE.make().expect("made");
    let mut failed = 0;
    for limit in 3..16 {
        let script = format!("ulimit -n {limit}; exec \"$0\" bind-test 8080 --json");
        let run = Run::of(Command::new("sh").args(["-c", &script, PATH]));
        failed += usize::from(run.code == Some(2));
        refused(&format!("a limit of {limit} descriptors{run}"));
    }
    assert!(failed > 2, "{failed} runs lacked descriptors");
}
