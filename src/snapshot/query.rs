//! Selects the buckets of a question. A [`Selection`] has names as they were typed. A `Query` has the same tests after the names were
//! resolved with the facts of a source.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::error::{BadValue, SnapshotError};
use crate::analysis::direction;
use crate::filter::parser::{self, ParsedFilter};
use crate::filter::{End, Filter};
use crate::model::addr::ScopedPrefix;
use crate::model::facts::{Facts, Setting};
use crate::model::listeners::Listeners;
use crate::model::port::PortArg;
use crate::model::row::{Direction, Row};
use crate::model::socket::{FullSocket, Socket, StateSet, TcpState};
use crate::model::target::Target;

/// Selects buckets by an expression and by flags. A bucket is selected if it passes every part. Names of services and
/// interfaces are resolved in each network namespace.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// An expression of the filter language. An empty one selects every bucket.
    pub expression: String,
    /// Further tests. A bucket must pass at least one test of each group that is not empty.
    pub groups: Vec<AnyOf>,
    /// Only buckets with less remaining time than this.
    pub expires_under: Option<Duration>,
    /// Only buckets with IPv4 (true) or IPv6 (false) on the wire.
    pub ipv4: Option<bool>,
    /// Whether to include FIN_WAIT_2 buckets.
    pub fin_wait_2: bool,
}

/// Tests of which a bucket must pass at least one.
#[derive(Clone, Debug)]
pub struct AnyOf {
    /// The argument that the tests come from, for error messages.
    pub argument: &'static str,
    /// The tests.
    pub tests: Vec<Test>,
}

/// A test whose names are not resolved yet.
#[derive(Clone, Debug)]
pub enum Test {
    /// A port at this end.
    Port(End, PortArg),
    /// An address at this end.
    Prefix(End, ScopedPrefix),
    /// A test without names.
    Resolved(Filter),
}

impl Test {
    fn resolve(&self, argument: &str, facts: &Facts) -> Result<Filter, BadValue> {
        match self {
            Self::Port(end, port) => {
                let range = facts.ports(port).map_err(|why| BadValue::new(port, argument, &why))?;
                Ok(Filter::Port(*end, range))
            }
            Self::Prefix(end, typed) => {
                let interface = typed.scope.as_deref().map(|scope| facts.interface_index(scope)).transpose();
                let interface = interface.map_err(|why| BadValue::new(typed, argument, &why))?;
                let mut tests = vec![Filter::Addr(*end, typed.prefix)];
                tests.extend(interface.map(|index| Filter::Interface(Some(index))));
                Ok(Filter::all(tests))
            }
            Self::Resolved(filter) => Ok(filter.clone()),
        }
    }
}

impl Selection {
    /// Selects the buckets for which an expression of the filter language is true.
    #[must_use]
    pub fn expression(expression: &str) -> Self {
        Self { expression: expression.to_owned(), ..Self::default() }
    }

    /// Whether the selection may name an interface, in a scope or after `dev`.
    #[must_use]
    pub fn may_name_an_interface(&self) -> bool {
        let scoped = |test: &Test| matches!(test, Test::Prefix(_, typed) if typed.scope.is_some());
        let words = &self.expression;
        words.contains("dev") || words.contains('%') || self.groups.iter().flat_map(|group| &group.tests).any(scoped)
    }

    /// Resolves every name and returns the filter, and warnings about the expression.
    ///
    /// # Errors
    /// The expression has a mistake, or a name does not exist here.
    pub fn resolve(&self, facts: &Facts) -> Result<(Filter, Vec<String>), SnapshotError> {
        let mut tests = vec![];
        for AnyOf { argument, tests: any } in self.groups.iter().filter(|group| !group.tests.is_empty()) {
            let any = any.iter().map(|test| test.resolve(argument, facts)).collect::<Result<_, _>>()?;
            tests.push(Filter::any(any));
        }
        let ParsedFilter { filter, warnings } = parser::parse(&self.expression, facts)?;
        tests.extend(self.expires_under.map(Filter::ExpiresUnder));
        tests.extend(self.ipv4.map(Filter::ipv4_on_the_wire));
        tests.extend((filter != Filter::TRUE).then_some(filter));
        Ok((Filter::all(tests), warnings))
    }
}

