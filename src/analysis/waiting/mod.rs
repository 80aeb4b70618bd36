//! How to wait for a port: when to bind, when to look, and when to let time pass. A machine of steps without a clock and
//! without a kernel: it says what to do next, and is told what came of it.
//!
//! Only a bind proves that a port is free, and binds disturb others, so one is made only when something that was in the way
//! has gone. Connections and timewait buckets are watched by exact look-up, ten times a second: a bucket goes later than its
//! timer says (the timer wheel is coarse), or earlier (somebody removes it), and a retransmitted FIN restarts it. What
//! cannot be watched so is looked for in the whole list, about once a second.
//!
//! A plain bind fails as long as any socket covers its address, so one that is alive is enough to know that it would. A
//! bind with options may get past some of them, and nobody tells which: there every one that goes is a reason to try again.

#[cfg(test)]
mod simulation;

use std::collections::HashSet;
use std::time::Duration;

use crate::model::socket::{Cookie, FourTuple, Socket, TcpState};

/// Between two rounds of look-ups.
pub const ROUND: Duration = Duration::from_millis(100);

/// Between two looks at the whole list.
const LIST_INTERVAL: Duration = Duration::from_secs(1);

/// The same, where the list is needed only because there are more sockets than are looked up.
const CROWD_LIST_INTERVAL: Duration = Duration::from_secs(5);

/// A look takes this part of the time at most: of a table of a million sockets it takes long.
const LIST_SHARE: u32 = 100;

/// The most look-ups in a round, about 4 us each.
const LOOK_UPS_PER_ROUND: usize = 64;

/// Binds that may follow each other at once; one more a second may be made.
const BURST_OF_BINDS: u32 = 20;

/// The same, where nothing is left that is known to be in the way.
const BURST_OF_BINDS_WHEN_ALL_ARE_GONE: u32 = 40;

/// How often a bind and the list may contradict each other before that is taken for an answer.
const CONTRADICTIONS: u32 = 2;

/// What to do next. Every step but a pause and the end is answered by the method of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitStep {
    /// Bind: [`Waiting::bound`].
    Bind {
        /// On every address, whatever the first of them gives.
        every_address: bool,
    },
    /// List the sockets in the way: [`Waiting::listed`].
    List,
    /// Look one socket up: [`Waiting::looked_up`].
    LookUp(Socket),
    /// Let this much time pass.
    Pause(Duration),
    /// It is over.
    End(Ended),
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// A bind worked on every address.
    Bindable,
    /// The time is over; the last bind failed.
    TimedOut,
    /// A bind failed for a reason that time does not mend.
    Denied,
}

/// What a round of binds over the addresses gave, the worst of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bound {
    /// All worked.
    All,
    /// EADDRNOTAVAIL: an interface may still come up with the address.
    NotAvailable,
    /// EADDRINUSE.
    InUse,
    /// Any other errno.
    Denied,
}

/// Which socket it is: its cookie where there is one, and its ends.
pub type SocketKey = (Option<Cookie>, FourTuple);

/// The name of a socket.
#[must_use]
pub const fn socket_key(socket: &Socket) -> SocketKey {
    (socket.cookie(), *socket.tuple())
}

/// A socket in the way.
#[derive(Clone, Copy, Debug)]
struct Known {
    socket: Socket,
    /// When the kernel said so.
    seen: Duration,
    /// Whether a look-up failed to find it although it was there.
    elusive: bool,
    /// Whether it was found to be gone in this round.
    gone: bool,
}

impl Known {
    /// What is left of a bucket's timer; `None`: it is no bucket.
    fn remaining(&self, now: Duration) -> Option<Duration> {
        match self.socket {
            Socket::Bucket(bucket) => Some(bucket.expires().saturating_sub(now.saturating_sub(self.seen))),
            Socket::Full(_) => None,
        }
    }

    /// Whether an exact look-up finds it; of a socket that is only bound it never does.
    const fn can_be_looked_up(&self) -> bool {
        let bound = matches!(self.socket.state(), TcpState::Closed | TcpState::BoundInactive);
        self.socket.cookie().is_some() && !bound && !self.elusive
    }

