//! Names what blocks a bind, in a few words for a headline.

use super::{buckets_counted, is_connection, who};
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
        Cause::Listener => format!("a listener: {}", who(in_state(|state| state == TcpState::Listen))),
        Cause::Connection => {
            let connections = in_state(is_connection);
            let mut states: Vec<_> = connections.clone().map(|holder| holder.socket.state().name()).collect();
            states.sort_unstable();
            states.dedup();
            let word = if connections.clone().count() == 1 { "a connection" } else { "connections" };
            format!("{word} ({}): {}", states.join(", "), who(connections))
        }
        Cause::Bound => {
            let bound = in_state(|state| matches!(state, TcpState::Closed | TcpState::BoundInactive));
            format!("a bound socket: {}", who(bound))
        }
        Cause::TimeWait | Cause::TimeWaitWithoutReuseaddr => buckets_counted(blocking),
        _ => "probably a socket that this kernel does not list".into(),
    }
}