/// Whether a filter tests the mark or the direction. Not every source can provide these values.
struct Needs {
    mark: bool,
    direction: bool,
}

impl Needs {
    fn new(filter: &Filter) -> Self {
        Self {
            mark: filter.mentions(&|test| matches!(test, Filter::Mark { .. })),
            direction: filter.mentions(&|test| matches!(test, Filter::Direction(_))),
        }
    }
}

pub(super) struct Query {
    pub(super) states: StateSet,
    pub(super) filter: Filter,
    /// Warnings about the expression.
    pub(super) warnings: Vec<String>,
    needs: Needs,
    /// Whether the filter accepts every row.
    pub(super) everything: bool,
    infers_direction: bool,
    /// Whether the filter could not be evaluated on some row.
    unjudged: AtomicBool,
    /// Whether the direction of some row depends on an IPV6_V6ONLY that the source does not report.
    of_unknown_direction: AtomicBool,
}

impl Query {
    /// Resolves the names. If `shows_direction`, rows get a direction even if the filter does not test it.
    pub(super) fn new(selection: &Selection, facts: &Facts, shows_direction: bool) -> Result<Self, SnapshotError> {
        let (filter, warnings) = selection.resolve(facts)?;
        let mut states = StateSet::of(&[TcpState::TimeWait]);
        if selection.fin_wait_2 || filter.mentions(&|test| *test == Filter::FinWait2) {
            states = states.union(StateSet::of(&[TcpState::FinWait2]));
        }
        let needs = Needs::new(&filter);
        let infers_direction = needs.direction || shows_direction;
        // The direction depends on the listeners.
        if infers_direction {
            states = states.union(StateSet::of(&[TcpState::Listen]));
        }
        let everything = filter == Filter::TRUE;
        let (unjudged, of_unknown_direction) = <(AtomicBool, AtomicBool)>::default();
        Ok(Self { states, filter, warnings, needs, everything, infers_direction, unjudged, of_unknown_direction })
    }

    /// Whether rows may be in another state than TIME_WAIT.
    pub(super) fn with_state(&self) -> bool {
        self.states.contains(TcpState::FinWait2)
    }

    /// Returns the row of a bucket if it is selected. Adds a listener to `listeners`.
    #[expect(clippy::inline_always, reason = "passing a socket through memory costs more than evaluating the filter")]
    #[inline(always)]
    pub(super) fn row(&self, listeners: &mut Listeners, facts: &Facts, socket: &Socket) -> Option<Row> {
        self.judged_row(listeners, facts, socket).and_then(|(row, selected)| selected.then_some(row))
    }

    /// Returns the row of a bucket and whether it is selected. Adds a listener to `listeners`.
    #[expect(clippy::inline_always, reason = "as for `row`")]
    #[inline(always)]
    pub(super) fn judged_row(&self, listeners: &mut Listeners, facts: &Facts, socket: &Socket) -> Option<(Row, bool)> {
        match *socket {
            Socket::Full(full) => {
                // Listeners come first in a walk, so they are known before the buckets.
                if full.state == TcpState::Listen {
                    listeners.add(full);
                }
                None
            }
            Socket::Bucket(bucket) => {
                let direction = if self.infers_direction {
                    direction::infer(facts, listeners, &bucket.tuple, bucket.interface)
                } else {
                    Direction::Unknown
                };
                let row = Row { bucket, direction, netns: 0 };
                let passes = self.selects(&row);
                if direction == Direction::Unknown && listeners.lack_v6only(&bucket.tuple, bucket.interface) {
                    self.note_undirected(&row);
                }
                Some((row, passes))
            }
        }
    }

