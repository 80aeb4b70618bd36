//! The port and addresses of a wait, with the results of the last binds and the last list of sockets.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU32;

use crate::analysis::conflict::{self, FailedAttempts};
use crate::analysis::waiting::{self, BindOutcome, SocketKey};
use crate::model::bind::{Attempt, BindAddr, CallResult, Errno, Holder, ReuseOptions, ReuseportNote, ServerSetup};
use crate::model::facts::Facts;
use crate::model::port::Port;
use crate::model::process::Owners;
use crate::model::socket::Socket;
use crate::snapshot::error::SnapshotError;
use crate::snapshot::holders::{PortSockets, holders, sockets_on};
use crate::source::{Source, SourceChoice};
use crate::sys;

pub(super) struct WatchedPort {
    port: Port,
    with: ReuseOptions,
    setup: ServerSetup,
    source: Source,
    /// The last result of each address, in the order of the binds.
    pub(super) attempts: Vec<Attempt>,
    /// The addresses in the order in which twtool binds them: IPv6 first.
    addrs: Vec<BindAddr>,
    /// The addresses in the order in which the server binds them.
    typed: Vec<BindAddr>,
    /// The first address that failed in the last call of [`Self::bind`].
    failing: Option<BindAddr>,
    /// Whether a bind was made since the sockets were last listed.
    tried: bool,
    pub(super) holders: HashMap<SocketKey, Holder>,
    /// Whether the last list was complete.
    pub(super) complete: bool,
    /// The number of changes at the last call of [`Self::reuseaddr_works`], and its result.
    reuseaddr: Option<(u32, bool)>,
    /// The number of additional binds, which only determined a cause.
    pub(super) extra_binds: u32,
    pub(super) note: ReuseportNote,
    /// Why holders may be missing from the last list.
    pub(super) unread: Option<String>,
}

impl WatchedPort {
    pub(super) fn new(
        port: Port,
        addrs: &[BindAddr],
        with: ReuseOptions,
        setup: ServerSetup,
        facts: Facts,
    ) -> Result<Self, SnapshotError> {
        // IPv6 first, for the reason given at `sys::bind::attempts`.
        let (mut order, ipv4) = addrs.iter().copied().partition::<Vec<_>, _>(|at| at.addr.is_ipv6());
        order.extend(ipv4);
        Ok(Self {
            port,
            with,
            setup,
            source: Source::kernel_with(SourceChoice::Auto, facts)?,
            attempts: vec![],
            addrs: order,
            typed: addrs.to_owned(),
            failing: None,
            tried: false,
            holders: HashMap::new(),
            complete: true,
            reuseaddr: None,
            extra_binds: 0,
            note: ReuseportNote::Unchanged,
            unread: None,
        })
    }

    pub(super) const fn looks_up(&self) -> bool {
        self.source.looks_up()
    }

    pub(super) fn bound_sockets_are_listed(&self) -> bool {
        self.source.lists_bound_sockets()
    }

    pub(super) fn warnings(&self) -> Vec<String> {
        self.source.warnings_where_processes_are_searched()
    }

    /// Binds the addresses, and returns the result and the number of binds. Without `every_address`, it stops at the first
    /// failure and starts with the address that failed last time, so one bind is enough as long as this address fails.
    pub(super) fn bind(&mut self, every_address: bool) -> Result<(BindOutcome, u32), SnapshotError> {
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
        let mut binds = round.len();
        if self.setup.together && !fails(&round) {
            let (together, note) = sys::bind::attempt_together(&self.typed, self.port, self.with, &self.setup)?;
            self.note = self.note.max(note);
            binds += together.len();
            round = together;
        }
        let binds = u32::try_from(binds).unwrap_or(u32::MAX);
        let failure = |attempt: &&Attempt| attempt.outcome() != CallResult::Ok;
        self.failing = round.iter().find(failure).map(|attempt| attempt.at);
        let worst = round.iter().map(bind_outcome).max();
        self.remember(round);
        Ok((worst.unwrap_or(BindOutcome::All), binds))
    }

    fn attempt(&mut self, at: BindAddr) -> Result<Attempt, SnapshotError> {
        let (attempt, note) = sys::bind::attempt_alone(at, self.port, self.with, &self.setup)?;
        self.note = self.note.max(note);
        Ok(attempt)
    }

