//! Counts of buckets by an attribute: port, address, destination, class, direction, network namespace, or owner.
//!
//! Memory grows with the number of distinct addresses, destinations and owners, not with the number of buckets.

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashMap};
use std::net::{IpAddr, Ipv6Addr};

use foldhash::fast::RandomState;

pub use super::count::StateCounts;
use super::makers;
use super::owner_counts::{OwnerCounts, OwnerGroup};
use crate::model::owner::Owner;
use crate::model::port::{Port, PortClass};
use crate::model::row::Direction;
use crate::model::socket::TimeWaitBucket;

/// An attribute by which buckets are grouped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the keys of a record that make the group")]
pub enum GroupBy {
    /// RFC 6335 class of the local port.
    Class,
    Direction,
    LocalPort,
    RemoteAddr,
    RemotePort,
    /// Remote address and port.
    Destination,
    /// Network namespace.
    Netns,
    /// The process that made the bucket. Without [`Groups::add_owner`], the owners of all buckets are unknown.
    Owner,
    /// The systemd unit of that process.
    Unit,
    /// The container of that process.
    Container,
}

impl GroupBy {
    /// Whether the attribute depends on the owners of buckets.
    #[must_use]
    pub const fn needs_owners(self) -> bool {
        self.maker().is_some()
    }

    /// Whether this attribute counts owners as processes, units or containers; `None` if it does not depend on owners.
    const fn maker(self) -> Option<makers::MakerGroupBy> {
        match self {
            Self::Owner => Some(makers::MakerGroupBy::Process),
            Self::Unit => Some(makers::MakerGroupBy::Unit),
            Self::Container => Some(makers::MakerGroupBy::Container),
            _ => None,
        }
    }

    /// The attributes by which a summary groups buckets by default.
    pub const DEFAULT: [Self; 5] = [Self::Class, Self::Direction, Self::LocalPort, Self::RemoteAddr, Self::Destination];

    /// The name that scripts see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Class => "class",
            Self::Direction => "direction",
            Self::LocalPort => "local_port",
            Self::RemoteAddr => "remote_addr",
            Self::RemotePort => "remote_port",
            Self::Destination => "destination",
            Self::Netns => "netns",
            Self::Owner => "owner",
            Self::Unit => "unit",
            Self::Container => "container",
        }
    }
}

/// The value of the attribute that the buckets of one group share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the values of `GroupBy`")]
pub enum GroupKey {
    Class(PortClass),
    Direction(Direction),
    LocalPort(Port),
    RemoteAddr(IpAddr),
    RemotePort(Port),
    Destination(IpAddr, Port),
    /// The index of the network namespace, in the order in which the namespaces were read.
    Netns(usize),
    /// The index of the owner, unit or container in [`Ranking::owners`].
    Owner(usize),
}

/// The largest counts by one attribute, and the sum of the other counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranking {
    /// The attribute.
    pub by: GroupBy,
    /// The largest counts, the largest first. Equal counts are in the order of their keys.
    pub top: Vec<(GroupKey, StateCounts)>,
    /// The sum of the counts that are not in `top`.
    pub others: StateCounts,
    /// The number of distinct keys, including those in `top`.
    pub distinct: usize,
    /// Every owner, unit or container, including those that are not in `top`. Empty for other attributes.
    pub owners: Vec<OwnerGroup>,
}

/// A count with its key. The order is: the largest count first, then by key, IPv4 before IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RankedCount {
    key: GroupKey,
    count: StateCounts,
}

impl RankedCount {
    fn sort_key(&self) -> (Reverse<u64>, usize, Option<IpAddr>, u16) {
        let (number, addr, port) = match self.key {
            GroupKey::Class(class) => (class as usize, None, 0),
            GroupKey::Direction(direction) => (direction as usize, None, 0),
            GroupKey::Netns(place) | GroupKey::Owner(place) => (place, None, 0),
            GroupKey::LocalPort(port) | GroupKey::RemotePort(port) => (0, None, port.0),
            GroupKey::RemoteAddr(addr) => (0, Some(addr), 0),
            GroupKey::Destination(addr, port) => (0, Some(addr), port.0),
        };
        (Reverse(self.count.all()), number, addr, port)
    }
}

