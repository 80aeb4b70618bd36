//! One situation of `bind-test`. A test makes the situation on the real kernel, runs twtool, and compares the answer with binds that
//! the test makes itself, and with /proc/net/tcp and tcp6.

use std::any::Any;
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::errno::Errno;
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use twtool::sys::sysctl;

use super::procfs::{self, Entry, UNIT_MS};
use super::records::{DOCUMENT_KEYS, LIST_KEYS, number, sorted, text};
use super::twtool::{Keys, Run, twtool};
use super::{netns, services};

/// The keys of the document of `bind-test --json` after the common keys, in the order of docs/json.md.
pub(crate) const KEYS: [&str; 19] = [
    "port",
    "class",
    "service",
    "privileged",
    "ephemeral",
    "with",
    "as",
    "chosen_port",
    "attempts",
    "holders",
    "verdict",
    "cause",
    "free_in_ms",
    "advice",
    "note_lost",
    "other_verdicts",
    "next",
    "reserve",
    "lasting",
];

/// The four sets of options that bind-test tries on each address, in the order of its attempts.
pub(crate) const OPTION_SETS: [&[&str]; 4] =
    [&[], &["SO_REUSEADDR"], &["SO_REUSEPORT"], &["SO_REUSEADDR", "SO_REUSEPORT"]];

/// Texts that advice must not contain: wrong remedies, remedies for other problems, and words of commands, which belong to `next`.
/// (`check_words` has one exception.)
const NEVER: [&str; 7] =
    ["tcp_fin_timeout", "tcp_tw_recycle", "tcp_tw_reuse", "tcp_max_tw_buckets", "sudo", "kill ", "as root"];

/// The sockets that must stay open while the situation is tested.
pub(crate) type OpenSockets = Box<dyn Any>;

pub(crate) struct BindCase {
    name: &'static str,
    make: fn() -> OpenSockets,
    args: &'static str,
    addrs: Option<&'static [&'static str]>,
    verdict: &'static str,
    cause: &'static str,
    holders: Vec<(&'static str, bool)>,
    advice: Vec<&'static str>,
    not_advice: Vec<&'static str>,
    warnings: Vec<&'static str>,
}

/// Describes a situation. The methods change the expected answer, which is first a free port without holders (sockets on the port).
/// `args` begins with the port.
pub(crate) fn bind_case(name: &'static str, make: fn() -> OpenSockets, args: &'static str) -> BindCase {
    BindCase {
        name,
        make,
        args,
        addrs: None,
        verdict: "free",
        cause: "none",
        holders: vec![],
        advice: vec![],
        not_advice: vec![],
        warnings: vec![],
    }
}

impl BindCase {
    pub(crate) fn is(self, verdict: &'static str, cause: &'static str) -> Self {
        Self { verdict, cause, ..self }
    }

