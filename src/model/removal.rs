//! The result of removing a socket.

/// What happened to a bucket or orphan that `kill` selected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemovalResult {
    /// The socket was selected, but twtool did not try to remove it (a dry run).
    Matched,
    /// The kernel destroyed the socket on request.
    Destroyed,
    /// The socket no longer exists, but the kernel did not confirm the request. The timer of the socket, a segment or another program
    /// may have ended it.
    Gone,
    /// The socket still exists, or this is unknown. The value is the symbolic name of the errno, if the kernel returned one.
    Failed(Option<&'static str>),
}

impl RemovalResult {
    /// The name that scripts see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Matched => "matched",
            Self::Destroyed => "destroyed",
            Self::Gone => "gone",
            Self::Failed(_) => "failed",
        }
    }

    /// The errno, if there is one.
    #[must_use]
    pub const fn errno(self) -> Option<&'static str> {
        match self {
            Self::Failed(errno) => errno,
            Self::Matched | Self::Destroyed | Self::Gone => None,
        }
    }
}
