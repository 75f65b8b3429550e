//! When a wait ends: sums and products of durations that a user may have given, however long.
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
}
