//! What one group has applied of the others, told in places of its own log.
//!
//! When the group's primary says that it has applied what another group wrote up to E, all of that is in its own log
//! before the place P where that log ends. So a read that must see the other group's log up to E may run on any node of
//! this group that shows P.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::position::{Lsn, Position};

/// So many sightings of each other group are kept. An older one is covered by the next.
const KEPT: usize = 256;

/// What the primary of a group has said of one subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sighting {
    /// The worker that applies.
    pub(crate) worker: i32,
    /// The timeline of the other group's log, as its pool knew it before the question.
    pub(crate) timeline: u32,
    /// Everything up to here is applied.
    pub(crate) applied: Lsn,
    /// All of it is in the log of this group before this place.
    pub(crate) here: Position,
}

/// What a group has applied of each other group.
#[derive(Debug)]
pub(crate) struct Applied {
    origins: Mutex<Vec<Origin>>,
    /// Somebody wants to hear more than is known.
    wanted: AtomicBool,
    ask: Notify,
}

#[derive(Debug, Default)]
struct Origin {
    sightings: VecDeque<Sighting>,
    /// The worker of an earlier timeline. It may still be connected to the server that ruled then.
    outdated: Option<i32>,
}

impl Applied {
    /// Nothing is known yet, of so many groups.
    pub(crate) fn new(groups: usize) -> Self {
        let mut origins = Vec::new();
        origins.resize_with(groups, Origin::default);
        Self {
            origins: Mutex::new(origins),
            wanted: AtomicBool::new(false),
            ask: Notify::new(),
        }
    }

    /// The place in this group's log by which it has what `origin` has written up to `position`.
    pub(crate) fn shows(&self, origin: usize, position: Position) -> Option<Position> {
        let origins = self.origins.lock();
        let sightings = &origins.get(origin)?.sightings;
        let timeline = sightings.back()?.timeline;
        if position.timeline > timeline {
            return None;
        }
        let at = sightings.partition_point(|sighting| sighting.applied < position.lsn);
        sightings.get(at).map(|sighting| sighting.here)
    }

    /// Takes note of what the primary said of `origin`. `false` if the worker may be connected to a server that was
    /// replaced.
    pub(crate) fn saw(&self, origin: usize, new: Sighting) -> bool {
        let mut origins = self.origins.lock();
        let Some(origin) = origins.get_mut(origin) else {
            return true;
        };
        if let Some(last) = origin.sightings.back().copied() {
            // After a failover there or here, less may be applied than was.
            if last.timeline != new.timeline {
                origin.outdated = Some(last.worker);
            }
            if last.timeline != new.timeline || last.here.timeline != new.here.timeline {
                origin.sightings.clear();
            }
        }
        if origin.outdated == Some(new.worker) {
            return false;
        }
        origin.outdated = None;
        let last = origin.sightings.back();
        if last.is_none_or(|last| last.applied < new.applied) {
            if origin.sightings.len() == KEPT {
                origin.sightings.pop_front();
            }
            origin.sightings.push_back(new);
        }
        true
    }

    /// The worker is connected to the server that rules `origin` now.
    pub(crate) fn vouches(&self, origin: usize, worker: i32) {
        if let Some(origin) = self.origins.lock().get_mut(origin) {
            origin.outdated = origin.outdated.filter(|outdated| *outdated != worker);
        }
    }

    /// The last place of `origin` that is applied here.
    pub(crate) fn latest(&self, origin: usize) -> Option<Lsn> {
        let origins = self.origins.lock();
        let last = origins.get(origin)?.sightings.back()?;
        Some(last.applied)
    }

    /// Asks for more than is known.
    pub(crate) fn want(&self) {
        self.wanted.store(true, Ordering::Release);
        self.ask.notify_one();
    }

    /// Whether anybody has asked since the last call.
    pub(crate) fn take_wanted(&self) -> bool {
        self.wanted.swap(false, Ordering::AcqRel)
    }

    /// Ends when somebody asks.
    pub(crate) async fn is_asked(&self) {
        self.ask.notified().await;
    }
}
