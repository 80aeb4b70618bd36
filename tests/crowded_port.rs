//! A port with more than 2,000 sockets: JSON contains each of them once, and the table shows the most important ones.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::Value;
use twtool::lab::ActiveCloser;
use twtool::model::bind::ReuseOptions;

use crate::support::bind::bind;
use crate::support::records::{number, text};
use crate::support::situations::{addr, connect, half_closed, many_buckets};
use crate::support::suite;
use crate::support::twtool::{Run, twtool};
use crate::support::{kernel, procfs};

suite! {
    pure: [],
    netns: [
        each_of_thousands_of_sockets_on_a_port_is_named_once,
    ],
}

const BUCKETS: usize = 2500;
const CONNECTIONS: usize = 30;

/// What identifies a socket: local and remote address and port.
type Ends = (String, u64, String, u64);

/// The sockets on port 8080 in /proc/net/tcp, without the listener. (For the listener, twtool reports no remote end.)
fn on_the_port() -> BTreeSet<Ends> {
    let ends = |entry: &procfs::Entry| {
        let (local, remote) = (entry.local, entry.remote);
        (local.0.to_string(), local.1.into(), remote.0.to_string(), remote.1.into())
    };
    let listens = |entry: &procfs::Entry| entry.state == 10;
    procfs::sockets().iter().filter(|entry| entry.local.1 == 8080 && !listens(entry)).map(ends).collect()
}

fn ends(record: &Value) -> Ends {
    (
        text(record, "local_addr").into(),
        number(record, "local_port"),
        text(record, "remote_addr").into(),
        number(record, "remote_port"),
    )
}

/// The holders that `bind-test` reports. Asserts that each socket is reported once and blocks the bind.
fn holders(run: &Run) -> Vec<Value> {
    let holders = run.records("holders");
    let cookies: BTreeSet<&str> = holders.iter().map(|holder| text(holder, "cookie")).collect();
    assert_eq!(cookies.len(), holders.len(), "each socket once");
    assert!(holders.iter().all(|holder| holder["blocks"] == true), "all of them block the bind");
    holders
}

/// The TIME_WAIT sockets on port 8080. (After a simultaneous close, the client also has a bucket, on its own port.)
fn buckets_of_the_server() -> u64 {
    procfs::time_wait().iter().filter(|entry| entry.local.1 == 8080).count() as u64
}

fn each_of_thousands_of_sockets_on_a_port_is_named_once() {
    let server = twtool::lab::Server::listen(addr("127.0.0.1:8080"), ReuseOptions::NONE).expect("listening");
    let born = Instant::now();
    many_buckets(&server, "127.0.0.1:8080", BUCKETS);
    let half = half_closed(&server, "127.0.0.1:8080", ActiveCloser::Server);
    let open: Vec<_> = (0..CONNECTIONS).map(|_| connect(&server, "127.0.0.1:8080")).collect();
    let all = on_the_port();
    assert!(all.len() > BUCKETS + CONNECTIONS);

    let run = twtool(["bind-test", "8080", "--json"]).code(1);
    kernel::needs_young_buckets(born);
    assert_eq!(on_the_port(), all, "no timer has ended during the run");
    let document = run.json();
    assert_eq!(document["complete"], true, "{}", document["warnings"]);
    assert_eq!((text(&document, "verdict"), text(&document, "cause")), ("blocked", "listener"));
    assert_eq!(document["free_in_ms"], Value::Null, "a listener has no timer");
    let found = holders(&run);
    let (listening, others): (Vec<&Value>, Vec<&Value>) = found.iter().partition(|holder| holder["state"] == "listen");
    assert_eq!(listening.len(), 1);
    assert_eq!(others.iter().map(|holder| ends(holder)).collect::<BTreeSet<_>>(), all);
    let pid = u64::from(std::process::id());
    let owned = found.iter().filter(|holder| holder["processes"].as_array().is_some_and(|list| !list.is_empty()));
    let owned: Vec<&Value> = owned.collect();
    assert_eq!(owned.len(), 1 + CONNECTIONS, "buckets have no process");
    assert!(owned.iter().all(|holder| holder["processes"].to_string().contains(&format!("\"pid\":{pid}"))));

    kernel::needs_young_buckets(born);
    // The table does not show every socket, but it must show the listener, which decides the verdict.
    let page = twtool(["bind-test", "8080"]).code(1);
    let table = page.stdout.split("STATE ").nth(1).unwrap_or_else(|| panic!("no table{page}"));
    assert!(table.lines().count() < 20 && table.contains("\nlisten "), "{page}");
    let shown = table.lines().filter(|line| line.contains("127.0.0.1:8080")).count();
    page.prints(&format!("and {} more; -o json has all", found.len() - shown));
    let before = buckets_of_the_server();
    let ports = twtool(["port", "8080", "--json"]).ok().records("ports");
    let after = buckets_of_the_server();
    assert_eq!(ports[0]["listening"], true);
    // On a slow machine, some sockets enter TIME_WAIT late, when the last FIN or ACK arrives. So the number may change between
    // the two counts.
    let counted = number(&ports[0], "time_wait");
    assert!((before.min(after)..=before.max(after)).contains(&counted), "{counted} between {before} and {after}");

    // From here on, only buckets hold the port.
    drop(server);
    for connection in open {
        // A reset leaves no bucket.
        connection.client.set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
        drop(connection);
    }
    while on_the_port().len() > all.len() - CONNECTIONS {
        std::thread::yield_now();
    }
    kernel::needs_young_buckets(born);
    let left = on_the_port();
    let of_the_server = |entry: &procfs::Entry| entry.local.1 == 8080;
    let longest = || {
        let buckets = procfs::buckets().into_iter().filter(of_the_server);
        buckets.map(|entry| entry.when * procfs::UNIT_MS).max().expect("buckets")
    };
    let before = longest();
    let run = twtool(["bind-test", "8080", "--json"]).code(1);
    let after = longest();
    kernel::needs_young_buckets(born);
    let document = run.json();
    assert_eq!((text(&document, "cause"), &document["complete"]), ("time-wait-without-reuseaddr", &true.into()));
    assert_eq!(holders(&run).iter().map(ends).collect::<BTreeSet<_>>(), left);
    let free_in = number(&document, "free_in_ms");
    assert!(
        (after.saturating_sub(procfs::UNIT_MS)..=before + procfs::UNIT_MS).contains(&free_in),
        "{free_in} ms, and the longest timer {after}-{before} ms"
    );
    let count = buckets_of_the_server();
    twtool(["wait", "8080", "--timeout", "0"]).code(1).prints(&format!("{count} TIME_WAIT sockets"));
    let kill = twtool(["kill", "--local-port", "8080", "--fin-wait-2", "--dry-run", "--json"]).ok().json();
    assert_eq!(number(&kill, "matched"), left.len() as u64);
    assert_eq!(twtool(["list", "--local-port", "8080", "--count"]).ok().stdout, format!("{count}\n"));
    assert_eq!(bind("127.0.0.1", 8080, &["SO_REUSEADDR"], false).0, "EADDRINUSE");
    drop(half);
}
