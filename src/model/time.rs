//! Converts times to whole milliseconds, the unit of the kernel's timers and of the output for scripts.

use std::time::Duration;

/// The whole milliseconds of a time, rounded down.
#[must_use]
pub fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
