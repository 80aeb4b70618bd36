//! The netlink messages in one datagram of a dump (netlink(7)).

use std::io;
use std::ops::Range;

use netlink_packet_core::{NLMSG_ERROR, NLMSG_NOOP, NetlinkBuffer};
use netlink_packet_sock_diag::constants::SOCK_DIAG_BY_FAMILY;

use super::error::DumpError;
use crate::sock_diag::request::{SEQUENCE, TCPDIAG_GETSOCK};

/// Whether the reader stops in this datagram, because the datagram contains NLMSG_DONE, an errno, or an unexpected message, or
/// because it is empty.
pub(super) fn is_last(datagram: &[u8]) -> bool {
    let mut rest = datagram;
    while !rest.is_empty() {
        let Ok(message) = NetlinkBuffer::new_checked(rest) else { return true };
        match message.message_type() {
            _ if message.sequence_number() != SEQUENCE => return true,
            SOCK_DIAG_BY_FAMILY | TCPDIAG_GETSOCK | NLMSG_NOOP => {}
            // Errno 0 is an acknowledgement.
            NLMSG_ERROR if matches!(errno(message.payload()), Ok(None)) => {}
            _ => return true,
        }
        rest = rest.get(aligned_length(&message)..).unwrap_or_default();
    }
    datagram.is_empty()
}

/// The socket records of a datagram up to the first message of another type: the payload of each, and the byte range of
/// the whole message.
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

/// `NLMSG_ALIGN(nlmsg_len)`: messages start at multiples of 4. The last one may have no padding.
pub(super) fn aligned_length(message: &NetlinkBuffer<&[u8]>) -> usize {
    (message.length() as usize).next_multiple_of(4)
}

/// The negative errno at the start of NLMSG_DONE and NLMSG_ERROR; `None` for 0.
pub(super) fn errno(payload: &[u8]) -> Result<Option<io::Error>, DumpError> {
    let code = payload.first_chunk::<4>().copied().map(i32::from_ne_bytes);
    match code {
        Some(0) => Ok(None),
        Some(code @ i32::MIN..0) => Ok(Some(io::Error::from_raw_os_error(code.saturating_neg()))),
        _ => Err(DumpError::Framing("NLMSG_DONE or NLMSG_ERROR without an errno".into())),
    }
}
