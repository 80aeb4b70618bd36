//! Decides whether connect() gets a local address and port. The kernel decides in this order, and so does
//! [`Situation::conclude`]:
//!
//! 1. bind(), if the client binds an address or a port. twtool makes a real bind. Without a port, bind() chooses one that no
//!    socket on the address has. With IP_BIND_ADDRESS_NO_PORT, it leaves the choice to connect().
//! 2. The route, which also gives the local address (`tcp_v4_connect` in net/ipv4/tcp_ipv4.c). twtool finds both with
//!    connect() of a UDP socket, which sends nothing.
//! 3. The port (`__inet_hash_connect` in net/ipv4/inet_hashtables.c):
//!    - A fixed port fails only if a socket with the same *four values* exists (both addresses and both ports). If this socket is a
//!      bucket, connect() takes it over if the old connection had TCP timestamps, whatever `tcp_tw_reuse` is. The kernel does not
//!      report whether the old connection had timestamps.
//!    - Without a fixed port, connect() searches the ephemeral range. [`super::capacity`] repeats that search.
//!
//! No step calls connect() of a TCP socket to the destination. Even a connect() that sends nothing destroys the bucket that it takes over.

pub mod advice;
pub mod headline;

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

/// Whether connect() gets an address and a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectVerdict {
    /// connect() finds an address and a port.
    Free,
    /// The source port is in use, or no port is left.
    Blocked,
    /// connect() fails for a reason that has nothing to do with ports in use.
    Denied,
    /// The verdict depends on a fact that the kernel does not report.
    Unknown,
}

impl ConnectVerdict {
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

/// The reason of a [`ConnectVerdict`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectCause {
    /// Nothing blocks connect().
    None,
    /// connect() has no port left for this destination.
    Exhausted,
    /// A connection has the port.
    AddressInUse,
    /// Only buckets have the fixed port, or each port that is left.
    TimeWait,
    /// A listener or a bound socket has the port.
    Bound,
    /// The source address is not an address of this network namespace.
    AddressNotLocal,
    /// The kernel finds no route, or no source address for it.
    NoRoute,
    /// The source port needs CAP_NET_BIND_SERVICE.
    PrivilegedPort,
    /// The kernel cannot create IPv6 sockets.
    FamilyUnsupported,
    /// bind() fails for an unknown reason, or it is uncertain whether a port is free.
    Unknown,
}

