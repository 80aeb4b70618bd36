//! Prints a list of buckets in each output format: as a stream of rows, or from memory.

use std::hint;
use std::io::{self, Write};
use std::ops::Range;
use std::time::Duration;

use super::column::Column;
use super::fast_path::FastPath;
use super::human;
use super::json::{self, Envelope};
use super::record::SocketRecord;
use super::style::{Meaning, TextStyle};
use super::table::{self, Heading, Rows};
use super::text::{self, Text};
use super::value::Value;
use crate::model::facts::Facts;
use crate::model::row::{Row, RowObserver};
use crate::parallel;

/// The number of bytes to collect before a write. It is the buffer size of standard output, so such a chunk is written without
/// another copy.
const CHUNK: usize = 64 * 1024;

/// The format of a row as one line.
enum RowFormat<'a> {
    Ndjson,
    /// Csv with every column of a record.
    Csv,
    /// Csv with chosen columns.
    ChosenCsv(&'a [&'static Column]),
}

impl<'a> RowFormat<'a> {
    fn csv(columns: &'a [&'static Column]) -> Self {
        let every = columns.iter().map(|column| column.key).eq(Column::of_record().map(|column| column.key));
        if every { Self::Csv } else { Self::ChosenCsv(columns) }
    }

    fn append(&self, row: &Row, facts: &Facts, text: &mut Text) {
        let record = SocketRecord::of_row(row, facts);
        match self {
            Self::Ndjson => {
                record.append_json(text);
                text.push('\n');
            }
            Self::Csv => {
                record.append_csv(text);
                text.push('\n');
            }
            Self::ChosenCsv(columns) => {
                Value::append_csv_line(columns.iter().map(|column| column.value(&record)), text);
            }
        }
    }
}

/// A writer for rows that arrive one by one, as ndjson or csv.
pub struct Stream<'a> {
    out: &'a mut (dyn Write + Send),
    line: RowFormat<'a>,
    /// The lines that are not written yet.
    buffer: Text,
}

impl<'a> Stream<'a> {
    /// Creates a writer for ndjson: one JSON object per line.
    pub fn ndjson(out: &'a mut (dyn Write + Send)) -> Self {
        Self { out, line: RowFormat::Ndjson, buffer: Text::with_capacity(CHUNK + 4096) }
    }

    /// Creates a writer for csv (RFC 4180, with LF line ends). The header line is written with the first rows or by
    /// [`Self::finish`], so that a command that fails before any row writes nothing.
    pub fn csv(out: &'a mut (dyn Write + Send), columns: &'a [&'static Column], header: bool) -> Self {
        let mut buffer = Text::with_capacity(CHUNK + 4096);
        append_header(columns, header, &mut buffer);
        Self { out, line: RowFormat::csv(columns), buffer }
    }

    /// Writes a row.
    pub fn write(&mut self, row: &Row, facts: &Facts) -> io::Result<()> {
        self.line.append(row, facts, &mut self.buffer);
        if self.buffer.len() >= CHUNK {
            self.out.write_all(self.buffer.as_bytes())?;
            self.buffer.truncate(0);
        }
        Ok(())
    }

    /// Writes the rest of the buffer.
    pub fn finish(self) -> io::Result<()> {
        self.out.write_all(self.buffer.as_bytes())
    }
}

fn append_header(columns: &[&'static Column], header: bool, text: &mut Text) {
    if header {
        let keys: Vec<_> = columns.iter().map(|column| column.key).collect();
        text.push_str(&keys.join(","));
        text.push('\n');
    }
}

fn facts_of<'a>(row: &Row, facts: &'a [Facts]) -> &'a Facts {
    &facts[row.netns as usize]
}

/// Prefetches rows so that their cache misses overlap. In sorted order, neighbouring rows are far apart in memory.
///
/// Without prefetching, `list` and `list --json` of 100,000 buckets take 1.11 times the processor time (whole commands, median of
/// 21 pairs, 2 busy cores, Linux 6.18, 2026-11-27). `cargo bench --bench pure -- prefetch` shows the effect on the rows alone.
pub fn prefetch(rows: &[&Row]) {
    let read = |row: &&Row| row.bucket.tuple.local_bits() ^ u128::from(row.bucket.expires_ms ^ row.netns);
    hint::black_box(rows.iter().map(read).fold(0, |a, b| a ^ b));
}

fn lines(out: &mut (dyn Write + Send), line: &RowFormat, rows: &[&Row], facts: &[Facts]) -> io::Result<()> {
    text::write(out, rows.len(), &|range: Range<usize>, text: &mut Text| {
        prefetch(&rows[range.clone()]);
        rows[range].iter().for_each(|row| line.append(row, facts_of(row, facts), text));
    })
}

