//! A fast path for the lines of the default table of buckets: it writes cells at fixed positions of a line of spaces.
//!
//! Without the fast path, through [`super::column`], `list` of 100,000 buckets takes 1.21 times the processor time (whole command,
//! median of 21 pairs, 2 busy cores, Linux 6.18, 2026-11-27). `cargo bench --bench pure -- table` shows both ways.
//!
//! The fast path needs the rows of one network namespace, a table with exactly the columns [`KEYS`], and services with plain ASCII names.
//! In such a table, [`super::column`] still produces the rows with IPv6 addresses, with an interface, with 100 s or more left, or with a
//! cell or a line that is too long. A property test in `list.rs` compares the output of both ways.

use std::net::Ipv4Addr;

use super::column::Column;
use super::human;
use super::text::{self, IPV4_END, LINE, Text};
use crate::model::port::{Port, PortClass};
use crate::model::row::{Direction, Row};
use crate::model::services::Services;

/// The columns of the default table.
const KEYS: [&str; 6] = ["local", "local_class", "remote", "remote_class", "direction", "expires_ms"];

const COLUMNS: usize = KEYS.len();

/// The size of a padded word in bytes. A copy always has this size, so that the compiler can inline it.
const WORD: usize = 16;

/// The length of a remaining time from 10 s to 99.9 s, like `41.3s`.
const DURATION: usize = 5;

#[derive(Clone, Copy)]
struct PaddedWord {
    bytes: [u8; WORD],
    length: usize,
}

impl PaddedWord {
    const fn new(word: &str) -> Self {
        let mut bytes = [b' '; WORD];
        let mut i = 0;
        while i < word.len() {
            bytes[i] = word.as_bytes()[i];
            i += 1;
        }
        Self { bytes, length: word.len() }
    }
}

const CLASSES: [PaddedWord; PortClass::ALL.len()] = {
    let [a, b, c] = PortClass::ALL;
    [PaddedWord::new(a.name()), PaddedWord::new(b.name()), PaddedWord::new(c.name())]
};

const DIRECTIONS: [PaddedWord; Direction::ALL.len()] = {
    let [a, b, c] = Direction::ALL;
    [PaddedWord::new(a.name()), PaddedWord::new(b.name()), PaddedWord::new(c.name())]
};

/// Writes the lines of the default table on the fast path.
#[derive(Clone, Debug)]
pub(super) struct FastPath {
    services: Services,
}

impl FastPath {
    /// Returns `None` if these are not the default columns, or if the name of a service is not plain ASCII.
    pub(super) fn new(columns: &[&'static Column], services: &Services) -> Option<Self> {
        let plain = |name: &str| name.is_ascii() && human::escape(name) == name;
        let fits = columns.iter().map(|column| column.key).eq(KEYS)
            && services.entries().all(|(_, mut names)| names.next().is_none_or(plain));
        fits.then(|| Self { services: services.clone() })
    }

    /// The widths of the cells of a row; `None` if [`super::column`] must produce them.
    #[inline]
    pub(super) fn widths(&self, row: &Row) -> Option<[usize; COLUMNS]> {
        let (local, remote) = ipv4_ends(row)?;
        let end = |(addr, port): (Ipv4Addr, Port)| {
            let service = self.services.name(port).map_or(0, |name| name.len() + " ()".len());
            text::ipv4_width(addr) + ":".len() + text::digits_of_port(port.0) + service
        };
        let seconds = seconds(row)?;
        Some([
            end(local),
            CLASSES[local.1.class() as usize].length,
            end(remote),
            CLASSES[remote.1.class() as usize].length,
            DIRECTIONS[row.direction as usize].length,
            DURATION - usize::from(seconds < 10),
        ])
    }

    /// Appends the line of a row with its cells at these positions. `None`: nothing is appended, and [`super::column`] must
    /// produce the line.
    #[inline]
    pub(super) fn append(&self, row: &Row, cells: &[(usize, usize); COLUMNS], text: &mut Text) -> Option<()> {
        let (local, remote) = ipv4_ends(row)?;
        let seconds = seconds(row)?;
        let &[local_cell, local_class, remote_cell, remote_class, direction, (_, end)] = cells;
        text.push_line(end, |line| {
            // A word is copied with its padding. The next cell overwrites the padding beyond the cell.
            self.write_end(local, local_cell, line)?;
            write_word(&CLASSES[local.1.class() as usize], local_class, line)?;
            self.write_end(remote, remote_cell, line)?;
            write_word(&CLASSES[remote.1.class() as usize], remote_class, line)?;
            write_word(&DIRECTIONS[row.direction as usize], direction, line)?;
            let digit = |number: u32| b'0' + (number % 10) as u8;
            let tens = if seconds < 10 { b' ' } else { digit(seconds / 10) };
            let tenths = digit(row.bucket.expires_ms / 100);
            let begin = end.checked_sub(DURATION)?;
            line.get_mut(begin..end)?.copy_from_slice(&[tens, digit(seconds), b'.', tenths, b's']);
            Some(())
        })
    }

    #[inline]
    fn write_end(
        &self,
        (addr, port): (Ipv4Addr, Port),
        (begin, end): (usize, usize),
        line: &mut [u8; LINE],
    ) -> Option<()> {
        let cell = line.get_mut(begin..)?;
        let length = text::write_ipv4_end(addr, port.0, cell.first_chunk_mut::<IPV4_END>()?);
        let Some(name) = self.services.name(port) else { return (length <= end - begin).then_some(()) };
        // " (name)": the space is already there. A very long name does not fit into the line.
        let close = length + 2 + name.len();
        let beside = cell.get_mut(length + 1..=close).filter(|_| close < end - begin)?;
        let [open, named @ .., shut] = beside else { return None };
        (*open, *shut) = (b'(', b')');
        named.copy_from_slice(name.as_bytes());
        Some(())
    }
}

#[inline]
fn write_word(word: &PaddedWord, (begin, end): (usize, usize), line: &mut [u8; LINE]) -> Option<()> {
    *line.get_mut(begin..)?.first_chunk_mut()? = word.bytes;
    (word.length <= end - begin).then_some(())
}

/// Returns both ends if they are IPv4 and the socket is not bound to an interface.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the other bits of a mapped address are always the same")]
fn ipv4_ends(row: &Row) -> Option<((Ipv4Addr, Port), (Ipv4Addr, Port))> {
    let tuple = &row.bucket.tuple;
    let addr = |bits: u128| Ipv4Addr::from_bits(bits as u32);
    let ends = ((addr(tuple.local_bits()), tuple.local_port()), (addr(tuple.remote_bits()), tuple.remote_port()));
    (tuple.family.ipv4_on_the_wire() && row.bucket.interface.is_none()).then_some(ends)
}

/// The remaining time in whole seconds; `None` from 100 s on.
#[inline]
fn seconds(row: &Row) -> Option<u32> {
    let seconds = row.bucket.expires_ms / 1000;
    (seconds < 100).then_some(seconds)
}
