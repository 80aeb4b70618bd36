//! Prints the result of `bind-test` and the demonstration of `bind-test --demo`, as a page or as JSON.

use std::io::{self, Write};
use std::net::IpAddr;

use serde::Serialize;

use super::holder::{self, HolderRecord, SetupRecord};
use super::human;
use super::json::{self, Envelope};
use super::record::SocketRecord;
use super::steps::{self, StepRecord, SysctlLineRecord};
use super::style::{Meaning, TextStyle};
use super::table::{self, Heading};
use super::text::Text;
use crate::analysis::advice::{self, BindEvidence};
use crate::analysis::next::with_name;
use crate::model::bind::{
    Attempt, CallResult, Cause, Errno, Holder, OtherVerdict, ReuseOptions, UnspecifiedOption, Verdict,
};
use crate::model::command::{Step, Suggestions};
use crate::model::demo::{DemoRun, Stage};
use crate::model::facts::Facts;
use crate::model::port::Port;
use crate::model::process::{Owners, place_of_cgroup};
use crate::model::row::Direction;
use crate::model::socket::{Socket, TcpState};
use crate::model::time::milliseconds;

/// The maximum number of rows in the table of sockets. JSON has all sockets.
const HOLDERS_SHOWN: usize = 12;

/// The result of a bind test, with the advice to print.
#[derive(Clone, Copy, Debug)]
pub struct BindTest<'a> {
    /// The measurements and the conclusion.
    pub evidence: BindEvidence<'a>,
    /// The port that the kernel chose for port 0.
    pub chosen_port: Option<Port>,
    /// Suggested commands.
    pub next: &'a [Step],
    /// How to reserve the port for servers if connect() can use it.
    pub reserve: &'a Suggestions,
    /// Further advice, with reasons.
    pub advice: &'a [String],
    /// Whether the test may have erased or replaced the kernel's SO_REUSEPORT note of a server (docs/commands/bind-test.md).
    pub note_lost: bool,
    /// The verdicts with other values of options. The list has only verdicts that differ from the verdict of the test.
    pub other_verdicts: &'a [OtherVerdict],
}

#[derive(Serialize)]
struct Payload<'a> {
    port: u16,
    class: &'static str,
    service: Option<&'a str>,
    privileged: Option<bool>,
    ephemeral: Option<bool>,
    with: &'static str,
    r#as: SetupRecord,
    chosen_port: Option<u16>,
    attempts: Vec<AttemptRecord>,
    holders: Vec<HolderRecord<'a>>,
    verdict: &'static str,
    cause: &'static str,
    free_in_ms: Option<u64>,
    advice: &'a [String],
    note_lost: bool,
    other_verdicts: Vec<OtherVerdictRecord>,
    next: Vec<StepRecord<'a>>,
    reserve: Vec<StepRecord<'a>>,
    lasting: Vec<SysctlLineRecord<'a>>,
}

#[derive(Serialize)]
struct OtherVerdictRecord {
    option: &'static str,
    verdict: &'static str,
    cause: &'static str,
}

impl From<&OtherVerdict> for OtherVerdictRecord {
    fn from(other: &OtherVerdict) -> Self {
        Self { option: other.option.words(), verdict: other.verdict.name(), cause: other.cause.name() }
    }
}

#[derive(Serialize)]
pub(super) struct AttemptRecord {
    addr: String,
    options: Vec<&'static str>,
    bind: &'static str,
    listen: Option<&'static str>,
}

impl AttemptRecord {
    pub(super) fn new(attempt: &Attempt, facts: &Facts) -> Self {
        Self {
            addr: attempt.at.text(facts),
            options: attempt.options.names(),
            bind: attempt.bind.name(),
            listen: attempt.listen.map(CallResult::name),
        }
    }
}

fn payload<'a>(test: &BindTest<'a>) -> Payload<'a> {
    let BindEvidence { facts, port, with, attempts, holders, conclusion, setup, .. } = test.evidence;
    Payload {
        port: port.0,
        class: port.class().name(),
        service: facts.services.name(port),
        privileged: facts.privileged(port),
        ephemeral: facts.ephemeral(port),
        with: with_name(with),
        r#as: SetupRecord::new(&setup, facts),
        chosen_port: test.chosen_port.map(|port| port.0),
        attempts: attempts.iter().map(|attempt| AttemptRecord::new(attempt, facts)).collect(),
        holders: holders.iter().map(|holder| HolderRecord::new(holder, facts)).collect(),
        verdict: conclusion.verdict.name(),
        cause: conclusion.cause.name(),
        free_in_ms: conclusion.free_in.map(milliseconds),
        advice: test.advice,
        note_lost: test.note_lost,
        other_verdicts: test.other_verdicts.iter().map(OtherVerdictRecord::from).collect(),
        next: StepRecord::all(test.next),
        reserve: StepRecord::all(&test.reserve.commands),
        lasting: SysctlLineRecord::all(&test.reserve.sysctl_lines),
    }
}

