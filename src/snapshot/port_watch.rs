//! Waits until a server could bind a port. `analysis::waiting` chooses each step, and this module executes it.

mod watched_port;

use std::io;
use std::time::Duration;

use self::watched_port::WatchedPort;
use super::error::{BadValue, SnapshotError};
use super::holders::hidden_owners;
use super::port::{PortQuestion, addresses, server_setup, single_port};
use super::{Answer, Snapshot, interrupted};
use crate::analysis::advice;
use crate::analysis::verdict;
use crate::analysis::waiting::{ROUND, WaitEnd, WaitProgress, WaitStep};
use crate::model::bind::{Attempt, BindAddr, Cause, Holder, ReuseOptions, ReuseportNote, ServerSetup};
use crate::model::facts::{Facts, Setting};
use crate::model::port::Port;
use crate::source;
use crate::sys;
use crate::sys::clock::Stopwatch;
use crate::sys::interrupt::Interrupts;

/// A port to wait for, and the longest wait.
#[derive(Clone, Debug)]
pub struct WaitQuestion {
    /// The port and the addresses.
    pub port: PortQuestion,
    /// The options that the server sets before bind().
    pub with: ReuseOptions,
    /// The longest wait. Zero means one attempt.
    pub timeout: Duration,
    /// Whether to test, after the wait, whether the bind also works without SO_REUSEADDR and SO_REUSEPORT.
    pub tries_plain: bool,
}

/// A port to wait for, with every name resolved.
#[derive(Clone, Debug)]
pub struct WaitTarget {
    /// The facts of the network namespace.
    pub facts: Facts,
    /// The port.
    pub port: Port,
    /// The addresses on which the port must be free.
    pub addrs: Vec<BindAddr>,
    /// The options that the server sets before bind().
    pub with: ReuseOptions,
    /// The other options of the server.
    pub setup: ServerSetup,
    /// The longest wait.
    pub timeout: Duration,
}

/// The state of a wait.
#[derive(Clone, Debug)]
pub struct WaitState {
    /// How the wait ended; `None` while it lasts.
    pub ended: Option<WaitEnd>,
    /// The duration of the wait so far.
    pub waited: Duration,
    /// The number of binds so far.
    pub attempts: u32,
    /// The sockets that block the port.
    pub blocked_by: Vec<Holder>,
    /// Why the binds fail.
    pub cause: Cause,
    /// If a bind fails because of the server's own sockets: the addresses that the server has open at that moment.
    pub collision: Option<String>,
    /// The longest remaining time, if only buckets block the port.
    pub remaining: Option<Duration>,
    /// How often the blocking sockets or their states have changed.
    pub changes: u32,
}

/// The result of a wait.
#[derive(Clone, Debug)]
pub struct WaitResult {
    /// The port, the addresses and the options.
    pub target: WaitTarget,
    /// The facts of the target, with the time at the end of the wait.
    pub facts: Facts,
    /// The last state.
    pub state: WaitState,
    /// The last result of each address.
    pub attempts: Vec<Attempt>,
    /// What the binds did to the kernel's note of SO_REUSEPORT on the port.
    pub note: ReuseportNote,
    /// Whether the bind works only with the options of the target; `None` if that was not tried, or could not be determined.
    pub needs_options: Option<bool>,
    /// The effective user of this process.
    pub uid: u32,
}

/// The events of a wait that an observer receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObservedEvents {
    /// Nothing.
    Nothing,
    /// The state before pauses ([`Observer::wants_change_at`]), with the exact cause. Finding the cause may need additional binds.
    Changes,
    /// The state, ten times a second. SIGINT and SIGTERM are blocked, and each is delivered after a call of [`Observer::clear`].
    Everything,
}

/// Reports the state of a wait while it lasts.
pub trait Observer: Send {
    /// The events that it wants to receive.
    fn observes(&self) -> ObservedEvents;
    /// Whether the observer wants to receive the state at this time of the wait. It is called only for [`ObservedEvents::Changes`].
    fn wants_change_at(&self, waited: Duration) -> bool;
    /// Receives the state.
    ///
    /// # Errors
    /// The state could not be written. The wait ends.
    fn observe(&mut self, target: &WaitTarget, state: &WaitState) -> io::Result<()>;
    /// Erases the output on the terminal. The wait calls this when it ends, and before a signal ends the program.
    fn clear(&mut self);
}

