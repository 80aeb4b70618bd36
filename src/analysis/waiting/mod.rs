//! The plan of a wait for a port: when to bind, when to list or look up sockets, and when to pause.
//!
//! [`WaitProgress`] is a state machine without a clock and without a kernel. [`WaitProgress::next`] returns the next step. The caller
//! executes the step and reports the result. Only a bind proves that a port is free, but a bind disturbs other programs. So the steps are:
//!
//! 1. Bind once on every address. If that works, the wait ends.
//! 2. List the sockets that block the bind.
//! 3. Look up these sockets by cookie, ten times a second. Each pass is a *round* of at most 64 look-ups. The remaining
//!    time of a bucket does not replace the look-ups: a bucket can end later (the kernel's timer wheel is coarse) or earlier
//!    (SOCK_DESTROY), and a retransmitted FIN restarts the timer.
//! 4. If look-ups cannot find some of the blocking sockets, or there are too many for a round, also list all
//!    sockets again from time to time.
//! 5. When a blocking socket is gone, bind again.
//!
//! A plain bind (without options) fails while any socket covers its address. So one live socket is enough to skip the bind and the list.
//! A bind with options may succeed beside some sockets, and the kernel does not report which. So each socket that ends is a
//! reason to bind again.

#[cfg(test)]
mod simulation;

use std::collections::HashSet;
use std::time::Duration;

use crate::model::socket::{Cookie, FourTuple, Socket, TcpState};

/// The time between two rounds of look-ups.
pub const ROUND: Duration = Duration::from_millis(100);

/// The usual time between two listings of all sockets.
const LIST_INTERVAL: Duration = Duration::from_secs(1);

/// The time between two listings if they are needed only because there are too many sockets to look up.
const CROWD_LIST_INTERVAL: Duration = Duration::from_secs(5);

/// The time between two listings is at least this number of times the duration of the last one: a million sockets take long to list.
const LIST_SHARE: u32 = 100;

/// The maximum number of look-ups in a round. Each takes about 4 µs.
const LOOK_UPS_PER_ROUND: usize = 64;

/// The maximum number of binds after the first step. Each second of the wait allows one more.
const BURST_OF_BINDS: u32 = 20;

/// The same maximum while no blocking socket is known.
const BURST_OF_BINDS_WHEN_ALL_ARE_GONE: u32 = 40;

/// How often a bind and the list may contradict each other before the wait accepts the contradiction and pauses.
const CONTRADICTIONS: u32 = 2;

/// The next step of a wait. After each step except a pause and the end, the caller reports the result by the linked method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitStep {
    /// Bind: [`WaitProgress::report_bind`].
    Bind {
        /// Whether to try every address even if an earlier one fails.
        every_address: bool,
    },
    /// List the blocking sockets: [`WaitProgress::report_list`].
    List,
    /// Look up one socket: [`WaitProgress::report_look_up`].
    LookUp(Socket),
    /// Pause for this time.
    Pause(Duration),
    /// The wait has ended.
    End(WaitEnd),
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitEnd {
    /// A bind worked on every address.
    Bindable,
    /// The timeout has passed, and the last bind failed.
    TimedOut,
    /// A bind failed for a reason that waiting does not change.
    Denied,
}

/// The worst result of the binds in one [`WaitStep::Bind`], one bind per address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BindOutcome {
    /// Every bind worked.
    All,
    /// EADDRNOTAVAIL: the address may still appear, for example when an interface comes up.
    NotAvailable,
    /// EADDRINUSE.
    InUse,
    /// Any other errno.
    Denied,
}

/// The identity of a socket: its cookie, if there is one, and both its ends.
pub type SocketKey = (Option<Cookie>, FourTuple);

/// The identity of this socket.
#[must_use]
pub const fn socket_key(socket: &Socket) -> SocketKey {
    (socket.cookie(), *socket.tuple())
}

#[derive(Clone, Copy, Debug)]
struct BlockingSocket {
    socket: Socket,
    /// When the kernel reported this socket.
    seen: Duration,
    /// Whether a look-up did not find the socket although the list contains it.
    elusive: bool,
    /// Whether this round of look-ups found that the socket is gone.
    gone: bool,
}

