//! The sockets that hold ports of the ephemeral range, collected during a walk and sorted by destination.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroU32;

use crate::analysis::direction;
use crate::model::listeners::Listeners;
use crate::model::port::{Port, PortRange};
use crate::model::port_set::PortSet;
use crate::model::row::Direction;
use crate::model::socket::{FourTuple, Socket, TcpState};

/// The state in which a connection holds its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PortHold {
    Established,
    /// A TIME_WAIT bucket, with its remaining time.
    TimeWait {
        expires_ms: u32,
    },
    /// A FIN_WAIT_2 bucket.
    HalfClosed,
    /// Any other state of a connection.
    Other,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct RangeConnection {
    tuple: FourTuple,
    interface: Option<NonZeroU32>,
    pub(super) hold: PortHold,
}

/// The ends of a connection without its local port. Two connections with equal values cannot share a local port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionEnds {
    /// Whether the connection uses IPv6 on the wire.
    pub ipv6: bool,
    /// The local address; IPv4-mapped addresses as IPv4.
    pub local_addr: IpAddr,
    /// The remote address; IPv4-mapped addresses as IPv4.
    pub remote_addr: IpAddr,
    /// The remote port.
    pub remote_port: Port,
    /// The interface to which SO_BINDTODEVICE or a link-local address binds the socket.
    pub interface: Option<NonZeroU32>,
}

impl RangeConnection {
    pub(super) fn ends(&self) -> ConnectionEnds {
        ConnectionEnds {
            ipv6: !self.tuple.family.ipv4_on_the_wire(),
            local_addr: self.tuple.local_addr(),
            remote_addr: self.tuple.remote_addr(),
            remote_port: self.tuple.remote_port(),
            interface: self.interface,
        }
    }

    /// [`Self::ends`] without the interface, in a form that is cheaper to compare.
    pub(super) fn route(&self) -> (bool, u128, u128, Port) {
        let tuple = &self.tuple;
        (!tuple.family.ipv4_on_the_wire(), tuple.local_bits(), tuple.remote_bits(), tuple.remote_port())
    }

    pub(super) const fn interface(&self) -> Option<NonZeroU32> {
        self.interface
    }

    pub(super) const fn port(&self) -> Port {
        self.tuple.local_port()
    }

    pub(super) const fn is_self_connection(&self) -> bool {
        self.tuple.is_self_connection()
    }
}

/// The sockets of a walk that hold ports of the range.
#[derive(Debug)]
pub struct RangeSockets {
    range: PortRange,
    listeners: Listeners,
    bound: PortSet,
    connected: Vec<RangeConnection>,
}

impl RangeSockets {
    /// An empty collection for this range.
    #[must_use]
    pub fn new(range: PortRange) -> Self {
        Self { range, listeners: Listeners::default(), bound: PortSet::default(), connected: vec![] }
    }

    /// Adds a socket if its port lies in the range.
    pub fn add(&mut self, socket: &Socket) {
        let tuple = *socket.tuple();
        let port = tuple.local_port();
        if !self.range.contains(port) {
            return;
        }
        let hold = match socket {
            Socket::Bucket(bucket) if bucket.fin_wait_2 => PortHold::HalfClosed,
            Socket::Bucket(bucket) => PortHold::TimeWait { expires_ms: bucket.expires_ms },
            Socket::Full(full) => match full.state {
                TcpState::Listen => {
                    self.listeners.add(*full);
                    self.bound.insert(port);
                    return;
                }
                // A connect() that fails releases a port that the kernel chose. So if an unconnected socket has a port, its
                // program called bind().
                TcpState::Closed | TcpState::BoundInactive => {
                    self.bound.insert(port);
                    return;
                }
                TcpState::Established => PortHold::Established,
                _ => PortHold::Other,
            },
        };
        self.connected.push(RangeConnection { tuple, interface: socket.interface(), hold });
    }

    /// The range.
    #[must_use]
    pub const fn range(&self) -> PortRange {
        self.range
    }

    /// The longest remaining time of the TIME_WAIT buckets.
    #[must_use]
    pub fn largest_expiry_ms(&self) -> Option<u32> {
        let expiry = |one: &RangeConnection| match one.hold {
            PortHold::TimeWait { expires_ms } => Some(expires_ms),
            _ => None,
        };
        self.connected.iter().filter_map(expiry).max()
    }

    /// The ports that a socket certainly bound explicitly, because it listens or is not connected.
    #[must_use]
    pub const fn bound(&self) -> &PortSet {
        &self.bound
    }

    /// Further ports that a socket may have bound explicitly: the ports of connections and of buckets. The kernel does not
    /// report how such a socket got its port. (`INET_DIAG_BC_AUTO` does not help: it also matches sockets of bind() to port 0, and
    /// accepted sockets.)
    #[must_use]
    pub fn may_be_bound(&self) -> PortSet {
        let mut ports: PortSet = self.connected.iter().map(RangeConnection::port).collect();
        self.bound.iter().for_each(|port| ports.remove(port));
        ports
    }

    /// The number of connections for which it is unknown whether a local listener accepted them, because the source does not
    /// report the listener's IPV6_V6ONLY.
    #[must_use]
    pub fn of_unknown_direction(&self) -> usize {
        self.connected.iter().filter(|one| self.has_unknown_direction(one)).count()
    }

    fn has_unknown_direction(&self, one: &RangeConnection) -> bool {
        !one.is_self_connection() && self.listeners.cover(&one.tuple, one.interface).is_none()
    }

