//! A number of buckets.

use std::ops::{AddAssign, SubAssign};

/// A number of buckets in each of their two states.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// In TIME_WAIT.
    pub time_wait: u32,
    /// In FIN_WAIT_2.
    pub fin_wait_2: u32,
}

impl Count {
    /// Both states.
    #[must_use]
    pub const fn all(self) -> u64 {
        self.time_wait as u64 + self.fin_wait_2 as u64
    }

    /// Counts one more.
    pub fn add(&mut self, fin_wait_2: bool) {
        self.time_wait += u32::from(!fin_wait_2);
        self.fin_wait_2 += u32::from(fin_wait_2);
    }
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.time_wait += other.time_wait;
        self.fin_wait_2 += other.fin_wait_2;
    }
}

impl SubAssign for Count {
    fn sub_assign(&mut self, other: Self) {
        self.time_wait -= other.time_wait;
        self.fin_wait_2 -= other.fin_wait_2;
    }
}
