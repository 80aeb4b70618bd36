//! The owner of a bucket: the process that closed the connection of the bucket, with the evidence. The kernel stores no process in a
//! bucket.

use std::sync::Arc;

use super::close::MakerFacts;

/// How the owner of a bucket was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Evidence {
    /// A tracer saw the process close the connection.
    Traced,
    /// The process had the connection open when a tracer without BPF read the open sockets (a sample).
    Sampled,
    /// Inferred: the process listens on the local port.
    Listener,
    /// Inferred: the process has another connection to the same remote end.
    SameDestination,
}

impl Evidence {
    /// Every kind of evidence, facts first.
    pub const ALL: [Self; 4] = [Self::Traced, Self::Sampled, Self::Listener, Self::SameDestination];

    /// The name that scripts see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Traced => "traced",
            Self::Sampled => "sampled",
            Self::Listener => "listener",
            Self::SameDestination => "same-destination",
        }
    }

    /// Whether the evidence is a fact, not an inference.
    #[must_use]
    pub const fn is_certain(self) -> bool {
        matches!(self, Self::Traced | Self::Sampled)
    }
}

/// The owner of a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The processes that can be the owner: at least one, the lowest pid first.
    pub candidates: Arc<[MakerFacts]>,
    /// How the owner was found.
    pub evidence: Evidence,
}

impl Owner {
    /// The candidate with the lowest pid.
    #[must_use]
    pub fn process(&self) -> &MakerFacts {
        &self.candidates[0]
    }
}
