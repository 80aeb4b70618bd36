//! Buckets counted by what they have in common: port, address, destination, class, direction.
//!
//! Memory grows with the distinct addresses and destinations, and not with the buckets.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::ops::AddAssign;

use crate::model::port::{Port, PortClass};
use crate::model::row::{Direction, Row};

/// Buckets, by their two states.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// In TIME_WAIT.
    pub time_wait: u32,
    /// In FIN_WAIT_2.
    pub fin_wait_2: u32,
}

impl Count {
    /// Both states.
    #[must_use]
    pub const fn all(self) -> u64 {
        self.time_wait as u64 + self.fin_wait_2 as u64
    }

    /// Counts one more.
    pub fn add(&mut self, fin_wait_2: bool) {
        self.time_wait += u32::from(!fin_wait_2);
        self.fin_wait_2 += u32::from(fin_wait_2);
    }
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.time_wait += other.time_wait;
        self.fin_wait_2 += other.fin_wait_2;
    }
}

/// What buckets are grouped by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the keys of a record that make the group")]
pub enum By {
    /// RFC 6335 class of the local port.
    Class,
    Direction,
    LocalPort,
    RemoteAddr,
    RemotePort,
    /// Remote address and port.
    Destination,
}

impl By {
    /// What is shown where nothing was chosen.
    pub const USUAL: [Self; 5] = [Self::Class, Self::Direction, Self::LocalPort, Self::RemoteAddr, Self::Destination];

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
        }
    }
}

/// What the buckets of one line have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the values of `By`")]
pub enum Key {
    Class(PortClass),
    Direction(Direction),
    LocalPort(Port),
    RemoteAddr(IpAddr),
    RemotePort(Port),
    Destination(IpAddr, Port),
}

/// The largest counts of a group, and the rest of it in one sum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// What it is by.
    pub by: By,
    /// The largest first; equals by their key.
    pub top: Vec<(Key, Count)>,
    /// All that are not in `top`.
    pub others: Count,
    /// How many different keys there are, those in `top` too.
    pub distinct: usize,
}

/// A remote end. Words of 64 bits, for 128-bit ones would waste a quarter of the table on alignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct End {
    addr: (u64, u64),
    port: Port,
}

#[expect(clippy::cast_possible_truncation, reason = "the halves of 128 bits")]
const fn halves(bits: u128) -> (u64, u64) {
    ((bits >> 64) as u64, bits as u64)
}

fn addr((high, low): (u64, u64)) -> IpAddr {
    Ipv6Addr::from_bits(u128::from(high) << 64 | u128::from(low)).to_canonical()
}

/// IPv4 before IPv6, as in a sorted list; `IpAddr`'s own order is that.
type Order = (u8, Option<IpAddr>, u16);

impl Key {
    fn order(&self) -> Order {
        match *self {
            Self::Class(class) => (class as u8, None, 0),
            Self::Direction(direction) => (direction as u8, None, 0),
            Self::LocalPort(port) | Self::RemotePort(port) => (0, None, port.0),
            Self::RemoteAddr(addr) => (0, Some(addr), 0),
            Self::Destination(addr, port) => (0, Some(addr), port.0),
        }
    }
}

/// The counts of one walk: of all groups that are wanted.
#[derive(Clone, Debug, Default)]
pub struct Groups {
    by: Vec<By>,
    classes: [Count; PortClass::ALL.len()],
    directions: [Count; Direction::ALL.len()],
    /// By port number; empty where not wanted. Memory that is never written to is never taken.
    local_ports: Vec<Count>,
    remote_ports: Vec<Count>,
    remote_addrs: Option<HashMap<(u64, u64), Count>>,
    destinations: Option<HashMap<End, Count>>,
}

impl Groups {
    /// Nothing counted yet, of these groups.
    #[must_use]
    pub fn new(by: &[By]) -> Self {
        let ports = |wanted| if by.contains(&wanted) { vec![Count::default(); 1 << 16] } else { vec![] };
        Self {
            by: by.to_vec(),
            local_ports: ports(By::LocalPort),
            remote_ports: ports(By::RemotePort),
            remote_addrs: by.contains(&By::RemoteAddr).then(HashMap::new),
            destinations: by.contains(&By::Destination).then(HashMap::new),
            ..Self::default()
        }
    }

    /// Counts a bucket.
    pub fn add(&mut self, row: &Row) {
        let (tuple, fin_wait_2) = (&row.bucket.tuple, row.bucket.fin_wait_2);
        let (local, remote, addr) = (tuple.local_port(), tuple.remote_port(), halves(tuple.remote_bits()));
        self.classes[local.class() as usize].add(fin_wait_2);
        self.directions[row.direction as usize].add(fin_wait_2);
        if let Some(count) = self.local_ports.get_mut(usize::from(local.0)) {
            count.add(fin_wait_2);
        }
        if let Some(count) = self.remote_ports.get_mut(usize::from(remote.0)) {
            count.add(fin_wait_2);
        }
        if let Some(counts) = &mut self.remote_addrs {
            counts.entry(addr).or_default().add(fin_wait_2);
        }
        if let Some(counts) = &mut self.destinations {
            counts.entry(End { addr, port: remote }).or_default().add(fin_wait_2);
        }
    }

