//! Whether the task that watches a node goes on: it says so, and the manager looks.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::config::HealthConfig;

/// What a machine under load may add to the limits of all waits.
const MARGIN: Duration = Duration::from_secs(30);

/// When a task last said that it goes on. `None` while it waits for a node that is down, which has no limit.
#[derive(Debug)]
pub(crate) struct Liveness(Mutex<Option<Instant>>);

impl Default for Liveness {
    fn default() -> Self {
        Self(Mutex::new(Some(Instant::now())))
    }
}

impl Liveness {
    pub(crate) fn beat(&self) {
        *self.0.lock() = Some(Instant::now());
    }

    /// The task waits without a limit until its next beat.
    pub(crate) fn rest(&self) {
        *self.0.lock() = None;
    }

    /// How long ago it last said that it goes on.
    pub(crate) fn age(&self) -> Duration {
        let last = *self.0.lock();
        last.map_or(Duration::ZERO, |last| last.elapsed())
    }

    /// Whether it has been silent for longer than all its waits may take.
    pub(crate) fn is_still(&self, health: &HealthConfig) -> bool {
        let longest = health
            .interval
            .saturating_add(health.timeout)
            .saturating_mul(4);
        self.age() > longest + MARGIN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pulse_is_still_only_long_after_the_last_beat() {
        let health = HealthConfig::default();
        let pulse = Liveness::default();
        assert!(!pulse.is_still(&health));
        let long_ago = Instant::now().checked_sub(Duration::from_secs(60));
        if let Some(long_ago) = long_ago {
            *pulse.0.lock() = Some(long_ago);
            assert!(pulse.is_still(&health));
            // A node that was away for a minute and comes back.
            pulse.rest();
            assert!(!pulse.is_still(&health));
            pulse.beat();
            assert!(!pulse.is_still(&health));
        }
    }
}
