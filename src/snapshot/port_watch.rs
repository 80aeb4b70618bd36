//! Waits until a server could bind a port. `analysis::waiting` decides what to do next; this file does it: binds on the
//! addresses, lists the sockets in the way, looks up one of them, or lets time pass while an observer reports the state.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::num::NonZeroU32;
use std::time::Duration;

use super::error::{BadValue, SnapshotError};
use super::port::{self, PortQuestion, PortSockets, addresses, hidden_owners, single_port, sockets_on};
use super::{Answer, Snapshot, interrupted};
use crate::analysis::conflict::{self, Obstacles};
use crate::analysis::verdict;
use crate::analysis::waiting::{self, Bound, Ended, SocketKey, ROUND, WaitStep, Waiting};
use crate::model::bind::{Attempt, BindAddr, CallResult, Cause, Errno, Holder, ReuseOptions, ReuseportNote};
use crate::model::facts::{Facts, Setting};
use crate::model::port::Port;
use crate::model::process::Owners;
use crate::model::socket::Socket;
use crate::source::{self, Choice, Source};
use crate::sys;
use crate::sys::clock::Stopwatch;
use crate::sys::interrupt::Interrupts;

/// What is waited for, and how long.
#[derive(Clone, Debug)]
pub struct WaitQuestion {
    /// The port and the addresses.
    pub port: PortQuestion,
    /// What the server sets before bind().
    pub with: ReuseOptions,
    /// The longest wait; zero: one attempt.
    pub timeout: Duration,
}

/// The same with every name resolved.
#[derive(Clone, Debug)]
pub struct WaitTarget {
    /// The facts of the network namespace.
    pub facts: Facts,
    /// The port.
    pub port: Port,
    /// Where it must be bindable.
    pub addrs: Vec<BindAddr>,
    /// What the server sets before bind().
    pub with: ReuseOptions,
    /// The longest wait.
    pub timeout: Duration,
}

/// The state of a wait.
#[derive(Clone, Debug)]
pub struct WaitState {
    /// How it ended; `None`: it goes on.
    pub ended: Option<Ended>,
    /// How long it has lasted.
    pub waited: Duration,
    /// Binds made.
    pub attempts: u32,
    /// The sockets in the way.
    pub blocked_by: Vec<Holder>,
    /// Why the binds fail.
    pub cause: Cause,
    /// What is left of the longest timer, if only buckets are in the way.
    pub remaining: Option<Duration>,
    /// How often the sockets in the way have changed.
    pub changes: u32,
}

/// The end of a wait.
#[derive(Clone, Debug)]
pub struct Waited {
    /// What was waited for.
    pub target: WaitTarget,
    /// The facts at the end.
    pub facts: Facts,
    /// The last state.
    pub state: WaitState,
    /// The last result of each address.
    pub attempts: Vec<Attempt>,
    /// What the binds did to the kernel's note of SO_REUSEPORT of a server on the port.
    pub note: ReuseportNote,
    /// The effective user of this process.
    pub uid: u32,
}

/// What an observer wants to see during a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observes {
    /// Nothing.
    Nothing,
    /// Each change, with the exact cause, which may take one more bind.
    Changes,
    /// The state, ten times a second. SIGINT and SIGTERM come only after [`Observer::clear`].
    Everything,
}

/// Reports the state of a wait while it lasts.
pub trait Observer: Send {
    /// What it wants to see.
    fn observes(&self) -> Observes;
    /// Whether it wants to see a change now.
    fn wants_change_at(&self, waited: Duration) -> bool;
    /// Sees the state.
    ///
    /// # Errors
    /// The state could not be written. The wait ends.
    fn observe(&mut self, target: &WaitTarget, state: &WaitState) -> io::Result<()>;
    /// Removes what it has drawn, because the wait or the program ends.
    fn clear(&mut self);
}

