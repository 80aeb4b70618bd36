//! One situation on the kernel, and the commands whose answers describe it. The values that differ between runs are removed from
//! the answers, so that tests can compare the answers of two runs.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use socket2::{Domain, Socket, Type};
use twtool::sys::{sandbox, sysctl};

use super::situations::addr;
use super::twtool::{Run, twtool};
use super::{kernel, procfs};

pub(crate) const COMMANDS: [(&str, &[&str]); 11] = [
    ("list", &["list", "--json", "--sort", "local"]),
    ("list csv", &["list", "-o", "csv"]),
    ("list dev", &["list", "-o", "csv", "--columns", "local,interface", "dev = lo"]),
    ("list procfs", &["list", "--source", "procfs", "-o", "csv"]),
    ("summary", &["summary", "--json"]),
    ("port", &["port", "443", "7100", "--json"]),
    ("bind-test", &["bind-test", "7100", "--json"]),
    ("wait", &["wait", "7100", "--timeout", "0", "--json"]),
    ("capacity", &["capacity", "--json"]),
    ("doctor", &["doctor", "--json"]),
    ("kill", &["kill", "--all", "--dry-run", "--json"]),
];

/// A situation with these sockets:
/// - a listener on 127.0.0.1:443, and a listener whose port the kernel chose
/// - the bucket of a client, whose socket was bound to `lo`
/// - an orphan in FIN_WAIT_2, and the socket at the other end of its connection, in CLOSE_WAIT
/// - a listener on port 7100 of `::` for IPv6 only, so that a server can bind 7100 on IPv4
pub(crate) struct MixedSituation {
    _open: [Socket; 4],
    made: Instant,
}

impl MixedSituation {
    pub(crate) fn make() -> Self {
        // With tcp_tw_reuse, connect() could take over the bucket when it is 1 s old.
        sysctl::write("ipv4.tcp_tw_reuse", "0").expect("the namespace is ours");
        let taken = Socket::new(Domain::IPV6, Type::STREAM, None).expect("a socket");
        taken.set_only_v6(true).expect("IPV6_V6ONLY");
        taken.bind(&addr("[::]:7100").into()).expect("bind()");
        taken.listen(1).expect("listen()");
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        listener.bind(&addr("127.0.0.1:443").into()).expect("bind()");
        listener.listen(1).expect("listen()");
        let chosen = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        chosen.listen(1).expect("listen()");
        let client = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        client.bind_device(Some(b"lo")).expect("SO_BINDTODEVICE");
        client.connect(&addr("127.0.0.1:443").into()).expect("connect()");
        let (accepted, _) = listener.accept().expect("accept()");
        drop(client);
        drop(accepted);
        // With a tcp_fin_timeout of 120 s, the kernel keeps the orphan as a full socket for 60 s.
        let usual = sysctl::read("ipv4.tcp_fin_timeout").expect("tcp_fin_timeout");
        sysctl::write("ipv4.tcp_fin_timeout", "120").expect("the namespace is ours");
        let orphan = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        orphan.connect(&addr("127.0.0.1:443").into()).expect("connect()");
        let (open, _) = listener.accept().expect("accept()");
        drop(orphan);
        let made = Instant::now();
        let is_orphan = |entry: &procfs::Entry| entry.state == 5 && entry.timer != 3;
        while procfs::time_wait().is_empty() || !procfs::sockets().iter().any(is_orphan) {
            assert!(
                made.elapsed() < kernel::patience(Duration::from_secs(10)),
                "the clients leave no bucket or no orphan"
            );
            thread::yield_now();
        }
        sysctl::write("ipv4.tcp_fin_timeout", &usual).expect("the namespace is ours");
        Self { _open: [taken, listener, chosen, open], made }
    }

    /// Whether the bucket lasts for about 20 s more, or longer.
    pub(crate) fn is_young(&self) -> bool {
        self.made.elapsed() < Duration::from_secs(40)
    }

    /// Makes the situation again in a new namespace, unless the bucket is young.
    pub(crate) fn refresh(&mut self) {
        if !self.is_young() {
            sandbox::enter_network_namespace().expect("another namespace");
            *self = Self::make();
        }
    }
}

