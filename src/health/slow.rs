//! Whether a node is slow beside its peers. It takes several looks in a row to change that, so that it does not
//! oscillate.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::HealthConfig;
use crate::deadline;

/// The share of its reads that a node has when it is slow, or has just come back.
pub(super) const LEAST: f64 = 0.1;

/// How many looks in a row make a node slow, or quick again.
const LOOKS: u32 = 3;

/// After this long a slow node gets no reads while others can serve.
const TOLERATED: Duration = Duration::from_secs(10);

/// How long a node stays slow at the least. It doubles each time that the node becomes slow again.
const HOLD: Duration = Duration::from_secs(5);
const LONGEST_HOLD: Duration = Duration::from_secs(300);

/// After this long without trouble, earlier trouble is forgotten.
const FORGIVEN_AFTER: Duration = Duration::from_secs(600);

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Slowness {
    slow: Option<Slow>,
    /// Looks in a row that speak for the other state.
    against: u32,
    /// How many times it was slow, and when it was last.
    times: u32,
    left: Option<Instant>,
}

#[derive(Clone, Debug, PartialEq)]
struct Slow {
    since: Instant,
    cause: Arc<str>,
}

impl Slowness {
    pub(super) fn is_slow(&self) -> bool {
        self.slow.is_some()
    }

    pub(super) fn cause(&self) -> Option<&str> {
        self.slow.as_ref().map(|slow| &*slow.cause)
    }

    pub(super) fn share(&self, now: Instant) -> f64 {
        match &self.slow {
            None => 1.0,
            Some(slow) if now.saturating_duration_since(slow.since) < TOLERATED => LEAST,
            Some(_) => 0.0,
        }
    }

    pub(super) fn measured(
        &mut self,
        round_trip: Option<Duration>,
        peers: Option<Duration>,
        config: &HealthConfig,
        now: Instant,
    ) {
        let Some(round_trip) = round_trip else {
            return;
        };
        // Without peers it is quick.
        let peers = peers.unwrap_or(round_trip);
        let limit = deadline::times(peers, config.slow_factor).max(config.slow_floor);
        let speaks_against = match &self.slow {
            None => round_trip > limit,
            Some(slow) => {
                // Leaving takes a better time than staying out.
                let held = now.saturating_duration_since(slow.since) >= self.hold();
                held && round_trip <= limit / 2
            }
        };
        self.against = if speaks_against { self.against + 1 } else { 0 };
        if self.against < LOOKS {
            return;
        }
        self.against = 0;
        if self.slow.take().is_some() {
            self.left = Some(now);
            return;
        }
        let quiet = |left: Instant| now.saturating_duration_since(left) >= FORGIVEN_AFTER;
        if self.left.is_some_and(quiet) {
            self.times = 0;
        }
        self.times = self.times.saturating_add(1);
        let cause = format!("answers take {round_trip:?}, those of its peers {peers:?}");
        self.slow = Some(Slow {
            since: now,
            cause: cause.into(),
        });
    }

    fn hold(&self) -> Duration {
        deadline::backoff(HOLD, LONGEST_HOLD, self.times, 0.5)
    }
}
