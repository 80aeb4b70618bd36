//! Summarizes all buckets: counts them in one walk over the sockets, and compares the result with the kernel's own counts.

use super::groups::{GroupBy, GroupKey, Groups, Ranking, StateCounts};
use super::history::{History, Length, RemainingTimes};
use super::limits::{self, Limit};
use crate::model::command::{Privilege, Shell, Step, Suggestions};
use crate::model::kernel_counts::BucketFacts;
use crate::model::owner::{Evidence, Owner};
use crate::model::row::Direction;
use crate::model::socket::TimeWaitBucket;

/// The assumed size of a bucket in bytes, if the kernel does not report it: `struct tcp_timewait_sock` with its alignment on
/// Linux 6.18, x86-64.
const ESTIMATED_BYTES: u64 = 256;

/// The size of a bucket in bytes: as the kernel reports it, or else an estimate.
#[must_use]
pub fn bucket_bytes(kernel: &BucketFacts) -> u64 {
    kernel.bucket_bytes.unwrap_or(ESTIMATED_BYTES)
}

/// Counts buckets in one walk over the sockets, for a summary.
#[derive(Clone, Debug)]
pub struct SummaryCounts {
    totals: StateCounts,
    times: RemainingTimes,
    groups: Groups,
}

impl SummaryCounts {
    /// Empty counts that group buckets by these attributes. The kernel's count of buckets decides how much memory is reserved.
    #[must_use]
    pub fn new(by: &[GroupBy], kernel: &BucketFacts) -> Self {
        let expected = kernel.sockstat.map_or(0, |sockstat| usize::try_from(sockstat.tw).unwrap_or(0));
        Self { totals: StateCounts::default(), times: RemainingTimes::default(), groups: Groups::new(by, expected) }
    }

    /// Counts a bucket.
    pub fn add(&mut self, bucket: &TimeWaitBucket, direction: Direction) {
        self.totals.add(bucket.fin_wait_2);
        if !bucket.fin_wait_2 {
            self.times.add(bucket.expires_ms);
        }
        self.groups.add(bucket, direction);
    }

    /// Assigns `count` buckets, which [`Self::add`] has already counted, to their owner.
    pub fn add_owner(&mut self, owner: &Owner, count: StateCounts) {
        self.groups.add_owner(owner, count);
    }

    /// Adds the counts of another network namespace.
    pub fn merge(&mut self, other: Self) {
        self.totals += other.totals;
        self.times.merge(&other.times);
        self.groups.merge(other.groups);
    }

    /// The limit that applies if tcp_max_tw_buckets is reached. Call this for each network namespace before [`Self::merge`], because
    /// each namespace has its own maximum. `negative_is_none` is `Facts::negative_maximum_is_none`.
    #[must_use]
    pub fn at_maximum(&self, kernel: &BucketFacts, negative_is_none: Option<bool>) -> Option<Limit> {
        limits::at_maximum(self.totals, kernel, negative_is_none)
    }

    /// Makes the summary from the counts. `namespace_limits` has the limits of single network namespaces. `limit` is the number of
    /// counts to show for each attribute. `one_family` means that only buckets of one IP version were counted.
    #[must_use]
    pub fn summary(
        mut self,
        kernel: BucketFacts,
        namespace_limits: Vec<Limit>,
        limit: usize,
        one_family: bool,
    ) -> Summary {
        let history =
            History::from_remaining_times(&self.times, Length::learn(kernel.tw_timeout_s, self.times.largest_ms()));
        let bytes_per_bucket = bucket_bytes(&kernel);
        let memory = Memory {
            bytes: self.totals.all() * bytes_per_bucket,
            bytes_per_bucket,
            measured: kernel.bucket_bytes.is_some(),
        };
        let limits = limits::collect_limits(self.totals, &self.times, &history, &kernel, namespace_limits, one_family);
        Summary {
            totals: self.totals,
            groups: self.groups.top(limit),
            times: self.times,
            history,
            memory,
            limits,
            kernel,
            one_family,
        }
    }
}

