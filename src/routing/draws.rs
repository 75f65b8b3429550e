//! Random numbers for the choice of a node.

use std::sync::atomic::{AtomicU64, Ordering};

/// The step of `SplitMix64` (Steele, Lea and Flood, *Fast Splittable Pseudorandom Number Generators*, 2014).
const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// Random numbers that all connections of a pool draw from, without a lock. A thread's generator of `rand` costs more
/// than the choice that it is for, and a thread that is ending has none any more.
#[derive(Debug)]
pub(crate) struct Draws(AtomicU64);

impl Draws {
    pub(crate) fn from_seed(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    /// The next one, uniformly distributed.
    pub(crate) fn next(&self) -> u64 {
        let mut mixed = self.0.fetch_add(STEP, Ordering::Relaxed);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// One from 0.0 up to, and without, 1.0.
    #[expect(clippy::cast_precision_loss, reason = "53 bits are what a float holds")]
    pub(crate) fn share(&self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_even_and_shares_are_shares() {
        let draws = Draws::from_seed(1);
        let (mut odd, mut high, mut sum) = (0, 0, 0.0);
        for _ in 0..100_000 {
            let drawn = draws.next();
            odd += drawn & 1;
            high += drawn >> 63;
            let share = draws.share();
            assert!((0.0..1.0).contains(&share), "{share}");
            sum += share;
        }
        for ones in [odd, high] {
            assert!((49_000..51_000).contains(&ones), "{ones}");
        }
        assert!((49_000.0..51_000.0).contains(&sum), "{sum}");
    }
}
