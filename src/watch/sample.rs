//! A sample of each network namespace, as a plain value, with the events that result from a comparison with the previous sample.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::events::Event;
use crate::model::facts::Facts;
use crate::model::kernel_counts::Counters;
use crate::model::row::Row;

/// One sample of each namespace.
#[derive(Clone, Debug)]
pub struct Sample {
    /// When the sample began.
    pub at: SystemTime,
    /// The time from the making of the `SampleSource` to the beginning of this sample (CLOCK_MONOTONIC).
    pub elapsed: Duration,
    /// The time from the beginning of this sample to the beginning of the next one. It is longer than the requested interval if
    /// sampling would otherwise use more than a quarter of a core.
    pub interval: Duration,
    /// How long the sample took.
    pub took: Duration,
    /// The processor time that all threads of this process used during the sample.
    pub processor_time: Duration,
    /// Each namespace, in a stable order. There is at least one. [`Row::netns`] is an index into this list.
    pub namespaces: Vec<NetnsSample>,
    /// Whether [`NetnsSample::closes`] counts every selected bucket, and not only buckets that are new in this sample. This is so in the
    /// first sample, and in the first sample with another selection.
    pub closes_begin: bool,
    /// Whether nothing is missing from the sample.
    pub complete: bool,
    /// What is missing or uncertain in any namespace.
    pub warnings: Vec<String>,
}

/// One sample of a namespace.
#[derive(Clone, Debug)]
pub struct NetnsSample {
    /// The facts of the namespace: name, kernel, port ranges, services, interfaces.
    pub facts: Arc<Facts>,
    /// The selected buckets, in the kernel's order. Empty if the sampler does not keep rows.
    pub rows: Arc<Vec<Row>>,
    /// The number of selected buckets in TIME_WAIT.
    pub time_wait: usize,
    /// The number of selected buckets in FIN_WAIT_2.
    pub fin_wait_2: usize,
    /// The number of buckets in either state, selected or not, for a comparison with [`Self::max_tw_buckets`].
    pub all_buckets: usize,
    /// `net.ipv4.tcp_max_tw_buckets`.
    pub max_tw_buckets: Option<i64>,
    /// The kernel's counters after the sample.
    pub counters: Counters,
    /// How many selected buckets entered TIME_WAIT in each second. Second 0 begins when the `SampleSource` is made; negative seconds are
    /// before that. With [`Sample::closes_begin`], every selected bucket in TIME_WAIT with time left counts. Otherwise only buckets count
    /// that entered TIME_WAIT since the last sample.
    pub closes: BTreeMap<i64, u64>,
    /// Closes per second since the last sample that was whole; in the first sample that is whole, the closes of the last second. `None` if
    /// this sample is not whole.
    pub closes_per_s: Option<f64>,
    /// What happened to selected buckets since the last sample. Always empty in the first sample.
    pub events: Vec<Event>,
    /// Whether the walk over the sockets missed no bucket, as far as the kernel shows. Otherwise there are no events about buckets
    /// that are gone.
    pub whole: bool,
    /// Whether nothing is missing, neither buckets nor facts.
    pub complete: bool,
}

/// The buckets that another selection selects from the last sample of a namespace.
#[derive(Clone, Debug)]
pub struct Reselection {
    /// The inode number of the namespace.
    pub netns: Option<u64>,
    /// As [`NetnsSample::rows`].
    pub rows: Arc<Vec<Row>>,
    /// As [`NetnsSample::closes`], of every selected bucket.
    pub closes: BTreeMap<i64, u64>,
    /// Closes in the last second.
    pub closes_per_s: f64,
}

/// Sets [`Row::netns`], which is 0 before. So the rows of the first namespace do not change, and stay shared.
pub(super) fn number(rows: &mut Arc<Vec<Row>>, netns: u32) {
    if netns > 0 {
        for row in Arc::make_mut(rows) {
            row.netns = netns;
        }
    }
}

impl Sample {
    /// Replaces the rows, the counts and the closes, which depend on the selection. The events stay as they are.
    pub fn reselect(&mut self, all: Vec<Reselection>) {
        self.closes_begin = true;
        for Reselection { netns: inode, mut rows, closes, closes_per_s } in all {
            let found = (0..).zip(&mut self.namespaces).find(|(_, netns)| netns.facts.netns == inode);
            // A namespace that the last sample could not read is not part of the sample.
            let Some((place, netns)) = found else { continue };
            number(&mut rows, place);
            netns.fin_wait_2 = rows.iter().filter(|row| row.bucket.fin_wait_2).count();
            netns.time_wait = rows.len() - netns.fin_wait_2;
            (netns.rows, netns.closes, netns.closes_per_s) = (rows, closes, Some(closes_per_s));
        }
    }

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

    /// Closes per second of all namespaces; `None` if the number of one namespace is unknown.
    #[must_use]
    pub fn closes_per_s(&self) -> Option<f64> {
        self.namespaces.iter().map(|netns| netns.closes_per_s).sum()
    }

    /// The events of all namespaces.
    pub fn events(&self) -> impl Iterator<Item = &Event> {
        self.namespaces.iter().flat_map(|netns| &netns.events)
    }
}
