//! Which sockets stand in the way of a bind: the kernel's own rule on addresses (`inet_rcv_saddr_equal` in
//! net/ipv4/inet_connection_sock.c), read as what it means for a plain bind.
//!
//! The rule says who could be in the way; only the kernel's answer to a real bind says that somebody is.

use std::net::IpAddr;
use std::num::NonZeroU32;

use crate::model::bind::{Attempt, CallResult, Errno};
use crate::model::socket::{Family, Socket, TcpState};

/// Whether the socket's local end covers the address that the attempt was made on.
#[must_use]
pub fn overlaps(attempt: &Attempt, socket: &Socket) -> bool {
    // A request socket (a handshake under way) is in no bind table; its listener is.
    if let Socket::Full(full) = socket
        && matches!(full.state, TcpState::SynRecv | TcpState::NewSynRecv)
        && full.inode.is_none()
    {
        return false;
    }
    addrs_overlap(attempt, socket) && interfaces_overlap(attempt.at.scope, socket.interface())
}

/// A socket bound to an interface conflicts with those on the same one and with those on none.
fn interfaces_overlap(attempt: Option<NonZeroU32>, socket: Option<NonZeroU32>) -> bool {
    attempt.is_none() || socket.is_none() || attempt == socket
}

fn addrs_overlap(attempt: &Attempt, socket: &Socket) -> bool {
    let tuple = socket.tuple();
    let v6only = match socket {
        Socket::Full(full) => full.v6only == Some(true),
        // A bucket has a specific address, for which the option makes no difference.
        Socket::Bucket(_) => false,
    };
    let (asked, held) = (attempt.at.addr.to_canonical(), tuple.local_addr());
    let held_ipv4 = tuple.family != Family::Ipv6;
    match (asked, held_ipv4) {
        (IpAddr::V4(asked), true) => asked.is_unspecified() || held.is_unspecified() || held == IpAddr::V4(asked),
        (IpAddr::V4(_), false) => held.is_unspecified() && !v6only,
        (IpAddr::V6(asked), true) => asked.is_unspecified() && !attempt.v6only,
        (IpAddr::V6(asked), false) => asked.is_unspecified() || held.is_unspecified() || held == IpAddr::V6(asked),
    }
}

/// Whether one of these attempts failed with EADDRINUSE on an address that the socket covers. Where they had options, the
/// socket may be one that would share the port with them: the kernel does not tell the options of others.
#[must_use]
pub fn blocks(attempts: &[Attempt], socket: &Socket) -> bool {
    attempts.iter().any(|attempt| runs_into_something(attempt) && overlaps(attempt, socket))
}

/// Whether every one of these attempts that failed with EADDRINUSE has a socket that may be why.
#[must_use]
pub fn explained(attempts: &[Attempt], sockets: &[Socket]) -> bool {
    let mut failed = attempts.iter().filter(|attempt| runs_into_something(attempt));
    failed.all(|attempt| sockets.iter().any(|socket| overlaps(attempt, socket)))
}

/// Whether what was seen fits together, the attempts being plain: every address whose bind fails has a holder that
/// explains it, and no address that a socket covers binds. It does not when a socket came or went between the two looks,
/// or when the kernel does not show the holder.
#[must_use]
pub fn consistent(plain: &[Attempt], sockets: &[Socket]) -> bool {
    let mut bound = plain.iter().filter(|attempt| attempt.bind == CallResult::Ok);
    explained(plain, sockets) && bound.all(|attempt| !sockets.iter().any(|socket| overlaps(attempt, socket)))
}

fn runs_into_something(attempt: &Attempt) -> bool {
    attempt.outcome() == CallResult::Failed(Errno::AddrInUse)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::bind::{BindAddr, ReuseOptions};
    use crate::model::port::Port;
    use crate::model::socket::{Cookie, FourTuple, FullSocket};

    fn attempt(addr: &str, v6only: bool) -> Attempt {
        Attempt {
            at: BindAddr { addr: addr.parse().expect("address"), scope: None },
            options: ReuseOptions::NONE,
            v6only,
            bind: CallResult::Failed(Errno::AddrInUse),
            listen: None,
            bound: None,
        }
    }

    fn holder(addr: &str, v6only: Option<bool>, state: TcpState) -> Socket {
        let unspecified = if addr.contains(':') { "::" } else { "0.0.0.0" };
        let end = |addr: &str| (addr.parse().expect("address"), Port(80));
        Socket::Full(FullSocket {
            tuple: FourTuple::new(end(addr), end(unspecified)),
            state,
            uid: 0,
            inode: None,
            interface: None,
            mark: None,
            v6only,
            last_ack_ms: None,
            cookie: Cookie::new(1),
        })
    }

    #[test]
    fn addresses_overlap_as_in_the_kernel() {
        for (asked, asked_v6only, held, held_v6only, expected) in [
            ("127.0.0.1", false, "127.0.0.1", None, true),
            ("127.0.0.1", false, "127.0.0.2", None, false),
            ("0.0.0.0", false, "127.0.0.2", None, true),
            ("127.0.0.1", false, "0.0.0.0", None, true),
            ("::", false, "127.0.0.1", None, true),
            ("::", true, "127.0.0.1", None, false),
            ("::", false, "::ffff:127.0.0.1", None, true),
            ("::1", false, "127.0.0.1", None, false),
            ("127.0.0.1", false, "::", Some(false), true),
            ("127.0.0.1", false, "::", Some(true), false),
            ("127.0.0.1", false, "::1", Some(false), false),
            ("::ffff:127.0.0.1", false, "127.0.0.1", None, true),
            ("::1", false, "::", Some(true), true),
            ("::", true, "::1", Some(false), true),
        ] {
            let got = overlaps(&attempt(asked, asked_v6only), &holder(held, held_v6only, TcpState::Listen));
            assert_eq!(got, expected, "{asked} v6only {asked_v6only} against {held} v6only {held_v6only:?}");
        }
    }

    #[test]
    fn a_handshake_under_way_is_in_nobodys_way() {
        assert!(!overlaps(&attempt("127.0.0.1", false), &holder("127.0.0.1", None, TcpState::SynRecv)));
    }

    #[test]
    fn a_failure_without_a_holder_and_a_success_over_one_do_not_fit_together() {
        let listener = holder("127.0.0.1", None, TcpState::Listen);
        let failed = attempt("127.0.0.1", false);
        let worked = Attempt { bind: CallResult::Ok, ..failed };
        assert!(consistent(&[failed], &[listener]) && consistent(&[worked], &[]));
        assert!(!consistent(&[failed], &[]) && !consistent(&[worked], &[listener]));
    }
}