    /// Whether a bind with SO_REUSEADDR would succeed on every address that is in use. This distinguishes the causes `TimeWait` and
    /// `TimeWaitWithoutReuseaddr`. The binds are repeated only if `changes`, the number of changes of the blocking sockets, has
    /// grown. They do not set SO_REUSEPORT, so they leave no note of it.
    pub(super) fn reuseaddr_works(&mut self, changes: u32) -> Result<bool, SnapshotError> {
        // The bind has failed although the server sets SO_REUSEADDR. SO_REUSEPORT as a second option is never the reason of
        // such a failure.
        if self.with.reuseaddr {
            return Ok(false);
        }
        if let Some((_, works)) = self.reuseaddr.filter(|(then, _)| *then == changes) {
            return Ok(works);
        }
        let mut works = true;
        for attempt in self.attempts.iter().filter(|attempt| attempt.bind == CallResult::Failed(Errno::AddrInUse)) {
            self.extra_binds += 1;
            let (reuseaddr, _) = sys::bind::attempt_alone(attempt.at, self.port, ReuseOptions::REUSEADDR, &self.setup)?;
            if reuseaddr.bind != CallResult::Ok {
                works = false;
                break;
            }
        }
        self.reuseaddr = Some((changes, works));
        Ok(works)
    }

    /// Whether a bind without SO_REUSEADDR and SO_REUSEPORT fails with EADDRINUSE on some address.
    pub(super) fn plain_bind_is_in_use(&self) -> Result<bool, SnapshotError> {
        for at in &self.addrs {
            let (plain, _) = sys::bind::attempt_alone(*at, self.port, ReuseOptions::NONE, &self.setup)?;
            if plain.bind == CallResult::Failed(Errno::AddrInUse) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn remember(&mut self, round: Vec<Attempt>) {
        for attempt in round {
            match self.attempts.iter_mut().find(|known| known.at == attempt.at) {
                Some(known) => *known = attempt,
                None => self.attempts.push(attempt),
            }
        }
    }

    /// Lists the sockets that may block the port, and returns whether they explain the failure of the last bind.
    pub(super) fn list(&mut self) -> Result<(Vec<Socket>, bool), SnapshotError> {
        let PortSockets { mut list, complete, unread: unlisted, .. } = sockets_on(&mut self.source, self.port)?;
        self.complete = complete;
        let sockets: Vec<Socket> = list.iter().map(|(socket, _)| *socket).collect();
        let failed_attempts = FailedAttempts::new(&self.attempts, &sockets.iter());
        list.retain(|(socket, _)| failed_attempts.can_be_blocked_by(socket));
        let sockets: Vec<Socket> = list.iter().map(|(socket, _)| *socket).collect();
        let last: Vec<Attempt> =
            self.attempts.iter().filter(|attempt| Some(attempt.at) == self.failing).copied().collect();
        // Reading the descriptors of every process costs more than the list. Without a bind since the last list, the
        // owners are not searched again.
        let known = if std::mem::take(&mut self.tried) { BTreeMap::new() } else { self.owners() };
        let (holders, unread) = holders(&mut self.source, &self.attempts, list, known);
        self.unread = unlisted.or(unread);
        self.holders = holders.into_iter().map(|holder| (waiting::socket_key(&holder.socket), holder)).collect();
        Ok((sockets.clone(), conflict::explained(&last, &sockets)))
    }

    fn owners(&self) -> BTreeMap<NonZeroU32, Owners> {
        let owners = |holder: &Holder| match holder.socket {
            Socket::Full(_) if holder.owners == Owners::NotRead => None,
            Socket::Full(full) => Some((full.inode?, holder.owners.clone())),
            Socket::Bucket(_) => None,
        };
        self.holders.values().filter_map(owners).collect()
    }

    pub(super) fn look_up(&mut self, socket: &Socket) -> Result<Option<Socket>, SnapshotError> {
        Ok(self.source.look_up(socket)?)
    }

    /// The holders for these sockets, with the processes from the last list.
    pub(super) fn holders<'a>(&self, sockets: impl Iterator<Item = &'a Socket>) -> Vec<Holder> {
        let holder = |socket: &Socket| {
            let holder = self.holders.get(&waiting::socket_key(socket))?.clone();
            // If a connection has become a bucket since the last list, it has no process any more.
            let owners = if let Socket::Full(_) = socket { holder.owners } else { Owners::Nobody };
            Some(Holder { socket: *socket, owners, ..holder })
        };
        sockets.filter_map(holder).collect()
    }
}

/// A server that blocks itself counts as denied, because waiting does not help.
fn bind_outcome(attempt: &Attempt) -> BindOutcome {
    match attempt.outcome() {
        _ if attempt.blocked_by_own_socket => BindOutcome::Denied,
        CallResult::Ok => BindOutcome::All,
        CallResult::Failed(Errno::AddrInUse) => BindOutcome::InUse,
        CallResult::Failed(Errno::AddrNotAvailable) => BindOutcome::NotAvailable,
        CallResult::Failed(_) => BindOutcome::Denied,
    }
}
