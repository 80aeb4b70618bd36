//! Removes timewait buckets and orphans (closing sockets that no process has open), and verifies that they are gone.
//!
//! 1. [`Candidates::find`] lists the selected sockets in the kernel's order, because removal in that order is fastest.
//! 2. [`Candidates::remove`] sends a request for each socket. The request has the cookie, so it removes that socket or
//!    none. Orphans come first, because on a kernel that destroys no buckets, the removal ends at the first bucket. Before
//!    each request for an orphan, a look-up shows whether the orphan has changed.
//! 3. A second list shows which targets still exist.

use std::collections::HashSet;

use super::query::{Query, Selection, gaps};
use super::{SnapshotError, interrupted};
use crate::filter::Filter;
use crate::model::facts::Facts;
use crate::model::health::Capability;
use crate::model::listeners::Listeners;
use crate::model::removal::RemovalResult;
use crate::model::row::Row;
use crate::model::socket::{Cookie, Socket, StateSet, TcpState};
use crate::model::target::{ORPHAN_STATES, Target};
use crate::sock_diag::destroy::{self, Acknowledgement, DestroyError, Destruction};
use crate::sock_diag::transport::Netlink;
use crate::source::{Source, SourceChoice, SourceError, WalkEnd, open_netlink};
use crate::sys::{capabilities, errno};

/// The sockets that a removal would destroy, in the network namespace of the calling thread.
pub struct Candidates {
    source: Source,
    query: Query,
    /// The facts of the network namespace.
    pub facts: Facts,
    /// The buckets and orphans to remove.
    pub targets: Vec<Target>,
    /// Sockets that pass the filter but need another flag.
    pub others: ExcludedSockets,
    /// Whether the dump was not interrupted and every fact could be read.
    pub complete: bool,
    /// Warnings about the filter expression, for example that it is ambiguous.
    pub filter_warnings: Vec<String>,
    /// Warnings about the sockets.
    pub warnings: Vec<String>,
}

/// Sockets that pass the filter but are selected only with another flag.
#[derive(Debug, Default)]
pub struct ExcludedSockets {
    /// FIN_WAIT_2 buckets.
    pub fin_wait_2: Vec<Target>,
    /// Closing sockets without a process.
    pub orphans: Vec<Target>,
}

impl Candidates {
    /// Lists the selected sockets. If `orphans`, closing sockets without a process are included.
    ///
    /// # Errors
    /// See [`SnapshotError`]. A filter that cannot be evaluated on some socket is an error, because a removal must not depend on a guess.
    pub fn find(selection: &Selection, orphans: bool) -> Result<Self, SnapshotError> {
        // procfs has no cookies, so it cannot replace sock_diag.
        let mut source = Source::kernel(SourceChoice::SockDiag)?;
        let query = Query::new(selection, source.facts(), true)?;
        let facts = source.facts().clone();
        let ((_, targets, others), end) = source.collect(
            query.states.union(ORPHAN_STATES),
            &query.filter,
            || (Listeners::default(), vec![], ExcludedSockets::default()),
            |(listeners, targets, others), socket| match socket {
                Socket::Full(full) if full.is_orphan() => {
                    let found = if orphans { targets } else { &mut others.orphans };
                    found.extend(query.orphan(listeners, &facts, full));
                }
                Socket::Bucket(bucket) if !query.states.contains(bucket.state()) => {
                    others.fin_wait_2.extend(query.row(listeners, &facts, socket).map(Target::from));
                }
                _ => targets.extend(query.row(listeners, &facts, socket).map(Target::from)),
            },
        )?;
        query.check_filter()?;
        query.check_directions(&facts)?;
        facts.interfaces.look_up(targets.iter().filter_map(|target: &Target| target.socket.interface()));
        let mut warnings = gaps(&facts);
        let complete = end.complete && warnings.is_empty();
        warnings.extend((!end.complete).then(interrupted));
        let filter_warnings = query.warnings.clone();
        Ok(Self { source, query, facts, targets, others, complete, filter_warnings, warnings })
    }

    /// Whether the selection has no test, so that every socket is selected.
    #[must_use]
    pub fn are_everything(&self) -> bool {
        self.query.filter == Filter::TRUE
    }

    /// Whether targets may be in another state than TIME_WAIT.
    #[must_use]
    pub fn with_state(&self) -> bool {
        self.query.with_state()
    }

    /// Whether the caller probably lacks the permission to remove sockets. This is an inference: the kernel reports marks only
    /// to a caller with CAP_NET_ADMIN. Linux 5.10 never reports the mark of a bucket (Linux 6.1 does), so before 6.1 the
    /// function also checks the caller's capabilities.
    #[must_use]
    pub fn probably_forbidden(&self) -> bool {
        let targets = &self.targets;
        let unmarked = !targets.is_empty() && targets.iter().all(|target| target.row().bucket.mark.is_none());
        let privileged = || capabilities::effective().is_ok_and(|set| set.has(Capability::NetAdmin));
        unmarked && (self.facts.kernel_since(6, 1) != Some(false) || !privileged())
    }

