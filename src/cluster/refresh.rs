//! When the catalog is loaded: once a node can be asked, and again after changes, but not too often.

use std::time::Duration;

use tokio::time::Instant;

/// After a change the catalog is loaded, but not more often than this.
pub(super) const AFTER_CHANGE: Duration = Duration::from_secs(1);

/// For a name that it lacks it is loaded again, but not more often than this: the next catalog
/// may lack the name too.
pub(super) const FOR_A_NAME: Duration = Duration::from_secs(30);

/// Pure: what is wanted and what is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refresh {
    /// It was never loaded.
    First,
    /// To be loaded this long after it was last.
    Wanted {
        since: Instant,
        interval: Duration,
    },
    /// With how long after this one it is to be loaded once more.
    Loading {
        again: Option<Duration>,
    },
    Loaded {
        at: Instant,
    },
}

impl Refresh {
    pub(super) fn new() -> Self {
        Self::First
    }

    /// Somebody has a reason to think the catalog outdated.
    pub(super) fn want(&mut self, interval: Duration) {
        *self = match *self {
            // The more urgent of the reasons counts.
            Self::Loading { again } => Self::Loading {
                again: Some(again.map_or(interval, |other| other.min(interval))),
            },
            Self::Loaded { at } => Self::Wanted {
                since: at,
                interval,
            },
            Self::Wanted {
                since,
                interval: other,
            } => Self::Wanted {
                since,
                interval: other.min(interval),
            },
            Self::First => Self::First,
        };
    }

    /// From when on it may be loaded, if it is wanted.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        match *self {
            Self::First => Some(now),
            Self::Wanted { since, interval } => Some(since + interval),
            Self::Loading { .. } | Self::Loaded { .. } => None,
        }
    }

    /// It is being loaded.
    pub(super) fn started(&mut self) {
        *self = Self::Loading { again: None };
    }

    /// What was under way has ended; after a failure it is tried again.
    pub(super) fn ended(&mut self, loaded: bool, now: Instant) {
        let Self::Loading { again } = *self else {
            return;
        };
        let failed = (!loaded).then_some(AFTER_CHANGE);
        *self = match again.or(failed) {
            Some(interval) => Self::Wanted {
                since: now,
                interval,
            },
            None => Self::Loaded { at: now },
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_while_loading_have_it_loaded_once_more() {
        let now = Instant::now();
        let mut refresh = Refresh::new();
        assert_eq!(refresh.due(now), Some(now));
        refresh.started();
        assert_eq!(refresh.due(now), None);
        refresh.want(FOR_A_NAME);
        refresh.want(AFTER_CHANGE);
        refresh.want(FOR_A_NAME);
        refresh.ended(true, now);
        assert_eq!(refresh.due(now), Some(now + AFTER_CHANGE));
        refresh.started();
        refresh.ended(true, now);
        assert_eq!(refresh.due(now), None);
    }

    #[test]
    fn a_failure_is_tried_again() {
        let now = Instant::now();
        let mut refresh = Refresh::new();
        refresh.started();
        refresh.ended(false, now);
        assert_eq!(refresh.due(now), Some(now + AFTER_CHANGE));
    }

    #[test]
    fn a_change_is_not_kept_waiting_by_the_patience_with_a_name() {
        let now = Instant::now();
        let mut refresh = Refresh::Loaded { at: now };
        refresh.want(FOR_A_NAME);
        assert_eq!(refresh.due(now), Some(now + FOR_A_NAME));
        refresh.want(AFTER_CHANGE);
        assert_eq!(refresh.due(now), Some(now + AFTER_CHANGE));
    }
}