/// The kernel memory of the buckets themselves, without shared structures (hash chains, the bind buckets of their ports).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Bytes of all buckets.
    pub bytes: u64,
    /// Bytes of one bucket.
    pub bytes_per_bucket: u64,
    /// Whether this kernel reported the size of a bucket. Otherwise it is an estimate.
    pub measured: bool,
}

/// A summary of all TIME_WAIT and FIN_WAIT_2 buckets: counts, groups, remaining times, and the closes of the last minute.
#[derive(Clone, Debug)]
pub struct Summary {
    /// The number of listed buckets.
    pub totals: StateCounts,
    /// The largest counts by each attribute.
    pub groups: Vec<Ranking>,
    /// The remaining times of the TIME_WAIT buckets.
    pub times: RemainingTimes,
    /// The closes of the last minute.
    pub history: History,
    /// The memory of the buckets.
    pub memory: Memory,
    /// The reasons why the history may differ from what happened.
    pub limits: Vec<Limit>,
    /// The kernel's own counts.
    pub kernel: BucketFacts,
    /// Whether only buckets of one IP version were counted.
    pub one_family: bool,
}

impl Summary {
    /// Whether tcp_max_tw_buckets is reached, so that the history does not show further closes.
    #[must_use]
    pub fn at_maximum(&self) -> bool {
        self.limits.iter().any(|limit| limit.id == "at-maximum")
    }

    /// The number of buckets for each kind of evidence about their owners, in the order of [`Evidence::ALL`]. `None` if no group
    /// needs owners.
    #[must_use]
    pub fn evidence(&self) -> Option<[u64; Evidence::ALL.len()]> {
        let group = self.groups.iter().find(|group| group.by.needs_owners())?;
        let sum = |i: usize| group.owners.iter().map(|owner| owner.evidence[i].buckets).sum();
        Some(std::array::from_fn(sum))
    }

    /// The commands that explain the findings of this summary.
    #[must_use]
    pub fn help(&self, shell: &Shell) -> Suggestions {
        let mut help = Suggestions::default();
        let mut step = |command: &str, purpose: &str| {
            help.commands.push(Step::new(shell.twtool(Privilege::None, &[command]), purpose));
        };
        if self.at_maximum() || self.limits.iter().any(|limit| limit.id == "overflow") {
            step("doctor", "see which limit was reached, and the command that raises it");
        }
        let outbound = |group: &Ranking| {
            group.by == GroupBy::Direction
                && group.top.first().is_some_and(|(key, _)| *key == GroupKey::Direction(Direction::Outbound))
        };
        if self.groups.iter().any(outbound) {
            step("capacity", "see how many ports each destination has left");
        }
        help
    }

    /// The count of sockstat minus the number of listed buckets.
    #[must_use]
    pub fn sockstat_difference(&self) -> Option<i64> {
        let counted = i64::try_from(self.kernel.sockstat?.tw).ok()?;
        counted.checked_sub(i64::try_from(self.totals.all()).ok()?)
    }