impl Ord for RankedCount {
    fn cmp(&self, other: &Self) -> Ordering {
        self.sort_key().cmp(&other.sort_key())
    }
}

impl PartialOrd for RankedCount {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The maximum number of remote ends for which memory is reserved in advance.
const MAX_ROOM: usize = 1 << 20;

/// The number of buckets that are collected before their counts are updated together. The counts are far apart in memory. If many
/// of them are updated in one loop, the cache misses overlap.
const PENDING: usize = 256;

/// The index of an address in [`RemoteEnds::addrs`].
type AddrIndex = u32;

/// Counts by remote address, and by remote end (address and port). An address is stored once, and a remote end refers to the address
/// by index. This halves the memory for a server with a hundred thousand clients.
#[derive(Clone, Debug, Default)]
struct RemoteEnds {
    indices: HashMap<u128, AddrIndex, RandomState>,
    addrs: Vec<(u128, StateCounts)>,
    ends: Option<HashMap<(AddrIndex, Port), StateCounts, RandomState>>,
}

impl RemoteEnds {
    fn index(&mut self, addr: u128) -> AddrIndex {
        let addrs = &mut self.addrs;
        *self.indices.entry(addr).or_insert_with(|| {
            addrs.push((addr, StateCounts::default()));
            // The number fits: 2^32 buckets would need 1 TiB of kernel memory.
            AddrIndex::try_from(addrs.len() - 1).unwrap_or(AddrIndex::MAX)
        })
    }

    fn merge(&mut self, other: Self) {
        let indices: Vec<AddrIndex> = other.addrs.iter().map(|(addr, _)| self.index(*addr)).collect();
        for (index, (_, count)) in indices.iter().zip(&other.addrs) {
            self.addrs[*index as usize].1 += *count;
        }
        for ((index, port), count) in other.ends.into_iter().flatten() {
            if let Some(ends) = &mut self.ends {
                *ends.entry((indices[index as usize], port)).or_default() += count;
            }
        }
    }

    fn add_addr(&mut self, addr: u128, fin_wait_2: bool) -> AddrIndex {
        let index = self.index(addr);
        self.addrs[index as usize].1.add(fin_wait_2);
        index
    }
}

fn addr(bits: u128) -> IpAddr {
    Ipv6Addr::from_bits(bits).to_canonical()
}

/// A bucket that is not yet in the counts by port and by remote end.
#[derive(Clone, Copy, Debug)]
struct PendingBucket {
    local: Port,
    remote: Port,
    /// The index of the remote address; 0 if remote addresses are not counted.
    addr: AddrIndex,
    fin_wait_2: bool,
}

/// Counts buckets by all requested attributes, in one walk over the sockets.
#[derive(Clone, Debug)]
pub struct Groups {
    by: Vec<GroupBy>,
    classes: [StateCounts; PortClass::ALL.len()],
    directions: [StateCounts; Direction::ALL.len()],
    /// The counts by port number; empty if not requested.
    local_ports: Vec<StateCounts>,
    remote_ports: Vec<StateCounts>,
    remote_ends: Option<RemoteEnds>,
    /// Fewer than [`PENDING`] buckets.
    pending: Vec<PendingBucket>,
    /// The counts by network namespace. One walk reads one namespace.
    namespaces: Vec<StateCounts>,
    /// The counts by owner, for each requested attribute that needs owners.
    owners: Vec<(GroupBy, OwnerCounts)>,
}

impl Groups {
    /// Empty counts by these attributes. If one of them is the destination, reserves memory for `expected` destinations, but for at most
    /// 2^20.
    #[must_use]
    pub fn new(by: &[GroupBy], expected: usize) -> Self {
        let ports = |wanted| if by.contains(&wanted) { vec![StateCounts::default(); 1 << 16] } else { vec![] };
        // A table that grows step by step would be copied many times. Reserved memory that is never used costs almost nothing.
        let room = || HashMap::with_capacity_and_hasher(expected.min(MAX_ROOM), RandomState::default());
        let ends = by.contains(&GroupBy::Destination).then(room);
        let remote = ends.is_some() || by.contains(&GroupBy::RemoteAddr);
        Self {
            by: by.to_vec(),
            local_ports: ports(GroupBy::LocalPort),
            remote_ports: ports(GroupBy::RemotePort),
            remote_ends: remote.then(|| RemoteEnds { ends, ..RemoteEnds::default() }),
            classes: Default::default(),
            directions: Default::default(),
            pending: Vec::with_capacity(PENDING),
            namespaces: vec![StateCounts::default()],
            owners: by.iter().filter_map(|by| Some((*by, OwnerCounts::new(by.maker()?)))).collect(),
        }
    }

