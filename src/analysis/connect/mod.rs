//! Whether connect() finds a local address and a port. The kernel decides in this order, and so does [`Situation::conclude`]:
//!
//! 1. bind(), if the client binds an address or a port. A real bind tells its result.
//! 2. The route, which also gives the local address (`tcp_v4_connect` in net/ipv4/tcp_ipv4.c). A UDP socket tells it.
//! 3. The port (`__inet_hash_connect` in net/ipv4/inet_hashtables.c):
//!    - A fixed port fails only if a socket with the same four values exists. connect() takes over a bucket among them if its
//!      connection had TCP timestamps, whatever `tcp_tw_reuse` is. The kernel does not export whether it had.
//!    - Without a fixed port, connect() searches the ephemeral range. [`super::capacity`] repeats that search.
//!
//! No step uses connect() of a TCP socket: even one that sends nothing destroys the bucket that it takes over.

pub mod advice;

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::time::Duration;

use super::capacity::{Conditions, Destination, Pool};
use super::conflict;
use super::history::Length;
use super::verdict;
use crate::model::bind::{self, Attempt, BindAddr, CallResult, Errno, Holder, ReuseOptions};
use crate::model::facts::Facts;
use crate::model::port::Port;
use crate::model::socket::{Socket, TcpState};
use crate::model::tw_reuse::TwReuse;

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// connect() finds an address and a port.
    Free,
    /// No port: in use, or none left.
    Blocked,
    /// It fails for a reason that has nothing to do with ports in use.
    Denied,
    /// The kernel does not export what decides.
    Unknown,
}

impl Verdict {
    /// The name that scripts see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Blocked => "blocked",
            Self::Denied => "denied",
            Self::Unknown => "unknown",
        }
    }
}

/// The reason of the verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Nothing is in the way.
    None,
    /// connect() has no port left for this destination.
    Exhausted,
    /// A connection has the port.
    AddressInUse,
    /// Only buckets have the port.
    TimeWait,
    /// A listener or a bound socket has the port.
    Bound,
    /// The source address is not an address of this network namespace.
    AddressNotLocal,
    /// The kernel finds no route, or no source address for it.
    NoRoute,
    /// The source port needs CAP_NET_BIND_SERVICE.
    PrivilegedPort,
    /// Sockets of the family cannot be created.
    FamilyUnsupported,
    /// No listed socket explains the failure, or the number of free ports is uncertain.
    Unknown,
}

impl Cause {
    /// The name that scripts see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Exhausted => "exhausted",
            Self::AddressInUse => "address-in-use",
            Self::TimeWait => "time-wait",
            Self::Bound => "bound",
            Self::AddressNotLocal => "address-not-local",
            Self::NoRoute => "no-route",
            Self::PrivilegedPort => "privileged-port",
            Self::FamilyUnsupported => "family-unsupported",
            Self::Unknown => "unknown",
        }
    }
}

/// The call that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of the system calls")]
pub enum Call {
    Socket,
    Bind,
    Connect,
}

impl Call {
    /// The name that scripts see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Socket => "socket",
            Self::Bind => "bind",
            Self::Connect => "connect",
        }
    }
}

/// The ports that connect() may choose from, and those left for this destination.
#[derive(Clone, Debug)]
pub struct Choice {
    /// The ports that connect() may choose from, whatever the destination.
    pub pool: Pool,
    /// How long TIME_WAIT lasts.
    pub length: Length,
    /// The destination, from the local address that the connection would have.
    pub destination: Destination,
}

/// What decides whether connect() works, as measured.
#[derive(Clone, Debug)]
pub struct Situation {
    /// The facts of the network namespace.
    pub facts: Facts,
    /// The remote address. An IPv4-mapped address is for an `AF_INET6` socket.
    pub to: BindAddr,
    /// The remote port.
    pub to_port: Port,
    /// The address that the client binds before connect().
    pub from: Option<BindAddr>,
    /// The port that the client binds before connect().
    pub from_port: Option<Port>,
    /// The options that the client sets before bind().
    pub with: ReuseOptions,
    /// The results of bind() with [`Self::with`], and with SO_REUSEADDR if that might help. Empty if the client does not bind.
    pub attempts: Vec<Attempt>,
    /// The local address of the connection, or the errno of connect() without a route.
    pub route: Result<IpAddr, Errno>,
    /// Every socket on the fixed source port.
    pub holders: Vec<Holder>,
    /// Whether the source lists sockets that are bound without listening.
    pub bound_sockets_are_listed: bool,
    /// When connect() may take over a bucket.
    pub reuse: TwReuse,
    /// The ports that connect() may choose, if the client fixes none and there is a route.
    pub choice: Option<Choice>,
    /// The effective user of this process.
    pub uid: u32,
}

