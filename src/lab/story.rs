//! What an experiment tells while it runs: each event at once, in order, and in the end what was expected and observed.

use std::io;
use std::time::{Duration, SystemTime};

use super::LabError;
use crate::model::experiment::{Actor, Check, Event, Fate, Kind, Outcome, Scenario, Segment, States};
use crate::sys::clock;

/// Takes events as they happen. An error of it ends the experiment.
pub type Listener<'a> = &'a mut dyn FnMut(&Event) -> io::Result<()>;

/// What goes with an event beside its kind.
#[derive(Clone, Copy, Default)]
pub(super) struct Seen<'n> {
    pub(super) states: Option<States>,
    pub(super) timer: Option<Duration>,
    pub(super) note: &'n str,
}

/// An experiment as it is told.
pub(super) struct Story<'a> {
    scenario: Scenario,
    part: String,
    began: SystemTime,
    step: u32,
    /// The step has its segment already.
    full: bool,
    /// What happens only leads to where the part begins.
    pub(super) routine: bool,
    tell: Listener<'a>,
    checks: Vec<Check>,
}

impl<'a> Story<'a> {
    pub(super) fn begin(scenario: Scenario, tell: Listener<'a>) -> Self {
        Self {
            scenario,
            part: String::new(),
            began: clock::now(),
            step: 0,
            full: false,
            routine: false,
            tell,
            checks: vec![],
        }
    }

    pub(super) fn end(self) -> Vec<Check> {
        self.checks
    }

    fn event(&mut self, at: SystemTime, actor: Actor, kind: Kind, seen: Seen) -> Result<(), LabError> {
        let event = Event {
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
        (self.tell)(&event).map_err(LabError::Told)
    }

    fn next_step(&mut self) {
        self.step += 1;
        self.full = false;
    }

    /// A part begins.
    pub(super) fn part(&mut self, title: &str, note: &str) -> Result<(), LabError> {
        self.next_step();
        self.full = true;
        title.clone_into(&mut self.part);
        self.event(clock::now(), Actor::Lab, Kind::Part, Seen { note, ..Seen::default() })
    }

    /// Somebody did something, and that worked.
    pub(super) fn call(&mut self, actor: Actor, call: &str, note: &str) -> Result<(), LabError> {
        self.called(actor, call, Outcome::Done, Seen { note, ..Seen::default() })
    }

    /// Somebody did something: with which result, and what was seen after it.
    pub(super) fn called(&mut self, actor: Actor, call: &str, outcome: Outcome, seen: Seen) -> Result<(), LabError> {
        self.next_step();
        self.event(clock::now(), actor, Kind::Call { call: call.to_owned(), outcome }, seen)
    }

    /// A segment was sent.
    pub(super) fn segment(&mut self, segment: Segment, fate: Fate, seen: Seen) -> Result<(), LabError> {
        if self.full {
            self.next_step();
        }
        self.full = true;
        let (at, actor) = (segment.at, Actor::Side(segment.from));
        self.event(at, actor, Kind::Segment { segment, fate }, seen)
    }

    /// A segment was seen on its way, which nobody held up to look at the states.
    pub(super) fn passed(&mut self, segment: Segment) -> Result<(), LabError> {
        let (at, actor) = (segment.at, Actor::Side(segment.from));
        self.event(at, actor, Kind::Segment { segment, fate: Fate::Arrived }, Seen::default())
    }

    /// Somebody looked at the kernel's list.
    pub(super) fn look(&mut self, actor: Actor, seen: Seen) -> Result<(), LabError> {
        self.next_step();
        self.event(clock::now(), actor, Kind::Look, seen)
    }

    /// Time will pass.
    pub(super) fn waiting(&mut self, left: Duration) -> Result<(), LabError> {
        self.event(clock::now(), Actor::Lab, Kind::Waiting(left), Seen::default())
    }

    /// Compares what was expected with what happened.
    pub(super) fn check(
        &mut self,
        what: impl Into<String>,
        expected: impl Into<String>,
        observed: impl Into<String>,
    ) -> Result<(), LabError> {
        let (expected, observed) = (expected.into(), observed.into());
        let agrees = expected == observed;
        self.judged(what, expected, observed, agrees)
    }

    /// Says a comparison that is more than equality.
    pub(super) fn judged(
        &mut self,
        what: impl Into<String>,
        expected: impl Into<String>,
        observed: impl Into<String>,
        agrees: bool,
    ) -> Result<(), LabError> {
        let (expected, observed) = (expected.into(), observed.into());
        let check = Check { part: self.part.clone(), what: what.into(), expected, observed, agrees };
        self.checks.push(check.clone());
        self.event(clock::now(), Actor::Lab, Kind::Check(check), Seen::default())
    }
}
