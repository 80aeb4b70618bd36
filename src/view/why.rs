//! Writes what `twtool why` reports about a program, as text or as JSON records.
//!
//! The text shares standard error with the program, so each piece begins with `twtool:` and its further lines are indented.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::Serialize;

use super::holder::{self, HolderRecord};
use super::human;
use super::json;
use super::steps::{self, StepRecord, SysctlLineRecord};
use super::style::{Meaning, TextStyle};
use crate::analysis::call::Explanation;
use crate::analysis::call_counts::{CallCounts, FailureKind};
use crate::model::bind::{Errno, Holder};
use crate::model::call::{
    CallName, CalledAddr, CalledSocket, CallingProcess, ProgramEnd, SlowReason, SocketCall, WatchNote,
};
use crate::model::command::Suggestions;
use crate::model::facts::Facts;
use crate::model::time::milliseconds;

/// A failed call with its explanation.
#[derive(Clone, Copy, Debug)]
pub struct ExplainedCall<'a> {
    /// The call.
    pub call: &'a SocketCall,
    /// The explanation.
    pub explanation: &'a Explanation,
    /// The facts of the program's network namespace, and the sockets on the port, if they could be read.
    pub found: Option<(&'a Facts, &'a [Holder])>,
    /// What is missing or uncertain.
    pub warnings: &'a [String],
}

/// The report that `twtool why` writes at the end.
#[derive(Clone, Copy, Debug)]
pub struct ProgramReport<'a> {
    /// The first word of the command, or `process 7` with `--pid`.
    pub program: &'a str,
    /// How the command ended; `None` if twtool stopped watching before the command ended.
    pub end: Option<ProgramEnd>,
    /// The calls that the program made.
    pub call_counts: &'a CallCounts,
    /// How long twtool watched the program.
    pub watched_for: Duration,
}

/// Formats the address of a call: `0.0.0.0:80`, `[fe80::1%2]:80`, `0.0.0.0%eth0:80`.
fn end(addr: &CalledAddr, device: Option<&str>) -> String {
    let device = device.map(|device| format!("%{device}")).unwrap_or_default();
    let scope = if addr.scope == 0 || !device.is_empty() { device } else { format!("%{}", addr.scope) };
    match addr.addr {
        IpAddr::V4(v4) => format!("{v4}{scope}:{}", addr.port),
        IpAddr::V6(v6) => format!("[{v6}{scope}]:{}", addr.port),
    }
}

fn call_text(call: &SocketCall) -> String {
    let device = call.socket.as_ref().and_then(|socket| socket.device.as_deref());
    called_at(call.name, call.addr.as_ref(), device)
}

fn called_at(name: CallName, addr: Option<&CalledAddr>, device: Option<&str>) -> String {
    let word = if name == CallName::Listen { "on" } else { "to" };
    match addr {
        Some(addr) => format!("{}() {word} {}", name.name(), end(addr, device)),
        None => format!("{}()", name.name()),
    }
}

fn caller_text(process: &CallingProcess) -> String {
    format!("{} (pid {})", process.comm, process.pid)
}

fn capitalized(text: &str) -> String {
    let mut text = text.chars();
    text.next().into_iter().flat_map(char::to_uppercase).chain(text).collect()
}

/// Writes the explanation of a failed call.
pub fn failure(out: &mut dyn Write, failed: &ExplainedCall, style: TextStyle) -> io::Result<()> {
    let ExplainedCall { call, explanation, warnings, .. } = *failed;
    let errno = call.result.name();
    let first = format!("twtool: {}: {} failed with ", caller_text(&call.process), call_text(call));
    writeln!(out, "{}{}", human::escape(&first), style.paint(Meaning::Bad, errno))?;
    let holders = failed.found.map(|(_, holders)| holders).unwrap_or_default();
    let free = explanation.free_in.map(|time| format!("; {}", holder::free_in(time, holders))).unwrap_or_default();
    human::break_lines(out, &format!("{}{free}", capitalized(&explanation.headline)), "  ", "  ", style.width)?;
    let Suggestions { commands, sysctl_lines, advice } = &explanation.help;
    let shown = Suggestions { commands: commands.clone(), sysctl_lines: sysctl_lines.clone(), advice: vec![] };
    steps::write(out, &shown, "  ", style)?;
    advice.iter().try_for_each(|advice| human::break_lines(out, advice, "  - ", "    ", style.width))?;
    warnings
        .iter()
        .try_for_each(|warning| human::break_lines(out, &format!("warning: {warning}"), "  ", "    ", style.width))
}

