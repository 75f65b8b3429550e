//! How often, and after which delays, a transaction is done again.

use std::time::Duration;

use crate::deadline;

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
#[non_exhaustive]
pub struct RetryPolicy {
    /// How often it is done at the most, the first time among them. Default: 5.
    pub attempts: u32,
    /// The delay after the first attempt; it doubles from one to the next, and each is drawn from half
    /// of it to one and a half. Default: 10 milliseconds.
    pub delay: Duration,
    /// The longest delay. Default: 1 second.
    pub longest_delay: Duration,
    /// No attempt begins when this much time has passed since the first did. Default: 30 seconds.
    pub limit: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 5,
            delay: Duration::from_millis(10),
            longest_delay: Duration::from_secs(1),
            limit: Duration::from_secs(30),
        }
    }
}

impl RetryPolicy {
    /// Sets [`attempts`](Self::attempts).
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts;
        self
    }

    /// Sets [`delay`](Self::delay).
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Sets [`longest_delay`](Self::longest_delay).
    #[must_use]
    pub fn longest_delay(mut self, delay: Duration) -> Self {
        self.longest_delay = delay;
        self
    }

    /// Sets [`limit`](Self::limit).
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

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
