//! Finds the sockets whose address conflicts with that of a bind, by the kernel's rule (`inet_rcv_saddr_equal` in
//! net/ipv4/inet_connection_sock.c). Such a socket always blocks a *plain* bind (a bind with neither SO_REUSEADDR nor SO_REUSEPORT). With
//! one of these options, only a real bind shows whether the socket blocks it.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use crate::model::bind::{Attempt, CallResult, Errno};
use crate::model::socket::{Family, Socket, TcpState};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Overlap {
    No,
    /// The addresses conflict unless the socket has IPV6_V6ONLY. The kernel reports this option only for listeners and bound sockets.
    Perhaps,
    Yes,
}

fn overlap(attempt: &Attempt, socket: &Socket) -> Overlap {
    // A request socket (a handshake in progress) is not in the kernel's bind table. Only its listener is there.
    if let Socket::Full(full) = socket
        && matches!(full.state, TcpState::SynRecv | TcpState::NewSynRecv)
        && full.inode.is_none()
    {
        return Overlap::No;
    }
    if interfaces_overlap(attempt.device, socket.interface()) { addrs_overlap(attempt, socket) } else { Overlap::No }
}

/// A socket that is bound to an interface can conflict with sockets that are bound to the same interface or to no interface.
fn interfaces_overlap(attempt: Option<NonZeroU32>, socket: Option<NonZeroU32>) -> bool {
    attempt.is_none() || socket.is_none() || attempt == socket
}

fn addrs_overlap(attempt: &Attempt, socket: &Socket) -> Overlap {
    let tuple = socket.tuple();
    let v6only = match socket {
        Socket::Full(full) => full.v6only,
        Socket::Bucket(_) => None,
    };
    let (asked, held) = (attempt.at.addr.to_canonical(), tuple.local_addr());
    let held_ipv4 = tuple.family != Family::Ipv6;
    let overlaps = match (asked, held_ipv4) {
        (IpAddr::V4(asked), true) => asked.is_unspecified() || held.is_unspecified() || held == IpAddr::V4(asked),
        // An IPv6 connection that a dual-stack server accepted also blocks 0.0.0.0, but no other IPv4 address (measured; its
        // `sk_rcv_saddr` is LOOPBACK4_IPV6). bind() itself sets IPV6_V6ONLY if the address is neither `::` nor IPv4-mapped.
        (IpAddr::V4(asked), false) if asked.is_unspecified() && !held.is_unspecified() => match v6only {
            None => return Overlap::Perhaps,
            Some(v6only) => !v6only,
        },
        (IpAddr::V4(_), false) => held.is_unspecified() && v6only != Some(true),
        (IpAddr::V6(asked), true) => asked.is_unspecified() && !attempt.v6only,
        (IpAddr::V6(asked), false) => asked.is_unspecified() || held.is_unspecified() || held == IpAddr::V6(asked),
    };
    if overlaps { Overlap::Yes } else { Overlap::No }
}

/// Tells which sockets can block the attempts that failed with EADDRINUSE.
pub struct FailedAttempts<'a> {
    /// Each failed attempt, and whether a socket certainly overlaps the attempt. If so, sockets that only perhaps overlap it do not
    /// count as obstacles.
    failed: Vec<(&'a Attempt, bool)>,
}

impl<'a> FailedAttempts<'a> {
    /// Selects the attempts that failed because of another socket. `sockets` are all sockets on the port.
    pub fn new<'s>(
        attempts: impl IntoIterator<Item = &'a Attempt>,
        sockets: &(impl Iterator<Item = &'s Socket> + Clone),
    ) -> Self {
        let certain = |attempt: &Attempt| sockets.clone().any(|socket| overlap(attempt, socket) == Overlap::Yes);
        let failed = attempts.into_iter().filter(|attempt| is_blocked_by_another_socket(attempt));
        Self { failed: failed.map(|attempt| (attempt, certain(attempt))).collect() }
    }

    /// Whether this socket can block one of the attempts. If the attempts had SO_REUSEADDR or SO_REUSEPORT, the socket may instead
    /// share the port with them: the kernel does not report whether the socket has these options.
    #[must_use]
    pub fn can_be_blocked_by(&self, socket: &Socket) -> bool {
        self.failed.iter().any(|(attempt, certain)| match overlap(attempt, socket) {
            Overlap::Yes => true,
            Overlap::Perhaps => !certain,
            Overlap::No => false,
        })
    }
}

/// The time until these plain attempts work: the longest remaining time of the buckets that block them. `None` if a socket that is not
/// a bucket can block them. Also `None` if the time depends on which of the buckets block them.
///
/// For each failed attempt, the time until it works has a minimum and a maximum:
/// 1. Minimum: the longest remaining time of the buckets that certainly overlap. If there are none, the shortest remaining time of the
///    buckets that perhaps overlap (see `Overlap::Perhaps`), because at least one of them blocks the attempt.
/// 2. Maximum: the longest remaining time of all these buckets.
///
/// The function returns a time only if the largest minimum and the largest maximum are equal.
#[must_use]
pub fn free_in<'s>(plain: &[Attempt], sockets: &(impl Iterator<Item = &'s Socket> + Clone)) -> Option<Duration> {
    let (mut least, mut most) = (Duration::ZERO, Duration::ZERO);
    for attempt in plain.iter().filter(|attempt| is_blocked_by_another_socket(attempt)) {
        let ends = |wanted: Overlap| {
            let fits = sockets.clone().filter(move |socket| overlap(attempt, socket) == wanted);
            fits.map(|socket| match socket {
                Socket::Bucket(bucket) => Some(bucket.expires()),
                Socket::Full(_) => None,
            })
        };
        let certain: Vec<Duration> = ends(Overlap::Yes).collect::<Option<_>>()?;
        let perhaps: Vec<Duration> = ends(Overlap::Perhaps).collect::<Option<_>>()?;
        least = least.max(certain.iter().max().or(perhaps.iter().min()).copied()?);
        most = most.max(certain.iter().chain(&perhaps).max().copied()?);
    }
    (least == most).then_some(most)
}

