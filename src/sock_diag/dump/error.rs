//! The errors of a dump.

use std::io;

use crate::sock_diag::request::Walk;
use crate::sock_diag::response::MalformedSocket;

/// Why a dump failed.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// The request could not be sent.
    #[error("sending a request for {walk} sockets to the kernel failed: {source}")]
    Send {
        /// The requested walk.
        walk: Walk,
        /// The reason.
        source: io::Error,
    },
    /// A datagram could not be received (for example, because of ENOBUFS), or a second dump could not be requested.
    #[error("receiving {walk} sockets from the kernel failed: {source}")]
    Recv {
        /// The requested walk.
        walk: Walk,
        /// The reason.
        source: io::Error,
    },
    /// NLMSG_ERROR or NLMSG_DONE with an errno before the first socket: the kernel refuses the request.
    #[error("the kernel refuses to list {walk} sockets: {errno}")]
    Refused {
        /// The requested walk.
        walk: Walk,
        /// The kernel's reason.
        errno: io::Error,
    },
    /// NLMSG_DONE or NLMSG_ERROR with an errno after the first socket, or after an earlier dump of the same walk that worked.
    #[error("the kernel broke off the list of {walk} sockets: {errno}")]
    BrokenOff {
        /// The requested walk.
        walk: Walk,
        /// The kernel's reason.
        errno: io::Error,
    },
    /// NLMSG_OVERRUN: the kernel lost data.
    #[error("the kernel lost part of the list of {walk} sockets (NLMSG_OVERRUN)")]
    Overrun {
        /// The requested walk.
        walk: Walk,
    },
    /// A datagram that did not fit into the buffer.
    #[error("the kernel sent a datagram of {length} bytes, of which only {room} were received")]
    Truncated {
        /// The length of the datagram.
        length: usize,
        /// The length of the buffer.
        room: usize,
    },
    /// Bytes that are not a netlink message of this dump.
    #[error("the kernel sent a malformed netlink message: {0}")]
    Framing(String),
    /// A message that does not describe a socket.
    #[error("the kernel sent a malformed netlink message: {0}")]
    Malformed(#[from] MalformedSocket),
}

impl DumpError {
    /// Converts an error of the second dump to an error after which the source does not fall back to procfs. A fallback would repeat
    /// the sockets of the first dump, which the caller has already received.
    pub(super) fn of_second_dump(self) -> Self {
        match self {
            Self::Send { walk, source } => Self::Recv { walk, source },
            Self::Refused { walk, errno } => Self::BrokenOff { walk, errno },
            error => error,
        }
    }
}
