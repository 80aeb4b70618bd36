//! The result of `bind-test --demo`: a server closes a connection first, and new sockets try to bind its port.

use super::bind::{Attempt, ReuseOptions};
use super::socket::{TcpState, TimeWaitBucket};

/// The states of both ends after a step, as the kernel lists them; `None` if it lists no such socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage {
    /// What happened before these states were read, such as "the client connected".
    pub step: &'static str,
    /// The end on the tested port.
    pub server: Option<TcpState>,
    /// The other end.
    pub client: Option<TcpState>,
}

/// One run of the experiment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DemoRun {
    /// The options of the old server.
    pub old_socket: ReuseOptions,
    /// The states of the connection after each step.
    pub stages: Vec<Stage>,
    /// The buckets that the connection left on the port.
    pub buckets: Vec<TimeWaitBucket>,
    /// The bind attempts of a new server, one for each set of options.
    pub attempts: Vec<Attempt>,
}

impl DemoRun {
    /// Whether the kernel behaved as socket(7) describes: it left one TIME_WAIT bucket, and a bind works exactly if the old and
    /// the new socket share an option.
    #[must_use]
    pub fn as_documented(&self) -> bool {
        let documented = |attempt: &Attempt| attempt.outcome() == attempt.options.over_time_wait_of(self.old_socket);
        matches!(self.buckets.as_slice(), [bucket] if !bucket.fin_wait_2)
            && !self.attempts.is_empty()
            && self.attempts.iter().all(documented)
    }
}