/// Writes rows as ndjson. `facts` has the facts of each network namespace. Each row contains the index of its namespace.
pub fn ndjson(out: &mut (dyn Write + Send), rows: &[&Row], facts: &[Facts]) -> io::Result<()> {
    lines(out, &RowFormat::Ndjson, rows, facts)
}

/// Writes rows as csv.
pub fn csv(
    out: &mut (dyn Write + Send),
    rows: &[&Row],
    facts: &[Facts],
    columns: &[&'static Column],
    header: bool,
) -> io::Result<()> {
    let mut text = Text::default();
    append_header(columns, header, &mut text);
    out.write_all(text.as_bytes())?;
    lines(out, &RowFormat::csv(columns), rows, facts)
}

/// Writes rows as a JSON document. `source` is the name of the kernel interface from which they were read.
pub fn document(
    out: &mut (dyn Write + Send),
    envelope: Envelope,
    source: &str,
    rows: &[&Row],
    facts: &[Facts],
) -> io::Result<()> {
    json::open_document(out, envelope)?;
    write!(out, ",\"source\":\"{source}\",\"sockets\":[")?;
    text::write(out, rows.len(), &|range: Range<usize>, text: &mut Text| {
        prefetch(&rows[range.clone()]);
        for i in range {
            if i > 0 {
                text.push(',');
            }
            SocketRecord::of_row(rows[i], facts_of(rows[i], facts)).append_json(text);
        }
    })?;
    out.write_all(b"]}\n")
}

/// What a table needs to know about all rows before it writes the first row: the widths of the columns, and the totals for the last
/// line.
#[derive(Clone, Debug, Default)]
pub struct RowMeasurements {
    columns: Vec<&'static Column>,
    widest: Vec<usize>,
    fast_path: Option<FastPath>,
    totals: Totals,
    /// A buffer for the cell that is being measured.
    scratch: Text,
}

impl RowMeasurements {
    /// Creates empty measurements. `facts` has the facts of each network namespace that the rows come from.
    #[must_use]
    pub fn new(columns: Vec<&'static Column>, facts: &[Facts]) -> Self {
        // The services can differ between network namespaces, so the fast path needs a single namespace.
        let fast_path = if let [facts] = facts { FastPath::new(&columns, &facts.services) } else { None };
        Self { widest: vec![0; columns.len()], columns, fast_path, totals: Totals::default(), scratch: Text::default() }
    }

    /// Measures rows, on several cores if there are many rows.
    #[must_use]
    pub fn of_rows(rows: &[&Row], facts: &[Facts], columns: &[&'static Column]) -> Self {
        let part = |range: Range<usize>| {
            let mut measurements = Self::new(columns.to_vec(), facts);
            for row in &rows[range] {
                measurements.add(row, facts_of(row, facts));
            }
            measurements
        };
        parallel::fold(rows.len(), &part, Self::joined)
    }

    #[inline]
    fn add(&mut self, row: &Row, facts: &Facts) {
        self.totals.add(row);
        if let Some(widths) = self.fast_path.as_ref().and_then(|fast_path| fast_path.widths(row)) {
            for (widest, width) in self.widest.iter_mut().zip(widths) {
                *widest = (*widest).max(width);
            }
            return;
        }
        let record = SocketRecord::of_row(row, facts);
        for (column, widest) in self.columns.iter().zip(&mut self.widest) {
            *widest = (*widest).max(column.append_cell(&record, &mut self.scratch));
            self.scratch.truncate(0);
        }
    }

    /// Merges the measurements of two sets of rows.
    #[must_use]
    pub fn joined(mut self, other: Self) -> Self {
        for (widest, other) in self.widest.iter_mut().zip(other.widest) {
            *widest = (*widest).max(other);
        }
        Self { totals: self.totals.joined(other.totals), ..self }
    }
}

impl RowObserver for RowMeasurements {
    #[inline]
    fn observe(&mut self, row: &Row, facts: &Facts) {
        self.add(row, facts);
    }
}

/// A table of buckets.
pub struct ListTable<'a> {
    /// The rows to show, in order.
    pub rows: &'a [&'a Row],
    /// The facts of each network namespace.
    pub facts: &'a [Facts],
    /// The measurements of the rows to show.
    pub measurements: RowMeasurements,
    /// The number of matching rows before a limit was applied.
    pub total: usize,
    /// Whether to write the header, and the last line with the totals.
    pub header: bool,
}

impl<'l> Rows for ListTable<'l> {
    type Row<'a>
        = SocketRecord<'l>
    where
        Self: 'a;

