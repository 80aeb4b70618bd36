//! Counts the ports that connect() has left for each destination before it fails with EADDRNOTAVAIL. A *destination* is a local
//! address, a remote address and a remote port, and the interface that the socket is bound to, if any. The code repeats the kernel's
//! search for a port (`__inet_hash_connect` in net/ipv4/inet_hashtables.c) on the listed sockets:
//!
//! 1. The *pool* is the ephemeral range without the reserved ports, and without the ports that a socket bound explicitly, on
//!    any address and of either family. The pool is the same for every destination.
//! 2. A port of the pool is busy for a destination if a connection with the destination's addresses and remote port has it, even a
//!    connection of a socket to itself. If the destination has an interface, connections bound to no interface count, too.
//! 3. A port that only a bucket has is free if `tcp_tw_reuse` lets connect() take the bucket over.

pub mod advice;
pub mod exhaustion;
pub mod sockets;

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use super::history::{History, Length, RemainingTimes};
use crate::model::port::{LocalReservedPorts, Port, PortRange};
use crate::model::port_set::PortSet;
use crate::model::time::milliseconds;
use crate::model::tw_reuse::TwReuse;
use exhaustion::Load;
use sockets::{ConnectionEnds, PortHold, RangeConnection, RangeSockets};

/// The ports from which connect() can choose, whatever the destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// `ip_local_port_range`.
    pub range: PortRange,
    /// The ports of the range that are in `ip_local_reserved_ports`.
    pub reserved: PortSet,
    /// The other ports of the range that a socket bound explicitly.
    pub explicitly_bound: PortSet,
    /// The ports of the pool that a socket may have bound explicitly. twtool counts them as not bound.
    pub uncertain: PortSet,
    /// The maximum number of sockets that the source does not list and that may have bound another port of the pool explicitly.
    pub unlisted: u32,
    /// The ports of the pool.
    ports: PortSet,
    /// The number of ports of the pool.
    pub size: u32,
}

impl Pool {
    /// The pool of a range. `bound` and `uncertain` may contain reserved ports.
    #[must_use]
    pub fn new(
        range: PortRange,
        reserved: &LocalReservedPorts,
        bound: &PortSet,
        uncertain: &PortSet,
        unlisted: u32,
    ) -> Self {
        let select =
            |wanted: &dyn Fn(Port) -> bool| -> PortSet { range.ports().filter(|port| wanted(*port)).collect() };
        let reserved = select(&|port| reserved.contains(port));
        let explicitly_bound = select(&|port| bound.contains(port) && !reserved.contains(port));
        let ports = select(&|port| !reserved.contains(port) && !explicitly_bound.contains(port));
        let uncertain = select(&|port| uncertain.contains(port) && ports.contains(port));
        Self { range, reserved, explicitly_bound, uncertain, unlisted, size: ports.count(), ports }
    }

    /// The maximum number of ports of the pool that are perhaps bound explicitly.
    #[must_use]
    pub fn most_uncertain(&self) -> u32 {
        self.uncertain.count() + self.unlisted.min(self.size - self.uncertain.count())
    }
}

/// A selection of destinations. A field that is `None` matches everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DestinationFilter {
    /// The remote address.
    pub remote_addr: Option<IpAddr>,
    /// The remote port.
    pub remote_port: Option<Port>,
    /// The local address.
    pub local_addr: Option<IpAddr>,
    /// The interface that the socket is bound to.
    pub interface: Option<NonZeroU32>,
    /// `true`: only IPv4 on the wire; `false`: only IPv6.
    pub ipv4: Option<bool>,
}

impl DestinationFilter {
    fn matches(&self, ends: &ConnectionEnds) -> bool {
        let fits = |wanted: Option<IpAddr>, addr| wanted.is_none_or(|wanted| wanted == addr);
        fits(self.remote_addr, ends.remote_addr)
            && fits(self.local_addr, ends.local_addr)
            && self.remote_port.is_none_or(|port| port == ends.remote_port)
            && self.interface.is_none_or(|interface| Some(interface) == ends.interface)
            && self.ipv4.is_none_or(|ipv4| ipv4 != ends.ipv6)
    }
}

/// The conditions that are the same for every destination: the pool, and how long a bucket holds a port.
#[derive(Clone, Copy, Debug)]
pub struct Conditions<'a> {
    /// The pool of ports.
    pub pool: &'a Pool,
    /// When connect() may take over a bucket.
    pub reuse: TwReuse,
    /// How long TIME_WAIT lasts.
    pub length: Length,
}

