//! Rows that were gathered before they are printed: their order, and each format.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;

use super::ListArgs;
use crate::commands::netns::joint;
use crate::commands::{Answer, CommandError, Context, Format};
use crate::model::facts::Facts;
use crate::model::row::Row;
use crate::view;
use crate::view::column::table_columns;
use crate::view::json::Envelope;
use crate::view::list::ListTable;

/// By what rows are sorted.
pub(super) type Order = fn(&Row, &Row) -> Ordering;

/// So many rows are put in order at a time.
const RUN: usize = 4096;

/// Rows that are put in order as they come: while the kernel looks for the next ones there is time for it.
pub(super) struct Runs {
    rows: Vec<Row>,
    order: Option<Order>,
    /// How many are put in order at a time.
    run: usize,
}

impl Runs {
    /// None yet. Without an order they stay as they come.
    pub(super) const fn new(order: Option<Order>) -> Self {
        Self { rows: vec![], order, run: RUN }
    }

    /// Takes the next one.
    pub(super) fn push(&mut self, row: Row) {
        self.rows.push(row);
        if self.rows.len().is_multiple_of(self.run) {
            self.sort(self.rows.len() - self.run);
        }
    }

    fn sort(&mut self, from: usize) {
        if let Some(order) = self.order {
            self.rows[from..].sort_unstable_by(order);
        }
    }

    /// All of them, every run in order.
    pub(super) fn end(mut self) -> Vec<Row> {
        self.sort(self.rows.len() - self.rows.len() % self.run);
        self.rows
    }
}

/// Rows, of one network namespace or of several.
#[derive(Clone)]
pub(super) struct Gathered {
    /// From [`Runs`], or as they came.
    pub(super) rows: Vec<Row>,
    /// The facts of each namespace; rows have its place in here. At least one.
    pub(super) facts: Vec<Facts>,
    /// Whether rows may be in another state than TIME_WAIT.
    pub(super) with_state: bool,
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
        let Self { rows, facts, with_state, source, complete, typed, warnings } = self;
        let mut rows = match args.order(format) {
            Some(order) => merged(&rows, order),
            None => rows.iter().collect(),
        };
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
                let chosen = if args.columns.is_empty() {
                    table_columns(args.namespaces.several(), with_state)
                } else {
                    args.columns.clone()
                };
                let table = ListTable { rows: &rows, facts: &facts, columns: &chosen, total, header: !args.no_header };
                view::list::table(context.out, &table, context.look)?;
            }
            Format::Ndjson => view::list::ndjson(context.out, &rows, &facts)?,
            Format::Csv => view::list::csv(context.out, &rows, &facts, &args.csv_columns(), !args.no_header)?,
        }
        Ok(Answer::complete(complete))
    }
}

/// References to the rows in this order, merged from what of them is in order already: the [`Runs`] of each namespace.
fn merged(rows: &[Row], order: Order) -> Vec<&Row> {
    let ascends = |a: &Row, b: &Row| order(a, b).is_le();
    let mut runs: BinaryHeap<Run> = rows.chunk_by(ascends).map(|rows| Run { rows, order }).collect();
    let mut all = Vec::with_capacity(rows.len());
    while let Some(mut run) = runs.peek_mut() {
        let (first, rest) = (&run.rows[0], &run.rows[1..]);
        all.push(first);
        if rest.is_empty() {
            PeekMut::pop(run);
        } else {
            run.rows = rest;
        }
    }
    all
}

/// Rows in order, at least one. Of several the one with the first row is the greatest, for that comes off a heap first.
struct Run<'a> {
    rows: &'a [Row],
    order: Order,
}

impl Ord for Run<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.order)(&other.rows[0], &self.rows[0])
    }
}

impl PartialOrd for Run<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Run<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Run<'_> {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::row::tests::row;
    use crate::model::socket::Cookie;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn rows_come_in_order_whatever_runs_they_came_in(
            ports in proptest::collection::vec(0_u16..50, 0..200), sorted in 0_usize..200,
        ) {
            let mut rows: Vec<Row> = ports.iter().map(|&port| row("127.0.0.1", port, "127.0.0.1", 40_000)).collect();
            let sorted = sorted.min(rows.len());
            rows[..sorted].sort_by(Row::by_local);
            let order: Vec<u16> =
                merged(&rows, Row::by_local).iter().map(|row| row.bucket.tuple.local_port().0).collect();
            let mut expected = ports;
            expected.sort_unstable();
            prop_assert_eq!(order, expected);
        }

        #[test]
        fn runs_of_any_length_merge_into_what_a_sort_gives(
            keys in proptest::collection::vec((0_u16..5, 0_u32..3, 1_u64..50), 0..60), run in 1_usize..10,
        ) {
            let mut rows = vec![];
            let mut runs = Runs { run, ..Runs::new(Some(Row::by_expires)) };
            for (port, netns, cookie) in keys {
                let mut row = row("127.0.0.1", port, "127.0.0.1", 40_000);
                row.netns = netns;
                row.bucket.cookie = Cookie::new(cookie);
                row.bucket.expires_ms = u32::from(port % 2);
                rows.push(row);
                runs.push(row);
            }
            let runs = runs.end();
            let merged: Vec<Row> = merged(&runs, Row::by_expires).into_iter().copied().collect();
            rows.sort_by(Row::by_expires);
            prop_assert_eq!(merged, rows);
        }
    }
}
