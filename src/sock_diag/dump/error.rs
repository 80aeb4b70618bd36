//! The ways in which a dump fails.

use std::io;

use crate::sock_diag::lookup::LookupError;
use crate::sock_diag::request::Walk;
use crate::sock_diag::response::Malformed;

/// Why a dump has no complete answer.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// The request could not be sent.
    #[error("asking the kernel for {walk} sockets failed: {source}")]
    Send {
        /// The walk that was asked for.
        walk: Walk,
        /// The reason.
        source: io::Error,
    },
    /// Receiving failed; ENOBUFS among the reasons.
    #[error("receiving {walk} sockets from the kernel failed: {source}")]
    Recv {
        /// The walk that was asked for.
        walk: Walk,
        /// The reason.
        source: io::Error,
    },
    /// NLMSG_ERROR before any socket: the kernel refuses the request.
    #[error("the kernel refuses to list {walk} sockets: {errno}")]
    Refused {
        /// The walk that was asked for.
        walk: Walk,
        /// The kernel's reason.
        errno: io::Error,
    },
    /// NLMSG_DONE or NLMSG_ERROR with an errno after the first socket.
    #[error("the kernel broke off the list of {walk} sockets: {errno}")]
    BrokenOff {
        /// The walk that was asked for.
        walk: Walk,
        /// The kernel's reason.
        errno: io::Error,
    },
    /// NLMSG_OVERRUN: the kernel lost data.
    #[error("the kernel lost part of the list of {walk} sockets (NLMSG_OVERRUN)")]
    Overrun {
        /// The walk that was asked for.
        walk: Walk,
    },
    /// A datagram that did not fit into the buffer.
    #[error("a datagram of {length} bytes was cut to {room}")]
    Truncated {
        /// Its length.
        length: usize,
        /// The length of the buffer.
        room: usize,
    },
    /// Bytes that are no netlink message of this dump.
    #[error("a malformed netlink message from the kernel: {0}")]
    Framing(String),
    /// Looking up a socket beside a pause of the dump failed.
    #[error("whether the list of sockets is whole could not be checked: {0}")]
    LookUp(LookupError),
    /// A message that is no socket.
    #[error("a malformed netlink message from the kernel: {0}")]
    Malformed(#[from] Malformed),
}

impl DumpError {
    /// The same error after sockets were handed out: nobody may ask elsewhere for them any more.
    pub(super) fn after_the_first_dump(self) -> Self {
        match self {
            Self::Send { walk, source } => Self::Recv { walk, source },
            Self::Refused { walk, errno } => Self::BrokenOff { walk, errno },
            error => error,
        }
    }
}
