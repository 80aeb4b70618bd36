//! Converts times to whole milliseconds.

use std::time::Duration;

/// The whole milliseconds of a time, rounded down.
#[must_use]
pub fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
