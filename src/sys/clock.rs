//! The one clock.

use std::time::SystemTime;

/// Now, by the system's real-time clock.
#[must_use]
pub fn now() -> SystemTime {
    SystemTime::now()
}
