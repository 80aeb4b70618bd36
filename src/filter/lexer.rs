//! Words and signs of a filter expression, each with its place in the text, so that a mistake can be pointed at.

use std::ops::Range;

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind<'a> {
    /// `(`
    Open,
    /// `)`
    Close,
    /// `!`, `not`
    Not,
    /// `&`, `&&`, `and`
    And,
    /// `|`, `||`, `or`
    Or,
    /// `=`, `<`, `ge` and so on.
    Compare(Comparison),
    /// Anything else.
    Word(&'a str),
}

/// A comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the six of arithmetic")]
pub enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// A token and where it stands, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token<'a> {
    /// What it is.
    pub kind: TokenKind<'a>,
    /// Its place in the expression.
    pub span: Range<usize>,
}

const SIGNS: [(&str, TokenKind); 13] = [
    ("&&", TokenKind::And),
    ("||", TokenKind::Or),
    ("==", TokenKind::Compare(Comparison::Equal)),
    ("!=", TokenKind::Compare(Comparison::NotEqual)),
    ("<=", TokenKind::Compare(Comparison::LessOrEqual)),
    (">=", TokenKind::Compare(Comparison::GreaterOrEqual)),
    ("&", TokenKind::And),
    ("|", TokenKind::Or),
    ("=", TokenKind::Compare(Comparison::Equal)),
    ("<", TokenKind::Compare(Comparison::Less)),
    (">", TokenKind::Compare(Comparison::Greater)),
    ("(", TokenKind::Open),
    (")", TokenKind::Close),
];

/// The tokens of an expression. Every text has some.
#[must_use]
pub fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut tokens = vec![];
    let mut at = 0;
    while let Some(first) = text[at..].chars().next() {
        let rest = &text[at..];
        // A backslash before a parenthesis is left over from a shell.
        if first.is_whitespace() || rest.starts_with("\\(") || rest.starts_with("\\)") || rest.starts_with("\\!") {
            at += first.len_utf8();
            continue;
        }
        let sign = SIGNS.iter().find(|(sign, _)| rest.starts_with(sign));
        let (kind, length) = match sign {
            Some(&(sign, kind)) => (kind, sign.len()),
            None if first == '!' => (TokenKind::Not, 1),
            None => {
                let length = rest.find(ends_word).unwrap_or(rest.len());
                (word(&rest[..length]), length)
            }
        };
        tokens.push(Token { kind, span: at..at + length });
        at += length;
    }
    tokens
}

fn ends_word(c: char) -> bool {
    c.is_whitespace() || "()!=<>&|".contains(c)
}

/// ss's words for signs.
fn word(text: &str) -> TokenKind<'_> {
    match text {
        "not" => TokenKind::Not,
        "and" => TokenKind::And,
        "or" => TokenKind::Or,
        "eq" => TokenKind::Compare(Comparison::Equal),
        "ne" | "neq" => TokenKind::Compare(Comparison::NotEqual),
        "lt" => TokenKind::Compare(Comparison::Less),
        "le" | "leq" => TokenKind::Compare(Comparison::LessOrEqual),
        "gt" => TokenKind::Compare(Comparison::Greater),
        "ge" | "geq" => TokenKind::Compare(Comparison::GreaterOrEqual),
        other => TokenKind::Word(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use TokenKind::{And, Close, Compare, Not, Open, Or, Word};

    fn kinds(text: &str) -> Vec<TokenKind<'_>> {
        tokens(text).into_iter().map(|token| token.kind).collect()
    }

    #[test]
    fn signs_need_no_blanks_and_words_stand_for_signs() {
        let equal = Compare(Comparison::Equal);
        assert_eq!(kinds("sport=:443"), [Word("sport"), equal, Word(":443")]);
        assert_eq!(kinds("sport eq :443"), kinds("sport == :443"));
        assert_eq!(kinds("!(a&&b||not c)"), [Not, Open, Word("a"), And, Word("b"), Or, Not, Word("c"), Close]);
        assert_eq!(kinds("a!=b a neq b"), kinds("a ne b a!=b"));
        assert_eq!(kinds(r"\( a \)"), [Open, Word("a"), Close]);
    }

    #[test]
    fn every_token_knows_its_place() {
        let text = "dst  10.0.0.0/8 and ö";
        let places: Vec<_> = tokens(text).into_iter().map(|token| &text[token.span]).collect();
        assert_eq!(places, ["dst", "10.0.0.0/8", "and", "ö"]);
    }
}
