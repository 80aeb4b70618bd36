//! Answers questions about timewait buckets: a list in an order, a stream, a count, or whether there is any.

use std::collections::BTreeSet;
use std::mem;
use std::num::NonZeroU32;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::ordered_rows::{OrderedRows, RowLimit};
use super::query::{Query, Selection};
use super::{Answer, PassOn, Snapshot, SnapshotError, interrupted, merged_facts};
use crate::filter::Filter;
use crate::model::facts::Facts;
use crate::model::listeners::Listeners;
use crate::model::row::{Order, Row, RowObserver};
use crate::model::socket::Socket;
use crate::sock_diag::bytecode;
use crate::source::{Origin, Source, WalkEnd};
use crate::sys;

/// The number of rows in a piece of a stream. It bounds the memory when many namespaces are read at the same time.
const PIECE: usize = 256;

/// Rows of buckets in memory, from one network namespace or from several.
#[derive(Clone, Debug)]
pub struct Buckets {
    /// The rows.
    pub rows: OrderedRows,
    /// The facts of each namespace; [`Row::netns`] is an index into them. There is at least one.
    pub facts: Vec<Facts>,
    /// The interface of the kernel that the rows came from. It is procfs if procfs was read in at least one namespace.
    pub origin: Origin,
    /// Whether rows may be in another state than TIME_WAIT.
    pub with_state: bool,
    several: bool,
}

impl Buckets {
    /// The facts of all namespaces together.
    #[must_use]
    pub fn merged_facts(&self) -> Facts {
        merged_facts(&self.facts, self.several)
    }

    fn empty(facts: Facts, query: &Query, order: Option<Order>, limit: RowLimit, several: bool) -> Self {
        let rows = OrderedRows::new(order, limit);
        Self { rows, facts: vec![facts], origin: Origin::SockDiag, with_state: query.with_state(), several }
    }

    fn append(&mut self, mut other: Self) {
        let netns = u32::try_from(self.facts.len()).unwrap_or(u32::MAX);
        self.rows.append(&other.rows, netns);
        self.facts.append(&mut other.facts);
        if other.origin != self.origin {
            self.origin = Origin::Procfs;
        }
    }
}

/// The part of a filter that the kernel evaluates, and the part that twtool evaluates.
#[derive(Clone, Debug)]
pub struct FilterParts {
    /// The whole filter.
    pub filter: Filter,
    /// The part that the kernel evaluates.
    pub by_kernel: Filter,
    /// The part that only twtool evaluates.
    pub left_over: Filter,
}

