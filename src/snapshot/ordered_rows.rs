//! Rows that are collected in an order, in memory that depends on how many of them are wanted.

use std::cmp::Ordering;

use crate::model::row::{Order, Row};
use crate::parallel;

/// Rows of a run, which is sorted while the kernel looks for the next rows: as many places as fit into a near cache.
const RUN: usize = 4096;

/// Runs that are merged during the walk. More would keep the kernel waiting.
const MERGED: usize = 8;

/// How many rows are kept, and from which end of their order.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// The most rows.
    pub rows: usize,
    /// The last ones instead of the first ones.
    pub from_the_end: bool,
}

impl Limit {
    /// All rows.
    pub const NONE: Self = Self { rows: usize::MAX, from_the_end: false };
}

/// Rows as they came, and their places in an order. Most of the sorting is done while the kernel looks for the next rows. Rows
/// beyond the limit are dropped from time to time.
#[derive(Clone, Debug)]
pub struct OrderedRows {
    rows: Vec<Row>,
    /// How many came, including those that were dropped.
    total: usize,
    limit: Limit,
    /// `None`: the order in which they came.
    order: Option<Order>,
    /// One for each row, if there is an order.
    places: Vec<Place>,
}

impl OrderedRows {
    pub(super) const fn new(order: Option<Order>, limit: Limit) -> Self {
        Self { rows: vec![], total: 0, limit, order, places: vec![] }
    }

    #[inline]
    pub(super) fn push(&mut self, row: Row) {
        self.total += 1;
        let index = self.rows.len();
        let Some(order) = self.order else {
            if index < self.limit.rows {
                self.rows.push(row);
            }
            return;
        };
        self.rows.push(row);
        self.places.push(Place::new(order.key(&row), index));
        if self.places.len().is_multiple_of(RUN) {
            self.settle();
            self.drop_hidden();
        }
    }

    /// Drops the rows beyond the limit, if that at least halves them.
    fn drop_hidden(&mut self) {
        let Some(order) = self.order.filter(|_| self.rows.len() / 2 >= self.limit.rows) else { return };
        let kept: Vec<Row> = self.sorted().into_iter().copied().collect();
        self.places = kept.iter().enumerate().map(|(index, row)| Place::new(order.key(row), index)).collect();
        self.rows = kept;
    }

    /// Sorts the last run, and merges it with others.
    #[cold]
    fn settle(&mut self) {
        let end = self.places.len();
        self.places[end - RUN..].sort_unstable();
        let merged = RUN << (end / RUN).trailing_zeros().min(MERGED.ilog2());
        if merged > RUN {
            // A stable sort finds the parts that are in order, and merges them.
            self.places[end - merged..].sort();
        }
    }

    /// Appends the rows of another network namespace, whose number is `netns`.
    pub(super) fn append(&mut self, other: &Self, netns: u32) {
        self.total += other.total;
        let before = self.rows.len();
        self.places.extend(other.places.iter().map(|place| place.shifted(before)));
        self.rows.extend(other.rows.iter().map(|&row| Row { netns, ..row }));
        self.drop_hidden();
    }

    /// How many rows came.
    #[must_use]
    pub const fn total(&self) -> usize {
        self.total
    }

    /// The rows that were kept, as they came.
    pub fn iter(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter()
    }

    /// The rows in their order, at most as many as the limit allows.
    pub fn sorted(&mut self) -> Vec<&Row> {
        let Limit { rows: most, from_the_end } = self.limit;
        let mut sorted = self.all_sorted();
        let hidden = sorted.len().saturating_sub(most);
        if from_the_end {
            sorted.drain(..hidden);
        } else {
            sorted.truncate(most);
        }
        sorted
    }

    fn all_sorted(&mut self) -> Vec<&Row> {
        let Some(order) = self.order else { return self.rows.iter().collect() };
        let (rows, mut places) = (&self.rows, std::mem::take(&mut self.places));
        parallel::sort(&mut places);
        for equals in places.chunk_by_mut(|a, b| a.equals(*b)).filter(|equals| equals.len() > 1) {
            equals.sort_unstable_by(|a, b| order.compare(&rows[a.index()], &rows[b.index()]));
        }
        places.into_iter().map(|place| &rows[place.index()]).collect()
    }
}

