//! Prints closes and the processes that made them, as lines and tables for people and as JSON for programs.

use std::io::{self, Write};

use serde::Serialize;

use super::human;
use super::json::{self, Envelope};
use super::owner::{ContainerRecord, pid_namespace};
use super::style::{Meaning, TextStyle};
use super::table::{self, Heading};
use crate::analysis::makers::{MakerGroupBy, MakerGroupKey, MakerRow};
use crate::model::close::{Close, CloseTotals, Maker, Method, Outcome, Role};
use crate::model::facts::Facts;
use crate::model::port::Port;

#[derive(Serialize)]
struct CloseRecord<'a> {
    at: String,
    netns: u64,
    netns_name: Option<&'a str>,
    cookie: Option<String>,
    family: &'static str,
    local_addr: String,
    local_port: u16,
    local_class: &'static str,
    local_service: Option<&'a str>,
    remote_addr: String,
    remote_port: u16,
    remote_class: &'static str,
    remote_service: Option<&'a str>,
    interface: Option<String>,
    outcome: &'static str,
    role: &'static str,
    process: Option<MakerRecord<'a>>,
    method: &'static str,
    certain: bool,
}

#[derive(Serialize)]
struct MakerRecord<'a> {
    pid: u32,
    tid: u32,
    /// The pid namespace in which `pid` and `tid` are valid: `own` or `initial`.
    pid_namespace: &'static str,
    comm: &'a str,
    thread: &'a str,
    cmdline: Option<&'a [String]>,
    uid: u32,
    user: Option<&'a str>,
    cgroup: Option<&'a str>,
    unit: Option<&'a str>,
    container: Option<ContainerRecord<'a>>,
    kernel: bool,
}

impl<'a> MakerRecord<'a> {
    fn new(maker: &'a Maker) -> Self {
        let facts = &*maker.facts;
        Self {
            pid: facts.pid,
            tid: maker.tid,
            pid_namespace: pid_namespace(facts.own_pid_namespace),
            comm: &facts.comm,
            thread: &maker.thread,
            cmdline: facts.cmdline.as_deref(),
            uid: maker.user.uid,
            user: maker.user.name.as_deref(),
            cgroup: facts.cgroup.as_deref(),
            unit: facts.unit(),
            container: facts.container().map(ContainerRecord::new),
            kernel: facts.kernel,
        }
    }
}

/// Writes a close as a JSON record.
///
/// # Errors
/// Writing failed.
pub fn record(out: &mut dyn Write, close: &Close, facts: &Facts) -> io::Result<()> {
    let (local, remote) = (close.tuple.local_port(), close.tuple.remote_port());
    json::line(
        out,
        &CloseRecord {
            at: human::timestamp(close.at),
            netns: close.netns,
            netns_name: facts.netns_name.as_deref(),
            cookie: close.cookie.map(|cookie| cookie.to_string()),
            family: close.tuple.family.name(),
            local_addr: close.tuple.local_addr().to_string(),
            local_port: local.0,
            local_class: local.class().name(),
            local_service: facts.services.name(local),
            remote_addr: close.tuple.remote_addr().to_string(),
            remote_port: remote.0,
            remote_class: remote.class().name(),
            remote_service: facts.services.name(remote),
            interface: close.interface.map(|index| facts.interface_name(index)),
            outcome: close.outcome.name(),
            role: close.role.name(),
            process: close.maker.as_ref().map(MakerRecord::new),
            method: close.method.name(),
            certain: close.maker.is_some(),
        },
    )
}

/// The titles of the columns of [`line`], and their widths in terminal columns. The last column is not padded, so its width is 0.
const COLUMNS: [(&str, usize); 8] = [
    ("TIME (UTC)", 12),
    ("PROCESS", 23),
    ("UNIT", 20),
    ("ROLE", 9),
    ("LOCAL", 23),
    ("REMOTE", 23),
    ("OUTCOME", 10),
    ("NETNS", 0),
];

fn write_cells(out: &mut dyn Write, cells: [&str; 8]) -> io::Result<()> {
    let mut line = String::new();
    for (cell, (_, width)) in cells.into_iter().zip(COLUMNS) {
        line.push_str(cell);
        // A cell that is too long is not cut. Instead it moves the next cells of its line to the right.
        let blanks = width.saturating_sub(human::display_width(cell));
        line.extend(std::iter::repeat_n(' ', blanks + 2));
    }
    writeln!(out, "{}", line.trim_end())
}

/// Writes the names of the columns of [`line`].
///
/// # Errors
/// Writing failed.
pub fn header(out: &mut dyn Write) -> io::Result<()> {
    write_cells(out, COLUMNS.map(|(title, _)| title))
}

/// Writes a close as a line.
///
/// # Errors
/// Writing failed.
pub fn line(out: &mut dyn Write, close: &Close, facts: &Facts) -> io::Result<()> {
    let time = human::timestamp(close.at);
    let time = time.get(11..23).unwrap_or("-");
    let process = close.maker.as_ref().map_or_else(|| "unknown".into(), process);
    let place = close.maker.as_ref().and_then(place).unwrap_or_else(|| "-".into());
    let (local, remote) = (end(close, true, facts), end(close, false, facts));
    let netns = facts.netns_name.clone().unwrap_or_else(|| close.netns.to_string());
    let netns = human::escape(&netns);
    let outcome = outcome(close.outcome);
    write_cells(out, [time, &process, &place, close.role.name(), &local, &remote, outcome, &netns])
}

