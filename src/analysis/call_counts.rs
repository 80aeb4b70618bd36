//! Counts what a watched program did: where it listens, and which calls failed. A repeated failure is explained again only if the
//! explanation has changed.

use std::collections::BTreeMap;
use std::time::Duration;

use super::call::Explanation;
use crate::model::call::{CallCause, CallName, CalledAddr, CalledSocket, SocketCall};

/// A kind of failure. Failures with equal fields are counted together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FailureKind {
    /// The name of the call.
    pub name: CallName,
    /// The address; `None` if it could not be read.
    pub addr: Option<CalledAddr>,
    /// The name of the errno.
    pub errno: &'static str,
    /// Whether the socket is a TCP socket; `None` if it could not be read.
    pub tcp: Option<bool>,
    /// The options of the socket in a sentence.
    pub options: Option<String>,
}

impl FailureKind {
    /// The kind of this call; `None` if it did not fail.
    #[must_use]
    pub fn new(call: &SocketCall) -> Option<Self> {
        let errno = call.errno()?.name();
        let socket = call.socket.as_ref();
        Some(Self {
            name: call.name,
            addr: call.addr.clone(),
            errno,
            tcp: socket.map(CalledSocket::uses_tcp),
            options: socket.map(CalledSocket::options_text),
        })
    }
}

/// The last explanation of a kind of failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastExplanation {
    /// The cause.
    pub cause: CallCause,
    /// The reason in a few words. It contains names of processes, so escape it for a terminal.
    pub headline: String,
    /// The time from the start of the watch until the call ended.
    pub at: Duration,
}

/// While failures of one kind repeat, only one of them is examined in this time.
const REPEAT_INTERVAL: Duration = Duration::from_secs(1);

/// Counts what a watched program did.
#[derive(Clone, Debug, Default)]
pub struct CallCounts {
    /// The successful listens on TCP sockets, each address and set of options once, with the number of calls.
    pub listening: Vec<(SocketCall, usize)>,
    /// The number of failures of each kind.
    pub failures: BTreeMap<FailureKind, usize>,
    /// The last explanation of each kind of failure.
    pub explained: BTreeMap<FailureKind, LastExplanation>,
    /// The number of all calls, whether they failed or not.
    pub calls: usize,
}

impl CallCounts {
    /// Counts a call. Returns whether it is the first failure or the first listen() of its kind.
    pub fn add(&mut self, call: &SocketCall) -> bool {
        self.calls += 1;
        if let Some(kind) = FailureKind::new(call) {
            let count = self.failures.entry(kind).or_default();
            *count += 1;
            return *count == 1;
        }
        let tcp = call.socket.as_ref().is_some_and(CalledSocket::uses_tcp);
        if call.name != CallName::Listen || !tcp {
            return false;
        }
        // nginx calls listen() twice on each socket.
        let options =
            |call: &SocketCall| call.socket.as_ref().map(|socket| (socket.options_text(), socket.protocol.clone()));
        let same = |(known, _): &&mut (SocketCall, usize)| known.addr == call.addr && options(known) == options(call);
        if let Some((_, count)) = self.listening.iter_mut().find(same) {
            *count += 1;
            return false;
        }
        self.listening.push((call.clone(), 1));
        true
    }

    /// Whether to examine another failure of this kind.
    #[must_use]
    pub fn is_due(&self, kind: &FailureKind, at: Duration) -> bool {
        self.explained.get(kind).is_none_or(|last| at.saturating_sub(last.at) >= REPEAT_INTERVAL)
    }

    /// Stores an explanation. Returns whether it differs from the last explanation of this kind of failure.
    pub fn explain(&mut self, kind: FailureKind, explanation: &Explanation, at: Duration) -> bool {
        let Explanation { cause, headline, .. } = explanation;
        let last = LastExplanation { cause: *cause, headline: headline.clone(), at };
        let known = self.explained.insert(kind, last);
        known.is_none_or(|known| (known.cause, &known.headline) != (*cause, headline))
    }

    /// The number of calls that failed.
    #[must_use]
    pub fn failed(&self) -> usize {
        self.failures.values().sum()
    }
}
