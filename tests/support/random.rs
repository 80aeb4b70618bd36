//! Makes reproducible random choices. The environment variable `TWTOOL_SEED` sets the seed.

/// A generator of random numbers (SplitMix64).
pub(crate) struct Random(u64);

impl Random {
    /// The seed of this run: `TWTOOL_SEED`, or 1.
    pub(crate) fn seed() -> u64 {
        let set = std::env::var("TWTOOL_SEED").ok();
        set.map_or(1, |text| text.parse().unwrap_or_else(|_| panic!("TWTOOL_SEED={text} is not a number")))
    }

    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 to `limit - 1`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// True once in `times` calls on average.
    pub(crate) fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    pub(crate) fn of<'a, T>(&mut self, values: &'a [T]) -> &'a T {
        let at = self.below(values.len() as u64);
        &values[usize::try_from(at).expect("an index")]
    }
}
