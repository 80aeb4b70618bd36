//! The clocks: one for dates, one for how long things take.

use std::time::{Duration, Instant, SystemTime};

/// Now, by the system's real-time clock.
#[must_use]
pub fn now() -> SystemTime {
    SystemTime::now()
}

/// Time since a beginning (CLOCK_MONOTONIC: like the kernel's own timers it stands still while the machine sleeps).
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Begins now.
    #[must_use]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// The time since then.
    #[must_use]
    pub fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}

/// Lets time pass.
pub fn sleep(time: Duration) {
    std::thread::sleep(time);
}
