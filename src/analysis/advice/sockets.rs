//! Advice for a bind that a listener, a connection or a bound socket blocks.

use super::{BOTH_SIDES, BindEvidence, blocking, client, count_buckets_by_state, fewest_that_work, set_options_advice};
use crate::analysis::states;
use crate::model::bind::{Holder, ReuseOptions, Verdict};
use crate::model::process::{KernelPart, Owners, place_of_cgroup};
use crate::model::socket::{FullSocket, Socket, TcpState};

fn blocking_in<'a>(
    evidence: &BindEvidence<'a>,
    fits: fn(TcpState) -> bool,
) -> impl Iterator<Item = &'a Holder> + Clone {
    let full = move |holder: &&Holder| matches!(holder.socket, Socket::Full(full) if fits(full.state));
    blocking(evidence).filter(full)
}

/// Whether a socket in this state is or was a connection.
#[must_use]
pub const fn is_connection(state: TcpState) -> bool {
    !matches!(state, TcpState::Listen | TcpState::Closed | TcpState::BoundInactive)
}

/// Names up to three owners of these sockets in one phrase, for example `nginx (pid 7)`. Processes choose their names, so the caller must
/// escape the text.
pub fn owner_names<'a>(holders: impl Iterator<Item = &'a Holder> + Clone) -> String {
    const SHOWN: usize = 3;
    let total = holders.clone().count();
    let mut named: Vec<String> = vec![];
    for holder in holders {
        // Every user may see the uid and the cgroup of a socket, even if its process is hidden.
        let origin = match (&holder.owners, &holder.user) {
            (Owners::NotPermitted | Owners::NotRead | Owners::NotFound(_), Some(user)) => {
                let place = holder.created_in.as_deref().and_then(place_of_cgroup);
                let place = place.map_or(String::new(), |place| format!("; the socket was created in {place}"));
                format!(" ({}{place})", user.text())
            }
            _ => String::new(),
        };
        for name in holder.owners.names() {
            let name = format!("{name}{origin}");
            if !named.contains(&name) {
                named.push(name);
            }
        }
    }
    let more = named.len().saturating_sub(SHOWN);
    named.truncate(SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let sockets = if total > 1 { format!(" ({total} sockets)") } else { String::new() };
    format!("{}{more}{sockets}", named.join(", "))
}

pub(super) fn listener(evidence: &BindEvidence) -> Vec<String> {
    let BindEvidence { port, with, .. } = *evidence;
    let listeners = || blocking_in(evidence, |state| state == TcpState::Listen);
    let names = owner_names(listeners());
    if evidence.conclusion.verdict == Verdict::Reusable {
        return vec![format!(
            "Port {port} has a listener: {names}. A bind with {with} works beside it. On the same address the kernel distributes \
             new connections among all listeners. A listener on a more specific address gets the connections to that address \
             (socket(7), SO_REUSEPORT)."
        )];
    }
    let endpoint = |holder: &Holder| holder.owners == Owners::Kernel(KernelPart::MptcpEndpoint);
    let stop = if listeners().all(endpoint) { "Delete the endpoint (ip-mptcp(8))" } else { "Stop that server" };
    let mut advice = vec![format!(
        "Port {port} has a listener: {names}. The listener blocks the port, with or without TIME_WAIT sockets. {stop}, \
         or choose another port or address. SO_REUSEADDR never takes a port from a listener (socket(7))."
    )];
    advice.extend(buckets_beside(evidence));
    advice.extend(other_user(evidence, listeners()));
    advice.extend(other_device(evidence));
    advice
}

fn buckets_beside(evidence: &BindEvidence) -> Option<String> {
    let buckets = || blocking(evidence).filter(|holder| matches!(holder.socket, Socket::Bucket(_)));
    let one = match buckets().count() {
        0 => return None,
        count => count == 1,
    };
    let (holds, timer) = if one { ("holds", "its timer ends") } else { ("hold", "the last timer ends") };
    Some(format!(
        "{} {holds} the port too, at least until {timer}. Before that, a bind works only if the old and the new socket have \
         SO_REUSEADDR, or both have SO_REUSEPORT (socket(7)).",
        count_buckets_by_state(buckets())
    ))
}

/// Explains why SO_REUSEPORT does not help: all sockets on the port need the option and the same effective user (socket(7)).
fn other_user<'a>(evidence: &BindEvidence, holders: impl Iterator<Item = &'a Holder>) -> Option<String> {
    if !evidence.with.reuseport {
        return None;
    }
    let mut uids: Vec<Option<u32>> = holders
        .filter(|holder| full(holder).is_some())
        .map(|holder| holder.user.as_ref().map(|user| user.uid))
        .collect();
    uids.sort_unstable();
    uids.dedup();
    let Some(uid) = evidence.uid.filter(|_| !uids.contains(&None)) else {
        return Some(
            "The bind fails although SO_REUSEPORT is set. All sockets on the port need the option and the same effective user. \
             The user of a socket is unknown, because the user has no number in this user namespace (socket(7), \
             user_namespaces(7))."
                .into(),
        );
    };
    let others: Vec<String> = uids.into_iter().flatten().filter(|one| *one != uid).map(|one| one.to_string()).collect();
    Some(if others.is_empty() {
        format!(
            "The bind fails although SO_REUSEPORT is set. All sockets on the port need the option and the same effective user. \
             The user is the same (uid {uid}), so at least one of them does not have the option (socket(7))."
        )
    } else {
        format!(
            "The bind fails although SO_REUSEPORT is set. Run both servers as one user, and set SO_REUSEPORT in both: sharing \
             a port needs the same effective user. The blocking socket belongs to uid {}, and this test ran as uid {uid} \
             (socket(7)).",
            others.join(" and uid ")
        )
    })
}

