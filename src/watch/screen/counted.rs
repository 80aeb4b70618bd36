//! The buckets of a sample, counted by local port, by remote address, and by the process that made them.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use crate::analysis::groups::{GroupBy, GroupKey, Groups, StateCounts};
use crate::analysis::makers;
use crate::analysis::owner_counts::OwnerGroup;
use crate::model::row::Row;
use crate::snapshot::bucket_owners::TracedOwners;
use crate::watch::{EventKind, Sample};

/// Counts with their keys, the largest count first.
#[derive(Clone, Debug, Default)]
pub(super) struct SampleCounts {
    local_ports: Vec<(GroupKey, StateCounts)>,
    remote_addrs: Vec<(GroupKey, StateCounts)>,
    makers: Vec<MakerCount>,
}

/// How many buckets one process made, and how many closes per second.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct MakerCount {
    pub(super) group: OwnerGroup,
    /// The closes of the process per second since the last sample; `None` if they are unknown.
    pub(super) per_second: Option<f64>,
}

/// A sample, and the time since the previous sample.
#[derive(Clone, Copy)]
pub(super) struct SampleWithInterval<'a> {
    pub(super) sample: &'a Sample,
    pub(super) time: Duration,
}

impl SampleWithInterval<'_> {
    /// How many buckets of each process entered TIME_WAIT per second; `None` if the sample may have missed some.
    fn rates(self, owners: &TracedOwners) -> Option<BTreeMap<makers::MakerGroupKey, f64>> {
        let seconds = self.time.as_secs_f64();
        if seconds <= 0.0 || self.sample.namespaces.iter().any(|netns| !netns.whole) {
            return None;
        }
        let is_close = |kind| matches!(kind, EventKind::Entered | EventKind::BecameTimeWait);
        let events = self.sample.events().filter(|event| is_close(event.kind) && !event.row.bucket.fin_wait_2);
        let groups = owners.groups(events.map(|event| &event.row));
        Some(groups.into_iter().map(|group| (group.key, f64::from(group.count.time_wait) / seconds)).collect())
    }
}

impl SampleCounts {
    /// Counts the rows of all namespaces together.
    #[must_use]
    pub(super) fn of<'a>(namespaces: impl Iterator<Item = &'a [Row]>) -> Self {
        let mut groups = Groups::new(&[GroupBy::LocalPort, GroupBy::RemoteAddr], 0);
        namespaces.flatten().for_each(|row| groups.add(&row.bucket, row.direction));
        let mut counted = Self::default();
        for ranking in groups.top(usize::MAX) {
            match ranking.by {
                GroupBy::LocalPort => counted.local_ports = ranking.top,
                _ => counted.remote_addrs = ranking.top,
            }
        }
        counted
    }

    /// Also counts the rows by the process that made them, if a tracer has recorded any owner. Without `sample`, the closes per second
    /// are unknown.
    #[must_use]
    pub(super) fn with_makers<'a>(
        self,
        owners: &TracedOwners,
        namespaces: impl Iterator<Item = &'a [Row]>,
        sample: Option<SampleWithInterval>,
    ) -> Self {
        if owners.is_empty() {
            return self;
        }
        let rates = sample.and_then(|sample| sample.rates(owners));
        let rate = |key: &makers::MakerGroupKey| rates.as_ref().map(|rates| rates.get(key).copied().unwrap_or(0.0));
        let groups = owners.groups(namespaces.flatten());
        let mut makers: Vec<MakerCount> =
            groups.into_iter().map(|group| MakerCount { per_second: rate(&group.key), group }).collect();
        // The groups are in the order of their keys. The sort is stable, so groups with equal counts stay in this order.
        makers.sort_by_key(|maker| Reverse(maker.group.count.all()));
        Self { makers, ..self }
    }

    /// The counts by local port, or by remote address.
    #[must_use]
    pub(super) fn by(&self, by: GroupBy) -> &[(GroupKey, StateCounts)] {
        if by == GroupBy::LocalPort { &self.local_ports } else { &self.remote_addrs }
    }

    #[must_use]
    pub(super) fn makers(&self) -> &[MakerCount] {
        &self.makers
    }
}
