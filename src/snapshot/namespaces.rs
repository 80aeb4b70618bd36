//! Asks a question in one or several network namespaces, and merges the answers.

use std::ops::ControlFlow;
use std::thread;

use super::error::SnapshotError;
use super::{Answer, PassOn};
use crate::model::container::ContainerArg;
use crate::model::facts::Facts;
use crate::model::netns::{Netns, NetnsArg};
use crate::model::services::Services;
use crate::parallel;
use crate::sys::descriptors;
use crate::sys::interrupt::BlockedSignals;
use crate::sys::netns::{self, OpenNetns};

/// The network namespaces that a question is about.
#[derive(Debug)]
pub struct Namespaces(NamespaceChoice);

#[derive(Debug)]
enum NamespaceChoice {
    Own,
    One(OpenNetns),
    /// Each namespace once, and sentences about namespaces that may be missing.
    Several(Vec<OpenNetns>, Vec<String>),
}

impl Namespaces {
    /// The namespace of the calling thread.
    #[must_use]
    pub const fn own() -> Self {
        Self(NamespaceChoice::Own)
    }

    /// The named namespaces, each once. If `names` is empty, this is the namespace of the calling thread.
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
            0 => NamespaceChoice::Own,
            1 => namespaces.pop().map_or(NamespaceChoice::Own, NamespaceChoice::One),
            _ => NamespaceChoice::Several(namespaces, vec![]),
        }))
    }

    /// Converts a container to the argument for its network namespace. The container is found through the cgroups of its processes.
    ///
    /// # Errors
    /// No container with this id has a process, or several containers match it.
    pub fn container(container: &ContainerArg) -> Result<NetnsArg, SnapshotError> {
        Ok(NetnsArg::Container(container.clone(), netns::process_of_container(container)?))
    }

    /// Every namespace that /run/netns and the processes of /proc show.
    #[must_use]
    pub fn all() -> Self {
        let netns::NetnsList { namespaces, unseen } = netns::all();
        Self(NamespaceChoice::Several(namespaces, unseen))
    }

    /// Whether the question is about several namespaces, or about all.
    #[must_use]
    pub const fn are_several(&self) -> bool {
        matches!(self.0, NamespaceChoice::Several(..))
    }

    /// The inode numbers of the namespaces.
    ///
    /// # Errors
    /// /proc does not show the caller's own namespace.
    #[cfg(feature = "trace")]
    pub fn inodes(&self) -> Result<Vec<u64>, SnapshotError> {
        match &self.0 {
            NamespaceChoice::Own => match netns::current() {
                Ok(Some(own)) => Ok(vec![own.id.inode]),
                Ok(None) => Err(SnapshotError::NoNamespace(vec!["/proc does not show the namespace of twtool".into()])),
                Err(error) => Err(SnapshotError::NoNamespace(vec![error.to_string()])),
            },
            NamespaceChoice::One(one) => Ok(vec![one.netns.id.inode]),
            NamespaceChoice::Several(namespaces, _) => {
                Ok(namespaces.iter().map(|netns| netns.netns.id.inode).collect())
            }
        }
    }

    /// Splits the value into one value per namespace, for a question that needs a separate answer for each.
    pub fn each(self) -> impl Iterator<Item = Self> {
        let (first, others) = match self.0 {
            NamespaceChoice::Several(namespaces, _) => (None, namespaces),
            one => (Some(Self(one)), vec![]),
        };
        first.into_iter().chain(others.into_iter().map(|netns| Self(NamespaceChoice::One(netns))))
    }

    /// Runs a function in the namespace, which must be the only one. For the function, /proc/thread-self/net and /proc/sys/net are
    /// those of the namespace, and the sockets that it opens are in the namespace.
    ///
    /// # Errors
    /// The namespace cannot be entered, or there are several.
    pub fn within<T: Send, E: From<SnapshotError> + Send>(
        &self,
        run: impl FnOnce() -> Result<T, E> + Send,
    ) -> Result<T, E> {
        match &self.0 {
            NamespaceChoice::Own => run(),
            NamespaceChoice::One(netns) => netns::within(netns, run).map_err(SnapshotError::from)?,
            NamespaceChoice::Several(..) => Err(SnapshotError::OneNamespace.into()),
        }
    }

    /// Runs a function like [`Self::within`], but blocks all signals in the calling thread, so that only the thread in the
    /// namespace receives them. That thread can then delay them for the microseconds in which it cleans up after a bind
    /// (`sys::bind`).
    ///
    /// # Errors
    /// See [`Self::within`].
    pub fn within_with_signals<T: Send, E: From<SnapshotError> + Send>(
        &self,
        run: impl FnOnce() -> Result<T, E> + Send,
    ) -> Result<T, E> {
        let blocked = BlockedSignals::block_all();
        self.within(|| {
            blocked.release();
            run()
        })
    }

    /// Runs `ask` in each namespace, on at most as many threads as there are cores, and passes the pieces to `each` in the order of the
    /// namespaces, until `each` breaks. `ask` gets the number of its namespace, from 0, and runs on a thread in it.
    ///
    /// If some namespaces fail, a warning names each of them and the answer is incomplete. A namespace that has ended does not count.
    ///
    /// # Errors
    /// Returns the first error if some namespace failed and none gave an answer.
    pub(super) fn ask<P: Send>(
        &self,
        ask: &(impl Fn(u32, &mut PassOn<P>) -> Result<Answer<()>, SnapshotError> + Sync),
        each: &mut PassOn<P>,
    ) -> Result<Answer<()>, SnapshotError> {
        let (namespaces, unseen) = match &self.0 {
            NamespaceChoice::Own => return ask(0, each),
            NamespaceChoice::One(netns) => return netns::within(netns, || ask(0, each))?,
            NamespaceChoice::Several(namespaces, unseen) => (namespaces, unseen),
        };
        let mut merge = MergedAnswer::new(unseen);
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let numbered: Vec<(u32, &OpenNetns)> = (0..).zip(namespaces).collect();
        let work = |(number, netns): &(u32, &OpenNetns), pass_on: &mut PassOn<AnswerPiece<P>>| {
            let mut number_piece = |piece| pass_on(AnswerPiece::Part(piece));
            let answer = netns::within(netns, || ask(*number, &mut number_piece));
            let _ = pass_on(AnswerPiece::End(*number, answer.unwrap_or_else(|error| Err(error.into()))));
        };
        parallel::in_order_on_new_threads(
            &numbered,
            cores.min(descriptors::workers()),
            &work,
            &mut |piece| match piece {
                AnswerPiece::Part(part) => {
                    // If `each` breaks, the `End` of this namespace does not arrive. So a `Part` already counts as an answer.
                    merge.answered = true;
                    each(part)
                }
                AnswerPiece::End(number, answer) => {
                    merge.add(&namespaces[number as usize], answer);
                    ControlFlow::Continue(())
                }
            },
        );
        merge.end()
    }
}

