//! The checks of open sockets: servers whose port connect() may choose, and connections that a program forgot to close.

use std::collections::BTreeMap;
use std::time::Duration;

use super::ports::chosen_by_the_kernel;
use super::{Check, Datum, LeakThreshold, Status, Subject};
use crate::model::command::Shell;
use crate::model::container::Runtime;
use crate::model::health::{CloseWait, Health, OpenListener, OpenSockets};
use crate::model::port::Port;
use crate::model::process::{KernelPart, Owners, Process};
use crate::model::user::User;

/// The maximum number of servers or processes that a finding names.
const NAMED: usize = 3;

pub(super) fn checks(health: &Health, leak: LeakThreshold, shell: &Shell) -> Vec<Check> {
    vec![ephemeral_listeners(health, shell), close_wait(health, leak)]
}

/// The sockets, or the check that reports why they could not be read.
fn sockets(health: &Health, subject: Subject) -> Result<&OpenSockets, Box<Check>> {
    health.sockets.as_ref().map_err(|why| {
        let finding = format!("The sockets could not be read: {why}.");
        Box::new(Check::ok(subject, Datum::Unknown, Datum::Unknown).found(Status::Unknown, finding))
    })
}

/// `1 socket`, `3 sockets`.
fn count(n: usize, one: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{n} {one}s") }
}

/// `nginx pid 7 (nginx.service)`.
fn process_text(process: &Process) -> String {
    let details = process.details().join(", ");
    let details = if details.is_empty() { details } else { format!(" ({details})") };
    format!("{} pid {}{details}", process.comm, process.pid)
}

/// The first few names, and the number of the others.
fn some_of(mut all: Vec<String>) -> String {
    let more = all.len().saturating_sub(NAMED);
    all.truncate(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", all.join(", "))
}

fn text<T: Into<String>>(text: Option<T>) -> Datum {
    text.map_or(Datum::Unknown, |text| Datum::Text(text.into()))
}

fn process_record(process: &Process) -> Datum {
    let words = |words: &Vec<String>| Datum::List(words.iter().cloned().map(Datum::Text).collect());
    let user = process.user.as_ref();
    let container = process.container().map_or(Datum::Unknown, |container| {
        let runtime = text(container.runtime.map(Runtime::name));
        Datum::Record(vec![("runtime", runtime), ("id", container.id.to_owned().into())])
    });
    Datum::Record(vec![
        ("pid", Datum::from(u64::try_from(process.pid).ok())),
        ("comm", process.comm.clone().into()),
        ("cmdline", process.cmdline.as_ref().map_or(Datum::Unknown, words)),
        ("uid", user.map(|user| user.uid).into()),
        ("user", text(user.and_then(|user| user.name.clone()))),
        ("unit", text(process.unit())),
        ("container", container),
    ])
}

/// The owners in the form of bind-test: `[]` if no process can own the socket, unknown if twtool could not see the owners.
fn processes(owners: &Owners) -> Datum {
    match owners {
        Owners::Nobody | Owners::Kernel(_) => Datum::List(vec![]),
        Owners::Found(processes) => Datum::List(processes.iter().map(process_record).collect()),
        Owners::NotPermitted | Owners::NotRead | Owners::NotFound(_) => Datum::Unknown,
    }
}

fn ephemeral_listeners(health: &Health, shell: &Shell) -> Check {
    let subject = Subject {
        id: "ephemeral_listeners",
        does: "Counts the server ports inside ip_local_port_range that are not reserved, except ports that the kernel chose. \
               While such a server is down, connect() may take its port, and its next start fails with EADDRINUSE.",
        does_not: "A running server keeps its port, because connect() does not choose a bound port. Servers that asked for \
                   port 0 do not count, because they accept any port.",
        sources: &[
            "Documentation/networking/ip-sysctl.rst, ip_local_reserved_ports",
            "ip(7), ip_local_port_range",
            "net/ipv4/inet_diag.c, INET_DIAG_BC_AUTO",
        ],
    };
    let open = match sockets(health, subject) {
        Ok(open) => open,
        Err(check) => return *check,
    };
    let Some(in_range) = servers_in_range(health, open) else {
        let finding = "net.ipv4.ip_local_port_range or ip_local_reserved_ports could not be read.";
        return Check::ok(subject, Datum::Unknown, Datum::Unknown).found(Status::Unknown, finding);
    };
    let all = in_range.len();
    let by_port = without_chosen(in_range);
    let chosen_by_kernel = all - by_port.len();
    let chooser_unknown = by_port.values().any(|listeners| listeners.iter().all(|one| one.autobound.is_none()));

    let records = by_port.iter().map(|(port, listeners)| listener_record(*port, listeners)).collect();
    let check = Check::ok(subject, by_port.len().into(), Datum::Unknown)
        .with("listeners", Datum::List(records))
        .with("ports_the_kernel_chose", chosen_by_kernel);
    let Some(reserved) = health.facts.local_reserved_ports.as_ref().filter(|_| !by_port.is_empty()) else {
        return check;
    };
    let value = reserved.with(by_port.keys().copied()).to_string();
    let who = some_of(by_port.iter().map(|(port, listeners)| with_owner(*port, listeners)).collect());
    let (lie, are, chose) = if by_port.len() == 1 {
        ("server port lies", "is", "the kernel or the program chose the port")
    } else {
        ("server ports lie", "are", "the kernel or the programs chose the ports")
    };
    let so = if chooser_unknown {
        format!(
            "It is unknown whether {chose}. If a program chose its port, connect() may take the port while the program is down"
        )
    } else {
        "While a server is down, connect() may take its port, and its next start fails with EADDRINUSE".into()
    };
    let finding = format!("{} {lie} in ip_local_port_range and {are} not reserved: {who}. {so}.", by_port.len());
    check
        .with("ip_local_reserved_ports", value.clone())
        .found(if chooser_unknown { Status::Note } else { Status::Warning }, finding)
        .helped_by(shell.reserve(by_port.keys().copied(), Some(reserved)))
        .advising("connect() never chooses a reserved port. A server port outside the range needs no reservation.")
}

/// The listeners on ports that connect() may choose while no socket has them; `None` if the range or the reserved ports are unknown.
fn servers_in_range<'a>(health: &Health, open: &'a OpenSockets) -> Option<BTreeMap<Port, Vec<&'a OpenListener>>> {
    let mut by_port: BTreeMap<Port, Vec<&OpenListener>> = BTreeMap::new();
    for listener in &open.listeners {
        let port = listener.socket.tuple.local_port();
        if chosen_by_the_kernel(health, port)? {
            by_port.entry(port).or_default().push(listener);
        }
    }
    Some(by_port)
}

