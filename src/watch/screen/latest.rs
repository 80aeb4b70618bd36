//! The last sample, and the lines about it at the top of the screen.

use std::sync::{PoisonError, RwLockReadGuard};
use std::time::SystemTime;

use super::counted::SampleCounts;
use crate::model::facts::Facts;
use crate::model::owner::Owner;
use crate::model::row::Row;
use crate::snapshot::bucket_owners::TracedOwners;
use crate::snapshot::owner_feed::{SharedOwners, Tracing};
use crate::snapshot::{Answer, Capacity};
use crate::view::{capacity, human, summary, trace};
use crate::watch::{NetnsSample, Sample};

#[derive(Debug)]
pub(super) struct LatestSample {
    pub(super) sample: Sample,
    /// The rows of the tables of local ports, peers and makers.
    pub(super) counted: SampleCounts,
    /// The capacity of each namespace, if the table of destinations was on the screen.
    pub(super) capacity: Vec<Answer<Capacity>>,
    /// The owners of buckets that a tracer has recorded.
    pub(super) owners: SharedOwners,
    /// Where the owners come from; `None` for a recorded series.
    pub(super) tracing: Option<Tracing>,
    /// Why the capacity of a namespace is unknown, or why a later sample failed.
    pub(super) failure: Option<String>,
}

impl LatestSample {
    #[must_use]
    pub(super) fn namespaces(&self) -> &[NetnsSample] {
        &self.sample.namespaces
    }

    #[must_use]
    pub(super) fn are_several(&self) -> bool {
        self.namespaces().len() > 1
    }

    /// Locks and returns the owners of buckets. The caller must release the lock soon, because the collector waits for it.
    pub(super) fn owners(&self) -> RwLockReadGuard<'_, TracedOwners> {
        self.owners.read().unwrap_or_else(PoisonError::into_inner)
    }

    #[must_use]
    pub(super) fn owner(&self, row: &Row) -> Option<Owner> {
        self.owners().owner(row).cloned()
    }

    /// Whether a tracer runs.
    #[must_use]
    pub(super) fn is_traced(&self) -> bool {
        self.tracing.as_ref().is_some_and(Tracing::is_on)
    }

    /// Whether the screen shows owners: while a tracer runs, and after that if it has recorded any owner.
    #[must_use]
    pub(super) fn shows_owners(&self) -> bool {
        self.is_traced() || !self.owners().is_empty()
    }

    fn about_owners(&self) -> Vec<String> {
        let mut warnings = match &self.tracing {
            Some(Tracing::Own(totals)) => trace::loss_warnings(*totals),
            Some(Tracing::Failed(why)) => vec![format!("the tracer has ended: {why}")],
            Some(Tracing::Off | Tracing::Unreadable(_) | Tracing::Served(_)) | None => vec![],
        };
        if self.owners().has_foreign_pids() {
            warnings.push(trace::FOREIGN_PIDS.into());
        }
        warnings
    }

    /// The first line: program, namespace, kernel.
    #[must_use]
    pub(super) fn title(&self) -> String {
        let netns = match self.namespaces() {
            [one] => name_of(&one.facts),
            several => format!("{} network namespaces", several.len()),
        };
        let kernel = self.namespaces().first().map_or("", |one| one.facts.kernel.as_str());
        format!("twtool  {netns}  Linux {}", human::escape(kernel))
    }

    /// The time of day at which the sample began, in UTC.
    #[must_use]
    pub(super) fn time(&self) -> String {
        time_of_day(self.sample.at)
    }

    /// The totals, whether the sample is complete, and the share of `tcp_max_tw_buckets`. The share is last, because a narrow terminal
    /// cuts the end of the line.
    #[must_use]
    pub(super) fn totals(&self) -> String {
        let grouped = |count: usize| human::with_separators(count as u64);
        let Sample { complete, .. } = self.sample;
        let states =
            format!("{} TIME_WAIT, {} FIN_WAIT_2", grouped(self.sample.time_wait()), grouped(self.sample.fin_wait_2()));
        let maximum = match self.namespaces() {
            [NetnsSample { all_buckets, max_tw_buckets: Some(most), facts, .. }] => {
                summary::share_of_maximum(*all_buckets as u64, *most, facts)
            }
            [_] => "tcp_max_tw_buckets is unknown".into(),
            _ => "each namespace has its own tcp_max_tw_buckets".into(),
        };
        format!("{states}; {}; {maximum}", if complete { "complete" } else { "NOT COMPLETE" })
    }

    /// Everything that is missing or uncertain.
    #[must_use]
    pub(super) fn warnings(&self) -> Vec<String> {
        let uncertain = |one: &Capacity| capacity::uncertain(one.conditions(), &one.destinations);
        let of_capacity = |answer: &Answer<Capacity>| {
            answer.warnings.iter().cloned().chain(uncertain(&answer.value)).collect::<Vec<_>>()
        };
        let known = self.failure.iter().chain(&self.sample.warnings).cloned().chain(self.about_owners());
        known.chain(self.capacity.iter().flat_map(of_capacity)).collect()
    }

    #[must_use]
    pub(super) fn has_warning(&self) -> bool {
        !self.warnings().is_empty()
    }
}

/// A time of day in UTC: `22:13:20Z`.
pub(super) fn time_of_day(time: SystemTime) -> String {
    human::timestamp(time).get(11..19).map_or_else(|| "unknown".into(), |time| format!("{time}Z"))
}

/// The name and the inode number of a namespace, like `netns web (4026531840)`.
#[must_use]
pub(super) fn name_of(facts: &Facts) -> String {
    match (&facts.netns_name, facts.netns) {
        (Some(name), Some(inode)) => format!("netns {} ({inode})", human::escape(name)),
        (Some(name), None) => format!("netns {}", human::escape(name)),
        (None, Some(inode)) => format!("netns {inode}"),
        (None, None) => "netns unknown".into(),
    }
}
