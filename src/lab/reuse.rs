//! The table of bind results (socket(7)): a row for each set of options of the old socket, and a column for each set of options of the
//! new socket. `bind-test --demo` shows two of these rows.

use super::loopback::Loopback;
use super::transcript::{EventDetails, Transcript};
use super::{LabError, demo};
use crate::model::bind::ReuseOptions;
use crate::model::experiment::{Actor, ReturnValue, Side, States};
use crate::model::port::Port;

const PORT: Port = Port(8080);

pub(super) fn play(transcript: &mut Transcript) -> Result<(), LabError> {
    for old in ReuseOptions::ALL {
        let first = old == ReuseOptions::NONE;
        transcript.routine = !first;
        let note = "A server on port 8080 closes first, which leaves TIME_WAIT on its port. Then a new socket tries to bind the port. \
                    A row is a set of options of the old socket, and a column is a set of options of the new one.";
        transcript.part(&old.to_string(), if first { note } else { "" })?;
        row(transcript, old)?;
        transcript.routine = false;
    }
    Ok(())
}

fn row(transcript: &mut Transcript, old: ReuseOptions) -> Result<(), LabError> {
    let mut lo = Loopback::enter()?;
    let run = demo::play_run(PORT, old, &mut |stage, bucket| {
        let states = Some(States { client: stage.client, server: stage.server });
        let timer = bucket.map(|bucket| bucket.expires());
        transcript.called(Actor::Lab, stage.step, ReturnValue::Done, EventDetails { states, timer, note: "" })?;
        lo.report_segments(transcript, true)
    })?;
    for attempt in &run.attempts {
        let call = if attempt.listen.is_some() { "bind() and listen()" } else { "bind()" };
        let call = format!("{call} with {}", attempt.options);
        let outcome = match attempt.outcome() {
            crate::model::bind::CallResult::Ok => ReturnValue::Done,
            crate::model::bind::CallResult::Failed(errno) => ReturnValue::Failed(errno),
        };
        let routine = std::mem::replace(&mut transcript.routine, true);
        transcript.called(Actor::Side(Side::Server), &call, outcome, EventDetails::default())?;
        transcript.routine = routine;
    }
    for attempt in &run.attempts {
        let expected = attempt.options.over_time_wait_of(old).name();
        transcript.check(attempt.options.to_string(), expected, attempt.outcome().name())?;
    }
    Ok(())
}
