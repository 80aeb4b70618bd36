//! Which rows a command wants: a tree of tests, judged on a [`Row`]. Expressions and flags build the same tree.
//!
//! Names (services, interfaces, the ephemeral range) come in as facts when an expression is parsed; nothing is asked
//! here. Part of a tree can be judged by the kernel (`sock_diag::bytecode`); the whole tree is judged here in any case,
//! so the kernel's part only saves work.

pub mod lexer;
pub mod parser;

use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use crate::model::addr::Prefix;
use crate::model::port::{Port, PortRange};
use crate::model::row::{Direction, Row};
use crate::model::socket::FourTuple;

/// Which end of a connection a test looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// This machine's.
    Local,
    /// The other one's.
    Remote,
}

/// A test on a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Every one of these; an empty list is always true.
    All(Vec<Self>),
    /// At least one of these; an empty list is never true.
    Any(Vec<Self>),
    /// Not this.
    Not(Box<Self>),
    /// The port of this end lies in the range.
    Port(End, PortRange),
    /// The address of this end lies in the prefix.
    Addr(End, Prefix),
    /// The socket is bound to this interface; `None`: to none.
    Interface(Option<NonZeroU32>),
    /// `SO_MARK`, with these bits looked at, is this.
    Mark {
        /// The value under the mask.
        value: u32,
        /// The bits that count.
        mask: u32,
    },
    /// The inferred direction.
    Direction(Direction),
    /// Less than this remains.
    ExpiresUnder(Duration),
    /// The bucket is in FIN_WAIT_2, not in TIME_WAIT.
    FinWait2,
}

impl Filter {
    /// Passes everything.
    pub const TRUE: Self = Self::All(vec![]);
    /// Passes nothing.
    pub const FALSE: Self = Self::Any(vec![]);

    /// Every one of the tests; one alone needs no list.
    #[must_use]
    pub fn all(mut tests: Vec<Self>) -> Self {
        if tests.len() == 1 { tests.remove(0) } else { Self::All(tests) }
    }

    /// At least one of the tests; one alone needs no list.
    #[must_use]
    pub fn any(mut tests: Vec<Self>) -> Self {
        if tests.len() == 1 { tests.remove(0) } else { Self::Any(tests) }
    }

    /// The opposite.
    #[must_use]
    pub fn negated(self) -> Self {
        match self {
            Self::Not(inner) => *inner,
            other => Self::Not(Box::new(other)),
        }
    }

    /// IPv4 on the wire, mapped sockets too; or IPv6.
    #[must_use]
    pub fn ipv4_on_the_wire(ipv4: bool) -> Self {
        let any_ipv4 = Self::Addr(End::Local, Prefix::ANY_IPV4);
        if ipv4 { any_ipv4 } else { any_ipv4.negated() }
    }

    /// Whether the row passes for sure.
    #[must_use]
    pub fn accepts(&self, row: &Row) -> bool {
        self.judge(row) == Some(true)
    }

    /// Whether the row passes; `None` where that hangs on a mark or an interface that the source does not tell.
    #[must_use]
    pub fn judge(&self, row: &Row) -> Option<bool> {
        let bucket = &row.bucket;
        Some(match self {
            Self::All(tests) => return decide(tests, row, false),
            Self::Any(tests) => return decide(tests, row, true),
            Self::Not(test) => return test.judge(row).map(|passes| !passes),
            Self::Port(end, range) => range.contains(end.port(&bucket.tuple)),
            Self::Addr(End::Local, prefix) => prefix.contains(bucket.tuple.family, bucket.tuple.local_bits()),
            Self::Addr(End::Remote, prefix) => prefix.contains(bucket.tuple.family, bucket.tuple.remote_bits()),
            // The source that tells no cookie tells no interface either.
            Self::Interface(_) if bucket.cookie.is_none() => return None,
            Self::Interface(interface) => bucket.interface == *interface,
            Self::Mark { value, mask: 0 } => *value == 0,
            Self::Mark { value, mask } => bucket.mark? & mask == *value,
            Self::Direction(direction) => row.direction == *direction,
            Self::ExpiresUnder(limit) => bucket.expires() < *limit,
            Self::FinWait2 => bucket.fin_wait_2,
        })
    }

    /// Whether any test of the tree is one for which this holds.
    pub fn mentions(&self, test: &impl Fn(&Self) -> bool) -> bool {
        match self {
            Self::All(tests) | Self::Any(tests) => tests.iter().any(|inner| inner.mentions(test)),
            Self::Not(inner) => inner.mentions(test),
            leaf => test(leaf),
        }
    }
}

/// The first test that gives this decides; else one that is not known leaves it open.
fn decide(tests: &[Filter], row: &Row, decisive: bool) -> Option<bool> {
    let mut known = true;
    for test in tests {
        match test.judge(row) {
            Some(passes) if passes == decisive => return Some(decisive),
            Some(_) => {}
            None => known = false,
        }
    }
    known.then_some(!decisive)
}

impl End {
    /// The port of this end.
    #[must_use]
    pub const fn port(self, tuple: &FourTuple) -> Port {
        match self {
            Self::Local => tuple.local_port(),
            Self::Remote => tuple.remote_port(),
        }
    }
}

