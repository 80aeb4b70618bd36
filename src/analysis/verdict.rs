//! Concludes the verdict of a bind test and its cause, from the attempts and from the holders of the port (the sockets on the port).

use std::time::Duration;

use super::conflict::{self, FailedAttempts};
use crate::model::bind::{Attempt, CallResult, Cause, Errno, Holder, ReuseOptions, Verdict};
use crate::model::facts::Facts;
use crate::model::port::Port;
use crate::model::socket::{Socket, TcpState};

/// The conclusion of a bind test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conclusion {
    /// The worst verdict of all addresses.
    pub verdict: Verdict,
    /// Why the plain bind fails on the addresses with that verdict.
    pub cause: Cause,
    /// The longest remaining time of the buckets that block, if only buckets block and if it is known which of them block.
    pub free_in: Option<Duration>,
}

/// Concludes a bind test for a server that sets the options `with`. `attempts` has one attempt for each address and set of options.
#[must_use]
pub fn conclude(facts: &Facts, port: Port, with: ReuseOptions, attempts: &[Attempt], holders: &[Holder]) -> Conclusion {
    let plain = || attempts.iter().filter(|attempt| attempt.options == ReuseOptions::NONE);
    let judged = plain().map(|attempt| (verdict_of(attempt, with, attempts), attempt));
    let verdict = judged.clone().map(|(verdict, _)| verdict).max().unwrap_or(Verdict::Free);
    let worst: Vec<&Attempt> = judged.filter(|(v, _)| *v == verdict).map(|(_, attempt)| attempt).collect();
    let failed_attempts = FailedAttempts::new(worst.iter().copied(), &holders.iter().map(|holder| &holder.socket));
    let in_the_way: Vec<&Holder> =
        holders.iter().filter(|holder| failed_attempts.can_be_blocked_by(&holder.socket)).collect();
    let cause = match verdict {
        Verdict::Free => Cause::None,
        Verdict::Denied => denial(facts, port, &worst),
        Verdict::Reusable | Verdict::Blocked => {
            let with_reuseaddr =
                |plain: &&Attempt| outcome_with(plain, ReuseOptions::REUSEADDR, attempts) == Some(CallResult::Ok);
            cause_among(
                &in_the_way,
                worst.iter().all(with_reuseaddr),
                worst.iter().any(|attempt| attempt.blocked_by_own_socket),
            )
        }
    };
    let plain: Vec<Attempt> = plain().copied().collect();
    let free_in = conflict::free_in(&plain, &holders.iter().map(|holder| &holder.socket));
    Conclusion { verdict, cause, free_in: free_in.filter(|_| only_buckets(cause)) }
}

/// Why binds with the server's own options fail. `attempts` has one attempt for each address, and `holders` has the sockets
/// that may block them. `reuseaddr_works` tells whether a bind with SO_REUSEADDR works on every address on which an attempt fails
/// with EADDRINUSE. The value matters only if nothing but buckets blocks the binds ([`only_buckets`]).
#[must_use]
pub fn cause(facts: &Facts, port: Port, attempts: &[Attempt], holders: &[Holder], reuseaddr_works: bool) -> Cause {
    let failed = |in_use: bool| -> Vec<&Attempt> {
        let fits = |attempt: &&Attempt| match attempt.outcome() {
            CallResult::Ok => false,
            CallResult::Failed(errno) => (errno == Errno::AddrInUse) == in_use,
        };
        attempts.iter().filter(fits).collect()
    };
    let (denied, in_use) = (failed(false), failed(true));
    if !denied.is_empty() {
        return denial(facts, port, &denied);
    }
    if in_use.is_empty() {
        return Cause::None;
    }
    let failed_attempts = FailedAttempts::new(in_use, &holders.iter().map(|holder| &holder.socket));
    let in_the_way: Vec<_> =
        holders.iter().filter(|holder| failed_attempts.can_be_blocked_by(&holder.socket)).collect();
    cause_among(&in_the_way, reuseaddr_works, attempts.iter().any(|attempt| attempt.blocked_by_own_socket))
}

/// Whether the cause means that only buckets block the bind.
#[must_use]
pub const fn only_buckets(cause: Cause) -> bool {
    matches!(cause, Cause::TimeWait | Cause::TimeWaitWithoutReuseaddr)
}

fn outcome_with(plain: &Attempt, options: ReuseOptions, attempts: &[Attempt]) -> Option<CallResult> {
    let same = |attempt: &&Attempt| attempt.at == plain.at && attempt.options == options;
    attempts.iter().find(same).map(Attempt::outcome)
}

fn verdict_of(plain: &Attempt, with: ReuseOptions, attempts: &[Attempt]) -> Verdict {
    match plain.outcome() {
        CallResult::Ok => Verdict::Free,
        CallResult::Failed(Errno::AddrInUse) => match outcome_with(plain, with, attempts) {
            Some(CallResult::Ok) => Verdict::Reusable,
            _ => Verdict::Blocked,
        },
        CallResult::Failed(_) => Verdict::Denied,
    }
}

fn denial(facts: &Facts, port: Port, worst: &[&Attempt]) -> Cause {
    let cause = |attempt: &&Attempt| match attempt.outcome() {
        // EACCES for a port that needs no privilege, or from listen(), comes from a security module, which does not report a reason.
        CallResult::Failed(Errno::Access)
            if facts.privileged(port) == Some(true) && attempt.bind == CallResult::Failed(Errno::Access) =>
        {
            Cause::PrivilegedPort
        }
        CallResult::Failed(Errno::AddrNotAvailable) => Cause::AddressNotLocal,
        CallResult::Failed(Errno::FamilyNotSupported) => Cause::FamilyUnsupported,
        _ => Cause::Unknown,
    };
    worst.first().map_or(Cause::Unknown, cause)
}

/// The cause, if these sockets block the bind. The first of these kinds that is present decides: listener, connection, bound socket,
/// bucket.
pub(super) fn cause_among(in_the_way: &[&Holder], reuseaddr_works: bool, blocked_by_own_socket: bool) -> Cause {
    let rank = |holder: &&Holder| match holder.socket {
        Socket::Bucket(_) => 3,
        Socket::Full(full) => match full.state {
            TcpState::Listen => 0,
            TcpState::Closed | TcpState::BoundInactive => 2,
            _ => 1,
        },
    };
    match in_the_way.iter().map(rank).min() {
        Some(0) => Cause::Listener,
        Some(1) => Cause::Connection,
        Some(2) => Cause::Bound,
        Some(_) if reuseaddr_works => Cause::TimeWait,
        Some(_) => Cause::TimeWaitWithoutReuseaddr,
        None if blocked_by_own_socket => Cause::OwnSocket,
        None => Cause::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::bind::tests::attempt;
    use crate::model::facts::tests::facts;

    #[test]
    fn only_a_bind_needs_the_privilege_of_a_port() {
        let refused = CallResult::Failed(Errno::Access);
        let cause_of = |bind, listen| {
            let attempt = Attempt { listen, ..attempt("127.0.0.1", bind) };
            let facts = Facts { unprivileged_port_start: Some(1024), ..facts() };
            let conclusion = conclude(&facts, Port(80), ReuseOptions::NONE, &[attempt], &[]);
            assert_eq!(conclusion.verdict, Verdict::Denied);
            conclusion.cause
        };
        assert_eq!(cause_of(refused, None), Cause::PrivilegedPort);
        assert_eq!(cause_of(CallResult::Ok, Some(refused)), Cause::Unknown);
    }
}