/// Formats the process that made a close: `nginx (4711)`.
fn process(maker: &Maker) -> String {
    let facts = &maker.facts;
    let kernel = if facts.kernel { "kernel worker " } else { "" };
    format!("{kernel}{} ({})", human::escape(&facts.comm), facts.pid)
}

/// The container of the process or, without a container, its unit.
fn place(maker: &Maker) -> Option<String> {
    let container = maker.facts.container().map(|container| container.text());
    container.or_else(|| maker.facts.unit().map(|unit| human::escape(unit).into_owned()))
}

fn end(close: &Close, local: bool, facts: &Facts) -> String {
    let tuple = &close.tuple;
    let (addr, port) =
        if local { (tuple.local_addr(), tuple.local_port()) } else { (tuple.remote_addr(), tuple.remote_port()) };
    let end = std::net::SocketAddr::new(addr, port.0).to_string();
    // Only the port of the server shows a service. The port of a client can have the number of a service by chance.
    let serves = (close.role == Role::Accepted) == local && close.role != Role::Unknown;
    match facts.services.name(port).filter(|_| serves) {
        Some(service) => format!("{end} ({})", human::escape(service)),
        None => end,
    }
}

const fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::TimeWait => "TIME_WAIT",
        Outcome::FinWait2 => "FIN_WAIT_2",
        Outcome::Aborted => "aborted",
        Outcome::Unknown => "unknown",
    }
}

/// Describes the totals of a trace: `3 closes seen: 2 named, 1 of an unknown process`.
#[must_use]
pub fn totals(totals: CloseTotals) -> String {
    let closes = if totals.seen == 1 { "close" } else { "closes" };
    let parts = [(totals.named, "named"), (totals.seen - totals.named, "of an unknown process"), (totals.lost, "lost")];
    let parts = parts.iter().filter(|(number, what)| *number > 0 || *what == "named");
    let parts: Vec<String> =
        parts.map(|(number, what)| format!("{} {what}", human::with_separators(*number))).collect();
    format!("{} {closes} seen: {}", human::with_separators(totals.seen), parts.join(", "))
}

/// The warning that process numbers belong to another pid namespace, so that they cannot be looked up in the /proc of twtool.
pub const FOREIGN_PIDS: &str =
    "process numbers are not those of twtool's pid namespace: BPF reports the numbers of the initial pid namespace";

/// The warnings about closes that are missing or may be missing.
#[must_use]
pub fn loss_warnings(totals: CloseTotals) -> Vec<String> {
    let CloseTotals { lost, skipped, .. } = totals;
    let closes = |number, one, several| {
        if number == 1 { format!("1 close {one}") } else { format!("{number} closes {several}") }
    };
    let lost =
        (lost > 0).then(|| format!("{} missing, because twtool did not read them in time", closes(lost, "is", "are")));
    let skipped = (skipped > 0).then(|| {
        let closes = closes(skipped, "may be", "may be");
        format!(
            "up to {closes} missing or without a process, because the BPF program was already running on the processor"
        )
    });
    lost.into_iter().chain(skipped).collect()
}

#[derive(Serialize)]
struct CloseGroupRecord<'a> {
    #[serde(flatten)]
    key: KeyRecord<'a>,
    closes: u64,
    closes_per_s: f64,
    share: f64,
    buckets_60s: u64,
}

impl<'a> CloseGroupRecord<'a> {
    fn new(row: &'a MakerRow) -> Self {
        let rounded = |number: f64| (number * 1000.0).round() / 1000.0;
        Self {
            key: KeyRecord::new(&row.key),
            closes: row.closes,
            closes_per_s: rounded(row.per_second),
            share: rounded(row.share),
            buckets_60s: row.buckets,
        }
    }
}

/// The JSON keys that identify a group. JSON has only the keys of the group's kind.
#[derive(Default, Serialize)]
struct KeyRecord<'a> {
    group: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    comm: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unit: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<ContainerRecord<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remote_addr: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remote_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    local_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    netns: Option<u64>,
}