    /// Expects attempts on these addresses. Necessary only if they are neither the addresses of `--addr` nor the default.
    pub(crate) fn on(self, addrs: &'static [&'static str]) -> Self {
        Self { addrs: Some(addrs), ..self }
    }

    /// Expects a holder in this state that blocks, or does not block, the plain bind.
    pub(crate) fn held(mut self, state: &'static str, blocks: bool) -> Self {
        self.holders.push((state, blocks));
        self
    }

    pub(crate) fn advises(mut self, text: &'static str) -> Self {
        self.advice.push(text);
        self
    }

    pub(crate) fn does_not_advise(mut self, text: &'static str) -> Self {
        self.not_advice.push(text);
        self
    }

    /// Expects a warning with this text.
    pub(crate) fn warns(mut self, text: &'static str) -> Self {
        self.warnings.push(text);
        self
    }

    fn port(&self) -> u16 {
        self.args.split(' ').next().and_then(|port| port.parse().ok()).expect("a port first")
    }

    fn values(&self, flag: &str) -> Vec<&'static str> {
        let words: Vec<_> = self.args.split(' ').collect();
        words.windows(2).filter(|pair| pair[0] == flag).map(|pair| pair[1]).collect()
    }

    fn addrs(&self) -> Vec<&'static str> {
        let mut typed = self.values("--addr");
        typed.dedup();
        match self.addrs {
            Some(addrs) => addrs.to_vec(),
            None if typed.is_empty() => vec!["0.0.0.0", "::"],
            None => typed,
        }
    }

    fn run(&self, format: &str) -> Run {
        twtool(["bind-test", "-o", format].into_iter().chain(self.args.split(' ')))
    }

    fn code(&self) -> i32 {
        i32::from(!matches!(self.verdict, "free" | "reusable"))
    }

    fn check(&self) {
        let mut independent = self.attempts_with_reuseport();
        let _kept = (self.make)();
        let before = rows(self.port());
        let run = self.run("json").code(self.code());
        // The test binds at once, because the end of a bucket could change the results.
        self.remaining_attempts(&mut independent);
        let after = rows(self.port());
        assert_eq!(identities(&before), identities(&after), "twtool's binds leave the port as it was");

        let document = run.json();
        assert_eq!(
            Keys::of(&run.stdout),
            DOCUMENT_KEYS.into_iter().chain(KEYS).collect::<Vec<_>>(),
            "the keys in the order of docs/json.md"
        );
        assert_eq!(
            (text(&document, "verdict"), text(&document, "cause")),
            (self.verdict, self.cause),
            "verdict and cause{run}"
        );
        let independent: Value = independent.iter().map(Attempt::json).collect();
        assert_eq!(document["attempts"], independent, "twtool's attempts, and the same binds made by the test{run}");
        assert_eq!(document["note_lost"], false, "no server of this test loses its note of SO_REUSEPORT{run}");
        self.check_facts(&document);
        self.check_holders(&document, &before, &after, &run);
        self.check_words(&document, &run);
        assert!(document["next"] == json!([]) || self.code() == 1, "no step is needed if a bind works{run}");
        self.check_page();
    }

    /// Lists all attempts, and makes the binds with SO_REUSEPORT. A successful bind with SO_REUSEPORT changes the results of later
    /// binds, so each bind with this option gets a new namespace with the situation.
    fn attempts_with_reuseport(&self) -> Vec<Attempt> {
        let listen = self.args.split(' ').any(|word| word == "--listen");
        let of = |addr: &'static str| {
            OPTION_SETS.map(|options| {
                let shares = options.contains(&"SO_REUSEPORT");
                let result = shares.then(|| {
                    netns::on_thread_in_new_namespace(|| {
                        let _kept = (self.make)();
                        bind(addr, self.port(), options, listen)
                    })
                });
                Attempt { addr, options, listen, result }
            })
        };
        self.addrs().into_iter().flat_map(of).collect()
    }

    /// Repeats one of the binds whose only option is SO_REUSEPORT, and makes the binds without SO_REUSEPORT.
    fn remaining_attempts(&self, attempts: &mut [Attempt]) {
        let again = |attempt: &Attempt| bind(attempt.addr, self.port(), attempt.options, attempt.listen);
        let shared =
            attempts.iter().rfind(|attempt| attempt.options == ["SO_REUSEPORT"]).expect("one for each address");
        assert_eq!(Some(again(shared)), shared.result, "SO_REUSEPORT on {}, after and without twtool", shared.addr);
        for attempt in attempts {
            if attempt.result.is_none() {
                attempt.result = Some(again(attempt));
            }
        }
    }

    fn check_facts(&self, document: &Value) {
        let port = self.port();
        let class = match port {
            0..1024 => "well-known",
            1024..49152 => "registered",
            49152.. => "dynamic",
        };
        let numbers = |name| -> Vec<u16> {
            let setting = sysctl::read(name).expect("a setting");
            setting.split_whitespace().map(|word| word.parse().expect("a port")).collect()
        };
        let (start, range) = (numbers("ipv4.ip_unprivileged_port_start")[0], numbers("ipv4.ip_local_port_range"));
        assert_eq!(document["schema"], "twtool.bind-test/1");
        assert_eq!(number(document, "netns"), own_netns(), "{document}");
        assert_eq!(document["complete"], true);
        assert_eq!(document["port"], port);
        assert_eq!(document["class"], class);
        assert_eq!(document["service"], json!(services::name(port.into())));
        assert_eq!(document["privileged"], json!(port != 0 && port < start));
        assert_eq!(document["ephemeral"], (range[0]..=range[1]).contains(&port));
        assert_eq!(document["with"], self.values("--with").first().copied().unwrap_or("reuseaddr"));
        match document["chosen_port"].as_u64() {
            Some(chosen) => {
                assert!(port == 0 && (range[0].into()..=range[1].into()).contains(&chosen), "{document}");
            }
            None => assert!(port != 0 || self.verdict != "free", "{document}"),
        }
    }

    fn check_holders(&self, document: &Value, before: &[Entry], after: &[Entry], run: &Run) {
        let holders = document["holders"].as_array().expect("an array");
        let seen = holders.iter().map(|holder| (text(holder, "state"), holder["blocks"].as_bool().expect("a bool")));
        assert_eq!(sorted(seen), sorted(self.holders.iter().copied()), "the holders, and which block{run}");
        // procfs does not list sockets that are only bound.
        let shown = holders.iter().filter(|holder| holder["state"] != "bound-inactive");
        assert_eq!(sorted(shown.map(holder_identity)), identities(before), "the holders, and procfs's rows{run}");

        let rest = |entries: &[Entry], wanted: &dyn Fn(&Value) -> bool| {
            let wanted: Vec<HolderIdentity> = holders.iter().filter(|h| wanted(h)).map(holder_identity).collect();
            entries.iter().filter(|entry| wanted.contains(&identity(entry))).map(|entry| entry.when * UNIT_MS).max()
        };
        for holder in holders {
            let bucket = before.iter().any(|entry| entry.timer == 3 && identity(entry) == holder_identity(holder));
            let same = |other: &Value| other["cookie"] == holder["cookie"];
            between(&holder["expires_ms"], bucket.then(|| (rest(before, &same), rest(after, &same))), run);
            let nobodys = bucket || holder["inode"].is_null();
            let processes: Vec<&Value> =
                holder["processes"].as_array().into_iter().flatten().map(|process| &process["pid"]).collect();
            let expected = if nobodys { vec![] } else { vec![json!(std::process::id())] };
            assert!(processes.into_iter().eq(&expected), "{holder}{run}");
            if bucket {
                assert!(holder["uid"].is_null() && holder["inode"].is_null(), "uid and inode are null: {holder}");
            }
        }
        let waits = matches!(self.cause, "time-wait" | "time-wait-without-reuseaddr");
        let blocking = |holder: &Value| holder["blocks"] == true;
        between(&document["free_in_ms"], waits.then(|| (rest(before, &blocking), rest(after, &blocking))), run);
    }

    fn check_words(&self, document: &Value, run: &Run) {
        let lines = |key: &str| -> Vec<String> {
            let lines = document[key].as_array().expect("an array");
            lines.iter().map(|line| line.as_str().expect("text").to_owned()).collect()
        };
        let (advice, warnings) = (lines("advice").join("\n"), lines("warnings"));
        for text in &self.advice {
            assert!(advice.contains(text), "expected {text:?} in the advice{run}");
        }
        // tcp_fin_timeout is a remedy only for an orphan in FIN_WAIT_2.
        let fin_wait_2 = self.holders.iter().any(|(state, _)| *state == "fin-wait-2");
        let never = NEVER.iter().filter(|text| !(fin_wait_2 && **text == "tcp_fin_timeout"));
        for text in self.not_advice.iter().chain(never) {
            assert!(!advice.contains(text), "expected no {text:?} in the advice{run}");
        }
        assert_eq!(self.verdict == "blocked" || self.verdict == "denied", !advice.is_empty() && self.code() == 1);
        // If an owner is unknown, one more warning gives the reason. Its text depends on the user, so it is not compared.
        let unknown = document["holders"].as_array().expect("an array").iter().any(|h| h["processes"].is_null());
        assert_eq!(warnings.len(), self.warnings.len() + usize::from(unknown), "warnings{run}");
        for text in &self.warnings {
            assert!(warnings.iter().any(|warning| warning.contains(text)), "expected the warning {text:?}{run}");
        }
        assert_eq!(run.stderr.lines().count(), warnings.len(), "each warning is a line of stderr{run}");
    }

    fn check_page(&self) {
        let run = self.run("table").code(self.code());
        let first = run.stdout.lines().next().unwrap_or_default();
        assert!(first.contains(self.verdict), "the first line has the verdict{run}");
        let next = self.run("json").json()["next"].clone();
        for step in next.as_array().expect("an array") {
            let command = text(step, "command");
            let line = run.stdout.lines().position(|line| line == format!("  {command}"));
            assert!(line.is_some_and(|line| line < 12), "{command} stands alone on a line, near the verdict{run}");
        }
        assert!(!run.stdout.contains('\x1b') && !run.stderr.contains('\x1b'), "no escape sequences in a pipe{run}");
    }
}