/// Writes the JSON document.
pub fn document(out: &mut (dyn Write + Send), envelope: Envelope, test: &BindTest) -> io::Result<()> {
    json::document(out, envelope, payload(test))
}

/// Writes the payload as one JSON record.
pub fn ndjson(out: &mut (dyn Write + Send), test: &BindTest) -> io::Result<()> {
    json::line(out, &payload(test))
}

const fn meaning(verdict: Verdict) -> Meaning {
    match verdict {
        Verdict::Free => Meaning::Good,
        Verdict::Reusable => Meaning::Caution,
        Verdict::Blocked | Verdict::Denied => Meaning::Bad,
    }
}

/// Writes the page: the verdict, suggested commands, advice, and the measurements.
pub fn page(out: &mut (dyn Write + Send), test: &BindTest, style: TextStyle) -> io::Result<()> {
    let BindEvidence { facts, port, attempts, holders, conclusion, .. } = test.evidence;
    let service = facts.services.name(port).map(|name| format!(" ({})", human::escape(name))).unwrap_or_default();
    let verdict = style.paint(meaning(conclusion.verdict), conclusion.verdict.name());
    write!(out, "port {port}{service}: {verdict}{}", human::escape(&headline(&test.evidence)))?;
    if let Some(time) = conclusion.free_in {
        write!(out, "; {}", holder::free_in(time, holders))?;
    }
    writeln!(out)?;
    if let Some(port) = test.chosen_port {
        writeln!(out, "the kernel chose port {port}")?;
    }
    for other in test.other_verdicts {
        human::break_lines(out, &other_verdict(*other), "", "", style.width)?;
    }
    steps::write_next(out, test.next, style)?;
    if *test.reserve != Suggestions::default() {
        writeln!(out)?;
        steps::write(out, test.reserve, "", style)?;
    }
    if !test.advice.is_empty() {
        writeln!(out)?;
        test.advice.iter().try_for_each(|advice| human::break_lines(out, advice, "- ", "  ", style.width))?;
    }
    writeln!(out)?;
    attempts_table(out, attempts, facts, style)?;
    if !holders.is_empty() {
        writeln!(out)?;
        // The heading says "plain", because a bind with SO_REUSEADDR or SO_REUSEPORT may work.
        holders_table(out, holders, "BLOCKS PLAIN BIND", facts, style)?;
    }
    holder::write_processes(out, holders, style)
}

fn other_verdict(other: OtherVerdict) -> String {
    let example = match other.option {
        UnspecifiedOption::V6only(true) => " (nginx sets it for [::]:80)",
        UnspecifiedOption::V6only(false) => " (some servers clear IPV6_V6ONLY)",
        UnspecifiedOption::Freebind => "",
    };
    format!("with {}{example}, the verdict would be {}", other.option.words(), other.verdict.name())
}

/// The text after the verdict in the first line. The text contains process names, so the caller must escape it.
fn headline(evidence: &BindEvidence) -> String {
    match evidence.conclusion.verdict {
        Verdict::Free => String::new(),
        Verdict::Reusable => format!(" with {}, beside {}", evidence.with, reason(evidence)),
        Verdict::Blocked => format!(" by {}", reason(evidence)),
        Verdict::Denied => format!(": {}", denial(evidence)),
    }
}

/// Describes in a few words what blocks the plain bind.
fn reason(evidence: &BindEvidence) -> String {
    let blocking = evidence.holders.iter().filter(|holder| holder.blocks);
    let one = blocking.clone().filter(|holder| matches!(holder.socket, Socket::Bucket(_))).count() == 1;
    let named = advice::obstacle(evidence.conclusion.cause, blocking);
    match evidence.conclusion.cause {
        Cause::TimeWait if one => format!("{named} whose owner had set SO_REUSEADDR"),
        Cause::TimeWait => format!("{named} whose owners had set SO_REUSEADDR"),
        Cause::TimeWaitWithoutReuseaddr if one => format!("{named} whose owner had not set SO_REUSEADDR"),
        Cause::TimeWaitWithoutReuseaddr => format!("{named} whose owners had not all set SO_REUSEADDR"),
        Cause::OwnSocket => own_socket(evidence),
        Cause::Unknown if evidence.port.reserved_by_rfc() => "a full ephemeral range".into(),
        _ => named,
    }
}

/// Names the socket that the server has already bound and that blocks its next bind: `the server's own socket on 0.0.0.0`.
fn own_socket(evidence: &BindEvidence) -> String {
    let plain = evidence.attempts.iter().filter(|attempt| attempt.options == ReuseOptions::NONE);
    let earlier = advice::earlier_addresses(plain, evidence.facts).map_or_else(String::new, |(earlier, _)| earlier);
    format!("the server's own socket on {earlier}")
}

