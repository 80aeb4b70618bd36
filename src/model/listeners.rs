//! The listening sockets of one network namespace, and which ends of connections they cover.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroU32;

use super::port::Port;
use super::port_set::PortSet;
use super::socket::{Family, FourTuple, FullSocket};

/// The listening sockets of a network namespace.
#[derive(Clone, Debug, Default)]
pub struct Listeners {
    by_port: HashMap<Port, Vec<FullSocket>>,
    /// The ports that have a listener. Most rows of a list have other ports, and need no look-up in the map.
    ports: PortSet,
    /// Whether the source does not report IPV6_V6ONLY of a listener on `::`, as with procfs.
    v6only_unknown: bool,
}

impl Listeners {
    /// Adds a socket in state LISTEN.
    pub fn add(&mut self, listener: FullSocket) {
        let port = listener.tuple.local_port();
        self.ports.insert(port);
        self.v6only_unknown |=
            listener.tuple.family == Family::Ipv6 && listener.tuple.local_bits() == 0 && listener.v6only.is_none();
        self.by_port.entry(port).or_default().push(listener);
    }

    /// Whether a listener covers the local end of this tuple, which means that it would take connections to this end. Such a listener
    /// has the same port, has the same address or a wildcard address that includes it (`::` without IPV6_V6ONLY includes IPv4), and is
    /// not bound to another interface. `None` if the result depends on an IPV6_V6ONLY that the source does not report.
    #[must_use]
    #[inline]
    pub fn cover(&self, tuple: &FourTuple, interface: Option<NonZeroU32>) -> Option<bool> {
        if self.ports.contains(tuple.local_port()) { self.cover_on_port(tuple, interface) } else { Some(false) }
    }

    /// Whether the remote end of this tuple is in this namespace, too, and a listener covers it.
    ///
    /// An address is known to be local if it is a loopback address, the local address of the same connection, or the address of
    /// a listener on the remote port.
    #[must_use]
    #[inline]
    pub fn cover_remote(&self, tuple: &FourTuple, interface: Option<NonZeroU32>) -> Option<bool> {
        if self.ports.contains(tuple.remote_port()) { self.cover_local_remote(tuple, interface) } else { Some(false) }
    }

    fn cover_local_remote(&self, tuple: &FourTuple, interface: Option<NonZeroU32>) -> Option<bool> {
        let remote = tuple.remote_addr();
        let listens = |listener: &FullSocket| listener.tuple.local_addr() == remote;
        let local = tuple.local_bits() == tuple.remote_bits()
            || remote.is_loopback()
            || self.by_port.get(&tuple.remote_port()).is_some_and(|listeners| listeners.iter().any(listens));
        if local { self.cover_on_port(&tuple.reversed(), interface) } else { Some(false) }
    }

    /// Whether [`Self::cover`] or [`Self::cover_remote`] has no result for this tuple, because the source does not report IPV6_V6ONLY.
    #[must_use]
    #[inline]
    pub fn lack_v6only(&self, tuple: &FourTuple, interface: Option<NonZeroU32>) -> bool {
        self.v6only_unknown && (self.cover(tuple, interface).is_none() || self.cover_remote(tuple, interface).is_none())
    }

    fn cover_on_port(&self, tuple: &FourTuple, interface: Option<NonZeroU32>) -> Option<bool> {
        let mut unknown = false;
        for listener in self.by_port.get(&tuple.local_port()).into_iter().flatten() {
            let addr = listener.tuple.local_addr();
            let covers = match (addr, listener.tuple.family) {
                (IpAddr::V6(v6), Family::Ipv6) if v6.is_unspecified() && tuple.family.ipv4_on_the_wire() => {
                    listener.v6only.map(|v6only| !v6only)
                }
                (IpAddr::V6(v6), Family::Ipv6) if v6.is_unspecified() => Some(true),
                _ if addr.is_unspecified() => Some(tuple.family.ipv4_on_the_wire()),
                _ => Some(addr == tuple.local_addr()),
            };
            if listener.interface.is_some() && listener.interface != interface {
                continue;
            }
            match covers {
                Some(true) => return Some(true),
                Some(false) => {}
                None => unknown = true,
            }
        }
        if unknown { None } else { Some(false) }
    }
}
