//! What can happen to a bucket between two looks, and what proves it.
//!
//! The kernel does not report why a bucket is missing. `tracker` names a cause only if nothing else could have removed
//! the bucket:
//!
//! | event | what proves it |
//! |---|---|
//! | entered | a new cookie, and the timer started after the last look |
//! | became-time-wait | the same cookie in another state |
//! | restarted | the same cookie, and the timer went up to the whole time, less the time since the last look |
//! | expired | the bucket is missing, and its time had run out by the end of this look. Uncertain if more than 2 s were left at the last look, because SOCK_DESTROY and a RST leave no trace |
//! | taken-over | another socket now has the same addresses and ports |
//! | destroyed | time was left, and since the last look no TCP segment arrived (`InSegs`) and no connect() took a bucket over (`TWRecycled`). Only SOCK_DESTROY needs neither |
//! | reset | time was left, and nothing but a RST is possible: this kernel cannot destroy buckets (before 6.1), no connect() took one over, and no listener could have accepted a SYN |
//! | gone | time was left, and several causes are possible; never certain |
//!
//! A RST leaves no trace of its own: no counter distinguishes it from other segments.

use std::sync::Arc;
use std::time::SystemTime;

use crate::model::facts::Facts;
use crate::model::row::Row;

/// What happened to a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EventKind {
    /// It is new.
    Entered,
    /// It was in FIN_WAIT_2, and the peer has closed.
    BecameTimeWait,
    /// Its timer ran out.
    Expired,
    /// Its timer started again, because the peer retransmitted its FIN or sent an ACK.
    Restarted,
    /// SOCK_DESTROY removed it.
    Destroyed,
    /// A new connection with the same ends took its place.
    TakenOver,
    /// A RST removed it.
    Reset,
    /// It is missing before its time, and the cause is unknown.
    Gone,
}

impl EventKind {
    /// Every kind.
    pub const ALL: [Self; 8] = [
        Self::Entered,
        Self::BecameTimeWait,
        Self::Expired,
        Self::Restarted,
        Self::Destroyed,
        Self::TakenOver,
        Self::Reset,
        Self::Gone,
    ];

    /// The name that scripts see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Entered => "entered",
            Self::BecameTimeWait => "became-time-wait",
            Self::Expired => "expired",
            Self::Restarted => "restarted",
            Self::Destroyed => "destroyed",
            Self::TakenOver => "taken-over",
            Self::Reset => "reset",
            Self::Gone => "gone",
        }
    }
}

/// Something that happened to a selected bucket between two looks.
#[derive(Clone, Debug)]
pub struct Event {
    /// When the look began that showed it.
    pub at: SystemTime,
    /// What happened.
    pub kind: EventKind,
    /// Whether it is proven. `false`: the most likely cause, or [`EventKind::Gone`].
    pub certain: bool,
    /// The bucket: at this look, or at the last one if it is missing now. Then the remaining time is what would be left.
    pub row: Row,
    /// The facts of its namespace.
    pub facts: Arc<Facts>,
}
