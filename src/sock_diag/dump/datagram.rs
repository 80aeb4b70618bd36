//! The netlink messages in one datagram of a dump (netlink(7)).

use std::io;
use std::ops::Range;

use netlink_packet_core::{NLMSG_ERROR, NLMSG_NOOP, NetlinkBuffer};
use netlink_packet_sock_diag::constants::SOCK_DIAG_BY_FAMILY;

use super::error::DumpError;
use crate::sock_diag::request::{SEQUENCE, TCPDIAG_GETSOCK};

/// Whether the reader stops in this datagram: it has NLMSG_DONE, an errno, or bytes that are an error.
pub(super) fn is_last(datagram: &[u8]) -> bool {
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
        rest = rest.get(aligned_length(&message)..).unwrap_or_default();
    }
    datagram.is_empty()
}

/// The socket records of a datagram, up to the first message of another kind: the payload of each, and the bytes of the
/// whole message.
pub(super) fn sockets(datagram: &[u8]) -> impl Iterator<Item = (&[u8], Range<usize>)> {
    let mut end = 0;
    std::iter::from_fn(move || {
        let message = NetlinkBuffer::new_checked(datagram.get(end..)?).ok()?;
        let start = end;
        end = (start + aligned_length(&message)).min(datagram.len());
        let is_socket = matches!(message.message_type(), SOCK_DIAG_BY_FAMILY | TCPDIAG_GETSOCK);
        is_socket.then(|| (message.payload(), start..end))
    })
}

/// `NLMSG_ALIGN(nlmsg_len)`: messages start at multiples of 4; the last one may end without padding.
pub(super) fn aligned_length(message: &NetlinkBuffer<&[u8]>) -> usize {
    (message.length() as usize).next_multiple_of(4)
}

/// The negative errno at the start of NLMSG_DONE and NLMSG_ERROR; `None` for 0.
pub(super) fn errno(payload: &[u8]) -> Result<Option<io::Error>, DumpError> {
    let code = payload.first_chunk::<4>().copied().map(i32::from_ne_bytes);
    match code {
        Some(0) => Ok(None),
        Some(code @ i32::MIN..0) => Ok(Some(io::Error::from_raw_os_error(code.saturating_neg()))),
        _ => Err(DumpError::Framing("an end of the list without a status".into())),
    }
}
