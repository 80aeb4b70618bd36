//! The transcript of an experiment. It reports each event when the lab notices it, and collects the comparisons of expected and
//! observed results.

use std::io;
use std::time::{Duration, SystemTime};

use super::LabError;
use crate::model::experiment::{
    Actor, Comparison, Fate, LabEvent, LabEventKind, ReturnValue, Scenario, Segment, States,
};
use crate::sys::clock;

/// A callback for events. Its error ends the experiment.
pub type LabEventSink<'a> = &'a mut dyn FnMut(&LabEvent) -> io::Result<()>;

#[derive(Clone, Copy, Default)]
pub(super) struct EventDetails<'n> {
    pub(super) states: Option<States>,
    pub(super) timer: Option<Duration>,
    pub(super) note: &'n str,
}

pub(super) struct Transcript<'a> {
    scenario: Scenario,
    part: String,
    began: SystemTime,
    step: u32,
    segment_begins_step: bool,
    /// Whether the next events only prepare the present part, so that the text output may shorten them.
    pub(super) routine: bool,
    sink: LabEventSink<'a>,
    checks: Vec<Comparison>,
}

impl<'a> Transcript<'a> {
    pub(super) fn begin(scenario: Scenario, sink: LabEventSink<'a>) -> Self {
        Self {
            scenario,
            part: String::new(),
            began: clock::now(),
            step: 0,
            segment_begins_step: false,
            routine: false,
            sink,
            checks: vec![],
        }
    }

    pub(super) fn end(self) -> Vec<Comparison> {
        self.checks
    }

    fn event(&mut self, at: SystemTime, actor: Actor, kind: LabEventKind, seen: EventDetails) -> Result<(), LabError> {
        let event = LabEvent {
            scenario: self.scenario,
            part: self.part.clone(),
            step: self.step,
            routine: self.routine,
            since: at.duration_since(self.began).unwrap_or_default(),
            actor,
            kind,
            states: seen.states,
            timer: seen.timer,
            note: Some(seen.note.to_owned()).filter(|note| !note.is_empty()),
        };
        (self.sink)(&event).map_err(LabError::Report)
    }

    fn next_step(&mut self) {
        self.step += 1;
        self.segment_begins_step = false;
    }

    pub(super) fn part(&mut self, title: &str, note: &str) -> Result<(), LabError> {
        self.next_step();
        self.segment_begins_step = true;
        title.clone_into(&mut self.part);
        self.event(clock::now(), Actor::Lab, LabEventKind::Part, EventDetails { note, ..EventDetails::default() })
    }

    /// Reports a call that succeeded.
    pub(super) fn call(&mut self, actor: Actor, call: &str, note: &str) -> Result<(), LabError> {
        self.called(actor, call, ReturnValue::Done, EventDetails { note, ..EventDetails::default() })
    }

    /// Reports a call with its result, and details observed after it.
    pub(super) fn called(
        &mut self,
        actor: Actor,
        call: &str,
        outcome: ReturnValue,
        seen: EventDetails,
    ) -> Result<(), LabError> {
        self.next_step();
        self.event(clock::now(), actor, LabEventKind::Call { call: call.to_owned(), outcome }, seen)
    }

    pub(super) fn segment(&mut self, segment: Segment, fate: Fate, seen: EventDetails) -> Result<(), LabError> {
        if self.segment_begins_step {
            self.next_step();
        }
        self.segment_begins_step = true;
        let (at, actor) = (segment.at, Actor::Side(segment.from));
        self.event(at, actor, LabEventKind::Segment { segment, fate }, seen)
    }

    /// Reports a captured segment that the lab did not deliver itself. So the states are unknown.
    pub(super) fn captured(&mut self, segment: Segment) -> Result<(), LabError> {
        let (at, actor) = (segment.at, Actor::Side(segment.from));
        self.event(at, actor, LabEventKind::Segment { segment, fate: Fate::Arrived }, EventDetails::default())
    }

    pub(super) fn observe(&mut self, actor: Actor, seen: EventDetails) -> Result<(), LabError> {
        self.next_step();
        self.event(clock::now(), actor, LabEventKind::Observation, seen)
    }

    /// Reports that the lab will wait.
    pub(super) fn waiting(&mut self, left: Duration) -> Result<(), LabError> {
        self.event(clock::now(), Actor::Lab, LabEventKind::Waiting(left), EventDetails::default())
    }

    pub(super) fn check(
        &mut self,
        what: impl Into<String>,
        expected: impl Into<String>,
        observed: impl Into<String>,
    ) -> Result<(), LabError> {
        let (expected, observed) = (expected.into(), observed.into());
        let agrees = expected == observed;
        self.report_comparison(what, expected, observed, agrees)
    }

    /// Reports a comparison for which the caller decides whether the results agree.
    pub(super) fn report_comparison(
        &mut self,
        what: impl Into<String>,
        expected: impl Into<String>,
        observed: impl Into<String>,
        agrees: bool,
    ) -> Result<(), LabError> {
        let (expected, observed) = (expected.into(), observed.into());
        let check = Comparison { part: self.part.clone(), what: what.into(), expected, observed, agrees };
        self.checks.push(check.clone());
        self.event(clock::now(), Actor::Lab, LabEventKind::Comparison(check), EventDetails::default())
    }
}
