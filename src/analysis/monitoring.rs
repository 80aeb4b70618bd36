//! Counts of buckets for monitoring: by state, direction and port class, closes per second, and the server ports with the most buckets.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::groups::StateCounts;
use super::history::{History, Length, RemainingTimes};
use crate::model::port::{Port, PortClass};
use crate::model::row::Direction;
use crate::model::socket::TimeWaitBucket;

/// The counts of the buckets in one walk over the sockets, for monitoring.
#[derive(Clone, Debug, Default)]
pub struct BucketCounts {
    /// The counts by direction, then by port class.
    by: [[StateCounts; PortClass::ALL.len()]; Direction::ALL.len()],
    times: [RemainingTimes; Direction::ALL.len()],
    /// The TIME_WAIT buckets of inbound connections by local port, without due buckets (0 ms left).
    server_ports: HashMap<Port, u32, RandomState>,
}

/// A server port with its buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerPort {
    /// The port.
    pub port: Port,
    /// The TIME_WAIT buckets of inbound connections on the port, without due buckets (0 ms left).
    pub time_wait: u32,
}

impl BucketCounts {
    /// Counts a bucket.
    pub fn add(&mut self, bucket: &TimeWaitBucket, direction: Direction) {
        let port = bucket.tuple.local_port();
        self.by[direction as usize][port.class() as usize].add(bucket.fin_wait_2);
        if bucket.fin_wait_2 {
            return;
        }
        self.times[direction as usize].add(bucket.expires_ms);
        if direction == Direction::Inbound && bucket.expires_ms > 0 {
            *self.server_ports.entry(port).or_default() += 1;
        }
    }

    /// The number of buckets of this direction and port class.
    #[must_use]
    pub fn count(&self, direction: Direction, class: PortClass) -> StateCounts {
        self.by[direction as usize][class as usize]
    }

    /// The number of all buckets, in both states.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.by.iter().flatten().map(|count| count.all()).sum()
    }

    /// How long TIME_WAIT lasts. `setting_s` is `net.ipv4.tcp_tw_timeout` in seconds, which some vendors' kernels have.
    #[must_use]
    pub fn length(&self, setting_s: Option<u64>) -> Length {
        Length::learn(setting_s, self.times.iter().filter_map(RemainingTimes::largest_ms).max())
    }

    /// The mean closes per second over the last minute; `None` if no second of the minute is known.
    #[must_use]
    pub fn closes_per_s(&self, direction: Direction, length: Length) -> Option<f64> {
        History::from_remaining_times(&self.times[direction as usize], length).mean()
    }

    /// The `limit` server ports with the most buckets, and the number of buckets on all other server ports.
    #[must_use]
    pub fn server_ports(&self, limit: usize) -> (Vec<ServerPort>, u32) {
        let ports = self.server_ports.iter();
        let mut all: Vec<ServerPort> = ports.map(|(&port, &time_wait)| ServerPort { port, time_wait }).collect();
        all.sort_unstable_by_key(|one| (std::cmp::Reverse(one.time_wait), one.port));
        let others = all.iter().skip(limit).map(|one| one.time_wait).sum();
        all.truncate(limit);
        (all, others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::row::tests::row;

    fn counts() -> BucketCounts {
        let mut counts = BucketCounts::default();
        for (port, expires_ms, fin_wait_2, direction) in [
            (80, 60_000, false, Direction::Inbound),
            (80, 1, false, Direction::Inbound),
            (80, 0, false, Direction::Inbound),
            (80, 30_000, true, Direction::Inbound),
            (8080, 30_000, false, Direction::Inbound),
            (50_000, 30_000, false, Direction::Outbound),
        ] {
            let mut bucket = row("192.0.2.1", port, "192.0.2.2", 443).bucket;
            (bucket.expires_ms, bucket.fin_wait_2) = (expires_ms, fin_wait_2);
            counts.add(&bucket, direction);
        }
        counts
    }

    #[test]
    fn each_bucket_has_one_direction_and_one_class() {
        let counts = counts();
        let inbound = |class| counts.count(Direction::Inbound, class);
        assert_eq!(inbound(PortClass::WellKnown), StateCounts { time_wait: 3, fin_wait_2: 1 });
        assert_eq!(inbound(PortClass::Registered), StateCounts { time_wait: 1, fin_wait_2: 0 });
        assert_eq!(counts.count(Direction::Outbound, PortClass::Dynamic), StateCounts { time_wait: 1, fin_wait_2: 0 });
        assert_eq!(counts.total(), 6);
    }

    #[test]
    fn closes_per_second_cover_the_last_minute() {
        let counts = counts();
        let length = counts.length(None);
        assert_eq!(length.seconds, 60);
        assert_eq!(counts.closes_per_s(Direction::Inbound, length), Some(3.0 / 60.0), "one is due, one is FIN_WAIT_2");
        assert_eq!(counts.closes_per_s(Direction::Unknown, length), Some(0.0));
    }

    #[test]
    fn only_server_ports_are_ranked_and_the_rest_is_a_sum() {
        let (top, others) = counts().server_ports(1);
        assert_eq!((top.as_slice(), others), (&[ServerPort { port: Port(80), time_wait: 2 }][..], 1));
        assert_eq!(counts().server_ports(9).0.len(), 2);
    }
}
