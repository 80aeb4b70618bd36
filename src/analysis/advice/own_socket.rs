//! Advice for a server whose own sockets conflict with each other.

use std::net::Ipv6Addr;

use super::BindEvidence;
use crate::model::bind::{Attempt, CallResult, ReuseOptions};
use crate::model::facts::Facts;

/// Finds the attempt that fails because of the server's own sockets, and the addresses that the server has open at that moment.
/// `attempts` has one attempt for each address, in the order in which the server binds them.
#[must_use]
pub fn earlier_addresses<'a>(
    mut attempts: impl Iterator<Item = &'a Attempt>,
    facts: &Facts,
) -> Option<(String, &'a Attempt)> {
    let mut earlier = vec![];
    let failing = attempts.find(|attempt| {
        let is_open = attempt.bind == CallResult::Ok && !attempt.blocked_by_own_socket;
        earlier.extend(is_open.then(|| attempt.at.text(facts)));
        attempt.blocked_by_own_socket
    })?;
    Some((earlier.join(" and "), failing))
}

/// Explains which sockets of a server conflict if it opens all its addresses at once.
pub(super) fn collision(evidence: &BindEvidence) -> Option<String> {
    let BindEvidence { facts, port, with, attempts, .. } = *evidence;
    let of = |options: ReuseOptions| attempts.iter().filter(move |attempt| attempt.options == options);
    let own = [with, ReuseOptions::NONE].into_iter().find_map(|options| earlier_addresses(of(options), facts));
    let (earlier, failing) = own?;
    let on = failing.at.text(facts);
    let before: Vec<&Attempt> = of(failing.options)
        .take_while(|attempt| !std::ptr::eq(*attempt, failing))
        .filter(|one| one.bind == CallResult::Ok && !one.blocked_by_own_socket)
        .collect();
    let is_ipv4 = |attempt: &Attempt| attempt.at.addr.to_canonical().is_ipv4();
    let is_dual_stack = |attempt: &Attempt| attempt.at.addr == Ipv6Addr::UNSPECIFIED && !attempt.v6only;
    let cure = if is_dual_stack(failing) && before.iter().all(|one| is_ipv4(one)) {
        ":: takes IPv4 too, unless the socket has IPV6_V6ONLY. Set IPV6_V6ONLY on the socket of :: before bind(), or open \
         :: alone (ipv6(7))."
    } else if failing.at.addr.is_ipv4() && before.iter().all(|one| is_dual_stack(one) || !is_ipv4(one)) {
        ":: takes IPv4 too, unless the socket has IPV6_V6ONLY. Set IPV6_V6ONLY on the socket of :: before bind(), or open \
         fewer addresses (ipv6(7))."
    } else {
        "Open fewer addresses."
    };
    Some(format!(
        "A server that opens all these addresses at once without SO_REUSEPORT blocks itself: it already listens on \
         {earlier} port {port} when it binds {on}. {cure}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::verdict::Conclusion;
    use crate::model::bind::tests::attempt;
    use crate::model::bind::{Cause, Errno, ServerSetup, Verdict};
    use crate::model::facts::tests::facts;
    use crate::model::port::Port;

    /// The advice if the server binds these addresses in this order, and the last one fails.
    fn advice(addrs: &[&str]) -> String {
        let attempts: Vec<Attempt> = addrs
            .iter()
            .enumerate()
            .map(|(number, addr)| {
                let fails = number + 1 == addrs.len();
                let bind = if fails { CallResult::Failed(Errno::AddrInUse) } else { CallResult::Ok };
                Attempt { blocked_by_own_socket: fails, ..attempt(addr, bind) }
            })
            .collect();
        let facts = facts();
        let evidence = BindEvidence {
            facts: &facts,
            port: Port(8080),
            with: ReuseOptions::NONE,
            attempts: &attempts,
            holders: &[],
            conclusion: Conclusion { verdict: Verdict::Blocked, cause: Cause::OwnSocket, free_in: None },
            bound_sockets_are_listed: true,
            uid: Some(1000),
            udp: false,
            setup: ServerSetup::default(),
        };
        collision(&evidence).expect("a collision")
    }

    #[test]
    fn ipv6_v6only_is_advised_only_where_it_helps() {
        for helps in [["0.0.0.0", "::"], ["127.0.0.1", "::"], ["::", "0.0.0.0"], ["::", "127.0.0.1"]] {
            assert!(advice(&helps).contains("Set IPV6_V6ONLY"), "{}", advice(&helps));
        }
        for other in [["::", "::1"], ["::1", "::"], ["0.0.0.0", "127.0.0.1"], ["0.0.0.0", "::ffff:127.0.0.1"]] {
            assert!(advice(&other).ends_with("Open fewer addresses."), "{}", advice(&other));
        }
        assert!(advice(&["0.0.0.0", "::1", "::"]).ends_with("Open fewer addresses."));
    }

    #[test]
    fn an_address_that_another_program_blocks_is_not_open() {
        let [mut foreign, mut failing] =
            ["127.0.0.1", "::"].map(|addr| attempt(addr, CallResult::Failed(Errno::AddrInUse)));
        (foreign.blocked_by_own_socket, failing.blocked_by_own_socket) = (false, true);
        let attempts = [foreign, attempt("::1", CallResult::Ok), failing];
        let (earlier, _) = earlier_addresses(attempts.iter(), &facts()).expect("a collision");
        assert_eq!(earlier, "::1");
    }
}
