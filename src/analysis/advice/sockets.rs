//! Advice where a listener, a connection or a bound socket is in the way of a bind.

use super::{BOTH_SIDES, Evidence, blocking, fewest_that_work, set};
use crate::model::bind::{Holder, Verdict};
use crate::model::process::Owners;
use crate::model::socket::{Socket, TcpState};

fn blocking_in<'a>(evidence: &Evidence<'a>, fits: fn(TcpState) -> bool) -> impl Iterator<Item = &'a Holder> + Clone {
    let full = move |holder: &&Holder| matches!(holder.socket, Socket::Full(full) if fits(full.state));
    blocking(evidence).filter(full)
}

fn is_connection(state: TcpState) -> bool {
    !matches!(state, TcpState::Listen | TcpState::Closed | TcpState::BoundInactive)
}

/// Who they are, the first few by name. Names that processes gave themselves are among the text: escape it.
pub fn who<'a>(holders: impl Iterator<Item = &'a Holder> + Clone) -> String {
    const SHOWN: usize = 3;
    let total = holders.clone().count();
    let mut named: Vec<String> = vec![];
    for holder in holders {
        for name in holder.owners.names() {
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

pub(super) fn listener(evidence: &Evidence) -> String {
    let Evidence { port, with, .. } = *evidence;
    let who = who(blocking_in(evidence, |state| state == TcpState::Listen));
    if evidence.conclusion.verdict == Verdict::Reusable {
        return format!(
            "{who} listens on port {port}. A bind with {with} works beside it: on the same address the kernel deals new \
             connections out among all its listeners, and a listener on a more specific address gets those to that address \
             (socket(7), SO_REUSEPORT)."
        );
    }
    format!(
        "{who} listens on port {port}: it is in use, not in TIME_WAIT. SO_REUSEADDR never takes a port from a listener \
         (socket(7)). Stop that server, or choose another port or address."
    )
}

pub(super) fn connection(evidence: &Evidence) -> Vec<String> {
    let connections = || blocking_in(evidence, is_connection);
    let mut states: Vec<TcpState> = connections().map(|holder| holder.socket.state()).collect();
    states.sort_unstable_by_key(|state| state.name());
    states.dedup();
    let names: Vec<_> = states.iter().map(|state| state.name()).collect();
    let mut advice = vec![format!("A connection holds the port ({}): {}.", names.join(", "), who(connections()))];
    advice.push(match fewest_that_work(evidence) {
        Some(options) if options == evidence.with => {
            format!("Set {options} before bind(): it works now, because that socket has it too. {BOTH_SIDES}.")
        }
        Some(options) => format!("{} {BOTH_SIDES}.", set(options)),
        None => format!(
            "No option gets past every socket on the port: at least one of them does not have the option that the new one \
             would share it by. {BOTH_SIDES}."
        ),
    });
    if states.contains(&TcpState::CloseWait) {
        advice.push(
            "In close-wait the peer has closed and the program that owns the socket has not: it stays until that program \
             calls close() (RFC 9293, section 3.3.2)."
                .into(),
        );
    }
    let leaves = [TcpState::Established, TcpState::FinWait1, TcpState::FinWait2, TcpState::Closing];
    if leaves.iter().any(|state| states.contains(state)) {
        advice.push(
            "If this end closes first, the connection leaves a TIME_WAIT bucket on the port (RFC 9293, section 3.3.2)."
                .into(),
        );
    }
    advice
}

pub(super) fn bound(evidence: &Evidence) -> String {
    let who = who(blocking_in(evidence, |state| matches!(state, TcpState::Closed | TcpState::BoundInactive)));
    let holds = format!("{who} has bound the port without listening on it.");
    match fewest_that_work(evidence) {
        Some(options) => format!(
            "{holds} {} But of two such sockets only one can listen on an address: the second listen() fails with EADDRINUSE \
             (listen(2); try --listen).",
            set(options)
        ),
        None => format!("{holds} Stop that process, or choose another port or address."),
    }
}

/// That all processes with the same socket must close it.
pub(super) fn shared(evidence: &Evidence) -> Option<String> {
    let sharing = |holder: &Holder| match &holder.owners {
        Owners::Found(processes) if processes.len() > 1 => Some((processes.len(), holder.owners.names().join(", "))),
        _ => None,
    };
    let (count, names) = blocking(evidence).filter_map(sharing).max_by_key(|(count, _)| *count)?;
    Some(format!(
        "{count} processes have the same socket open: {names}. The port is free only when all of them close it."
    ))
}
