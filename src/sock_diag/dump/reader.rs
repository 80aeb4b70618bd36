//! Reads the datagrams of one dump in order, passes on the sockets, and finds the end or the error.

use std::io;
use std::ops::ControlFlow;

use netlink_packet_core::{NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP, NLMSG_OVERRUN, NetlinkBuffer};
use netlink_packet_sock_diag::constants::SOCK_DIAG_BY_FAMILY;

use super::cookie_list::CookieList;
use super::datagram::{aligned_length, errno};
use super::error::DumpError;
use super::repeats::{self, Repeats};
use crate::model::port::Port;
use crate::model::socket::{Socket, StateSet, TcpState};
use crate::sock_diag::request::{Request, SEQUENCE, TCPDIAG_GETSOCK, Walk};
use crate::sock_diag::response;

/// How a successful dump ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DumpEnd {
    /// Whether the dump shows that sockets may be missing or repeated.
    pub interrupted: bool,
    /// Whether the callback stopped the dump. Then the transport has an unfinished dump and must not be used again.
    pub stopped: bool,
    /// The number of sockets that a second dump added: sockets that the first dump lost, and new sockets.
    pub recovered: usize,
}

pub(super) struct Reader {
    walk: Walk,
    states: StateSet,
    /// Whether the request includes both a connection that closes (FIN_WAIT_1) and its bucket (TIME_WAIT). Then a record without the
    /// local port shows that the dump lacks a bucket (see the end of the parent module's documentation).
    covers_close: bool,
    /// Whether the dump has already contained a socket.
    began: bool,
    interrupted: bool,
    repeats: Repeats,
    /// The cookies of all sockets. `None` if they are not needed.
    pub(super) seen: Option<CookieList>,
}

impl Reader {
    pub(super) fn new(request: &Request, seen: Option<CookieList>) -> Self {
        let covers_close =
            [TcpState::FinWait1, TcpState::TimeWait].into_iter().all(|state| request.states.contains(state));
        Self {
            walk: request.walk,
            states: request.states,
            covers_close,
            began: false,
            interrupted: false,
            repeats: Repeats::default(),
            seen,
        }
    }

    /// Reads one datagram. Returns the end of the dump if the datagram contains it, or if `each` stops the dump. `length` is the result of
    /// the receive call, with the true length: it is larger than the datagram if the buffer was too small.
    pub(super) fn read(
        &mut self,
        length: io::Result<usize>,
        datagram: &[u8],
        each: &mut impl FnMut(&Socket) -> ControlFlow<()>,
    ) -> Result<Option<DumpEnd>, DumpError> {
        let walk = self.walk;
        let length = length.map_err(|source| DumpError::Recv { walk, source })?;
        if length > datagram.len() {
            return Err(DumpError::Truncated { length, room: datagram.len() });
        }
        if datagram.is_empty() {
            return Err(DumpError::Framing("an empty datagram".into()));
        }
        let datagram = &*self.repeats.removed_from(datagram);
        let mut rest = datagram;
        // The payloads of the last sockets, as a ring buffer.
        let (mut last, mut count) = ([&[][..]; repeats::MAX_SOCKETS], 0);
        while !rest.is_empty() {
            let message = NetlinkBuffer::new_checked(rest).map_err(|e| DumpError::Framing(format!("{e:#}")))?;
            if message.sequence_number() != SEQUENCE {
                let number = message.sequence_number();
                return Err(DumpError::Framing(format!("it is a response to request {number}, which was not sent")));
            }
            self.interrupted |= message.flags() & NLM_F_DUMP_INTR != 0;
            match message.message_type() {
                SOCK_DIAG_BY_FAMILY | TCPDIAG_GETSOCK => {
                    self.began = true;
                    last[count % repeats::MAX_SOCKETS] = message.payload();
                    count += 1;
                    let socket = response::decode(message.payload())?;
                    if let (Some(seen), Some(cookie)) = (&mut self.seen, socket.cookie()) {
                        seen.push(cookie);
                    }
                    let tuple = socket.tuple();
                    self.interrupted |=
                        self.covers_close && tuple.local_port() == Port(0) && tuple.remote_port() != Port(0);
                    if self.states.contains(socket.state()) && each(&socket).is_break() {
                        return Ok(Some(DumpEnd { interrupted: self.interrupted, stopped: true, recovered: 0 }));
                    }
                }
                NLMSG_NOOP => {}
                NLMSG_OVERRUN => return Err(DumpError::Overrun { walk }),
                kind @ (NLMSG_DONE | NLMSG_ERROR) => match errno(message.payload())? {
                    None if kind == NLMSG_DONE => {
                        return Ok(Some(DumpEnd { interrupted: self.interrupted, stopped: false, recovered: 0 }));
                    }
                    None => {}
                    Some(errno) if self.began => return Err(DumpError::BrokenOff { walk, errno }),
                    Some(errno) => return Err(DumpError::Refused { walk, errno }),
                },
                other => return Err(DumpError::Framing(format!("it has the unexpected type {other}"))),
            }
            rest = rest.get(aligned_length(&message)..).unwrap_or_default();
        }
        self.repeats
            .record_last((count.saturating_sub(repeats::MAX_SOCKETS)..count).map(|at| last[at % repeats::MAX_SOCKETS]));
        Ok(None)
    }
}
