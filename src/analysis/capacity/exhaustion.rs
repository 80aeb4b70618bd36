//! Predicts when a destination runs out of ports if its present rate of closes continues. The result is an inference from this
//! model:
//!
//! 1. Connections open as fast as they close, so the number of open connections stays the same.
//! 2. Each new connection takes a free port. After a close, a bucket holds the port for a fixed time, the *hold*: until the bucket
//!    ends, or until connect() may take it over.
//! 3. During the first hold, ports become free only when the present buckets release them. Their remaining times are known.
//! 4. After the first hold, as many ports become free as are taken. So if the ports last for the first hold, this rate never exhausts
//!    them. If the last port is taken exactly at the end of the hold, the next connection gets the port of the first one.

use std::time::Duration;

use crate::model::time::milliseconds;

/// The longest time over which the present rate of closes is measured.
const PRESENT: Duration = Duration::from_secs(10);

/// Fewer closes than this do not show when the traffic began.
const ENOUGH: usize = 10;

/// The time over which the present rate of closes is measured, from the ages of the buckets in ms: usually 10 s.
///
/// With 10 s, traffic that began 2 s ago would seem five times slower than it is. So for new traffic, the result is the time since the
/// first close, rounded to the next whole second. The caller limits the result to the hold.
#[must_use]
pub fn period(ages_ms: &[u64]) -> Duration {
    let oldest = ages_ms.iter().max().copied().unwrap_or_default();
    if ages_ms.len() < ENOUGH {
        return PRESENT;
    }
    Duration::from_secs(oldest / 1000 + 1).min(PRESENT)
}

/// A tolerance above the rounding error of the division. With it, a port that is taken at the time of a release counts as taken
/// before the release, and a port that is taken at the end of the hold as taken after it (step 4 of the module documentation).
const ROUNDING_MS: f64 = 1e-6;

/// The ports and the rate of closes of a destination at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Load {
    /// Ports that are free for connect().
    pub free: u32,
    /// The closes per second.
    pub per_s: f64,
    /// The times at which buckets of the destination release their ports, in ms from now.
    pub released_ms: Vec<u64>,
    /// How long a new bucket holds its port.
    pub hold: Duration,
}

impl Load {
    /// The time until no port is left; `None` if this rate never exhausts the ports.
    #[must_use]
    pub fn exhausted_in(mut self) -> Option<Duration> {
        if self.free == 0 {
            return Some(Duration::ZERO);
        }
        if self.per_s <= 0.0 {
            return None;
        }
        self.released_ms.sort_unstable();
        // Between two releases, the number of free ports only decreases. So the loop tests only at each release.
        let hold_ms = milliseconds(self.hold);
        let mut free = f64::from(self.free);
        for released_ms in self.released_ms.iter().copied().filter(|ms| *ms < hold_ms) {
            let taken_ms = self.taken_ms(free);
            if taken_ms <= as_f64(released_ms) + ROUNDING_MS {
                return Some(Duration::from_secs_f64(taken_ms / 1000.0));
            }
            free += 1.0;
        }
        let taken_ms = self.taken_ms(free);
        (taken_ms + ROUNDING_MS < as_f64(hold_ms)).then(|| Duration::from_secs_f64(taken_ms / 1000.0))
    }

