//! `--netns` and `--all-netns`: in which network namespaces a command looks.

use std::ops::ControlFlow;
use std::sync::mpsc;
use std::thread;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};

use super::{CommandError, Context};
use crate::model::command::Shell;
use crate::model::facts::Facts;
use crate::model::netns::NetnsArg;
use crate::model::services::Services;
use crate::sys::descriptors;
use crate::sys::netns::{self, Found, OpenNetns};

/// Names are those of files, which need not be UTF-8.
fn netns_arg() -> impl TypedValueParser<Value = NetnsArg> {
    OsStringValueParser::new().try_map(NetnsArg::try_from)
}

/// For commands that look into one namespace.
#[derive(Args, Clone, Debug)]
pub struct NetnsArgs {
    /// Look into this network namespace: a name of `ip netns`, a path, or a process by its number
    #[arg(long, value_name = "NAME|PATH|PID", value_parser = netns_arg(), allow_negative_numbers = true)]
    netns: Option<NetnsArg>,
}

impl NetnsArgs {
    /// The shell that printed commands are for.
    #[must_use]
    pub fn shell(&self, context: &Context) -> Shell {
        Shell { netns: self.netns.clone(), caller: context.caller.clone() }
    }

    /// Runs the command there: what it reads, and the sockets that it makes, are that namespace's.
    ///
    /// # Errors
    /// There is no such namespace, or it cannot be entered; what the command says.
    pub fn within<T: Send>(&self, run: impl FnOnce() -> Result<T, CommandError> + Send) -> Result<T, CommandError> {
        match &self.netns {
            None => run(),
            Some(arg) => netns::within(&netns::open(arg)?, run)?,
        }
    }
}

/// For commands that may look into several.
#[derive(Args, Clone, Debug)]
pub struct ManyNetnsArgs {
    /// Look into this network namespace: a name of `ip netns`, a path, or a process by its number; repeat for more
    #[arg(
        long,
        value_name = "NAME|PATH|PID",
        value_parser = netns_arg(),
        allow_negative_numbers = true,
        conflicts_with = "replay"
    )]
    netns: Vec<NetnsArg>,
    /// Look into every network namespace that /proc/PID/ns/net and /run/netns show
    #[arg(long, conflicts_with_all = ["netns", "record", "replay"])]
    all_netns: bool,
}

/// Where to look.
pub enum Where {
    /// Where twtool runs.
    Here,
    /// In this one.
    In(OpenNetns),
    /// In all of these.
    Among(Found),
}

impl ManyNetnsArgs {
    /// The shell that printed commands are for; `None` where the answer may be about several namespaces.
    #[must_use]
    pub fn shell(&self, context: &Context) -> Option<Shell> {
        (!self.several()).then(|| Shell { netns: self.netns.first().cloned(), caller: context.caller.clone() })
    }

    /// Whether the answer may be about more than one.
    #[must_use]
    pub fn several(&self) -> bool {
        self.all_netns || self.netns.len() > 1
    }

    /// Refuses several where a flag, if it was given, is about one.
    ///
    /// # Errors
    /// Several may be asked for, and the flag was given.
    pub fn one_with(&self, flag: &str, given: bool) -> Result<(), CommandError> {
        if given && self.several() {
            return Err(CommandError::Usage(format!("'{flag}' is about one network namespace; give one '--netns'")));
        }
        Ok(())
    }

    /// Finds them, each once, whatever it was called.
    ///
    /// # Errors
    /// One that was asked for by name is not there.
    pub fn find(&self) -> Result<Where, CommandError> {
        if self.all_netns {
            return Ok(Where::Among(netns::all()));
        }
        let mut namespaces: Vec<OpenNetns> = vec![];
        for arg in &self.netns {
            let opened = netns::open(arg)?;
            if namespaces.iter().all(|other| other.netns.id != opened.netns.id) {
                namespaces.push(opened);
            }
        }
        Ok(match namespaces.len() {
            0 => Where::Here,
            1 => namespaces.pop().map_or(Where::Here, Where::In),
            _ => Where::Among(Found { namespaces, unseen: vec![] }),
        })
    }
}

/// Takes what a namespace has; told to break, it wants no more.
pub(super) type HandOver<'a, R> = dyn FnMut(R) -> ControlFlow<()> + Send + 'a;

/// What several say together, where some may refuse.
pub(super) struct Heard {
    complete: bool,
    warnings: Vec<String>,
    answered: bool,
    refused: Option<CommandError>,
}