/// The first 96 bits of a row's key, followed by its index. Sorting moves these small values only, and compares rows only
/// where the bits are equal. It is two halves because a `u128` would need the alignment of 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place(u64, u64);

impl Place {
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "two halves")]
    const fn new(key: u128, index: usize) -> Self {
        // The kernel counts buckets in 31 bits.
        Self((key >> 64) as u64, (key as u64) >> 32 << 32 | index as u64 & 0xffff_ffff)
    }

    #[inline]
    const fn index(self) -> usize {
        (self.1 & 0xffff_ffff) as usize
    }

    const fn shifted(self, rows: usize) -> Self {
        Self(self.0, self.1 + rows as u64)
    }

    /// Whether the keys leave the order open.
    const fn equals(self, other: Self) -> bool {
        self.0 == other.0 && self.1 >> 32 == other.1 >> 32
    }
}

impl Ord for Place {
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        // As one number there is no branch.
        let number = |place: &Self| u128::from(place.0) << 64 | u128::from(place.1);
        number(self).cmp(&number(other))
    }
}

impl PartialOrd for Place {
    #[inline]
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::row::tests::row;
    use crate::model::socket::Cookie;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn rows_come_in_order_on_however_many_cores(
            keys in proptest::collection::vec((0_u16..5, 0_u32..3, 1_u64..50, any::<bool>()), 0..60), copies in 1_usize..200,
        ) {
            let mut rows = vec![];
            for (port, netns, cookie, ipv6) in keys {
                let addr = if ipv6 { "2001:db8::1" } else { "127.0.0.1" };
                let mut row = row(addr, port, addr, 40_000);
                row.netns = netns;
                row.bucket.cookie = Cookie::new(cookie);
                row.bucket.expires_ms = u32::from(port % 2);
                rows.extend(std::iter::repeat_n(row, copies));
            }
            for order in [Order::Expires, Order::Local, Order::Remote] {
                let mut came = OrderedRows::new(Some(order), Limit::NONE);
                let (first, others) = rows.split_at(rows.len() / 3);
                for row in first {
                    came.push(*row);
                }
                let mut of_another = OrderedRows::new(Some(order), Limit::NONE);
                for row in others {
                    of_another.push(*row);
                }
                came.append(&of_another, 7);
                let mut expected = first.to_vec();
                expected.extend(others.iter().map(|row| Row { netns: 7, ..*row }));
                prop_assert!(came.iter().eq(&expected));
                expected.sort_by(|a, b| order.compare(a, b));
                prop_assert!(came.sorted().into_iter().eq(&expected));
            }
        }
    }

    #[test]
    fn a_limit_keeps_the_rows_that_it_shows_and_little_more() {
        const MANY: usize = 20 * RUN + 17;
        const MOST: usize = 10;
        for (order, from_the_end) in
            [(Some(Order::Expires), false), (Some(Order::Expires), true), (Some(Order::Local), false), (None, false)]
        {
            let mut came = OrderedRows::new(order, Limit { rows: MOST, from_the_end });
            let mut all = vec![];
            for i in 0..MANY {
                let number = u32::try_from(i * 7919 % MANY).expect("few");
                let mut row = row("127.0.0.1", u16::try_from(number % 60_000).expect("a port"), "127.0.0.1", 40_000);
                row.bucket.expires_ms = number;
                row.bucket.cookie = Cookie::new(u64::from(number) + 1);
                came.push(row);
                all.push(row);
                assert!(came.rows.len() <= 2 * RUN, "{} rows are kept", came.rows.len());
            }
            if let Some(order) = order {
                all.sort_by(|a, b| order.compare(a, b));
            }
            assert_eq!(came.total(), MANY);
            let kept: Vec<Row> = came.sorted().into_iter().copied().collect();
            let shown = if from_the_end { &all[MANY - MOST..] } else { &all[..MOST] };
            assert_eq!(kept, shown);
        }
    }
}
