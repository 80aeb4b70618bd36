//! The kernel's side of a wait: binds on the addresses, looks at the sockets in the way, look-ups of one of them.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU32;

use crate::analysis::conflict::{self, Obstacles};
use crate::analysis::waiting::{self, Bound, Name};
use crate::commands::CommandError;
use crate::commands::probe::{self, Sockets};
use crate::model::bind::{Attempt, BindAddr, CallResult, Errno, Holder, ReuseOptions, ReuseportNote};
use crate::model::port::Port;
use crate::model::process::Owners;
use crate::model::socket::Socket;
use crate::source::{Choice, Source};
use crate::sys;

/// What is watched, and what was last seen of it.
pub(super) struct Watch {
    port: Port,
    with: ReuseOptions,
    source: Source,
    /// What each address gave last, in the order in which they are tried.
    attempts: Vec<Attempt>,
    addrs: Vec<BindAddr>,
    /// The address that failed last.
    failing: Option<BindAddr>,
    /// Whether a bind was made since the last look.
    tried: bool,
    holders: HashMap<Name, Holder>,
    /// Whether the last list was whole.
    complete: bool,
    /// What [`Self::reuseaddr_works`] found, for the same sockets in the way.
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
    pub(super) fn new(port: Port, addrs: &[BindAddr], with: ReuseOptions) -> Result<Self, CommandError> {
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
    pub(super) const fn looks_up(&self) -> bool {
        self.source.looks_up()
    }

    /// What each address gave last.
    pub(super) fn attempts(&self) -> &[Attempt] {
        &self.attempts
    }

    /// Whether the last list was whole.
    pub(super) const fn complete(&self) -> bool {
        self.complete
    }

    /// Why holders may be missing from the last list.
    pub(super) fn unread(&self) -> Option<String> {
        self.unread.clone()
    }

    /// Whether the source lists sockets that are bound and do not listen.
    pub(super) fn bound_sockets_are_listed(&self) -> bool {
        self.source.lists_bound_sockets()
    }

    /// What is poorer because sock_diag was refused.
    pub(super) fn warnings(&self) -> Vec<String> {
        self.source.warnings_where_processes_are_searched()
    }

    /// Binds, and counts the binds. Unless `every_address` is asked for, the first failure ends the round, and the address
    /// that failed last comes first: as long as that fails one bind is enough.
    pub(super) fn bind(&mut self, every_address: bool) -> Result<(Bound, u32), CommandError> {
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

    fn attempt(&mut self, at: BindAddr) -> Result<Attempt, CommandError> {
        let (attempt, note) = sys::bind::attempt_alone(at, self.port, self.with)?;
        self.note = self.note.max(note);
        Ok(attempt)
    }

    /// What the binds did to the note of SO_REUSEPORT of a server on the port.
    pub(super) const fn note(&self) -> ReuseportNote {
        self.note
    }

    /// Whether a bind with SO_REUSEADDR works on every address that is in use, where the server sets something else: it
    /// tells the two causes about buckets apart. `changes` counts how often the sockets in the way changed; as long as it
    /// stays the same, no bind is repeated. Such a bind leaves no note of SO_REUSEPORT.
    pub(super) fn reuseaddr_works(&mut self, changes: u32) -> Result<bool, CommandError> {
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

    /// Binds that [`Self::bind`] has not counted.
    pub(super) const fn extra_binds(&self) -> u32 {
        self.extra_binds
    }

    /// Keeps what each address gave last.
    fn remember(&mut self, round: Vec<Attempt>) {
        for attempt in round {
            match self.attempts.iter_mut().find(|known| known.at == attempt.at) {
                Some(known) => *known = attempt,
                None => self.attempts.push(attempt),
            }
        }
    }

    /// The sockets that may be in the way, and whether they explain the failure of the last bind.
    pub(super) fn look(&mut self) -> Result<(Vec<Socket>, bool), CommandError> {
        let Sockets { mut list, complete, unread: unlisted, .. } = probe::sockets_on(&mut self.source, self.port)?;
        self.complete = complete;
        let sockets: Vec<Socket> = list.iter().map(|(socket, _)| *socket).collect();
        let obstacles = Obstacles::new(&self.attempts, &sockets.iter());
        list.retain(|(socket, _)| obstacles.has(socket));
        let sockets: Vec<Socket> = list.iter().map(|(socket, _)| *socket).collect();
        let last: Vec<Attempt> =
            self.attempts.iter().filter(|attempt| Some(attempt.at) == self.failing).copied().collect();
        // Reading every process's descriptors costs more than the list; where nothing was tried they are still the same.
        let known = if std::mem::take(&mut self.tried) { BTreeMap::new() } else { self.owners() };
        let (holders, unread) = probe::holders(&self.attempts, list, known);
        self.unread = unlisted.or(unread);
        self.holders = holders.into_iter().map(|holder| (waiting::name(&holder.socket), holder)).collect();
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
    pub(super) fn look_up(&mut self, socket: &Socket) -> Result<Option<Socket>, CommandError> {
        Ok(self.source.look_up(socket)?)
    }

    /// Who these sockets are, each as it was last seen.
    pub(super) fn holders<'a>(&self, sockets: impl Iterator<Item = &'a Socket>) -> Vec<Holder> {
        let holder = |socket: &Socket| {
            let holder = self.holders.get(&waiting::name(socket))?.clone();
            // A connection that closed has left its process for a bucket.
            let owners = if let Socket::Full(_) = socket { holder.owners } else { Owners::Nobody };
            Some(Holder { socket: *socket, owners, ..holder })
        };
        sockets.filter_map(holder).collect()
    }
}

/// What one address gave, as the wait sees it.
fn bound(result: CallResult) -> Bound {
    match result {
        CallResult::Ok => Bound::All,
        CallResult::Failed(Errno::AddrInUse) => Bound::InUse,
        CallResult::Failed(Errno::AddrNotAvailable) => Bound::NotAvailable,
        CallResult::Failed(_) => Bound::Denied,
    }
}
