//! The value of a column, and its text: exact in csv and JSON, the same digits in both.
//!
//! A list of a million rows writes sixteen of these a row, so they are appended to a buffer without going through fmt.

use std::fmt::Write as _;
use std::net::IpAddr;

use serde::{Serialize, Serializer};

use super::human;
use super::json;
use super::text::{Text, digits_of_port, ipv4_width};

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
    pub fn append_text(self, text: &mut Text) {
        match self {
            Self::Unknown => {}
            Self::Number(number) | Self::Digits(number) => text.push_number(number),
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
    pub(super) fn append_csv(self, csv: &mut Text) {
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
    pub fn append_csv_line<'a>(fields: impl IntoIterator<Item = Value<'a>>, csv: &mut Text) {
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
    pub fn append_json(self, json: &mut Text) {
        match self {
            Self::Unknown => json.push_str("null"),
            Self::Number(number) => json.push_number(number),
            // Only a text can hold a letter that is escaped; few do. Writing to memory cannot fail.
            Self::Text(text) if text.bytes().any(|b| !(b' '..0x7f).contains(&b) || b == b'"' || b == b'\\') => {
                json.push_str(&json::to_string(text).unwrap_or_default());
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
                let mut text = Text::default();
                other.append_text(&mut text);
                serializer.serialize_str(&String::from(text))
            }
        }
    }
}

/// How many digits a number has.
pub(super) fn digits(number: u64) -> usize {
    number.checked_ilog10().map_or(1, |tens| tens as usize + 1)
}

fn end_width(addr: IpAddr, port: u16) -> usize {
    let brackets = if addr.is_ipv6() { 2 } else { 0 };
    addr_width(addr) + brackets + 1 + digits_of_port(port)
}

fn addr_width(addr: IpAddr) -> usize {
    match addr {
        IpAddr::V4(v4) => ipv4_width(v4),
        IpAddr::V6(v6) => v6.to_string().len(),
    }
}

pub(super) fn append_addr(addr: IpAddr, text: &mut Text) {
    match addr {
        IpAddr::V4(v4) => text.push_ipv4(v4),
        // Writing to memory cannot fail.
        IpAddr::V6(v6) => drop(write!(text, "{v6}")),
    }
}

fn append_end(addr: IpAddr, port: u16, text: &mut Text) {
    match addr {
        IpAddr::V4(v4) => text.push_ipv4_end(v4, port),
        IpAddr::V6(_) => {
            text.push('[');
            append_addr(addr, text);
            text.push_str("]:");
            text.push_number(port.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::name::is_hidden;
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    fn text(value: Value) -> String {
        let mut text = Text::default();
        value.append_text(&mut text);
        text.into()
    }

    #[test]
    fn csv_quotes_what_would_break_it_and_leaves_the_unknown_empty() {
        let mut csv = Text::default();
        Value::append_csv_line([Value::Text("a,\"b\""), Value::Unknown, Value::Text("c"), Value::Word("d")], &mut csv);
        assert_eq!(csv.as_bytes(), b"\"a,\"\"b\"\"\",,c,d\n");
        csv.truncate(0);
        Value::append_csv_line([Value::Unknown], &mut csv);
        assert_eq!(csv.as_bytes(), b"\"\"\n");
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
        fn the_appended_json_is_what_serde_makes_of_it(word in "\\PC{0,12}|\\pC{0,5}|[\"\\\\\\x00-\\x1f]{0,5}", n in any::<u64>(), v4 in any::<u32>()) {
            for value in [Value::Text(&word), Value::Number(n), Value::Digits(n), Value::Unknown, Value::Addr(Ipv4Addr::from(v4).into())] {
                let mut json = Text::default();
                value.append_json(&mut json);
                let json = String::from(json);
                prop_assert_eq!(&json, &super::json::to_string(&value).expect("json"));
                prop_assert!(!json.chars().any(is_hidden));
                if let Value::Text(word) = value {
                    prop_assert_eq!(&serde_json::from_str::<String>(&json).expect("a string"), word);
                }
            }
        }
    }
}