/// The expression, in words that parse back to the same tree. Interfaces by number.
impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let joined = |f: &mut fmt::Formatter<'_>, tests: &[Self], word: &str| {
            for (i, test) in tests.iter().enumerate() {
                if i > 0 {
                    write!(f, " {word} ")?;
                }
                let group = matches!(test, Self::All(inner) | Self::Any(inner) if inner.len() > 1);
                if group { write!(f, "({test})")? } else { write!(f, "{test}")? }
            }
            Ok(())
        };
        let port_of = |end: &End| match end {
            End::Local => "sport",
            End::Remote => "dport",
        };
        match self {
            Self::All(tests) if tests.is_empty() => f.write_str("sport >= 0"),
            Self::Any(tests) if tests.is_empty() => f.write_str("not sport >= 0"),
            Self::All(tests) => joined(f, tests, "and"),
            Self::Any(tests) => joined(f, tests, "or"),
            Self::Not(test) => match &**test {
                Self::All(inner) | Self::Any(inner) if inner.len() > 1 => write!(f, "not ({test})"),
                _ => write!(f, "not {test}"),
            },
            Self::Port(end, range) => {
                let (end, first, last) = (port_of(end), range.first(), range.last());
                match (first, last) {
                    _ if first == last => write!(f, "{end} = {first}"),
                    (_, Port(u16::MAX)) => write!(f, "{end} >= {first}"),
                    (Port(0), _) => write!(f, "{end} <= {last}"),
                    _ => write!(f, "({end} >= {first} and {end} <= {last})"),
                }
            }
            Self::Addr(End::Local, prefix) => write!(f, "src {prefix}"),
            Self::Addr(End::Remote, prefix) => write!(f, "dst {prefix}"),
            Self::Interface(interface) => write!(f, "dev = {}", interface.map_or(0, NonZeroU32::get)),
            Self::Mark { value, mask } => write!(f, "fwmark = {value:#x}/{mask:#x}"),
            Self::Direction(direction) => write!(f, "direction = {}", direction.name()),
            Self::ExpiresUnder(limit) => match limit.subsec_nanos() {
                0 => write!(f, "expires < {}s", limit.as_secs()),
                ns if ns.is_multiple_of(1_000_000) => write!(f, "expires < {}ms", limit.as_millis()),
                _ => write!(f, "expires < {}s{}ns", limit.as_secs(), limit.subsec_nanos()),
            },
            Self::FinWait2 => f.write_str("state = fin-wait-2"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::addr::ScopedPrefix;
    use crate::model::row::tests::row;

    #[test]
    fn no_test_at_all_passes_and_an_empty_choice_does_not() {
        let row = row("127.0.0.1", 80, "127.0.0.1", 40000);
        assert!(Filter::TRUE.accepts(&row));
        assert!(!Filter::FALSE.accepts(&row));
    }

    #[test]
    fn mapped_rows_pass_as_the_ipv4_they_are_on_the_wire() {
        let mapped = row("::ffff:10.0.0.1", 80, "::ffff:10.0.0.2", 40000);
        assert!(Filter::ipv4_on_the_wire(true).accepts(&mapped));
        assert!(!Filter::ipv4_on_the_wire(false).accepts(&mapped));
        assert!(
            Filter::Addr(End::Remote, "10.0.0.0/8".parse::<ScopedPrefix>().expect("prefix").prefix).accepts(&mapped)
        );
    }

    #[test]
    fn the_time_limit_itself_is_not_under_it() {
        let row = row("127.0.0.1", 80, "127.0.0.1", 40000);
        assert!(!Filter::ExpiresUnder(Duration::from_secs(10)).accepts(&row));
        assert!(Filter::ExpiresUnder(Duration::from_millis(10_001)).accepts(&row));
    }

    #[test]
    fn a_row_is_left_open_only_where_it_hangs_on_what_is_not_told() {
        let mut row = row("127.0.0.1", 80, "127.0.0.1", 40000);
        let port = |n| Filter::Port(End::Local, PortRange::one(Port(n)));
        let mark = Filter::Mark { value: 1, mask: 3 };
        let judge = |filter: Filter, row: &Row| filter.judge(row);
        assert_eq!(judge(mark.clone(), &row), None);
        assert_eq!(judge(mark.clone().negated(), &row), None);
        assert_eq!(judge(Filter::All(vec![mark.clone(), port(81)]), &row), Some(false));
        assert_eq!(judge(Filter::All(vec![mark.clone(), port(80)]), &row), None);
        assert_eq!(judge(Filter::Any(vec![mark.clone(), port(80)]), &row), Some(true));
        assert_eq!(judge(Filter::Any(vec![mark.clone(), port(81)]), &row), None);
        assert_eq!(judge(Filter::Mark { value: 0, mask: 0 }, &row), Some(true));
        row.bucket.mark = Some(5);
        assert_eq!(judge(mark, &row), Some(true));
        row.bucket.cookie = None;
        assert_eq!(judge(Filter::Interface(None), &row), None);
    }
}