impl Snapshot {
    /// Waits until a server could bind the port on every address, until a bind is denied, or until the timeout, in one network
    /// namespace.
    ///
    /// # Errors
    /// See [`SnapshotError`]. A timeout or a denied bind is an answer and no error.
    pub fn wait(
        &self,
        question: &WaitQuestion,
        observer: &mut dyn Observer,
    ) -> Result<Answer<WaitResult>, SnapshotError> {
        // The signals must be blocked before another thread exists, because the kernel delivers a signal to any thread that
        // does not block it.
        let draws = observer.observes() == ObservedEvents::Everything;
        let interrupts =
            draws.then(Interrupts::block).transpose().map_err(SnapshotError::system("blocking signals"))?;
        self.kernel_namespaces()?.within_with_signals(|| {
            let facts = source::kernel_facts();
            let port = single_port(&question.port.port, &facts)?;
            if port.reserved_by_rfc() {
                let why = "for port 0 the kernel chooses a free port, so no wait is necessary";
                return Err(BadValue::new(&port, "<PORT>", why).into());
            }
            let gaps = facts.gaps(&[Setting::LocalPortRange, Setting::UnprivilegedPortStart]);
            let mut answer = Answer { complete: gaps.is_empty(), warnings: gaps, ..Answer::whole(()) };
            let addrs = addresses(&question.port, &facts, &mut answer.warnings)?;
            let WaitQuestion { with, timeout, .. } = *question;
            let setup = server_setup(&question.port.server, &facts)?;
            let mut watch = WatchedPort::new(port, &addrs, with, setup, facts.clone())?;
            let target = WaitTarget { facts, port, addrs, with, setup, timeout };
            let mut wait =
                Wait { target: &target, watch: &mut watch, observer, interrupts: interrupts.as_ref(), last: None };
            let state = wait.run();
            observer.clear();
            if let Some(interrupts) = &interrupts {
                interrupts.release();
            }
            let state = state?;
            answer.warnings.extend(watch.warnings());
            answer.warnings.extend((!watch.complete).then(interrupted));
            answer.warnings.extend(watch.note.warning().map(str::to_owned));
            answer.warnings.extend(watch.unread.clone());
            answer.warnings.extend(hidden_owners(&state.blocked_by));
            // If the source does not list every kind of socket, the answer may lack a holder. A denied bind has no holder.
            let unseen = state.ended != Some(WaitEnd::Denied)
                && state.cause == Cause::Unknown
                && !watch.bound_sockets_are_listed();
            answer.complete &= watch.complete && watch.unread.is_none() && !unseen;
            let tries_plain =
                question.tries_plain && state.ended == Some(WaitEnd::Bindable) && with != ReuseOptions::NONE;
            // An error of this bind only leaves `needs_options` unknown.
            let needs_options = tries_plain.then(|| watch.plain_bind_is_in_use().ok()).flatten();
            let WatchedPort { attempts, note, .. } = watch;
            let facts = Facts { taken_at: sys::clock::now(), ..target.facts.clone() };
            let uid = sys::capabilities::effective_user();
            Ok(answer.with(WaitResult { target, facts, state, attempts, note, needs_options, uid }))
        })
    }
}

struct Wait<'a> {
    target: &'a WaitTarget,
    watch: &'a mut WatchedPort,
    observer: &'a mut dyn Observer,
    interrupts: Option<&'a Interrupts>,
    /// The last state that the observer received, and the number of changes and binds at that time.
    last: Option<((u32, u32), WaitState)>,
}

