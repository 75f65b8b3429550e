//! What the primary was given to do so that its standbys can be told from others.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::{Mutex, MutexGuard};

use crate::node::Mark;

/// The last [`Mark`], and whether one is wanted. All monitors of a cluster share it.
#[derive(Debug, Default)]
pub(super) struct Marks {
    /// On which timeline a standby is in doubt.
    wanted: AtomicU32,
    /// On which timeline it cannot be done.
    refused: AtomicU32,
    last: Mutex<Option<Arc<Mark>>>,
}

impl Marks {
    /// The mark of this timeline. Where there is none yet, the primary's monitor is to make it.
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

    /// Whether one is to be made. For the primary's monitor.
    pub(super) fn is_wanted(&self, timeline: u32) -> bool {
        self.wanted.load(Ordering::Acquire) == timeline
            && self.refused.load(Ordering::Acquire) != timeline
            && self.known(timeline).is_none()
    }

    /// It was made, or cannot be. For the primary's monitor.
    pub(super) fn made(&self, timeline: u32, mark: Option<Mark>) {
        match mark {
            Some(mark) => *self.last() = Some(Arc::new(mark)),
            None => self.refused.store(timeline, Ordering::Release),
        }
    }

    /// Another cluster has come in the place of the one before.
    pub(super) fn forget(&self) {
        self.wanted.store(0, Ordering::Release);
        self.refused.store(0, Ordering::Release);
        *self.last() = None;
    }

    fn last(&self) -> MutexGuard<'_, Option<Arc<Mark>>> {
        self.last.lock()
    }
}
