//! How many statements went where, and what has kept reads on the primary.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use crate::classify::Cause;
use crate::route::RouteReason;

/// Counts statements. All connections of a cluster share one.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Statements that a replica has run.
    on_replicas: AtomicU64,
    /// Statements that the routing has kept on the primary, and for which a replica was ready.
    could_move: AtomicU64,
    /// Others that it has kept there.
    could_not_yet: AtomicU64,
    /// Reads that were kept on the primary, by the reason and the name of what kept them there.
    kept: RwLock<HashMap<Kept, AtomicU64>>,
    /// Reads that a node of another zone than the nearest has served, by the zone.
    far: RwLock<HashMap<Option<Arc<str>>, AtomicU64>>,
}

/// The reason, and the name of what keeps reads on the primary.
pub(crate) type Kept = (RouteReason, Option<Cause>);

/// What was counted until now.
#[derive(Debug)]
pub(crate) struct Counted {
    pub(crate) on_replicas: u64,
    pub(crate) could_move: u64,
    pub(crate) could_not_yet: u64,
    pub(crate) kept: Vec<(Kept, u64)>,
    pub(crate) far: Vec<(Option<Arc<str>>, u64)>,
}

impl Tally {
    pub(crate) fn on_replica(&self) {
        self.on_replicas.fetch_add(1, Ordering::Relaxed);
    }

    /// The routing has kept a statement on the primary. `ready`: a replica could have served it at once.
    pub(crate) fn held_back(&self, ready: bool) {
        let count = if ready {
            &self.could_move
        } else {
            &self.could_not_yet
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn kept(&self, what: Kept) {
        add(&self.kept, &what);
    }

    /// A read has gone to a zone that is not the nearest.
    pub(crate) fn far(&self, zone: &Option<Arc<str>>) {
        add(&self.far, zone);
    }

    pub(crate) fn counted(&self) -> Counted {
        let count = |it: &AtomicU64| it.load(Ordering::Relaxed);
        let (kept, far) = (self.kept.read(), self.far.read());
        Counted {
            on_replicas: count(&self.on_replicas),
            could_move: count(&self.could_move),
            could_not_yet: count(&self.could_not_yet),
            kept: kept.iter().map(|(what, it)| (*what, count(it))).collect(),
            far: far
                .iter()
                .map(|(zone, it)| (zone.clone(), count(it)))
                .collect(),
        }
    }
}

fn add<K: Clone + Eq + Hash>(counts: &RwLock<HashMap<K, AtomicU64>>, what: &K) {
    if let Some(count) = counts.read().get(what) {
        count.fetch_add(1, Ordering::Relaxed);
        return;
    }
    let mut counts = counts.write();
    let count = counts.entry(what.clone()).or_default();
    count.fetch_add(1, Ordering::Relaxed);
}