/// Writes that a program listens.
pub fn listens(out: &mut dyn Write, call: &SocketCall, style: TextStyle) -> io::Result<()> {
    let text = format!("twtool: {} listens {}", caller_text(&call.process), listening(call));
    let text = human::escape(&text).into_owned();
    writeln!(out, "{}", style.paint(Meaning::Good, text))
}

/// Describes where and with which options a program listens: `on 0.0.0.0:80 with SO_REUSEADDR`.
fn listening(call: &SocketCall) -> String {
    let device = call.socket.as_ref().and_then(|socket| socket.device.as_deref());
    let on = call.addr.as_ref().map_or_else(|| "an unknown address".into(), |addr| end(addr, device));
    let protocol = call.socket.as_ref().filter(|socket| socket.protocol == "mptcp").map_or("", |_| " (MPTCP)");
    let with = call.socket.as_ref().map_or_else(|| "unknown options".into(), CalledSocket::options_text);
    format!("on {on}{protocol} with {with}")
}

fn note_text(note: &WatchNote) -> String {
    match note {
        WatchNote::IoUring(process) => format!(
            "{} uses io_uring. twtool does not see its bind, listen and connect calls through io_uring.",
            caller_text(process)
        ),
        WatchNote::PrivilegeLost { process, program, capabilities } => {
            let (what, lost) = if *capabilities {
                ("has file capabilities", "does not get them")
            } else {
                ("is a set-user-ID or set-group-ID program", "does not change its user or group")
            };
            format!(
                "{program} {what}, and {lost} while it is watched (pid {}). This can cause later failures with EACCES \
                 or EPERM. Run the same command as root. If twtool has CAP_SYS_ADMIN and CAP_SYS_PTRACE (root on the host), \
                 the program keeps its privilege.",
                process.pid
            )
        }
        WatchNote::RunsOn { end, processes, filtered, detach } => {
            let (are, them, they_end, its) = if *processes == 1 {
                ("process still runs", "it", "it ends", "its")
            } else {
                ("processes still run", "them", "they end", "their")
            };
            let until = if *filtered {
                format!(
                    "twtool runs until {they_end}, because without twtool {its} bind(), listen() and connect() calls \
                     would fail"
                )
            } else {
                let listens = match (*detach, *processes) {
                    (false, _) => "",
                    (true, 1) => "it listens or ",
                    (true, _) => "one of them listens or ",
                };
                format!("twtool continues to watch {them} until {listens}{they_end}")
            };
            format!(
                "the command has ended ({}), and {processes} other {are}. {until}. twtool also sends the signals that it receives to \
                 each process that still runs.",
                ended(*end)
            )
        }
        WatchNote::Slow(SlowReason::Running) => {
            "every system call stops the process while twtool watches it, so the process runs slowly.".into()
        }
        WatchNote::Slow(SlowReason::Detach) => {
            "with --detach every system call stops the program, so the program runs slowly until it listens.".into()
        }
        WatchNote::Slow(SlowReason::NoFilter) => {
            "no seccomp filter can be installed here, so every system call stops the program, and the program runs \
             slowly."
                .into()
        }
        WatchNote::Detached => "twtool has stopped watching; the program continues to run.".into(),
    }
}

const fn note_name(note: &WatchNote) -> &'static str {
    match note {
        WatchNote::IoUring(_) => "io-uring",
        WatchNote::PrivilegeLost { .. } => "privilege-lost",
        WatchNote::RunsOn { .. } => "runs-on",
        WatchNote::Slow(_) => "slow",
        WatchNote::Detached => "let-go",
    }
}

/// Writes a note.
pub fn note(out: &mut dyn Write, note: &WatchNote, style: TextStyle) -> io::Result<()> {
    human::break_lines(out, &note_text(note), "twtool: ", "  ", style.width)
}

fn ended(end: ProgramEnd) -> String {
    match end {
        ProgramEnd::Exited(code) => format!("exit status {code}"),
        ProgramEnd::Signaled(signal) => format!("signal {signal}"),
    }
}