impl Wait<'_> {
    fn run(&mut self) -> Result<WaitState, SnapshotError> {
        let clock = Stopwatch::start();
        let plain = self.target.with == ReuseOptions::NONE;
        let mut waiting = WaitProgress::new(plain, self.watch.looks_up(), self.target.timeout);
        loop {
            match waiting.next(clock.elapsed()) {
                WaitStep::Bind { every_address } => {
                    let (outcome, binds) = self.watch.bind(every_address)?;
                    waiting.report_bind(outcome, binds, clock.elapsed());
                }
                WaitStep::List => {
                    let began = clock.elapsed();
                    let (sockets, explained) = self.watch.list()?;
                    let now = clock.elapsed();
                    waiting.report_list(&sockets, explained, now.saturating_sub(began), now);
                }
                WaitStep::LookUp(socket) => {
                    let found = self.watch.look_up(&socket)?;
                    waiting.report_look_up(found, clock.elapsed());
                }
                WaitStep::Pause(pause) => self.pause(&waiting, clock, pause)?,
                WaitStep::End(ended) => {
                    let state = self.state(&waiting, Some(ended), clock.elapsed());
                    return self.with_exact_cause(state, &waiting);
                }
            }
        }
    }

    fn pause(&mut self, waiting: &WaitProgress, clock: Stopwatch, pause: Duration) -> Result<(), SnapshotError> {
        let end = clock.elapsed().saturating_add(pause);
        if self.observer.observes() == ObservedEvents::Changes && self.observer.wants_change_at(clock.elapsed()) {
            self.show(waiting, clock.elapsed())?;
        }
        loop {
            let now = clock.elapsed();
            if now >= end {
                return Ok(());
            }
            let left = end.saturating_sub(now);
            let Some(interrupts) = self.interrupts else {
                sys::clock::sleep(left);
                continue;
            };
            self.show(waiting, now)?;
            if let Some(signal) =
                interrupts.wait(left.min(ROUND)).map_err(SnapshotError::system("waiting for signals"))?
            {
                self.observer.clear();
                interrupts.deliver(signal).map_err(SnapshotError::system("delivering a signal"))?;
            }
        }
    }

    /// Determines the blocking sockets and the cause again only if they may have changed.
    fn show(&mut self, waiting: &WaitProgress, now: Duration) -> Result<(), SnapshotError> {
        let stamp = (waiting.changes(), waiting.binds());
        let state = if let Some((_, state)) = self.last.take().filter(|(then, _)| *then == stamp) {
            WaitState { waited: now, remaining: waiting.remaining(now), ..state }
        } else {
            let state = self.state(waiting, None, now);
            // A status line on a terminal does not name the cause.
            if self.observer.observes() == ObservedEvents::Changes {
                self.with_exact_cause(state, waiting)?
            } else {
                state
            }
        };
        let observed = self.observer.observe(self.target, &state);
        self.last = Some((stamp, state));
        observed.map_err(SnapshotError::Observer)
    }

    fn state(&self, waiting: &WaitProgress, ended: Option<WaitEnd>, waited: Duration) -> WaitState {
        let blocked_by = self.watch.holders(waiting.known());
        WaitState {
            ended,
            waited,
            attempts: waiting.binds().saturating_add(self.watch.extra_binds),
            cause: self.cause(&blocked_by, false),
            remaining: waiting.remaining(waited),
            collision: self.collision(),
            blocked_by,
            changes: waiting.changes(),
        }
    }

    fn collision(&self) -> Option<String> {
        let attempts = self.target.addrs.iter().filter_map(|at| self.watch.attempts.iter().find(|one| one.at == *at));
        advice::earlier_addresses(attempts, &self.target.facts).map(|(earlier, _)| earlier)
    }

    fn cause(&self, blocked_by: &[Holder], reuseaddr_works: bool) -> Cause {
        verdict::cause(&self.target.facts, self.target.port, &self.watch.attempts, blocked_by, reuseaddr_works)
    }

    /// If only buckets block the port, additional binds determine whether a bind with SO_REUSEADDR would succeed.
    fn with_exact_cause(&mut self, mut state: WaitState, waiting: &WaitProgress) -> Result<WaitState, SnapshotError> {
        if verdict::only_buckets(state.cause) {
            let works = self.watch.reuseaddr_works(waiting.changes())?;
            state.cause = self.cause(&state.blocked_by, works);
            state.attempts = waiting.binds().saturating_add(self.watch.extra_binds);
        }
        Ok(state)
    }
}