    fn count(&self) -> usize {
        self.rows.len()
    }

    fn row(&self, row: usize) -> SocketRecord<'l> {
        SocketRecord::of_row(self.rows[row], facts_of(self.rows[row], self.facts))
    }

    fn append(&self, row: &SocketRecord, column: usize, text: &mut Text) -> usize {
        self.measurements.columns[column].append_cell(row, text)
    }

    fn append_line(&self, row: usize, cells: &[(usize, usize)], text: &mut Text) -> Option<()> {
        // The fast path knows the services of one network namespace only.
        let fast_path = self.measurements.fast_path.as_ref().filter(|_| self.facts.len() == 1)?;
        fast_path.append(self.rows[row], cells.try_into().ok()?, text)
    }

    fn prefetch(&self, rows: Range<usize>) {
        prefetch(&self.rows[rows]);
    }

    fn widest(&self) -> Vec<usize> {
        self.measurements.widest.clone()
    }
}

/// Writes the table with its last line.
pub fn table(out: &mut (dyn Write + Send), list: &ListTable, style: TextStyle) -> io::Result<()> {
    if list.rows.is_empty() && list.total == 0 {
        return if list.header { write_empty(out, list.facts) } else { Ok(()) };
    }
    let left_out = body(out, list, style)?;
    if !list.header {
        return Ok(());
    }
    writeln!(out, "{}", style.paint(Meaning::Aside, last_line(list, &left_out)))
}

/// Writes the line that stands for a table without rows.
pub(super) fn write_empty(out: &mut dyn Write, facts: &[Facts]) -> io::Result<()> {
    let several = namespaces_phrase(facts).map(|namespaces| format!(" {namespaces}")).unwrap_or_default();
    writeln!(out, "no TIME_WAIT sockets{several}")
}

/// Writes the table without its last line. Returns the titles of the columns that did not fit.
fn body(out: &mut (dyn Write + Send), list: &ListTable, style: TextStyle) -> io::Result<Vec<&'static str>> {
    table::stream(out, &headings(&list.measurements.columns), list.header, list, style)
}

/// The headings of a table with these columns.
#[must_use]
pub fn headings(columns: &[&'static Column]) -> Vec<Heading> {
    let heading =
        |column: &&Column| Heading { title: column.title, right: column.right, drop_order: column.drop_order };
    columns.iter().map(heading).collect()
}

/// The numbers of the last line.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    fin_wait_2: usize,
    /// The shortest remaining time of a TIME_WAIT bucket. FIN_WAIT_2 buckets do not count, because they can still become TIME_WAIT.
    next_expiry: Option<Duration>,
}

impl Totals {
    #[inline]
    fn add(&mut self, row: &Row) {
        if row.bucket.fin_wait_2 {
            self.fin_wait_2 += 1;
        } else {
            self.next_expiry = self.next_expiry.into_iter().chain([row.bucket.expires()]).min();
        }
    }

    fn joined(self, other: Self) -> Self {
        Self {
            fin_wait_2: self.fin_wait_2 + other.fin_wait_2,
            next_expiry: self.next_expiry.into_iter().chain(other.next_expiry).min(),
        }
    }

    /// Formats the numbers of buckets by state: `5 TIME_WAIT, 2 FIN_WAIT_2`.
    fn states(&self, rows: usize) -> String {
        let time_wait = rows - self.fin_wait_2;
        match self.fin_wait_2 {
            0 => format!("{time_wait} TIME_WAIT"),
            fin_wait_2 => format!("{time_wait} TIME_WAIT, {fin_wait_2} FIN_WAIT_2"),
        }
    }
}

/// Formats the number of namespaces: `in 3 namespaces`; `None` for one namespace.
fn namespaces_phrase(facts: &[Facts]) -> Option<String> {
    (facts.len() > 1).then(|| format!("in {} namespaces", facts.len()))
}

/// Formats the last line: `5 TIME_WAIT, the next expires in 12.1s`.
fn last_line(list: &ListTable, left_out: &[&str]) -> String {
    let mut parts = vec![];
    let totals = &list.measurements.totals;
    if list.total > list.rows.len() {
        parts.push(format!("{} of {} buckets", list.rows.len(), list.total));
    } else {
        parts.push(totals.states(list.rows.len()));
    }
    if let (Some(counted), Some(namespaces)) = (parts.last_mut(), namespaces_phrase(list.facts)) {
        counted.push(' ');
        counted.push_str(&namespaces);
    }
    parts.extend(totals.next_expiry.map(|next| match next {
        Duration::ZERO => "the next expires at the next step of the kernel's timer wheel".to_owned(),
        next => format!("the next expires in {}", human::duration(next)),
    }));
    if !left_out.is_empty() {
        parts.push(format!("no room for {}", left_out.join(", ")));
    }
    parts.join(", ")
}