fn denial(evidence: &BindEvidence) -> String {
    let failed =
        |attempt: &&Attempt| !matches!(attempt.outcome(), CallResult::Ok | CallResult::Failed(Errno::AddrInUse));
    let first = evidence.attempts.iter().find(failed);
    let on = first.map(|attempt| attempt.at.text(evidence.facts)).unwrap_or_default();
    match evidence.conclusion.cause {
        Cause::PrivilegedPort => "the port needs CAP_NET_BIND_SERVICE".into(),
        Cause::AddressNotLocal => format!("{on} is not an address of this network namespace"),
        Cause::FamilyUnsupported => {
            let refused = |attempt: &&Attempt| attempt.outcome() == CallResult::Failed(Errno::FamilyNotSupported);
            let family = evidence.attempts.iter().find(refused).map_or("such", |attempt| attempt.at.family());
            format!("{family} sockets cannot be created here")
        }
        _ => format!("{} on {on}", first.map_or("unknown", |attempt| attempt.outcome().name())),
    }
}

/// Writes one row per address and one column per option set.
fn attempts_table(
    out: &mut (dyn Write + Send),
    attempts: &[Attempt],
    facts: &Facts,
    style: TextStyle,
) -> io::Result<()> {
    let headings = ["ADDRESS", "no option", "SO_REUSEADDR", "SO_REUSEPORT", "both"].map(Heading::new);
    let cell = |attempt: &Attempt| match attempt.listen {
        None => attempt.bind.name().to_owned(),
        Some(CallResult::Ok) => "ok, listens".to_owned(),
        Some(CallResult::Failed(errno)) => format!("ok, listen() {}", errno.name()),
    };
    let row = |of_one: &[Attempt]| {
        let address =
            of_one.first().map(|attempt| human::escape(&attempt.at.text(facts)).into_owned()).unwrap_or_default();
        std::iter::once(address).chain(of_one.iter().map(cell)).collect()
    };
    let rows: Vec<Vec<String>> = attempts.chunks(ReuseOptions::ALL.len()).map(row).collect();
    table::write(out, &headings, true, rows.as_slice(), style).map(drop)
}

pub(super) fn holders_table(
    out: &mut (dyn Write + Send),
    holders: &[Holder],
    blocks: &'static str,
    facts: &Facts,
    style: TextStyle,
) -> io::Result<()> {
    let headings = [
        Heading::new("STATE"),
        Heading::new("LOCAL"),
        Heading::new("REMOTE"),
        Heading::new("EXPIRES").right(),
        Heading::new(blocks),
        Heading::new("HELD BY"),
    ];
    let row = |holder: &Holder| {
        let record = SocketRecord::new(&holder.socket, holder.direction, facts);
        let cell = |key| {
            let mut text = Text::default();
            if let Some(column) = super::column::Column::find(key) {
                column.append_cell(&record, &mut text);
            }
            String::from(text)
        };
        let blocks = if holder.blocks { "yes" } else { "no" };
        let by = human::escape(&owner_text(holder)).into_owned();
        vec![cell("state"), local(holder, facts), cell("remote"), cell("expires_ms"), blocks.to_owned(), by]
    };
    let rows: Vec<Vec<String>> = holders.iter().take(HOLDERS_SHOWN).map(row).collect();
    table::write(out, &headings, true, rows.as_slice(), style)?;
    if holders.len() > HOLDERS_SHOWN {
        let more = format!("and {} more; -o json has all", holders.len() - HOLDERS_SHOWN);
        writeln!(out, "{}", style.paint(Meaning::Aside, more))?;
    }
    Ok(())
}

/// Formats the local end with its interface and its service: `0.0.0.0%eth0:80 (http)`.
fn local(holder: &Holder, facts: &Facts) -> String {
    let tuple = holder.socket.tuple();
    let device = holder.socket.interface().map(|index| format!("%{}", facts.interface_name(index))).unwrap_or_default();
    let addr = match tuple.local_addr() {
        IpAddr::V4(v4) => format!("{v4}{device}"),
        IpAddr::V6(v6) => format!("[{v6}]{device}"),
    };
    let port = tuple.local_port();
    let service = facts.services.name(port).map(|name| format!(" ({name})")).unwrap_or_default();
    human::escape(&format!("{addr}:{port}{service}")).into_owned()
}