    /// The `limit` largest of each group, in the order in which the groups were wanted.
    #[must_use]
    pub fn top(&self, limit: usize) -> Vec<Group> {
        self.by.iter().map(|&by| self.group(by, limit)).collect()
    }

    fn group(&self, by: By, limit: usize) -> Group {
        let ports = |counts: &[Count], key: fn(Port) -> Key| -> Vec<(Key, Count)> {
            (0..=u16::MAX).zip(counts).map(|(port, count)| (key(Port(port)), *count)).collect()
        };
        let all: Vec<(Key, Count)> = match by {
            By::Class => PortClass::ALL.map(|class| (Key::Class(class), self.classes[class as usize])).to_vec(),
            By::Direction => Direction::ALL
                .map(|direction| (Key::Direction(direction), self.directions[direction as usize]))
                .to_vec(),
            By::LocalPort => ports(&self.local_ports, Key::LocalPort),
            By::RemotePort => ports(&self.remote_ports, Key::RemotePort),
            By::RemoteAddr => {
                let counts = self.remote_addrs.iter().flatten();
                counts.map(|(bits, count)| (Key::RemoteAddr(addr(*bits)), *count)).collect()
            }
            By::Destination => {
                let counts = self.destinations.iter().flatten();
                counts.map(|(end, count)| (Key::Destination(addr(end.addr), end.port), *count)).collect()
            }
        };
        largest(by, all, limit)
    }
}

fn largest(by: By, mut all: Vec<(Key, Count)>, limit: usize) -> Group {
    all.retain(|(_, count)| count.all() > 0);
    let distinct = all.len();
    let order = |(key, count): &(Key, Count)| (Reverse(count.all()), key.order());
    let mut others = Count::default();
    if distinct > limit {
        // Of 100,000 destinations only the few on top are put in order.
        all.select_nth_unstable_by_key(limit, order);
        all.drain(limit..).for_each(|(_, count)| others += count);
    }
    all.sort_unstable_by_key(order);
    Group { by, top: all, others, distinct }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::row::tests::row;
    use proptest::prelude::*;

    const EVERY: [By; 6] = [By::Class, By::Direction, By::LocalPort, By::RemoteAddr, By::RemotePort, By::Destination];

    fn counted(rows: &[Row], limit: usize) -> Vec<Group> {
        let mut groups = Groups::new(&EVERY);
        for row in rows {
            groups.add(row);
        }
        groups.top(limit)
    }

    #[test]
    fn the_largest_come_first_and_the_others_are_summed() {
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
        assert_eq!(top(By::Destination), Some((Key::Destination(address("192.0.2.1"), Port(443)), 3)));
        assert_eq!(top(By::RemoteAddr), Some((Key::RemoteAddr(address("192.0.2.1")), 3)), "mapped is IPv4");
        assert_eq!(top(By::LocalPort), Some((Key::LocalPort(Port(40_001)), 2)));
        assert_eq!(top(By::Class), Some((Key::Class(PortClass::Registered), 4)));
        assert_eq!(top(By::Direction), Some((Key::Direction(Direction::Unknown), 5)));
        assert!(groups.iter().all(|group| group.top[0].1.all() + group.others.all() == 5));
    }

    #[test]
    fn equals_are_in_the_order_of_their_keys() {
        let rows = [row("::1", 1, "::1", 9), row("127.0.0.1", 3, "127.0.0.2", 7), row("127.0.0.1", 2, "127.0.0.1", 8)];
        let groups = counted(&rows, 10);
        let keys = |by| -> Vec<Key> {
            let group = groups.iter().find(|group| group.by == by).expect("the group");
            group.top.iter().map(|(key, _)| *key).collect()
        };
        assert_eq!(keys(By::LocalPort), [1, 2, 3].map(|port| Key::LocalPort(Port(port))));
        let addrs = ["127.0.0.1", "127.0.0.2", "::1"].map(|text| Key::RemoteAddr(text.parse().expect("an address")));
        assert_eq!(keys(By::RemoteAddr), addrs, "IPv4 first");
    }

    proptest! {
        #[test]
        fn every_group_has_every_bucket_and_no_more_lines_than_wanted(
            ends in proptest::collection::vec((1_u16..20, 0_u8..4, 1_u16..6, any::<bool>()), 0..80),
            limit in 0_usize..6,
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
        }
    }
}
