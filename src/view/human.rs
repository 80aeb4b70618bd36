//! Formats durations, times and sizes for people, and makes the text of other programs safe for a terminal.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::text::Text;
use crate::model::name::is_hidden;

/// Formats a remaining time: `41.3s`, and from 100 s on `2m03s`. Rounds down, so that the text never exceeds the time.
#[must_use]
pub fn duration(time: Duration) -> String {
    let mut text = Text::default();
    append_duration(time, &mut text);
    text.into()
}

/// Appends a remaining time, formatted as by [`duration`].
pub fn append_duration(time: Duration, text: &mut Text) {
    let seconds = time.as_secs();
    if seconds < 100 {
        // The fast path: nearly every bucket has less than 100 s left.
        let digit = |number: u64| b"0123456789"[(number % 10) as usize];
        let tenths = u64::from(time.subsec_millis() / 100);
        let made = [digit(seconds / 10), digit(seconds), b'.', digit(tenths), b's'];
        let begin = usize::from(seconds < 10);
        text.push_str(str::from_utf8(&made[begin..]).unwrap_or_default());
    } else {
        // Writing to memory cannot fail.
        let _ = write!(text, "{}m{:02}s", seconds / 60, seconds % 60);
    }
}

/// The width of a text in terminal columns.
#[must_use]
pub fn display_width(text: &str) -> usize {
    // Nearly every cell is ASCII, and a byte of ASCII takes one column.
    if text.is_ascii() { text.len() } else { text.width() }
}

/// Formats a number with thousands separators: `1,234,567`.
#[must_use]
pub fn with_separators(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Formats a size in binary units: `512 B`, `1.5 KiB`, `24.4 MiB`.
#[must_use]
pub fn bytes(bytes: u64) -> String {
    let (mut tenths, mut units) = (bytes.saturating_mul(10), ["B", "KiB", "MiB", "GiB", "TiB"].iter().peekable());
    while tenths >= 10_240 && units.len() > 1 {
        tenths /= 1024;
        units.next();
    }
    match units.peek() {
        Some(&&"B") | None => format!("{bytes} B"),
        Some(unit) => format!("{}.{} {unit}", tenths / 10, tenths % 10),
    }
}

/// Formats a time by RFC 3339, in UTC with milliseconds.
#[must_use]
pub fn timestamp(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map_or_else(|_| "unknown".into(), |time| format!("{time:.3}"))
}

/// Escapes hidden characters, so that a name that another program chose cannot control the terminal.
#[must_use]
pub fn escape(text: &str) -> Cow<'_, str> {
    // The fast path: nearly every name is plain ASCII.
    let plain = text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
    if !plain && text.chars().any(is_hidden) {
        let escaped = |c: char| if is_hidden(c) { c.escape_default().collect::<String>() } else { c.to_string() };
        text.chars().map(escaped).collect::<String>().into()
    } else {
        text.into()
    }
}

/// Cuts a text that is wider than `room` columns, and adds `...` at the end. If `room` is less than 3, the result is empty.
#[must_use]
pub fn cut(text: &str, room: usize) -> String {
    if text.width() <= room {
        return text.to_owned();
    }
    let (mut line, mut used) = (String::new(), 0);
    for letter in text.chars() {
        used += letter.width().unwrap_or(0);
        if used + 3 > room {
            break;
        }
        line.push(letter);
    }
    if room >= 3 {
        line.push_str("...");
    }
    line
}

/// Writes a text in lines of at most `width` columns, broken at spaces. A longer word gets a longer line. Escapes hidden characters.
/// `first` precedes the first line, and `indent` each further line.
pub fn break_lines(out: &mut dyn Write, text: &str, first: &str, indent: &str, width: Option<usize>) -> io::Result<()> {
    let width = width.unwrap_or(usize::MAX);
    let mut line = first.to_owned();
    let mut begun = false;
    for word in escape(text).split(' ') {
        if begun && line.width() + 1 + word.width() > width {
            writeln!(out, "{line}")?;
            indent.clone_into(&mut line);
            begun = false;
        }
        if begun {
            line.push(' ');
        }
        line.push_str(word);
        begun = true;
    }
    writeln!(out, "{line}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_never_rounded_up() {
        let text = |ms| duration(Duration::from_millis(ms));
        assert_eq!([text(0), text(99), text(41_399), text(99_999)], ["0.0s", "0.0s", "41.3s", "99.9s"]);
        assert_eq!([text(100_000), text(123_999)], ["1m40s", "2m03s"]);
    }

    #[test]
    fn numbers_have_separators_and_sizes_have_binary_units() {
        assert_eq!([0, 999, 1000, 1_234_567].map(with_separators), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([0, 1023, 1024, 25_600_000].map(bytes), ["0 B", "1023 B", "1.0 KiB", "24.4 MiB"]);
        assert!(bytes(u64::MAX).ends_with(" TiB"));
    }

    #[test]
    fn a_timestamp_is_utc_with_milliseconds() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_005);
        assert_eq!(timestamp(time), "2023-11-14T22:13:20.005Z");
        assert_eq!(timestamp(time + Duration::from_micros(999)), "2023-11-14T22:13:20.005Z", "cut, not rounded");
    }

    #[test]
    fn lines_are_broken_at_blanks_and_indented() {
        let broken = |width| {
            let mut out = vec![];
            break_lines(&mut out, "one two three", "- ", "  ", width).expect("written");
            String::from_utf8(out).expect("text")
        };
        assert_eq!(broken(None), "- one two three\n");
        assert_eq!(broken(Some(9)), "- one two\n  three\n");
        assert_eq!(broken(Some(1)), "- one\n  two\n  three\n");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(escape("a\u{1b}[31mb\n"), "a\\u{1b}[31mb\\n");
        assert_eq!(escape("a\u{202e}b"), "a\\u{202e}b");
        assert_eq!(escape("nginx: wörker"), "nginx: wörker");
    }
}
