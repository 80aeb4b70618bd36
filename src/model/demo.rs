//! What the textbook experiment saw: a server closes first, and its port is tried again.

use super::bind::{Attempt, CallResult, Errno, ReuseOptions};
use super::socket::{TcpState, TimeWaitBucket};

/// The states of both ends after a step, as the kernel listed them; `None`: it lists no such socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage {
    /// What was just done.
    pub step: &'static str,
    /// The end on the tested port.
    pub server: Option<TcpState>,
    /// The other end.
    pub client: Option<TcpState>,
}

/// One run of the experiment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DemoRun {
    /// What the old server had set.
    pub old_socket: ReuseOptions,
    /// The connection's life.
    pub stages: Vec<Stage>,
    /// What it left on the port.
    pub buckets: Vec<TimeWaitBucket>,
    /// What a new server gets, with each set of options.
    pub attempts: Vec<Attempt>,
}

impl DemoRun {
    /// Whether the kernel did what socket(7) says: one TIME_WAIT bucket, the plain bind fails, and SO_REUSEADDR helps
    /// exactly when the old socket had it.
    #[must_use]
    pub fn as_documented(&self) -> bool {
        let in_use = CallResult::Failed(Errno::AddrInUse);
        let with = |options| self.attempts.iter().find(|attempt| attempt.options == options).map(Attempt::outcome);
        let expected = if self.old_socket.reuseaddr { CallResult::Ok } else { in_use };
        matches!(self.buckets.as_slice(), [bucket] if !bucket.fin_wait_2)
            && with(ReuseOptions::NONE) == Some(in_use)
            && with(ReuseOptions::REUSEADDR) == Some(expected)
    }
}