/// A destination, with the ports in use and the ports left for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Destination {
    /// Its addresses, its remote port, and the interface that its sockets are bound to.
    pub ends: ConnectionEnds,
    /// Established connections on ports of the range.
    pub established: u32,
    /// TIME_WAIT buckets on ports of the range.
    pub time_wait: u32,
    /// Connections in other states, including FIN_WAIT_2 buckets.
    pub other: u32,
    /// Buckets that connect() can take over now; `None` if a setting that decides this could not be read.
    pub reusable: Option<u32>,
    /// Buckets that connect() can take over now or within 1 s.
    pub reusable_within_1s: Option<u32>,
    /// The number of further connect() calls that would succeed now. Ports of reusable buckets count as free. So do uncertain
    /// ports, and ports of buckets that are perhaps reusable (see [`TwReuse::whole_seconds`]).
    pub free: u32,
    /// By how much [`Self::free`] may be too high.
    pub uncertain: u32,
    /// Closes per second over the last minute; `None` if no second of the minute is known.
    pub closes_per_s: Option<f64>,
    /// Closes per second at present: see [`exhaustion::period`].
    pub closes_per_s_now: Option<f64>,
    /// The highest number of closes per second at which the ports never run out; `None` if a bucket does not hold its port at all.
    pub sustainable_per_s: Option<f64>,
    /// The time until no port is left at the present rate; `None` if that does not happen. See [`exhaustion`].
    pub exhausted_in: Option<Duration>,
    /// If no port is free: the time until the first port becomes free because its TIME_WAIT buckets end. `None` if a port is free, or if
    /// another kind of socket is on every port.
    pub first_released: Option<Duration>,
}

/// The selected destinations, the most urgent one first ([`Destination::urgency`]). `also` is included even if no connection to
/// it exists.
#[must_use]
pub fn destinations(
    sockets: RangeSockets,
    conditions: &Conditions,
    wanted: &DestinationFilter,
    also: Option<ConnectionEnds>,
) -> Vec<Destination> {
    let connected = sockets.into_outbound();
    let mut found = vec![];
    let unbound = |ends: ConnectionEnds| ConnectionEnds { interface: None, ..ends };
    for route in connected.chunk_by(|a, b| a.route() == b.route()) {
        // Sockets that are bound to no interface come first in the order.
        let any_interface = route.partition_point(|one| one.interface().is_none());
        for group in route.chunk_by(|a, b| a.interface() == b.interface()) {
            let ends = group[0].ends();
            // Sockets that are bound to no interface take ports away from sockets that are bound to an interface, but not vice versa.
            let others = if ends.interface.is_some() { &route[..any_interface] } else { &[] };
            if !wanted.matches(&ends) {
                continue;
            }
            if !group.iter().any(RangeConnection::is_self_connection) {
                found.push(Destination::new(ends, group, others, conditions));
                continue;
            }
            // A socket that is connected to itself does not count as a connection to the destination.
            let (to_itself, own): (Vec<_>, Vec<_>) = group.iter().partition(|one| one.is_self_connection());
            if !own.is_empty() {
                let others = [to_itself.as_slice(), others].concat();
                found.push(Destination::new(ends, &own, &others, conditions));
            }
        }
    }
    if let Some(ends) = also.filter(|ends| found.iter().all(|one: &Destination| one.ends != *ends)) {
        let others: Vec<RangeConnection> =
            connected.iter().filter(|one| one.ends() == unbound(ends)).copied().collect();
        found.push(Destination::new(ends, &[], &others, conditions));
    }
    found.sort_by_key(|one| {
        let in_use = one.established + one.time_wait + one.other;
        (one.urgency(), u32::MAX - in_use, one.ends)
    });
    found
}

impl Destination {
    /// A sort key: a destination with a smaller key needs attention earlier. The key is the time until no port is left, then the number
    /// of free ports. The time comes first, because a destination with more free ports can run out earlier if its rate is higher.
    #[must_use]
    pub fn urgency(&self) -> (Duration, u32) {
        (self.exhausted_in.unwrap_or(Duration::MAX), self.free)
    }

