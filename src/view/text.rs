//! A text buffer for the output of a million rows. It appends numbers and addresses without temporary strings.

use std::fmt;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::ops::Range;

use unicode_width::UnicodeWidthStr as _;

use crate::parallel;

/// A buffer of UTF-8 text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text(Vec<u8>);

impl From<Vec<u8>> for Text {
    /// Creates an empty text that reuses the memory of a vector.
    fn from(mut room: Vec<u8>) -> Self {
        room.clear();
        Self(room)
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self(text.into_bytes())
    }
}

impl From<Text> for String {
    fn from(text: Text) -> Self {
        Self::from_utf8(text.0).unwrap_or_default()
    }
}

impl fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push_str(text);
        Ok(())
    }
}

impl Text {
    /// Creates an empty text with this capacity in bytes.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    /// The length in bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the text is empty.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The text as bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Converts the text into its bytes.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// The width in terminal columns of the text from byte `start` on.
    pub(super) fn width_from(&self, start: usize) -> usize {
        let bytes = &self.0[start..];
        // Nearly every cell is ASCII, and a byte of ASCII takes one column.
        if bytes.is_ascii() { bytes.len() } else { str::from_utf8(bytes).unwrap_or_default().width() }
    }

    /// Shortens the text to this length in bytes, which must be a length that the text had before.
    pub fn truncate(&mut self, bytes: usize) {
        self.0.truncate(bytes);
    }

    /// Appends a text.
    #[inline]
    pub fn push_str(&mut self, text: &str) {
        self.0.extend_from_slice(text.as_bytes());
    }

    /// Appends a character.
    #[inline]
    pub fn push(&mut self, c: char) {
        self.push_str(c.encode_utf8(&mut [0; 4]));
    }

    /// Appends ASCII text that `make` writes to a buffer. `make` returns the length of the text.
    #[inline]
    fn push_made<const N: usize>(&mut self, make: impl FnOnce(&mut [u8; N]) -> usize) {
        let begin = self.0.len();
        self.0.extend_from_slice(&[b' '; N]);
        if let Some(room) = self.0[begin..].first_chunk_mut() {
            let length = make(room);
            self.0.truncate(begin + length);
        }
    }

    /// Appends a number.
    pub fn push_number(&mut self, number: u64) {
        self.push_str(itoa::Buffer::new().format(number));
    }

    /// Appends an IPv4 address.
    pub fn push_ipv4(&mut self, addr: Ipv4Addr) {
        self.push_made::<16>(|room| write_ipv4(addr, room) - 1);
    }

    /// Appends an IPv4 address and a port: `127.0.0.1:80`.
    pub fn push_ipv4_end(&mut self, addr: Ipv4Addr, port: u16) {
        self.push_made(|room| write_ipv4_end(addr, port, room));
    }

    /// Appends a line of `width` ASCII characters, which `fill` writes into a buffer of [`LINE`] spaces. Appends nothing and returns `None`
    /// if `fill` returns `None`, or if the buffer is too short.
    #[inline]
    pub(super) fn push_line(&mut self, width: usize, fill: impl FnOnce(&mut [u8; LINE]) -> Option<()>) -> Option<()> {
        let begin = self.0.len();
        // A constant size lets the compiler inline the copy.
        self.0.extend_from_slice(&[b' '; LINE]);
        let line = self.0[begin..].first_chunk_mut()?;
        let end = fill(line).and_then(|()| line.get_mut(width));
        let length = end.map(|end| {
            *end = b'\n';
            width + 1
        });
        self.0.truncate(begin + length.unwrap_or_default());
        length.map(drop)
    }

    /// Appends spaces.
    #[inline]
    pub fn push_blanks(&mut self, count: usize) {
        let length = self.0.len() + count;
        // A constant size is faster, and 32 spaces are nearly always enough.
        self.0.extend_from_slice(&[b' '; 32]);
        self.0.resize(length, b' ');
    }

    /// Inserts spaces at byte `at`.
    pub fn insert_blanks(&mut self, at: usize, count: usize) {
        self.push_blanks(count);
        self.0[at..].rotate_right(count);
    }

    /// Removes the trailing spaces and appends a line feed.
    pub fn end_line(&mut self) {
        let end = self.0.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
        self.0.truncate(end);
        self.0.push(b'\n');
    }
}

/// Writes the text of rows `0..rows` in order. `append` produces the text of a range of rows, on any core.
pub(super) fn write(
    out: &mut (dyn Write + Send),
    rows: usize,
    append: &(impl Fn(Range<usize>, &mut Text) + Sync),
) -> io::Result<()> {
    parallel::write(out, rows, &|range, buffer| {
        let mut text = Text::from(buffer);
        append(range, &mut text);
        text.into_bytes()
    })
}

/// The number of digits of a port.
pub(super) fn digits_of_port(port: u16) -> usize {
    port.checked_ilog10().map_or(1, |tens| tens as usize + 1)
}

/// The length of an IPv4 address as text.
pub(super) fn ipv4_width(addr: Ipv4Addr) -> usize {
    let digits = |octet: u8| 1 + usize::from(octet >= 10) + usize::from(octet >= 100);
    addr.octets().map(digits).iter().sum::<usize>() + "...".len()
}

/// For each octet: its digits, left-aligned in three bytes, and the number of its digits.
const OCTETS: [([u8; 3], u8); 256] = {
    let mut octets = [([b'0'; 3], 1); 256];
    let mut n = 0;
    while n < 256 {
        #[expect(clippy::cast_possible_truncation, reason = "n is below 256")]
        let digit = [(n / 100) as u8 + b'0', (n / 10 % 10) as u8 + b'0', (n % 10) as u8 + b'0'];
        octets[n] = match n {
            0..10 => ([digit[2], 0, 0], 1),
            10..100 => ([digit[1], digit[2], 0], 2),
            _ => (digit, 3),
        };
        n += 1;
    }
    octets
};

/// The size in bytes of the buffer for a line that is written in one piece.
pub(super) const LINE: usize = 192;

/// The size of the buffer for an address and a port: 21 bytes for `255.255.255.255:65535`, and 3 for the spaces that are written behind it.
pub(super) const IPV4_END: usize = 24;

/// Writes an address, a port and spaces behind them. Returns the length without the spaces.
#[inline]
pub(super) fn write_ipv4_end(addr: Ipv4Addr, port: u16, room: &mut [u8; IPV4_END]) -> usize {
    let at = write_ipv4(addr, room);
    room[at - 1] = b':';
    // Compute five digits and shift out the leading zeros, so that every copy has a constant size.
    let digit = |tens: u16| b'0' + (port / tens % 10) as u8;
    let digits = [digit(10_000), digit(1000), digit(100), digit(10), digit(1), b' ', b' ', b' '];
    let length = digits_of_port(port);
    let leading = 8 * (5 - length);
    let blanks = u64::from_ne_bytes([b' '; 8]) & !(u64::MAX >> leading);
    let shifted = u64::from_le_bytes(digits) >> leading | blanks;
    room[at..at + 8].copy_from_slice(&shifted.to_le_bytes());
    at + length
}

/// Writes an address and a dot behind it. Returns the length with the dot.
#[inline]
fn write_ipv4(addr: Ipv4Addr, room: &mut [u8]) -> usize {
    let mut at = 0;
    for octet in addr.octets() {
        let (digits, length) = OCTETS[usize::from(octet)];
        // The next octet overwrites the bytes behind the digits.
        room[at..at + 3].copy_from_slice(&digits);
        at += usize::from(length);
        room[at] = b'.';
        at += 1;
    }
    at
}
