//! Advice for a server whose own sockets conflict with each other.

use super::BindEvidence;
use crate::model::bind::{Attempt, ReuseOptions};
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
        earlier.extend((!attempt.blocked_by_own_socket).then(|| attempt.at.text(facts)));
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
    let cure = if failing.at.addr.is_ipv6() && !failing.v6only {
        format!(
            "{on} takes IPv4 too, unless the socket has IPV6_V6ONLY. Set IPV6_V6ONLY on the IPv6 socket before bind(), or open \
             :: alone (ipv6(7))."
        )
    } else {
        "Open fewer addresses, or set IPV6_V6ONLY on the IPv6 sockets before bind() (ipv6(7)).".into()
    };
    Some(format!(
        "A server that opens all these addresses at once without SO_REUSEPORT blocks itself: it already listens on \
         {earlier} port {port} when it binds {on}. {cure}"
    ))
}