    /// Whether it is gone for certain when a look-up does not find it. A listener may share its port with others.
    const fn is_found_for_certain(&self) -> bool {
        !matches!(self.socket.state(), TcpState::Listen)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Todo {
    Bind,
    List {
        after_bind: bool,
    },
    /// Wait for the next round of look-ups.
    Round,
    /// Look up the socket of this number in the round.
    LookUps {
        next: usize,
    },
    /// Wait for the next bind, with nothing to watch.
    Rest {
        until: Duration,
    },
    End(Ended),
}

/// A wait under way. Every `now` is the time since it began.
#[derive(Debug)]
pub struct Waiting {
    /// The server sets no option.
    plain: bool,
    /// Whether sockets can be looked up.
    looks_up: bool,
    timeout: Duration,
    todo: Todo,
    /// Those that go last first.
    known: Vec<Known>,
    /// The names to look up in this round.
    round: Vec<SocketKey>,
    next_round: Duration,
    last_list: Duration,
    list_took: Duration,
    first_binds: Option<u32>,
    binds: u32,
    contradictions: u32,
    /// The time is over, and what follows is for the answer.
    last: bool,
    changes: u32,
}

impl Waiting {
    /// Begins to wait this long for a bind, `plain` or with options; `looks_up` says whether sockets can be looked up.
    #[must_use]
    pub const fn new(plain: bool, looks_up: bool, timeout: Duration) -> Self {
        Self {
            plain,
            looks_up,
            timeout,
            todo: Todo::Bind,
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

    /// Binds made.
    #[must_use]
    pub const fn binds(&self) -> u32 {
        self.binds
    }

    /// The sockets in the way, as they were last seen; those that go last first.
    pub fn known(&self) -> impl Iterator<Item = &Socket> {
        self.known.iter().map(|known| &known.socket)
    }

    /// What is left of the longest timer, where only buckets are in the way.
    #[must_use]
    pub fn remaining(&self, now: Duration) -> Option<Duration> {
        let longest = |longest: Duration, known: &Known| Some(longest.max(known.remaining(now)?));
        self.known.iter().try_fold(Duration::ZERO, longest).filter(|_| !self.known.is_empty())
    }

    /// Grows whenever the sockets in the way, or their states, are seen to be others.
    #[must_use]
    pub const fn changes(&self) -> u32 {
        self.changes
    }

    /// What to do now.
    pub fn next(&mut self, now: Duration) -> WaitStep {
        if now >= self.timeout && !self.last && !matches!(self.todo, Todo::End(_)) {
            self.last = true;
            self.contradictions = 0;
            self.todo = Todo::Bind;
        }
        let left = self.timeout.saturating_sub(now);
        match self.todo {
            Todo::End(ended) => WaitStep::End(ended),
            Todo::Bind if self.last || self.may_bind(now) => {
                WaitStep::Bind { every_address: self.last || self.first_binds.is_none() }
            }
            Todo::Bind => WaitStep::Pause(ROUND.min(left)),
            Todo::Rest { until } if now < until => WaitStep::Pause(until.saturating_sub(now).min(left)),
            Todo::Rest { .. } => {
                self.todo = Todo::Bind;
                self.next(now)
            }
            Todo::List { .. } => WaitStep::List,
            Todo::Round if now < self.next_round => WaitStep::Pause(self.next_round.saturating_sub(now).min(left)),
            Todo::Round => {
                self.begin_round(now);
                self.next(now)
            }
            Todo::LookUps { next } => {
                if let Some(at) = self.round.get(next).and_then(|key| self.find(*key)) {
                    return WaitStep::LookUp(self.known[at].socket);
                }
                self.end_round(now, false);
                self.next(now)
            }
        }
    }

    /// A round of binds was made, this many.
    pub fn bound(&mut self, bound: Bound, binds: u32, now: Duration) {
        self.binds = self.binds.saturating_add(binds);
        self.first_binds.get_or_insert(self.binds);
        self.todo = match bound {
            Bound::All => Todo::End(Ended::Bindable),
            Bound::Denied => Todo::End(Ended::Denied),
            Bound::InUse => Todo::List { after_bind: true },
            Bound::NotAvailable => {
                self.list_took = Duration::ZERO;
                self.replace(vec![]);
                self.rest_or_end(now)
            }
        };
        if bound == Bound::All {
            self.replace(vec![]);
        }
    }

    /// The sockets that may be why the last bind failed; `explained`: on every address where it did. The look `took` this
    /// long.
    pub fn listed(&mut self, sockets: &[Socket], explained: bool, took: Duration, now: Duration) {
        (self.last_list, self.list_took) = (now, took);
        let before: HashSet<SocketKey> = self.known().map(socket_key).collect();
        let after: HashSet<SocketKey> = sockets.iter().map(socket_key).collect();
        let vanished = !before.is_subset(&after);
        let elusive: HashSet<SocketKey> =
            self.known.iter().filter(|known| known.elusive).map(|known| socket_key(&known.socket)).collect();
        let known = |socket: &Socket| Known {
            socket: *socket,
            seen: now,
            elusive: elusive.contains(&socket_key(socket)),
            gone: false,
        };
        let mut known: Vec<Known> = sockets.iter().map(known).collect();
        // A listener or a connection has no end that could be foreseen.
        known.sort_by_key(|known| std::cmp::Reverse(known.remaining(now).unwrap_or(Duration::MAX)));
        self.replace(known);
        let Todo::List { after_bind } = self.todo else { return };
        let again = match after_bind {
            // The bind failed and nothing shows why, or with options: what was there before and after it is not the same,
            // so that what made it fail may be gone without having been seen.
            true => !explained || (!self.plain && before != after && !self.last),
            false if self.plain => sockets.is_empty(),
            false => vanished,
        };
        self.todo = if again && (!after_bind || self.contradictions < CONTRADICTIONS) {
            self.contradictions += u32::from(after_bind);
            Todo::Bind
        } else if !explained || sockets.is_empty() {
            self.rest_or_end(now)
        } else if self.last {
            Todo::End(Ended::TimedOut)
        } else {
            self.contradictions = 0;
            self.until_next_round(now)
        };
    }

    /// The socket of the last [`WaitStep::LookUp`] as it is now; `None`: it was not found.
    pub fn looked_up(&mut self, found: Option<Socket>, now: Duration) {
        let Todo::LookUps { next } = self.todo else { return };
        let Some(at) = self.round.get(next).and_then(|key| self.find(*key)) else { return };
        let known = &mut self.known[at];
        self.todo = Todo::LookUps { next: next + 1 };
        match found {
            Some(socket) => {
                self.changes += u32::from(socket.state() != known.socket.state());
                *known = Known { socket, seen: now, elusive: false, gone: false };
                // One is enough to make a plain bind fail.
                if self.plain {
                    self.end_round(now, true);
                }
            }
            None if known.is_found_for_certain() => known.gone = true,
            None => known.elusive = true,
        }
    }

    fn find(&self, wanted: SocketKey) -> Option<usize> {
        self.known.iter().position(|known| socket_key(&known.socket) == wanted)
    }

    fn replace(&mut self, known: Vec<Known>) {
        let states = |known: &[Known]| -> HashSet<(SocketKey, &'static str)> {
            known.iter().map(|known| (socket_key(&known.socket), known.socket.state().name())).collect()
        };
        self.changes += u32::from(states(&self.known) != states(&known));
        self.known = known;
    }

    fn rest_or_end(&self, now: Duration) -> Todo {
        if self.last {
            return Todo::End(Ended::TimedOut);
        }
        let rest = LIST_INTERVAL.max(self.list_took.saturating_mul(LIST_SHARE));
        Todo::Rest { until: now.saturating_add(rest) }
    }

    fn may_bind(&self, now: Duration) -> bool {
        let Some(first) = self.first_binds else { return true };
        let at_once = if self.known.is_empty() { BURST_OF_BINDS_WHEN_ALL_ARE_GONE } else { BURST_OF_BINDS };
        u64::from(self.binds - first) < u64::from(at_once) + now.as_secs()
    }

    fn look_up_candidates(&self) -> impl Iterator<Item = &Known> {
        self.known.iter().filter(|known| self.looks_up && known.can_be_looked_up())
    }

    /// When the whole list is to be looked at again; `None`: look-ups are enough.
    fn next_list(&self, now: Duration) -> Option<Duration> {
        let alone = self.known.iter().find(|known| !(self.looks_up && known.can_be_looked_up()));
        let crowd = !self.plain && self.look_up_candidates().nth(LOOK_UPS_PER_ROUND).is_some();
        // For a plain bind one that can be looked up keeps the port taken whatever becomes of the others.
        let needed = alone.is_some() && !(self.plain && self.look_up_candidates().next().is_some());
        let due = |known: &Known| known.remaining(now) == Some(Duration::ZERO);
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

    fn until_next_round(&mut self, now: Duration) -> Todo {
        let round = self.look_up_candidates().next().map(|_| now.saturating_add(ROUND));
        self.next_round = [round, self.next_list(now)].into_iter().flatten().min().unwrap_or(now + ROUND);
        Todo::Round
    }

    fn begin_round(&mut self, now: Duration) {
        if self.next_list(now).is_some_and(|at| at <= now) {
            self.todo = Todo::List { after_bind: false };
            return;
        }
        self.round = self.look_up_candidates().take(LOOK_UPS_PER_ROUND).map(|known| socket_key(&known.socket)).collect();
        self.todo = Todo::LookUps { next: 0 };
    }

    /// The round is over, with a socket found that makes a plain bind fail or without.
    fn end_round(&mut self, now: Duration, fails: bool) {
        let before = self.known.len();
        self.known.retain(|known| !known.gone);
        let gone = self.known.len() < before;
        self.changes += u32::from(gone);
        // What look-ups cannot find is looked for in the list first.
        let bind = gone && !fails && (!self.plain || self.known.iter().all(Known::can_be_looked_up));
        self.todo = if bind { Todo::Bind } else { self.until_next_round(now) };
    }
}