/// Writes which part of a filter the kernel evaluates, and which part twtool evaluates. `None` means that a part has no test.
pub fn explain(
    out: &mut (dyn Write + Send),
    filter: Option<&str>,
    by_kernel: Option<&str>,
    left: Option<&str>,
) -> io::Result<()> {
    writeln!(out, "filter: {}", filter.unwrap_or("none, every bucket matches"))?;
    writeln!(out, "evaluated by the kernel: {}", by_kernel.unwrap_or("nothing, it returns every bucket"))?;
    writeln!(out, "evaluated by twtool: {}", left.unwrap_or("nothing"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::facts::tests::facts;
    use crate::model::port::Port;
    use crate::model::row::Direction;
    use crate::model::row::tests::row;
    use crate::model::services::Services;
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    #[test]
    fn the_width_of_a_table_depends_only_on_the_rows_that_it_shows() {
        let (facts, columns) = ([facts()], ["local", "expires_ms"].map(|key| Column::find(key).expect(key)).to_vec());
        let (short, long) = (row("10.0.0.1", 1, "10.0.0.2", 2), row("10.0.0.100", 80, "10.0.0.2", 2));
        let table = |rows: &[&Row], total| {
            let mut out = vec![];
            let measurements = RowMeasurements::of_rows(rows, &facts, &columns);
            let list = ListTable { rows, facts: &facts, measurements, total, header: false };
            table(&mut out, &list, TextStyle { color: false, width: None, unicode: true }).expect("written");
            String::from_utf8(out).expect("text")
        };
        let both = "10.0.0.1:1            10.0s\n10.0.0.100:80 (http)  10.0s\n";
        assert_eq!(table(&[&short, &long], 2), both);
        assert_eq!(table(&[&short], 2), "10.0.0.1:1  10.0s\n", "a row beyond the limit takes no room");
    }

    proptest! {
        #[test]
        fn the_fast_path_writes_the_same_line_as_the_columns(
            ends in proptest::collection::vec((any::<[u32; 2]>(), any::<[u16; 2]>(), 0_usize..3, 0_u32..110_000), 1..9),
            kinds in proptest::collection::vec(0..9, 9), few in any::<bool>(), width in proptest::option::of(20_usize..140),
            name in "[a-z-]{0,30}|[a-z]{100,220}|[a-zö\x1b]{1,5}", header in any::<bool>(),
        ) {
            let mut rows = vec![];
            for ((addrs, ports, direction, expires_ms), kind) in ends.into_iter().zip(kinds) {
                let form = |addr: u32| match kind {
                    0 => format!("2001:db8:{:x}::{:x}", addr >> 16, addr & 0xffff),
                    1 => format!("::ffff:{}", Ipv4Addr::from(addr)),
                    _ => Ipv4Addr::from(if few { addr & 0x0707_0707 } else { addr }).to_string(),
                };
                let port = |port: u16| if few { port % 200 } else { port };
                let mut row = row(&form(addrs[0]), port(ports[0]), &form(addrs[1]), port(ports[1]));
                row.direction = Direction::ALL[direction];
                row.bucket.expires_ms = expires_ms;
                row.bucket.interface = std::num::NonZeroU32::new(u32::from(kind == 8));
                rows.push(row);
            }
            let mut facts = facts();
            facts.services = Services::new((0..100).map(|port| (Port(port * 2), [name.as_str()])));
            let (facts, rows) = ([facts], rows.iter().collect::<Vec<_>>());
            let with_fast_path = RowMeasurements::of_rows(&rows, &facts, &Column::of_table(false, false));
            prop_assert_eq!(with_fast_path.fast_path.is_some(), name.is_ascii() && !name.contains('\x1b'));
            let mut by_columns =
                RowMeasurements { fast_path: None, widest: vec![0; 6], totals: Totals::default(), ..with_fast_path.clone() };
            for row in &rows {
                by_columns.add(row, &facts[0]);
            }
            prop_assert_eq!(&with_fast_path.widest, &by_columns.widest);
            let text = |measurements| {
                let mut out = vec![];
                let list = ListTable { rows: &rows, facts: &facts, measurements, total: rows.len(), header };
                table(&mut out, &list, TextStyle { color: false, width, unicode: true }).expect("written");
                String::from_utf8(out).expect("text")
            };
            prop_assert_eq!(text(with_fast_path), text(by_columns));
        }
    }
}