impl ConnectCause {
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

/// The system call that fails in a connect test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of the system calls")]
pub enum FailingCall {
    Socket,
    Bind,
    Connect,
}

impl FailingCall {
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

/// The ports that connect() may choose from, and the ports that are left for one destination.
#[derive(Clone, Debug)]
pub struct PortChoice {
    /// The ports that connect() may choose from, whatever the destination.
    pub pool: Pool,
    /// How long TIME_WAIT lasts.
    pub length: Length,
    /// The destination, seen from the local address that the connection would have.
    pub destination: Destination,
}

/// The measured facts that decide whether connect() works.
#[derive(Clone, Debug)]
pub struct Situation {
    /// The facts of the network namespace.
    pub facts: Facts,
    /// The remote address. An IPv4-mapped address means that the client uses an `AF_INET6` socket.
    pub to: BindAddr,
    /// The remote port.
    pub to_port: Port,
    /// The address that the client binds before connect().
    pub from: Option<BindAddr>,
    /// The port that the client binds before connect().
    pub from_port: Option<Port>,
    /// The options that the client sets before bind().
    pub with: ReuseOptions,
    /// Whether the client sets IP_BIND_ADDRESS_NO_PORT before it binds an address without a port.
    pub bind_address_no_port: bool,
    /// The results of bind() with [`Self::with`], and with SO_REUSEADDR if that might help. Empty if the client does not bind.
    pub attempts: Vec<Attempt>,
    /// The local address of the connection, or the errno if the kernel finds no route.
    pub route: Result<IpAddr, Errno>,
    /// Every socket on the fixed source port.
    pub holders: Vec<Holder>,
    /// Whether the source of `holders` (sock_diag or procfs) lists sockets that are bound and do not listen.
    pub bound_sockets_are_listed: bool,
    /// When connect() may take over a bucket.
    pub reuse: TwReuse,
    /// The ports that connect() may choose; `None` if the client binds a port, if there is no route, or if the ports were not counted.
    pub choice: Option<PortChoice>,
    /// The effective user ID of twtool.
    pub uid: u32,
}

/// The result of a connect test: the verdict, its reason, and the numbers that belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectConclusion {
    /// The verdict.
    pub verdict: ConnectVerdict,
    /// The reason of the verdict.
    pub cause: ConnectCause,
    /// The call that fails, and its errno. With [`ConnectVerdict::Unknown`]: the failure that is possible.
    pub failure: Option<(FailingCall, Errno)>,
    /// If the verdict is unknown: the probable verdict. With a fixed source port, twtool infers it from `net.ipv4.tcp_timestamps`.
    /// Without one, the verdict is probably free if connect() may take over a bucket.
    pub inferred: Option<ConnectVerdict>,
    /// The number of ports that connect() may choose for this destination; `None` if the port is fixed, if the verdict is
    /// [`ConnectVerdict::Denied`], or if the ports were not counted.
    pub free: Option<u32>,
    /// The time until the blocking sockets end by themselves, if only buckets block. If no port is left: the time until the first
    /// bucket releases a port.
    pub free_in: Option<Duration>,
}

/// Whether a socket has these ends, so that a connection with the same ends conflicts with it. A socket that is bound to
/// another interface does not conflict (`inet_match` in net/inet_hashtables.h).
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
    pub const fn conditions<'a>(&self, choice: &'a PortChoice) -> Conditions<'a> {
        Conditions { pool: &choice.pool, reuse: self.reuse, length: choice.length }
    }

    /// The interface to which the scope of a link-local address binds the socket.
    fn interface(&self) -> Option<NonZeroU32> {
        self.from.and_then(|at| at.scope).or(self.to.scope)
    }

    fn remote(&self) -> SocketAddr {
        SocketAddr::new(self.to.addr.to_canonical(), self.to_port.0)
    }

    /// Whether this socket has the four values of the connection: both addresses and both ports.
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

    /// The conclusion for the same client with SO_REUSEADDR; `None` if the bind() of that client also fails, or was not tried.
    fn with_reuseaddr(&self) -> Option<ConnectConclusion> {
        let attempts = self.attempts.get(1..).filter(|_| self.reuseaddr_helps())?.to_vec();
        Some(Self { attempts, ..self.clone() }.conclude())
    }

    /// Whether a bind with SO_REUSEADDR works although one without it fails.
    fn reuseaddr_helps(&self) -> bool {
        self.attempts.iter().skip(1).any(|attempt| attempt.bind == CallResult::Ok)
    }

    fn bind_cause(&self) -> bind::Cause {
        let own = self.attempts.get(..1).unwrap_or_default();
        verdict::cause(&self.facts, self.from_port.unwrap_or(Port(0)), own, &self.holders, self.reuseaddr_helps())
    }

    /// Whether bind() of an address without a port finds no port. connect() may still find one.
    fn bind_finds_no_port(&self) -> bool {
        self.from_port.is_none() && self.bind() == Some(CallResult::Failed(Errno::AddrInUse))
    }

    fn bind_chooses(&self) -> bool {
        self.from_port.is_none() && self.from.is_some() && !self.bind_address_no_port
    }

    /// Concludes whether connect() gets an address and a port, by the steps at the top of this file.
    #[must_use]
    pub fn conclude(&self) -> ConnectConclusion {
        match self.bind() {
            Some(CallResult::Failed(_)) if self.bind_address_no_port && self.bind_finds_no_port() => {}
            Some(CallResult::Failed(errno)) => return self.bind_fails(errno),
            Some(CallResult::Ok) | None => {}
        }
        if let Err(errno) = self.route {
            let (call, cause) = match errno {
                Errno::FamilyNotSupported => (FailingCall::Socket, ConnectCause::FamilyUnsupported),
                _ => (FailingCall::Connect, ConnectCause::NoRoute),
            };
            return ConnectConclusion::fails(ConnectVerdict::Denied, cause, call, errno);
        }
        if self.from_port.is_some() {
            return self.with_fixed_port();
        }
        let chosen = self.chosen_by_connect();
        // No socket on the address has the port that bind() chooses, so none has the same four values.
        if self.bind_chooses() { ConnectConclusion { free: chosen.free, ..ConnectConclusion::FREE } } else { chosen }
    }

    fn chosen_by_connect(&self) -> ConnectConclusion {
        self.choice.as_ref().map_or(ConnectConclusion::UNKNOWN, with_chosen_port)
    }

    fn bind_fails(&self, errno: Errno) -> ConnectConclusion {
        if self.bind_finds_no_port() {
            let free = self.chosen_by_connect().free;
            let fails =
                ConnectConclusion::fails(ConnectVerdict::Blocked, ConnectCause::Exhausted, FailingCall::Bind, errno);
            return ConnectConclusion { free, ..fails };
        }
        let cause = match self.bind_cause() {
            bind::Cause::Listener | bind::Cause::Bound => ConnectCause::Bound,
            bind::Cause::Connection => ConnectCause::AddressInUse,
            bind::Cause::TimeWait | bind::Cause::TimeWaitWithoutReuseaddr => ConnectCause::TimeWait,
            bind::Cause::PrivilegedPort => ConnectCause::PrivilegedPort,
            bind::Cause::AddressNotLocal => ConnectCause::AddressNotLocal,
            bind::Cause::FamilyUnsupported => ConnectCause::FamilyUnsupported,
            bind::Cause::None | bind::Cause::OwnSocket | bind::Cause::Unknown => ConnectCause::Unknown,
        };
        let verdict = if errno == Errno::AddrInUse { ConnectVerdict::Blocked } else { ConnectVerdict::Denied };
        let call = if errno == Errno::FamilyNotSupported { FailingCall::Socket } else { FailingCall::Bind };
        let sockets = self.holders.iter().map(|holder| &holder.socket);
        let own = self.attempts.get(..1).unwrap_or_default();
        let free_in = if cause == ConnectCause::TimeWait { conflict::free_in(own, &sockets) } else { None };
        ConnectConclusion { free_in, ..ConnectConclusion::fails(verdict, cause, call, errno) }
    }

    fn with_fixed_port(&self) -> ConnectConclusion {
        let fails =
            |verdict, cause| ConnectConclusion::fails(verdict, cause, FailingCall::Connect, Errno::AddrNotAvailable);
        match self.same_connection().map(|holder| holder.socket) {
            None => ConnectConclusion::FREE,
            Some(Socket::Full(_)) => fails(ConnectVerdict::Blocked, ConnectCause::AddressInUse),
            Some(Socket::Bucket(bucket)) => ConnectConclusion {
                inferred: self
                    .reuse
                    .timestamps
                    .map(|on| if on { ConnectVerdict::Free } else { ConnectVerdict::Blocked }),
                free_in: Some(bucket.expires()),
                ..fails(ConnectVerdict::Unknown, ConnectCause::TimeWait)
            },
        }
    }
}

