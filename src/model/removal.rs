//! The result of removing a socket.

/// What happened to a bucket or orphan that `kill` selected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemovalResult {
    /// It was selected, but not removed (a dry run).
    Matched,
    /// The kernel destroyed it on request, and no longer lists it.
    Destroyed,
    /// It is no longer listed, but the kernel did not confirm the request: its timer, a segment or another program may have
    /// ended it.
    Gone,
    /// It still exists, or it is unknown whether it does; with the symbolic name of the errno, if the kernel returned one.
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