/// Removes the ports that the kernel chose for the server, because such a server accepts any port.
fn without_chosen(mut servers: BTreeMap<Port, Vec<&OpenListener>>) -> BTreeMap<Port, Vec<&OpenListener>> {
    servers.retain(|_, listeners| !listeners.iter().all(|one| one.autobound == Some(true)));
    servers
}

/// The server ports inside the ephemeral range that are not reserved, except ports that the kernel chose, with their listeners; `None`
/// if the sockets, the range or the reserved ports are unknown.
#[must_use]
pub fn unreserved_servers(health: &Health) -> Option<BTreeMap<Port, Vec<&OpenListener>>> {
    servers_in_range(health, health.sockets.as_ref().ok()?).map(without_chosen)
}

fn listener_record(port: Port, listeners: &[&OpenListener]) -> Datum {
    let addrs = listeners.iter().map(|one| Datum::Text(one.socket.tuple.local_addr().to_string())).collect();
    let owners = listeners.first().map_or(Datum::Unknown, |one| processes(&one.owners));
    Datum::Record(vec![("port", Datum::Number(port.0.into())), ("addrs", Datum::List(addrs)), ("processes", owners)])
}

/// `40000 (nginx pid 7)`.
fn with_owner(port: Port, listeners: &[&OpenListener]) -> String {
    let mut names: Vec<String> = vec![];
    for listener in listeners {
        if let Owners::Found(processes) = &listener.owners {
            names.extend(processes.iter().map(process_text));
        }
    }
    names.sort();
    names.dedup();
    if names.is_empty() { port.to_string() } else { format!("{port} ({})", some_of(names)) }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum CloseWaitOwner {
    /// The first process that has the sockets open: its pid, comm, unit, and the text that names it in a finding.
    Process(i32, String, Option<String>, String),
    /// No process: the server that listens on this port has not accepted the connections.
    NotAccepted(Port),
    /// The kernel itself.
    Kernel(KernelPart),
    /// twtool found no process. The value is the user of the sockets, if the user is known.
    Unseen(Option<User>),
}

impl CloseWaitOwner {
    fn of(socket: &CloseWait) -> Self {
        match &socket.owners {
            Owners::Found(processes) if !processes.is_empty() => {
                let first = &processes[0];
                Self::Process(first.pid, first.comm.clone(), first.unit().map(str::to_owned), process_text(first))
            }
            Owners::Nobody => Self::NotAccepted(socket.socket.tuple.local_port()),
            Owners::Kernel(part) => Self::Kernel(*part),
            Owners::Found(_) | Owners::NotPermitted | Owners::NotRead | Owners::NotFound(_) => {
                Self::Unseen(socket.user.clone())
            }
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Process(_, _, _, name) => name.clone(),
            Self::NotAccepted(port) => format!("the accept queue of port {port}"),
            Self::Kernel(part) => part.to_string(),
            Self::Unseen(Some(user)) => format!("an unknown process of {}", user.text()),
            Self::Unseen(None) => "an unknown process".into(),
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct CloseWaitCounts {
    sockets: usize,
    silent: usize,
    /// The longest time since the last ACK of a peer.
    longest_ms: Option<u32>,
}

fn close_wait(health: &Health, leak: LeakThreshold) -> Check {
    let subject = Subject {
        id: "close_wait",
        does: "Counts the sockets in CLOSE_WAIT: the peer has closed, and the program here has not called close() yet. A \
               timer ends this state only if the program has set SO_KEEPALIVE, or if the peer has not acknowledged all data. A \
               socket has been in this state for at least the time since the peer's last ACK.",
        does_not: "It is not TIME_WAIT, and no setting of the kernel replaces the missing close(). A few short-lived ones are \
                   normal: every connection whose peer closes first passes through this state.",
        sources: &["RFC 9293, section 3.3.2", "RFC 9293, section 3.6.1", "tcp(7), TCP_INFO"],
    };
    let open = match sockets(health, subject) {
        Ok(open) => open,
        Err(check) => return *check,
    };
    let mut by_owner: BTreeMap<CloseWaitOwner, CloseWaitCounts> = BTreeMap::new();
    for one in &open.close_wait {
        let counts = by_owner.entry(CloseWaitOwner::of(one)).or_default();
        let age = one.socket.last_ack_ms;
        counts.sockets += 1;
        counts.silent += usize::from(age.is_some_and(|ms| Duration::from_millis(ms.into()) >= leak.silent));
        counts.longest_ms = counts.longest_ms.max(age);
    }
    let mut by_owner: Vec<(CloseWaitOwner, CloseWaitCounts)> = by_owner.into_iter().collect();
    // The sort is stable, so owners with equal numbers stay in the order of `CloseWaitOwner`.
    by_owner.sort_by_key(|(_, counts)| std::cmp::Reverse((counts.silent, counts.sockets)));
    let silent: usize = by_owner.iter().map(|(_, counts)| counts.silent).sum();
    let ages_known = open.close_wait.iter().all(|one| one.socket.last_ack_ms.is_some());

    let check = Check::ok(subject, open.close_wait.len().into(), Datum::Unknown)
        .with("silent", if ages_known { silent.into() } else { Datum::Unknown })
        .with("silent_after_ms", u64::try_from(leak.silent.as_millis()).ok())
        .with(
            "owners",
            Datum::List(by_owner.iter().map(|(who, counts)| close_wait_record(who, *counts, ages_known)).collect()),
        );
    let after = seconds(leak.silent);
    let describe = |(who, counts): &(CloseWaitOwner, CloseWaitCounts)| {
        let longest = counts.longest_ms.map_or(String::new(), |ms| {
            format!(" (the oldest has been in CLOSE_WAIT for at least {})", seconds(Duration::from_millis(ms.into())))
        });
        format!("{} has {}{longest}", who.name(), counts.silent)
    };
    let leaks: Vec<String> =
        by_owner.iter().filter(|(_, counts)| counts.silent >= LeakThreshold::SOCKETS).map(describe).collect();
    let total = count(open.close_wait.len(), "socket");
    if !leaks.is_empty() {
        return check
            .found(
                Status::Warning,
                format!("Sockets in CLOSE_WAIT that received no ACK for {after}: {}.", some_of(leaks)),
            )
            .advising(
                "Correct the program: it must call close() when read() returns 0, and accept() the connections that \
                 wait. Each socket that it does not close costs it a file descriptor.",
            );
    }
    if silent > 0 {
        let who = some_of(by_owner.iter().filter(|(_, counts)| counts.silent > 0).map(describe).collect());
        return check.found(
            Status::Note,
            format!(
                "Sockets in CLOSE_WAIT that received no ACK for {after}: {who}. Fewer than {} of one owner do not prove a leak.",
                LeakThreshold::SOCKETS
            ),
        );
    }
    if open.close_wait.is_empty() {
        return check;
    }
    if !ages_known {
        let status = if open.close_wait.len() >= LeakThreshold::SOCKETS { Status::Note } else { Status::Ok };
        let finding = "It is unknown for how long, because /proc/net/tcp does not show that time.";
        return check.found(status, format!("{total} in CLOSE_WAIT. {finding}"));
    }
    check.found(Status::Ok, format!("{total}, none silent for {after}."))
}

fn close_wait_record(who: &CloseWaitOwner, counts: CloseWaitCounts, ages_known: bool) -> Datum {
    let (pid, comm, unit, port, uid) = match who {
        CloseWaitOwner::Process(pid, comm, unit, _) => {
            (u64::try_from(*pid).ok(), Some(comm.clone()), unit.clone(), None, None)
        }
        CloseWaitOwner::NotAccepted(port) => (None, None, None, Some(*port), None),
        CloseWaitOwner::Kernel(_) => (None, None, None, None, None),
        CloseWaitOwner::Unseen(user) => (None, None, None, None, user.as_ref().map(|user| user.uid)),
    };
    Datum::Record(vec![
        ("pid", pid.into()),
        ("comm", text(comm)),
        ("unit", text(unit)),
        ("not_accepted_on_port", port.map(|port| port.0).into()),
        ("uid", uid.into()),
        ("close_wait", counts.sockets.into()),
        ("silent", if ages_known { counts.silent.into() } else { Datum::Unknown }),
        ("longest_ms", counts.longest_ms.into()),
    ])
}

/// `90 s`, `1.5 s`.
fn seconds(time: Duration) -> String {
    let (whole, tenths) = (time.as_secs(), time.subsec_millis() / 100);
    if tenths == 0 { format!("{whole} s") } else { format!("{whole}.{tenths} s") }
}