impl<'a> KeyRecord<'a> {
    fn new(key: &'a MakerGroupKey) -> Self {
        let container = |(runtime, id): (Option<&'static str>, &'a String)| ContainerRecord { runtime, id };
        let none = Self::default();
        match key {
            MakerGroupKey::Process(process) => Self {
                group: "process",
                pid: Some(process.pid),
                comm: Some(&process.comm),
                unit: process.unit.as_deref(),
                container: process.container.as_ref().map(|(runtime, id)| container((*runtime, id))),
                ..none
            },
            MakerGroupKey::Unit(unit) => Self { group: "unit", unit: Some(unit), ..none },
            MakerGroupKey::Container(runtime, id) => {
                Self { group: "container", container: Some(container((*runtime, id))), ..none }
            }
            MakerGroupKey::Destination(addr, Port(port)) => {
                Self { group: "destination", remote_addr: Some(addr.to_string()), remote_port: Some(*port), ..none }
            }
            MakerGroupKey::Client(addr) => Self { group: "client", remote_addr: Some(addr.to_string()), ..none },
            MakerGroupKey::LocalPort(Port(port)) => Self { group: "local-port", local_port: Some(*port), ..none },
            MakerGroupKey::Netns(netns) => Self { group: "netns", netns: Some(*netns), ..none },
            MakerGroupKey::Outside => Self { group: "none", ..none },
            MakerGroupKey::Unknown => Self { group: "unknown", ..none },
            MakerGroupKey::Others => Self { group: "others", ..none },
        }
    }
}

/// Writes the JSON document of groups.
///
/// # Errors
/// Writing failed.
pub fn document(
    out: &mut dyn Write,
    envelope: Envelope,
    by: &'static str,
    method: Method,
    rows: &[MakerRow],
    totals: CloseTotals,
) -> io::Result<()> {
    #[derive(Serialize)]
    struct Payload<'a> {
        by: &'static str,
        method: &'static str,
        groups: Vec<CloseGroupRecord<'a>>,
        closes: u64,
        named: u64,
        lost: u64,
        skipped: u64,
    }
    let groups = rows.iter().map(CloseGroupRecord::new).collect();
    let CloseTotals { seen: closes, named, lost, skipped } = totals;
    let payload = Payload { by, method: method.name(), groups, closes, named, lost, skipped };
    json::document(out, envelope, payload)
}

/// Writes a JSON record per group.
///
/// # Errors
/// Writing failed.
pub fn group_records(out: &mut dyn Write, rows: &[MakerRow]) -> io::Result<()> {
    rows.iter().try_for_each(|row| json::line(out, &CloseGroupRecord::new(row)))
}

/// Writes the table of groups.
///
/// # Errors
/// Writing failed.
pub fn groups(
    out: &mut (dyn Write + Send),
    by: MakerGroupBy,
    rows: &[MakerRow],
    netns_name: &dyn Fn(u64) -> Option<String>,
    style: TextStyle,
) -> io::Result<()> {
    let title = match by {
        MakerGroupBy::Process => "PROCESS",
        MakerGroupBy::Unit => "UNIT",
        MakerGroupBy::Container => "CONTAINER",
        MakerGroupBy::Destination => "DESTINATION",
        MakerGroupBy::LocalPort => "LOCAL PORT",
        MakerGroupBy::Netns => "NETNS",
    };
    let mut headings = vec![Heading::new(title)];
    if by == MakerGroupBy::Process {
        headings.push(Heading::new("UNIT"));
    }
    headings.extend(["CLOSES", "PER SECOND", "SHARE", "BUCKETS"].map(|title| Heading::new(title).right()));
    let row = |row: &MakerRow| {
        let (name, place) = names(&row.key, netns_name);
        let mut cells = vec![human::escape(&name).into_owned()];
        if by == MakerGroupBy::Process {
            cells.push(place.map_or_else(|| "-".into(), |place| human::escape(&place).into_owned()));
        }
        cells.push(human::with_separators(row.closes));
        cells.push(format!("{:.1}", row.per_second));
        cells.push(format!("{:.1} %", row.share * 100.0));
        cells.push(human::with_separators(row.buckets));
        cells
    };
    let rows: Vec<Vec<String>> = rows.iter().map(row).collect();
    if rows.is_empty() {
        return writeln!(out, "{}", style.paint(Meaning::Aside, "no closes"));
    }
    table::write(out, &headings, true, &rows, style)?;
    Ok(())
}

/// The name of a group, and the unit or container of a process.
fn names(key: &MakerGroupKey, netns_name: &dyn Fn(u64) -> Option<String>) -> (String, Option<String>) {
    let container = |runtime: Option<&str>, id: &str| {
        format!("{}{}", runtime.map_or(String::new(), |runtime| format!("{runtime} ")), &id[..id.len().min(12)])
    };
    match key {
        MakerGroupKey::Process(process) => {
            let place = process.container.as_ref().map(|(runtime, id)| container(*runtime, id));
            (format!("{} ({})", process.comm, process.pid), place.or_else(|| process.unit.clone()))
        }
        MakerGroupKey::Unit(unit) => (unit.clone(), None),
        MakerGroupKey::Container(runtime, id) => (container(*runtime, id), None),
        MakerGroupKey::Destination(addr, port) => (std::net::SocketAddr::new(*addr, port.0).to_string(), None),
        MakerGroupKey::Client(addr) => (format!("client {addr}"), None),
        MakerGroupKey::LocalPort(port) => (port.to_string(), None),
        MakerGroupKey::Netns(netns) => (netns_name(*netns).unwrap_or_else(|| format!("net:[{netns}]")), None),
        MakerGroupKey::Outside => ("(none)".into(), None),
        MakerGroupKey::Unknown => ("(unknown)".into(), None),
        MakerGroupKey::Others => ("(others)".into(), None),
    }
}
