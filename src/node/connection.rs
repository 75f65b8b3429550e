//! One open server connection with all that belongs to it.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use diesel::connection::{CacheSize, Instrumentation, InstrumentationEvent};
use diesel_async::{AsyncConnection, AsyncPgConnection};
use parking_lot::Mutex;

use super::dial::Peer;
use super::lane::Lane;
use super::run::Run;
use super::shows::Shows;
use crate::wire::{Driver, Notifications, Wire};

/// An open connection to a node.
pub(crate) struct NodeConnection {
    pg: AsyncPgConnection,
    pub(crate) wire: Arc<Wire>,
    pub(crate) notifications: Arc<Notifications>,
    pub(super) peer: Arc<Peer>,
    /// When it was opened, at the latest.
    pub(crate) opened: Instant,
    /// Which run of which server it leads to, if this role may ask.
    pub(crate) run: Option<Run>,
    /// What its server was found to show, where its name leads to several.
    pub(crate) shows: Shows,
    /// From then on it is closed when nobody uses it.
    pub(super) last_day: Option<Instant>,
    prepared: Arc<Prepared>,
    cache_size: CacheSize,
    /// The generation of the cluster's memory from which on it has prepared statements.
    remembers: u64,
    /// Whose pool it belongs to.
    pub(super) lane: Lane,
    pub(crate) driver: Driver,
}

impl NodeConnection {
    pub(super) fn new(
        mut pg: AsyncPgConnection,
        wire: Arc<Wire>,
        driver: Driver,
        notifications: Arc<Notifications>,
        peer: Peer,
        run: Option<Run>,
        last_day: Option<Instant>,
    ) -> Self {
        let prepared = Arc::<Prepared>::default();
        pg.set_instrumentation(PreparedTap(Arc::clone(&prepared)));
        Self {
            pg,
            wire,
            notifications,
            peer: Arc::new(peer),
            opened: Instant::now(),
            run,
            shows: Shows::default(),
            last_day,
            prepared,
            cache_size: CacheSize::Unbounded,
            remembers: 0,
            lane: Lane::default(),
            driver,
        }
    }

    pub(super) fn of(self, lane: Lane) -> Self {
        Self { lane, ..self }
    }

    /// The connection, driven by its task. A thread that waits for a statement may have driven it before.
    pub(crate) fn pg(&self) -> &AsyncPgConnection {
        self.driver.recall();
        &self.pg
    }

    /// The same.
    pub(crate) fn pg_mut(&mut self) -> &mut AsyncPgConnection {
        self.driver.recall();
        &mut self.pg
    }

    /// The connection, for work that [`Driver`]'s `run` awaits.
    pub(crate) fn driven(&self) -> &AsyncPgConnection {
        &self.pg
    }

    /// The SQL of statements that were put into the prepared-statement cache since the last call.
    pub(crate) fn newly_prepared(&self) -> Vec<String> {
        self.prepared.take()
    }

    pub(crate) fn set_cache_size(&mut self, wanted: CacheSize) {
        // Setting the size drops the cache, so it is not done without need.
        let same = matches!(
            (self.cache_size, wanted),
            (CacheSize::Unbounded, CacheSize::Unbounded)
                | (CacheSize::Disabled, CacheSize::Disabled)
        );
        if !same {
            self.pg_mut().set_prepared_statement_cache_size(wanted);
            self.cache_size = wanted;
        }
    }

    /// The generation from which on it has prepared statements.
    pub(crate) fn remembers(&self) -> u64 {
        self.remembers
    }

    /// Drops what was prepared before `generation`.
    pub(crate) fn forget_before(&mut self, generation: u64) {
        if self.remembers < generation {
            self.remembers = generation;
            let size = self.cache_size;
            // Another size has another, empty cache.
            self.set_cache_size(CacheSize::Disabled);
            self.set_cache_size(size);
        }
    }

    pub(crate) fn is_usable(&self) -> bool {
        self.wire.is_usable()
    }
}

impl fmt::Debug for NodeConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeConnection")
            .field("wire", &self.wire)
            .finish_non_exhaustive()
    }
}

/// Statements that the inner connection has cached and the outer one has not reported yet.
#[derive(Debug, Default)]
struct Prepared(Mutex<Vec<String>>);

impl Prepared {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock())
    }
}

/// The instrumentation of the inner connection.
///
/// The outer connection reports start and end of a statement, once, wherever it was tried. Only the inner one knows
/// what was cached.
struct PreparedTap(Arc<Prepared>);

impl Instrumentation for PreparedTap {
    fn on_connection_event(&mut self, event: InstrumentationEvent<'_>) {
        if let InstrumentationEvent::CacheQuery { sql, .. } = event {
            let mut prepared = self.0.0.lock();
            prepared.push(sql.to_owned());
        }
    }
}