/// Writes the report at the end: what listened, and which calls failed.
pub fn report(out: &mut dyn Write, report: &ProgramReport, style: TextStyle) -> io::Result<()> {
    let ProgramReport { program, end, call_counts, watched_for } = *report;
    let how = end.map_or_else(|| "is no longer watched".into(), |end| format!("ended with {}", ended(end)));
    let first = format!("twtool: {program} {how} after {}", human::duration(watched_for));
    writeln!(out, "{}", style.paint(Meaning::Heading, human::escape(&first)))?;
    if call_counts.calls == 0 {
        return writeln!(out, "  It made no bind(), listen() or connect() on an Internet socket.");
    }
    if call_counts.listening.is_empty() {
        writeln!(out, "  It listened on no TCP port.")?;
    }
    for (call, count) in &call_counts.listening {
        let again = if *count > 1 { format!(" ({count} calls)") } else { String::new() };
        writeln!(out, "  It listened {}{again}", human::escape(&listening(call)))?;
    }
    match call_counts.failed() {
        0 => writeln!(out, "  No call failed."),
        1 => failures(out, call_counts, "  1 call failed:", style),
        more => failures(out, call_counts, &format!("  {more} calls failed:"), style),
    }
}

fn failures(out: &mut dyn Write, call_counts: &CallCounts, title: &str, style: TextStyle) -> io::Result<()> {
    writeln!(out, "{title}")?;
    for (kind, count) in &call_counts.failures {
        let FailureKind { name, addr, errno, tcp, .. } = kind;
        let what = if *tcp == Some(false) { " (not TCP)" } else { "" };
        let times = if *count > 1 { format!(", {count} times") } else { String::new() };
        let why = call_counts.explained.get(kind).map(|last| format!("; {}", last.headline)).unwrap_or_default();
        let text = format!("{}{what}: {errno}{times}{why}", called_at(*name, addr.as_ref(), None));
        human::break_lines(out, &text, "    ", "      ", style.width)?;
    }
    Ok(())
}

#[derive(Serialize)]
struct CallerRecord<'a> {
    pid: i32,
    tid: i32,
    comm: &'a str,
    uid: Option<u32>,
    netns: Option<u64>,
    no_new_privs: Option<bool>,
    cap_net_bind_service: Option<bool>,
}

impl<'a> CallerRecord<'a> {
    fn new(process: &'a CallingProcess) -> Self {
        let CallingProcess { pid, tid, comm, uid, netns, no_new_privs, cap_net_bind_service, lost_privilege: _ } =
            process;
        let (pid, tid, uid, netns) = (*pid, *tid, *uid, *netns);
        Self { pid, tid, comm, uid, netns, no_new_privs: *no_new_privs, cap_net_bind_service: *cap_net_bind_service }
    }
}

#[derive(Serialize)]
struct CalledSocketRecord<'a> {
    family: &'static str,
    r#type: &'a str,
    protocol: &'a str,
    options: Vec<&'static str>,
    local: Option<SocketAddr>,
}

impl<'a> CalledSocketRecord<'a> {
    fn new(socket: &'a CalledSocket) -> Self {
        let family = if socket.ipv6 { "ipv6" } else { "ipv4" };
        let CalledSocket { kind, protocol, local, .. } = socket;
        Self { family, r#type: kind, protocol, options: socket.options(), local: *local }
    }
}

#[derive(Serialize)]
struct CallRecord<'a> {
    r#type: &'static str,
    at_ms: u64,
    call: &'static str,
    errno: Option<&'static str>,
    addr: Option<String>,
    port: Option<u16>,
    interface: Option<&'a str>,
    process: CallerRecord<'a>,
    socket: Option<CalledSocketRecord<'a>>,
    verdict: Option<&'static str>,
    cause: Option<&'static str>,
    held_by_itself: Option<bool>,
    holders: Option<Vec<HolderRecord<'a>>>,
    free_in_ms: Option<u64>,
    advice: Vec<&'a str>,
    next: Vec<StepRecord<'a>>,
    lasting: Vec<SysctlLineRecord<'a>>,
    warnings: &'a [String],
}

fn addr_text(addr: &CalledAddr) -> String {
    if addr.scope == 0 { addr.addr.to_string() } else { format!("{}%{}", addr.addr, addr.scope) }
}

impl<'a> CallRecord<'a> {
    fn new(call: &'a SocketCall) -> Self {
        Self {
            r#type: "call",
            at_ms: milliseconds(call.at),
            call: call.name.name(),
            errno: call.errno().map(Errno::name),
            addr: call.addr.as_ref().map(addr_text),
            port: call.addr.as_ref().map(|addr| addr.port.0),
            interface: call.socket.as_ref().and_then(|socket| socket.device.as_deref()),
            process: CallerRecord::new(&call.process),
            socket: call.socket.as_ref().map(CalledSocketRecord::new),
            verdict: None,
            cause: None,
            held_by_itself: Some(false),
            holders: None,
            free_in_ms: None,
            advice: vec![],
            next: vec![],
            lasting: vec![],
            warnings: &[],
        }
    }
}