/// A bind that the test makes itself.
struct Attempt {
    addr: &'static str,
    options: &'static [&'static str],
    listen: bool,
    /// The results of bind(), and of listen() if it was requested.
    result: Option<(String, Option<String>)>,
}

impl Attempt {
    fn json(&self) -> Value {
        let (bind, listening) = self.result.as_ref().expect("made");
        json!({ "addr": self.addr, "options": self.options, "bind": bind, "listen": listening })
    }
}

/// Checks each situation in its own network namespace, and reports all failures.
pub(crate) fn check_all(situations: &[BindCase]) {
    let mut failures = vec![];
    for situation in situations {
        let checked = catch_unwind(AssertUnwindSafe(|| netns::on_thread_in_new_namespace(|| situation.check())));
        if let Err(panic) = checked {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without a message");
            failures.push(format!("=== {} (bind-test {})\n{text}", situation.name, situation.args));
        }
    }
    let (failed, all) = (failures.len(), situations.len());
    assert!(failures.is_empty(), "{failed} of {all} situations:\n{}", failures.join("\n"));
}

/// Asserts that a remaining time is between the ones that procfs shows before and after the run. If `expected` is `None`, asserts
/// that the value is null.
#[track_caller]
fn between(value: &Value, expected: Option<(Option<u64>, Option<u64>)>, run: &Run) {
    let Some((before, after)) = expected else {
        assert!(value.is_null(), "expected null, found {value}{run}");
        return;
    };
    let (Some(value), Some(before), Some(after)) = (value.as_u64(), before, after) else {
        panic!("expected a time, found {value}, {before:?}, {after:?}{run}");
    };
    // procfs rounds down to its unit.
    let fits = value <= before + UNIT_MS && value + UNIT_MS >= after;
    assert!(fits, "expected {before} ms >= {value} ms >= {after} ms{run}");
}

