//! A bind test and its demonstration, as a page for eyes or as JSON.

use std::io::{self, Write};
use std::time::Duration;

use serde::Serialize;

use super::holder::{HolderRecord, bind_addr};
use super::human;
use super::json::{self, Envelope};
use super::record::SocketRecord;
use super::style::{Look, Meaning};
use super::table::{self, Heading};
use super::text::Text;
use crate::analysis::advice::Evidence;
use crate::model::bind::{Attempt, CallResult, Holder, ReuseOptions, Verdict};
use crate::model::demo::{DemoRun, Stage};
use crate::model::facts::Facts;
use crate::model::port::Port;
use crate::model::process::Owners;
use crate::model::row::Direction;
use crate::model::socket::{Socket, TcpState};

/// The most holders that a page names; JSON has them all.
const HOLDERS_SHOWN: usize = 12;

/// Everything that an answer says.
#[derive(Clone, Copy, Debug)]
pub struct BindTest<'a> {
    /// What was found and concluded.
    pub evidence: Evidence<'a>,
    /// For port 0: the port that the kernel chose.
    pub chosen_port: Option<Port>,
    /// In words.
    pub advice: &'a [String],
    /// Whether a server's note of SO_REUSEPORT may be lost, or overwritten by the test's own.
    pub note_lost: bool,
}

#[derive(Serialize)]
struct Payload<'a> {
    port: u16,
    class: &'static str,
    service: Option<&'a str>,
    privileged: Option<bool>,
    ephemeral: Option<bool>,
    with: &'static str,
    chosen_port: Option<u16>,
    attempts: Vec<AttemptRecord>,
    holders: Vec<HolderRecord<'a>>,
    verdict: &'static str,
    cause: &'static str,
    free_in_ms: Option<u64>,
    advice: &'a [String],
    note_lost: bool,
}

#[derive(Serialize)]
struct AttemptRecord {
    addr: String,
    options: Vec<&'static str>,
    bind: &'static str,
    listen: Option<&'static str>,
}

impl AttemptRecord {
    fn new(attempt: &Attempt, facts: &Facts) -> Self {
        Self {
            addr: bind_addr(attempt.at, facts),
            options: attempt.options.names(),
            bind: attempt.bind.name(),
            listen: attempt.listen.map(CallResult::name),
        }
    }
}

/// The value of `--with`.
#[must_use]
pub const fn with_name(options: ReuseOptions) -> &'static str {
    match (options.reuseaddr, options.reuseport) {
        (false, false) => "none",
        (true, false) => "reuseaddr",
        (false, true) => "reuseport",
        (true, true) => "both",
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn payload<'a>(test: &BindTest<'a>) -> Payload<'a> {
    let Evidence { facts, port, with, attempts, holders, conclusion, .. } = test.evidence;
    Payload {
        port: port.0,
        class: port.class().name(),
        service: facts.services.name(port),
        privileged: facts.privileged(port),
        ephemeral: facts.ephemeral(port),
        with: with_name(with),
        chosen_port: test.chosen_port.map(|port| port.0),
        attempts: attempts.iter().map(|attempt| AttemptRecord::new(attempt, facts)).collect(),
        holders: holders.iter().map(|holder| HolderRecord::new(holder, facts)).collect(),
        verdict: conclusion.verdict.name(),
        cause: conclusion.cause.name(),
        free_in_ms: conclusion.free_in.map(milliseconds),
        advice: test.advice,
        note_lost: test.note_lost,
    }
}

/// Writes the JSON document.
pub fn document(out: &mut dyn Write, envelope: Envelope, test: &BindTest) -> io::Result<()> {
    json::document(out, envelope, payload(test))
}

/// Writes the payload as one record.
pub fn ndjson(out: &mut dyn Write, test: &BindTest) -> io::Result<()> {
    json::line(out, &payload(test))
}

