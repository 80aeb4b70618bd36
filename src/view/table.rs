//! Tables for people, fitted to the width of the terminal.
//!
//! [`write()`] uses comfy-table for tables of up to `DRAWN` rows. For more rows, comfy-table would need several times the memory
//! and time of the rest of the command, so [`stream`] writes the table line by line. A list without owners (`list.rs`) always uses
//! [`stream`], because comfy-table would take longer than the rest of the command even for ten rows. Both ways have the same
//! layout (except for columns wider than `WIDEST`), and a property test compares their bytes.

use std::io::{self, Write};
use std::ops::Range;

use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, Width, presets};
use unicode_width::UnicodeWidthStr;

use super::human::display_width;
use super::style::{Meaning, TextStyle};
use super::text::{self, Text};

/// The maximum number of rows that comfy-table draws.
const DRAWN: usize = 100;

/// The number of spaces between two columns.
pub const GAP: usize = 2;

/// The minimum width to which a column is narrowed, in terminal columns.
const NARROWEST: usize = 6;

/// The heading and the alignment of a column.
#[derive(Clone, Copy, Debug)]
pub struct Heading {
    /// The text of the heading.
    pub title: &'static str,
    /// Whether cells are aligned to the right.
    pub right: bool,
    /// The order in which a table leaves out columns on a narrow terminal: the highest number first. A column with 0 always stays.
    pub drop_order: u8,
}

impl Heading {
    /// Creates the heading of a column that is aligned to the left and never left out.
    #[must_use]
    pub const fn new(title: &'static str) -> Self {
        Self { title, right: false, drop_order: 0 }
    }

    /// Aligns the column to the right.
    #[must_use]
    pub const fn right(self) -> Self {
        Self { right: true, ..self }
    }
}

/// A source of the rows of a table. It can produce each cell more than once.
pub trait Rows: Sync {
    /// The data of one row.
    type Row<'a>
    where
        Self: 'a;
    /// The number of rows.
    fn count(&self) -> usize;
    /// Returns the data of a row.
    fn row(&self, row: usize) -> Self::Row<'_>;
    /// Appends the text of a cell. Returns its width in terminal columns.
    fn append(&self, row: &Self::Row<'_>, column: usize, text: &mut Text) -> usize;
    /// Appends a whole line. `cells` has the start and the end of each cell, in terminal columns. Returns `None` if it appended nothing.
    /// Then the caller must produce the line cell by cell.
    fn append_line(&self, _row: usize, _cells: &[(usize, usize)], _text: &mut Text) -> Option<()> {
        None
    }
    /// Prefetches rows that are about to be written.
    fn prefetch(&self, _rows: Range<usize>) {}
    /// The width of the widest cell of each column, in terminal columns.
    fn widest(&self) -> Vec<usize>;
}

impl Rows for [Vec<String>] {
    type Row<'a> = &'a [String];

    fn count(&self) -> usize {
        self.len()
    }

    fn row(&self, row: usize) -> &[String] {
        &self[row]
    }

    fn append(&self, row: &&[String], column: usize, text: &mut Text) -> usize {
        append(&row[column], text)
    }

    fn widest(&self) -> Vec<usize> {
        let mut widest = vec![];
        for row in self {
            widest.resize(widest.len().max(row.len()), 0);
            for (widest, cell) in widest.iter_mut().zip(row) {
                *widest = (*widest).max(display_width(cell));
            }
        }
        widest
    }
}

fn append(text: &str, to: &mut Text) -> usize {
    to.push_str(text);
    display_width(text)
}

/// Writes a table of strings. Returns the titles of the columns that did not fit.
pub fn write(
    out: &mut (dyn Write + Send),
    headings: &[Heading],
    header: bool,
    rows: &[Vec<String>],
    style: TextStyle,
) -> io::Result<Vec<&'static str>> {
    if rows.len() > DRAWN {
        return stream(out, headings, header, rows, style);
    }
    let layout = Layout::new(headings, header, rows, style.width);
    draw(out, &layout, headings, header, rows, style)?;
    Ok(layout.left_out(headings))
}

/// Writes a table of any length, line by line. Returns the titles of the columns that did not fit.
pub fn stream(
    out: &mut (dyn Write + Send),
    headings: &[Heading],
    header: bool,
    rows: &(impl Rows + ?Sized),
    style: TextStyle,
) -> io::Result<Vec<&'static str>> {
    let layout = Layout::new(headings, header, rows, style.width);
    if header {
        let mut lines = Text::default();
        layout.append_row(headings, |column, text| append(headings[column].title, text), &mut lines);
        String::from(lines).lines().try_for_each(|line| write_line(out, line, Some(style)))?;
    }
    let cells = layout.cells();
    text::write(out, rows.count(), &|part: Range<usize>, text: &mut Text| {
        rows.prefetch(part.clone());
        for row in part {
            if rows.append_line(row, &cells, text).is_none() {
                let row = rows.row(row);
                layout.append_row(headings, |column, text| rows.append(&row, column, text), text);
            }
        }
    })?;
    Ok(layout.left_out(headings))
}

/// The columns to show: the index and the width of each.
struct Layout {
    columns: Vec<(usize, usize)>,
}

