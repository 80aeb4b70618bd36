//! The data that a watch keeps from its samples: closes per second, and the recent events. This module reads no clock and does no
//! I/O.

use std::collections::VecDeque;

use super::events::Event;
use super::sample::Sample;

/// The history begins this number of seconds before the first sample. On mainline kernels TIME_WAIT lasts 60 s, and the remaining
/// time of a bucket shows when it entered TIME_WAIT.
const FIRST_SECONDS: i64 = 60;

/// The maximum number of complete seconds that the history keeps.
pub const MAX_SECONDS: usize = 600;

/// The maximum number of events that the history keeps; newer events replace older ones.
pub const MAX_EVENTS: usize = 1000;

/// Closes per second and recent events, fed with samples.
#[derive(Clone, Debug, Default)]
pub struct CloseHistory {
    /// The seconds from `first_second` to the current one, which is not complete.
    seconds: VecDeque<Second>,
    /// The number of the first of `seconds`. The seconds have the same numbers as in `NetnsSample::closes`.
    first_second: i64,
    events: VecDeque<Event>,
    now: Option<f64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Second {
    closes: u64,
    /// Whether a whole sample (`NetnsSample::whole`) covers this second.
    known: bool,
}

impl CloseHistory {
    /// Adds the next sample.
    pub fn add(&mut self, sample: &Sample) {
        self.add_closes(sample);
        self.events.extend(sample.events().cloned());
        self.events.drain(..self.events.len().saturating_sub(MAX_EVENTS));
    }

    /// Adds the closes of a sample, but not its events. Call this after [`Sample::reselect`], because the events of that sample are already
    /// in the history.
    pub fn add_closes(&mut self, sample: &Sample) {
        let current = i64::try_from(sample.elapsed.as_secs()).unwrap_or(i64::MAX);
        if sample.closes_begin {
            self.seconds.clear();
            self.first_second = current - FIRST_SECONDS;
        }
        let length = usize::try_from(current + 1 - self.first_second).unwrap_or(0);
        self.seconds.resize(length.max(self.seconds.len()), Second::default());
        // A bucket lasts a minute, so a whole sample covers the last minute, even if earlier samples were not whole.
        if sample.namespaces.iter().all(|netns| netns.whole) {
            let shown = usize::try_from(current - FIRST_SECONDS - self.first_second).unwrap_or(0);
            let complete = self.seconds.len() - 1;
            self.seconds.range_mut(shown..complete).for_each(|second| second.known = true);
        }
        for (&number, &closes) in sample.namespaces.iter().flat_map(|netns| &netns.closes) {
            let index = usize::try_from(number - self.first_second).ok();
            if let Some(second) = index.and_then(|index| self.seconds.get_mut(index)) {
                second.closes += closes;
            }
        }
        let old = self.seconds.len().saturating_sub(MAX_SECONDS + 1);
        self.seconds.drain(..old);
        self.first_second += i64::try_from(old).unwrap_or(0);
        self.now = sample.closes_per_s();
    }

    /// Keeps only the events for which `selects` returns true.
    pub fn retain_events(&mut self, selects: impl FnMut(&Event) -> bool) {
        self.events.retain(selects);
    }

    /// The closes of each complete second, the oldest first, at most [`MAX_SECONDS`]; `None` if no whole sample covers the second.
    #[must_use]
    pub fn closes(&self) -> impl DoubleEndedIterator<Item = Option<u64>> + ExactSizeIterator + '_ {
        let complete = self.seconds.len().saturating_sub(1);
        self.seconds.range(..complete).map(|second| second.known.then_some(second.closes))
    }

    /// The closes per second of the newest sample: see [`Sample::closes_per_s`].
    #[must_use]
    pub const fn now(&self) -> Option<f64> {
        self.now
    }

    /// The mean number of closes per second, over the seconds that a whole sample covers.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "ten minutes of closes are far below 2^52")]
    pub fn mean(&self) -> Option<f64> {
        let known = || self.closes().flatten();
        let seconds = known().count();
        (seconds > 0).then(|| known().sum::<u64>() as f64 / seconds as f64)
    }

    /// The largest number of closes in a second that a whole sample covers.
    #[must_use]
    pub fn peak(&self) -> Option<u64> {
        self.closes().flatten().max()
    }

    /// The most recent events, the oldest first, at most [`MAX_EVENTS`].
    #[must_use]
    pub const fn events(&self) -> &VecDeque<Event> {
        &self.events
    }
}
