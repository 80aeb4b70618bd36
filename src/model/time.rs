//! Converts times to whole milliseconds, the unit in which sock_diag and twtool's output for scripts report times.

use std::time::Duration;

/// The whole milliseconds of a time, rounded down.
#[must_use]
pub fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
