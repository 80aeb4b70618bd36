//! The widths of the columns. They only grow while the same table is shown at the same width, so that the columns do not move
//! from sample to sample.

use super::tables::ScreenTable;
use crate::view::human::display_width;
use crate::view::table::Heading;

/// The width of the widest cell of each column so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Widths {
    /// The table and the width of the screen to which `widest` belongs.
    of: Option<(ScreenTable, u16)>,
    widest: Vec<usize>,
}

impl Widths {
    /// Adds the cells of the rows on the screen, and returns the widths.
    pub(super) fn of(
        &mut self,
        table: ScreenTable,
        width: u16,
        headings: &[Heading],
        rows: &[Vec<String>],
    ) -> &[usize] {
        if self.of != Some((table, width)) || self.widest.len() != headings.len() {
            self.of = Some((table, width));
            self.widest = headings.iter().map(|heading| display_width(heading.title)).collect();
        }
        for row in rows {
            for (widest, cell) in self.widest.iter_mut().zip(row) {
                *widest = (*widest).max(display_width(cell));
            }
        }
        &self.widest
    }
}
