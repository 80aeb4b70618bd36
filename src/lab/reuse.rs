//! The matrix of what the old socket had set against what the new one sets (socket(7)): `bind-test --demo` is one port
//! of it.

use super::loopback::Loopback;
use super::story::{Seen, Story};
use super::{LabError, demo};
use crate::model::bind::ReuseOptions;
use crate::model::experiment::{Actor, Outcome, Side, States};
use crate::model::port::Port;

const PORT: Port = Port(8080);

pub(super) fn play(story: &mut Story) -> Result<(), LabError> {
    for old in ReuseOptions::ALL {
        let first = old == ReuseOptions::NONE;
        story.routine = !first;
        let note = "A server on port 8080 closes first, which leaves TIME_WAIT on its port. Then the port is bound again: \
                    with each set of options, after an old socket with each.";
        story.part(&old.to_string(), if first { note } else { "" })?;
        row(story, old)?;
        story.routine = false;
    }
    Ok(())
}

/// One old socket, and a new one with each set of options.
fn row(story: &mut Story, old: ReuseOptions) -> Result<(), LabError> {
    let mut lo = Loopback::enter()?;
    let run = demo::one(PORT, old, &mut |stage, bucket| {
        let states = Some(States { client: stage.client, server: stage.server });
        let timer = bucket.map(|bucket| bucket.expires());
        story.called(Actor::Lab, stage.step, Outcome::Done, Seen { states, timer, note: "" })?;
        lo.tell_segments(story, true)
    })?;
    for attempt in &run.attempts {
        let call = if attempt.listen.is_some() { "bind() and listen()" } else { "bind()" };
        let call = format!("{call} with {}", attempt.options);
        let outcome = match attempt.outcome() {
            crate::model::bind::CallResult::Ok => Outcome::Done,
            crate::model::bind::CallResult::Failed(errno) => Outcome::Failed(errno),
        };
        let routine = std::mem::replace(&mut story.routine, true);
        story.called(Actor::Side(Side::Server), &call, outcome, Seen::default())?;
        story.routine = routine;
    }
    for attempt in &run.attempts {
        let expected = attempt.options.over_time_wait_of(old).name();
        story.check(attempt.options.to_string(), expected, attempt.outcome().name())?;
    }
    Ok(())
}