    /// Assigns `count` buckets, which [`Self::add`] has already counted, to their owner. Buckets that are never assigned have an unknown
    /// owner.
    pub fn add_owner(&mut self, owner: &Owner, count: StateCounts) {
        self.owners.iter_mut().for_each(|(_, counts)| counts.add(owner, count));
    }

    /// Counts a bucket.
    pub fn add(&mut self, bucket: &TimeWaitBucket, direction: Direction) {
        let (tuple, fin_wait_2) = (&bucket.tuple, bucket.fin_wait_2);
        let (local, remote) = (tuple.local_port(), tuple.remote_port());
        self.classes[local.class() as usize].add(fin_wait_2);
        self.directions[direction as usize].add(fin_wait_2);
        self.namespaces[0].add(fin_wait_2);
        let ends = self.remote_ends.as_mut();
        let addr = ends.map_or(0, |ends| ends.add_addr(tuple.remote_bits(), fin_wait_2));
        self.pending.push(PendingBucket { local, remote, addr, fin_wait_2 });
        if self.pending.len() == PENDING {
            self.count_pending();
        }
    }

    fn count_pending(&mut self) {
        if !self.local_ports.is_empty() {
            self.pending.iter().for_each(|one| self.local_ports[usize::from(one.local.0)].add(one.fin_wait_2));
        }
        if !self.remote_ports.is_empty() {
            self.pending.iter().for_each(|one| self.remote_ports[usize::from(one.remote.0)].add(one.fin_wait_2));
        }
        if let Some(ends) = self.remote_ends.as_mut().and_then(|ends| ends.ends.as_mut()) {
            for one in &self.pending {
                ends.entry((one.addr, one.remote)).or_default().add(one.fin_wait_2);
            }
        }
        self.pending.clear();
    }

    /// Adds the counts of another network namespace, by the same attributes.
    pub fn merge(&mut self, mut other: Self) {
        self.count_pending();
        other.count_pending();
        let sum = |counts: &mut [StateCounts], others: &[StateCounts]| {
            counts.iter_mut().zip(others).for_each(|(count, other)| *count += *other);
        };
        sum(&mut self.classes, &other.classes);
        sum(&mut self.directions, &other.directions);
        sum(&mut self.local_ports, &other.local_ports);
        sum(&mut self.remote_ports, &other.remote_ports);
        if let Some((ends, others)) = self.remote_ends.as_mut().zip(other.remote_ends) {
            ends.merge(others);
        }
        self.namespaces.extend(other.namespaces);
        self.owners.iter_mut().zip(other.owners).for_each(|((_, counts), (_, other))| counts.merge(other));
    }

    /// The `limit` largest counts by each attribute, in the order in which the caller named the attributes.
    #[must_use]
    pub fn top(&mut self, limit: usize) -> Vec<Ranking> {
        self.count_pending();
        self.by.iter().map(|&by| self.rank(by, limit)).collect()
    }

