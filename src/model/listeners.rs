//! The listening sockets of one network namespace, and whether one of them covers an address and port.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroU32;

use super::port::Port;
use super::port_set::PortSet;
use super::socket::{Family, FourTuple, FullSocket};

/// Listeners by port.
#[derive(Clone, Debug, Default)]
pub struct Listeners {
    by_port: HashMap<Port, Vec<FullSocket>>,
    /// A bit for each port that has one: most rows of a list are on ports without, and need no look into the map.
    ports: PortSet,
}

impl Listeners {
    /// Adds a socket in state LISTEN.
    pub fn add(&mut self, listener: FullSocket) {
        let port = listener.tuple.local_port();
        self.ports.insert(port);
        self.by_port.entry(port).or_default().push(listener);
    }

    /// Whether a listener would take connections to the local end of this tuple: same port, its address or a wildcard
    /// that covers it (`::` without IPV6_V6ONLY covers IPv4 too), and not bound to another interface. `None` where that
    /// hangs on an IPV6_V6ONLY that the source does not tell.
    #[must_use]
    #[inline]
    pub fn cover(&self, tuple: &FourTuple, interface: Option<NonZeroU32>) -> Option<bool> {
        if self.ports.contains(tuple.local_port()) { self.cover_on_port(tuple, interface) } else { Some(false) }
    }

    fn cover_on_port(&self, tuple: &FourTuple, interface: Option<NonZeroU32>) -> Option<bool> {
        let mut unknown = false;
        for listener in self.by_port.get(&tuple.local_port()).into_iter().flatten() {
            let addr = listener.tuple.local_addr();
            let covers = match (addr, listener.tuple.family) {
                (IpAddr::V6(v6), Family::Ipv6) if v6.is_unspecified() && tuple.family.ipv4_on_the_wire() => {
                    // A mapped socket on its port is the work of a listener that is not IPv6 only.
                    let mapped = (tuple.family == Family::Ipv4Mapped).then_some(false);
                    listener.v6only.or(mapped).map(|v6only| !v6only)
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
