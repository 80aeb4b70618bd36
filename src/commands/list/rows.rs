//! Rows that were gathered before they are printed: their order, and each format.

use std::ops::Range;

use super::ListArgs;
use crate::commands::netns::joint;
use crate::commands::{Answer, CommandError, Context, Format};
use crate::model::facts::Facts;
use crate::model::row::{Order, Row};
use crate::parallel;
use crate::view;
use crate::view::json::Envelope;
use crate::view::list::{ListTable, Widths};

/// Rows, of one network namespace or of several.
#[derive(Clone)]
pub(super) struct Gathered {
    /// As they came.
    pub(super) rows: Vec<Row>,
    /// The facts of each namespace; rows have its place in here. At least one.
    pub(super) facts: Vec<Facts>,
    /// The columns of a table of them; none where it is to be something else.
    pub(super) widths: Widths,
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
        let Self { rows, facts, widths, source, complete, typed, warnings } = self;
        let mut rows = match args.order(format) {
            Some(order) => sorted(&rows, order),
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
                let table = ListTable { rows: &rows, facts: &facts, widths, total, header: !args.no_header };
                view::list::table(context.out, &table, context.look)?;
            }
            Format::Ndjson => view::list::ndjson(context.out, &rows, &facts)?,
            Format::Csv => view::list::csv(context.out, &rows, &facts, &args.csv_columns(), !args.no_header)?,
        }
        Ok(Answer::complete(complete))
    }
}

/// References to the rows in this order.
fn sorted(rows: &[Row], order: Order) -> Vec<&Row> {
    let places = places(rows, order);
    // The first from there on that differs from the one before it: rows whose order is still open stay together.
    let boundary = |at: usize| match at.checked_sub(1) {
        Some(before) => at + places[at..].iter().take_while(|place| places[before].equals(**place)).count(),
        None => 0,
    };
    let part = |range: Range<usize>| {
        let places = &places[boundary(range.start)..boundary(range.end)];
        let mut part = Vec::with_capacity(places.len());
        for equals in places.chunk_by(|a, b| a.equals(*b)) {
            let begin = part.len();
            part.extend(equals.iter().map(|place| &rows[place.index()]));
            part[begin..].sort_unstable_by(|a: &&Row, b| order.compare(a, b));
        }
        part
    };
    parallel::fold(rows.len(), &part, extended)
}

fn extended<T>(mut a: Vec<T>, b: Vec<T>) -> Vec<T> {
    a.extend(b);
    a
}

/// The places of the rows, in order.
fn places(rows: &[Row], order: Order) -> Vec<Place> {
    let part = |range: Range<usize>| {
        let mut places: Vec<Place> = range.map(|index| Place::new(order.key(&rows[index]), index)).collect();
        places.sort_unstable();
        places
    };
    let mut places = parallel::fold(rows.len(), &part, extended);
    // A stable sort finds the parts that are in order, and merges them.
    places.sort();
    places
}

/// The first 32 bits of a row's key, and behind them its index: small, so that most of the sorting is done on these alone,
/// where rows differ in them: by remaining time. By an address that all of them have nothing is decided yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place(u64);

impl Place {
    fn new(key: u128, index: usize) -> Self {
        // The kernel counts buckets in 31 bits.
        Self(((key >> 96) as u64) << 32 | index as u64 & 0xffff_ffff)
    }

    const fn index(self) -> usize {
        (self.0 & 0xffff_ffff) as usize
    }

    /// Whether the order of the two is still open.
    const fn equals(self, other: Self) -> bool {
        self.0 >> 32 == other.0 >> 32
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
                let sorted: Vec<Row> = sorted(&rows, order).into_iter().copied().collect();
                rows.sort_by(|a, b| order.compare(a, b));
                prop_assert_eq!(&sorted, &rows);
            }
        }
    }
}
