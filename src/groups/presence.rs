//! Whether a group takes writes, and since when it does not.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Since when a group takes no writes, as far as anybody has looked.
#[derive(Debug, Default)]
pub(crate) struct Presence(Mutex<Option<Instant>>);

impl Presence {
    /// Takes note of whether the group takes writes now. How long it has not.
    pub(crate) fn note(&self, takes_writes: bool, now: Instant) -> Option<Duration> {
        let mut since = self.0.lock();
        if takes_writes {
            *since = None;
            return None;
        }
        let since = *since.get_or_insert(now);
        Some(now.saturating_duration_since(since))
    }
}
