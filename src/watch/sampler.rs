//! Samples each network namespace, and follows its buckets from sample to sample.

use std::collections::BTreeMap;
use std::mem;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::sample::{self, Reselection, Sample};
use super::tracker::Tracker;
use crate::snapshot::bucket_sample::{BucketSample, FindOccupant, SampleSource, TakenSample};
use crate::snapshot::{Selection, SnapshotError};

/// Takes samples from the kernel or from a recorded series.
pub struct Sampler {
    samples: SampleSource,
    selection: Selection,
    interval: Duration,
    keeps_rows: bool,
    /// The value of [`Sample::closes_begin`] for the next sample.
    closes_begin: bool,
    /// The buckets of the last sample of each namespace, by the inode number of the namespace.
    trackers: Trackers,
}

type Trackers = BTreeMap<Option<u64>, TrackedNamespace>;

#[derive(Default)]
struct TrackedNamespace {
    tracker: Tracker,
    /// When the last sample of the namespace began, as [`Sample::elapsed`].
    seen: Duration,
}

/// How long the buckets of a namespace are kept if later samples cannot read the namespace: twice the length of TIME_WAIT on
/// mainline kernels.
const KEEP_FOR: Duration = Duration::from_secs(120);

/// Records which namespaces a sample has read. After a complete sample, the other namespaces have ended, and their buckets are dropped at
/// once. Otherwise they may only be unreadable for now, and their buckets are kept for [`KEEP_FOR`]. Without this limit, memory would grow
/// with each namespace that ends while some namespace is unreadable.
fn forget(trackers: &mut Trackers, read: impl Iterator<Item = Option<u64>>, now: Duration, complete: bool) {
    for netns in read {
        trackers.entry(netns).or_default().seen = now;
    }
    trackers.retain(|_, tracked| tracked.seen == now || (!complete && now.saturating_sub(tracked.seen) < KEEP_FOR));
}

impl Sampler {
    /// Creates a sampler. With `keeps_rows`, a sample has the selected buckets. Without, it needs less memory.
    #[must_use]
    pub const fn new(samples: SampleSource, selection: Selection, interval: Duration, keeps_rows: bool) -> Self {
        Self { samples, selection, interval, keeps_rows, closes_begin: true, trackers: BTreeMap::new() }
    }

    /// Sets the wanted time between two samples.
    pub const fn set_interval(&mut self, interval: Duration) {
        self.interval = interval;
    }

    /// Sleeps until this time since the [`SampleSource`] was made. During a recording, SIGINT and SIGTERM are blocked. Returns false if
    /// one of them has arrived.
    ///
    /// # Errors
    /// The sleep failed.
    pub fn wait(&mut self, until: Duration) -> Result<bool, SnapshotError> {
        self.samples.wait(until)
    }

    /// Records the following samples: see [`SampleSource::record`].
    ///
    /// # Errors
    /// See [`SampleSource::record`].
    pub fn record(&mut self, path: &Path, replace: bool) -> Result<(), SnapshotError> {
        self.samples.record(path, replace)
    }

    /// Ends the recording, if there is one: see [`SampleSource::finish`].
    ///
    /// # Errors
    /// See [`SampleSource::finish`].
    pub fn finish(&mut self) -> Result<(), SnapshotError> {
        self.samples.finish()
    }

    /// Takes a sample with another selection. If the sample succeeds, the next samples have the same selection. The trackers follow every
    /// bucket, selected or not, so another selection causes no event.
    ///
    /// # Errors
    /// See [`Self::take`].
    pub fn take_selected(&mut self, selection: Selection) -> Result<Option<Sample>, SnapshotError> {
        let selection = mem::replace(&mut self.selection, selection);
        let closes_begin = mem::replace(&mut self.closes_begin, true);
        let sample = self.take();
        if sample.is_err() {
            (self.selection, self.closes_begin) = (selection, closes_begin);
        }
        sample
    }

    /// Selects among the buckets of the last sample, without a new sample. The next samples keep the selection if there is no
    /// error.
    ///
    /// # Errors
    /// The selection has a mistake, or tests something that the last sample did not read.
    pub fn select(&mut self, selection: Selection) -> Result<Vec<Reselection>, SnapshotError> {
        let select =
            |(netns, one): (&Option<u64>, &TrackedNamespace)| one.tracker.select(&selection).map(|rows| (*netns, rows));
        let selected = self.trackers.iter().map(select).collect::<Result<Vec<_>, _>>()?;
        self.selection = selection;
        let keep = |(netns, selected)| self.trackers.get_mut(&netns)?.tracker.keep_selected(netns, selected);
        Ok(selected.into_iter().filter_map(keep).collect())
    }

    /// Takes a sample; `None` after the last sample of a recorded series. [`Sample::interval`] is the time until the next sample is due.
    ///
    /// # Errors
    /// See [`SnapshotError`]. A later sample may succeed.
    pub fn take(&mut self) -> Result<Option<Sample>, SnapshotError> {
        let (keeps_rows, closes_begin) = (self.keeps_rows, self.closes_begin);
        let trackers = Mutex::new(mem::take(&mut self.trackers));
        let lock = || trackers.lock().unwrap_or_else(PoisonError::into_inner);
        let follow = |sample: BucketSample, find: &mut FindOccupant<'_>| {
            let key = sample.facts.netns;
            let mut tracked = lock().remove(&key).unwrap_or_default();
            let sample = tracked.tracker.follow(sample, closes_begin, keeps_rows, find);
            lock().insert(key, tracked);
            sample
        };
        let taken = self.samples.take_sample(&self.selection, self.interval, &follow);
        self.trackers = trackers.into_inner().unwrap_or_else(PoisonError::into_inner);
        let Some(TakenSample { elapsed, took, processor_time, interval, answer }) = taken? else { return Ok(None) };
        self.closes_begin = false;
        let warnings = answer.sentences();
        let mut namespaces = answer.value;
        let at = namespaces.iter().map(|netns| netns.facts.taken_at).min().unwrap_or(SystemTime::UNIX_EPOCH);
        for (netns, number) in namespaces.iter_mut().zip(0..) {
            for event in &mut netns.events {
                event.at = at;
                event.row.netns = number;
            }
            sample::number(&mut netns.rows, number);
        }
        forget(&mut self.trackers, namespaces.iter().map(|netns| netns.facts.netns), elapsed, answer.complete);
        Ok(Some(Sample {
            at,
            elapsed,
            interval,
            took,
            processor_time,
            namespaces,
            closes_begin,
            complete: answer.complete,
            warnings,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_that_are_never_read_again_are_forgotten() {
        let mut trackers = Trackers::default();
        let seconds = Duration::from_secs;
        let kept = |trackers: &Trackers| trackers.keys().map(|netns| netns.expect("known")).collect::<Vec<_>>();
        forget(&mut trackers, [Some(1), Some(2)].into_iter(), seconds(0), true);
        forget(&mut trackers, [Some(1)].into_iter(), seconds(1), false);
        assert_eq!(kept(&trackers), [1, 2], "the second namespace may be readable again");
        // Namespaces come and go, and no sample is complete, because one namespace can never be read.
        for second in 2..10_000 {
            forget(&mut trackers, [Some(1), Some(second)].into_iter(), seconds(second), false);
            assert!(trackers.len() as u64 <= 1 + KEEP_FOR.as_secs(), "{} trackers", trackers.len());
        }
        forget(&mut trackers, [Some(1)].into_iter(), seconds(10_000), true);
        assert_eq!(kept(&trackers), [1], "a complete sample shows that the others have ended");
    }
}