/// The exit code of a run, and its standard output without the values that differ between runs.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RunAnswer {
    pub(crate) code: Option<i32>,
    pub(crate) content: Value,
}

impl RunAnswer {
    /// Reads the answer of a run. Output that is not JSON is read as csv.
    pub(crate) fn of(run: &Run) -> Self {
        let content = serde_json::from_str(&run.stdout).map_or_else(|_| csv(&run.stdout), comparable);
        Self { code: run.code, content }
    }

    /// Removes the values that depend on privileges: names of namespaces, processes, and the memory of the buckets.
    pub(crate) fn without_privileged_values(&self) -> Self {
        fn hide(value: &mut Value) {
            match value {
                Value::Object(map) => {
                    for key in ["netns_name", "processes", "memory"] {
                        map.remove(key);
                    }
                    map.values_mut().for_each(hide);
                }
                Value::Array(list) => {
                    list.iter_mut().for_each(hide);
                    // A caller without privileges cannot read some processes, so it may find a namespace only through a later process.
                    // Then a list may have another order.
                    list.sort_by_cached_key(Value::to_string);
                }
                _ => {}
            }
        }
        let mut hidden = self.clone();
        hide(&mut hidden.content);
        hidden
    }

    pub(crate) fn now(args: &[&str]) -> Self {
        Self::of(&twtool(args))
    }
}

/// Removes times, rates and warnings. Under the keys of `VARIES`, replaces each number by `#`, because these numbers differ between
/// runs. Two answers still differ if a value is unknown or missing in one of them, or if a text has other words.
fn comparable(value: Value) -> Value {
    const VARIES: [&str; 13] = [
        "netns",
        "counters",
        "history",
        "remaining",
        "evidence",
        "value",
        "advice",
        "finding",
        "sockstat_tw",
        "sockstat_difference",
        "reconciliation",
        "text",
        "attempts",
    ];
    // Warnings are dropped, because a run in which a system call failed may have one more.
    let dropped = |key: &str| key.ends_with("_ms") || key.contains("per_s") || ["taken_at", "warnings"].contains(&key);
    match value {
        Value::Object(map) => {
            let kept = map.into_iter().filter(|(key, _)| !dropped(key));
            let kept = kept.map(|(key, value)| {
                // In bind-test, attempts is a list. In wait, it is a number.
                let masked = VARIES.contains(&key.as_str()) && !(key == "attempts" && value.is_array());
                let value = comparable(value);
                (key, if masked { without_numbers(value) } else { value })
            });
            Value::Object(kept.collect::<Map<_, _>>())
        }
        Value::Array(list) => Value::Array(list.into_iter().map(comparable).collect()),
        value => value,
    }
}

fn without_numbers(value: Value) -> Value {
    match value {
        Value::Number(_) => "#".into(),
        Value::String(text) => {
            let mut masked = String::new();
            for c in text.chars() {
                match c {
                    '0'..='9' | '.' if masked.ends_with('#') => {}
                    '0'..='9' => masked.push('#'),
                    c => masked.push(c),
                }
            }
            masked.into()
        }
        Value::Array(list) => Value::Array(list.into_iter().map(without_numbers).collect()),
        Value::Object(map) => {
            Value::Object(map.into_iter().map(|(key, value)| (key, without_numbers(value))).collect())
        }
        value => value,
    }
}

/// Converts csv to an array: the header as text, then the records without the remaining time.
fn csv(text: &str) -> Value {
    let mut lines = text.lines().map(|line| line.split(',').collect::<Vec<_>>());
    let header = lines.next().unwrap_or_default();
    let record = |line: Vec<&str>| {
        let fields = header.iter().zip(line).filter(|(key, _)| **key != "expires_ms");
        Value::Object(fields.map(|(key, field)| ((*key).to_owned(), field.into())).collect())
    };
    let first = Value::from(header.join(","));
    Value::Array(std::iter::once(first).chain(lines.map(record)).collect())
}
