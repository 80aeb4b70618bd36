//! What became of a bucket that was to be removed.

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemovalResult {
    /// Nothing was tried.
    Matched,
    /// The kernel destroyed it when it was asked to, and it is no longer there.
    Destroyed,
    /// It is no longer there, and the kernel's answer to the request is another, or did not come: its timer, a segment or
    /// another program may have ended it.
    Gone,
    /// It is still there, or nobody knows that it is not; with the errno's symbolic name where the kernel gave one.
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

    /// The errno, where there is one.
    #[must_use]
    pub const fn errno(self) -> Option<&'static str> {
        match self {
            Self::Failed(errno) => errno,
            Self::Matched | Self::Destroyed | Self::Gone => None,
        }
    }
}
