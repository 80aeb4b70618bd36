//! The value of a column, and its text: exact in csv and JSON, the same digits in both.
//!
//! A list of a million rows writes sixteen of these a row, so they are appended to a buffer without going through fmt.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Serialize, Serializer};

use super::human;

/// What a column holds of one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// Not known: `null` in JSON, empty in csv, `-` in a table.
    Unknown,
    /// A number.
    Number(u64),
    /// A number that JSON carries as text, for it has up to 64 bits.
    Digits(u64),
    /// One of our own words, which needs no quoting.
    Word(&'static str),
    /// A text that came from elsewhere.
    Text(&'a str),
    /// An address.
    Addr(IpAddr),
    /// An address and a port, `127.0.0.1:80`, `[::1]:80`.
    End(IpAddr, u16),
}

impl Value<'_> {
    /// Appends the exact text, as csv has it.
    pub fn append_text(self, text: &mut String) {
        match self {
            Self::Unknown => {}
            Self::Number(number) | Self::Digits(number) => append_number(number, text),
            Self::Word(word) => text.push_str(word),
            Self::Text(other) => text.push_str(other),
            Self::Addr(addr) => append_addr(addr, text),
            Self::End(addr, port) => append_end(addr, port, text),
        }
    }

    /// How many columns of a terminal the exact text takes, without making it where that can be.
    pub(super) fn width(self) -> usize {
        match self {
            Self::Unknown => 0,
            Self::Number(number) | Self::Digits(number) => digits(number),
            Self::Word(word) => word.len(),
            Self::Text(text) => human::display_width(text),
            Self::Addr(addr) => addr_width(addr),
            Self::End(addr, port) => end_width(addr, port),
        }
    }

    /// Appends the csv field (RFC 4180): text with a comma, a quote or a line end is quoted.
    pub(super) fn append_csv(self, csv: &mut String) {
        match self {
            Self::Text(text) if text.contains([',', '"', '\n', '\r']) => {
                csv.push('"');
                csv.push_str(&text.replace('"', "\"\""));
                csv.push('"');
            }
            other => other.append_text(csv),
        }
    }

    /// Appends a csv line of these fields.
    pub fn append_csv_line<'a>(fields: impl IntoIterator<Item = Value<'a>>, csv: &mut String) {
        let start = csv.len();
        for (i, field) in fields.into_iter().enumerate() {
            if i > 0 {
                csv.push(',');
            }
            field.append_csv(csv);
        }
        // One empty field alone would be a blank line, which readers pass over.
        if csv.len() == start {
            csv.push_str("\"\"");
        }
        csv.push('\n');
    }

    /// Appends the JSON value.
    pub fn append_json(self, json: &mut String) {
        match self {
            Self::Unknown => json.push_str("null"),
            Self::Number(number) => append_number(number, json),
            // Only a text can hold a letter that JSON must escape; few do. Writing to memory cannot fail.
            Self::Text(text) if text.bytes().any(|b| b < b' ' || b == b'"' || b == b'\\') => {
                json.push_str(&serde_json::to_string(text).unwrap_or_default());
            }
            Self::Text(_) | Self::Digits(_) | Self::Word(_) | Self::Addr(_) | Self::End(..) => {
                json.push('"');
                self.append_text(json);
                json.push('"');
            }
        }
    }
}

impl Serialize for Value<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Unknown => serializer.serialize_none(),
            Self::Number(number) => serializer.serialize_u64(*number),
            other => {
                let mut text = String::new();
                other.append_text(&mut text);
                serializer.serialize_str(&text)
            }
        }
    }
}

pub(super) fn append_number(number: u64, text: &mut String) {
    text.push_str(itoa::Buffer::new().format(number));
}

/// How many digits a number has.
pub(super) fn digits(number: u64) -> usize {
    number.checked_ilog10().map_or(1, |tens| tens as usize + 1)
}

/// The same of a port, without a branch.
fn digits_of_port(port: u16) -> usize {
    port.checked_ilog10().map_or(1, |tens| tens as usize + 1)
}

fn end_width(addr: IpAddr, port: u16) -> usize {
    let brackets = if addr.is_ipv6() { 2 } else { 0 };
    addr_width(addr) + brackets + 1 + digits_of_port(port)
}