    /// The time after which this number of ports is taken, in ms.
    fn taken_ms(&self, ports: f64) -> f64 {
        ports / self.per_s * 1000.0
    }
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds of minutes are far below 2^52")]
const fn as_f64(ms: u64) -> f64 {
    ms as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_of_new_traffic_is_measured_since_the_traffic_began() {
        let began = |ms: u64, closes: u64| {
            period(&(0..closes).map(|i| ms * i / closes.max(2).saturating_sub(1)).collect::<Vec<_>>())
        };
        let seconds = |ms, closes| began(ms, closes).as_secs();
        assert_eq!([seconds(900, 10), seconds(1_500, 15), seconds(9_900, 50), seconds(59_000, 50)], [1, 2, 10, 10]);
        assert_eq!([seconds(900, 9), seconds(0, 1), seconds(0, 0)], [10, 10, 10], "too few closes to tell");
    }
    use proptest::prelude::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn exhausted_ms(free: u32, per_s: f64, released_ms: &[u64]) -> Option<u128> {
        let load = Load { free, per_s, released_ms: released_ms.to_vec(), hold: MINUTE };
        load.exhausted_in().map(|time| time.as_millis())
    }

    #[test]
    fn a_burst_exhausts_the_ports_although_its_mean_rate_would_not() {
        // 700 closes a second for 20 s, with 28,000 ports: 14,000 ports are left, and no port is released in the next 40 s.
        let released: Vec<u64> = (0..14_000).map(|i| 40_000 + i * 10 / 7).collect();
        assert_eq!(exhausted_ms(14_000, 700.0, &released), Some(20_000));
    }

    #[test]
    fn a_steady_rate_below_the_sustainable_rate_never_exhausts_the_ports() {
        // 400 closes a second for a minute, with 28,000 ports: as many ports are released as are taken.
        let released: Vec<u64> = (0..24_000).map(|i| i * 5 / 2).collect();
        assert_eq!(exhausted_ms(4000, 400.0, &released), None);
    }

    #[test]
    fn a_rate_above_the_sustainable_rate_exhausts_the_ports_within_the_hold() {
        assert_eq!(exhausted_ms(16, 1.0, &[]), Some(16_000));
        assert_eq!(exhausted_ms(16, 0.25, &[]), None, "the hold ends before the sixteenth port is taken");
        assert_eq!(exhausted_ms(59, 1.0, &[]), Some(59_000));
        assert_eq!(exhausted_ms(60, 1.0, &[]), None, "exactly the sustainable rate");
    }

    #[test]
    fn a_release_after_the_last_free_port_is_taken_comes_too_late() {
        assert_eq!(exhausted_ms(2, 1.0, &[1500, 1500]), Some(4000));
        assert_eq!(exhausted_ms(2, 1.0, &[2500, 2500]), Some(2000));
    }

    #[test]
    fn the_time_is_zero_without_a_free_port_and_none_without_closes() {
        assert_eq!(exhausted_ms(0, 0.0, &[100]), Some(0));
        assert_eq!(exhausted_ms(1, 0.0, &[]), None);
    }

    #[test]
    fn a_port_released_at_the_time_of_the_last_connect_comes_too_late() {
        // 1000 / 1392 is not a binary fraction, so two connections take 2784.0000000000005 ms.
        assert_eq!(exhausted_ms(1, 1000.0 / 1392.0, &[0, 2784]), Some(2784));
    }

    proptest! {
        /// Compares the model with a simulation in steps: a connection every `gap_ms`, and each release at its time.
        #[test]
        fn the_model_and_a_simulation_give_the_same_time_of_exhaustion(
            free in 0_u32..40,
            gap_ms in 1_u64..3000,
            released_ms in proptest::collection::vec(0_u64..60_000, 0..40),
        ) {
            let load = Load { free, per_s: 1000.0 / as_f64(gap_ms), released_ms: released_ms.clone(), hold: MINUTE };
            let model = load.exhausted_in();
            // `first` is the first connection after which no port is left. Connection n takes a port at n * gap.
            let taken_at = |n: u64| n * gap_ms;
            let first = (0..=60_000).take_while(|n| taken_at(*n) < 60_000).find(|n| {
                let back = released_ms.iter().filter(|ms| **ms < taken_at(*n)).count() as u64;
                *n >= u64::from(free) + back
            });
            prop_assert_eq!(model.is_some(), first.is_some());
            if let (Some(model), Some(n)) = (model, first) {
                prop_assert!(model.as_millis().abs_diff(taken_at(n).into()) <= 1, "{model:?}, step by step {n}");
            }
        }
    }
}
