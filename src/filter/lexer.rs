//! Splits a filter expression into tokens. Each token has its position, so that an error message can point at it.

use std::ops::Range;

/// The kind of a token.
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
    /// `=`, `<`, `ge` and other comparisons.
    Compare(ComparisonOperator),
    /// Anything else.
    Word(&'a str),
}

/// A comparison operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the six operators of arithmetic")]
pub enum ComparisonOperator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// A token with its position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token<'a> {
    /// The kind of the token.
    pub kind: TokenKind<'a>,
    /// The range of its bytes in the expression.
    pub span: Range<usize>,
}

/// The operators and parentheses, except words and `!`. The first match wins, so `<=` comes before `<`.
const SIGNS: [(&str, TokenKind); 13] = [
    ("&&", TokenKind::And),
    ("||", TokenKind::Or),
    ("==", TokenKind::Compare(ComparisonOperator::Equal)),
    ("!=", TokenKind::Compare(ComparisonOperator::NotEqual)),
    ("<=", TokenKind::Compare(ComparisonOperator::LessOrEqual)),
    (">=", TokenKind::Compare(ComparisonOperator::GreaterOrEqual)),
    ("&", TokenKind::And),
    ("|", TokenKind::Or),
    ("=", TokenKind::Compare(ComparisonOperator::Equal)),
    ("<", TokenKind::Compare(ComparisonOperator::Less)),
    (">", TokenKind::Compare(ComparisonOperator::Greater)),
    ("(", TokenKind::Open),
    (")", TokenKind::Close),
];

/// Splits an expression into tokens. Every text can be split, so this function has no error.
#[must_use]
pub fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut tokens = vec![];
    let mut at = 0;
    while let Some(first) = text[at..].chars().next() {
        let rest = &text[at..];
        // A backslash before a parenthesis or an exclamation mark is a remnant of shell quoting.
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

/// Recognizes the words that ss accepts for operators.
fn word(text: &str) -> TokenKind<'_> {
    match text {
        "not" => TokenKind::Not,
        "and" => TokenKind::And,
        "or" => TokenKind::Or,
        "eq" => TokenKind::Compare(ComparisonOperator::Equal),
        "ne" | "neq" => TokenKind::Compare(ComparisonOperator::NotEqual),
        "lt" => TokenKind::Compare(ComparisonOperator::Less),
        "le" | "leq" => TokenKind::Compare(ComparisonOperator::LessOrEqual),
        "gt" => TokenKind::Compare(ComparisonOperator::Greater),
        "ge" | "geq" => TokenKind::Compare(ComparisonOperator::GreaterOrEqual),
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
    fn operators_need_no_blanks_and_may_be_words() {
        let equal = Compare(ComparisonOperator::Equal);
        assert_eq!(kinds("sport=:443"), [Word("sport"), equal, Word(":443")]);
        assert_eq!(kinds("sport eq :443"), kinds("sport == :443"));
        assert_eq!(kinds("!(a&&b||not c)"), [Not, Open, Word("a"), And, Word("b"), Or, Not, Word("c"), Close]);
        assert_eq!(kinds("a!=b a neq b"), kinds("a ne b a!=b"));
        assert_eq!(kinds(r"\( a \)"), [Open, Word("a"), Close]);
    }

    #[test]
    fn every_token_has_its_position() {
        let text = "dst  10.0.0.0/8 and ö";
        let places: Vec<_> = tokens(text).into_iter().map(|token| &text[token.span]).collect();
        assert_eq!(places, ["dst", "10.0.0.0/8", "and", "ö"]);
    }
}