    /// Removes the targets, and verifies that they are gone.
    ///
    /// # Errors
    /// A step failed before anything was removed.
    pub fn remove(&mut self) -> Result<Removal, SnapshotError> {
        let Self { source, query, targets, .. } = self;
        remove(targets, query, source)
    }
}

/// The result of a removal.
pub struct Removal {
    /// The result for each target.
    pub outcomes: Vec<RemovalResult>,
    /// Whether every response of the kernel was received and the second list of sockets was complete.
    pub verified: bool,
    /// Warnings about what could not be removed or verified.
    pub warnings: Vec<String>,
}

impl Removal {
    /// The result without a removal: every target only matched.
    #[must_use]
    pub fn none(rows: usize) -> Self {
        Self { outcomes: vec![RemovalResult::Matched; rows], verified: true, warnings: vec![] }
    }
}

fn remove(targets: &[Target], query: &Query, source: &mut Source) -> Result<Removal, SnapshotError> {
    if targets.is_empty() {
        return Ok(Removal::none(0));
    }
    // This is a second netlink socket, so that a late response cannot reach the second dump.
    let mut kernel = open_netlink()?;
    let mut answers = vec![Acknowledgement::None; targets.len()];
    let mut warnings = vec![];
    remove_orphans(targets, &mut answers, &mut kernel, source, &mut warnings)?;
    let at: Vec<usize> = (0..targets.len()).filter(|&i| !targets[i].is_orphan()).collect();
    let buckets: Vec<Row> = at.iter().map(|&i| targets[i].row()).collect();
    let Destruction { answers: of_buckets, end } = destroy::run(&mut kernel, &buckets);
    for (&i, answer) in at.iter().zip(of_buckets) {
        answers[i] = answer;
    }
    if let Err(error) = end {
        if error.changed_nothing() && !answers.contains(&Acknowledgement::Done) {
            return Err(error.into());
        }
        warnings.push(format!("some responses of the kernel are missing: {error}"));
    }
    // If a response is missing, twtool cannot tell whether the kernel destroyed a socket or the socket ended by itself.
    let answered = warnings.is_empty();
    let left = list_left(query, source);
    let verified = answered && matches!(&left, Ok((_, WalkEnd { complete: true, .. })));
    let left = match left {
        Ok((left, end)) => {
            warnings.extend((!end.complete).then(interrupted));
            Some(left)
        }
        Err(error) => {
            warnings.push(format!("twtool could not verify that the sockets are gone: {error}"));
            None
        }
    };
    let still_there =
        |target: &Target| left.as_ref().map(|left| target.socket.cookie().is_none_or(|cookie| left.contains(&cookie)));
    let outcomes = targets.iter().zip(&answers).map(|(target, answer)| outcome(*answer, still_there(target))).collect();
    Ok(Removal { outcomes, verified, warnings })
}

fn remove_orphans(
    targets: &[Target],
    answers: &mut [Acknowledgement],
    kernel: &mut Netlink,
    source: &mut Source,
    warnings: &mut Vec<String>,
) -> Result<(), SnapshotError> {
    let orphans = targets.iter().zip(answers).filter(|(target, _)| target.is_orphan());
    remove_each(orphans, |target| remove_orphan(target, kernel, source), warnings)
}

#[derive(Debug, thiserror::Error)]
enum OrphanFailure {
    #[error("some orphans were not removed, because they could not be looked up: {0}")]
    LookUp(SourceError),
    #[error("some responses of the kernel are missing: {0}")]
    Destroy(DestroyError),
}

impl OrphanFailure {
    const fn changed_nothing(&self) -> bool {
        match self {
            Self::LookUp(_) => true,
            Self::Destroy(error) => error.changed_nothing(),
        }
    }
}

impl From<OrphanFailure> for SnapshotError {
    fn from(failure: OrphanFailure) -> Self {
        match failure {
            OrphanFailure::LookUp(error) => error.into(),
            OrphanFailure::Destroy(error) => error.into(),
        }
    }
}

