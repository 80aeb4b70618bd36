//! Parses filter expressions: the language of ss, with more tests for buckets. The parser resolves names (services, interfaces) with
//! the facts of the network namespace.
//!
//! ```text
//! list    = test { ["and" | "or"] test }        left to right, with equal precedence; "and" can be omitted
//! test    = "(" list ")" | "not" test | primary
//! compare = "=" | "!=" | "<" | "<=" | ">" | ">="
//! primary = ("sport" | "dport") [compare] PORT  | ("src" | "dst") [= | !=] HOST | "dev" [= | !=] INTERFACE
//!         | "fwmark" [= | !=] MARK[/MASK] | "autobound" | "mapped" | "expires" compare DURATION
//!         | ("class" | "local-class" | "remote-class" | "direction" | "state" | "service") [= | !=] NAME
//! ```

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::time::Duration;

use unicode_width::UnicodeWidthStr;

use super::lexer::{ComparisonOperator, Token, TokenKind, tokens};
use super::{End, Filter};
use crate::model::addr::{Prefix, ScopedPrefix};
use crate::model::facts::Facts;
use crate::model::name::is_hidden;
use crate::model::port::{PORT_ARG_FORMS, Port, PortArg, PortClass, PortRange};
use crate::model::row::Direction;
use crate::model::time::milliseconds;

/// Parses the rest of a test, whose first word is this token.
type ParseTest = fn(&mut Parser, &Token) -> Result<Filter>;

/// The words that begin a test. The error message and the completions list them in this order.
const TESTS: &[(&str, ParseTest)] = &[
    ("sport", |p, _| p.port(End::Local)),
    ("dport", |p, _| p.port(End::Remote)),
    ("src", |p, _| p.equality(|p, value, at| p.host(End::Local, value, at), "an address")),
    ("dst", |p, _| p.equality(|p, value, at| p.host(End::Remote, value, at), "an address")),
    ("dev", |p, _| p.equality(Parser::interface, "an interface")),
    ("fwmark", |p, _| p.equality(Parser::mark, "a mark, like 0x1 or 0x1/0xff")),
    ("autobound", |p, word| p.autobound(word)),
    ("mapped", |_, _| Ok(Filter::Addr(End::Local, Prefix::MAPPED))),
    ("expires", |p, _| p.expires()),
    ("class", |p, _| p.equality(|p, value, at| p.class(End::Local, value, at), CLASSES)),
    ("local-class", |p, _| p.equality(|p, value, at| p.class(End::Local, value, at), CLASSES)),
    ("remote-class", |p, _| p.equality(|p, value, at| p.class(End::Remote, value, at), CLASSES)),
    ("direction", |p, _| p.equality(Parser::direction, DIRECTIONS)),
    ("state", |p, _| p.equality(Parser::state, STATES)),
    ("service", |p, _| p.equality(Parser::service, "a TCP service name of /etc/services")),
];

/// The words that begin a test or combine tests.
pub fn words() -> impl Iterator<Item = &'static str> {
    TESTS.iter().map(|(word, _)| *word).chain(["not", "and", "or"])
}

fn any_test() -> String {
    let words: Vec<_> = TESTS.iter().map(|(word, _)| *word).collect();
    format!("a test: {}, 'not' or '('", words.join(", "))
}

/// The maximum depth of a test. Each parenthesis and each "not" around a test makes it one level deeper.
const DEEPEST: usize = 100;

/// The maximum number of changes in one list between "and" and "or". Each change nests the preceding tests one level deeper.
const MAX_CHANGES: usize = 100;

/// A mistake in a filter expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterError {
    text: String,
    span: Range<usize>,
    message: String,
}

/// Prints the message, the expression, and carets under the wrong word.
impl fmt::Display for FilterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { text, span, message } = self;
        // Hidden characters, such as line feeds, become blanks, so that the expression stays on one line. `repeat` makes the blanks
        // and carets, because a width in a format string has only 16 bits, and an expression may be longer.
        let shown = |text: &str| -> String { text.chars().map(|c| if is_hidden(c) { ' ' } else { c }).collect() };
        let width = |range: Range<usize>| shown(&text[range]).width();
        let (blanks, carets) = (" ".repeat(width(0..span.start)), "^".repeat(width(span.clone()).max(1)));
        write!(f, "invalid filter: {message}\n  {}\n  {blanks}{carets}", shown(text))
    }
}

