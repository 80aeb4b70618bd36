//! Collects rows and sorts them. With a limit, the memory depends on the limit and not on the number of rows.
//!
//! Without a sort order, rows stay in the order of arrival. With a sort order:
//!
//! 1. Each row is appended to one list, and its sort key (`RowKey`) to a second list.
//! 2. Every 4096 rows form a *run*. Runs are sorted and merged while rows still arrive.
//! 3. After each run, if there are at least twice as many rows as the limit allows, the rows beyond the limit are dropped.
//! 4. At the end all keys are sorted. If keys are equal, their rows are compared.

use std::cmp::Ordering;

use crate::model::row::{Order, Row};
use crate::parallel;

/// The number of rows in a run. The sort keys of a run take 64 KiB, which fits into the L2 cache.
const RUN: usize = 4096;

/// The maximum number of runs that one merge combines during the walk. A larger merge would delay the next recv(2).
const MERGED: usize = 8;

/// How many rows to keep, and from which end of the order.
#[derive(Clone, Copy, Debug)]
pub struct RowLimit {
    /// The maximum number of rows.
    pub rows: usize,
    /// Whether to keep the last rows instead of the first ones.
    pub from_the_end: bool,
}

impl RowLimit {
    /// All rows.
    pub const NONE: Self = Self { rows: usize::MAX, from_the_end: false };
}

/// Rows in the order of arrival, with sort keys for another order.
#[derive(Clone, Debug)]
pub struct OrderedRows {
    rows: Vec<Row>,
    total: usize,
    limit: RowLimit,
    /// `None`: the order of arrival.
    order: Option<Order>,
    /// A key for each row, if there is an order.
    keys: Vec<RowKey>,
}

impl OrderedRows {
    pub(super) const fn new(order: Option<Order>, limit: RowLimit) -> Self {
        Self { rows: vec![], total: 0, limit, order, keys: vec![] }
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
        self.keys.push(RowKey::new(order.key(&row), index));
        if self.keys.len().is_multiple_of(RUN) {
            self.sort_last_run();
            self.drop_hidden();
        }
    }

    /// Drops the rows beyond the limit, if that removes at least half of the rows.
    fn drop_hidden(&mut self) {
        let Some(order) = self.order.filter(|_| self.rows.len() / 2 >= self.limit.rows) else { return };
        let kept: Vec<Row> = self.sorted().into_iter().copied().collect();
        self.keys = kept.iter().enumerate().map(|(index, row)| RowKey::new(order.key(row), index)).collect();
        self.rows = kept;
    }

    #[cold]
    fn sort_last_run(&mut self) {
        let end = self.keys.len();
        self.keys[end - RUN..].sort_unstable();
        let merged = RUN << (end / RUN).trailing_zeros().min(MERGED.ilog2());
        if merged > RUN {
            // The standard library's stable sort detects sorted parts and merges them.
            self.keys[end - merged..].sort();
        }
    }

    /// Appends the rows of another network namespace, whose number is `netns`.
    pub(super) fn append(&mut self, other: &Self, netns: u32) {
        self.total += other.total;
        let before = self.rows.len();
        self.keys.extend(other.keys.iter().map(|key| key.shifted(before)));
        self.rows.extend(other.rows.iter().map(|&row| Row { netns, ..row }));
        self.drop_hidden();
    }

    /// The number of rows that were added, with the dropped rows.
    #[must_use]
    pub const fn total(&self) -> usize {
        self.total
    }

    /// The rows that were kept, in the order of arrival.
    pub fn iter(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter()
    }

    /// The rows in their order, at most as many as the limit allows.
    pub fn sorted(&mut self) -> Vec<&Row> {
        let RowLimit { rows: most, from_the_end } = self.limit;
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
        let (rows, mut keys) = (&self.rows, std::mem::take(&mut self.keys));
        parallel::sort(&mut keys);
        for equals in keys.chunk_by_mut(|a, b| a.equals(*b)).filter(|equals| equals.len() > 1) {
            equals.sort_unstable_by(|a, b| order.compare(&rows[a.index()], &rows[b.index()]));
        }
        keys.into_iter().map(|key| &rows[key.index()]).collect()
    }
}

/// The sort key of a row: the first 96 bits of its full key, then 32 bits with the index of the row. Sorting moves only these small
/// values, and compares rows only if the 96 bits are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RowKey(u64, u64);

impl RowKey {
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "two halves")]
    const fn new(key: u128, index: usize) -> Self {
        // 32 bits are enough for the index: 2^32 buckets would need 1 TiB in the kernel.
        Self((key >> 64) as u64, (key as u64) >> 32 << 32 | index as u64 & 0xffff_ffff)
    }

    #[inline]
    const fn index(self) -> usize {
        (self.1 & 0xffff_ffff) as usize
    }

    const fn shifted(self, rows: usize) -> Self {
        Self(self.0, self.1 + rows as u64)
    }

    /// Whether the 96 bits are equal, so that the rows must be compared.
    const fn equals(self, other: Self) -> bool {
        self.0 == other.0 && self.1 >> 32 == other.1 >> 32
    }
}

impl Ord for RowKey {
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        // A comparison of one number needs no branch.
        let number = |key: &Self| u128::from(key.0) << 64 | u128::from(key.1);
        number(self).cmp(&number(other))
    }
}

impl PartialOrd for RowKey {
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
        fn rows_of_two_namespaces_have_the_same_order_as_after_a_sort_of_whole_rows(
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
                let mut came = OrderedRows::new(Some(order), RowLimit::NONE);
                let (first, others) = rows.split_at(rows.len() / 3);
                for row in first {
                    came.push(*row);
                }
                let mut of_another = OrderedRows::new(Some(order), RowLimit::NONE);
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
    fn with_a_limit_at_most_two_runs_of_rows_are_kept_and_the_right_ones_are_shown() {
        const MANY: usize = 20 * RUN + 17;
        const MAX_ROWS: usize = 10;
        for (order, from_the_end) in
            [(Some(Order::Expires), false), (Some(Order::Expires), true), (Some(Order::Local), false), (None, false)]
        {
            let mut came = OrderedRows::new(order, RowLimit { rows: MAX_ROWS, from_the_end });
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
            let shown = if from_the_end { &all[MANY - MAX_ROWS..] } else { &all[..MAX_ROWS] };
            assert_eq!(kept, shown);
        }
    }
}