enum AnswerPiece<P> {
    Part(P),
    /// The number of the namespace, and its answer, after the last part.
    End(u32, Result<Answer<()>, SnapshotError>),
}

struct MergedAnswer {
    answer: Answer<()>,
    answered: bool,
    first_error: Option<SnapshotError>,
}

impl MergedAnswer {
    fn new(unseen: &[String]) -> Self {
        let answer = Answer { complete: unseen.is_empty(), warnings: unseen.to_owned(), ..Answer::whole(()) };
        Self { answer, answered: false, first_error: None }
    }

    fn add(&mut self, netns: &OpenNetns, answer: Result<Answer<()>, SnapshotError>) {
        match answer {
            Ok(answer) => {
                self.answer.complete &= answer.complete;
                // The question is the same for every namespace, so each warning about its text is kept once.
                for warning in answer.filter_warnings {
                    if !self.answer.filter_warnings.contains(&warning) {
                        self.answer.filter_warnings.push(warning);
                    }
                }
                self.answered = true;
                self.answer
                    .warnings
                    .extend(answer.warnings.iter().map(|warning| with_namespace(&netns.netns, warning)));
            }
            // The namespace has ended with its sockets, so nothing is missing.
            Err(SnapshotError::Netns(error)) if error.is_gone() => {}
            Err(error) => {
                self.answer.complete = false;
                self.answer.warnings.push(match &error {
                    SnapshotError::Netns(error) => error.to_string(),
                    error => with_namespace(&netns.netns, &error.to_string()),
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

fn with_namespace(netns: &Netns, sentence: &str) -> String {
    format!("network namespace '{netns}': {sentence}")
}

/// Adds to a sentence the name of the namespace in which the facts were read.
pub(super) fn located_by_facts(facts: &Facts, sentence: &str) -> String {
    let name = facts.netns_name.clone().or_else(|| facts.netns.map(|inode| format!("net:[{inode}]")));
    format!("network namespace '{}': {sentence}", name.unwrap_or_else(|| "unknown".into()))
}

/// Merges the facts of several namespaces. The result has the earliest time. If the question is about `several`, the
/// fields that name one namespace become unknown, and service names remain only if they are the same in all. All other
/// fields come from the first namespace.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_about_the_arguments_is_kept_once() {
        let own = || netns::open(&NetnsArg::Path("/proc/self/ns/net".into())).expect("it can be opened");
        let namespaces = Namespaces(NamespaceChoice::Several(vec![own(), own()], vec![]));
        let ask = |number, pass_on: &mut PassOn<u32>| {
            let _ = pass_on(number);
            Ok(Answer { filter_warnings: vec!["left to right".into()], ..Answer::whole(()) })
        };
        let answer = namespaces.ask(&ask, &mut |_| ControlFlow::Continue(())).expect("both answer");
        assert_eq!(answer.filter_warnings, ["left to right"]);
    }

    #[test]
    fn a_break_after_the_first_piece_is_an_answer_even_if_another_namespace_fails() {
        let own = || netns::open(&NetnsArg::Path("/proc/self/ns/net".into())).expect("it can be opened");
        let namespaces = Namespaces(NamespaceChoice::Several(vec![own(), own()], vec![]));
        let ask = |number, pass_on: &mut PassOn<u32>| {
            if number == 0 {
                return Err(SnapshotError::OneNamespace);
            }
            let _ = pass_on(number);
            Ok(Answer::whole(()))
        };
        let answer = namespaces.ask(&ask, &mut |_| ControlFlow::Break(())).expect("the second one answers");
        assert!(!answer.complete);
        assert_eq!(answer.warnings.len(), 1, "{:?}", answer.warnings);
        namespaces
            .ask(&|_, _: &mut PassOn<u32>| Err(SnapshotError::OneNamespace), &mut |_| ControlFlow::Break(()))
            .expect_err("none answers");
    }
}