impl Snapshot {
    /// Waits until a server could bind the port on every address, in one network namespace. The end is proved by a bind.
    ///
    /// # Errors
    /// See [`SnapshotError`]. That the time is over, or that the bind is denied, is an answer.
    pub fn wait(&self, question: &WaitQuestion, observer: &mut dyn Observer) -> Result<Answer<Waited>, SnapshotError> {
        // Before there is another thread, because a signal goes to any thread that does not block it.
        let draws = observer.observes() == Observes::Everything;
        let interrupts = draws.then(Interrupts::hold).transpose().map_err(SnapshotError::Observer)?;
        self.namespaces.within_with_signals(|| {
            let facts = source::kernel_facts();
            let port = single_port(&question.port.port, &facts)?;
            if port.reserved_by_rfc() {
                let why = "the kernel chooses a free port for 0: there is nothing to wait for";
                return Err(BadValue::new(&port, "<PORT>", why).into());
            }
            let gaps = facts.gaps(&[Setting::LocalPortRange, Setting::UnprivilegedPortStart]);
            let mut answer = Answer { complete: gaps.is_empty(), warnings: gaps, ..Answer::whole(()) };
            let addrs = addresses(&question.port, &facts, &mut answer.warnings)?;
            let WaitQuestion { with, timeout, .. } = *question;
            let mut watch = Watch::new(port, &addrs, with)?;
            let target = WaitTarget { facts, port, addrs, with, timeout };
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
            // If the source cannot show every holder, the answer may lack one.
            let unseen = state.cause == Cause::Unknown && !watch.bound_sockets_are_listed();
            answer.complete &= watch.complete && watch.unread.is_none() && !unseen;
            let Watch { attempts, note, .. } = watch;
            let facts = Facts { taken_at: sys::clock::now(), ..target.facts.clone() };
            let uid = sys::capabilities::effective_user();
            Ok(answer.with(Waited { target, facts, state, attempts, note, uid }))
        })
    }
}

/// A wait while it lasts.
struct Wait<'a> {
    target: &'a WaitTarget,
    watch: &'a mut Watch,
    observer: &'a mut dyn Observer,
    interrupts: Option<&'a Interrupts>,
    /// The last state, and the number of changes and binds by then.
    last: Option<((u32, u32), WaitState)>,
}

impl Wait<'_> {
    fn run(&mut self) -> Result<WaitState, SnapshotError> {
        let clock = Stopwatch::start();
        let plain = self.target.with == ReuseOptions::NONE;
        let mut waiting = Waiting::new(plain, self.watch.looks_up(), self.target.timeout);
        loop {
            match waiting.next(clock.elapsed()) {
                WaitStep::Bind { every_address } => {
                    let (bound, binds) = self.watch.bind(every_address)?;
                    waiting.bound(bound, binds, clock.elapsed());
                }
                WaitStep::List => {
                    let began = clock.elapsed();
                    let (sockets, explained) = self.watch.list()?;
                    let now = clock.elapsed();
                    waiting.listed(&sockets, explained, now.saturating_sub(began), now);
                }
                WaitStep::LookUp(socket) => {
                    let found = self.watch.look_up(&socket)?;
                    waiting.looked_up(found, clock.elapsed());
                }
                WaitStep::Pause(pause) => self.pause(&waiting, clock, pause)?,
                WaitStep::End(ended) => {
                    let state = self.state(&waiting, Some(ended), clock.elapsed());
                    return self.with_exact_cause(state, &waiting);
                }
            }
        }
    }

    /// Lets time pass, and shows the observer what it wants to see.
    fn pause(&mut self, waiting: &Waiting, clock: Stopwatch, pause: Duration) -> Result<(), SnapshotError> {
        let end = clock.elapsed().saturating_add(pause);
        if self.observer.observes() == Observes::Changes && self.observer.wants_change_at(clock.elapsed()) {
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
            if let Some(signal) = interrupts.wait(left.min(ROUND)).map_err(SnapshotError::Observer)? {
                self.observer.clear();
                interrupts.let_through(signal).map_err(SnapshotError::Observer)?;
            }
        }
    }

    /// Shows the state to the observer. The holders and the cause are found again only if they may have changed.
    fn show(&mut self, waiting: &Waiting, now: Duration) -> Result<(), SnapshotError> {
        let stamp = (waiting.changes(), waiting.binds());
        let state = if let Some((_, state)) = self.last.take().filter(|(then, _)| *then == stamp) {
            WaitState { waited: now, remaining: waiting.remaining(now), ..state }
        } else {
            let state = self.state(waiting, None, now);
            // A line on a terminal does not name the cause.
            if self.observer.observes() == Observes::Changes { self.with_exact_cause(state, waiting)? } else { state }
        };
        let observed = self.observer.observe(self.target, &state);
        self.last = Some((stamp, state));
        observed.map_err(SnapshotError::Observer)
    }

    fn state(&self, waiting: &Waiting, ended: Option<Ended>, waited: Duration) -> WaitState {
        let blocked_by = self.watch.holders(waiting.known());
        WaitState {
            ended,
            waited,
            attempts: waiting.binds().saturating_add(self.watch.extra_binds),
            cause: self.cause(&blocked_by, false),
            remaining: waiting.remaining(waited),
            blocked_by,
            changes: waiting.changes(),
        }
    }

    fn cause(&self, blocked_by: &[Holder], reuseaddr_works: bool) -> Cause {
        verdict::cause(&self.target.facts, self.target.port, &self.watch.attempts, blocked_by, reuseaddr_works)
    }

    /// If only buckets are in the way, one more bind finds out whether SO_REUSEADDR gets past them.
    fn with_exact_cause(&mut self, mut state: WaitState, waiting: &Waiting) -> Result<WaitState, SnapshotError> {
        if verdict::only_buckets(state.cause) {
            let works = self.watch.reuseaddr_works(waiting.changes())?;
            state.cause = self.cause(&state.blocked_by, works);
            state.attempts = waiting.binds().saturating_add(self.watch.extra_binds);
        }
        Ok(state)
    }
}