/// Writes the record of a failed call.
pub fn failure_record(out: &mut dyn Write, failed: &ExplainedCall) -> io::Result<()> {
    let ExplainedCall { call, explanation, found, warnings } = *failed;
    let Explanation { verdict, cause, headline, free_in, held_by_itself, help } = explanation;
    let holders = found.map(|(facts, holders)| holders.iter().map(|one| HolderRecord::new(one, facts)).collect());
    let record = CallRecord {
        verdict: Some(verdict.map_or("unknown", |verdict| verdict.name())),
        cause: Some(cause.name()),
        held_by_itself: *held_by_itself,
        holders,
        free_in_ms: free_in.map(milliseconds),
        advice: std::iter::once(headline).chain(&help.advice).map(String::as_str).collect(),
        next: StepRecord::all(&help.commands),
        lasting: SysctlLineRecord::all(&help.sysctl_lines),
        warnings,
        ..CallRecord::new(call)
    };
    json::line(out, &record)
}

/// Writes the record of a listen() that succeeded.
pub fn listens_record(out: &mut dyn Write, call: &SocketCall) -> io::Result<()> {
    json::line(out, &CallRecord::new(call))
}

/// Writes the record of a note.
pub fn note_record(out: &mut dyn Write, note: &WatchNote, at: Duration) -> io::Result<()> {
    #[derive(Serialize)]
    struct NoteRecord<'a> {
        r#type: &'static str,
        at_ms: u64,
        note: &'static str,
        text: String,
        process: Option<CallerRecord<'a>>,
    }
    let process = match note {
        WatchNote::IoUring(process) | WatchNote::PrivilegeLost { process, .. } => Some(CallerRecord::new(process)),
        WatchNote::RunsOn { .. } | WatchNote::Slow(_) | WatchNote::Detached => None,
    };
    let record =
        NoteRecord { r#type: "note", at_ms: milliseconds(at), note: note_name(note), text: note_text(note), process };
    json::line(out, &record)
}

/// Writes the record of the report at the end.
pub fn report_record(out: &mut dyn Write, report: &ProgramReport) -> io::Result<()> {
    #[derive(Serialize)]
    struct ProgramEndRecord<'a> {
        r#type: &'static str,
        at_ms: u64,
        status: Option<u8>,
        signal: Option<i32>,
        calls: usize,
        listening: Vec<ListeningRecord<'a>>,
        failed: Vec<FailedRecord>,
    }
    #[derive(Serialize)]
    struct ListeningRecord<'a> {
        addr: Option<String>,
        port: Option<u16>,
        interface: Option<&'a str>,
        pid: i32,
        comm: &'a str,
        protocol: Option<&'a str>,
        options: Option<Vec<&'static str>>,
        count: usize,
    }
    #[derive(Serialize)]
    struct FailedRecord {
        call: &'static str,
        errno: &'static str,
        addr: Option<String>,
        port: Option<u16>,
        tcp: Option<bool>,
        cause: Option<&'static str>,
        count: usize,
    }
    let record = ProgramEndRecord {
        r#type: "end",
        at_ms: milliseconds(report.watched_for),
        status: report.end.map(ProgramEnd::code),
        signal: match report.end {
            Some(ProgramEnd::Signaled(signal)) => Some(signal),
            _ => None,
        },
        calls: report.call_counts.calls,
        listening: report
            .call_counts
            .listening
            .iter()
            .map(|(call, count)| ListeningRecord {
                addr: call.addr.as_ref().map(addr_text),
                port: call.addr.as_ref().map(|addr| addr.port.0),
                interface: call.socket.as_ref().and_then(|socket| socket.device.as_deref()),
                pid: call.process.pid,
                comm: &call.process.comm,
                protocol: call.socket.as_ref().map(|socket| socket.protocol.as_str()),
                options: call.socket.as_ref().map(CalledSocket::options),
                count: *count,
            })
            .collect(),
        failed: report
            .call_counts
            .failures
            .iter()
            .map(|(kind, count)| FailedRecord {
                call: kind.name.name(),
                errno: kind.errno,
                addr: kind.addr.as_ref().map(addr_text),
                port: kind.addr.as_ref().map(|addr| addr.port.0),
                tcp: kind.tcp,
                cause: report.call_counts.explained.get(kind).map(|last| last.cause.name()),
                count: *count,
            })
            .collect(),
    };
    json::line(out, &record)
}
