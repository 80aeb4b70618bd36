//! Explanations of the closing states of TCP: which end must act, whether a timer runs, how long the state can last, and what
//! ends it (RFC 9293, section 3.3.2; net/ipv4/tcp_timer.c).
//!
//! If a socket in FIN_WAIT_1, FIN_WAIT_2, CLOSING or LAST_ACK has no inode, it is an orphan. If a socket in ESTABLISHED or CLOSE_WAIT
//! has no inode, no process has accepted the connection yet.

use crate::model::socket::{FullSocket, TcpState};

/// The limit for an orphan whose FIN the peer does not acknowledge (three orphans lasted 105 s with the default, Linux 6.18,
/// 2026-11-27).
const ORPHAN_TIMER: &str = "The kernel retransmits its FIN with growing pauses, and gives up after \
                            net.ipv4.tcp_orphan_retries retries: about 100 s with the default, longer on a slow path.";

/// The limit while a process has the socket open.
const OWNED_TIMER: &str = "The kernel retransmits its FIN with growing pauses, and gives up after net.ipv4.tcp_retries2 \
                           retries: about 15 minutes with the default.";

/// Explains why a socket stays in a closing state, and what ends the state. Also explains an established socket that no process has
/// accepted yet. `None` for other sockets.
#[must_use]
pub fn explain(socket: &FullSocket) -> Option<String> {
    let orphan = socket.is_orphan();
    let timer = if orphan { ORPHAN_TIMER } else { OWNED_TIMER };
    let text = match (socket.state, socket.inode.is_none()) {
        (TcpState::FinWait1, true) => format!(
            "fin-wait-1 without a process: this end closed the connection, and the peer has not acknowledged the FIN. {timer} \
             SOCK_DESTROY (since Linux 6.11), or a response of the peer, ends this state earlier."
        ),
        (TcpState::FinWait1, false) => format!(
            "fin-wait-1: this end has sent its FIN, and the peer has not acknowledged it. {timer} If the process closes the \
             socket, the shorter limit of an orphan applies."
        ),
        (TcpState::FinWait2, true) => "fin-wait-2 without a process: this end closed the connection, and the peer has \
                                       not. A timer ends the socket (net.ipv4.tcp_fin_timeout). If the peer closes \
                                       before, the socket becomes TIME_WAIT. SOCK_DESTROY (since Linux 6.11) ends the \
                                       socket at once."
            .into(),
        (TcpState::FinWait2, false) => "fin-wait-2 with a process: the process has called shutdown(), and the peer \
                                        has not closed. No timer runs, unless the process has set SO_KEEPALIVE. The \
                                        state lasts until the peer closes or the process calls close()."
            .into(),
        (TcpState::Closing, _) => format!(
            "closing: both ends have closed at the same time, and the peer has not acknowledged the FIN of this end. {timer} \
             When the acknowledgement comes, the socket becomes TIME_WAIT."
        ),
        (TcpState::LastAck, _) => format!(
            "last-ack: both ends have closed, the peer first, and the peer has not acknowledged the FIN of this end. \
             {timer} When the acknowledgement comes, the socket is gone, without TIME_WAIT."
        ),
        (TcpState::CloseWait, false) => "close-wait: the peer has closed, and the process that owns the socket has \
                                         not. No timer runs, unless the process has set SO_KEEPALIVE or the peer has \
                                         not acknowledged all data. Without a timer, the state lasts until the process \
                                         calls close() or ends."
            .into(),
        (TcpState::CloseWait, true) => "close-wait without a process: the peer has closed a connection that no \
                                        process has accepted. The state lasts until the server accepts and closes the \
                                        connection, or closes its listener."
            .into(),
        (TcpState::Established, true) => "established without a process: no process has accepted the connection. The \
                                          connection lasts until the server accepts and closes it, or closes its \
                                          listener."
            .into(),
        _ => return None,
    };
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::row::tests::row;
    use std::num::NonZeroU32;

    fn socket(state: TcpState, owned: bool) -> FullSocket {
        FullSocket {
            tuple: row("127.0.0.1", 80, "127.0.0.1", 40000).bucket.tuple,
            state,
            uid: 0,
            inode: NonZeroU32::new(u32::from(owned)),
            interface: None,
            mark: None,
            v6only: None,
            last_ack_ms: None,
            cookie: None,
        }
    }

    #[test]
    fn the_text_of_a_state_with_retransmissions_names_the_setting_that_limits_them() {
        use TcpState::{CloseWait, Closing, Established, FinWait1, FinWait2, LastAck, Listen};
        for state in [FinWait1, FinWait2, Closing, LastAck, CloseWait] {
            for owned in [false, true] {
                let socket = socket(state, owned);
                let text = explain(&socket).expect("a text");
                assert!(text.starts_with(state.name()), "{text}");
                assert_eq!(socket.is_orphan(), !owned && state != CloseWait, "{state:?}");
                let retransmits = matches!(state, FinWait1 | Closing | LastAck);
                assert_eq!(text.contains("tcp_orphan_retries"), retransmits && !owned, "{text}");
                assert_eq!(text.contains("tcp_retries2"), retransmits && owned, "{text}");
            }
        }
        assert_eq!(explain(&socket(Established, true)), None);
        assert!(explain(&socket(Established, false)).is_some_and(|text| text.contains("accepted")));
        assert_eq!(explain(&socket(Listen, true)), None);
    }
}
