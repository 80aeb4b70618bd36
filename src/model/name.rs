//! Converts names that the kernel stores as bytes (processes, interfaces, files) to text.

use std::fmt::Write as _;

/// Converts a name to text. Each byte that is not valid UTF-8 becomes its escape, such as `\xfe`, so that names with different
/// invalid bytes stay different.
#[must_use]
pub fn text_of(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            // Writing to a String cannot fail.
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

/// Replaces hidden characters in a compact JSON document by `\u` escapes. This is correct, because such characters occur only inside
/// strings. serde_json already escapes the control characters below U+0020.
#[must_use]
pub fn json_escaped(json: String) -> String {
    // Most documents have nothing to escape.
    if json.bytes().all(|byte| byte < 0x7f) || !json.chars().any(is_hidden) {
        return json;
    }
    let mut escaped = String::with_capacity(json.len() + 64);
    for c in json.chars() {
        if is_hidden(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(escaped, "\\u{unit:04x}");
            }
        } else {
            escaped.push(c);
        }
    }
    escaped
}

/// Whether a terminal interprets the character, hides it, or lets it change how the text around it is shown: controls (C0,
/// C1), line and paragraph separators, all format characters (general category Cf of Unicode 17, which includes the bidirectional
/// controls), and other invisible characters (fillers, joiners, tags, variation selectors).
#[must_use]
pub const fn is_hidden(c: char) -> bool {
    matches!(
        c,
        '\0'..='\x1f'
            | '\x7f'..='\u{9f}'
            | '\u{ad}'
            | '\u{34f}'
            | '\u{600}'..='\u{605}'
            | '\u{61c}'
            | '\u{6dd}'
            | '\u{70f}'
            | '\u{890}'..='\u{891}'
            | '\u{8e2}'
            | '\u{115f}'..='\u{1160}'
            | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}'
            | '\u{ffa0}'
            | '\u{fff0}'..='\u{fffb}'
            | '\u{110bd}'
            | '\u{110cd}'
            | '\u{13430}'..='\u{1343f}'
            | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_not_utf8_stay_different() {
        assert_eq!(text_of("wörker".as_bytes()), "wörker");
        assert_eq!(text_of(b"a\xffb\xc3"), r"a\xffb\xc3");
        assert_ne!(text_of(b"a\xff"), text_of(b"a\xfe"));
    }

    #[test]
    fn hidden_characters_are_escaped_in_json() {
        assert_eq!(json_escaped("\"a\u{9b}\u{202e}\u{e0041}ö\"".into()), r#""a\u009b\u202e\udb40\udc41ö""#);
    }

    #[test]
    fn only_characters_that_a_terminal_interprets_or_hides_count_as_hidden() {
        for c in ['a', ' ', '~', 'ö', '中', '\u{a0}', '\u{fffd}', '🙂'] {
            assert!(!is_hidden(c), "{c:?}");
        }
        for c in
            ['\n', '\x1b', '\x7f', '\u{9b}', '\u{200b}', '\u{200e}', '\u{2028}', '\u{202e}', '\u{2066}', '\u{e0041}']
        {
            assert!(is_hidden(c), "{c:?}");
        }
    }
}