impl std::error::Error for FilterError {}

/// The result of parsing an expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsedFilter {
    /// The parsed filter.
    pub filter: Filter,
    /// Sentences about parts of the expression that may not mean what its author expects.
    pub warnings: Vec<String>,
}

/// Parses an expression. An empty expression accepts every row.
///
/// # Errors
/// The first mistake, with its position.
pub fn parse(text: &str, facts: &Facts) -> Result<ParsedFilter, FilterError> {
    let tokens = tokens(text);
    let mut parser = Parser { text, facts, tokens: &tokens, next: 0, depth: 0, mixed: false };
    if tokens.is_empty() {
        return Ok(ParsedFilter { filter: Filter::TRUE, warnings: vec![] });
    }
    let filter = parser.list()?;
    if let Some(token) = parser.peek() {
        return Err(parser.error(&token.span.clone(), "there is no '(' for this ')'".into()));
    }
    let mixed = parser.mixed.then(|| {
        format!(
            "'and' and 'or' have equal precedence and apply from left to right, as in ss; this filter means: {filter}"
        )
    });
    Ok(ParsedFilter { filter, warnings: mixed.into_iter().collect() })
}

struct Parser<'a> {
    text: &'a str,
    facts: &'a Facts,
    tokens: &'a [Token<'a>],
    next: usize,
    depth: usize,
    /// Whether some list contains both `and` and `or`.
    mixed: bool,
}

