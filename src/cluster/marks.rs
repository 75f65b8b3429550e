//! The marks by which a primary's standbys are told from others.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::{Mutex, MutexGuard};

use crate::node::Mark;

/// The last [`Mark`], and whether one is wanted. All monitors of a cluster share it.
#[derive(Debug, Default)]
pub(super) struct Marks {
    /// The timeline on which a standby is in doubt.
    wanted: AtomicU32,
    /// The timeline on which no mark can be made.
    refused: AtomicU32,
    last: Mutex<Option<Arc<Mark>>>,
}

impl Marks {
    /// The mark of this timeline. If there is none, the primary's monitor is to make one.
    pub(super) fn of(&self, timeline: u32) -> Option<Arc<Mark>> {
        let found = self.known(timeline);
        if found.is_none() {
            self.wanted.store(timeline, Ordering::Release);
        }
        found
    }

    /// The mark of this timeline, if there is one.
    pub(super) fn known(&self, timeline: u32) -> Option<Arc<Mark>> {
        let last = self.last().clone();
        last.filter(|mark| mark.timeline == timeline)
    }

    /// Whether the primary's monitor is to make one.
    pub(super) fn is_wanted(&self, timeline: u32) -> bool {
        self.wanted.load(Ordering::Acquire) == timeline
            && self.refused.load(Ordering::Acquire) != timeline
            && self.known(timeline).is_none()
    }

    /// The primary's monitor has made it, or cannot.
    pub(super) fn made(&self, timeline: u32, mark: Option<Mark>) {
        match mark {
            Some(mark) => *self.last() = Some(Arc::new(mark)),
            None => self.refused.store(timeline, Ordering::Release),
        }
    }

    /// Another cluster has come in this one's place.
    pub(super) fn forget(&self) {
        self.wanted.store(0, Ordering::Release);
        self.refused.store(0, Ordering::Release);
        *self.last() = None;
    }

    fn last(&self) -> MutexGuard<'_, Option<Arc<Mark>>> {
        self.last.lock()
    }
}
