//! Reads clocks: for dates, for durations, and for processor time.

use std::time::{Duration, Instant, SystemTime};

use nix::time::{ClockId, clock_gettime};

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

/// The time of CLOCK_MONOTONIC, which BPF programs read.
#[must_use]
pub fn monotonic() -> Duration {
    // The call fails only for an unknown clock.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

/// The processor time of all threads of this process.
#[must_use]
pub fn processor_time() -> Duration {
    // The call fails only for an unknown clock.
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Suspends the calling thread.
pub fn sleep(time: Duration) {
    std::thread::sleep(time);
}
