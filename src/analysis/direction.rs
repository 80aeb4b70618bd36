//! The direction of a connection: which end opened it. The kernel does not store it, so it is inferred from listeners and
//! the ephemeral range.
//!
//! The first rule that applies decides:
//! 1. Both ends are the same (a socket that is connected to itself): outbound. Only connect() makes such a connection.
//! 2. A listener of the namespace covers the local end: inbound. If this depends on the IPV6_V6ONLY of the listener, and the source of
//!    the sockets does not report this option: unknown.
//! 3. The local port lies in the ephemeral range and the remote port outside it: outbound.
//! 4. The remote end is in this namespace, too, and a listener covers it: outbound.
//! 5. Otherwise: unknown.

use std::num::NonZeroU32;

use crate::model::facts::Facts;
use crate::model::listeners::Listeners;
use crate::model::port::{Port, PortRange};
use crate::model::row::Direction;
use crate::model::socket::FourTuple;

/// The direction of a connection or bucket, by the rules at the top of this file.
#[must_use]
pub fn infer(facts: &Facts, listeners: &Listeners, tuple: &FourTuple, interface: Option<NonZeroU32>) -> Direction {
    infer_with_range(facts.local_port_range.map(|range| range.0), listeners, tuple, interface)
}

/// [`infer`], for callers that have only the ephemeral range. `range` is `None` if it is unknown.
#[must_use]
pub fn infer_with_range(
    range: Option<PortRange>,
    listeners: &Listeners,
    tuple: &FourTuple,
    interface: Option<NonZeroU32>,
) -> Direction {
    if tuple.is_self_connection() {
        return Direction::Outbound;
    }
    match listeners.cover(tuple, interface) {
        Some(true) => return Direction::Inbound,
        Some(false) => {}
        None => return Direction::Unknown,
    }
    let ephemeral = |port: Port| range.map(|range| range.contains(port));
    match (ephemeral(tuple.local_port()), ephemeral(tuple.remote_port())) {
        (Some(true), Some(false)) => Direction::Outbound,
        _ if listeners.cover_remote(tuple, interface) == Some(true) => Direction::Outbound,
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

    fn listening(addr: &str, port: u16, v6only: Option<bool>) -> FullSocket {
        let unspecified = if addr.contains(':') { "::" } else { "0.0.0.0" };
        FullSocket {
            tuple: tuple(addr, port, unspecified, 0),
            state: TcpState::Listen,
            uid: 0,
            inode: None,
            interface: None,
            mark: None,
            v6only,
            last_ack_ms: None,
            cookie: Cookie::new(1),
        }
    }

    fn listener(addr: &str, port: u16, v6only: Option<bool>) -> Listeners {
        let mut listeners = Listeners::default();
        listeners.add(listening(addr, port, v6only));
        listeners
    }

    fn direction(listeners: &Listeners, tuple: FourTuple) -> &'static str {
        infer(&facts(), listeners, &tuple, None).name()
    }

    #[test]
    fn a_listener_that_covers_the_local_end_makes_a_connection_inbound() {
        let v4 = tuple("192.0.2.1", 8080, "192.0.2.2", 40000);
        let mapped = tuple("::ffff:192.0.2.1", 8080, "::ffff:192.0.2.2", 40000);
        let v6 = tuple("2001:db8::1", 8080, "2001:db8::2", 40000);
        for (listener_addr, v6only, expected) in [
            ("0.0.0.0", None, ["inbound", "inbound", "unknown"]),
            ("192.0.2.1", None, ["inbound", "inbound", "unknown"]),
            ("192.0.2.9", None, ["unknown", "unknown", "unknown"]),
            ("::", Some(false), ["inbound", "inbound", "inbound"]),
            ("::", Some(true), ["unknown", "unknown", "inbound"]),
            ("::", None, ["unknown", "unknown", "inbound"]),
            ("2001:db8::1", Some(false), ["unknown", "unknown", "inbound"]),
        ] {
            let listeners = listener(listener_addr, 8080, v6only);
            let got = [v4, mapped, v6].map(|tuple| direction(&listeners, tuple));
            assert_eq!(got, expected, "listener on {listener_addr}, v6only {v6only:?}");
        }
    }

    #[test]
    fn an_ephemeral_local_port_and_a_remote_port_outside_the_range_mean_outbound() {
        let none = Listeners::default();
        assert_eq!(direction(&none, tuple("127.0.0.1", 40000, "127.0.0.1", 443)), "outbound");
        assert_eq!(direction(&none, tuple("127.0.0.1", 40000, "127.0.0.1", 50000)), "unknown");
        assert_eq!(direction(&none, tuple("127.0.0.1", 443, "127.0.0.1", 40000)), "unknown");
        let elsewhere = listener("0.0.0.0", 443, None);
        assert_eq!(direction(&elsewhere, tuple("127.0.0.1", 40000, "127.0.0.1", 443)), "outbound");
    }

    #[test]
    fn a_socket_connected_to_itself_is_outbound_even_if_a_listener_covers_it() {
        for (addr, listener_addr) in [("127.0.0.1", "0.0.0.0"), ("::1", "::"), ("::ffff:127.0.0.1", "127.0.0.1")] {
            let tuple = tuple(addr, 40000, addr, 40000);
            assert!(tuple.is_self_connection());
            for listeners in [Listeners::default(), listener(listener_addr, 40000, Some(false))] {
                assert_eq!(direction(&listeners, tuple), "outbound", "{addr}");
            }
        }
        assert!(!tuple("127.0.0.1", 40000, "127.0.0.2", 40000).is_self_connection());
        assert!(!tuple("127.0.0.1", 40000, "127.0.0.1", 40001).is_self_connection());
    }

    #[test]
    fn a_listener_that_covers_the_remote_end_makes_a_local_connection_outbound() {
        let to = |local: &str, remote: &str| tuple(local, 15060, remote, 443);
        for (listener_addr, v6only, local, remote, expected) in [
            ("127.0.0.1", None, "127.0.0.1", "127.0.0.1", "outbound"),
            ("0.0.0.0", None, "127.0.0.2", "127.0.0.3", "outbound"),
            ("0.0.0.0", None, "192.0.2.1", "192.0.2.1", "outbound"),
            ("192.0.2.2", None, "192.0.2.1", "192.0.2.2", "outbound"),
            ("0.0.0.0", None, "192.0.2.1", "192.0.2.2", "unknown"),
            ("::", Some(false), "127.0.0.1", "127.0.0.1", "outbound"),
            ("::", Some(true), "127.0.0.1", "127.0.0.1", "unknown"),
            ("::", None, "127.0.0.1", "127.0.0.1", "unknown"),
            ("::", Some(true), "2001:db8::1", "2001:db8::1", "outbound"),
            ("::", Some(true), "2001:db8::1", "2001:db8::2", "unknown"),
        ] {
            let listeners = listener(listener_addr, 443, v6only);
            assert_eq!(
                direction(&listeners, to(local, remote)),
                expected,
                "{listener_addr} {v6only:?}: {local} {remote}"
            );
            assert_eq!(listeners.lack_v6only(&to(local, remote), None), listener_addr == "::" && v6only.is_none());
        }
        let mut both = listener("127.0.0.1", 443, None);
        both.add(listening("127.0.0.1", 15060, None));
        assert_eq!(direction(&both, to("127.0.0.1", "127.0.0.1")), "inbound", "a listener at this end comes first");
    }

    #[test]
    fn a_client_of_a_local_server_is_outbound_even_if_the_range_is_unknown() {
        let facts = Facts { local_port_range: None, ..facts() };
        let tuple = tuple("127.0.0.1", 40000, "127.0.0.1", 443);
        assert_eq!(infer(&facts, &listener("127.0.0.1", 443, None), &tuple, None), Direction::Outbound);
    }

    #[test]
    fn without_a_listener_the_direction_is_unknown_if_the_range_is_unknown() {
        let facts = Facts { local_port_range: None, ..facts() };
        let tuple = tuple("127.0.0.1", 40000, "127.0.0.1", 443);
        assert_eq!(infer(&facts, &Listeners::default(), &tuple, None), Direction::Unknown);
    }
}