    /// A sentence that explains the difference between sockstat's count and the list; `number` formats the numbers.
    #[must_use]
    pub fn reconciliation(&self, number: fn(u64) -> String) -> String {
        let StateCounts { time_wait, fin_wait_2 } = self.totals;
        let (Some(sockstat), Some(difference)) = (self.kernel.sockstat, self.sockstat_difference()) else {
            return "tw of /proc/net/sockstat is not known here".into();
        };
        let (tw, time_wait, fin_wait_2) = (number(sockstat.tw), number(time_wait.into()), number(fin_wait_2.into()));
        let counts = format!("tw of /proc/net/sockstat is {tw}: it counts TIME_WAIT and FIN_WAIT_2");
        if self.one_family {
            return format!("{counts}, IPv4 and IPv6 together");
        }
        if difference == 0 {
            return format!("{counts} ({time_wait} + {fin_wait_2})");
        }
        let (by, how) = (number(difference.unsigned_abs()), if difference > 0 { "more" } else { "fewer" });
        format!("{counts}, {by} {how} than were listed a moment later: buckets came and went in between")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::command::{Caller, RootPower};
    use crate::model::kernel_counts::TcpSockstat;
    use crate::model::row::tests::row;

    fn summary(kernel: BucketFacts, one_family: bool) -> Summary {
        let mut counts = SummaryCounts::new(&GroupBy::DEFAULT, &kernel);
        let mut half = row("127.0.0.1", 80, "127.0.0.1", 40_000);
        half.bucket.fin_wait_2 = true;
        counts.add(&half.bucket, half.direction);
        counts.add(&row("127.0.0.1", 80, "127.0.0.1", 40_001).bucket, Direction::Unknown);
        counts.summary(kernel, vec![], 10, one_family)
    }

    fn kernel(tw: u64) -> BucketFacts {
        let sockstat = Some(TcpSockstat { inuse: 0, orphan: 0, tw, alloc: 0, mem: 0 });
        BucketFacts { sockstat, bucket_bytes: Some(300), ..BucketFacts::default() }
    }

    fn plain(number: u64) -> String {
        number.to_string()
    }

    #[test]
    fn a_different_count_in_sockstat_is_explained() {
        for (tw, difference, word) in [(2, 0, "(1 + 1)"), (5, 3, "3 more"), (1, -1, "1 fewer")] {
            let summary = summary(kernel(tw), false);
            assert_eq!(summary.sockstat_difference(), Some(difference));
            assert!(summary.reconciliation(plain).contains(word), "{}", summary.reconciliation(plain));
        }
        assert!(summary(kernel(9), true).reconciliation(plain).contains("IPv4 and IPv6"));
        assert_eq!(summary(BucketFacts::default(), false).sockstat_difference(), None);
    }

    #[test]
    fn the_help_has_the_commands_that_explain_the_findings() {
        let caller = Caller {
            root: false,
            power: RootPower::default(),
            in_initial_netns: true,
            twtool: "twtool".into(),
            twtool_for_root: "twtool".into(),
            arguments: vec![],
        };
        let shell = Shell { netns: "web".parse().ok(), caller };
        let commands = |summary: &Summary| -> Vec<String> {
            summary.help(&shell).commands.into_iter().map(|step| step.command).collect()
        };
        let full = BucketFacts { max_tw_buckets: Some(1), ..kernel(2) };
        let counts = |direction| {
            let mut counts = SummaryCounts::new(&GroupBy::DEFAULT, &full);
            counts.add(&row("127.0.0.1", 80, "127.0.0.1", 40_000).bucket, direction);
            let namespace_limits = counts.at_maximum(&full, None).into_iter().collect();
            counts.summary(full.clone(), namespace_limits, 10, false)
        };
        assert_eq!(
            commands(&counts(Direction::Outbound)),
            ["twtool doctor --netns web", "twtool capacity --netns web"]
        );
        assert_eq!(commands(&counts(Direction::Inbound)), ["twtool doctor --netns web"]);
        assert_eq!(commands(&summary(kernel(2), false)), [] as [String; 0]);
    }

    #[test]
    fn memory_is_measured_or_called_an_estimate() {
        let measured = Memory { bytes: 600, bytes_per_bucket: 300, measured: true };
        assert_eq!(summary(kernel(2), false).memory, measured);
        let estimate = Memory { bytes: 512, bytes_per_bucket: 256, measured: false };
        assert_eq!(summary(BucketFacts::default(), false).memory, estimate);
    }

    #[test]
    fn a_fin_wait_2_bucket_is_counted_but_not_as_a_close_of_the_last_minute() {
        let summary = summary(kernel(2), false);
        assert_eq!((summary.totals, summary.history.total()), (StateCounts { time_wait: 1, fin_wait_2: 1 }, 1));
        assert!(summary.groups.iter().all(|group| group.top[0].1.fin_wait_2 == 1));
    }
}
