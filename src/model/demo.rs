//! What the textbook experiment saw: a server closes first, and its port is tried again.

use super::bind::{Attempt, ReuseOptions};
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
    /// Whether the kernel did what socket(7) says: one TIME_WAIT bucket, and a bind past it works exactly where the old
    /// socket had an option of the new one's.
    #[must_use]
    pub fn as_documented(&self) -> bool {
        let documented = |attempt: &Attempt| attempt.outcome() == attempt.options.over_time_wait_of(self.old_socket);
        matches!(self.buckets.as_slice(), [bucket] if !bucket.fin_wait_2)
            && !self.attempts.is_empty()
            && self.attempts.iter().all(documented)
    }
}
