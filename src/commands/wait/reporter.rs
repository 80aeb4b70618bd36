//! What a wait tells while it lasts: on a line of the terminal, or as a record for each change of state.

use std::time::Duration;

use super::watch::Watch;
use super::{Outcome, Target, WaitArgs, say};
use crate::analysis::waiting::{ROUND, Waiting};
use crate::commands::{CommandError, Context, Format, GlobalArgs};
use crate::model::bind::Cause;
use crate::sys;
use crate::sys::clock::Stopwatch;
use crate::sys::interrupt::Interrupts;
use crate::view;
use crate::view::wait::StatusLine;

/// Columns of a terminal that does not tell how many it has.
const USUAL_WIDTH: usize = 80;

/// A record with more sockets than this in the way is followed by the next after [`BETWEEN_CROWDS`] at the earliest:
/// thousands of buckets that go one by one would make a record of thousands each.
const CROWD: usize = 64;

/// See [`CROWD`].
const BETWEEN_CROWDS: Duration = Duration::from_secs(1);

/// Lets time pass, and tells how it stands.
pub(super) struct Reporter<'a, 'b> {
    args: &'a WaitArgs,
    context: &'a mut Context<'b>,
    records: bool,
    /// The line, with what holds back the signals that would leave it behind.
    line: Option<(StatusLine, &'a Interrupts)>,
    /// How it stood, and after how many changes and binds.
    last: Option<((u32, u32), Outcome)>,
    /// What the last record told: the changes until then and the cause; how many were in the way; when.
    told: Option<((u32, Cause), usize, Duration)>,
}

fn writes_records(args: &WaitArgs, global: &GlobalArgs) -> bool {
    global.format() == Format::Ndjson && !args.quiet
}

/// Whether a line is drawn while it lasts.
pub(super) fn draws(args: &WaitArgs, global: &GlobalArgs, context: &Context) -> bool {
    context.err_terminal && !args.quiet && !writes_records(args, global)
}

impl<'a, 'b> Reporter<'a, 'b> {
    /// `interrupts`: where a line is drawn.
    pub(super) fn new(
        args: &'a WaitArgs,
        global: &GlobalArgs,
        context: &'a mut Context<'b>,
        interrupts: Option<&'a Interrupts>,
    ) -> Self {
        let line = interrupts.map(|held| (StatusLine::default(), held));
        Self { args, context, records: writes_records(args, global), line, last: None, told: None }
    }

    /// Lets this much time pass.
    pub(super) fn pause(
        &mut self,
        target: &Target,
        watch: &mut Watch,
        waiting: &Waiting,
        clock: Stopwatch,
        pause: Duration,
    ) -> Result<(), CommandError> {
        let end = clock.elapsed().saturating_add(pause);
        if self.records {
            self.record(target, watch, waiting, clock.elapsed())?;
        }
        loop {
            let now = clock.elapsed();
            if now >= end {
                return Ok(());
            }
            let left = end.saturating_sub(now);
            if self.line.is_some() {
                self.draw(target, watch, waiting, now, left.min(ROUND))?;
            } else {
                sys::clock::sleep(left);
            }
        }
    }

    /// How it stands. The holders and the cause are looked for again only where they may have changed.
    fn outcome(
        &mut self,
        target: &Target,
        watch: &mut Watch,
        waiting: &Waiting,
        now: Duration,
    ) -> Result<&Outcome, CommandError> {
        let stamp = (waiting.changes(), waiting.binds());
        let last = if let Some((_, outcome)) = self.last.take().filter(|(of, _)| *of == stamp) {
            Outcome { waited: now, remaining: waiting.remaining(now), ..outcome }
        } else {
            let outcome = target.outcome(watch, waiting, None, now);
            if self.records { target.with_exact_cause(outcome, watch, waiting)? } else { outcome }
        };
        Ok(&self.last.insert((stamp, last)).1)
    }

    /// Draws the line and lets time pass, until a signal comes.
    fn draw(
        &mut self,
        target: &Target,
        watch: &mut Watch,
        waiting: &Waiting,
        now: Duration,
        pause: Duration,
    ) -> Result<(), CommandError> {
        self.outcome(target, watch, waiting, now)?;
        let (Some((line, interrupts)), Some((_, outcome))) = (&mut self.line, &self.last) else { return Ok(()) };
        let width = sys::terminal::stderr_width().unwrap_or(USUAL_WIDTH);
        // That the line cannot be drawn is no reason to give up.
        let _ = line.draw(self.context.err, &outcome.shown(target), target.timeout, width);
        if let Some(signal) = interrupts.wait(pause)? {
            let _ = line.clear(self.context.err);
            interrupts.let_through(signal)?;
        }
        Ok(())
    }

    /// Writes a record where the state is another than in the last one.
    fn record(
        &mut self,
        target: &Target,
        watch: &mut Watch,
        waiting: &Waiting,
        now: Duration,
    ) -> Result<(), CommandError> {
        let too_early = |(_, count, at): (_, usize, Duration)| count > CROWD && now < at.saturating_add(BETWEEN_CROWDS);
        if self.told.is_some_and(too_early) {
            return Ok(());
        }
        let outcome = self.outcome(target, watch, waiting, now)?;
        let (state, count) = ((waiting.changes(), outcome.cause), outcome.blocked_by.len());
        if self.told.is_some_and(|(told, ..)| told == state) {
            return Ok(());
        }
        self.told = Some((state, count, now));
        let Some((_, outcome)) = &self.last else { return Ok(()) };
        say(self.args, self.context, |out| view::wait::ndjson(out, &outcome.shown(target)))
    }

    /// Takes the line away, and lets signals through again.
    pub(super) fn clear(mut self) {
        if let Some((line, interrupts)) = &mut self.line {
            let _ = line.clear(self.context.err);
            interrupts.release();
        }
    }
}