    fn rank(&self, by: GroupBy, limit: usize) -> Ranking {
        let ports = |counts: &[StateCounts], key: fn(Port) -> GroupKey| {
            largest(by, limit, (0..=u16::MAX).zip(counts).map(|(port, count)| (*count, move || key(Port(port)))))
        };
        let remote = || self.remote_ends.iter();
        match by {
            GroupBy::Class => {
                let counts = PortClass::ALL.into_iter().zip(self.classes);
                largest(by, limit, counts.map(|(class, count)| (count, move || GroupKey::Class(class))))
            }
            GroupBy::Direction => {
                let counts = Direction::ALL.into_iter().zip(self.directions);
                largest(by, limit, counts.map(|(direction, count)| (count, move || GroupKey::Direction(direction))))
            }
            GroupBy::Netns => {
                let counts = self.namespaces.iter().enumerate();
                largest(by, limit, counts.map(|(place, count)| (*count, move || GroupKey::Netns(place))))
            }
            GroupBy::Owner | GroupBy::Unit | GroupBy::Container => {
                let mut all = StateCounts::default();
                self.namespaces.iter().for_each(|count| all += *count);
                let counts = self.owners.iter().find(|(of, _)| *of == by);
                let owners = counts.map(|(_, counts)| counts.groups(all)).unwrap_or_default();
                let counts = owners.iter().enumerate();
                let ranking =
                    largest(by, limit, counts.map(|(place, group)| (group.count, move || GroupKey::Owner(place))));
                Ranking { owners, ..ranking }
            }
            GroupBy::LocalPort => ports(&self.local_ports, GroupKey::LocalPort),
            GroupBy::RemotePort => ports(&self.remote_ports, GroupKey::RemotePort),
            GroupBy::RemoteAddr => {
                let counts = remote().flat_map(|ends| &ends.addrs);
                largest(by, limit, counts.map(|&(bits, count)| (count, move || GroupKey::RemoteAddr(addr(bits)))))
            }
            GroupBy::Destination => {
                let addrs: &[(u128, StateCounts)] =
                    remote().map(|ends| ends.addrs.as_slice()).next().unwrap_or_default();
                let counts = remote().flat_map(|ends| &ends.ends).flatten();
                let key = |(&(index, port), &count): (&(AddrIndex, Port), &StateCounts)| {
                    (count, move || GroupKey::Destination(addr(addrs[index as usize].0), port))
                };
                largest(by, limit, counts.map(key))
            }
        }
    }
}

/// The largest of these counts. A key is made only for a count that may be among the largest, because making a key takes time.
fn largest<K: FnOnce() -> GroupKey>(
    by: GroupBy,
    limit: usize,
    counts: impl Iterator<Item = (StateCounts, K)>,
) -> Ranking {
    // The top of the heap is the lowest of the leading counts.
    let mut leading: BinaryHeap<RankedCount> = BinaryHeap::new();
    let (mut distinct, mut others) = (0, StateCounts::default());
    for (count, key) in counts.filter(|(count, _)| count.all() > 0) {
        distinct += 1;
        others += count;
        if leading.len() < limit {
            leading.push(RankedCount { key: key(), count });
        } else if let Some(mut last) = leading.peek_mut()
            && last.count.all() <= count.all()
        {
            // Most keys have one bucket, and the lowest of the leading counts often has one too. Then the keys decide.
            let line = RankedCount { key: key(), count };
            if line < *last {
                *last = line;
            }
        }
    }
    let top = leading.into_sorted_vec();
    for line in &top {
        others -= line.count;
    }
    let top = top.into_iter().map(|line| (line.key, line.count)).collect();
    Ranking { by, top, others, distinct, owners: vec![] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::row::Row;
    use crate::model::row::tests::row;
    use proptest::prelude::*;

    /// Every attribute. `Netns` is last, so that a test can remove the counts by network namespace with `pop`.
    const EVERY: [GroupBy; 10] = [
        GroupBy::Owner,
        GroupBy::Unit,
        GroupBy::Container,
        GroupBy::Class,
        GroupBy::Direction,
        GroupBy::LocalPort,
        GroupBy::RemoteAddr,
        GroupBy::RemotePort,
        GroupBy::Destination,
        GroupBy::Netns,
    ];

    fn groups(rows: &[Row]) -> Groups {
        let mut groups = Groups::new(&EVERY, 3);
        for row in rows {
            groups.add(&row.bucket, row.direction);
        }
        groups
    }

    fn counted(rows: &[Row], limit: usize) -> Vec<Ranking> {
        groups(rows).top(limit)
    }

    #[test]
    fn the_largest_count_comes_first_and_the_other_counts_are_summed() {
        let rows = [
            row("127.0.0.1", 40_001, "192.0.2.1", 443),
            row("127.0.0.1", 40_002, "192.0.2.1", 443),
            row("::ffff:127.0.0.1", 40_003, "::ffff:192.0.2.1", 443),
            row("127.0.0.1", 40_001, "192.0.2.2", 80),
            row("::1", 80, "2001:db8::1", 80),
        ];
        let groups = counted(&rows, 1);
        let top = |by| groups.iter().find(|group| group.by == by).map(|group| (group.top[0].0, group.top[0].1.all()));
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        assert_eq!(top(GroupBy::Destination), Some((GroupKey::Destination(address("192.0.2.1"), Port(443)), 3)));
        assert_eq!(top(GroupBy::RemoteAddr), Some((GroupKey::RemoteAddr(address("192.0.2.1")), 3)), "mapped is IPv4");
        assert_eq!(top(GroupBy::LocalPort), Some((GroupKey::LocalPort(Port(40_001)), 2)));
        assert_eq!(top(GroupBy::Class), Some((GroupKey::Class(PortClass::Registered), 4)));
        assert_eq!(top(GroupBy::Direction), Some((GroupKey::Direction(Direction::Unknown), 5)));
        assert!(groups.iter().all(|group| group.top[0].1.all() + group.others.all() == 5));
    }

    #[test]
    fn groups_of_equal_size_are_in_the_order_of_their_keys() {
        let rows = [row("::1", 1, "::1", 9), row("127.0.0.1", 3, "127.0.0.2", 7), row("127.0.0.1", 2, "127.0.0.1", 8)];
        let groups = counted(&rows, 10);
        let keys = |by| -> Vec<GroupKey> {
            let group = groups.iter().find(|group| group.by == by).expect("the group");
            group.top.iter().map(|(key, _)| *key).collect()
        };
        assert_eq!(keys(GroupBy::LocalPort), [1, 2, 3].map(|port| GroupKey::LocalPort(Port(port))));
        let addrs =
            ["127.0.0.1", "127.0.0.2", "::1"].map(|text| GroupKey::RemoteAddr(text.parse().expect("an address")));
        assert_eq!(keys(GroupBy::RemoteAddr), addrs, "IPv4 first");
    }

    proptest! {
        #[test]
        fn every_ranking_counts_every_bucket_and_has_no_more_keys_than_the_limit(
            ends in proptest::collection::vec((1_u16..20, 0_u8..4, 1_u16..6, any::<bool>()), 0..80),
            limit in 0_usize..6, first in 0_usize..80,
        ) {
            let rows: Vec<Row> = ends
                .iter()
                .map(|&(local, host, remote, fin_wait_2)| {
                    let mut row = row("127.0.0.1", local, &format!("127.0.0.{host}"), remote);
                    row.bucket.fin_wait_2 = fin_wait_2;
                    row
                })
                .collect();
            let half = rows.iter().filter(|row| row.bucket.fin_wait_2).count();
            for group in counted(&rows, limit) {
                let mut sum = group.others;
                group.top.iter().for_each(|(_, count)| sum += *count);
                prop_assert_eq!((sum.time_wait as usize, sum.fin_wait_2 as usize), (rows.len() - half, half));
                prop_assert_eq!(group.top.len(), limit.min(group.distinct));
                prop_assert!(group.top.is_sorted_by_key(|(_, count)| Reverse(count.all())));
            }

            // Two namespaces together have the same counts as one namespace with all buckets, except the counts per namespace.
            let (here, there) = rows.split_at(first.min(rows.len()));
            let mut merged = groups(here);
            merged.merge(groups(there));
            let (mut merged, mut whole) = (merged.top(limit), counted(&rows, limit));
            let mut of_each = [(0, here.len()), (1, there.len())].to_vec();
            of_each.retain(|(_, count)| *count > 0);
            of_each.sort_by_key(|(place, count)| (Reverse(*count), *place));
            of_each.truncate(limit);
            let namespaces = merged.pop().map(|group| group.top).unwrap_or_default();
            let namespaces: Vec<_> = namespaces.iter().map(|(key, count)| (*key, count.all())).collect();
            prop_assert_eq!(
                namespaces,
                of_each.iter().map(|&(place, count)| (GroupKey::Netns(place), count as u64)).collect::<Vec<_>>()
            );
            whole.pop();
            prop_assert_eq!(merged, whole);
        }
    }
}
