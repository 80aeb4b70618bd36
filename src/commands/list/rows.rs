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
        let mut rows = rows.sorted();
        if args.reverse {
            rows.reverse();
        }
        let total = rows.len();
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

/// Rows as they came, and their places in the order that they are wanted in. Most of the sorting is done as they come, while
/// the kernel looks for the next.
#[derive(Clone, Default)]
pub(super) struct OrderedRows {
    rows: Vec<Row>,
    /// `None`: as they came.
    order: Option<Order>,
    /// One for each row, where there is an order.
    places: Vec<Place>,
}

impl OrderedRows {
    pub(super) fn new(order: Option<Order>) -> Self {
        Self { order, ..Self::default() }
    }

    #[inline]
    pub(super) fn push(&mut self, row: Row) {
        let index = self.rows.len();
        self.rows.push(row);
        if let Some(order) = self.order {
            self.places.push(Place::new(order.key(&row), index));
            if self.places.len().is_multiple_of(RUN) {
                self.settle();
            }
        }
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
        let before = self.rows.len();
        self.places.extend(other.places.iter().map(|place| place.behind(before)));
        self.rows.extend(other.rows.iter().map(|&row| Row { netns, ..row }));
    }

    pub(super) const fn len(&self) -> usize {
        self.rows.len()
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.rows.is_empty()
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
                let mut came = OrderedRows::new(Some(order));
                let (first, others) = rows.split_at(rows.len() / 3);
                for row in first {
                    came.push(*row);
                }
                let mut of_another = OrderedRows::new(Some(order));
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
}