type Result<T, E = FilterError> = std::result::Result<T, E>;

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<&'a Token<'a>> {
        self.tokens.get(self.next)
    }

    fn advance(&mut self) -> Option<&'a Token<'a>> {
        let token = self.peek();
        self.next += usize::from(token.is_some());
        token
    }

    fn error(&self, span: &Range<usize>, message: String) -> FilterError {
        FilterError { text: self.text.to_owned(), span: span.clone(), message }
    }

    fn expected(&self, token: Option<&Token>, what: &str) -> FilterError {
        match token {
            Some(token) => {
                let found = &self.text[token.span.clone()];
                self.error(&token.span, format!("expected {what}, found '{found}'"))
            }
            None => self.error(&(self.text.len()..self.text.len()), format!("expected {what}, found the end")),
        }
    }

    fn list(&mut self) -> Result<Filter> {
        let mut left = self.test()?;
        let mut before = None;
        let mut changes = 0;
        while let Some(token) = self.peek() {
            let (or, written) = match token.kind {
                TokenKind::Close => break,
                TokenKind::Or => (true, true),
                TokenKind::And => (false, true),
                _ => (false, false),
            };
            self.next += usize::from(written);
            changes += usize::from(before.is_some_and(|before| before != or));
            before = Some(or);
            if changes > MAX_CHANGES {
                let message = format!(
                    "'and' and 'or' alternate more than {MAX_CHANGES} times; use parentheses to group the tests"
                );
                return Err(self.error(&token.span, message));
            }
            left = join(left, self.test()?, or);
        }
        self.mixed |= changes > 0;
        Ok(left)
    }

    fn test(&mut self) -> Result<Filter> {
        let Some(token) = self.advance() else { return Err(self.expected(None, &any_test())) };
        let nests = matches!(token.kind, TokenKind::Not | TokenKind::Open);
        if nests && self.depth >= DEEPEST {
            return Err(
                self.error(&token.span, format!("parentheses and 'not' are nested deeper than {DEEPEST} levels"))
            );
        }
        self.depth += usize::from(nests);
        let filter = match token.kind {
            TokenKind::Not => self.test()?.negated(),
            TokenKind::Open => {
                let inner = self.list()?;
                match self.advance() {
                    Some(Token { kind: TokenKind::Close, .. }) => inner,
                    other => {
                        let mut error = self.expected(other, "')'");
                        // Point at the opening parenthesis, because that is where the mistake is easiest to see.
                        error.span = token.span.clone();
                        return Err(error);
                    }
                }
            }
            TokenKind::Word(word) => match TESTS.iter().find(|(name, _)| *name == word) {
                Some((_, parse)) => parse(self, token)?,
                None => return Err(self.not_a_test(token)),
            },
            _ => return Err(self.not_a_test(token)),
        };
        self.depth -= usize::from(nests);
        Ok(filter)
    }

    fn not_a_test(&self, token: &Token) -> FilterError {
        let mut error = self.expected(Some(token), &any_test());
        let found = &self.text[token.span.clone()];
        if found == "port" || found.trim_start_matches(':').parse::<u16>().is_ok() {
            error.message.push_str(
                "; for a port, write 'sport = :8080' (local), 'dport = :443' (remote) or --port 8080 (either)",
            );
        }
        error
    }

    /// Consumes the next token if it is a comparison operator.
    fn comparison(&mut self) -> Option<ComparisonOperator> {
        match self.peek()?.kind {
            TokenKind::Compare(comparison) => {
                self.next += 1;
                Some(comparison)
            }
            _ => None,
        }
    }

    fn value(&mut self, what: &str) -> Result<(&'a str, &'a Token<'a>)> {
        match self.advance() {
            Some(token @ Token { kind: TokenKind::Word(word), .. }) => Ok((word, token)),
            other => Err(self.expected(other, what)),
        }
    }

    /// Parses `[= | !=] VALUE`.
    fn equality(
        &mut self,
        read: impl FnOnce(&mut Self, &'a str, &Range<usize>) -> Result<Filter>,
        what: &str,
    ) -> Result<Filter> {
        let at = self.next;
        let negated = match self.comparison() {
            None | Some(ComparisonOperator::Equal) => false,
            Some(ComparisonOperator::NotEqual) => true,
            Some(_) => return Err(self.expected(self.tokens.get(at), "= or !=")),
        };
        let (value, token) = self.value(what)?;
        let filter = read(self, value, &token.span)?;
        Ok(if negated { filter.negated() } else { filter })
    }

    fn port(&mut self, end: End) -> Result<Filter> {
        let comparison = self.comparison().unwrap_or(ComparisonOperator::Equal);
        let what = format!("a port: {PORT_ARG_FORMS}");
        let (word, token) = self.value(&what)?;
        let word = word.strip_prefix(':').unwrap_or(word);
        let equal = matches!(comparison, ComparisonOperator::Equal | ComparisonOperator::NotEqual);
        if word == "*" && equal {
            return Ok(if comparison == ComparisonOperator::Equal { Filter::TRUE } else { Filter::FALSE });
        }
        let range = self.port_range(word, &token.span)?;
        if !equal && range.first() != range.last() {
            return Err(
                self.error(&token.span, format!("'{range}' is a range; a range can be compared only with = or !="))
            );
        }
        let port = range.first();
        // An empty range accepts no port.
        let within = |first: Option<Port>, last: Option<Port>| {
            first.zip(last).and_then(|(a, b)| PortRange::new(a, b)).map_or(Filter::FALSE, |r| Filter::Port(end, r))
        };
        let (lowest, highest) = (Some(Port(0)), Some(Port(u16::MAX)));
        Ok(match comparison {
            ComparisonOperator::Equal => Filter::Port(end, range),
            ComparisonOperator::NotEqual => Filter::Port(end, range).negated(),
            ComparisonOperator::Less => within(lowest, port.0.checked_sub(1).map(Port)),
            ComparisonOperator::LessOrEqual => within(lowest, Some(port)),
            ComparisonOperator::Greater => within(port.0.checked_add(1).map(Port), highest),
            ComparisonOperator::GreaterOrEqual => within(Some(port), highest),
        })
    }

    fn port_range(&self, word: &str, span: &Range<usize>) -> Result<PortRange> {
        let arg: PortArg = word.parse().map_err(|why| self.error(span, format!("'{word}' is not a port: {why}")))?;
        self.facts.ports(&arg).map_err(|why| self.error(span, why))
    }

    /// Parses an address or a prefix, a port, or both, with an optional address family before them: `10.0.0.0/8`, `[::1]:80`, `:80`,
    /// `*`, `inet6:*:80`.
    fn host(&mut self, end: End, word: &'a str, span: &Range<usize>) -> Result<Filter> {
        let mut tests = vec![];
        // `inet6:` and `inet:` test the address family of the socket, not of its packets. So `inet:` excludes IPv4-mapped sockets.
        let word = if let Some(rest) = word.strip_prefix("inet6:") {
            tests.push(Filter::Addr(end, Prefix::ANY_IPV6));
            rest
        } else if let Some(rest) = word.strip_prefix("inet:") {
            tests.extend([Filter::Addr(end, Prefix::ANY_IPV4), Filter::Addr(end, Prefix::MAPPED).negated()]);
            rest
        } else {
            word
        };
        let (addr, port) = split_host(word);
        if !["", "*", "any", "all", "default"].contains(&addr) {
            let whole = in_full(addr);
            let typed: ScopedPrefix = whole.parse().map_err(|why| self.error(span, format!("{why}")))?;
            tests.push(Filter::Addr(end, typed.prefix));
            if let Some(scope) = &typed.scope {
                let index = self.facts.interface_index(scope).map_err(|why| self.error(span, why))?;
                tests.push(Filter::Interface(Some(index)));
            }
        }
        if let Some(port) = port.filter(|port| !port.is_empty() && *port != "*") {
            tests.push(Filter::Port(end, self.port_range(port, span)?));
        }
        Ok(Filter::all(tests))
    }

    fn interface(&mut self, word: &str, span: &Range<usize>) -> Result<Filter> {
        if word == "0" {
            return Ok(Filter::Interface(None));
        }
        // A number may belong to an interface that is gone but still has buckets.
        let known = self.facts.interface_index(word);
        let index = known.or_else(|why| word.parse().map_err(|_| why)).map_err(|why| self.error(span, why))?;
        Ok(Filter::Interface(Some(index)))
    }

    fn mark(&mut self, word: &str, span: &Range<usize>) -> Result<Filter> {
        let number = |text: &str| match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
            Some(digits) => u32::from_str_radix(digits, 16).ok(),
            None => text.parse().ok(),
        };
        let (value, mask) = word.split_once('/').map_or((word, None), |(value, mask)| (value, Some(mask)));
        let parsed = number(value).zip(mask.map_or(Some(u32::MAX), number));
        let (value, mask) = parsed.ok_or_else(|| {
            self.error(span, format!("'{word}' is not a mark; a mark is a 32-bit number, like 1, 0x1 or 0x1/0xff"))
        })?;
        Ok(Filter::Mark { value, mask })
    }

    /// Tests whether the local port is in the ephemeral range. That is an approximation, because a bucket does not record
    /// whether the kernel chose its port.
    fn autobound(&self, token: &Token) -> Result<Filter> {
        let range = self.facts.local_port_range.ok_or_else(|| {
            self.error(&token.span, "'autobound' needs net.ipv4.ip_local_port_range, which cannot be read".into())
        })?;
        Ok(Filter::Port(End::Local, range.0))
    }

    fn expires(&mut self) -> Result<Filter> {
        let at = self.next;
        let Some(comparison) = self.comparison() else {
            return Err(self.expected(self.tokens.get(at), "a comparison: <, <=, >, >=, = or !="));
        };
        let (word, token) = self.value("a duration, like 500ms, 10s or 1m")?;
        let limit = parse_duration(word)
            .map_err(|why| self.error(&token.span, format!("'{word}' is not a duration; {why}")))?;
        let below = |limit| Filter::ExpiresUnder(limit);
        // The kernel reports whole milliseconds, so `<= N ms` is the same as `< N + 1 ms`.
        let whole = Duration::from_millis(milliseconds(limit));
        let at_most = || below(whole.saturating_add(Duration::from_millis(1)));
        let equal = || {
            if whole == limit { Filter::all(vec![at_most(), below(limit).negated()]) } else { Filter::FALSE }
        };
        Ok(match comparison {
            ComparisonOperator::Less => below(limit),
            ComparisonOperator::LessOrEqual => at_most(),
            ComparisonOperator::Greater => at_most().negated(),
            ComparisonOperator::GreaterOrEqual => below(limit).negated(),
            ComparisonOperator::Equal => equal(),
            ComparisonOperator::NotEqual => equal().negated(),
        })
    }

    fn name<T: Copy>(&self, word: &str, span: &Range<usize>, names: &[(&str, T)], what: &str) -> Result<T> {
        let found = names.iter().find(|(name, _)| *name == word).map(|(_, value)| *value);
        found.ok_or_else(|| self.error(span, format!("expected {what}, found '{word}'")))
    }

    fn class(&mut self, end: End, word: &str, span: &Range<usize>) -> Result<Filter> {
        let class = self.name(word, span, &PortClass::ALL.map(|class| (class.name(), class)), CLASSES)?;
        Ok(Filter::Port(end, class.bounds()))
    }

    fn direction(&mut self, word: &str, span: &Range<usize>) -> Result<Filter> {
        let all = [Direction::Inbound, Direction::Outbound, Direction::Unknown];
        self.name(word, span, &all.map(|direction| (direction.name(), direction)), DIRECTIONS).map(Filter::Direction)
    }

    fn state(&mut self, word: &str, span: &Range<usize>) -> Result<Filter> {
        let fin_wait_2 = self.name(word, span, &[("time-wait", false), ("fin-wait-2", true)], STATES)?;
        Ok(if fin_wait_2 { Filter::FinWait2 } else { Filter::FinWait2.negated() })
    }

    fn service(&mut self, word: &str, span: &Range<usize>) -> Result<Filter> {
        let port = self
            .facts
            .services
            .port(word)
            .ok_or_else(|| self.error(span, format!("'{word}' is not a TCP service in /etc/services")))?;
        let range = PortRange::one(port);
        Ok(Filter::Any(vec![Filter::Port(End::Local, range), Filter::Port(End::Remote, range)]))
    }
}

