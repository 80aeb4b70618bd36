//! A set of ports with a bit for each of the 65,536 numbers. A look-up needs no hash.

use std::fmt;

use super::port::{Port, PortRange};

/// A set of ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSet(Box<[u64; 1024]>);

impl Default for PortSet {
    fn default() -> Self {
        Self(Box::new([0; 1024]))
    }
}

/// The index of the word that has the bit of a port, and the mask of this bit.
const fn bit(port: Port) -> (usize, u64) {
    ((port.0 >> 6) as usize, 1 << (port.0 & 63))
}

impl PortSet {
    /// Adds a port to the set.
    pub fn insert(&mut self, port: Port) {
        let (word, bit) = bit(port);
        self.0[word] |= bit;
    }

    /// Removes a port from the set.
    pub fn remove(&mut self, port: Port) {
        let (word, bit) = bit(port);
        self.0[word] &= !bit;
    }

    /// Whether the set contains the port.
    #[must_use]
    #[inline]
    pub fn contains(&self, port: Port) -> bool {
        let (word, bit) = bit(port);
        self.0[word] & bit != 0
    }

    /// The number of ports in the set.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// The ports of the set, the lowest first.
    pub fn iter(&self) -> impl Iterator<Item = Port> + '_ {
        (0..=u16::MAX).map(Port).filter(|port| self.contains(*port))
    }

    /// The ports of the set as ranges, the lowest first. Adjacent ports are in one range.
    #[must_use]
    pub fn ranges(&self) -> Vec<PortRange> {
        let mut ranges: Vec<PortRange> = vec![];
        for port in self.iter() {
            let adjoining = ranges.pop_if(|range| range.last().0.checked_add(1) == Some(port.0));
            let first = adjoining.map_or(port, PortRange::first);
            ranges.extend(PortRange::new(first, port));
        }
        ranges
    }
}

/// A set of ports that finds the position of a port in the sorted set in constant time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortIndex {
    set: PortSet,
    /// For each word, the number of ports of the set below the first port of the word.
    below: Box<[u16; 1024]>,
}

impl From<PortSet> for PortIndex {
    fn from(set: PortSet) -> Self {
        let mut below = Box::new([0; 1024]);
        let mut count: u32 = 0;
        for (below, word) in below.iter_mut().zip(set.0.iter()) {
            // Below the last word there are at most 65,472 ports, so the count fits.
            *below = u16::try_from(count).unwrap_or(u16::MAX);
            count += word.count_ones();
        }
        Self { set, below }
    }
}

impl PortIndex {
    /// The position of a port in the sorted set, which is the number of lower ports in the set; `None` if the set does not contain the
    /// port.
    #[must_use]
    #[inline]
    pub fn place(&self, port: Port) -> Option<usize> {
        let (word, bit) = bit(port);
        let bits = self.set.0[word];
        (bits & bit != 0).then(|| usize::from(self.below[word]) + (bits & (bit - 1)).count_ones() as usize)
    }
}

impl FromIterator<Port> for PortSet {
    fn from_iter<I: IntoIterator<Item = Port>>(ports: I) -> Self {
        let mut set = Self::default();
        ports.into_iter().for_each(|port| set.insert(port));
        set
    }
}

/// Prints the set in the notation of `ip_local_reserved_ports`: `8080,9000-9010`.
impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        super::port::write_ranges(f, &self.ranges())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_set_is_printed_in_the_kernels_notation() {
        let set: PortSet = [0, 1, 2, 80, 65534, 65535].map(Port).into_iter().collect();
        assert_eq!((set.to_string().as_str(), set.count()), ("0-2,80,65534-65535", 6));
        assert_eq!(PortSet::default().to_string(), "");
    }

    proptest! {
        #[test]
        fn a_port_set_contains_the_same_ports_as_a_set_of_numbers(add in proptest::collection::vec(any::<u16>(), 0..50), take: Vec<u16>) {
            let mut set: PortSet = add.iter().copied().map(Port).collect();
            let mut numbers: BTreeSet<u16> = add.iter().copied().collect();
            for number in take.iter().chain(add.first()) {
                set.remove(Port(*number));
                numbers.remove(number);
            }
            prop_assert_eq!(set.iter().map(|port| port.0).collect::<Vec<_>>(), numbers.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(set.count() as usize, numbers.len());
            let index = PortIndex::from(set);
            for number in 0..=u16::MAX {
                let place = numbers.contains(&number).then(|| numbers.range(..number).count());
                prop_assert_eq!(index.place(Port(number)), place);
            }
        }
    }
}