    /// The outbound connections, in the order of their [`ConnectionEnds`], without those that [`Self::of_unknown_direction`] counts.
    pub(super) fn into_outbound(mut self) -> Vec<RangeConnection> {
        let mut connected = std::mem::take(&mut self.connected);
        // If both ends have an ephemeral port and no listener covers either of them, the direction is unknown. A server whose listener
        // has closed has many remote ports for one local port. A client has many local ports for one remote port.
        let mut doubtful = vec![];
        connected.retain(|one| {
            let direction = direction::infer_with_range(Some(self.range), &self.listeners, &one.tuple, one.interface);
            if direction == Direction::Unknown && !self.has_unknown_direction(one) {
                doubtful.push(*one);
            }
            direction == Direction::Outbound
        });
        let (mut by_local, mut by_remote) = (HashMap::new(), HashMap::new());
        let near = |one: &RangeConnection| (one.tuple.local_bits(), one.port(), one.tuple.remote_bits());
        let far = |one: &RangeConnection| (one.tuple.local_bits(), one.tuple.remote_port(), one.tuple.remote_bits());
        for one in &doubtful {
            *by_local.entry(near(one)).or_insert(0_u32) += 1;
            *by_remote.entry(far(one)).or_insert(0_u32) += 1;
        }
        connected.extend(doubtful.iter().filter(|one| by_local.get(&near(one)) <= by_remote.get(&far(one))));
        connected.sort_unstable_by_key(|one| (one.route(), one.interface, one.port()));
        connected
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::model::socket::FullSocket;

    pub(in super::super) const LOW: u16 = 40_000;

    pub(in super::super) fn full(
        local: &str,
        local_port: u16,
        remote: &str,
        remote_port: u16,
        state: TcpState,
    ) -> Socket {
        let end = |addr: &str, port| (addr.parse().expect(addr), Port(port));
        Socket::Full(FullSocket {
            tuple: FourTuple::new(end(local, local_port), end(remote, remote_port)),
            state,
            uid: 0,
            inode: None,
            interface: None,
            mark: None,
            v6only: None,
            last_ack_ms: None,
            cookie: None,
        })
    }

    fn sockets(found: &[Socket]) -> RangeSockets {
        let mut sockets = RangeSockets::new(PortRange::new(Port(LOW), Port(LOW + 99)).expect("forwards"));
        for socket in found {
            sockets.add(socket);
        }
        sockets
    }

    fn ends(found: &[Socket]) -> Vec<(u16, u16)> {
        sockets(found).into_outbound().iter().map(|one| (one.port().0, one.ends().remote_port.0)).collect()
    }

    #[test]
    fn only_listeners_and_unconnected_sockets_certainly_bound_their_port() {
        let found = [
            full("0.0.0.0", LOW, "0.0.0.0", 0, TcpState::Listen),
            full("127.0.0.1", LOW + 1, "0.0.0.0", 0, TcpState::BoundInactive),
            full("127.0.0.1", LOW + 2, "127.0.0.1", 443, TcpState::Established),
            full("127.0.0.1", LOW, "127.0.0.1", 50_000, TcpState::Established),
            full("127.0.0.1", 443, "127.0.0.1", LOW + 2, TcpState::Established),
        ];
        let sockets = sockets(&found);
        assert_eq!(sockets.bound().to_string(), "40000-40001");
        assert_eq!(sockets.may_be_bound().to_string(), "40002");
    }

    #[test]
    fn accepted_connections_are_not_outbound() {
        let listener = full("0.0.0.0", LOW, "0.0.0.0", 0, TcpState::Listen);
        let accepted = full("127.0.0.1", LOW, "127.0.0.1", LOW + 1, TcpState::Established);
        let client = full("127.0.0.1", LOW + 1, "127.0.0.1", LOW, TcpState::Established);
        assert_eq!(ends(&[listener, accepted, client]), [(LOW + 1, LOW)]);
    }

    #[test]
    fn connections_of_unknown_direction_are_counted_but_not_as_outbound() {
        let listener = |v6only| {
            let Socket::Full(listener) = full("::", LOW, "::", 0, TcpState::Listen) else { unreachable!() };
            Socket::Full(FullSocket { v6only, ..listener })
        };
        let ipv4 = full("127.0.0.1", LOW, "192.0.2.1", 50_000, TcpState::Established);
        let mapped = full("::ffff:127.0.0.1", LOW, "::ffff:192.0.2.1", 50_001, TcpState::Established);
        let ipv6 = full("::1", LOW, "::1", 50_002, TcpState::Established);
        for (v6only, of_unknown_direction, outbound) in
            [(None, 2, [].as_slice()), (Some(false), 0, &[]), (Some(true), 0, &[(LOW, 50_000), (LOW, 50_001)])]
        {
            let found = [listener(v6only), ipv4, mapped, ipv6];
            assert_eq!(
                (sockets(&found).of_unknown_direction(), ends(&found).as_slice()),
                (of_unknown_direction, outbound),
                "{v6only:?}"
            );
        }
    }

    #[test]
    fn many_remote_ports_on_one_local_port_belong_to_a_server_without_a_listener() {
        let one = |local, remote| full("127.0.0.1", local, "127.0.0.2", remote, TcpState::Established);
        assert_eq!(ends(&[one(LOW, LOW + 1), one(LOW, LOW + 2)]), []);
        assert_eq!(ends(&[one(LOW + 1, LOW), one(LOW + 2, LOW)]), [(LOW + 1, LOW), (LOW + 2, LOW)]);
        assert_eq!(ends(&[one(LOW, LOW + 1)]), [(LOW, LOW + 1)], "a single connection does not show a server");
        assert_eq!(
            ends(&[one(LOW, 443), one(LOW, 444)]),
            [(LOW, 443), (LOW, 444)],
            "the remote ports are not ephemeral"
        );
    }
}