fn other_device(evidence: &BindEvidence) -> Option<String> {
    let devices: Option<Vec<String>> = blocking(evidence)
        .map(|holder| holder.socket.interface().map(|index| evidence.facts.interface_name(index)))
        .collect();
    let mut devices = devices.filter(|devices| !devices.is_empty())?;
    devices.sort_unstable();
    devices.dedup();
    let (devices, one) = (devices.join(" and "), devices.len() == 1);
    let held = if one { format!("on device {devices} only") } else { format!("on devices {devices} only") };
    Some(format!(
        "The port is in use {held}. A server that binds itself to another device can use it (SO_BINDTODEVICE, socket(7))."
    ))
}

const fn full(holder: &Holder) -> Option<FullSocket> {
    match holder.socket {
        Socket::Full(full) => Some(full),
        Socket::Bucket(_) => None,
    }
}

pub(super) fn connection(evidence: &BindEvidence) -> Vec<String> {
    let connections = || blocking_in(evidence, is_connection);
    let mut states: Vec<TcpState> = connections().map(|holder| holder.socket.state()).collect();
    states.sort_unstable_by_key(|state| state.name());
    states.dedup();
    let names: Vec<_> = states.iter().map(|state| state.name()).collect();
    let one = connections().count() == 1;
    let holds = if one { "A connection holds" } else { "Connections hold" };
    let mut advice = vec![];
    match fewest_that_work(evidence) {
        Some(ReuseOptions::REUSEADDR) => advice.push(format!(
            "Set SO_REUSEADDR on the listening socket before bind(): it works now, because {} the option too. \
             {BOTH_SIDES}.",
            if one { "the blocking socket has" } else { "the blocking sockets have" }
        )),
        Some(options) => advice.push(format!("{} {BOTH_SIDES}.", set_options_advice(options))),
        None => {}
    }
    advice.push(format!("{holds} the port ({}): {}.", names.join(", "), owner_names(connections())));
    // `client::sentences` has explained the other outbound connections already.
    let is_full = |holder: &&Holder| matches!(holder.socket, Socket::Full(_));
    let outbound = client::unexplained(evidence).filter(is_full).count();
    advice.extend((outbound > 0).then(|| {
        let opened = match (outbound, outbound == connections().count()) {
            (1, true) => "A client on this machine opened the connection (inferred)".to_owned(),
            (_, true) => "Clients on this machine opened the connections (inferred)".to_owned(),
            (1, false) => "A client on this machine opened 1 of the connections (inferred)".to_owned(),
            (some, false) => format!("Clients on this machine opened {some} of the connections (inferred)"),
        };
        format!(
            "{opened}. connect() chooses a source port in net.ipv4.ip_local_port_range, and probably chose this one while \
             no server had bound it."
        )
    }));
    advice.extend(buckets_beside(evidence));
    let mut explained: Vec<String> = connections().filter_map(full).filter_map(|full| states::explain(&full)).collect();
    explained.sort_unstable();
    explained.dedup();
    advice.extend(explained);
    if fewest_that_work(evidence).is_none() {
        advice.push(format!(
            "No socket option makes the bind work, because at least one socket on the port does not have \
             SO_REUSEADDR. {BOTH_SIDES}."
        ));
        advice.extend(other_user(evidence, connections()));
    }
    advice.extend(other_device(evidence));
    let closed_first = [TcpState::FinWait1, TcpState::FinWait2];
    if states.contains(&TcpState::Established) {
        advice.push(
            "If this machine closes first, the connection leaves a TIME_WAIT socket on the port (RFC 9293, section 3.3.2)."
                .into(),
        );
    } else if states.contains(&TcpState::Closing) {
        advice.push(
            "Both ends closed at the same time. After the last ACK, the connection leaves a TIME_WAIT socket on the port (RFC 9293, \
             section 3.6)."
                .into(),
        );
    } else if closed_first.iter().any(|state| states.contains(state)) {
        advice.push(
            "This machine closed first. When the peer closes too, the connection leaves a TIME_WAIT socket on the port (RFC \
             9293, section 3.3.2)."
                .into(),
        );
    }
    advice
}