impl Layout {
    fn new(headings: &[Heading], header: bool, rows: &(impl Rows + ?Sized), width: Option<usize>) -> Self {
        let cells = rows.widest().into_iter().chain(std::iter::repeat(0));
        let titles = headings.iter().map(|heading| if header { heading.title.width() } else { 0 });
        let mut columns: Vec<(usize, usize)> = titles.zip(cells).map(|(a, b)| a.max(b)).enumerate().collect();
        if let Some(width) = width {
            fit(&mut columns, headings, width);
        }
        Self { columns }
    }

    /// Where each column starts and ends within a line, in terminal columns.
    fn cells(&self) -> Vec<(usize, usize)> {
        let mut begin = 0;
        let cell = |&(_, width): &(usize, usize)| {
            let cell = (begin, begin + width);
            begin += width + GAP;
            cell
        };
        self.columns.iter().map(cell).collect()
    }

    /// The titles of the columns that did not fit.
    fn left_out(&self, headings: &[Heading]) -> Vec<&'static str> {
        let shown = |i: usize| self.columns.iter().any(|&(column, _)| column == i);
        headings.iter().enumerate().filter(|(i, _)| !shown(*i)).map(|(_, heading)| heading.title).collect()
    }

    /// Appends a row: one line, or several if a cell is wider than its column. Each cell is written directly to `text`.
    fn append_row(&self, headings: &[Heading], append: impl Fn(usize, &mut Text) -> usize, text: &mut Text) {
        let start = text.len();
        for &(column, width) in &self.columns {
            let cell = text.len();
            let Some(blanks) = width.checked_sub(append(column, text)) else {
                text.truncate(start);
                return self.append_wrapped(headings, append, text);
            };
            align(text, cell, blanks, headings[column].right);
        }
        text.end_line();
    }

    fn append_wrapped(&self, headings: &[Heading], append: impl Fn(usize, &mut Text) -> usize, text: &mut Text) {
        let cells: Vec<String> = self
            .columns
            .iter()
            .map(|&(column, _)| {
                let mut cell = Text::default();
                append(column, &mut cell);
                String::from(cell)
            })
            .collect();
        let lines: Vec<Vec<&str>> =
            cells.iter().zip(&self.columns).map(|(cell, &(_, width))| wrap(cell, width)).collect();
        for n in 0..lines.iter().map(Vec::len).max().unwrap_or_default() {
            for (parts, &(column, width)) in lines.iter().zip(&self.columns) {
                let (cell, part) = (text.len(), parts.get(n).copied().unwrap_or_default());
                text.push_str(part);
                align(text, cell, width.saturating_sub(display_width(part)), headings[column].right);
            }
            text.end_line();
        }
    }
}

fn total(columns: &[(usize, usize)]) -> usize {
    columns.iter().map(|(_, width)| width + GAP).sum::<usize>().saturating_sub(GAP)
}

/// The columns that fit: the index and the width of each. `widest` is the width of the widest cell or title of each column.
#[must_use]
pub fn fit_columns(headings: &[Heading], widest: &[usize], width: usize) -> Vec<(usize, usize)> {
    let mut columns: Vec<(usize, usize)> = widest.iter().copied().enumerate().collect();
    fit(&mut columns, headings, width);
    columns
}

/// Drops columns that may be dropped, then narrows the widest columns.
fn fit(columns: &mut Vec<(usize, usize)>, headings: &[Heading], width: usize) {
    while total(columns) > width {
        let drop_order = columns.iter().map(|&(i, _)| headings[i].drop_order).max().unwrap_or(0);
        if drop_order == 0 {
            break;
        }
        columns.retain(|&(i, _)| headings[i].drop_order != drop_order);
    }
    while total(columns) > width {
        match columns.iter_mut().max_by_key(|(_, width)| *width) {
            Some((_, widest)) if *widest > NARROWEST => *widest -= 1,
            _ => break,
        }
    }
}

/// Splits a cell that is wider than its column into lines. A line without a space can end anywhere, because addresses have no spaces.
fn wrap(text: &str, width: usize) -> Vec<&str> {
    let mut lines = vec![];
    let mut rest = text;
    while display_width(rest) > width {
        let fits = |&(at, c): &(usize, char)| display_width(&rest[..at + c.len_utf8()]) <= width;
        let end = rest.char_indices().take_while(fits).last().map_or(rest.len(), |(at, c)| at + c.len_utf8());
        // Split at a space if there is one, so that the service behind an address stays in one piece.
        let end = rest[..end].rfind(' ').filter(|&at| at > 0).map_or(end, |at| at + 1);
        lines.push(rest[..end].trim_end());
        rest = &rest[end..];
    }
    lines.push(rest);
    lines
}

/// The maximum width of a column that comfy-table draws, in terminal columns. A wider cell takes several lines. The limit is necessary
/// because comfy-table stores widths in 16 bits.
const WIDEST: usize = 4096;