const CLASSES: &str = "well-known, registered or dynamic";
const DIRECTIONS: &str = "inbound, outbound or unknown";
const STATES: &str = "time-wait or fin-wait-2";

/// Parses a duration that a user typed. More than 100 years count as 100 years, so that the sum of the present time and the duration does
/// not overflow.
///
/// # Errors
/// The reason why the text is not a duration, and examples of durations.
pub fn parse_duration(text: &str) -> std::result::Result<Duration, String> {
    const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
    let parse = |text: &str| text.parse::<jiff::SignedDuration>().ok();
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let why = match parse(text).map(Duration::try_from) {
        Some(Ok(duration)) => return Ok(duration.min(LONGEST)),
        Some(Err(_)) => "a duration is not negative; use one",
        None if unit.len() < text.len() && parse(&format!("1{unit}")).is_some() => {
            "the number is too large; use a duration"
        }
        None => "a duration is a number with a unit,",
    };
    Err(format!("{why} like 500ms, 10s or 1m"))
}

/// Combines two tests with "and" or "or". If `left` is already a list with the same operator, `right` is appended to this list.
fn join(left: Filter, right: Filter, or: bool) -> Filter {
    let mut tests = match left {
        Filter::Any(tests) if or && !tests.is_empty() => tests,
        Filter::All(tests) if !or && !tests.is_empty() => tests,
        other => vec![other],
    };
    tests.push(right);
    if or { Filter::Any(tests) } else { Filter::All(tests) }
}