fn owner_text(holder: &Holder) -> String {
    let Some(user) = &holder.user else { return "the kernel alone".into() };
    // The kernel shows the user and the cgroup of a socket to everybody.
    let origin = || {
        let place = holder.created_in.as_deref().and_then(place_of_cgroup);
        let place = place.map_or(String::new(), |place| format!(", created in {place}"));
        format!("{}{place}", user.text())
    };
    match &holder.owners {
        Owners::Nobody => "no process".into(),
        Owners::NotPermitted => format!("{}: no permission to see the process", origin()),
        Owners::NotRead => format!("{}: not every process could be read", origin()),
        Owners::NotFound(_) => format!("{}: no process found", origin()),
        owners => owners.names().join(", "),
    }
}

/// Writes the JSON document of the demonstration.
pub fn demo_document(out: &mut (dyn Write + Send), envelope: Envelope, runs: &[DemoRun]) -> io::Result<()> {
    json::document(out, envelope, DemoPayload { runs: demo_records(envelope.facts, runs) })
}

/// Writes the demonstration as one JSON record per run.
pub fn demo_ndjson(out: &mut (dyn Write + Send), facts: &Facts, runs: &[DemoRun]) -> io::Result<()> {
    demo_records(facts, runs).iter().try_for_each(|run| json::line(out, run))
}

#[derive(Serialize)]
struct DemoPayload<'a> {
    runs: Vec<DemoRecord<'a>>,
}

#[derive(Serialize)]
struct DemoRecord<'a> {
    old_socket_options: Vec<&'static str>,
    stages: Vec<StageRecord>,
    buckets: Vec<SocketRecord<'a>>,
    attempts: Vec<AttemptRecord>,
}

#[derive(Serialize)]
struct StageRecord {
    step: &'static str,
    server: Option<&'static str>,
    client: Option<&'static str>,
}

fn demo_records<'a>(facts: &'a Facts, runs: &'a [DemoRun]) -> Vec<DemoRecord<'a>> {
    let run = |run: &'a DemoRun| DemoRecord {
        old_socket_options: run.old_socket.names(),
        stages: run
            .stages
            .iter()
            .map(|stage| StageRecord {
                step: stage.step,
                server: stage.server.map(TcpState::name),
                client: stage.client.map(TcpState::name),
            })
            .collect(),
        buckets: run.buckets.iter().map(|bucket| SocketRecord::of_bucket(bucket, Direction::Unknown, facts)).collect(),
        attempts: run.attempts.iter().map(|attempt| AttemptRecord::new(attempt, facts)).collect(),
    };
    runs.iter().map(run).collect()
}

/// Writes the demonstration as a page.
pub fn demo_page(
    out: &mut (dyn Write + Send),
    port: Port,
    facts: &Facts,
    runs: &[DemoRun],
    style: TextStyle,
) -> io::Result<()> {
    writeln!(
        out,
        "{}",
        style.paint(Meaning::Heading, format!("TIME_WAIT on port {port}, on this kernel ({})", facts.kernel))
    )?;
    human::break_lines(
        out,
        "twtool runs a real server and a real client in a private network namespace, which ends with twtool. The server \
         closes first, so it is the active closer and its port gets the TIME_WAIT bucket (RFC 9293, section 3.6).",
        "",
        "",
        style.width,
    )?;
    for (number, run) in (1..).zip(runs) {
        writeln!(out)?;
        let title = format!("{number}. The old server had set {}", run.old_socket);
        writeln!(out, "{}", style.paint(Meaning::Heading, title))?;
        let name = |state: Option<TcpState>| state.map_or("gone", TcpState::name).to_owned();
        let stage = |stage: &Stage| vec![stage.step.to_owned(), name(stage.server), name(stage.client)];
        let stages: Vec<Vec<String>> = run.stages.iter().map(stage).collect();
        table::write(out, &["STEP", "SERVER'S END", "CLIENT'S END"].map(Heading::new), true, stages.as_slice(), style)?;
        for bucket in &run.buckets {
            let left = human::duration(bucket.expires());
            writeln!(out, "left on port {port}: a TIME_WAIT bucket that ends in {left}; no process owns it")?;
        }
        for attempt in &run.attempts {
            let (mark, outcome) = match attempt.outcome() {
                CallResult::Ok => (Meaning::Good, "bind() and listen() work".to_owned()),
                CallResult::Failed(errno) if attempt.bind == CallResult::Ok => {
                    (Meaning::Bad, format!("bind() works, listen() fails: {}", errno.name()))
                }
                CallResult::Failed(errno) => (Meaning::Bad, format!("bind() fails: {}", errno.name())),
            };
            writeln!(out, "new server with {}: {}", attempt.options, style.paint(mark, outcome))?;
        }
    }
    writeln!(out)?;
    human::break_lines(
        out,
        "TIME_WAIT makes a plain bind() fail with EADDRINUSE. SO_REUSEADDR on the new socket helps only if the old \
         socket had the option too, because Linux checks both (socket(7)). So always set it in the server, before the \
         first restart needs it.",
        "",
        "",
        style.width,
    )
}
