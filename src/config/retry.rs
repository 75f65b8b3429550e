//! How often, and after which delays, a transaction is done again.

use std::time::Duration;

use super::declare::settings;
use crate::deadline;

settings! {
    /// How often, and after which delays, a transaction is done again; see
    /// [`ReplicatedConnection::retry_transaction`](crate::ReplicatedConnection::retry_transaction).
    ///
    /// ```
    /// use std::time::Duration;
    /// use diesel_replicated::RetryPolicy;
    ///
    /// let policy = RetryPolicy::default().attempts(10).limit(Duration::from_secs(60));
    /// # let _ = policy;
    /// ```
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct RetryPolicy {
        /// How often it is done at the most, the first time among them. Default: 5.
        attempts: u32 = 5, set;
        /// The delay after the first attempt; it doubles from one to the next, and each is drawn from half
        /// of it to one and a half. Default: 10 milliseconds.
        #[cfg_attr(feature = "serde", serde(with = "super::duration::human"))]
        delay: Duration = Duration::from_millis(10), set;
        /// The longest delay. Default: 1 second.
        #[cfg_attr(feature = "serde", serde(with = "super::duration::human"))]
        longest_delay: Duration = Duration::from_secs(1), set;
        /// No attempt begins when this much time has passed since the first did. Default: 30 seconds.
        #[cfg_attr(feature = "serde", serde(with = "super::duration::human"))]
        limit: Duration = Duration::from_secs(30), set;
    }
}

impl RetryPolicy {
    /// The delay before the attempt after the one of this number (from 1), if there is to be one when
    /// `elapsed` has passed since the first. `random` is from 0 to 1.
    pub(crate) fn next(&self, attempt: u32, elapsed: Duration, random: f64) -> Option<Duration> {
        let delay = deadline::backoff(self.delay, self.longest_delay, attempt, random);
        (attempt < self.attempts && elapsed.saturating_add(delay) < self.limit).then_some(delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_and_attempts_end() {
        let policy = RetryPolicy::default();
        let millis = |attempt| {
            policy
                .next(attempt, Duration::ZERO, 0.5)
                .map(|delay| delay.as_millis())
        };
        assert_eq!(
            [1, 2, 3, 4].map(millis),
            [Some(10), Some(20), Some(40), Some(80)]
        );
        assert_eq!(millis(5), None);
        assert_eq!(policy.next(1, Duration::from_secs(30), 0.5), None);
        let many = policy.attempts(u32::MAX);
        assert_eq!(
            many.next(1000, Duration::ZERO, 0.5),
            Some(Duration::from_secs(1))
        );
        assert_eq!(policy.attempts(1).next(1, Duration::ZERO, 0.0), None);
    }
}