/// Completes a shortened IPv4 prefix with zeros: `127/8` becomes `127.0.0.0/8`. An address without a length must have all four
/// numbers. (ss accepts 10.1 and reads it as 10.1.0.0, which is hardly ever intended.)
fn in_full(addr: &str) -> Cow<'_, str> {
    let Some((numbers, length)) = addr.split_once('/') else { return addr.into() };
    let given = numbers.split('.').filter(|number| number.parse::<u8>().is_ok()).count();
    let short = given < 4 && given == numbers.split('.').count();
    if short { format!("{numbers}{}/{length}", ".0".repeat(4 - given)).into() } else { addr.into() }
}

/// Splits a word into the address and the port after it.
fn split_host(word: &str) -> (&str, Option<&str>) {
    if let Some(rest) = word.strip_prefix('[') {
        // `[addr]`, `[addr]:port`, `[addr]/length`, `[addr]/length:port`.
        let Some(close) = rest.find(']') else { return (word, None) };
        let after = &rest[close + 1..];
        return match after.find(':') {
            Some(colon) => (&word[..close + 2 + colon], Some(&after[colon + 1..])),
            None => (word, None),
        };
    }
    // An IPv6 address without brackets has no port. ss would read its last part as a port.
    if word.matches(':').count() > 1 {
        return (word, None);
    }
    word.split_once(':').map_or((word, None), |(addr, port)| (addr, Some(port)))
}

#[cfg(test)]
pub(crate) mod tests;
