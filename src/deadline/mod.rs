//! When a wait ends, and how long to wait before the next attempt: sums and products of durations that a user may have given, however long.
//!
//! `Instant + Duration` and `Duration::mul_f64` panic where the result cannot be told. Whoever says
//! `Duration::MAX` means "for ever".

use std::time::{Duration, Instant};

/// As long as for ever, for any program. The runtime's timers cannot tell longer times from it either.
pub(crate) const EVER: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);

/// The end of a wait of `limit` that begins at `start`.
pub(crate) fn after(start: Instant, limit: Duration) -> Instant {
    // The clock began at some time in the past, so that this much can be added to any of its readings.
    start + limit.min(EVER)
}

/// A duration several times as long, within what a duration can be.
pub(crate) fn times(duration: Duration, factor: f64) -> Duration {
    Duration::try_from_secs_f64(duration.as_secs_f64() * factor).unwrap_or(Duration::MAX)
}

/// The delay after the `failures`-th failure in a row (from 1): twice as long as the one before, up to `longest`, and
/// spread over half to one and a half of it, so that who failed together does not come back together. `random` is from
/// 0 to 1.
pub(crate) fn backoff(first: Duration, longest: Duration, failures: u32, random: f64) -> Duration {
    let doubled = first.saturating_mul(1 << failures.saturating_sub(1).min(16));
    times(doubled.min(longest), 0.5 + random.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_limit_is_too_long_and_no_factor_too_large() {
        let now = Instant::now();
        assert_eq!(
            after(now, Duration::from_secs(1)),
            now + Duration::from_secs(1)
        );
        assert!(after(now, Duration::MAX) > now + EVER / 2);
        assert_eq!(times(Duration::from_secs(2), 1.5), Duration::from_secs(3));
        assert_eq!(times(Duration::MAX, 1.5), Duration::MAX);
        assert_eq!(times(Duration::from_millis(1), f64::MAX), Duration::MAX);
        assert_eq!(times(Duration::ZERO, f64::MAX), Duration::ZERO);
    }

    #[test]
    fn a_delay_doubles_up_to_a_bound() {
        let delay = |failures, random| {
            let (first, longest) = (Duration::from_millis(100), Duration::from_secs(10));
            backoff(first, longest, failures, random).as_millis()
        };
        let millis: Vec<u128> = (1..=9).map(|failures| delay(failures, 0.5)).collect();
        assert_eq!(
            millis,
            [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]
        );
        assert_eq!(delay(u32::MAX, 1.0), 15_000);
        assert_eq!(delay(1, 0.0), 50);
    }
}
