//! Takes samples: looks at each network namespace, and follows its buckets from look to look.

use std::collections::BTreeMap;
use std::io;
use std::mem;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::sample::Sample;
use super::tracker::Tracker;
use crate::snapshot::look::{FindOccupant, Look, Looked, Looks};
use crate::snapshot::{Selection, SnapshotError};

/// Takes samples from the kernel or from a recorded series.
pub struct Sampler {
    looks: Looks,
    selection: Selection,
    interval: Duration,
    keeps_rows: bool,
    closes_begin: bool,
    /// The buckets of the last look, by the inode number of their namespace.
    trackers: BTreeMap<Option<u64>, Tracker>,
}

impl Sampler {
    /// A sampler for these looks. With `keeps_rows`, samples have the selected buckets. Without, they need less memory.
    #[must_use]
    pub const fn new(looks: Looks, selection: Selection, interval: Duration, keeps_rows: bool) -> Self {
        Self { looks, selection, interval, keeps_rows, closes_begin: true, trackers: BTreeMap::new() }
    }

    /// Changes the wanted time between two looks.
    pub const fn set_interval(&mut self, interval: Duration) {
        self.interval = interval;
    }

    /// Sleeps until this time from the start of the first look. Returns false if a signal has arrived that a recording holds
    /// back.
    ///
    /// # Errors
    /// The sleep failed.
    pub fn wait(&mut self, until: Duration) -> io::Result<bool> {
        self.looks.wait(until)
    }

    /// Records the following samples: see [`Looks::record`].
    ///
    /// # Errors
    /// See [`Looks::record`].
    pub fn record(&mut self, path: &Path, replace: bool) -> Result<(), SnapshotError> {
        self.looks.record(path, replace)
    }

    /// Ends the recording, if there is one: see [`Looks::finish`].
    ///
    /// # Errors
    /// See [`Looks::finish`].
    pub fn finish(&mut self) -> Result<(), SnapshotError> {
        self.looks.finish()
    }

    /// Takes a sample with another selection, which the next samples keep if this one succeeds. Every bucket is followed, whatever
    /// the selection, so this causes no event.
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

    /// Takes a sample; `None` after the last one of a recorded series. [`Sample::interval`] is the time until the next one.
    ///
    /// # Errors
    /// See [`SnapshotError`]. A later sample may succeed.
    pub fn take(&mut self) -> Result<Option<Sample>, SnapshotError> {
        let (keeps_rows, closes_begin) = (self.keeps_rows, self.closes_begin);
        let trackers = Mutex::new(mem::take(&mut self.trackers));
        let lock = || trackers.lock().unwrap_or_else(PoisonError::into_inner);
        let follow = |look: Look, find: &mut FindOccupant<'_>| {
            let key = look.facts.netns;
            let mut tracker = lock().remove(&key).unwrap_or_default();
            let sample = tracker.follow(look, closes_begin, keeps_rows, find);
            lock().insert(key, tracker);
            sample
        };
        let taken = self.looks.take(&self.selection, self.interval, &follow);
        self.trackers = trackers.into_inner().unwrap_or_else(PoisonError::into_inner);
        let Some(Looked { elapsed, took, processor_time, interval, answer }) = taken? else { return Ok(None) };
        self.closes_begin = false;
        let warnings = answer.sentences();
        let mut namespaces = answer.value;
        let at = namespaces.iter().map(|netns| netns.facts.taken_at).min().unwrap_or(SystemTime::UNIX_EPOCH);
        for (netns, number) in namespaces.iter_mut().zip(0..) {
            for event in &mut netns.events {
                event.at = at;
                event.row.netns = number;
            }
            // The only namespace, or the first one, has number 0 already.
            if number > 0 {
                netns.rows.iter_mut().for_each(|row| row.netns = number);
            }
        }
        // A namespace that ended is forgotten. One that could not be read keeps its buckets for the next look.
        if answer.complete {
            let is_present = |key: &Option<u64>| namespaces.iter().any(|netns| netns.facts.netns == *key);
            self.trackers.retain(|key, _| is_present(key));
        }
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