impl Heard {
    /// Nobody yet; those that could not be found are missing.
    pub(super) fn new(found: &Found) -> Self {
        Self { complete: found.unseen.is_empty(), warnings: found.unseen.clone(), answered: false, refused: None }
    }

    /// Hears one: its answer, if it gives one.
    pub(super) fn hear<T>(&mut self, netns: &OpenNetns, answer: Result<T, CommandError>) -> Option<T> {
        match answer {
            Ok(answer) => {
                self.answered = true;
                Some(answer)
            }
            // It went after it had been found, and its sockets with it.
            Err(CommandError::Netns(error)) if error.is_gone() => None,
            Err(error) => {
                self.complete = false;
                self.warnings.push(match &error {
                    CommandError::Netns(error) => error.to_string(),
                    error => of(netns, &error.to_string()),
                });
                self.refused.get_or_insert(error);
                None
            }
        }
    }

    /// Whether one of them was complete, and what it warned of.
    pub(super) fn told(&mut self, netns: &OpenNetns, complete: bool, warnings: impl IntoIterator<Item = String>) {
        self.complete &= complete;
        self.warnings.extend(warnings.into_iter().map(|warning| of(netns, &warning)));
    }

    /// Whether all were complete, and what is to be said of them.
    ///
    /// # Errors
    /// The first one's, where none answers: then it is what was typed, or it holds for all of them.
    pub(super) fn end(self) -> Result<(bool, Vec<String>), CommandError> {
        match self.refused {
            Some(error) if !self.answered => Err(error),
            _ => Ok((self.complete, self.warnings)),
        }
    }
}

/// What is said of all of them: the first one's facts, of the time when reading began; where there may be several, of no
/// namespace, and with service names only where all have the same.
pub(super) fn joint(facts: &[Facts], several: bool) -> Facts {
    let mut joint = facts[0].clone();
    if several {
        joint.netns = None;
        joint.netns_name = None;
        joint.taken_at = facts.iter().map(|facts| facts.taken_at).min().unwrap_or(joint.taken_at);
        if facts.iter().any(|facts| facts.services != joint.services) {
            joint.services = Services::default();
        }
    }
    joint
}

/// What is said of one of several.
pub(super) fn of(netns: &OpenNetns, warning: &str) -> String {
    format!("network namespace '{}': {warning}", netns.netns)
}

/// Does the work on every core, and hands over the pieces that come of it in the order of the items, until told to stop.
/// Memory is bounded: a core is at most a few pieces ahead.
pub(super) fn in_order<T: Sync, R: Send>(
    items: &[T],
    work: &(impl Fn(&T, &mut HandOver<R>) + Sync),
    each: &mut dyn FnMut(&T, R) -> ControlFlow<()>,
) {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let workers = cores.min(items.len()).min(descriptors::workers());
    thread::scope(|scope| {
        // Each worker takes every n-th item, and ends it with None; taking their pieces in turn gives them back in order.
        // What a worker that could not be started had to do is done here.
        let pieces: Vec<Option<mpsc::Receiver<Option<R>>>> = (0..workers)
            .map(|worker| {
                let (sender, receiver) = mpsc::sync_channel(2);
                // Nobody listens any more where it is enough.
                let hand_over = move |piece| {
                    if sender.send(piece).is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                };
                let take = move || {
                    for item in items.iter().skip(worker).step_by(workers) {
                        work(item, &mut |piece| hand_over(Some(piece)));
                        if hand_over(None).is_break() {
                            return;
                        }
                    }
                };
                thread::Builder::new().spawn_scoped(scope, take).is_ok().then_some(receiver)
            })
            .collect();
        for (i, item) in items.iter().enumerate() {
            let flow = if let Some(receiver) = &pieces[i % workers] {
                hear_out(receiver, item, each)
            } else {
                let mut here = vec![];
                work(item, &mut |piece| {
                    here.push(piece);
                    ControlFlow::Continue(())
                });
                here.into_iter().try_for_each(|piece| each(item, piece))
            };
            if flow.is_break() {
                return;
            }
        }
    });
}

/// Hands over what a worker has of an item.
fn hear_out<T, R>(
    receiver: &mpsc::Receiver<Option<R>>,
    item: &T,
    each: &mut dyn FnMut(&T, R) -> ControlFlow<()>,
) -> ControlFlow<()> {
    loop {
        match receiver.recv() {
            Ok(Some(piece)) => each(item, piece)?,
            Ok(None) => return ControlFlow::Continue(()),
            // A worker that panicked has nothing more; the scope says so.
            Err(_) => return ControlFlow::Break(()),
        }
    }
}