fn addr_width(addr: IpAddr) -> usize {
    match addr {
        IpAddr::V4(v4) => v4.octets().map(|octet| usize::from(OCTETS[usize::from(octet)].1)).iter().sum::<usize>() + 3,
        IpAddr::V6(v6) => v6.to_string().len(),
    }
}

pub(super) fn append_addr(addr: IpAddr, text: &mut String) {
    match addr {
        IpAddr::V4(v4) => append_ipv4(v4, text),
        // Writing to a String cannot fail.
        IpAddr::V6(v6) => {
            let _ = std::fmt::Write::write_fmt(text, format_args!("{v6}"));
        }
    }
}

/// Each octet's digits, left in their three bytes, and how many there are.
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

/// Room for an IPv4 address and a port, and for what is copied beyond their digits.
type Ipv4Text = [u8; 24];

/// The address with a point behind it, and how long that is. In one piece: a list of a million rows has two million of these.
#[inline]
fn ipv4_text(addr: Ipv4Addr) -> (Ipv4Text, usize) {
    let mut made = [b'.'; 24];
    let mut at = 0;
    for octet in addr.octets() {
        let (digits, length) = OCTETS[usize::from(octet)];
        made[at..at + 3].copy_from_slice(&digits);
        at += usize::from(length);
        made[at] = b'.';
        at += 1;
    }
    (made, at)
}

fn append_ipv4(addr: Ipv4Addr, text: &mut String) {
    let (made, length) = ipv4_text(addr);
    append_ascii(&made[..length - 1], text);
}

fn append_end(addr: IpAddr, port: u16, text: &mut String) {
    match addr {
        IpAddr::V4(v4) => {
            let (mut made, mut at) = ipv4_text(v4);
            made[at - 1] = b':';
            // All five digits, of which those that lead are shifted out: no branch, and every copy of one size.
            let digit = |tens: u16| (port / tens % 10) as u8 + b'0';
            let digits = u64::from_le_bytes([digit(10_000), digit(1000), digit(100), digit(10), digit(1), 0, 0, 0]);
            let length = digits_of_port(port);
            made[at..at + 8].copy_from_slice(&(digits >> (8 * (5 - length))).to_le_bytes());
            at += length;
            append_ascii(&made[..at], text);
        }
        IpAddr::V6(_) => {
            text.push('[');
            append_addr(addr, text);
            text.push_str("]:");
            append_number(port.into(), text);
        }
    }
}

/// Digits and points are ASCII.
fn append_ascii(made: &[u8], text: &mut String) {
    text.push_str(std::str::from_utf8(made).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(value: Value) -> String {
        let mut text = String::new();
        value.append_text(&mut text);
        text
    }

    #[test]
    fn csv_quotes_what_would_break_it_and_leaves_the_unknown_empty() {
        let mut csv = String::new();
        Value::append_csv_line([Value::Text("a,\"b\""), Value::Unknown, Value::Text("c"), Value::Word("d")], &mut csv);
        assert_eq!(csv, "\"a,\"\"b\"\"\",,c,d\n");
        csv.clear();
        Value::append_csv_line([Value::Unknown], &mut csv);
        assert_eq!(csv, "\"\"\n");
    }

    proptest! {
        #[test]
        fn addresses_and_numbers_have_the_text_that_std_gives_them(v4 in any::<u32>(), v6 in any::<u128>(), port in any::<u16>(), n in any::<u64>()) {
            for addr in [IpAddr::from(Ipv4Addr::from(v4)), IpAddr::from(std::net::Ipv6Addr::from(v6))] {
                prop_assert_eq!(text(Value::Addr(addr)), addr.to_string());
                prop_assert_eq!(text(Value::End(addr, port)), std::net::SocketAddr::new(addr, port).to_string());
            }
            prop_assert_eq!(text(Value::Digits(n)), n.to_string());
        }

        #[test]
        fn the_appended_json_is_what_serde_makes_of_it(word in "\\PC{0,12}|[\"\\\\\\x00-\\x1f]{0,5}", n in any::<u64>(), v4 in any::<u32>()) {
            for value in [Value::Text(&word), Value::Number(n), Value::Digits(n), Value::Unknown, Value::Addr(Ipv4Addr::from(v4).into())] {
                let mut json = String::new();
                value.append_json(&mut json);
                prop_assert_eq!(&json, &serde_json::to_string(&value).expect("json"));
            }
        }
    }
}
