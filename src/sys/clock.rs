//! Reads clocks: one for dates, and one for durations.

use std::time::{Duration, Instant, SystemTime};

/// The current time of the system's real-time clock.
#[must_use]
pub fn now() -> SystemTime {
    SystemTime::now()
}

/// Measures a duration with CLOCK_MONOTONIC. Like the kernel's timers, that clock stops while the machine is suspended.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts a measurement.
    #[must_use]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// The time since the start.
    #[must_use]
    pub fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}

/// Suspends the calling thread.
pub fn sleep(time: Duration) {
    std::thread::sleep(time);
}