/// The verdict and what it depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conclusion {
    /// The verdict.
    pub verdict: Verdict,
    /// Its reason.
    pub cause: Cause,
    /// The call that fails, and its errno. With [`Verdict::Unknown`]: the failure that is possible.
    pub failure: Option<(Call, Errno)>,
    /// If the verdict is unknown: the probable one, inferred from `net.ipv4.tcp_timestamps`.
    pub inferred: Option<Verdict>,
    /// The ports left for this destination; `None` with a fixed source port, or without an answer.
    pub free: Option<u32>,
    /// The time until the obstacle ends by itself, if only buckets are in the way.
    pub free_in: Option<Duration>,
}

/// Whether a socket has these ends, so that a connection with the same ends conflicts with it. A socket that is bound to another
/// interface does not (`inet_match` in net/inet_hashtables.h).
#[must_use]
pub fn has_ends(socket: &Socket, local: SocketAddr, remote: SocketAddr, interface: Option<NonZeroU32>) -> bool {
    let tuple = socket.tuple();
    let connected = !matches!(socket.state(), TcpState::Listen | TcpState::Closed | TcpState::BoundInactive);
    connected
        && (tuple.local_addr(), tuple.local_port().0) == (local.ip(), local.port())
        && (tuple.remote_addr(), tuple.remote_port().0) == (remote.ip(), remote.port())
        && (socket.interface().is_none() || socket.interface() == interface)
}