/// The port on its addresses, and what was last seen there.
struct Watch {
    port: Port,
    with: ReuseOptions,
    source: Source,
    /// The last result of each address, in the order in which they are tried.
    attempts: Vec<Attempt>,
    addrs: Vec<BindAddr>,
    /// The address that failed last.
    failing: Option<BindAddr>,
    /// Whether a bind was made since the sockets were last listed.
    tried: bool,
    holders: HashMap<SocketKey, Holder>,
    /// Whether the last list was complete.
    complete: bool,
    /// The last result of [`Self::reuseaddr_works`], and the number of changes by then.
    reuseaddr: Option<(u32, bool)>,
    /// Binds made to name a cause.
    extra_binds: u32,
    /// What the binds did to the note of SO_REUSEPORT of a server on the port.
    note: ReuseportNote,
    /// Why holders may be missing from the last list.
    unread: Option<String>,
}

impl Watch {
    /// Watches the port on these addresses for a server with these options.
    fn new(port: Port, addrs: &[BindAddr], with: ReuseOptions) -> Result<Self, SnapshotError> {
        // IPv6 first, for the reason given at `sys::bind::attempts`.
        let (mut order, ipv4) = addrs.iter().copied().partition::<Vec<_>, _>(|at| at.addr.is_ipv6());
        order.extend(ipv4);
        Ok(Self {
            port,
            with,
            source: Source::kernel(Choice::Auto)?,
            attempts: vec![],
            addrs: order,
            failing: None,
            tried: false,
            holders: HashMap::new(),
            complete: true,
            reuseaddr: None,
            extra_binds: 0,
            note: ReuseportNote::Kept,
            unread: None,
        })
    }

    /// Whether one socket can be looked up.
    const fn looks_up(&self) -> bool {
        self.source.looks_up()
    }

    /// Whether the source lists sockets that are bound and do not listen.
    fn bound_sockets_are_listed(&self) -> bool {
        self.source.lists_bound_sockets()
    }

    /// What the source does not report.
    fn warnings(&self) -> Vec<String> {
        self.source.warnings_where_processes_are_searched()
    }

    /// Binds, and counts the binds. Unless `every_address` is asked for, the first failure ends the round, and the address
    /// that failed last comes first: as long as that fails one bind is enough.
    fn bind(&mut self, every_address: bool) -> Result<(Bound, u32), SnapshotError> {
        self.tried = true;
        let mut round = vec![];
        if let Some(at) = self.failing.filter(|_| !every_address) {
            round.push(self.attempt(at)?);
        }
        let fails = |round: &[Attempt]| round.iter().any(|attempt| attempt.bind != CallResult::Ok);
        if !fails(&round) {
            for at in self.addrs.clone() {
                round.push(self.attempt(at)?);
                if fails(&round) && !every_address {
                    break;
                }
            }
        }
        let binds = u32::try_from(round.len()).unwrap_or(u32::MAX);
        let failure = |attempt: &&Attempt| attempt.bind != CallResult::Ok;
        self.failing = round.iter().find(failure).map(|attempt| attempt.at);
        let bound = round.iter().map(|attempt| bound(attempt.bind)).max();
        self.remember(round);
        Ok((bound.unwrap_or(Bound::All), binds))
    }

    fn attempt(&mut self, at: BindAddr) -> Result<Attempt, SnapshotError> {
        let (attempt, note) = sys::bind::attempt_alone(at, self.port, self.with)?;
        self.note = self.note.max(note);
        Ok(attempt)
    }

