//! Prints the events and results of an experiment (`twtool demo`) as JSON: as a stream of records, or as one document.

use std::io::{self, Write};

use serde::Serialize;

use super::json::{self, Envelope};
use crate::model::bind::Errno;
use crate::model::experiment::{
    Actor, Comparison, Fate, LabEvent, LabEventKind, ReturnValue, Scenario, Segment, Side, States,
};
use crate::model::socket::TcpState;
use crate::model::time::milliseconds;

#[derive(Serialize)]
struct EventRecord<'a> {
    scenario: &'static str,
    part: &'a str,
    step: u32,
    t_ms: u64,
    actor: &'static str,
    event: &'static str,
    what: Option<&'a str>,
    segment: Option<SegmentRecord<'a>>,
    states: Option<StatesRecord>,
    timer_ms: Option<u64>,
    errno: Option<&'static str>,
    data: Option<&'a str>,
    note: Option<&'a str>,
}

#[derive(Serialize)]
struct SegmentRecord<'a> {
    from: &'static str,
    flags: Vec<&'static str>,
    seq: u32,
    ack: Option<u32>,
    len: usize,
    data: Option<std::borrow::Cow<'a, str>>,
    raw_seq: u32,
    raw_ack: Option<u32>,
}

#[derive(Serialize)]
struct StatesRecord {
    client: Option<&'static str>,
    server: Option<&'static str>,
}

/// A result in the JSON document.
#[derive(Serialize)]
struct ResultRecord<'a> {
    part: &'a str,
    what: &'a str,
    expected: &'a str,
    observed: &'a str,
    agrees: bool,
}

/// A result in the ndjson stream of events.
#[derive(Serialize)]
struct ResultEvent<'a> {
    scenario: &'static str,
    step: u32,
    t_ms: u64,
    actor: &'static str,
    event: &'static str,
    #[serde(flatten)]
    check: ResultRecord<'a>,
}

#[derive(Serialize)]
struct Payload<'a> {
    scenario: &'static str,
    title: &'static str,
    events: Vec<EventRecord<'a>>,
    checks: Vec<ResultRecord<'a>>,
    agrees: bool,
}

#[derive(Serialize)]
struct ListPayload {
    scenarios: Vec<ScenarioRecord>,
}

#[derive(Serialize)]
struct ScenarioRecord {
    scenario: &'static str,
    title: &'static str,
}

fn segment_record(segment: &Segment) -> SegmentRecord<'_> {
    let Segment { from, flags, seq, ack, raw_seq, raw_ack, payload, .. } = segment;
    SegmentRecord {
        from: Side::name(*from),
        flags: flags.names(),
        seq: *seq,
        ack: *ack,
        len: payload.len(),
        data: Some(String::from_utf8_lossy(payload)).filter(|data| !data.is_empty()),
        raw_seq: *raw_seq,
        raw_ack: *raw_ack,
    }
}

/// Converts an event to its record; `None` for a countdown, and for a result, which has its own record type.
fn event_record(event: &LabEvent) -> Option<EventRecord<'_>> {
    let (name, what, segment, errno, data) = match &event.kind {
        LabEventKind::Part => ("part", Some(event.part.as_str()), None, None, None),
        LabEventKind::Call { call, outcome } => {
            let data = match outcome {
                ReturnValue::Done | ReturnValue::Failed(_) => None,
                ReturnValue::Read(data) | ReturnValue::Value(data) => Some(data.as_str()),
            };
            ("call", Some(call.as_str()), None, outcome.errno(), data)
        }
        LabEventKind::Segment { segment, fate } => {
            let name = match fate {
                Fate::Arrived => "segment",
                Fate::Late => "late",
                Fate::Lost => "lost",
            };
            (name, None, Some(segment), None, None)
        }
        LabEventKind::Observation => ("look", None, None, None, None),
        LabEventKind::Waiting(_) | LabEventKind::Comparison(_) => return None,
    };
    let states = |States { client, server }: States| StatesRecord {
        client: client.map(TcpState::name),
        server: server.map(TcpState::name),
    };
    Some(EventRecord {
        scenario: event.scenario.name(),
        part: &event.part,
        step: event.step,
        t_ms: milliseconds(event.since),
        actor: Actor::name(event.actor),
        event: name,
        what,
        segment: segment.map(segment_record),
        states: event.states.map(states),
        timer_ms: event.timer.map(milliseconds),
        errno: errno.map(Errno::name),
        data,
        note: event.note.as_deref(),
    })
}

fn result_record(check: &Comparison) -> ResultRecord<'_> {
    let Comparison { part, what, expected, observed, agrees } = check;
    ResultRecord { part, what, expected, observed, agrees: *agrees }
}

/// Writes an event or a result as one JSON record.
pub fn ndjson(out: &mut dyn Write, event: &LabEvent) -> io::Result<()> {
    if let LabEventKind::Comparison(check) = &event.kind {
        let record = ResultEvent {
            scenario: event.scenario.name(),
            step: event.step,
            t_ms: milliseconds(event.since),
            actor: Actor::name(event.actor),
            event: "check",
            check: result_record(check),
        };
        return json::line(out, &record);
    }
    event_record(event).map_or(Ok(()), |record| json::line(out, &record))
}

/// Writes the whole experiment as a JSON document.
pub fn document(
    out: &mut dyn Write,
    envelope: Envelope,
    scenario: Scenario,
    events: &[LabEvent],
    checks: &[Comparison],
) -> io::Result<()> {
    let payload = Payload {
        scenario: scenario.name(),
        title: scenario.title(),
        events: events.iter().filter_map(event_record).collect(),
        checks: checks.iter().map(result_record).collect(),
        agrees: checks.iter().all(|check| check.agrees),
    };
    json::document(out, envelope, payload)
}

/// Writes the list of scenarios as a JSON document.
pub fn list_document(out: &mut dyn Write, envelope: Envelope) -> io::Result<()> {
    json::document(out, envelope, ListPayload { scenarios: Scenario::ALL.map(scenario_record).into() })
}

/// Writes the list of scenarios as one JSON record per line.
pub fn list_ndjson(out: &mut dyn Write) -> io::Result<()> {
    Scenario::ALL.map(scenario_record).iter().try_for_each(|record| json::line(out, record))
}

fn scenario_record(scenario: Scenario) -> ScenarioRecord {
    ScenarioRecord { scenario: scenario.name(), title: scenario.title() }
}