    /// Whether a row is selected. If the filter cannot be evaluated on the row, [`Self::check_filter`] fails later.
    #[expect(clippy::inline_always, reason = "as for `row`")]
    #[inline(always)]
    pub(super) fn selects(&self, row: &Row) -> bool {
        let passes = self.filter.judge(row);
        if passes.is_none() {
            self.unjudged.store(true, Ordering::Relaxed);
        }
        passes == Some(true)
    }

    /// Returns an orphan if it is selected. Orphans have no remaining time, so a filter that tests the remaining time selects no orphan.
    pub(super) fn orphan(&self, listeners: &Listeners, facts: &Facts, full: &FullSocket) -> Option<Target> {
        if self.filter.mentions(&|test| matches!(test, Filter::ExpiresUnder(_))) {
            return None;
        }
        let direction = direction::infer(facts, listeners, &full.tuple, full.interface);
        let target = Target { socket: Socket::Full(*full), direction };
        let passes = self.filter.judge(&target.row());
        if passes.is_none() {
            self.unjudged.store(true, Ordering::Relaxed);
        }
        (passes == Some(true)).then_some(target)
    }

    /// Records that the direction of a row is unknown, if the filter would select this row with at least one direction.
    #[cold]
    fn note_undirected(&self, row: &Row) {
        let passes = |direction| self.filter.judge(&Row { direction, ..*row }) == Some(true);
        if Direction::ALL.into_iter().any(passes) {
            self.of_unknown_direction.store(true, Ordering::Relaxed);
        }
    }

    /// Fails if the filter tests a direction that could not be inferred. A caller that returns only a count or an exit code
    /// (`list --count`, `list -q`) could not show which rows are uncertain. Call it after the walk.
    pub(super) fn check_directions(&self, facts: &Facts) -> Result<(), SnapshotError> {
        if !self.needs.direction {
            return Ok(());
        }
        if facts.local_port_range.is_none() {
            return Err(SnapshotError::FilterNotEvaluable(
                "direction depends on net.ipv4.ip_local_port_range, which could not be read",
            ));
        }
        if self.of_unknown_direction.load(Ordering::Relaxed) {
            return Err(SnapshotError::FilterNotEvaluable(NO_V6ONLY));
        }
        Ok(())
    }

    /// Warnings about unknown facts and directions, and whether the rows are complete. Call it after the walk.
    pub(super) fn direction_gaps(&self, facts: &Facts) -> (Vec<String>, bool) {
        let mut sentences = if self.infers_direction { gaps(facts) } else { facts.other_gaps() };
        let of_unknown_direction = self.of_unknown_direction.load(Ordering::Relaxed);
        // If the filter does not test the direction, no row is missing, and the direction is shown as unknown.
        let complete = sentences.is_empty() && !(of_unknown_direction && self.needs.direction);
        sentences.extend(of_unknown_direction.then(|| NO_V6ONLY.to_owned()));
        (sentences, complete)
    }

    /// Fails if the filter could not be evaluated on some row, because a list from which rows are silently missing is worse than
    /// no list.
    pub(super) fn check_filter(&self) -> Result<(), SnapshotError> {
        if !self.unjudged.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err(SnapshotError::FilterNotEvaluable(if self.needs.mark {
            "the kernel reports the mark of a socket (fwmark) only through sock_diag, and only to a caller with \
             CAP_NET_ADMIN; Linux 5.10 never reports the mark of a TIME_WAIT socket"
        } else {
            "/proc/net/tcp does not report the interface of a socket (dev)"
        }))
    }
}

/// The reason why a listener on `::` does not determine the direction of IPv4 connections.
pub(super) const NO_V6ONLY: &str = "/proc/net/tcp6 does not report IPV6_V6ONLY, so it is unknown whether a listener \
                                    on :: also takes IPv4 connections, and the direction of IPv4 connections is \
                                    unknown (sock_diag reports IPV6_V6ONLY)";

/// Warnings about unread facts. The direction of a row depends on the ephemeral range.
pub(super) fn gaps(facts: &Facts) -> Vec<String> {
    facts.gaps(&[Setting::LocalPortRange])
}