fn draw(
    out: &mut (dyn Write + Send),
    layout: &Layout,
    headings: &[Heading],
    header: bool,
    rows: &[Vec<String>],
    style: TextStyle,
) -> io::Result<()> {
    let columns: Vec<(usize, usize)> = layout.columns.iter().map(|&(i, width)| (i, width.min(WIDEST))).collect();
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    let mut heading_lines = 0;
    if header {
        let titles: Vec<_> = columns.iter().map(|&(i, width)| wrap(headings[i].title, width)).collect();
        heading_lines = titles.iter().map(Vec::len).max().unwrap_or_default();
        table.set_header(titles.into_iter().map(|lines| lines.join("\n")));
    }
    for row in rows {
        table.add_row(columns.iter().map(|&(i, width)| wrap(&row[i], width).join("\n")));
    }
    for (column, &(i, width)) in table.column_iter_mut().zip(&columns) {
        let padding = u16::try_from(GAP).unwrap_or(u16::MAX);
        let content = u16::try_from(width).unwrap_or(u16::MAX);
        column.set_padding((0, padding)).set_constraint(ColumnConstraint::Absolute(Width::Fixed(content + padding)));
        if headings[i].right {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for (i, line) in table.lines().enumerate() {
        write_line(out, line.trim_end_matches(' '), (i < heading_lines).then_some(style))?;
    }
    Ok(())
}

fn write_line(out: &mut (dyn Write + Send), line: &str, heading: Option<TextStyle>) -> io::Result<()> {
    match heading {
        Some(style) => writeln!(out, "{}", style.paint(Meaning::Heading, line)),
        None => writeln!(out, "{line}"),
    }
}

/// Pads the cell that was just appended to `line` with blanks, and appends the gap to the next column. The cell begins at
/// byte `cell`. `right`: the blanks come before the text.
fn align(line: &mut Text, cell: usize, blanks: usize, right: bool) {
    if right {
        line.insert_blanks(cell, blanks);
        line.push_blanks(GAP);
    } else {
        line.push_blanks(blanks + GAP);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEADINGS: [Heading; 3] = [
        Heading::new("LOCAL"),
        Heading { title: "CLASS", right: false, drop_order: 1 },
        Heading::new("EXPIRES").right(),
    ];

    const PLAIN: TextStyle = TextStyle { color: false, width: None, unicode: true };

    fn both(rows: &[Vec<String>], style: TextStyle) -> (String, String) {
        let layout = Layout::new(&HEADINGS, true, rows, style.width);
        let (mut drawn, mut streamed) = (vec![], vec![]);
        draw(&mut drawn, &layout, &HEADINGS, true, rows, style).expect("written");
        stream(&mut streamed, &HEADINGS, true, rows, style).expect("written");
        let text = |bytes| String::from_utf8(bytes).expect("text");
        (text(drawn), text(streamed))
    }

    fn row(cells: [&str; 3]) -> Vec<String> {
        cells.map(str::to_owned).to_vec()
    }

    #[test]
    fn columns_are_aligned_and_lines_have_no_trailing_blanks() {
        let rows = [row(["127.0.0.1:80 (http)", "well-known", "9.5s"]), row(["[::1]:8080", "registered", "41.3s"])];
        let expected = "\
LOCAL                CLASS       EXPIRES
127.0.0.1:80 (http)  well-known     9.5s
[::1]:8080           registered    41.3s
";
        assert_eq!(both(&rows, PLAIN), (expected.into(), expected.into()));
    }

    #[test]
    fn on_a_narrow_terminal_columns_are_dropped_first_and_then_cells_are_broken() {
        let rows = [row(["127.0.0.1:80 (http)", "well-known", "9.5s"])];
        let mut out = vec![];
        let style = TextStyle { color: false, width: Some(30), unicode: true };
        let left_out = write(&mut out, &HEADINGS, true, rows.as_slice(), style).expect("written");
        assert_eq!(left_out, ["CLASS"]);
        assert_eq!(
            String::from_utf8(out).expect("text"),
            "LOCAL                EXPIRES\n127.0.0.1:80 (http)     9.5s\n"
        );
        let style = TextStyle { color: false, width: Some(24), unicode: true };
        let expected = "LOCAL            EXPIRES\n127.0.0.1:80        9.5s\n(http)\n";
        assert_eq!(both(&rows, style), (expected.into(), expected.into()));
    }

    proptest! {
        #[test]
        fn drawn_and_streamed_tables_have_the_same_bytes(
            rows in proptest::collection::vec(proptest::collection::vec("[a-z0-9:.()ö]{1,30}( [a-z()]{1,9})?", 3), 0..8),
            width in proptest::option::of(10_usize..90),
            color in any::<bool>(),
        ) {
            let (drawn, streamed) = both(&rows, TextStyle { color, width, unicode: true });
            prop_assert_eq!(drawn, streamed);
        }

        #[test]
        fn no_line_is_wider_than_the_terminal(
            rows in proptest::collection::vec(proptest::collection::vec("[a-z0-9:.]{1,60}", 3), 1..8),
            width in 30_usize..90,
        ) {
            let (_, streamed) = both(&rows, TextStyle { color: false, width: Some(width), unicode: true });
            for line in streamed.lines() {
                prop_assert!(line.width() <= width, "{line}");
            }
        }
    }
}
