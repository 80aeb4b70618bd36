//! The process that probably or certainly made a bucket, with the evidence. A bucket itself belongs to no process.

use std::sync::Arc;

use super::close::MakerFacts;

/// How the owner of a bucket was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Evidence {
    /// A tracer saw the process close the connection.
    Traced,
    /// The process had the connection open in a sample.
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

    /// Whether it is a fact. Otherwise it is an inference.
    #[must_use]
    pub const fn is_certain(self) -> bool {
        matches!(self, Self::Traced | Self::Sampled)
    }
}

/// The owner of a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The processes that it could be, at least one, by number. Owners of many buckets share them.
    pub candidates: Arc<[MakerFacts]>,
    /// How it was found.
    pub evidence: Evidence,
}

impl Owner {
    /// The process. Among several candidates, the one with the lowest number.
    #[must_use]
    pub fn process(&self) -> &MakerFacts {
        &self.candidates[0]
    }
}