/// Removes orphans until a failure. If an orphan was or may have been removed, the failure is only a warning, because the caller must
/// report this removal.
fn remove_each<'a, T>(
    orphans: impl Iterator<Item = (T, &'a mut Acknowledgement)>,
    mut remove: impl FnMut(T) -> Result<Acknowledgement, OrphanFailure>,
    warnings: &mut Vec<String>,
) -> Result<(), SnapshotError> {
    let mut removed = false;
    for (orphan, answer) in orphans {
        match remove(orphan) {
            Ok(response) => {
                removed |= response == Acknowledgement::Done;
                *answer = response;
            }
            Err(failure) if failure.changed_nothing() && !removed => return Err(failure.into()),
            Err(failure) => {
                warnings.push(failure.to_string());
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Looks up an orphan, because it may have changed since it was listed, and removes it if it is still an orphan or has become a bucket.
fn remove_orphan(target: &Target, kernel: &mut Netlink, source: &mut Source) -> Result<Acknowledgement, OrphanFailure> {
    let is_orphan = |now: &Socket| match now {
        Socket::Full(full) => full.is_orphan(),
        Socket::Bucket(_) => true,
    };
    match source.look_up(&target.socket).map_err(OrphanFailure::LookUp)? {
        None => Ok(Acknowledgement::NotFound),
        Some(now) if !is_orphan(&now) => Ok(Acknowledgement::None),
        Some(now) => {
            let row = Target { socket: now, ..*target }.row();
            let Destruction { answers, end } = destroy::run(kernel, &[row]);
            end.map_err(OrphanFailure::Destroy)?;
            Ok(answers[0])
        }
    }
}

/// The cookies that a second list for the query contains. This can be more sockets than the query selects, because the source
/// evaluates only a part of the filter.
fn list_left(query: &Query, source: &mut Source) -> Result<(HashSet<Cookie>, WalkEnd), SourceError> {
    let states = query.states.union(ORPHAN_STATES).without(StateSet::of(&[TcpState::Listen]));
    source.collect(states, &query.filter, HashSet::new, |left, socket| left.extend(socket.cookie()))
}

/// `still_there`: whether the second list has the socket; `None` if there is no second list.
fn outcome(answer: Acknowledgement, still_there: Option<bool>) -> RemovalResult {
    match (answer, still_there) {
        (Acknowledgement::Done, Some(false) | None) => RemovalResult::Destroyed,
        (Acknowledgement::NotFound, Some(false) | None)
        | (Acknowledgement::Failed(_) | Acknowledgement::None, Some(false)) => RemovalResult::Gone,
        (Acknowledgement::NotFound, Some(true)) => RemovalResult::Failed(Some("ENOENT")),
        (Acknowledgement::Failed(number), _) => RemovalResult::Failed(Some(errno::name(number))),
        (Acknowledgement::Done | Acknowledgement::None, _) => RemovalResult::Failed(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_of_a_target_follows_from_the_response_and_the_second_list() {
        const EINVAL: i32 = 22;
        for (answer, still_there, expected) in [
            (Acknowledgement::Done, Some(false), RemovalResult::Destroyed),
            (Acknowledgement::Done, None, RemovalResult::Destroyed),
            (Acknowledgement::Done, Some(true), RemovalResult::Failed(None)),
            (Acknowledgement::NotFound, Some(false), RemovalResult::Gone),
            (Acknowledgement::NotFound, None, RemovalResult::Gone),
            (Acknowledgement::NotFound, Some(true), RemovalResult::Failed(Some("ENOENT"))),
            (Acknowledgement::Failed(EINVAL), Some(false), RemovalResult::Gone),
            (Acknowledgement::Failed(EINVAL), Some(true), RemovalResult::Failed(Some("EINVAL"))),
            (Acknowledgement::Failed(EINVAL), None, RemovalResult::Failed(Some("EINVAL"))),
            (Acknowledgement::None, Some(false), RemovalResult::Gone),
            (Acknowledgement::None, Some(true), RemovalResult::Failed(None)),
            (Acknowledgement::None, None, RemovalResult::Failed(None)),
        ] {
            assert_eq!(outcome(answer, still_there), expected, "{answer:?}, {still_there:?}");
        }
    }

    #[test]
    fn a_failure_is_an_error_until_an_orphan_was_removed() {
        let lost = || OrphanFailure::LookUp(SourceError::Open(std::io::Error::other("no memory")));
        let remove = |responses: Vec<Result<Acknowledgement, OrphanFailure>>| {
            let (mut answers, mut warnings) = (vec![Acknowledgement::None; responses.len()], vec![]);
            let result = remove_each(responses.into_iter().zip(&mut answers), |response| response, &mut warnings);
            (result, answers, warnings)
        };
        let (result, ..) = remove(vec![Ok(Acknowledgement::NotFound), Err(lost())]);
        assert!(matches!(result, Err(SnapshotError::Source(_))), "nothing was removed: {result:?}");
        let (result, answers, warnings) =
            remove(vec![Ok(Acknowledgement::Done), Err(lost()), Ok(Acknowledgement::Done)]);
        assert!(result.is_ok(), "{result:?}");
        assert_eq!(answers, [Acknowledgement::Done, Acknowledgement::None, Acknowledgement::None]);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
    }
}