/// Whether each attempt that failed because of another socket can be explained by a listed socket.
#[must_use]
pub fn explained(attempts: &[Attempt], sockets: &[Socket]) -> bool {
    let mut failed = attempts.iter().filter(|attempt| is_blocked_by_another_socket(attempt));
    failed.all(|attempt| sockets.iter().any(|socket| overlap(attempt, socket) != Overlap::No))
}

/// Whether plain attempts and listed sockets are consistent: every address whose bind fails has a socket that explains it, and
/// no bind works on an address that a socket certainly covers.
#[must_use]
pub fn consistent(plain: &[Attempt], sockets: &[Socket]) -> bool {
    let mut bound = plain.iter().filter(|attempt| attempt.bind == CallResult::Ok);
    let covers = |attempt: &Attempt, socket: &Socket| overlap(attempt, socket) == Overlap::Yes;
    explained(plain, sockets) && bound.all(|attempt| !sockets.iter().any(|socket| covers(attempt, socket)))
}

fn is_blocked_by_another_socket(attempt: &Attempt) -> bool {
    attempt.outcome() == CallResult::Failed(Errno::AddrInUse) && !attempt.blocked_by_own_socket
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::bind::tests::attempt as attempt_on;
    use crate::model::port::Port;
    use crate::model::socket::{Cookie, FourTuple, FullSocket};

    fn attempt(addr: &str, v6only: bool) -> Attempt {
        Attempt { v6only, ..attempt_on(addr, CallResult::Failed(Errno::AddrInUse)) }
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
            ("127.0.0.1", false, "127.0.0.1", None, Overlap::Yes),
            ("127.0.0.1", false, "127.0.0.2", None, Overlap::No),
            ("0.0.0.0", false, "127.0.0.2", None, Overlap::Yes),
            ("127.0.0.1", false, "0.0.0.0", None, Overlap::Yes),
            ("::", false, "127.0.0.1", None, Overlap::Yes),
            ("::", true, "127.0.0.1", None, Overlap::No),
            ("::", false, "::ffff:127.0.0.1", None, Overlap::Yes),
            ("::1", false, "127.0.0.1", None, Overlap::No),
            ("127.0.0.1", false, "::", Some(false), Overlap::Yes),
            ("127.0.0.1", false, "::", Some(true), Overlap::No),
            ("127.0.0.1", false, "::1", Some(false), Overlap::No),
            ("::ffff:127.0.0.1", false, "127.0.0.1", None, Overlap::Yes),
            ("::1", false, "::", Some(true), Overlap::Yes),
            ("::", true, "::1", Some(false), Overlap::Yes),
            ("0.0.0.0", false, "::1", None, Overlap::Perhaps),
            ("0.0.0.0", false, "::1", Some(true), Overlap::No),
            ("127.0.0.1", false, "::1", None, Overlap::No),
        ] {
            let got = overlap(&attempt(asked, asked_v6only), &holder(held, held_v6only, TcpState::Listen));
            assert_eq!(got, expected, "{asked} v6only {asked_v6only} against {held} v6only {held_v6only:?}");
        }
    }

    #[test]
    fn a_handshake_blocks_no_bind() {
        let request = holder("127.0.0.1", None, TcpState::SynRecv);
        assert_eq!(overlap(&attempt("127.0.0.1", false), &request), Overlap::No);
    }

    #[test]
    fn a_socket_that_perhaps_overlaps_is_an_obstacle_only_if_no_socket_certainly_overlaps() {
        let accepted = holder("::1", None, TcpState::Established);
        let listener = holder("127.0.0.1", None, TcpState::Listen);
        let failed = [attempt("0.0.0.0", false)];
        assert!(FailedAttempts::new(&failed, &[accepted].iter()).can_be_blocked_by(&accepted));
        let both = [accepted, listener];
        let failed_attempts = FailedAttempts::new(&failed, &both.iter());
        assert_eq!(both.map(|socket| failed_attempts.can_be_blocked_by(&socket)), [false, true]);
        // The accepted socket may have IPV6_V6ONLY. Then the bind works beside it, so both results are consistent.
        let worked = Attempt { bind: CallResult::Ok, ..failed[0] };
        assert!(consistent(&failed, &[accepted]) && consistent(&[worked], &[accepted]));
    }

    #[test]
    fn a_failure_without_a_socket_and_a_success_beside_a_socket_are_inconsistent() {
        let listener = holder("127.0.0.1", None, TcpState::Listen);
        let failed = attempt("127.0.0.1", false);
        let worked = Attempt { bind: CallResult::Ok, ..failed };
        assert!(consistent(&[failed], &[listener]) && consistent(&[worked], &[]));
        assert!(!consistent(&[failed], &[]) && !consistent(&[worked], &[listener]));
    }
}
