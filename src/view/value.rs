//! The value of a column and its exact text in csv and JSON.
//!
//! A list of a million rows has seventeen values per row, so most values are appended to a buffer without `fmt`. The functions that
//! [`super::column`] calls for each column are inlined there, where the compiler knows the variant.

use std::fmt::Write as _;
use std::net::IpAddr;

use serde::{Serialize, Serializer};

use super::text::Text;

/// The value of a column in one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// An unknown value: `null` in JSON, empty in csv, `-` in a table.
    Unknown,
    /// A number.
    Number(u64),
    /// A 64-bit number, which JSON represents as a string.
    Digits(u64),
    /// A word of twtool. It has no characters that csv or JSON must escape.
    Word(&'static str),
    /// A text from outside twtool.
    Text(&'a str),
    /// An address.
    Addr(IpAddr),
    /// An address and a port: `127.0.0.1:80`, `[::1]:80`.
    End(IpAddr, u16),
}

impl Value<'_> {
    /// Appends the exact text without quotes.
    #[expect(clippy::inline_always, reason = "the variant is known where it is called")]
    #[inline(always)]
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

    /// Appends the csv field (RFC 4180): text with a comma, a quote or a line end is quoted.
    #[expect(clippy::inline_always, reason = "the variant is known where it is called")]
    #[inline(always)]
    pub(super) fn append_csv(self, csv: &mut Text) {
        match self {
            Self::Text(text) => append_csv_text(text, csv),
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
        // A single empty field would be an empty line, which csv readers skip.
        if csv.len() == start {
            csv.push_str("\"\"");
        }
        csv.push('\n');
    }

    /// Appends the JSON value.
    #[expect(clippy::inline_always, reason = "the variant is known where it is called")]
    #[inline(always)]
    pub fn append_json(self, json: &mut Text) {
        match self {
            Self::Unknown => json.push_str("null"),
            Self::Number(number) => json.push_number(number),
            Self::Text(text) => append_json_text(text, json),
            Self::Digits(_) | Self::Word(_) | Self::Addr(_) | Self::End(..) => {
                json.push('"');
                self.append_text(json);
                json.push('"');
            }
        }
    }
}

fn append_csv_text(text: &str, csv: &mut Text) {
    if !text.contains([',', '"', '\n', '\r']) {
        return csv.push_str(text);
    }
    csv.push('"');
    for (i, part) in text.split('"').enumerate() {
        if i > 0 {
            csv.push_str("\"\"");
        }
        csv.push_str(part);
    }
    csv.push('"');
}

fn append_json_text(text: &str, json: &mut Text) {
    if text.bytes().any(|b| !(b' '..0x7f).contains(&b) || b == b'"' || b == b'\\') {
        // Writing to memory cannot fail.
        return json.push_str(&super::json::to_string(text).unwrap_or_default());
    }
    json.push('"');
    json.push_str(text);
    json.push('"');
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

fn append_addr(addr: IpAddr, text: &mut Text) {
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
    fn csv_quotes_special_characters_and_leaves_unknown_values_empty() {
        let mut csv = Text::default();
        Value::append_csv_line([Value::Text("a,\"b\""), Value::Unknown, Value::Text("c"), Value::Word("d")], &mut csv);
        assert_eq!(csv.as_bytes(), b"\"a,\"\"b\"\"\",,c,d\n");
        csv.truncate(0);
        Value::append_csv_line([Value::Unknown], &mut csv);
        assert_eq!(csv.as_bytes(), b"\"\"\n");
    }

    proptest! {
        #[test]
        fn addresses_and_numbers_have_the_same_text_as_in_std(
            v4 in any::<u32>(),
            v6 in any::<u128>(),
            port in any::<u16>(),
            n in any::<u64>(),
        ) {
            for addr in [IpAddr::from(Ipv4Addr::from(v4)), IpAddr::from(std::net::Ipv6Addr::from(v6))] {
                prop_assert_eq!(text(Value::Addr(addr)), addr.to_string());
                prop_assert_eq!(text(Value::End(addr, port)), std::net::SocketAddr::new(addr, port).to_string());
            }
            prop_assert_eq!(text(Value::Digits(n)), n.to_string());
        }

        #[test]
        fn appended_json_is_the_same_as_json_of_serde(
            word in "\\PC{0,12}|\\pC{0,5}|[\"\\\\\\x00-\\x1f]{0,5}",
            n in any::<u64>(),
            v4 in any::<u32>(),
        ) {
            for value in [Value::Text(&word), Value::Number(n), Value::Digits(n), Value::Unknown, Value::Addr(Ipv4Addr::from(v4).into())] {
                let mut json = Text::default();
                value.append_json(&mut json);
                let json = String::from(json);
                prop_assert_eq!(&json, &super::super::json::to_string(&value).expect("json"));
                prop_assert!(!json.chars().any(is_hidden));
                if let Value::Text(word) = value {
                    prop_assert_eq!(&serde_json::from_str::<String>(&json).expect("a string"), word);
                }
            }
        }
    }
}