impl Snapshot {
    /// Lists the selected buckets in an order, or as the kernel lists them.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn buckets(
        &self,
        selection: &Selection,
        order: Option<Order>,
        limit: RowLimit,
    ) -> Result<Answer<Buckets>, SnapshotError> {
        let answer = self.observed_buckets(selection, order, limit, &|_| ())?;
        Ok(answer.map(|(buckets, _)| buckets))
    }

    /// Lists the selected buckets, and shows each row to an observer as soon as it arrives. The observer can work while
    /// the kernel prepares the next rows. `observer` creates an observer for each network namespace, from [`Buckets`] without
    /// rows. The observers are returned in the order of the namespaces.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn observed_buckets<O: RowObserver>(
        &self,
        selection: &Selection,
        order: Option<Order>,
        limit: RowLimit,
        observer: &(impl Fn(&Buckets) -> O + Sync),
    ) -> Result<Answer<(Buckets, Vec<O>)>, SnapshotError> {
        let mut all: Option<Buckets> = None;
        let mut observers = vec![];
        let several = self.namespaces.are_several();
        let answer = self.ask_buckets(
            selection,
            true,
            &|query, source, pass_on| {
                let empty = Buckets::empty(source.facts().clone(), query, order, limit, several);
                let (mut buckets, observer, answer) = collect(query, source, empty, observer)?;
                if several {
                    buckets.facts[0].interfaces.store_names(interfaces(buckets.rows.iter()));
                }
                let _ = pass_on((buckets, observer));
                Ok(answer)
            },
            &mut |(buckets, observer)| {
                observers.push(observer);
                match &mut all {
                    Some(all) => all.append(buckets),
                    None => all = Some(buckets),
                }
                ControlFlow::Continue(())
            },
        )?;
        match all {
            Some(all) => Ok(answer.with((all, observers))),
            None => Err(SnapshotError::NoNamespace(answer.warnings)),
        }
    }

    /// Passes the selected buckets to `each` as the kernel lists them, with the facts of their namespace, and does not keep them. An
    /// interrupted dump is reported and not repeated, because `each` has already received its rows.
    ///
    /// # Errors
    /// See [`SnapshotError`]; `each` may have seen rows by then.
    pub fn for_each_bucket(
        &self,
        selection: &Selection,
        each: &mut (dyn FnMut(&Row, &Facts) -> ControlFlow<()> + Send),
    ) -> Result<Answer<()>, SnapshotError> {
        self.ask_buckets(selection, true, &walk, &mut |(rows, facts): (Vec<Row>, Arc<Facts>)| {
            rows.iter().try_for_each(|row| each(row, &facts))
        })
    }

    /// Counts the selected buckets.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn count_buckets(&self, selection: &Selection) -> Result<Answer<usize>, SnapshotError> {
        let mut count = 0;
        let answer = self.ask_buckets(
            selection,
            false,
            &|query, source, pass_on| {
                let (count, answer) = count_rows(query, source)?;
                let _ = pass_on(count);
                Ok(answer)
            },
            &mut |here| {
                count += here;
                ControlFlow::Continue(())
            },
        )?;
        Ok(answer.with(count))
    }

    /// Returns whether any bucket is selected. The answer "yes" is always complete, because one bucket is enough.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn any_bucket(&self, selection: &Selection) -> Result<Answer<bool>, SnapshotError> {
        let mut any = false;
        let answer = self.ask_buckets(
            selection,
            false,
            &|query, source, pass_on| {
                let (any, answer) = any_row(query, source)?;
                let _ = pass_on(any);
                Ok(answer)
            },
            &mut |here| {
                any |= here;
                if any { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            },
        )?;
        Ok(Answer { complete: any || answer.complete, ..answer.with(any) })
    }

    /// Splits the selection's filter into the part that the kernel evaluates and the rest.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn filter_parts(&self, selection: &Selection) -> Result<Answer<FilterParts>, SnapshotError> {
        self.namespaces.within(|| {
            let source = self.input.open()?;
            let (filter, filter_warnings) = selection.resolve(source.facts())?;
            let (by_kernel, left_over) = (bytecode::judged_by_kernel(&filter), bytecode::left_over(&filter));
            Ok(Answer { filter_warnings, ..Answer::whole(FilterParts { filter, by_kernel, left_over }) })
        })
    }

    /// For `shows_direction`, see [`Query::new`].
    fn ask_buckets<P: Send>(
        &self,
        selection: &Selection,
        shows_direction: bool,
        ask: &(impl Fn(&Query, &mut Source, &mut PassOn<P>) -> Result<Answer<()>, SnapshotError> + Sync),
        each: &mut PassOn<P>,
    ) -> Result<Answer<()>, SnapshotError> {
        let absent = self.interfaces_elsewhere(selection)?;
        let ask_here = |_, pass_on: &mut PassOn<P>| {
            self.input.ask(|source| {
                let query = if absent.is_empty() {
                    Query::new(selection, source.facts(), shows_direction)?
                } else {
                    let mut names = source.facts().clone();
                    names.interfaces.add_absent(&absent);
                    Query::new(selection, &names, shows_direction)?
                };
                let answer = ask(&query, source, pass_on)?;
                Ok(Answer { filter_warnings: query.warnings, ..answer })
            })
        };
        self.namespaces.ask(&ask_here, each)
    }

    /// The interface names of all namespaces, if there are several and the selection may name an interface. `dev eth0`
    /// selects nothing in a namespace without eth0, and is a mistake only if no namespace has eth0.
    fn interfaces_elsewhere(&self, selection: &Selection) -> Result<BTreeSet<String>, SnapshotError> {
        let mut names = BTreeSet::new();
        if self.namespaces.are_several() && selection.may_name_an_interface() {
            let list = |_, pass_on: &mut PassOn<Vec<String>>| {
                let _ = pass_on(sys::interfaces::here().list().into_values().collect());
                Ok(Answer::whole(()))
            };
            // A namespace that cannot be entered is reported when its buckets are read.
            self.namespaces.ask(&list, &mut |here: Vec<String>| {
                names.extend(here);
                ControlFlow::Continue(())
            })?;
        }
        Ok(names)
    }
}

fn interfaces<'a>(rows: impl Iterator<Item = &'a Row>) -> impl Iterator<Item = NonZeroU32> {
    rows.filter_map(|row| row.bucket.interface)
}

