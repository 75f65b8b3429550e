//! When a node that failed is tried again: a growing, jittered delay.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(10);

/// A node that stayed up this long has its earlier failures forgotten.
pub(super) const FORGIVEN_AFTER: Duration = Duration::from_secs(30);

/// The delay after the `failures`-th failure in a row (from 1), spread over half to one and a half
/// of it, so that the processes of a fleet do not all come back at once.
pub(super) fn delay(failures: u32, random: f64) -> Duration {
    let doubled = FIRST.saturating_mul(1 << failures.saturating_sub(1).min(16));
    doubled.min(LONGEST).mul_f64(0.5 + random.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_up_to_a_bound() {
        let millis: Vec<u128> = (1..=9).map(|n| delay(n, 0.5).as_millis()).collect();
        assert_eq!(
            millis,
            [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]
        );
        assert_eq!(delay(u32::MAX, 1.0), Duration::from_secs(15));
        assert_eq!(delay(1, 0.0), Duration::from_millis(50));
    }
}