const fn meaning(verdict: Verdict) -> Meaning {
    match verdict {
        Verdict::Free => Meaning::Good,
        Verdict::Reusable => Meaning::Caution,
        Verdict::Blocked | Verdict::Denied => Meaning::Bad,
    }
}

/// Writes the page: the verdict first, then what it rests on, then what to do.
pub fn page(out: &mut dyn Write, test: &BindTest, look: Look) -> io::Result<()> {
    let Evidence { facts, port, with, attempts, holders, conclusion, .. } = test.evidence;
    let service = facts.services.name(port).map(|name| format!(" ({})", human::escape(name))).unwrap_or_default();
    let verdict = look.paint(meaning(conclusion.verdict), conclusion.verdict.name());
    write!(out, "port {port}{service}: {verdict}")?;
    if conclusion.verdict != Verdict::Free {
        write!(out, ", {}", conclusion.cause.name())?;
    }
    writeln!(out)?;
    let mut details = vec![];
    if conclusion.verdict == Verdict::Reusable {
        details.push(format!("works with {with}"));
    }
    // When its peer closes, a FIN_WAIT_2 bucket gets a fresh timer.
    let fresh = holders.iter().any(|holder| matches!(holder.socket, Socket::Bucket(bucket) if bucket.fin_wait_2));
    let at_least = if fresh { " at the least" } else { "" };
    details
        .extend(conclusion.free_in.map(|time| format!("the last timer ends in {}{at_least}", human::duration(time))));
    details.extend(test.chosen_port.map(|port| format!("the kernel chose port {port}")));
    if !details.is_empty() {
        writeln!(out, "{}", details.join("; "))?;
    }
    writeln!(out)?;
    attempts_table(out, attempts, facts, look)?;
    if !holders.is_empty() {
        writeln!(out)?;
        holders_table(out, holders, facts, look)?;
    }
    if !test.advice.is_empty() {
        writeln!(out)?;
        test.advice.iter().try_for_each(|advice| human::break_lines(out, advice, "- ", "  ", look.width))?;
    }
    Ok(())
}

/// One row an address, one column an option set.
fn attempts_table(out: &mut dyn Write, attempts: &[Attempt], facts: &Facts, look: Look) -> io::Result<()> {
    let headings = ["ADDRESS", "no option", "SO_REUSEADDR", "SO_REUSEPORT", "both"].map(Heading::new);
    let cell = |attempt: &Attempt| match attempt.listen {
        None => attempt.bind.name().to_owned(),
        Some(CallResult::Ok) => "ok, listens".to_owned(),
        Some(CallResult::Failed(errno)) => format!("ok, listen() {}", errno.name()),
    };
    let row = |of_one: &[Attempt]| {
        let address =
            of_one.first().map(|attempt| human::escape(&bind_addr(attempt.at, facts)).into_owned()).unwrap_or_default();
        std::iter::once(address).chain(of_one.iter().map(cell)).collect()
    };
    let rows: Vec<Vec<String>> = attempts.chunks(ReuseOptions::ALL.len()).map(row).collect();
    table::write(out, &headings, true, rows.as_slice(), look).map(drop)
}

fn holders_table(out: &mut dyn Write, holders: &[Holder], facts: &Facts, look: Look) -> io::Result<()> {
    let headings = [
        Heading::new("STATE"),
        Heading::new("LOCAL"),
        Heading::new("REMOTE"),
        Heading::new("EXPIRES").right(),
        Heading::new("BLOCKS"),
        Heading::new("HELD BY"),
    ];
    let row = |holder: &Holder| {
        let record = SocketRecord::new(&holder.socket, holder.direction, facts);
        let cell = |key| {
            let mut text = Text::default();
            if let Some(column) = super::column::Column::find(key) {
                column.write_for_eyes(&record, &mut text);
            }
            String::from(text)
        };
        let blocks = if holder.blocks { "yes" } else { "no" };
        let by = human::escape(&held_by(holder)).into_owned();
        vec![cell("state"), cell("local"), cell("remote"), cell("expires_ms"), blocks.to_owned(), by]
    };
    let rows: Vec<Vec<String>> = holders.iter().take(HOLDERS_SHOWN).map(row).collect();
    table::write(out, &headings, true, rows.as_slice(), look)?;
    if holders.len() > HOLDERS_SHOWN {
        let more = format!("and {} more; -o json has all", holders.len() - HOLDERS_SHOWN);
        writeln!(out, "{}", look.paint(Meaning::Aside, more))?;
    }
    Ok(())
}

