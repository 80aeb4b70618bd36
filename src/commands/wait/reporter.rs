//! Reports the state of a wait in progress: on a status line of the terminal, or as one record per change.

use std::io;
use std::time::Duration;

use super::{WaitArgs, wait_report, write_now};
use crate::commands::{Context, Format, GlobalArgs};
use crate::model::bind::Cause;
use crate::snapshot::port_watch::{ObservedEvents, Observer, WaitState, WaitTarget};
use crate::view;
use crate::view::wait::StatusLine;

/// The assumed width in columns of a terminal whose width is unknown.
const ASSUMED_WIDTH: usize = 80;

/// After a record with more blocking sockets than this, the next record comes after [`BETWEEN_CROWDS`] at the earliest.
/// Otherwise, thousands of buckets that expire one by one would each cause a record with thousands of sockets.
const CROWD: usize = 64;

const BETWEEN_CROWDS: Duration = Duration::from_secs(1);

pub(super) struct ProgressReporter<'a, 'b> {
    args: &'a WaitArgs,
    context: &'a mut Context<'b>,
    observes: ObservedEvents,
    line: StatusLine,
    last: Option<ReportedState>,
}

/// The state that the last record reported.
struct ReportedState {
    changes: u32,
    cause: Cause,
    in_the_way: usize,
    waited: Duration,
}

impl<'a, 'b> ProgressReporter<'a, 'b> {
    pub(super) fn new(args: &'a WaitArgs, global: &GlobalArgs, context: &'a mut Context<'b>) -> Self {
        let observes = if args.quiet {
            ObservedEvents::Nothing
        } else if global.format() == Format::Ndjson {
            ObservedEvents::Changes
        } else if context.err_terminal {
            ObservedEvents::Everything
        } else {
            ObservedEvents::Nothing
        };
        Self { args, context, observes, line: StatusLine::default(), last: None }
    }
}

impl Observer for ProgressReporter<'_, '_> {
    fn observes(&self) -> ObservedEvents {
        self.observes
    }

    fn wants_change_at(&self, waited: Duration) -> bool {
        let too_early =
            |last: &ReportedState| last.in_the_way > CROWD && waited < last.waited.saturating_add(BETWEEN_CROWDS);
        !self.last.as_ref().is_some_and(too_early)
    }

    fn observe(&mut self, target: &WaitTarget, state: &WaitState) -> io::Result<()> {
        if self.observes == ObservedEvents::Everything {
            let width = (self.context.machine.stderr_width)().unwrap_or(ASSUMED_WIDTH);
            // A write error on the status line does not end the wait.
            let _ = self.line.draw(self.context.err, &wait_report(target, state), target.timeout, width);
            return Ok(());
        }
        let (changes, cause, in_the_way) = (state.changes, state.cause, state.blocked_by.len());
        if self.last.as_ref().is_some_and(|last| (last.changes, last.cause) == (changes, cause)) {
            return Ok(());
        }
        self.last = Some(ReportedState { changes, cause, in_the_way, waited: state.waited });
        write_now(self.args, self.context, |out| view::wait::ndjson(out, &wait_report(target, state)))
    }

    fn clear(&mut self) {
        if self.observes == ObservedEvents::Everything {
            let _ = self.line.clear(self.context.err);
        }
    }
}
