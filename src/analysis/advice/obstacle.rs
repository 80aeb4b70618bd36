//! Names what blocks a bind, in a few words for a headline.

use super::{count_buckets_by_state, is_connection, owner_names};
use crate::model::bind::{Cause, Holder};
use crate::model::socket::{Socket, TcpState};

/// Names the sockets that block a bind: `a listener: nginx (pid 7)`, `2 TIME_WAIT sockets`. Only sockets that fit `cause` are named.
/// The text contains names of processes, so the caller must escape it for a terminal.
#[must_use]
pub fn obstacle<'a>(cause: Cause, blocking: impl Iterator<Item = &'a Holder> + Clone) -> String {
    let in_state = |fits: fn(TcpState) -> bool| {
        blocking.clone().filter(move |holder| matches!(holder.socket, Socket::Full(full) if fits(full.state)))
    };
    match cause {
        Cause::Listener => format!("a listener: {}", owner_names(in_state(|state| state == TcpState::Listen))),
        Cause::Connection => {
            let connections = in_state(is_connection);
            let mut states: Vec<_> = connections.clone().map(|holder| holder.socket.state().name()).collect();
            states.sort_unstable();
            states.dedup();
            let word = if connections.clone().count() == 1 { "a connection" } else { "connections" };
            format!("{word} ({}): {}", states.join(", "), owner_names(connections))
        }
        Cause::Bound => {
            let bound = in_state(|state| matches!(state, TcpState::Closed | TcpState::BoundInactive));
            format!("a bound socket: {}", owner_names(bound))
        }
        Cause::TimeWait | Cause::TimeWaitWithoutReuseaddr => count_buckets_by_state(blocking),
        _ => "probably a socket that this kernel does not list".into(),
    }
}