pub(super) fn bound(evidence: &BindEvidence) -> Vec<String> {
    let sockets = || blocking_in(evidence, |state| matches!(state, TcpState::Closed | TcpState::BoundInactive));
    let names = owner_names(sockets());
    let holds = if sockets().count() == 1 {
        format!("A socket is bound to the port and does not listen: {names}.")
    } else {
        format!("Sockets are bound to the port and do not listen: {names}.")
    };
    let mut advice = vec![match fewest_that_work(evidence) {
        // SO_REUSEPORT works only if all sockets have it. Then all of them can listen.
        Some(ReuseOptions::REUSEPORT) => format!("{holds} {}", set_options_advice(ReuseOptions::REUSEPORT)),
        Some(options) => format!(
            "{holds} {} But only one of two such sockets can listen on an address: the second listen() fails with EADDRINUSE \
             (listen(2); try --listen).",
            set_options_advice(options)
        ),
        None => format!("{holds} Stop what holds the port, or choose another port or address."),
    }];
    advice.extend(buckets_beside(evidence));
    if fewest_that_work(evidence).is_none() {
        advice.extend(other_user(evidence, sockets()));
    }
    advice.extend(other_device(evidence));
    advice
}

pub(super) fn shared_socket(evidence: &BindEvidence) -> Option<String> {
    let sharing = |holder: &Holder| match &holder.owners {
        Owners::Found(processes) if processes.len() > 1 => Some((processes.len(), holder.owners.names().join(", "))),
        _ => None,
    };
    let (count, names) = blocking(evidence).filter_map(sharing).max_by_key(|(count, _)| *count)?;
    Some(format!(
        "{count} processes have the same socket open: {names}. The socket is closed only when all of them have closed it."
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::verdict::Conclusion;
    use crate::model::bind::{Cause, ServerSetup};
    use crate::model::facts::Facts;
    use crate::model::facts::tests::facts;
    use crate::model::port::Port;
    use crate::model::row::Direction;
    use crate::model::row::tests::row;
    use crate::model::user::User;

    fn listener_of(uid: u32, owners: Owners) -> Holder {
        let socket = FullSocket {
            tuple: row("127.0.0.1", 80, "0.0.0.0", 0).bucket.tuple,
            state: TcpState::Listen,
            uid,
            inode: std::num::NonZeroU32::new(7),
            interface: None,
            mark: None,
            v6only: None,
            last_ack_ms: None,
            cookie: None,
        };
        Holder { owners, ..Holder::of(Socket::Full(socket), Direction::Unknown, true) }
    }

    fn blocked_by<'a>(facts: &'a Facts, port: u16, cause: Cause, holders: &'a [Holder]) -> BindEvidence<'a> {
        BindEvidence {
            facts,
            port: Port(port),
            with: ReuseOptions::NONE,
            attempts: &[],
            holders,
            conclusion: Conclusion { verdict: Verdict::Blocked, cause, free_in: None },
            bound_sockets_are_listed: true,
            uid: Some(1000),
            udp: false,
            setup: ServerSetup::default(),
        }
    }

    fn advice(with: ReuseOptions, holder: Holder) -> String {
        listener(&BindEvidence { with, ..blocked_by(&facts(), 80, Cause::Listener, &[holder]) }).join("\n")
    }

    #[test]
    fn a_connection_to_itself_does_not_hide_the_explanation_of_other_outbound_connections() {
        let connection = |to: &str, port| {
            let tuple = row("127.0.0.1", 40_000, to, port).bucket.tuple;
            let Socket::Full(listener) = listener_of(1000, Owners::NotPermitted).socket else {
                unreachable!("a listener")
            };
            let socket = FullSocket { tuple, state: TcpState::Established, ..listener };
            Holder { blocks: true, ..Holder::of(Socket::Full(socket), Direction::Outbound, true) }
        };
        let facts = facts();
        let advise = |holders: &[Holder]| {
            super::super::advise(&blocked_by(&facts, 40_000, Cause::Connection, holders)).join("\n")
        };
        let (to_itself, other) = (connection("127.0.0.1", 40_000), connection("192.0.2.1", 443));
        let text = advise(&[to_itself.clone(), other]);
        assert!(text.contains("A connection to itself holds the port"), "{text}");
        assert!(text.contains("A client on this machine opened 1 of the connections (inferred)"), "{text}");
        let text = advise(&[to_itself]);
        assert!(text.contains("A connection to itself") && !text.contains("(inferred)"), "{text}");
    }

    #[test]
    fn advice_about_so_reuseport_compares_the_users_of_both_sockets() {
        let other = advice(ReuseOptions::REUSEPORT, listener_of(33, Owners::NotPermitted));
        assert!(other.contains("belongs to uid 33, and this test ran as uid 1000"), "{other}");
        let same = advice(ReuseOptions::BOTH, listener_of(1000, Owners::NotPermitted));
        assert!(same.contains("same (uid 1000)") && same.contains("does not have the option"), "{same}");
        let without_reuseport = advice(ReuseOptions::REUSEADDR, listener_of(33, Owners::Nobody));
        assert!(!without_reuseport.contains("effective user"), "{without_reuseport}");
        let unknown = Holder { user: None, ..listener_of(65534, Owners::NotPermitted) };
        let unknown = advice(ReuseOptions::REUSEPORT, unknown);
        assert!(unknown.contains("The user of a socket is unknown") && !unknown.contains("65534"), "{unknown}");
    }

    #[test]
    fn advice_names_the_user_of_a_process_that_cannot_be_read() {
        let text = advice(ReuseOptions::NONE, listener_of(33, Owners::NotPermitted));
        assert!(text.starts_with("Port 80 has a listener"), "{text}");
        assert!(text.contains(": a process that this user has no permission to see (uid 33). "), "{text}");
        let named = Holder {
            user: Some(User { uid: 33, name: Some("www-data".into()) }),
            created_in: Some("/system.slice/nginx.service".into()),
            ..listener_of(33, Owners::NotPermitted)
        };
        let text = advice(ReuseOptions::NONE, named);
        assert!(text.contains(" (uid 33, www-data; the socket was created in nginx.service). The listener"), "{text}");
    }
}
