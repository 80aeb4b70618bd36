//! Who opened a connection. An inference: the kernel does not keep it, so it is read off listeners and port ranges.

use std::num::NonZeroU32;

use crate::model::facts::Facts;
use crate::model::listeners::Listeners;
use crate::model::row::Direction;
use crate::model::socket::FourTuple;

/// Inbound: a listener of the namespace covers the local end. Outbound: none does, the local port lies in the ephemeral
/// range and the remote port outside it. Unknown otherwise, and where the range could not be read.
#[must_use]
pub fn infer(facts: &Facts, listeners: &Listeners, tuple: &FourTuple, interface: Option<NonZeroU32>) -> Direction {
    match listeners.cover(tuple, interface) {
        Some(true) => return Direction::Inbound,
        Some(false) => {}
        None => return Direction::Unknown,
    }
    match (facts.ephemeral(tuple.local_port()), facts.ephemeral(tuple.remote_port())) {
        (Some(true), Some(false)) => Direction::Outbound,
        _ => Direction::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::facts::tests::facts;
    use crate::model::port::Port;
    use crate::model::socket::{Cookie, FullSocket, TcpState};

    fn tuple(local: &str, local_port: u16, remote: &str, remote_port: u16) -> FourTuple {
        let end = |addr: &str, port| (addr.parse().expect("address"), Port(port));
        FourTuple::new(end(local, local_port), end(remote, remote_port))
    }

    fn listener(addr: &str, port: u16, v6only: Option<bool>) -> Listeners {
        let unspecified = if addr.contains(':') { "::" } else { "0.0.0.0" };
        let mut listeners = Listeners::default();
        listeners.add(FullSocket {
            tuple: tuple(addr, port, unspecified, 0),
            state: TcpState::Listen,
            uid: 0,
            inode: None,
            interface: None,
            mark: None,
            v6only,
            last_ack_ms: None,
            cookie: Cookie::new(1),
        });
        listeners
    }

    fn direction(listeners: &Listeners, tuple: FourTuple) -> &'static str {
        infer(&facts(), listeners, &tuple, None).name()
    }

    #[test]
    fn a_listener_that_covers_the_address_makes_it_inbound() {
        let v4 = tuple("192.0.2.1", 8080, "192.0.2.2", 40000);
        let mapped = tuple("::ffff:192.0.2.1", 8080, "::ffff:192.0.2.2", 40000);
        let v6 = tuple("2001:db8::1", 8080, "2001:db8::2", 40000);
        for (listener_addr, v6only, expected) in [
            ("0.0.0.0", None, ["inbound", "inbound", "unknown"]),
            ("192.0.2.1", None, ["inbound", "inbound", "unknown"]),
            ("192.0.2.9", None, ["unknown", "unknown", "unknown"]),
            ("::", Some(false), ["inbound", "inbound", "inbound"]),
            ("::", Some(true), ["unknown", "unknown", "inbound"]),
            ("::", None, ["unknown", "inbound", "inbound"]),
            ("2001:db8::1", Some(false), ["unknown", "unknown", "inbound"]),
        ] {
            let listeners = listener(listener_addr, 8080, v6only);
            let got = [v4, mapped, v6].map(|tuple| direction(&listeners, tuple));
            assert_eq!(got, expected, "listener on {listener_addr}, v6only {v6only:?}");
        }
    }

    #[test]
    fn outbound_needs_an_ephemeral_local_and_another_remote_port() {
        let none = Listeners::default();
        assert_eq!(direction(&none, tuple("127.0.0.1", 40000, "127.0.0.1", 443)), "outbound");
        assert_eq!(direction(&none, tuple("127.0.0.1", 40000, "127.0.0.1", 50000)), "unknown");
        assert_eq!(direction(&none, tuple("127.0.0.1", 443, "127.0.0.1", 40000)), "unknown");
        let elsewhere = listener("0.0.0.0", 443, None);
        assert_eq!(direction(&elsewhere, tuple("127.0.0.1", 40000, "127.0.0.1", 443)), "outbound");
    }

    #[test]
    fn without_the_range_nothing_is_outbound() {
        let facts = Facts { local_port_range: None, ..facts() };
        let tuple = tuple("127.0.0.1", 40000, "127.0.0.1", 443);
        assert_eq!(infer(&facts, &Listeners::default(), &tuple, None), Direction::Unknown);
    }
}
