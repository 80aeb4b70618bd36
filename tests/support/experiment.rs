//! Runs `twtool demo`, and finds events in its output.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdout};

use serde_json::Value;

use super::records::text;
use super::twtool::{Run, twtool};

/// The names of all scenarios, in the order in which `twtool demo` lists them.
pub(crate) const SCENARIOS: [&str; 8] =
    ["four-way", "lost-ack", "stale-segment", "assassination", "reuse", "exhaustion", "length", "port-zero"];

pub(crate) fn demo(scenario: &str, more: &[&str]) -> Run {
    twtool([["demo", scenario].as_slice(), more].concat())
}

/// The events and checks of a run of `twtool demo` in which every check agreed.
pub(crate) struct DemoRun {
    pub(crate) events: Vec<Value>,
    pub(crate) checks: Vec<Value>,
}

/// Whether the event is a retransmission that the kernel sent because the machine was slow. It is reported, but is not part of
/// the experiment.
pub(crate) fn is_unexpected_retransmission(event: &Value) -> bool {
    event["event"] == "lost" && event["states"].is_null()
}

impl DemoRun {
    #[track_caller]
    pub(crate) fn of(scenario: &str) -> Self {
        let run = demo(scenario, &["--json"]).ok();
        let document = run.json();
        assert_eq!(document["scenario"], scenario);
        assert_eq!(document["agrees"], true, "{run}");
        let events = run.records("events").into_iter().filter(|event| !is_unexpected_retransmission(event)).collect();
        Self { events, checks: run.records("checks") }
    }

    fn of_part<'a>(&'a self, part: &'a str) -> impl DoubleEndedIterator<Item = &'a Value> {
        let mut events = self.events.iter().filter(move |event| text(event, "part") == part).peekable();
        assert!(events.peek().is_some(), "no part {part:?}");
        events
    }

    /// The segments of this part that arrived.
    #[track_caller]
    pub(crate) fn carried<'a>(&'a self, part: &'a str) -> Vec<&'a Value> {
        self.of_part(part).filter(|event| event["event"] == "segment").collect()
    }

    /// The segments of this part that arrived, in the form of [`segment`].
    #[track_caller]
    pub(crate) fn segments(&self, part: &str) -> Vec<String> {
        self.carried(part).into_iter().map(segment).collect()
    }

    /// The lost segments of this part, in the form of [`segment`].
    #[track_caller]
    pub(crate) fn lost(&self, part: &str) -> Vec<String> {
        self.of_part(part).filter(|event| event["event"] == "lost").map(segment).collect()
    }

    /// The states of this side in the events of segments that arrived, without consecutive duplicates. `gone` means that the side has
    /// no socket. An event has the state of the sender while the segment was under way, and the state of the receiver after the
    /// segment arrived.
    #[track_caller]
    pub(crate) fn states(&self, part: &str, side: &str) -> Vec<String> {
        let states = self.carried(part).into_iter().map(|event| event["states"][side].as_str().unwrap_or("gone"));
        let mut states: Vec<String> = states.map(str::to_owned).collect();
        states.dedup();
        states
    }

    /// All data that the programs have read in this part.
    #[track_caller]
    pub(crate) fn read(&self, part: &str) -> String {
        self.of_part(part)
            .filter(|event| event["what"] == "read()")
            .filter_map(|event| event["data"].as_str())
            .collect()
    }

    #[track_caller]
    pub(crate) fn errnos<'a>(&'a self, part: &'a str) -> Vec<&'a str> {
        self.of_part(part).filter_map(|event| event["errno"].as_str()).collect()
    }

    #[track_caller]
    pub(crate) fn only_event<'a>(&'a self, part: &'a str, kind: &str) -> &'a Value {
        let events: Vec<_> = self.of_part(part).filter(|event| event["event"] == kind).collect();
        let [event] = events.as_slice() else { panic!("one {kind} in {part:?}: {events:?}") };
        event
    }

    /// The system calls of this part whose `what` is this text.
    #[track_caller]
    pub(crate) fn calls<'a>(&'a self, part: &'a str, what: &str) -> Vec<&'a Value> {
        self.of_part(part).filter(|event| event["event"] == "call" && event["what"] == what).collect()
    }

    #[track_caller]
    pub(crate) fn only_call<'a>(&'a self, part: &'a str, what: &str) -> &'a Value {
        let calls = self.calls(part, what);
        let [call] = calls.as_slice() else { panic!("one {what:?} in {part:?}: {calls:?}") };
        call
    }
}

/// A segment as text: the sender and the flags, as in `client FIN ACK`.
#[track_caller]
pub(crate) fn segment(event: &Value) -> String {
    let flags = event["segment"]["flags"].as_array().expect("flags");
    let names: Vec<&str> = flags.iter().filter_map(Value::as_str).collect();
    format!("{} {}", text(&event["segment"], "from"), names.join(" "))
}

/// The events of a run that has not ended.
pub(crate) struct Lines {
    reader: BufReader<ChildStdout>,
    pub(crate) events: Vec<Value>,
}

impl Lines {
    pub(crate) fn of(child: &mut Child) -> Self {
        Self { reader: BufReader::new(child.stdout.take().expect("a pipe")), events: vec![] }
    }

    fn next(&mut self) -> bool {
        let mut line = String::new();
        if self.reader.read_line(&mut line).expect("stdout can be read") == 0 {
            return false;
        }
        self.events.push(serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?} is not JSON: {error}")));
        true
    }

    /// Reads up to and including the first event for which `fits` is true.
    #[track_caller]
    pub(crate) fn until(&mut self, fits: impl Fn(&Value) -> bool) {
        while !self.events.last().is_some_and(&fits) {
            assert!(self.next(), "the run ended before the expected event: {:#?}", self.events);
        }
    }

    pub(crate) fn rest(&mut self) {
        while self.next() {}
    }

    /// The last event of this kind whose text starts with `what`.
    #[track_caller]
    pub(crate) fn find(&self, kind: &str, what: &str) -> &Value {
        let fits =
            |event: &&Value| event["event"] == kind && event["what"].as_str().is_some_and(|w| w.starts_with(what));
        self.events.iter().rfind(fits).unwrap_or_else(|| panic!("no {kind} {what:?} in {:#?}", self.events))
    }
}

/// The local ports of the TIME_WAIT sockets in the network namespace of a process. In /proc/PID/net/tcp, the second column is the
/// local end, and the fourth column is the state (06).
pub(crate) fn time_wait_of(pid: u32) -> BTreeSet<u16> {
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).expect("our own child's namespace");
    let ports = table.lines().skip(1).filter_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let port = u16::from_str_radix(columns[1].split_once(':')?.1, 16).ok()?;
        (columns[3] == "06").then_some(port)
    });
    ports.collect()
}
