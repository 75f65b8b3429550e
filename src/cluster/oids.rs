//! OIDs of custom types, looked up once for all connections of the cluster.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::statement::{CustomType, OidMap, Oids};

/// The cache. Readers take an immutable map; a change makes a new one.
#[derive(Debug, Default)]
pub(crate) struct OidCache(Mutex<Arc<OidMap>>);

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

    fn lock(&self) -> MutexGuard<'_, Arc<OidMap>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
