//! Rows that were gathered before they are printed: their order, and each format.

use std::cmp::Ordering;

use super::ListArgs;
use crate::commands::netns::joint;
use crate::commands::{Answer, CommandError, Context, Format};
use crate::model::facts::Facts;
use crate::model::row::{Order, Row};
use crate::parallel;
use crate::view;
use crate::view::json::Envelope;
use crate::view::list::{ListTable, Survey};

/// Rows, of one network namespace or of several.
#[derive(Clone)]
pub(super) struct Gathered {
    pub(super) rows: OrderedRows,
    /// The facts of each namespace; rows have its place in here. At least one.
    pub(super) facts: Vec<Facts>,
    /// What a table of them must know; nothing where it is to be something else.
    pub(super) survey: Survey,
    /// The interface of the kernel that they came from.
    pub(super) source: &'static str,
    pub(super) complete: bool,
    /// What is to be said of the words that were typed; it has been said on stderr.
    pub(super) typed: Vec<String>,
    /// What else is to be said.
    pub(super) warnings: Vec<String>,
}

impl Gathered {
    /// Sorts and prints them.
    pub(super) fn answer(self, args: &ListArgs, format: Format, context: &mut Context) -> Result<Answer, CommandError> {
        let Self { mut rows, facts, survey, source, complete, typed, warnings } = self;
        let total = rows.total();
        let mut rows = rows.sorted();
        if args.reverse {
            rows.reverse();
        }
        rows.truncate(args.limit.unwrap_or(usize::MAX));

        context.warn(&warnings);
        match format {
            Format::Json => {
                let warnings = [typed, warnings].concat();
                let joint = joint(&facts, args.namespaces.several());
                let envelope = Envelope { schema: "twtool.list/1", facts: &joint, complete, warnings: &warnings };
                view::list::document(context.out, envelope, source, &rows, &facts)?;
            }
            Format::Table => {
                let survey = if rows.len() < total { survey.cut(&rows, &facts) } else { survey };
                let table = ListTable { rows: &rows, facts: &facts, survey, total, header: !args.no_header };
                view::list::table(context.out, &table, context.look)?;
            }
            Format::Ndjson => view::list::ndjson(context.out, &rows, &facts)?,
            Format::Csv => view::list::csv(context.out, &rows, &facts, &args.csv_columns(), !args.no_header)?,
        }
        Ok(Answer::complete(complete))
    }
}

/// Rows that are sorted together as they come: so many places are still in memory that is near.
const RUN: usize = 4096;

/// Runs that are merged as they come. More would keep the kernel waiting.
const MERGED: usize = 8;

/// How many rows are shown, from which end of their order.
#[derive(Clone, Copy)]
pub(super) struct Limit {
    pub(super) rows: usize,
    pub(super) from_the_end: bool,
}

impl Limit {
    pub(super) const NONE: Self = Self { rows: usize::MAX, from_the_end: false };
}

/// Rows as they came, and their places in the order that they are wanted in. Most of the sorting is done as they come, while
/// the kernel looks for the next. Rows that the limit does not show are dropped from time to time.
#[derive(Clone)]
pub(super) struct OrderedRows {
    rows: Vec<Row>,
    /// Those that came, dropped ones too.
    total: usize,
    limit: Limit,
    /// `None`: as they came.
    order: Option<Order>,
    /// One for each row, where there is an order.
    places: Vec<Place>,
}

impl Default for OrderedRows {
    fn default() -> Self {
        Self::new(None, Limit::NONE)
    }
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

    /// Drops the rows that the limit does not show, where that halves them at least.
    fn drop_hidden(&mut self) {
        let Limit { rows: most, from_the_end } = self.limit;
        let Some(order) = self.order.filter(|_| self.rows.len() / 2 >= most) else { return };
        let mut kept: Vec<Row> = self.sorted().into_iter().copied().collect();
        let hidden = kept.len() - most;
        kept.drain(if from_the_end { 0..hidden } else { most..kept.len() });
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

    /// Those of another network namespace, too.
    pub(super) fn append(&mut self, other: &Self, netns: u32) {
        self.total += other.total;
        let before = self.rows.len();
        self.places.extend(other.places.iter().map(|place| place.behind(before)));
        self.rows.extend(other.rows.iter().map(|&row| Row { netns, ..row }));
        self.drop_hidden();
    }

    /// How many came.
    pub(super) const fn total(&self) -> usize {
        self.total
    }

    pub(super) const fn len(&self) -> usize {
        self.rows.len()
    }

    /// As they came.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter()
    }

    /// In their order.
    fn sorted(&mut self) -> Vec<&Row> {
        let Some(order) = self.order else { return self.rows.iter().collect() };
        let (rows, mut places) = (&self.rows, std::mem::take(&mut self.places));
        parallel::sort(&mut places);
        for equals in places.chunk_by_mut(|a, b| a.equals(*b)).filter(|equals| equals.len() > 1) {
            equals.sort_unstable_by(|a, b| order.compare(&rows[a.index()], &rows[b.index()]));
        }
        places.into_iter().map(|place| &rows[place.index()]).collect()
    }
}

/// The first 96 bits of a row's key, and behind them its index: small, so that the sorting is done on these alone, where rows
/// differ in them. Two halves, for a `u128` could not give its room to a reference.
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

    const fn behind(self, rows: usize) -> Self {
        Self(self.0, self.1 + rows as u64)
    }

    /// Whether the order of the two is still open.
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
            if from_the_end {
                assert!(kept.ends_with(&all[MANY - MOST..]));
            } else {
                assert!(kept.starts_with(&all[..MOST]));
            }
        }
    }
}
