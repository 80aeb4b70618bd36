//! Counts buckets by their state.

use std::ops::{AddAssign, SubAssign};

/// The number of buckets in TIME_WAIT, and the number in FIN_WAIT_2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateCounts {
    /// The buckets in TIME_WAIT.
    pub time_wait: u32,
    /// The buckets in FIN_WAIT_2.
    pub fin_wait_2: u32,
}

impl StateCounts {
    /// The number of buckets in both states together.
    #[must_use]
    pub const fn all(self) -> u64 {
        self.time_wait as u64 + self.fin_wait_2 as u64
    }

    /// Counts one more bucket.
    pub fn add(&mut self, fin_wait_2: bool) {
        self.time_wait += u32::from(!fin_wait_2);
        self.fin_wait_2 += u32::from(fin_wait_2);
    }
}

impl AddAssign for StateCounts {
    fn add_assign(&mut self, other: Self) {
        self.time_wait += other.time_wait;
        self.fin_wait_2 += other.fin_wait_2;
    }
}

impl SubAssign for StateCounts {
    fn sub_assign(&mut self, other: Self) {
        self.time_wait -= other.time_wait;
        self.fin_wait_2 -= other.fin_wait_2;
    }
}