    /// `others` are connections that do not belong to the destination, and that hold ports which it could use.
    fn new(ends: ConnectionEnds, own: &[RangeConnection], others: &[RangeConnection], conditions: &Conditions) -> Self {
        let Conditions { pool, reuse, length } = *conditions;
        let length_ms = u64::from(length.seconds) * 1000;
        let applies = reuse.applies(ends.local_addr, ends.remote_addr, ends.interface);
        let delay_ms = milliseconds(reuse.delay);
        // The age of a bucket. If a FIN restarted its timer, the result is less than the age.
        let age = |expires_ms: u32| length_ms.saturating_sub(expires_ms.into());
        // In ms from now. `None` if connect() can never, or only perhaps, take over the bucket.
        let reusable_in = |one: &RangeConnection| match one.hold {
            PortHold::TimeWait { expires_ms } if applies == Some(true) => {
                Some(delay_ms.saturating_sub(age(expires_ms)))
            }
            _ => None,
        };
        let perhaps_reusable = |one: &RangeConnection| {
            let bucket = matches!(one.hold, PortHold::TimeWait { .. } | PortHold::HalfClosed);
            bucket && applies == Some(true) && reuse.whole_seconds && reusable_in(one) != Some(0)
        };
        let count = |wanted: &dyn Fn(PortHold) -> bool| count_u32(own.iter().filter(|one| wanted(one.hold)));
        let time_wait = count(&|hold| matches!(hold, PortHold::TimeWait { .. }));
        let established = count(&|hold| hold == PortHold::Established);

        let in_pool = || own.iter().chain(others).filter(|one| pool.ports.contains(one.port()));
        let ports_of = |wanted: &dyn Fn(&RangeConnection) -> bool| {
            let mut ports: Vec<Port> = in_pool().filter(|one| wanted(one)).map(RangeConnection::port).collect();
            ports.sort_unstable();
            ports.dedup();
            ports
        };
        let busy = ports_of(&|one| reusable_in(one) != Some(0) && !perhaps_reusable(one));
        let is_free = |port: Port| pool.ports.contains(port) && busy.binary_search(&port).is_err();
        let free = pool.size - count_u32(busy.iter());
        let uncertain = pool.uncertain.count() - count_u32(busy.iter().filter(|port| pool.uncertain.contains(**port)));
        let perhaps = ports_of(&perhaps_reusable);
        let doubtful =
            uncertain + count_u32(perhaps.iter().filter(|port| is_free(**port) && !pool.uncertain.contains(**port)));
        let doubtful = doubtful + pool.unlisted.min(free - doubtful);
        // If the range has an odd number of ports, each search of the kernel leaves out the lowest or the highest.
        let (range, [low, high]) = (pool.range, [pool.range.first(), pool.range.last()]);
        let left_out = range.count() % 2 == 1 && low != high && (is_free(low) || is_free(high));

        let reusable_within = |ms: u64| {
            let soon =
                |one: &&RangeConnection| pool.ports.contains(one.port()) && reusable_in(one).is_some_and(|at| at <= ms);
            applies.map(|_| count_u32(own.iter().filter(soon)))
        };
        let mut times = RemainingTimes::default();
        let expiries = own.iter().filter_map(|one| match one.hold {
            PortHold::TimeWait { expires_ms } => Some(expires_ms),
            _ => None,
        });
        expiries.clone().for_each(|expires_ms| times.add(expires_ms));
        let length_of_hold = Duration::from_millis(length_ms);
        let hold = if applies == Some(true) { length_of_hold.min(reuse.delay) } else { length_of_hold };
        let ages: Vec<u64> = expiries.map(age).collect();
        let window = exhaustion::period(&ages).min(hold);
        let recent = count_u32(ages.iter().filter(|age| **age < milliseconds(window)));
        let per = |number: u32, time: Duration| (!time.is_zero()).then(|| f64::from(number) / time.as_secs_f64());
        let closes_per_s_now = per(recent, window);
        let released = |one: &RangeConnection| match one.hold {
            PortHold::TimeWait { expires_ms } => Some(reusable_in(one).unwrap_or(expires_ms.into())),
            _ => None,
        };
        let first_released = if free == 0 { first_released(in_pool()) } else { None };
        let load = Load {
            free,
            per_s: closes_per_s_now.unwrap_or_default(),
            released_ms: in_pool().filter(|one| busy.binary_search(&one.port()).is_ok()).filter_map(released).collect(),
            hold,
        };
        Self {
            ends,
            established,
            time_wait,
            other: count_u32(own.iter()) - established - time_wait,
            reusable: reusable_within(0),
            reusable_within_1s: reusable_within(1000),
            free,
            uncertain: (doubtful + u32::from(left_out)).min(free),
            closes_per_s: History::from_remaining_times(&times, length).mean(),
            closes_per_s_now,
            sustainable_per_s: per(pool.size, hold),
            exhausted_in: load.exhausted_in(),
            first_released,
        }
    }
}

/// The time until a port has no connection left, if only the timers of TIME_WAIT buckets end connections.
fn first_released<'a>(connections: impl Iterator<Item = &'a RangeConnection>) -> Option<Duration> {
    let expiry = |one: &RangeConnection| match one.hold {
        PortHold::TimeWait { expires_ms } => Some(expires_ms),
        _ => None,
    };
    let mut holds: Vec<(Port, Option<u32>)> = connections.map(|one| (one.port(), expiry(one))).collect();
    holds.sort_unstable();
    // If several connections are on one port, the port is released when the last of them ends.
    let released = |port: &[(Port, Option<u32>)]| {
        port.iter().map(|(_, expiry)| *expiry).collect::<Option<Vec<_>>>()?.into_iter().max()
    };
    let first = holds.chunk_by(|a, b| a.0 == b.0).filter_map(released).min()?;
    Some(Duration::from_millis(first.into()))
}

/// The number of elements. A destination has at most one connection on each of 65,536 ports, so the number is far below 2^32.
fn count_u32(things: impl Iterator) -> u32 {
    u32::try_from(things.count()).unwrap_or(u32::MAX)
}

/// The minimum number of free ports that a destination should have (`--min-free`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MinFree {
    /// A number of ports.
    Ports(u32),
    /// A share of the pool in percent.
    Percent(u32),
}

impl MinFree {
    /// Whether a destination with this number of free ports has too few.
    #[must_use]
    pub fn is_missed(self, free: u32, pool: u32) -> bool {
        match self {
            Self::Ports(ports) => free < ports,
            Self::Percent(percent) if pool == 0 => percent > 0,
            Self::Percent(percent) => u64::from(free) * 100 < u64::from(percent) * u64::from(pool),
        }
    }
}

#[cfg(test)]
mod tests;