fn with_chosen_port(choice: &PortChoice) -> ConnectConclusion {
    let one = &choice.destination;
    let none_left = ConnectConclusion::fails(
        ConnectVerdict::Blocked,
        ConnectCause::Exhausted,
        FailingCall::Connect,
        Errno::AddrNotAvailable,
    );
    let reusable = one.reusable.unwrap_or_default();
    let certain = one.free.saturating_sub(one.uncertain.saturating_add(reusable));
    // If the settings for the take-over of buckets could not be read, buckets do not count as free.
    let unread = one.reusable.is_none() && one.time_wait > 0;
    let conclusion = match (certain, one.free) {
        (1.., _) => ConnectConclusion::FREE,
        (0, 0) if !unread => ConnectConclusion { free_in: one.first_released, ..none_left },
        (0, _) => ConnectConclusion {
            verdict: ConnectVerdict::Unknown,
            cause: if reusable > 0 || unread { ConnectCause::TimeWait } else { ConnectCause::Unknown },
            inferred: (reusable > 0).then_some(ConnectVerdict::Free),
            ..none_left
        },
    };
    ConnectConclusion { free: Some(one.free), ..conclusion }
}

impl ConnectConclusion {
    const FREE: Self = Self {
        verdict: ConnectVerdict::Free,
        cause: ConnectCause::None,
        failure: None,
        inferred: None,
        free: None,
        free_in: None,
    };
    const UNKNOWN: Self = Self { verdict: ConnectVerdict::Unknown, cause: ConnectCause::Unknown, ..Self::FREE };

    const fn fails(verdict: ConnectVerdict, cause: ConnectCause, call: FailingCall, errno: Errno) -> Self {
        Self { verdict, cause, failure: Some((call, errno)), ..Self::FREE }
    }
}

#[cfg(test)]
mod tests;
