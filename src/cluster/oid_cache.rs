//! What the pool remembers of the database's catalog: the OIDs of custom types, and since when a connection may trust
//! its own memory.
//!
//! A connection remembers prepared statements, and the pool remembers the OIDs of types. Nobody tells either when the
//! catalog changes. The server does, with an error that comes before anything of the statement has run. Then the memory
//! of the whole cluster becomes one generation older than the catalog. Each older connection drops what it has prepared
//! as soon as nobody else uses it. Outside a transaction the statement runs once more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};

use crate::statement::{CustomType, OidMap, Oids};

/// The cache. Readers take an immutable map; a change makes a new one.
#[derive(Debug, Default)]
pub(crate) struct OidCache {
    known: Mutex<Arc<OidMap>>,
    /// Grows when what connections have prepared was found to be outdated. One whose memory is older
    /// drops it before it is used again.
    generation: AtomicU64,
}

impl OidCache {
    pub(crate) fn known(&self) -> Arc<OidMap> {
        Arc::clone(&self.lock())
    }

    pub(crate) fn insert(&self, found: &[(CustomType, Oids)]) {
        let mut known = self.lock();
        let map = Arc::make_mut(&mut known);
        for (custom, oids) in found {
            map.insert(custom.clone(), *oids);
        }
    }

    /// Types may have been dropped or made anew.
    pub(crate) fn forget(&self) {
        let mut known = self.lock();
        if !known.is_empty() {
            *known = Arc::default();
        }
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// What a connection remembers since `generation` is outdated, and so it may be with every other.
    pub(crate) fn outdated(&self, generation: u64) {
        self.forget();
        // Others may have found the same out meanwhile.
        let next = generation + 1;
        let _ = self.generation.fetch_max(next, Ordering::AcqRel);
    }

    fn lock(&self) -> MutexGuard<'_, Arc<OidMap>> {
        self.known.lock()
    }
}