impl BlockingSocket {
    fn remaining(&self, now: Duration) -> Option<Duration> {
        match self.socket {
            Socket::Bucket(bucket) => Some(bucket.expires().saturating_sub(now.saturating_sub(self.seen))),
            Socket::Full(_) => None,
        }
    }

    /// Whether a look-up can find the socket. A look-up never finds a socket that is only bound.
    const fn can_be_looked_up(&self) -> bool {
        let bound = matches!(self.socket.state(), TcpState::Closed | TcpState::BoundInactive);
        self.socket.cookie().is_some() && !bound && !self.elusive
    }

    /// Whether a failed look-up proves that the socket is gone. For a listener it proves nothing, because several listeners can
    /// share a port, and the look-up finds only one of them.
    const fn has_reliable_look_up(&self) -> bool {
        !matches!(self.socket.state(), TcpState::Listen)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NextStep {
    Bind,
    List {
        /// Whether a bind has just failed. Otherwise, the list follows look-ups.
        after_bind: bool,
    },
    /// Wait for the next round of look-ups.
    Round,
    /// Look up the socket with this index in the round.
    LookUps {
        next: usize,
    },
    /// Pause until the next bind, without look-ups.
    Rest {
        until: Duration,
    },
    End(WaitEnd),
}

/// A wait for a port. Each argument `now` is the time since the wait began.
#[derive(Debug)]
pub struct WaitProgress {
    /// Whether the server sets no option.
    plain: bool,
    looks_up: bool,
    timeout: Duration,
    todo: NextStep,
    known: Vec<BlockingSocket>,
    round: Vec<SocketKey>,
    next_round: Duration,
    last_list: Duration,
    list_took: Duration,
    /// The number of binds in the first [`WaitStep::Bind`], which the maximum does not limit; `None` before that step.
    first_binds: Option<u32>,
    binds: u32,
    /// How often in sequence a bind and the list have contradicted each other.
    contradictions: u32,
    /// Whether the timeout has passed. Then the wait binds again, and does not pause any more.
    last: bool,
    changes: u32,
}

impl WaitProgress {
    /// Begins a wait for a bind, which is `plain` or has options. `looks_up` tells whether the source can look up single sockets.
    #[must_use]
    pub const fn new(plain: bool, looks_up: bool, timeout: Duration) -> Self {
        Self {
            plain,
            looks_up,
            timeout,
            todo: NextStep::Bind,
            known: vec![],
            round: vec![],
            next_round: Duration::ZERO,
            last_list: Duration::ZERO,
            list_took: Duration::ZERO,
            first_binds: None,
            binds: 0,
            contradictions: 0,
            last: false,
            changes: 0,
        }
    }

    /// The number of binds so far.
    #[must_use]
    pub const fn binds(&self) -> u32 {
        self.binds
    }

    /// The blocking sockets as last seen, in the order of the last list.
    pub fn known(&self) -> impl Iterator<Item = &Socket> {
        self.known.iter().map(|known| &known.socket)
    }

    /// The longest remaining time, if only buckets block the bind.
    #[must_use]
    pub fn remaining(&self, now: Duration) -> Option<Duration> {
        let longest = |longest: Duration, known: &BlockingSocket| Some(longest.max(known.remaining(now)?));
        self.known.iter().try_fold(Duration::ZERO, longest).filter(|_| !self.known.is_empty())
    }

    /// A counter that grows whenever the blocking sockets or their states change.
    #[must_use]
    pub const fn changes(&self) -> u32 {
        self.changes
    }

    /// The next step.
    pub fn next(&mut self, now: Duration) -> WaitStep {
        if now >= self.timeout && !self.last && !matches!(self.todo, NextStep::End(_)) {
            self.last = true;
            self.contradictions = 0;
            self.todo = NextStep::Bind;
        }
        let left = self.timeout.saturating_sub(now);
        match self.todo {
            NextStep::End(ended) => WaitStep::End(ended),
            NextStep::Bind if self.last || self.may_bind(now) => {
                WaitStep::Bind { every_address: self.last || self.first_binds.is_none() }
            }
            NextStep::Bind => WaitStep::Pause(ROUND.min(left)),
            NextStep::Rest { until } if now < until => WaitStep::Pause(until.saturating_sub(now).min(left)),
            NextStep::Rest { .. } => {
                self.todo = NextStep::Bind;
                self.next(now)
            }
            NextStep::List { .. } => WaitStep::List,
            NextStep::Round if now < self.next_round => WaitStep::Pause(self.next_round.saturating_sub(now).min(left)),
            NextStep::Round => {
                self.begin_round(now);
                self.next(now)
            }
            NextStep::LookUps { next } => {
                if let Some(at) = self.round.get(next).and_then(|key| self.find(*key)) {
                    return WaitStep::LookUp(self.known[at].socket);
                }
                self.end_round(now, false);
                self.next(now)
            }
        }
    }

    /// Reports the result of [`WaitStep::Bind`]: the worst result, and the number of binds.
    pub fn report_bind(&mut self, bound: BindOutcome, binds: u32, now: Duration) {
        self.binds = self.binds.saturating_add(binds);
        self.first_binds.get_or_insert(self.binds);
        self.todo = match bound {
            BindOutcome::All => NextStep::End(WaitEnd::Bindable),
            BindOutcome::Denied => NextStep::End(WaitEnd::Denied),
            BindOutcome::InUse => NextStep::List { after_bind: true },
            BindOutcome::NotAvailable => {
                self.list_took = Duration::ZERO;
                self.replace(vec![]);
                self.rest_or_end(now)
            }
        };
        if bound == BindOutcome::All {
            self.replace(vec![]);
        }
    }

    /// Reports the sockets that may have blocked the last bind. `explained` tells whether there is such a socket for each address whose
    /// bind failed. `took` is the time that listing took.
    pub fn report_list(&mut self, sockets: &[Socket], explained: bool, took: Duration, now: Duration) {
        (self.last_list, self.list_took) = (now, took);
        let before: HashSet<SocketKey> = self.known().map(socket_key).collect();
        let after: HashSet<SocketKey> = sockets.iter().map(socket_key).collect();
        let vanished = !before.is_subset(&after);
        let elusive: HashSet<SocketKey> =
            self.known.iter().filter(|known| known.elusive).map(|known| socket_key(&known.socket)).collect();
        let known = |socket: &Socket| BlockingSocket {
            socket: *socket,
            seen: now,
            elusive: elusive.contains(&socket_key(socket)),
            gone: false,
        };
        let mut known: Vec<BlockingSocket> = sockets.iter().map(known).collect();
        // The end of a listener or a connection cannot be predicted, so these sockets come first.
        known.sort_by_key(|known| std::cmp::Reverse(known.remaining(now).unwrap_or(Duration::MAX)));
        self.replace(known);
        let NextStep::List { after_bind } = self.todo else { return };
        let again = match after_bind {
            // Bind again if no socket explains the failure. With options, also bind again if the sockets have changed: the
            // socket that made the bind fail may have ended before the list was read.
            true => !explained || (!self.plain && before != after && !self.last),
            false if self.plain => sockets.is_empty(),
            false => vanished,
        };
        self.todo = if again && (!after_bind || self.contradictions < CONTRADICTIONS) {
            self.contradictions += u32::from(after_bind);
            NextStep::Bind
        } else if !explained || sockets.is_empty() {
            self.rest_or_end(now)
        } else if self.last {
            NextStep::End(WaitEnd::TimedOut)
        } else {
            self.contradictions = 0;
            self.until_next_round(now)
        };
    }

    /// Reports the socket of the last [`WaitStep::LookUp`] as it is now; `None` if it was not found.
    pub fn report_look_up(&mut self, found: Option<Socket>, now: Duration) {
        let NextStep::LookUps { next } = self.todo else { return };
        let Some(at) = self.round.get(next).and_then(|key| self.find(*key)) else { return };
        let known = &mut self.known[at];
        self.todo = NextStep::LookUps { next: next + 1 };
        match found {
            Some(socket) => {
                self.changes += u32::from(socket.state() != known.socket.state());
                *known = BlockingSocket { socket, seen: now, elusive: false, gone: false };
                if self.plain {
                    self.end_round(now, true);
                }
            }
            None if known.has_reliable_look_up() => known.gone = true,
            None => known.elusive = true,
        }
    }

    fn find(&self, wanted: SocketKey) -> Option<usize> {
        self.known.iter().position(|known| socket_key(&known.socket) == wanted)
    }

    fn replace(&mut self, known: Vec<BlockingSocket>) {
        let states = |known: &[BlockingSocket]| -> HashSet<(SocketKey, &'static str)> {
            known.iter().map(|known| (socket_key(&known.socket), known.socket.state().name())).collect()
        };
        self.changes += u32::from(states(&self.known) != states(&known));
        self.known = known;
    }

    fn rest_or_end(&self, now: Duration) -> NextStep {
        if self.last {
            return NextStep::End(WaitEnd::TimedOut);
        }
        let rest = LIST_INTERVAL.max(self.list_took.saturating_mul(LIST_SHARE));
        NextStep::Rest { until: now.saturating_add(rest) }
    }

    fn may_bind(&self, now: Duration) -> bool {
        let Some(first) = self.first_binds else { return true };
        let at_once = if self.known.is_empty() { BURST_OF_BINDS_WHEN_ALL_ARE_GONE } else { BURST_OF_BINDS };
        u64::from(self.binds - first) < u64::from(at_once) + now.as_secs()
    }

    fn look_up_candidates(&self) -> impl Iterator<Item = &BlockingSocket> {
        self.known.iter().filter(|known| self.looks_up && known.can_be_looked_up())
    }

    /// When to list all sockets again; `None` if look-ups are enough.
    fn next_list(&self, now: Duration) -> Option<Duration> {
        let alone = self.known.iter().find(|known| !(self.looks_up && known.can_be_looked_up()));
        let crowd = !self.plain && self.look_up_candidates().nth(LOOK_UPS_PER_ROUND).is_some();
        // A plain bind fails while one socket that can be looked up exists, whatever happens to other sockets.
        let needed = alone.is_some() && !(self.plain && self.look_up_candidates().next().is_some());
        let due = |known: &BlockingSocket| known.remaining(now) == Some(Duration::ZERO);
        let every = if needed && self.known.iter().any(due) {
            ROUND
        } else if needed {
            LIST_INTERVAL
        } else if crowd {
            CROWD_LIST_INTERVAL
        } else {
            return None;
        };
        Some(self.last_list.saturating_add(every.max(self.list_took.saturating_mul(LIST_SHARE))))
    }

    fn until_next_round(&mut self, now: Duration) -> NextStep {
        let round = self.look_up_candidates().next().map(|_| now.saturating_add(ROUND));
        self.next_round = [round, self.next_list(now)].into_iter().flatten().min().unwrap_or(now + ROUND);
        NextStep::Round
    }

    fn begin_round(&mut self, now: Duration) {
        if self.next_list(now).is_some_and(|at| at <= now) {
            self.todo = NextStep::List { after_bind: false };
            return;
        }
        self.round =
            self.look_up_candidates().take(LOOK_UPS_PER_ROUND).map(|known| socket_key(&known.socket)).collect();
        self.todo = NextStep::LookUps { next: 0 };
    }

    /// Ends a round of look-ups. `fails` tells whether the round found a socket that makes a plain bind fail.
    fn end_round(&mut self, now: Duration, fails: bool) {
        let before = self.known.len();
        self.known.retain(|known| !known.gone);
        let gone = self.known.len() < before;
        self.changes += u32::from(gone);
        // A socket that look-ups cannot find may still block a plain bind. So a list comes before the next plain bind.
        let bind = gone && !fails && (!self.plain || self.known.iter().all(BlockingSocket::can_be_looked_up));
        self.todo = if bind { NextStep::Bind } else { self.until_next_round(now) };
    }
}