impl Situation {
    /// The conditions that the number of free ports depends on.
    #[must_use]
    pub const fn conditions<'a>(&self, choice: &'a Choice) -> Conditions<'a> {
        Conditions { pool: &choice.pool, reuse: self.reuse, length: choice.length }
    }

    /// The interface that the socket is bound to by the scope of a link-local address.
    fn interface(&self) -> Option<NonZeroU32> {
        self.from.and_then(|at| at.scope).or(self.to.scope)
    }

    /// The remote end without its scope.
    fn remote(&self) -> SocketAddr {
        SocketAddr::new(self.to.addr.to_canonical(), self.to_port.0)
    }

    /// Whether this socket has the four values of the connection.
    #[must_use]
    pub fn is_same_connection(&self, socket: &Socket) -> bool {
        let ends = self.route.ok().zip(self.from_port).map(|(local, port)| SocketAddr::new(local, port.0));
        ends.is_some_and(|local| has_ends(socket, local, self.remote(), self.interface()))
    }

    fn same_connection(&self) -> Option<&Holder> {
        self.holders.iter().find(|holder| self.is_same_connection(&holder.socket))
    }

    /// The result of bind() with the client's own options.
    fn bind(&self) -> Option<CallResult> {
        self.attempts.first().map(|attempt| attempt.bind)
    }

    /// The conclusion for the same client with SO_REUSEADDR; `None` if its bind() fails too, or was not tried.
    fn with_reuseaddr(&self) -> Option<Conclusion> {
        let attempts = self.attempts.get(1..).filter(|_| self.reuseaddr_helps())?.to_vec();
        Some(Self { attempts, ..self.clone() }.conclude())
    }

    /// Whether a bind with SO_REUSEADDR works although one without it fails.
    fn reuseaddr_helps(&self) -> bool {
        self.attempts.iter().skip(1).any(|attempt| attempt.bind == CallResult::Ok)
    }

    /// Why the client's bind() fails.
    fn bind_cause(&self) -> bind::Cause {
        let own = self.attempts.get(..1).unwrap_or_default();
        verdict::cause(&self.facts, self.from_port.unwrap_or(Port(0)), own, &self.holders, self.reuseaddr_helps())
    }

    /// Whether bind() of the address alone finds no port, while connect() may find one (IP_BIND_ADDRESS_NO_PORT).
    fn bind_without_port_is_full(&self) -> bool {
        self.from_port.is_none() && self.bind() == Some(CallResult::Failed(Errno::AddrInUse))
    }

    /// Draws the conclusion.
    #[must_use]
    pub fn conclude(&self) -> Conclusion {
        match self.bind() {
            Some(CallResult::Failed(errno)) if !self.bind_without_port_is_full() => return self.bind_fails(errno),
            _ => {}
        }
        if let Err(errno) = self.route {
            let (call, cause) = match errno {
                Errno::FamilyNotSupported => (Call::Socket, Cause::FamilyUnsupported),
                _ => (Call::Connect, Cause::NoRoute),
            };
            return Conclusion::fails(Verdict::Denied, cause, call, errno);
        }
        if self.from_port.is_some() {
            return self.with_fixed_port();
        }
        self.choice.as_ref().map_or(Conclusion::UNKNOWN, with_chosen_port)
    }

    fn bind_fails(&self, errno: Errno) -> Conclusion {
        let cause = match self.bind_cause() {
            bind::Cause::Listener | bind::Cause::Bound => Cause::Bound,
            bind::Cause::Connection => Cause::AddressInUse,
            bind::Cause::TimeWait | bind::Cause::TimeWaitWithoutReuseaddr => Cause::TimeWait,
            bind::Cause::PrivilegedPort => Cause::PrivilegedPort,
            bind::Cause::AddressNotLocal => Cause::AddressNotLocal,
            bind::Cause::FamilyUnsupported => Cause::FamilyUnsupported,
            bind::Cause::None | bind::Cause::OwnSocket | bind::Cause::Unknown => Cause::Unknown,
        };
        let verdict = if errno == Errno::AddrInUse { Verdict::Blocked } else { Verdict::Denied };
        let call = if errno == Errno::FamilyNotSupported { Call::Socket } else { Call::Bind };
        let sockets = self.holders.iter().map(|holder| &holder.socket);
        let own = self.attempts.get(..1).unwrap_or_default();
        let free_in = if cause == Cause::TimeWait { conflict::free_in(own, &sockets) } else { None };
        Conclusion { free_in, ..Conclusion::fails(verdict, cause, call, errno) }
    }

    fn with_fixed_port(&self) -> Conclusion {
        let fails = |verdict, cause| Conclusion::fails(verdict, cause, Call::Connect, Errno::AddrNotAvailable);
        match self.same_connection().map(|holder| holder.socket) {
            None => Conclusion::FREE,
            Some(Socket::Full(_)) => fails(Verdict::Blocked, Cause::AddressInUse),
            Some(Socket::Bucket(bucket)) => Conclusion {
                inferred: self.reuse.timestamps.map(|on| if on { Verdict::Free } else { Verdict::Blocked }),
                free_in: Some(bucket.expires()),
                ..fails(Verdict::Unknown, Cause::TimeWait)
            },
        }
    }
}

/// The conclusion for a client that lets connect() choose the port.
fn with_chosen_port(choice: &Choice) -> Conclusion {
    let one = &choice.destination;
    let none_left = Conclusion::fails(Verdict::Blocked, Cause::Exhausted, Call::Connect, Errno::AddrNotAvailable);
    let reusable = one.reusable.unwrap_or_default();
    let certain = one.free.saturating_sub(one.uncertain.saturating_add(reusable));
    // Buckets do not count as free if the settings that decide about them could not be read.
    let unread = one.reusable.is_none() && one.time_wait > 0;
    let conclusion = match (certain, one.free) {
        (1.., _) => Conclusion::FREE,
        (0, 0) if !unread => Conclusion { free_in: one.first_released, ..none_left },
        (0, _) => Conclusion {
            verdict: Verdict::Unknown,
            cause: if reusable > 0 || unread { Cause::TimeWait } else { Cause::Unknown },
            inferred: (reusable > 0).then_some(Verdict::Free),
            ..none_left
        },
    };
    Conclusion { free: Some(one.free), ..conclusion }
}

impl Conclusion {
    const FREE: Self =
        Self { verdict: Verdict::Free, cause: Cause::None, failure: None, inferred: None, free: None, free_in: None };
    const UNKNOWN: Self = Self { verdict: Verdict::Unknown, cause: Cause::Unknown, ..Self::FREE };

    const fn fails(verdict: Verdict, cause: Cause, call: Call, errno: Errno) -> Self {
        Self { verdict, cause, failure: Some((call, errno)), ..Self::FREE }
    }
}

#[cfg(test)]
mod tests;
