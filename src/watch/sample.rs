//! Takes samples: one look at each network namespace, compared with the last one, as a plain value.

use std::collections::BTreeMap;
use std::io;
use std::mem;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::events::{Event, Tracker};
use crate::model::facts::Facts;
use crate::model::kernel_counts::Counters;
use crate::model::row::Row;
use crate::snapshot::look::{FindOccupant, Look, Looked, Looks};
use crate::snapshot::{Selection, SnapshotError};

/// One look at each namespace.
#[derive(Clone, Debug)]
pub struct Sample {
    /// When the look began.
    pub at: SystemTime,
    /// The time from the start of the first look to the beginning of this one (CLOCK_MONOTONIC).
    pub elapsed: Duration,
    /// The time from the beginning of this look to that of the next one. It is longer than the interval that was asked for if
    /// a look would use more than a quarter of a core.
    pub interval: Duration,
    /// How long the look took.
    pub took: Duration,
    /// The processor time of the look, of all threads.
    pub processor_time: Duration,
    /// Each namespace, in a stable order. There is at least one. [`Row::netns`] is an index into this list.
    pub namespaces: Vec<NetnsSample>,
    /// Whether [`NetnsSample::closes`] counts every bucket instead of the new ones: in the first sample, and in the first
    /// one with another selection.
    pub closes_begin: bool,
    /// Whether nothing is missing.
    pub complete: bool,
    /// What is missing or uncertain, of all namespaces.
    pub warnings: Vec<String>,
}

/// One look at a namespace.
#[derive(Clone, Debug)]
pub struct NetnsSample {
    /// The facts of the namespace: name, kernel, port ranges, services, interfaces.
    pub facts: Arc<Facts>,
    /// The selected buckets, in the kernel's order. Empty if the sampler does not keep rows.
    pub rows: Vec<Row>,
    /// The number of selected buckets in TIME_WAIT.
    pub time_wait: usize,
    /// The number of selected buckets in FIN_WAIT_2.
    pub fin_wait_2: usize,
    /// The number of buckets in either state, selected or not, for a comparison with the maximum.
    pub all_buckets: usize,
    /// `net.ipv4.tcp_max_tw_buckets`.
    pub max_tw_buckets: Option<i64>,
    /// The kernel's counters after the look.
    pub counters: Counters,
    /// How many selected buckets entered TIME_WAIT in each second, counted from the start of the first look; negative seconds
    /// lie before it. Only entries that no earlier sample had. See also [`Sample::closes_begin`].
    pub closes: BTreeMap<i64, u64>,
    /// Closes per second since the last whole look, in the first sample those of the last second; `None` if this look is not
    /// whole.
    pub closes_per_s: Option<f64>,
    /// What happened to selected buckets since the last look. Always empty in the first sample.
    pub events: Vec<Event>,
    /// Whether the walk has missed no bucket, as far as the kernel shows. Otherwise there are no events about missing buckets.
    pub whole: bool,
    /// Whether nothing is missing, neither buckets nor facts.
    pub complete: bool,
}

impl Sample {
    /// The number of selected buckets in TIME_WAIT.
    #[must_use]
    pub fn time_wait(&self) -> usize {
        self.namespaces.iter().map(|netns| netns.time_wait).sum()
    }

    /// The number of selected buckets in FIN_WAIT_2.
    #[must_use]
    pub fn fin_wait_2(&self) -> usize {
        self.namespaces.iter().map(|netns| netns.fin_wait_2).sum()
    }

    /// Closes per second of all namespaces; `None` if one is unknown.
    #[must_use]
    pub fn closes_per_s(&self) -> Option<f64> {
        self.namespaces.iter().map(|netns| netns.closes_per_s).sum()
    }

    /// The events of all namespaces.
    pub fn events(&self) -> impl Iterator<Item = &Event> {
        self.namespaces.iter().flat_map(|netns| &netns.events)
    }
}

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

    /// Changes the selection of the next samples. Every bucket is followed, whatever the selection, so this causes no event.
    /// If the next sample fails because of the selection, set the last one again.
    pub fn select(&mut self, selection: Selection) {
        self.selection = selection;
        self.closes_begin = true;
    }

    /// Changes the wanted time between two looks.
    pub const fn set_interval(&mut self, interval: Duration) {
        self.interval = interval;
    }

    /// Sleeps until the time of the next look. Returns false if a signal has arrived that a recording holds back.
    ///
    /// # Errors
    /// The sleep failed.
    pub fn wait(&mut self, last: &Sample) -> io::Result<bool> {
        self.looks.wait(last.elapsed + last.interval)
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
