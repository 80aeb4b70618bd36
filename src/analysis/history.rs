//! Computes the closes of the last minute from one list of buckets: the remaining time of a bucket shows when it entered
//! TIME_WAIT.
//!
//! If TIME_WAIT lasts L ms, a bucket with r ms left entered TIME_WAIT L - r ms ago, or its timer was restarted at that time. Two kinds
//! of buckets do not count:
//!
//! - A bucket with 0 ms left is *due*. It entered TIME_WAIT more than L ms ago, in an unknown second, because the kernel's timer wheel
//!   is coarse: it ends a timer of 60 s up to 2.05 s late with HZ=250, 4.1 s with HZ=1000, and 5.12 s with HZ=100.
//! - A FIN_WAIT_2 bucket has a different timer, which starts again when the peer closes.

/// The number of seconds that a history covers.
pub const SECONDS: usize = 60;

/// TCP_TIMEWAIT_LEN of include/net/tcp.h, in seconds. Mainline kernels have no setting for it.
const TCP_TIMEWAIT_LEN: u32 = 60;

/// The longest remaining time that has a counter of its own, in seconds. It is six times the longest TIME_WAIT that a known kernel
/// allows (600 s).
const LONGEST: usize = 3600;

/// Counts of TIME_WAIT buckets by remaining time in whole seconds, rounded up. The memory does not depend on the number of
/// buckets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemainingTimes {
    /// `by_second[0]` counts the due buckets. `by_second[s]` counts the buckets with more than s - 1 and at most s seconds left. The
    /// last element counts the buckets with more than [`LONGEST`] seconds left.
    by_second: Vec<u64>,
    largest_ms: Option<u32>,
}

impl Default for RemainingTimes {
    fn default() -> Self {
        Self { by_second: vec![0; LONGEST + 2], largest_ms: None }
    }
}

impl RemainingTimes {
    /// Counts a bucket in TIME_WAIT.
    pub fn add(&mut self, expires_ms: u32) {
        let second = (expires_ms.div_ceil(1000) as usize).min(LONGEST + 1);
        self.by_second[second] += 1;
        self.largest_ms = self.largest_ms.max(Some(expires_ms));
    }

    /// Adds the counts of another list of buckets.
    pub fn merge(&mut self, other: &Self) {
        self.by_second.iter_mut().zip(&other.by_second).for_each(|(sum, count)| *sum += count);
        self.largest_ms = self.largest_ms.max(other.largest_ms);
    }

    /// The largest remaining time in milliseconds; `None` if there is no bucket.
    #[must_use]
    pub const fn largest_ms(&self) -> Option<u32> {
        self.largest_ms
    }

    /// The number of buckets that are due: their time has run out, but the kernel has not removed them yet.
    #[must_use]
    pub fn due(&self) -> u64 {
        self.by_second[0]
    }

    /// The number of buckets with more than `over` and at most `up_to` seconds left; without a maximum if `up_to` is `None`.
    #[must_use]
    pub fn between(&self, over: usize, up_to: Option<usize>) -> u64 {
        let end = up_to.map_or(self.by_second.len(), |second| second + 1);
        self.by_second.get(over + 1..end).unwrap_or_default().iter().sum()
    }

    /// The number of buckets that entered TIME_WAIT in the one-second interval that ended `ago_s` seconds ago; `None` if this number is
    /// unknown, because such buckets are already gone, or because they have more than an hour left.
    fn entered_in_second(&self, ago_s: usize, length: Length) -> Option<u64> {
        let second = (length.seconds as usize).checked_sub(ago_s).filter(|second| (1..=LONGEST).contains(second))?;
        self.by_second.get(second).copied()
    }
}

/// How long TIME_WAIT lasts on this kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Length {
    /// The length in seconds.
    pub seconds: u32,
    /// The source of the length.
    pub source: LengthSource,
}

/// How twtool knows the length of TIME_WAIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LengthSource {
    /// The constant of mainline kernels. No bucket has more time left than this constant.
    Constant,
    /// `net.ipv4.tcp_tw_timeout`, which some vendors' kernels have.
    Setting,
    /// A bucket has more time left than the constant or the setting allows. The length is at least that time.
    LargestRemaining,
}

impl LengthSource {
    /// The name that scripts see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Constant => "tcp-timewait-len",
            Self::Setting => "tcp-tw-timeout",
            Self::LargestRemaining => "largest-remaining",
        }
    }
}

impl Length {
    /// Determines the length: the setting (in seconds) if the kernel has it, otherwise the constant. If a bucket has more time left,
    /// the length is this remaining time.
    #[must_use]
    pub fn learn(setting: Option<u64>, largest_ms: Option<u32>) -> Self {
        let setting = setting.and_then(|seconds| u32::try_from(seconds).ok()).filter(|seconds| *seconds > 0);
        let (seconds, source) = match setting {
            Some(seconds) => (seconds, LengthSource::Setting),
            None => (TCP_TIMEWAIT_LEN, LengthSource::Constant),
        };
        let shown = largest_ms.map_or(0, |ms| ms.div_ceil(1000));
        if shown > seconds {
            return Self { seconds: shown, source: LengthSource::LargestRemaining };
        }
        Self { seconds, source }
    }
}

