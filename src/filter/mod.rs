//! Selects rows: a filter is a tree of tests that is evaluated on a [`Row`]. Expressions and flags build the same kind of tree.
//!
//! The parser resolves names (services, interfaces, the ephemeral range) from facts that the caller provides; this module does
//! no I/O. The kernel can evaluate part of a tree (`sock_diag::bytecode`). That only saves time, because twtool always
//! evaluates the whole tree.

pub mod lexer;
pub mod parser;

use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use crate::model::addr::Prefix;
use crate::model::port::{Port, PortRange};
use crate::model::row::{Direction, Row};
use crate::model::socket::FourTuple;

/// An end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The end on this machine.
    Local,
    /// The end of the peer.
    Remote,
}

/// A test on a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// All of these tests are true. An empty list is true.
    All(Vec<Self>),
    /// At least one of these tests is true. An empty list is false.
    Any(Vec<Self>),
    /// The test is false.
    Not(Box<Self>),
    /// The port of this end is in the range.
    Port(End, PortRange),
    /// The address of this end is in the prefix.
    Addr(End, Prefix),
    /// The socket is bound to this interface; `None`: it is bound to no interface.
    Interface(Option<NonZeroU32>),
    /// `SO_MARK & mask` is equal to the value.
    Mark {
        /// The expected value.
        value: u32,
        /// The bits that are compared.
        mask: u32,
    },
    /// The inferred direction is this one.
    Direction(Direction),
    /// The remaining time is less than this.
    ExpiresUnder(Duration),
    /// The bucket is in FIN_WAIT_2, not in TIME_WAIT.
    FinWait2,
}

impl Filter {
    /// Accepts every row.
    pub const TRUE: Self = Self::All(vec![]);
    /// Accepts no row.
    pub const FALSE: Self = Self::Any(vec![]);

    /// Combines tests with "and". Returns a single test unchanged.
    #[must_use]
    pub fn all(mut tests: Vec<Self>) -> Self {
        if tests.len() == 1 { tests.remove(0) } else { Self::All(tests) }
    }

    /// Combines tests with "or". Returns a single test unchanged.
    #[must_use]
    pub fn any(mut tests: Vec<Self>) -> Self {
        if tests.len() == 1 { tests.remove(0) } else { Self::Any(tests) }
    }

    /// Returns the opposite test.
    #[must_use]
    pub fn negated(self) -> Self {
        match self {
            Self::Not(inner) => *inner,
            other => Self::Not(Box::new(other)),
        }
    }

    /// If `ipv4` is true, accepts rows with IPv4 on the wire, which include IPv4-mapped sockets. Otherwise accepts rows with IPv6 on the
    /// wire.
    #[must_use]
    pub fn ipv4_on_the_wire(ipv4: bool) -> Self {
        let any_ipv4 = Self::Addr(End::Local, Prefix::ANY_IPV4);
        if ipv4 { any_ipv4 } else { any_ipv4.negated() }
    }

    /// Whether the row passes the filter. `false` also if [`Self::judge`] returns `None`.
    #[must_use]
    pub fn accepts(&self, row: &Row) -> bool {
        self.judge(row) == Some(true)
    }

    /// Whether the row passes the filter; `None` if that depends on a mark or an interface that the source does not report.
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
            // A source that reports no cookies reports no interfaces either.
            Self::Interface(_) if bucket.cookie.is_none() => return None,
            Self::Interface(interface) => bucket.interface == *interface,
            Self::Mark { value, mask: 0 } => *value == 0,
            Self::Mark { value, mask } => bucket.mark? & mask == *value,
            Self::Direction(direction) => row.direction == *direction,
            Self::ExpiresUnder(limit) => bucket.expires() < *limit,
            Self::FinWait2 => bucket.fin_wait_2,
        })
    }

    /// Whether `test` is true for at least one leaf of the tree.
    pub fn mentions(&self, test: &impl Fn(&Self) -> bool) -> bool {
        match self {
            Self::All(tests) | Self::Any(tests) => tests.iter().any(|inner| inner.mentions(test)),
            Self::Not(inner) => inner.mentions(test),
            leaf => test(leaf),
        }
    }
}

/// Combines the results of tests. If one of them is `decisive` (false for "and", true for "or"), it is the result. Otherwise, an unknown
/// result makes the whole result unknown.
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

/// Prints an expression that accepts the same rows. Interfaces are printed as numbers.
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
    fn an_empty_all_accepts_every_row_but_an_empty_any_accepts_none() {
        let row = row("127.0.0.1", 80, "127.0.0.1", 40000);
        assert!(Filter::TRUE.accepts(&row));
        assert!(!Filter::FALSE.accepts(&row));
    }

    #[test]
    fn mapped_rows_count_as_ipv4() {
        let mapped = row("::ffff:10.0.0.1", 80, "::ffff:10.0.0.2", 40000);
        assert!(Filter::ipv4_on_the_wire(true).accepts(&mapped));
        assert!(!Filter::ipv4_on_the_wire(false).accepts(&mapped));
        assert!(
            Filter::Addr(End::Remote, "10.0.0.0/8".parse::<ScopedPrefix>().expect("prefix").prefix).accepts(&mapped)
        );
    }

    #[test]
    fn a_remaining_time_equal_to_the_limit_is_not_under_it() {
        let row = row("127.0.0.1", 80, "127.0.0.1", 40000);
        assert!(!Filter::ExpiresUnder(Duration::from_secs(10)).accepts(&row));
        assert!(Filter::ExpiresUnder(Duration::from_millis(10_001)).accepts(&row));
    }

    #[test]
    fn a_result_is_unknown_only_if_it_depends_on_an_unknown_value() {
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
