//! In which network namespaces a question is answered, and how several answers become one.

use std::ops::ControlFlow;
use std::thread;

use super::error::SnapshotError;
use super::{Answer, PassOn};
use crate::model::facts::Facts;
use crate::model::netns::{Netns, NetnsArg};
use crate::model::services::Services;
use crate::parallel;
use crate::sys::descriptors;
use crate::sys::interrupt::Held;
use crate::sys::netns::{self, OpenNetns};

/// The network namespaces that a question is about.
#[derive(Debug)]
pub struct Namespaces(Which);

#[derive(Debug)]
enum Which {
    Own,
    One(OpenNetns),
    /// Each once, and a sentence for each that may be missing.
    Several(Vec<OpenNetns>, Vec<String>),
}

impl Namespaces {
    /// The namespace of the calling thread.
    #[must_use]
    pub const fn own() -> Self {
        Self(Which::Own)
    }

    /// The namespaces that were named, each once; the caller's own if there is none.
    ///
    /// # Errors
    /// One of them does not exist or cannot be opened.
    pub fn named(names: &[NetnsArg]) -> Result<Self, SnapshotError> {
        let mut namespaces: Vec<OpenNetns> = vec![];
        for name in names {
            let opened = netns::open(name)?;
            if namespaces.iter().all(|other| other.netns.id != opened.netns.id) {
                namespaces.push(opened);
            }
        }
        Ok(Self(match namespaces.len() {
            0 => Which::Own,
            1 => namespaces.pop().map_or(Which::Own, Which::One),
            _ => Which::Several(namespaces, vec![]),
        }))
    }

    /// Every namespace that /run/netns and the processes of /proc show.
    #[must_use]
    pub fn all() -> Self {
        let netns::Found { namespaces, unseen } = netns::all();
        Self(Which::Several(namespaces, unseen))
    }

    /// Whether the question is about more than one.
    #[must_use]
    pub const fn are_several(&self) -> bool {
        matches!(self.0, Which::Several(..))
    }

    /// Each of them as the only one, for a question that has one answer for each.
    pub fn each(self) -> impl Iterator<Item = Self> {
        let (first, others) = match self.0 {
            Which::Several(namespaces, _) => (None, namespaces),
            one => (Some(Self(one)), vec![]),
        };
        first.into_iter().chain(others.into_iter().map(|netns| Self(Which::One(netns))))
    }

    /// Runs something in the only namespace: what it reads and the sockets that it makes are those of that namespace.
    ///
    /// # Errors
    /// The namespace cannot be entered, or there are several.
    pub fn within<T: Send, E: From<SnapshotError> + Send>(
        &self,
        run: impl FnOnce() -> Result<T, E> + Send,
    ) -> Result<T, E> {
        match &self.0 {
            Which::Own => run(),
            Which::One(netns) => netns::within(netns, run).map_err(SnapshotError::from)?,
            Which::Several(..) => Err(SnapshotError::OneNamespace.into()),
        }
    }

    /// The same with all signals held back in the calling thread, so that the thread in the namespace alone decides when they
    /// are delivered: a bind that must be cleaned up holds them back for microseconds (`sys::bind`).
    ///
    /// # Errors
    /// As [`Self::within`].
    pub fn within_with_signals<T: Send, E: From<SnapshotError> + Send>(
        &self,
        run: impl FnOnce() -> Result<T, E> + Send,
    ) -> Result<T, E> {
        let held = Held::all();
        self.within(|| {
            held.release();
            run()
        })
    }