    /// Whether a bind with SO_REUSEADDR works on every address that is in use, where the server sets something else: it
    /// tells the two causes about buckets apart. `changes` counts how often the sockets in the way changed; as long as it
    /// stays the same, no bind is repeated. Such a bind leaves no note of SO_REUSEPORT.
    fn reuseaddr_works(&mut self, changes: u32) -> Result<bool, SnapshotError> {
        // SO_REUSEADDR failed; with SO_REUSEPORT beside it, it would have worked wherever it works alone.
        if self.with.reuseaddr {
            return Ok(false);
        }
        if let Some((_, works)) = self.reuseaddr.filter(|(then, _)| *then == changes) {
            return Ok(works);
        }
        let mut works = true;
        for attempt in self.attempts.iter().filter(|attempt| attempt.bind == CallResult::Failed(Errno::AddrInUse)) {
            self.extra_binds += 1;
            let (reuseaddr, _) = sys::bind::attempt_alone(attempt.at, self.port, ReuseOptions::REUSEADDR)?;
            if reuseaddr.bind != CallResult::Ok {
                works = false;
                break;
            }
        }
        self.reuseaddr = Some((changes, works));
        Ok(works)
    }

    /// Remembers the last result of each address.
    fn remember(&mut self, round: Vec<Attempt>) {
        for attempt in round {
            match self.attempts.iter_mut().find(|known| known.at == attempt.at) {
                Some(known) => *known = attempt,
                None => self.attempts.push(attempt),
            }
        }
    }

    /// Lists the sockets that may be in the way, and whether they explain the failure of the last bind.
    fn list(&mut self) -> Result<(Vec<Socket>, bool), SnapshotError> {
        let PortSockets { mut list, complete, unread: unlisted, .. } = sockets_on(&mut self.source, self.port)?;
        self.complete = complete;
        let sockets: Vec<Socket> = list.iter().map(|(socket, _)| *socket).collect();
        let obstacles = Obstacles::new(&self.attempts, &sockets.iter());
        list.retain(|(socket, _)| obstacles.has(socket));
        let sockets: Vec<Socket> = list.iter().map(|(socket, _)| *socket).collect();
        let last: Vec<Attempt> =
            self.attempts.iter().filter(|attempt| Some(attempt.at) == self.failing).copied().collect();
        // To read every process's descriptors costs more than the list. Without a bind in between they are still the same.
        let known = if std::mem::take(&mut self.tried) { BTreeMap::new() } else { self.owners() };
        let (holders, unread) = port::holders(&self.attempts, list, known);
        self.unread = unlisted.or(unread);
        self.holders = holders.into_iter().map(|holder| (waiting::socket_key(&holder.socket), holder)).collect();
        Ok((sockets.clone(), conflict::explained(&last, &sockets)))
    }

    /// The owners that were found.
    fn owners(&self) -> BTreeMap<NonZeroU32, Owners> {
        let owners = |holder: &Holder| match holder.socket {
            Socket::Full(_) if holder.owners == Owners::NotRead => None,
            Socket::Full(full) => Some((full.inode?, holder.owners.clone())),
            Socket::Bucket(_) => None,
        };
        self.holders.values().filter_map(owners).collect()
    }

    /// The socket as it is now; `None`: it was not found.
    fn look_up(&mut self, socket: &Socket) -> Result<Option<Socket>, SnapshotError> {
        Ok(self.source.look_up(socket)?)
    }

    /// These sockets with their processes, as they were last seen.
    fn holders<'a>(&self, sockets: impl Iterator<Item = &'a Socket>) -> Vec<Holder> {
        let holder = |socket: &Socket| {
            let holder = self.holders.get(&waiting::socket_key(socket))?.clone();
            // A connection that closed has left its process for a bucket.
            let owners = if let Socket::Full(_) = socket { holder.owners } else { Owners::Nobody };
            Some(Holder { socket: *socket, owners, ..holder })
        };
        sockets.filter_map(holder).collect()
    }
}

/// The result of one address in the terms of `analysis::waiting`.
fn bound(result: CallResult) -> Bound {
    match result {
        CallResult::Ok => Bound::All,
        CallResult::Failed(Errno::AddrInUse) => Bound::InUse,
        CallResult::Failed(Errno::AddrNotAvailable) => Bound::NotAvailable,
        CallResult::Failed(_) => Bound::Denied,
    }
}
