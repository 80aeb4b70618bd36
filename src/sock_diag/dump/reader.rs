//! Reads the datagrams of one dump in their order: which messages are sockets, and which end it.

use std::io;
use std::ops::{ControlFlow, Range};

use netlink_packet_core::{NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP, NLMSG_OVERRUN, NetlinkBuffer};
use netlink_packet_sock_diag::constants::SOCK_DIAG_BY_FAMILY;

use super::resumption::Resumptions;
use super::{DumpEnd, DumpError, Received};
use crate::model::port::Port;
use crate::model::socket::{Socket, StateSet, TcpState};
use crate::sock_diag::request::{Request, SEQUENCE, TCPDIAG_GETSOCK, Walk};
use crate::sock_diag::response;

/// Whether a datagram is the dump's last: it has an NLMSG_DONE or an errno, or what nothing is read behind.
pub(super) fn ends(datagram: &[u8]) -> bool {
    let mut rest = datagram;
    while !rest.is_empty() {
        let Ok(message) = NetlinkBuffer::new_checked(rest) else { return true };
        match message.message_type() {
            _ if message.sequence_number() != SEQUENCE => return true,
            SOCK_DIAG_BY_FAMILY | TCPDIAG_GETSOCK | NLMSG_NOOP => {}
            // An acknowledgement.
            NLMSG_ERROR if matches!(errno(message.payload()), Ok(None)) => {}
            _ => return true,
        }
        rest = rest.get(aligned(&message)..).unwrap_or_default();
    }
    datagram.is_empty()
}

/// The sockets of a datagram, as far as it can be read: what describes each, and where its message lies.
pub(super) fn sockets(datagram: &[u8]) -> impl Iterator<Item = (&[u8], Range<usize>)> {
    let mut end = 0;
    std::iter::from_fn(move || {
        let message = NetlinkBuffer::new_checked(datagram.get(end..)?).ok()?;
        let start = end;
        end = (start + aligned(&message)).min(datagram.len());
        let is_socket = matches!(message.message_type(), SOCK_DIAG_BY_FAMILY | TCPDIAG_GETSOCK);
        is_socket.then(|| (message.payload(), start..end))
    })
}

/// NLMSG_ALIGN of a message's length: messages start at multiples of 4; the last one may end unpadded.
fn aligned(message: &NetlinkBuffer<&[u8]>) -> usize {
    (message.length() as usize).next_multiple_of(4)
}

/// What has been read of a dump.
pub(super) struct Reader {
    walk: Walk,
    states: StateSet,
    /// Whether a connection is looked for before its close and after it, so that it is there all the time.
    through_life: bool,
    /// A socket has come.
    began: bool,
    pub(super) interrupted: bool,
    pub(super) resumptions: Resumptions,
}

impl Reader {
    /// `live`: whether a kernel answers that is to be asked again.
    pub(super) fn new(request: &Request, live: bool) -> Self {
        let through_life =
            [TcpState::FinWait1, TcpState::TimeWait].into_iter().all(|state| request.states.contains(state));
        Self {
            walk: request.walk,
            states: request.states,
            through_life,
            began: false,
            interrupted: false,
            resumptions: Resumptions::new(live),
        }
    }

    /// Reads one datagram, or why there is none; the end, if it is in there.
    pub(super) fn read(
        &mut self,
        Received { length, pause }: Received,
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
        let datagram = &*self.resumptions.resumed(datagram);
        let (mut rest, mut last) = (datagram, &[][..]);
        while !rest.is_empty() {
            let message = NetlinkBuffer::new_checked(rest).map_err(|e| DumpError::Framing(format!("{e:#}")))?;
            if message.sequence_number() != SEQUENCE {
                let number = message.sequence_number();
                return Err(DumpError::Framing(format!("it answers request {number}, which was not asked")));
            }
            self.interrupted |= message.flags() & NLM_F_DUMP_INTR != 0;
            match message.message_type() {
                SOCK_DIAG_BY_FAMILY | TCPDIAG_GETSOCK => {
                    self.began = true;
                    last = message.payload();
                    let socket = response::decode(message.payload())?;
                    let tuple = socket.tuple();
                    self.interrupted |=
                        self.through_life && tuple.local_port() == Port(0) && tuple.remote_port() != Port(0);
                    if self.states.contains(socket.state()) && each(&socket).is_break() {
                        return Ok(Some(DumpEnd { interrupted: self.interrupted, stopped: true }));
                    }
                }
                NLMSG_NOOP => {}
                NLMSG_OVERRUN => return Err(DumpError::Overrun { walk }),
                // The kernel may carry errors in either; 0 is success in both.
                kind @ (NLMSG_DONE | NLMSG_ERROR) => match errno(message.payload())? {
                    None if kind == NLMSG_DONE => {
                        return Ok(Some(DumpEnd { interrupted: self.interrupted, stopped: false }));
                    }
                    None => {}
                    Some(errno) if self.began => return Err(DumpError::BrokenOff { walk, errno }),
                    Some(errno) => return Err(DumpError::Refused { walk, errno }),
                },
                other => return Err(DumpError::Framing(format!("it is of type {other}, which was not asked for"))),
            }
            rest = rest.get(aligned(&message)..).unwrap_or_default();
        }
        self.resumptions.paused(datagram, last, pause);
        Ok(None)
    }
}

/// The negative errno at the start of NLMSG_DONE and NLMSG_ERROR; `None` for 0.
fn errno(payload: &[u8]) -> Result<Option<io::Error>, DumpError> {
    let code = payload.first_chunk::<4>().copied().map(i32::from_ne_bytes);
    match code {
        Some(0) => Ok(None),
        Some(code @ i32::MIN..0) => Ok(Some(io::Error::from_raw_os_error(code.saturating_neg()))),
        _ => Err(DumpError::Framing("an end of the list without a status".into())),
    }
}
