//! Positions in the write-ahead log, and what follows from comparing them.
//!
//! Pure: no clock, no I/O. A position means something only together with its timeline. After a failover the log goes
//! on in another timeline, and what the old one had beyond the fork is gone.

mod forks;
mod history;
mod lsn;
mod source;

pub(crate) use forks::{Forks, Survival};
pub(crate) use history::{History, Sample};
pub use lsn::{InvalidLsn, Lsn};
pub use source::PositionSource;

/// A place in the write-ahead log of one cluster.
///
/// See [WAL internals](https://www.postgresql.org/docs/current/wal-internals.html) and
/// [timelines](https://www.postgresql.org/docs/current/continuous-archiving.html#BACKUP-TIMELINES).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Position {
    /// The timeline, which grows by one with each promotion.
    pub timeline: u32,
    /// The place in that timeline's log.
    pub lsn: Lsn,
}

impl Position {
    pub(crate) const fn new(timeline: u32, lsn: Lsn) -> Self {
        Self { timeline, lsn }
    }

    /// Stands for a position on this timeline that is not known; 0 if the timeline is not known either. It is later
    /// than every known position: whoever meets it has to ask.
    ///
    /// Tokens carry it. A reader that does not know timelines takes it for an unknown position.
    pub(crate) fn somewhere(timeline: u32) -> Self {
        Self::new(u32::MAX, Lsn(u64::from(timeline)))
    }

    pub(crate) fn is_somewhere(self) -> bool {
        self.timeline == u32::MAX
    }

    /// The timeline on which it lies; 0 where that is not known.
    pub(crate) fn home(self) -> u32 {
        if self.is_somewhere() {
            u32::try_from(self.lsn.0).unwrap_or_default()
        } else {
            self.timeline
        }
    }

    /// Whether it is the later one. A position on a newer timeline is later.
    pub(crate) fn is_after(self, other: Self) -> bool {
        (self.timeline, self.lsn) > (other.timeline, other.lsn)
    }

    /// The later of two.
    #[must_use]
    pub(crate) fn max(self, other: Self) -> Self {
        if other.is_after(self) { other } else { self }
    }
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} on timeline {}", self.lsn, self.timeline)
    }
}
