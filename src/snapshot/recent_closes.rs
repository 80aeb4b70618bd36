//! Keeps the closes of the last two minutes with their owners. A tracer adds closes, and other threads read them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::model::close::{Close, MakerFacts, Method, Role};
use crate::model::socket::Cookie;

/// The maximum number of closes that are kept. They take at most 8 MiB, without the facts about the processes.
pub const MAX_CLOSES: usize = 256 * 1024;

/// How long a close is kept: twice as long as TIME_WAIT lasts, because a FIN_WAIT_2 bucket becomes TIME_WAIT with a new timer.
pub const KEEP_FOR: Duration = Duration::from_secs(120);

/// A close whose process is known.
#[derive(Clone, Debug)]
pub struct RecentClose {
    /// A number that is larger than the numbers of all earlier closes, even of closes from an earlier tracer. It is the time of
    /// CLOCK_MONOTONIC in ns, or the number of the previous close plus 1, whichever is larger.
    pub number: u64,
    /// The cookie of the socket, which its bucket inherits.
    pub cookie: Cookie,
    /// The process that closed the socket.
    pub facts: Arc<MakerFacts>,
    /// How the process was found.
    pub method: Method,
    /// The role of the process: whether it accepted or opened the connection.
    pub role: Role,
}

/// Recent closes, the oldest first. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct RecentCloses(Arc<Mutex<VecDeque<RecentClose>>>);

impl RecentCloses {
    /// Adds a close if its process and its cookie are known. `now` is the time of CLOCK_MONOTONIC.
    pub fn add(&self, close: &Close, now: Duration) {
        let (Some(cookie), Some(maker)) = (close.cookie, &close.maker) else { return };
        let mut closes = self.lock();
        if closes.len() >= MAX_CLOSES {
            closes.pop_front();
        }
        let next = closes.back().map_or(0, |last| last.number + 1);
        let number = next.max(nanoseconds(now));
        let (facts, method, role) = (Arc::clone(&maker.facts), close.method, close.role);
        closes.push_back(RecentClose { number, cookie, facts, method, role });
    }

    /// Removes the closes that are older than [`KEEP_FOR`]. `now` is the time of CLOCK_MONOTONIC.
    pub fn forget(&self, now: Duration) {
        let oldest = nanoseconds(now.saturating_sub(KEEP_FOR));
        let mut closes = self.lock();
        let old = closes.partition_point(|close| close.number < oldest);
        closes.drain(..old);
    }

    /// The closes whose number is larger than `number`.
    #[must_use]
    pub fn since(&self, number: u64) -> Vec<RecentClose> {
        let closes = self.lock();
        let first = closes.partition_point(|close| close.number <= number);
        closes.range(first..).cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<RecentClose>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Converts a time of CLOCK_MONOTONIC to the number of a close.
#[must_use]
pub fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    use crate::model::close::{Maker, Outcome};
    use crate::model::row::tests::row;
    use crate::model::user::User;

    fn close(cookie: u64, known: bool) -> Close {
        let maker = Maker { facts: Arc::default(), tid: 1, thread: String::new(), user: User { uid: 0, name: None } };
        Close {
            at: SystemTime::UNIX_EPOCH,
            netns: 1,
            cookie: Cookie::new(cookie),
            tuple: row("10.0.0.1", 80, "10.0.0.2", 40000).bucket.tuple,
            interface: None,
            mark: None,
            outcome: Outcome::TimeWait,
            role: Role::Accepted,
            maker: known.then_some(maker),
            method: Method::Bpf,
        }
    }

    #[test]
    fn each_close_has_a_larger_number_and_readers_get_the_newer_ones() {
        let closes = RecentCloses::default();
        let second = Duration::from_secs(1);
        let cookies = |since| closes.since(since).iter().map(|close| close.cookie.number()).collect::<Vec<_>>();
        for cookie in 1..=3 {
            closes.add(&close(cookie, true), second);
        }
        closes.add(&close(4, false), second);
        closes.add(&close(0, true), second);
        closes.add(&close(5, true), 2 * second);
        assert_eq!(cookies(0), [1, 2, 3, 5], "an unknown process, and a socket without a cookie, are left out");
        let first = closes.since(0)[0].number;
        assert_eq!(first, 1_000_000_000);
        assert_eq!((cookies(first), cookies(first + 2), cookies(u64::MAX)), (vec![2, 3, 5], vec![5], vec![]));
        closes.forget(KEEP_FOR + second);
        assert_eq!(cookies(0).len(), 4);
        closes.forget(KEEP_FOR + 2 * second);
        assert_eq!(cookies(0), [5]);
    }
}