/// The number of closes in each second of the last minute: how many buckets entered TIME_WAIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct History {
    /// The assumed length of TIME_WAIT.
    pub length: Length,
    /// The closes of each second, the oldest second first; `None` if unknown.
    pub closes: [Option<u64>; SECONDS],
}

impl History {
    /// Computes the history of the minute before the buckets were listed.
    #[must_use]
    pub fn from_remaining_times(times: &RemainingTimes, length: Length) -> Self {
        let closes = std::array::from_fn(|i| times.entered_in_second(SECONDS - 1 - i, length));
        Self { length, closes }
    }

    /// The number of closes in all seconds that are known.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.closes.iter().flatten().sum()
    }

    /// The number of seconds that are known.
    #[must_use]
    pub fn covered(&self) -> usize {
        self.closes.iter().flatten().count()
    }

    /// The number of closes in the last second.
    #[must_use]
    pub fn now(&self) -> Option<u64> {
        self.closes[SECONDS - 1]
    }

    /// The mean number of closes per second, over the seconds that are known.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a minute of closes is far below 2^52")]
    pub fn mean(&self) -> Option<f64> {
        let covered = self.covered();
        (covered > 0).then(|| self.total() as f64 / covered as f64)
    }

    /// The maximum number of closes in a second, and how many seconds ago that second ended. If several seconds have this number, it
    /// is the latest of them.
    #[must_use]
    pub fn peak(&self) -> Option<(u64, usize)> {
        let known = self.closes.iter().enumerate().filter_map(|(i, closes)| Some(((*closes)?, SECONDS - 1 - i)));
        known.max_by_key(|&(closes, ago)| (closes, SECONDS - ago))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn times(expires_ms: &[u32]) -> RemainingTimes {
        let mut times = RemainingTimes::default();
        for ms in expires_ms {
            times.add(*ms);
        }
        times
    }

    fn history(expires_ms: &[u32], setting: Option<u64>) -> History {
        let times = times(expires_ms);
        History::from_remaining_times(&times, Length::learn(setting, times.largest_ms()))
    }

    #[test]
    fn a_bucket_counts_in_the_second_in_which_it_entered_time_wait() {
        let history = history(&[60_000, 59_001, 59_000, 30_000, 1, 1000, 1001], None);
        assert_eq!(history.closes[59], Some(2), "0 and 999 ms ago");
        assert_eq!(history.closes[58], Some(1), "1000 ms ago");
        assert_eq!(history.closes[29], Some(1), "30 s ago");
        assert_eq!((history.closes[0], history.closes[1]), (Some(2), Some(1)), "59.999, 59.0 and 58.999 s ago");
        assert_eq!((history.total(), history.covered(), history.now(), history.peak()), (7, 60, Some(2), Some((2, 0))));
        assert_eq!(history.mean(), Some(7.0 / 60.0));
    }

    #[test]
    fn due_buckets_do_not_count() {
        let history = history(&[0, 0, 0], None);
        assert_eq!((history.total(), times(&[0, 0, 0]).due()), (0, 3));
        assert_eq!(history.length, Length { seconds: 60, source: LengthSource::Constant });
    }

    #[test]
    fn a_shorter_length_leaves_the_older_seconds_unknown() {
        let history = history(&[20_000, 1], Some(20));
        assert_eq!(history.length, Length { seconds: 20, source: LengthSource::Setting });
        assert_eq!((history.closes[59], history.closes[40], history.closes[39]), (Some(1), Some(1), None));
        assert_eq!((history.covered(), history.mean()), (20, Some(0.1)));
    }

    #[test]
    fn a_longer_length_shows_in_the_largest_remaining_time() {
        let history = history(&[119_500, 60_000, 59_999], None);
        assert_eq!(history.length, Length { seconds: 120, source: LengthSource::LargestRemaining });
        assert_eq!((history.closes[59], history.total()), (Some(1), 1), "the others are older than a minute");
        assert_eq!(Length::learn(Some(30), Some(60_000)).source, LengthSource::LargestRemaining);
        assert_eq!(Length::learn(Some(0), None), Length::learn(None, None));
    }

    #[test]
    fn remaining_times_are_counted_between_whole_seconds() {
        let times = times(&[0, 1, 1000, 1001, 5000, 60_000, 60_001, u32::MAX]);
        let counts = [times.due(), times.between(0, Some(1)), times.between(1, Some(5)), times.between(5, Some(60))];
        assert_eq!((counts, times.between(60, None)), ([1, 2, 2, 1], 2));
    }

    proptest! {
        #[test]
        fn every_bucket_is_due_or_counted_once(expires_ms in proptest::collection::vec(0_u32..=60_000, 0..200)) {
            let times = times(&expires_ms);
            let history = History::from_remaining_times(&times, Length::learn(None, times.largest_ms()));
            prop_assert_eq!(history.total() + times.due(), expires_ms.len() as u64);
        }

        #[test]
        fn no_remaining_time_or_setting_causes_a_panic(expires_ms: Vec<u32>, setting: Option<u64>) {
            let history = history(&expires_ms, setting);
            let _ = (history.total(), history.mean(), history.peak());
        }
    }
}