    /// Asks in each of them, on as many threads as there are cores, and passes the pieces to `each` in the order of the
    /// namespaces until it wants no more. `ask` runs on a thread that is in the namespace; its number counts from 0.
    ///
    /// If some namespaces give no answer, a warning names each of them and the answer is incomplete.
    ///
    /// # Errors
    /// The first namespace's, if none gives an answer: then the cause is the question, or is the same in all of them.
    pub(super) fn ask<P: Send>(
        &self,
        ask: &(impl Fn(u32, &mut PassOn<P>) -> Result<Answer<()>, SnapshotError> + Sync),
        each: &mut PassOn<P>,
    ) -> Result<Answer<()>, SnapshotError> {
        let (namespaces, unseen) = match &self.0 {
            Which::Own => return ask(0, each),
            Which::One(netns) => return netns::within(netns, || ask(0, each))?,
            Which::Several(namespaces, unseen) => (namespaces, unseen),
        };
        let mut merge = Merge::new(unseen);
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let numbered: Vec<(u32, &OpenNetns)> = (0..).zip(namespaces).collect();
        let work = |(number, netns): &(u32, &OpenNetns), pass_on: &mut PassOn<Piece<P>>| {
            let mut number_piece = |piece| pass_on(Piece::Part(piece));
            let answer = netns::within(netns, || ask(*number, &mut number_piece));
            let _ = pass_on(Piece::End(*number, answer.unwrap_or_else(|error| Err(error.into()))));
        };
        parallel::in_order_on_new_threads(
            &numbered,
            cores.min(descriptors::workers()),
            &work,
            &mut |piece| match piece {
                Piece::Part(part) => each(part),
                Piece::End(number, answer) => {
                    merge.add(&namespaces[number as usize], answer);
                    ControlFlow::Continue(())
                }
            },
        );
        merge.end()
    }
}

/// What comes from a namespace.
enum Piece<P> {
    Part(P),
    /// Its number, and its answer after the last part.
    End(u32, Result<Answer<()>, SnapshotError>),
}

/// The merged warnings and completeness of several answers.
struct Merge {
    answer: Answer<()>,
    /// Whether any namespace has answered.
    answered: bool,
    first_error: Option<SnapshotError>,
}

impl Merge {
    fn new(unseen: &[String]) -> Self {
        let answer = Answer { complete: unseen.is_empty(), warnings: unseen.to_owned(), ..Answer::whole(()) };
        Self { answer, answered: false, first_error: None }
    }

    fn add(&mut self, netns: &OpenNetns, answer: Result<Answer<()>, SnapshotError>) {
        match answer {
            Ok(answer) => {
                self.answer.complete &= answer.complete;
                // The words are the same in each namespace.
                if !self.answered {
                    self.answer.about_words = answer.about_words;
                }
                self.answered = true;
                self.answer.warnings.extend(answer.warnings.iter().map(|warning| located(&netns.netns, warning)));
            }
            // It ended after it had been found, and its sockets with it.
            Err(SnapshotError::Netns(error)) if error.is_gone() => {}
            Err(error) => {
                self.answer.complete = false;
                self.answer.warnings.push(match &error {
                    SnapshotError::Netns(error) => error.to_string(),
                    error => located(&netns.netns, &error.to_string()),
                });
                self.first_error.get_or_insert(error);
            }
        }
    }

    fn end(self) -> Result<Answer<()>, SnapshotError> {
        match self.first_error {
            Some(error) if !self.answered => Err(error),
            _ => Ok(self.answer),
        }
    }
}

/// A sentence about one of several namespaces.
fn located(netns: &Netns, sentence: &str) -> String {
    format!("network namespace '{netns}': {sentence}")
}

/// The same for the namespace of these facts.
pub(super) fn located_by_facts(facts: &Facts, sentence: &str) -> String {
    let name = facts.netns_name.clone().or_else(|| facts.netns.map(|inode| format!("net:[{inode}]")));
    format!("network namespace '{}': {sentence}", name.unwrap_or_else(|| "unknown".into()))
}

/// Merges the facts of several namespaces: the first one's, from the time when reading began. Of `several`, fields that name
/// one namespace become unknown, and service names remain only if all have the same.
#[must_use]
pub fn merged_facts(facts: &[Facts], several: bool) -> Facts {
    let mut merged = facts[0].clone();
    if several {
        merged.netns = None;
        merged.netns_name = None;
        merged.taken_at = facts.iter().map(|facts| facts.taken_at).min().unwrap_or(merged.taken_at);
        if facts.iter().any(|facts| facts.services != merged.services) {
            merged.services = Services::default();
        }
    }
    merged
}
