//! Counts all timewait buckets in one walk, and reads the kernel's counters and settings about them.

use std::ops::ControlFlow;

use super::namespaces::located_by_facts;
use super::{Answer, PassOn, Snapshot, SnapshotError, interrupted, merged_facts};
use crate::analysis::direction;
use crate::analysis::groups::{GroupBy, StateCounts};
use crate::analysis::limits::{self, Limit};
use crate::analysis::summary::{Summary, SummaryCounts};
use crate::filter::Filter;
use crate::model::facts::{Facts, Setting};
use crate::model::kernel_counts::BucketFacts;
use crate::model::listeners::Listeners;
use crate::model::owner::Owner;
use crate::model::row::{Direction, Row};
use crate::model::socket::{Socket, StateSet, TcpState};
use crate::source::{Origin, Source, WalkEnd};

/// Counts of buckets in one network namespace or in several.
#[derive(Debug)]
pub struct CountedBuckets {
    counts: SummaryCounts,
    kernel: BucketFacts,
    /// Limits that the merged counts do not show: a namespace has reached its maximum, or the lengths of TIME_WAIT differ.
    limits: Vec<Limit>,
    /// The facts of each namespace. There is at least one.
    pub facts: Vec<Facts>,
    /// The interface of the kernel that the buckets came from. It is procfs if procfs was read in at least one namespace.
    pub origin: Origin,
    rows: Vec<Row>,
    several: bool,
    of_one_family: bool,
}

impl CountedBuckets {
    /// Draws the conclusions from the counts. Each group has its `top` largest members.
    #[must_use]
    pub fn summary(self, top: usize) -> Summary {
        let Self { counts, mut kernel, limits, several, of_one_family, .. } = self;
        // Each namespace has its own maximum.
        kernel.max_tw_buckets = kernel.max_tw_buckets.filter(|_| !several);
        counts.summary(kernel, limits, top, of_one_family)
    }

    /// The facts of all namespaces together.
    #[must_use]
    pub fn merged_facts(&self) -> Facts {
        merged_facts(&self.facts, self.several)
    }

    /// Every bucket, if a group needs the owners of buckets; otherwise none.
    #[must_use]
    pub fn rows(&self) -> Vec<&Row> {
        self.rows.iter().collect()
    }

    /// Records that `count` of the counted buckets belong to this owner. Buckets without a recorded owner have an unknown owner.
    pub fn add_owner(&mut self, owner: &Owner, count: StateCounts) {
        self.counts.add_owner(owner, count);
    }

    fn add(&mut self, other: Self) {
        // Several namespaces can differ, but add the limit only once.
        let differ = self.kernel.tw_timeout_s != other.kernel.tw_timeout_s;
        if differ && self.limits.iter().all(|limit| limit.id != "length") {
            self.limits.push(limits::lengths_differ());
        }
        self.counts.merge(other.counts);
        self.kernel = self.kernel.merged(&other.kernel);
        self.limits.extend(other.limits);
        let netns = u32::try_from(self.facts.len()).unwrap_or(u32::MAX);
        self.rows.extend(other.rows.into_iter().map(|row| Row { netns, ..row }));
        self.facts.extend(other.facts);
        if other.origin != self.origin {
            self.origin = Origin::Procfs;
        }
    }
}

impl Snapshot {
    /// Counts every bucket by these groups. `ipv4` selects buckets with IPv4 (true) or IPv6 (false) on the wire.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn summary(&self, by: &[GroupBy], ipv4: Option<bool>) -> Result<Answer<CountedBuckets>, SnapshotError> {
        let several = self.namespaces.are_several();
        let mut all: Option<CountedBuckets> = None;
        let count_here = |_, pass_on: &mut PassOn<CountedBuckets>| {
            let (mut counted, answer) = self.input.ask(|source| count(source, by, ipv4))?;
            if several {
                let located = |limit: &mut Limit| limit.text = located_by_facts(&counted.facts[0], &limit.text);
                counted.limits.iter_mut().for_each(located);
                counted.several = true;
            }
            let _ = pass_on(counted);
            Ok(answer)
        };
        let answer = self.namespaces.ask(&count_here, &mut |counted| {
            match &mut all {
                Some(all) => all.add(counted),
                None => all = Some(counted),
            }
            ControlFlow::Continue(())
        })?;
        match all {
            Some(all) => Ok(answer.with(all)),
            None => Err(SnapshotError::NoNamespace(answer.warnings)),
        }
    }
}

fn count(
    source: &mut Source,
    by: &[GroupBy],
    ipv4: Option<bool>,
) -> Result<(CountedBuckets, Answer<()>), SnapshotError> {
    let kernel = source.bucket_facts();
    let mut facts = source.facts().clone();
    let (counts, rows, end) = walk(source, by, &facts, &kernel, ipv4)?;
    // The direction depends on the ephemeral range.
    let needed: &[Setting] = if by.contains(&GroupBy::Direction) { &[Setting::LocalPortRange] } else { &[] };
    let mut warnings = facts.gaps(needed);
    let complete = end.complete && warnings.is_empty();
    warnings.extend((!end.complete).then(interrupted));
    warnings.extend(source.warnings());
    let limits = counts.at_maximum(&kernel, facts.negative_maximum_is_none()).into_iter().collect();
    // This closes the descriptor for interface names, because there may be many namespaces.
    facts.interfaces.store_names([]);
    let origin = source.origin();
    let of_one_family = ipv4.is_some();
    let counted =
        CountedBuckets { counts, kernel, limits, facts: vec![facts], origin, rows, several: false, of_one_family };
    Ok((counted, Answer { complete, warnings, ..Answer::whole(()) }))
}

fn walk(
    source: &mut Source,
    by: &[GroupBy],
    facts: &Facts,
    kernel: &BucketFacts,
    ipv4: Option<bool>,
) -> Result<(SummaryCounts, Vec<Row>, WalkEnd), SnapshotError> {
    let states = StateSet::of(&[TcpState::Listen, TcpState::TimeWait, TcpState::FinWait2]);
    // Listeners of both families are listed, because the direction may depend on both. The kernel may also list buckets of the other
    // family, so `wanted` tests each bucket again.
    let filter = ipv4.map_or(Filter::TRUE, Filter::ipv4_on_the_wire);
    let wanted = |bucket_is_ipv4| ipv4.is_none_or(|ipv4| ipv4 == bucket_is_ipv4);
    let infers_direction = by.contains(&GroupBy::Direction);
    let needs_owners = by.iter().any(|by| by.needs_owners());
    let ((_, counts, rows), end) = source.collect(
        states,
        &filter,
        || (Listeners::default(), SummaryCounts::new(by, kernel), vec![]),
        |(listeners, counts, rows), socket| match socket {
            Socket::Full(full) if full.state == TcpState::Listen => listeners.add(*full),
            Socket::Bucket(bucket) if wanted(bucket.tuple.family.ipv4_on_the_wire()) => {
                let direction = if infers_direction {
                    direction::infer(facts, listeners, &bucket.tuple, bucket.interface)
                } else {
                    Direction::Unknown
                };
                counts.add(bucket, direction);
                if needs_owners {
                    rows.push(Row { bucket: *bucket, direction, netns: 0 });
                }
            }
            Socket::Bucket(_) | Socket::Full(_) => {}
        },
    )?;
    Ok((counts, rows, end))
}
