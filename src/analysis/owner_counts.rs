//! Counts of buckets by the process, unit or container that made them, with the evidence.

use std::collections::{BTreeMap, BTreeSet};

use super::count::StateCounts;
use super::makers::{MakerGroupBy, MakerGroupKey};
use crate::model::close::MakerFacts;
use crate::model::owner::{Evidence, Owner};

/// The buckets whose owner was found by one kind of evidence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EvidenceCount {
    /// The number of buckets.
    pub buckets: u64,
    /// The largest number of processes, units or containers that could have made one of these buckets. Certain evidence has 1.
    pub candidates: usize,
}

/// The buckets of one process, unit or container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnerGroup {
    /// The process, unit or container. [`MakerGroupKey::Unknown`] if there is no evidence, or if the unit or container of
    /// the process is unknown.
    pub key: MakerGroupKey,
    /// The number of buckets in this group.
    pub count: StateCounts,
    /// The evidence, in the order of [`Evidence::ALL`].
    pub evidence: [EvidenceCount; Evidence::ALL.len()],
}

/// The buckets with an owner, by process, unit or container.
#[derive(Clone, Debug)]
pub struct OwnerCounts {
    by: MakerGroupBy,
    groups: BTreeMap<MakerGroupKey, OwnerGroup>,
}

impl OwnerCounts {
    /// Creates a counter without buckets.
    #[must_use]
    pub const fn new(by: MakerGroupBy) -> Self {
        Self { by, groups: BTreeMap::new() }
    }

    /// Adds buckets that have the same owner.
    pub fn add(&mut self, owner: &Owner, count: StateCounts) {
        let by = self.by;
        let key = |facts: &MakerFacts| match by {
            MakerGroupBy::Unit => MakerGroupKey::of_unit(facts),
            MakerGroupBy::Container => MakerGroupKey::of_container(facts),
            _ => MakerGroupKey::of_process(facts),
        };
        let candidates = owner.candidates.iter().map(key).collect::<BTreeSet<MakerGroupKey>>().len();
        let group = self.group(key(owner.process()));
        group.count += count;
        let evidence = &mut group.evidence[owner.evidence as usize];
        evidence.buckets += count.all();
        evidence.candidates = evidence.candidates.max(candidates);
    }

    fn group(&mut self, key: MakerGroupKey) -> &mut OwnerGroup {
        self.groups.entry(key).or_insert_with_key(|key| OwnerGroup {
            key: key.clone(),
            count: StateCounts::default(),
            evidence: Default::default(),
        })
    }

    pub(super) fn merge(&mut self, other: Self) {
        for (key, other) in other.groups {
            let group = self.group(key);
            group.count += other.count;
            for (evidence, other) in group.evidence.iter_mut().zip(other.evidence) {
                evidence.buckets += other.buckets;
                evidence.candidates = evidence.candidates.max(other.candidates);
            }
        }
    }

    /// The groups in the order of their keys. `all` is the number of all buckets. Buckets without evidence are in the group of
    /// [`MakerGroupKey::Unknown`].
    #[must_use]
    pub fn groups(&self, all: StateCounts) -> Vec<OwnerGroup> {
        let mut counts = self.clone();
        let mut rest = all;
        self.groups.values().for_each(|group| rest -= group.count);
        if rest.all() > 0 {
            counts.group(MakerGroupKey::Unknown).count += rest;
        }
        counts.groups.into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(evidence: Evidence, processes: &[(u32, &str)]) -> Owner {
        let facts = |(pid, cgroup): &(u32, &str)| MakerFacts {
            pid: *pid,
            own_pid_namespace: true,
            comm: "web".into(),
            cgroup: Some((*cgroup).into()),
            ..MakerFacts::default()
        };
        Owner { candidates: processes.iter().map(facts).collect(), evidence }
    }

    fn count(time_wait: u32, fin_wait_2: u32) -> StateCounts {
        StateCounts { time_wait, fin_wait_2 }
    }

    fn counts(by: MakerGroupBy) -> Vec<OwnerGroup> {
        let mut counts = OwnerCounts::new(by);
        counts.add(&owner(Evidence::Traced, &[(7, "/a/web.service")]), count(5, 1));
        counts.add(&owner(Evidence::Listener, &[(7, "/a/web.service"), (8, "/a/web.service")]), count(3, 0));
        counts.add(&owner(Evidence::SameDestination, &[(7, "/a/web.service"), (9, "/a/db.service")]), count(2, 0));
        counts.add(&owner(Evidence::Listener, &[(9, "/a/db.service")]), count(1, 0));
        counts.groups(count(12, 2))
    }

    fn evidence(group: &OwnerGroup) -> Vec<(u64, usize)> {
        group.evidence.iter().map(|evidence| (evidence.buckets, evidence.candidates)).collect()
    }

    #[test]
    fn the_number_of_candidates_counts_processes_or_units() {
        for (by, workers) in [(MakerGroupBy::Process, 2), (MakerGroupBy::Unit, 1)] {
            let groups = counts(by);
            let web = groups.iter().find(|group| group.count == count(10, 1)).expect("web.service and its process");
            assert_eq!(evidence(web), [(6, 1), (0, 0), (3, workers), (2, 2)], "{by:?}");
        }
        let container = counts(MakerGroupBy::Container);
        assert_eq!(
            (&container[0].key, evidence(&container[0])[3]),
            (&MakerGroupKey::Outside, (2, 1)),
            "both are in no container"
        );
    }

    #[test]
    fn buckets_without_evidence_are_a_group() {
        for by in [MakerGroupBy::Process, MakerGroupBy::Unit, MakerGroupBy::Container] {
            let groups = counts(by);
            let last = groups.last().expect("groups");
            assert_eq!((&last.key, last.count), (&MakerGroupKey::Unknown, count(1, 1)), "{by:?}");
            assert!(groups.is_sorted_by_key(|group| &group.key), "{by:?}");
        }
        let nothing_found = OwnerCounts::new(MakerGroupBy::Unit).groups(count(4, 0));
        assert_eq!((&nothing_found[0].key, nothing_found.len()), (&MakerGroupKey::Unknown, 1));
        assert_eq!(OwnerCounts::new(MakerGroupBy::Unit).groups(count(0, 0)), []);
    }

    #[test]
    fn a_process_without_a_known_cgroup_has_an_unknown_unit() {
        let facts = MakerFacts { pid: 7, comm: "web".into(), ..MakerFacts::default() };
        let owner = Owner { candidates: [facts].into(), evidence: Evidence::Listener };
        for by in [MakerGroupBy::Unit, MakerGroupBy::Container] {
            let mut counts = OwnerCounts::new(by);
            counts.add(&owner, count(2, 0));
            let groups = counts.groups(count(3, 0));
            assert_eq!((&groups[0].key, groups[0].count, groups.len()), (&MakerGroupKey::Unknown, count(3, 0), 1));
            assert_eq!(evidence(&groups[0])[2], (2, 1));
        }
    }

    #[test]
    fn counts_of_two_namespaces_are_added() {
        let mut merged = OwnerCounts::new(MakerGroupBy::Unit);
        merged.add(&owner(Evidence::Traced, &[(7, "/a/web.service")]), count(1, 0));
        let mut other = merged.clone();
        other.add(&owner(Evidence::Listener, &[(9, "/a/db.service")]), count(0, 4));
        merged.merge(other);
        let groups = merged.groups(count(2, 4));
        assert_eq!(groups.iter().map(|group| group.count.all()).collect::<Vec<_>>(), [4, 2]);
        assert_eq!(evidence(&groups[1])[0], (2, 1));
    }
}
