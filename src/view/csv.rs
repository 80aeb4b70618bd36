//! Makes csv safe for a terminal.

use std::io::{self, Write};

use super::human;

/// A writer that escapes characters that are invisible or control a terminal. The line feed at the end of a csv record stays; a line
/// feed inside a quoted field is escaped.
pub struct Escaping<W> {
    out: W,
    /// Whether the bytes so far end inside a quoted field.
    quoted: bool,
    /// The first bytes of an incomplete UTF-8 character.
    partial: Vec<u8>,
}

impl<W: Write> Escaping<W> {
    /// Creates a writer that writes the escaped text to `out`.
    pub const fn new(out: W) -> Self {
        Self { out, quoted: false, partial: vec![] }
    }
}

impl<W: Write> Write for Escaping<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.partial.extend_from_slice(bytes);
        let whole = match str::from_utf8(&self.partial) {
            Ok(text) => text.len(),
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
        };
        let rest = self.partial.split_off(whole);
        let text = String::from_utf8(std::mem::replace(&mut self.partial, rest)).map_err(io::Error::other)?;
        let mut escaped = String::with_capacity(text.len());
        // Each piece ends at a quotation mark, which begins or ends a quoted field, or at a line feed. Two quotation marks in a
        // quoted field stand for one. This loop takes them as the end and a new beginning of the field, so `quoted` stays correct.
        for piece in text.split_inclusive(['"', '\n']) {
            match piece.strip_suffix('\n') {
                Some(line) if !self.quoted => {
                    escaped.push_str(&human::escape(line));
                    escaped.push('\n');
                }
                _ => escaped.push_str(&human::escape(piece)),
            }
            self.quoted ^= piece.ends_with('"');
        }
        self.out.write_all(escaped.as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::name::is_hidden;
    use crate::view::text::Text;
    use crate::view::value::Value;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn each_record_is_one_line_and_hidden_characters_are_escaped(
            // Fields of visible characters, of invisible characters, and of characters with a meaning in csv or for a terminal.
            rows in proptest::collection::vec(proptest::collection::vec("\\PC{0,4}|\\pC{0,4}|[\",\n\r\u{9b}a]{0,6}", 1..4), 0..4),
            piece_length in 1_usize..8,
        ) {
            let mut csv = Text::default();
            for row in &rows {
                Value::append_csv_line(row.iter().map(|field| Value::Text(field)), &mut csv);
            }
            let mut out = Escaping::new(vec![]);
            // Write short pieces, so that characters and fields are split between two writes.
            csv.as_bytes().chunks(piece_length).for_each(|piece| out.write_all(piece).expect("written"));
            let text = String::from_utf8(out.out).expect("UTF-8");
            prop_assert!(!text.chars().any(|c| c != '\n' && is_hidden(c)), "{:?}", text);
            prop_assert_eq!(text.matches('\n').count(), rows.len(), "{:?}", text);
        }
    }
}
