//! What can happen to a bucket between two samples, and what proves each event.
//!
//! The *last sample* is the sample before *this sample*. The kernel does not report why a bucket is missing from this sample. An event is
//! certain only if nothing else can have happened to the bucket (`tracker` decides this), with two exceptions:
//! - If at most 2 s were left when the bucket was last known to exist, `expired` can be certain, although SOCK_DESTROY or a RST may
//!   have removed the bucket in these 2 s.
//! - `taken-over` can be certain, although SOCK_DESTROY or a RST may have removed the bucket just before the new connection began.
//!
//! What proves each event:
//! - entered: a new cookie. Also, the timer started after the last sample, or the bucket is in FIN_WAIT_2 and the last sample missed no
//!   bucket.
//! - became-time-wait: the same cookie in another state.
//! - restarted: the same cookie. Also, the remaining time grew, or the timer can have started with its full length since a sample last
//!   listed the bucket, and clearly more time is left than the old timer would have.
//! - expired: the bucket is missing, and its time had run out by the end of this sample. If its time was not 0 in the last sample, the
//!   event is uncertain in three cases: more than 2 s were left when the bucket was last known to exist, another socket may have taken the
//!   bucket over, or another bucket ended before its time and no socket took that bucket over.
//! - taken-over: time was left, and another socket now has the same addresses and ports. If that socket called connect(), `TWRecycled`
//!   also grew, or is unknown; if it is unknown, the event is uncertain.
//! - destroyed: time was left. Since the last sample that missed no bucket, no TCP segment arrived (`InSegs`), and no connect() took a
//!   bucket over (`TWRecycled`). Every other cause needs a segment or a connect().
//! - reset: time was left, and only a RST is possible: this kernel cannot destroy buckets (measured on 5.10; later versions before 6.1 may
//!   be able to), no connect() took a bucket over, and no listener could have accepted a SYN.
//! - gone: time was left, and several causes are possible. This event is never certain.
//!
//! A RST leaves no trace of its own: no counter distinguishes it from other segments.

use std::sync::Arc;
use std::time::SystemTime;

use crate::model::facts::Facts;
use crate::model::row::Row;

/// What happened to a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EventKind {
    /// The bucket is new.
    Entered,
    /// The bucket was in FIN_WAIT_2, and the peer has closed.
    BecameTimeWait,
    /// The timer of the bucket ran out.
    Expired,
    /// The timer of the bucket started again, because the peer retransmitted its FIN or sent an ACK.
    Restarted,
    /// SOCK_DESTROY removed the bucket.
    Destroyed,
    /// A new connection with the same ends replaced the bucket.
    TakenOver,
    /// A RST removed the bucket.
    Reset,
    /// The bucket is missing before its time, and the cause is unknown.
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

    /// The name in ndjson.
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

/// Something that happened to a selected bucket between two samples.
#[derive(Clone, Debug)]
pub struct Event {
    /// When the sample that shows the event began.
    pub at: SystemTime,
    /// What happened.
    pub kind: EventKind,
    /// Whether the event is proven. `false`: the kind is the most likely cause, or [`EventKind::Gone`].
    pub certain: bool,
    /// The bucket in this sample. If it is missing from this sample: the bucket in the last sample, with the remaining time that it would
    /// have now.
    pub row: Row,
    /// The facts of the bucket's namespace.
    pub facts: Arc<Facts>,
}