fn collect<O: RowObserver>(
    query: &Query,
    source: &mut Source,
    empty: Buckets,
    observer: &impl Fn(&Buckets) -> O,
) -> Result<(Buckets, O, Answer<()>), SnapshotError> {
    let facts = &empty.facts[0];
    let ((_, observer, rows), end) = source.collect(
        query.states,
        &query.filter,
        || (Listeners::default(), observer(&empty), empty.rows.clone()),
        |(listeners, observer, rows), socket| {
            if let Some(row) = query.row(listeners, facts, socket) {
                // Read the interface names now, so that the answer can report missing names.
                facts.interfaces.look_up(row.bucket.interface);
                observer.observe(&row, facts);
                rows.push(row);
            }
        },
    )?;
    let answer = rows_answer(query, source, facts, end)?;
    Ok((Buckets { rows, origin: source.origin(), ..empty }, observer, answer))
}

fn walk(
    query: &Query,
    source: &mut Source,
    pass_on: &mut PassOn<(Vec<Row>, Arc<Facts>)>,
) -> Result<Answer<()>, SnapshotError> {
    let facts = Arc::new(source.facts().clone());
    let records = source.records();
    let (mut listeners, mut rows) = (Listeners::default(), vec![]);
    let mut flow = ControlFlow::Continue(());
    let mut pass_rows = |rows: &mut Vec<Row>| {
        facts.interfaces.look_up(interfaces(rows.iter()));
        pass_on((mem::take(rows), Arc::clone(&facts)))
    };
    let end = source.walk(query.states, &query.filter, &mut |socket| {
        if flow.is_continue()
            && let Some(row) = query.row(&mut listeners, &facts, socket)
        {
            rows.push(row);
            if rows.len() == PIECE {
                flow = pass_rows(&mut rows);
            }
        }
        // A recording must contain every row, even if the caller needs no more rows.
        if records { ControlFlow::Continue(()) } else { flow }
    });
    // Pass on the last rows even if the walk failed after them.
    if flow.is_continue() && !rows.is_empty() {
        let _ = pass_rows(&mut rows);
    }
    rows_answer(query, source, &facts, end?)
}

/// The answer after a walk that returned rows: whether they are complete, and warnings.
pub(super) fn rows_answer(
    query: &Query,
    source: &Source,
    facts: &Facts,
    end: WalkEnd,
) -> Result<Answer<()>, SnapshotError> {
    query.check_filter()?;
    let (mut warnings, complete) = query.direction_gaps(facts);
    warnings.extend((!end.complete).then(interrupted));
    warnings.extend(source.warnings());
    Ok(Answer { complete: end.complete && complete, warnings, ..Answer::whole(()) })
}

fn count_rows(query: &Query, source: &mut Source) -> Result<(usize, Answer<()>), SnapshotError> {
    let facts = source.facts().clone();
    let (count, end) = if query.everything {
        // Without a filter, the count needs no row and no direction.
        let count = |count: &mut usize, socket: &Socket| *count += usize::from(matches!(socket, Socket::Bucket(_)));
        source.collect(query.states, &query.filter, || 0, count)?
    } else {
        let ((_, count), end) = source.collect(
            query.states,
            &query.filter,
            || (Listeners::default(), 0_usize),
            |(listeners, count), socket| *count += usize::from(query.row(listeners, &facts, socket).is_some()),
        )?;
        (count, end)
    };
    Ok((count, number_answer(query, source, &facts, end)?))
}

fn any_row(query: &Query, source: &mut Source) -> Result<(bool, Answer<()>), SnapshotError> {
    let facts = source.facts().clone();
    let records = source.records();
    let (mut listeners, mut any) = (Listeners::default(), false);
    let end = source.walk(query.states, &query.filter, &mut |socket| {
        any |= query.row(&mut listeners, &facts, socket).is_some();
        if any && !records { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    if any {
        // One row is enough, so an interrupted dump does not matter.
        query.check_directions(&facts)?;
        return Ok((true, Answer { warnings: source.warnings(), ..Answer::whole(()) }));
    }
    Ok((false, number_answer(query, source, &facts, end)?))
}

/// The answer after a walk that returned a number. A number cannot show which rows are uncertain. So if the filter tests a direction that
/// could not be inferred, the result is an error, and not a warning as in [`rows_answer`].
fn number_answer(query: &Query, source: &Source, facts: &Facts, end: WalkEnd) -> Result<Answer<()>, SnapshotError> {
    query.check_filter()?;
    query.check_directions(facts)?;
    let mut warnings = source.warnings();
    warnings.extend((!end.complete).then(interrupted));
    Ok(Answer { complete: end.complete, warnings, ..Answer::whole(()) })
}