fn held_by(holder: &Holder) -> String {
    match &holder.owners {
        Owners::Nobody => match holder.socket {
            Socket::Bucket(_) => "the kernel alone".into(),
            Socket::Full(_) => "no process".into(),
        },
        Owners::NotPermitted => "not permitted to see".into(),
        Owners::NotFound(_) => "no process found".into(),
        owners => owners.names().join(", "),
    }
}

/// Writes the demonstration's JSON document.
pub fn demo_document(out: &mut dyn Write, envelope: Envelope, runs: &[DemoRun]) -> io::Result<()> {
    json::document(out, envelope, DemoPayload { runs: demo_records(envelope.facts, runs) })
}

/// Writes the demonstration as a record a run.
pub fn demo_ndjson(out: &mut dyn Write, facts: &Facts, runs: &[DemoRun]) -> io::Result<()> {
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

/// Writes the demonstration as a page to read from top to bottom.
pub fn demo_page(out: &mut dyn Write, port: Port, facts: &Facts, runs: &[DemoRun], look: Look) -> io::Result<()> {
    writeln!(
        out,
        "{}",
        look.paint(Meaning::Heading, format!("TIME_WAIT on port {port}, on this kernel ({})", facts.kernel))
    )?;
    human::break_lines(
        out,
        "A real server and a real client in a private network namespace, which ends with this program. The server closes \
         first, so it is the active closer and its port gets the TIME_WAIT bucket (RFC 9293, section 3.6).",
        "",
        "",
        look.width,
    )?;
    for (number, run) in (1..).zip(runs) {
        writeln!(out)?;
        let title = format!("{number}. The old server had set {}", run.old_socket);
        writeln!(out, "{}", look.paint(Meaning::Heading, title))?;
        let name = |state: Option<TcpState>| state.map_or("gone", TcpState::name).to_owned();
        let stage = |stage: &Stage| vec![stage.step.to_owned(), name(stage.server), name(stage.client)];
        let stages: Vec<Vec<String>> = run.stages.iter().map(stage).collect();
        table::write(out, &["STEP", "SERVER'S END", "CLIENT'S END"].map(Heading::new), true, stages.as_slice(), look)?;
        for bucket in &run.buckets {
            let left = human::duration(bucket.expires());
            writeln!(out, "left on port {port}: a TIME_WAIT bucket, {left} to go, no process owns it")?;
        }
        for attempt in &run.attempts {
            let (mark, outcome) = match attempt.outcome() {
                CallResult::Ok => (Meaning::Good, "bind() and listen() work".to_owned()),
                CallResult::Failed(errno) if attempt.bind == CallResult::Ok => {
                    (Meaning::Bad, format!("bind() works, listen() fails: {}", errno.name()))
                }
                CallResult::Failed(errno) => (Meaning::Bad, format!("bind() fails: {}", errno.name())),
            };
            writeln!(out, "new server with {}: {}", attempt.options, look.paint(mark, outcome))?;
        }
    }
    writeln!(out)?;
    human::break_lines(
        out,
        "TIME_WAIT makes a plain bind() fail with EADDRINUSE. SO_REUSEADDR on the new socket gets past it only where the \
         socket that left the bucket had it as well: Linux looks at both sides (socket(7)). So set it in the server \
         always, before the first restart needs it.",
        "",
        "",
        look.width,
    )
}
