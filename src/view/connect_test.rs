//! Prints the answer of `connect-test`, as a page or as JSON.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;

use super::bind_test::{AttemptRecord, holders_table};
use super::holder::{self, HolderRecord};
use super::human;
use super::json::{self, Envelope};
use super::steps::{self, StepRecord, SysctlLineRecord};
use super::style::{Meaning, TextStyle};
use crate::analysis::connect::{ConnectConclusion, ConnectVerdict, Situation, advice, headline};
use crate::model::bind::BindAddr;
use crate::model::command::Suggestions;
use crate::model::facts::Facts;
use crate::model::port::Port;
use crate::model::time::milliseconds;

/// The answer of `twtool connect-test`, with the advice to print.
#[derive(Clone, Copy, Debug)]
pub struct ConnectTest<'a> {
    /// What was measured.
    pub situation: &'a Situation,
    /// The conclusion.
    pub conclusion: ConnectConclusion,
    /// Commands and advice.
    pub help: &'a Suggestions,
}

#[derive(Serialize)]
struct Payload<'a> {
    from: EndRecord<'a>,
    to: EndRecord<'a>,
    with: &'static str,
    verdict: &'static str,
    cause: &'static str,
    call: Option<&'static str>,
    errno: Option<&'static str>,
    inferred: Option<&'static str>,
    free: Option<u32>,
    uncertain: Option<u32>,
    pool: Option<u32>,
    attempts: Vec<AttemptRecord>,
    holders: Vec<HolderRecord<'a>>,
    free_in_ms: Option<u64>,
    advice: &'a [String],
    next: Vec<StepRecord<'a>>,
    lasting: Vec<SysctlLineRecord<'a>>,
}

/// One end of the connection. The source port is `None` if connect() chooses it.
#[derive(Serialize)]
struct EndRecord<'a> {
    addr: Option<String>,
    port: Option<u16>,
    service: Option<&'a str>,
    interface: Option<String>,
}

impl<'a> EndRecord<'a> {
    fn new(at: Option<BindAddr>, port: Option<Port>, facts: &'a Facts) -> Self {
        Self {
            addr: at.map(|at| at.addr.to_canonical().to_string()),
            port: port.map(|port| port.0),
            service: port.and_then(|port| facts.services.name(port)),
            interface: at.and_then(|at| at.scope).map(|scope| facts.interface_name(scope)),
        }
    }
}

/// The local address of the connection, which the kernel reports with the route. Without a route, it is the address that the client
/// binds.
fn source(situation: &Situation) -> Option<BindAddr> {
    let scope = situation.from.and_then(|at| at.scope);
    situation.route.ok().map(|addr| BindAddr { addr, scope }).or(situation.from)
}

fn payload<'a>(test: &ConnectTest<'a>) -> Payload<'a> {
    let ConnectTest { situation, conclusion, help } = *test;
    let (facts, choice) = (&situation.facts, situation.choice.as_ref());
    Payload {
        from: EndRecord::new(source(situation), situation.from_port, facts),
        to: EndRecord::new(Some(situation.to), Some(situation.to_port), facts),
        with: advice::option_name(situation),
        verdict: conclusion.verdict.name(),
        cause: conclusion.cause.name(),
        call: conclusion.failure.map(|(call, _)| call.name()),
        errno: conclusion.failure.map(|(_, errno)| errno.name()),
        inferred: conclusion.inferred.map(ConnectVerdict::name),
        free: conclusion.free,
        uncertain: choice.map(|choice| choice.destination.uncertain),
        pool: choice.map(|choice| choice.pool.size),
        attempts: situation.attempts.iter().map(|attempt| AttemptRecord::new(attempt, facts)).collect(),
        holders: situation.holders.iter().map(|holder| HolderRecord::new(holder, facts)).collect(),
        free_in_ms: conclusion.free_in.map(milliseconds),
        advice: &help.advice,
        next: StepRecord::all(&help.commands),
        lasting: SysctlLineRecord::all(&help.sysctl_lines),
    }
}

/// Writes the JSON document.
pub fn document(out: &mut (dyn Write + Send), envelope: Envelope, test: &ConnectTest) -> io::Result<()> {
    json::document(out, envelope, payload(test))
}

/// Writes the payload as one JSON record.
pub fn ndjson(out: &mut (dyn Write + Send), test: &ConnectTest) -> io::Result<()> {
    json::line(out, &payload(test))
}

const fn meaning(verdict: ConnectVerdict) -> Meaning {
    match verdict {
        ConnectVerdict::Free => Meaning::Good,
        ConnectVerdict::Unknown => Meaning::Caution,
        ConnectVerdict::Blocked | ConnectVerdict::Denied => Meaning::Bad,
    }
}

/// Writes the answer as a page.
pub fn page(out: &mut (dyn Write + Send), test: &ConnectTest, style: TextStyle) -> io::Result<()> {
    let ConnectTest { situation, conclusion, help } = *test;
    let verdict = style.paint(meaning(conclusion.verdict), conclusion.verdict.name());
    let reason = format!("{}{}", headline::headline(situation, &conclusion), free_in(test));
    writeln!(out, "connect() {}: {verdict}{}", human::escape(&ends(situation)), human::escape(&reason))?;
    steps::write_next(out, &help.commands, style)?;
    if !help.sysctl_lines.is_empty() {
        writeln!(out)?;
        steps::write(
            out,
            &Suggestions { sysctl_lines: help.sysctl_lines.clone(), ..Suggestions::default() },
            "",
            style,
        )?;
    }
    if !help.advice.is_empty() {
        writeln!(out)?;
        help.advice.iter().try_for_each(|advice| human::break_lines(out, advice, "- ", "  ", style.width))?;
    }
    // Without a socket that blocks, the table would explain nothing. JSON has all sockets.
    if situation.holders.iter().all(|holder| !holder.blocks) {
        return Ok(());
    }
    writeln!(out)?;
    holders_table(out, &situation.holders, "BLOCKS", &situation.facts, style)?;
    holder::write_processes(out, situation.holders.iter().filter(|holder| holder.blocks), style)
}

/// Formats both ends: `from 10.0.0.1:15060 to 192.0.2.1:443`.
fn ends(situation: &Situation) -> String {
    let facts = &situation.facts;
    let end = |at: BindAddr, port: Option<Port>| {
        let addr = at.addr.to_canonical();
        let text = BindAddr { addr, ..at }.text(facts);
        match port {
            None => text,
            Some(port) if at.scope.is_some() => format!("[{text}]:{port}"),
            Some(port) => SocketAddr::new(addr, port.0).to_string(),
        }
    };
    let from = source(situation).map(|at| format!("from {} ", end(at, situation.from_port))).unwrap_or_default();
    format!("{from}to {}", end(situation.to, Some(situation.to_port)))
}

fn free_in(test: &ConnectTest) -> String {
    let ConnectTest { situation, conclusion, .. } = *test;
    let phrase = |time: Duration| match conclusion.free {
        Some(_) => format!("; the first port is free in {}", human::duration(time)),
        None if conclusion.verdict == ConnectVerdict::Unknown => {
            format!("; free for certain in {}", human::duration(time))
        }
        None => format!("; {}", holder::free_in(time, &situation.holders)),
    };
    conclusion.free_in.map(phrase).unwrap_or_default()
}