/// The identity of a socket on the tested port: family, local address, remote address and port, number of the state.
type HolderIdentity = (&'static str, String, String, u16, u8);

fn identity(entry: &Entry) -> HolderIdentity {
    let family = match entry.local.0 {
        IpAddr::V4(_) => "ipv4",
        IpAddr::V6(addr) if addr.to_ipv4_mapped().is_some() => "ipv4-mapped",
        IpAddr::V6(_) => "ipv6",
    };
    let plain = |addr: IpAddr| addr.to_canonical().to_string();
    (family, plain(entry.local.0), plain(entry.remote.0), entry.remote.1, entry.state)
}

fn identities(entries: &[Entry]) -> Vec<HolderIdentity> {
    sorted(entries.iter().map(identity))
}

/// The state numbers are from net/tcp_states.h.
fn holder_identity(holder: &Value) -> HolderIdentity {
    const STATES: [&str; 13] = [
        "established",
        "syn-sent",
        "syn-recv",
        "fin-wait-1",
        "fin-wait-2",
        "time-wait",
        "closed",
        "close-wait",
        "last-ack",
        "listen",
        "closing",
        "new-syn-recv",
        "bound-inactive",
    ];
    let keys: Vec<_> = holder.as_object().expect("an object").keys().map(String::as_str).collect();
    assert!(LIST_KEYS.iter().all(|key| keys.contains(key)), "a holder has the keys of list: {keys:?}");
    let family = ["ipv4", "ipv6", "ipv4-mapped"].into_iter().find(|family| holder["family"] == *family);
    let state = (1..).zip(STATES).find(|(_, name)| holder["state"] == *name);
    // procfs shows an unset remote end as zeros.
    let unset = if family == Some("ipv4") { "0.0.0.0" } else { "::" };
    (
        family.expect("a family"),
        text(holder, "local_addr").to_owned(),
        holder["remote_addr"].as_str().unwrap_or(unset).to_owned(),
        u16::try_from(holder["remote_port"].as_u64().unwrap_or(0)).expect("a port"),
        state.unwrap_or_else(|| panic!("an unknown state in {holder}")).0,
    )
}

fn rows(port: u16) -> Vec<Entry> {
    procfs::sockets().into_iter().filter(|entry| entry.local.1 == port).collect()
}

/// The inode of the calling thread's network namespace.
pub(crate) fn own_netns() -> u64 {
    let link = std::fs::read_link("/proc/thread-self/ns/net").expect("a namespace");
    let text = link.to_str().and_then(|text| text.strip_prefix("net:[")?.strip_suffix(']'));
    text.and_then(|inode| inode.parse().ok()).expect("net:[inode]")
}

/// The result of bind(), and of listen() if it is requested and bind() succeeds: `ok`, or the name of the errno.
pub(crate) fn bind(addr: &str, port: u16, options: &[&str], listen: bool) -> (String, Option<String>) {
    let name = |result: io::Result<()>| match result {
        Ok(()) => "ok".to_owned(),
        Err(error) => format!("{:?}", Errno::from_raw(error.raw_os_error().expect("an errno"))),
    };
    let at = at(addr, port);
    let domain = if at.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = match Socket::new(domain, Type::STREAM, None) {
        Ok(socket) => socket,
        Err(error) => return (name(Err(error)), None),
    };
    if options.contains(&"SO_REUSEADDR") {
        socket.set_reuse_address(true).expect("SO_REUSEADDR");
    }
    if options.contains(&"SO_REUSEPORT") {
        socket.set_reuse_port(true).expect("SO_REUSEPORT");
    }
    let bound = socket.bind(&at.into());
    let listening = (listen && bound.is_ok()).then(|| name(socket.listen(1)));
    (name(bound), listening)
}

fn at(addr: &str, port: u16) -> SocketAddr {
    match addr.split_once('%') {
        None => SocketAddr::new(addr.parse().expect("an address"), port),
        Some((addr, interface)) => {
            let scope = nix::net::if_::if_nametoindex(interface).expect("an interface");
            SocketAddrV6::new(addr.parse().expect("an IPv6 address"), port, 0, scope).into()
        }
    }
}
