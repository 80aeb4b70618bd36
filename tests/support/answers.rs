//! Every command that reads the kernel, on one situation, and its answer without what differs from one run to the next.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use socket2::{Domain, Socket, Type};
use twtool::sys::{sandbox, sysctl};

use super::situations::addr;
use super::twtool::{Run, twtool};
use super::{kernel, procfs};

/// The commands, each with a name.
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

/// A listener, one whose port the kernel chose, a client's bucket whose socket was bound to `lo`, an orphan in FIN_WAIT_2, and
/// port 7100 taken on `::` for IPv6 alone: a server can bind it on IPv4.
pub(crate) struct Situation {
    _open: [Socket; 4],
    made: Instant,
}

impl Situation {
    /// Makes it in the calling thread's namespace.
    pub(crate) fn make() -> Self {
        // A bucket that becomes reusable after a second would change answers.
        sysctl::write("ipv4.tcp_tw_reuse", "0").expect("the namespace is ours");
        let taken = Socket::new(Domain::IPV6, Type::STREAM, None).expect("a socket");
        taken.set_only_v6(true).expect("IPV6_V6ONLY");
        taken.bind(&addr("[::]:7100").into()).expect("bind()");
        taken.listen(1).expect("listen()");
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        listener.bind(&addr("127.0.0.1:443").into()).expect("bind()");
        listener.listen(1).expect("listen()");
        // Its port is the kernel's choice.
        let chosen = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        chosen.listen(1).expect("listen()");
        let client = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        client.bind_device(Some(b"lo")).expect("SO_BINDTODEVICE");
        client.connect(&addr("127.0.0.1:443").into()).expect("connect()");
        let (accepted, _) = listener.accept().expect("accept()");
        drop(client);
        drop(accepted);
        // An orphan that lasts longer than a bucket stays a full socket.
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
                "the clients leave no bucket and no orphan"
            );
            thread::yield_now();
        }
        sysctl::write("ipv4.tcp_fin_timeout", &usual).expect("the namespace is ours");
        Self { _open: [taken, listener, chosen, open], made }
    }

    /// Whether its bucket lasts for another while.
    pub(crate) fn lasts(&self) -> bool {
        self.made.elapsed() < Duration::from_secs(40)
    }

    /// Makes it again, in a new namespace, if its bucket goes soon.
    pub(crate) fn refresh(&mut self) {
        if !self.lasts() {
            sandbox::enter_network_namespace().expect("another namespace");
            *self = Self::make();
        }
    }
}

/// The exit code, and standard output without what differs from one run to the next.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) code: Option<i32>,
    pub(crate) content: Value,
}

impl Answer {
    /// Of a run: a JSON document, csv, or text of another program.
    pub(crate) fn of(run: &Run) -> Self {
        let content = serde_json::from_str(&run.stdout).map_or_else(|_| csv(&run.stdout), lasting);
        Self { code: run.code, content }
    }

    /// Without what is null where the caller may not look: processes of others, the size of a bucket.
    pub(crate) fn without_the_hidden(&self) -> Self {
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
                    // A namespace whose first process may not be looked into is found through another one, later.
                    list.sort_by_cached_key(Value::to_string);
                }
                _ => {}
            }
        }
        let mut hidden = self.clone();
        hide(&mut hidden.content);
        hidden
    }

    /// Of the command, now.
    pub(crate) fn now(args: &[&str]) -> Self {
        Self::of(&twtool(args))
    }
}

/// Without times, rates and the kernel's own counts: a number of those is `#`, and so is each number in a text about them,
/// so that what is unknown, what is missing and what else is written still differ.
fn lasting(value: Value) -> Value {
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
    // Warnings are judged by what the rest of the answer is: a run with a failed call may have one more.
    let dropped = |key: &str| key.ends_with("_ms") || key.contains("per_s") || ["taken_at", "warnings"].contains(&key);
    match value {
        Value::Object(map) => {
            let kept = map.into_iter().filter(|(key, _)| !dropped(key));
            let kept = kept.map(|(key, value)| {
                // The attempts of bind-test are a list, and those of wait their number.
                let masked = VARIES.contains(&key.as_str()) && !(key == "attempts" && value.is_array());
                let value = lasting(value);
                (key, if masked { without_numbers(value) } else { value })
            });
            Value::Object(kept.collect::<Map<_, _>>())
        }
        Value::Array(list) => Value::Array(list.into_iter().map(lasting).collect()),
        value => value,
    }
}

/// The value with `#` in place of each number.
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

/// The header of csv, and the records without the remaining time.
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
