//! One server's connections: opening, pooling, lending, and knowing when they are broken.

mod cancel;
mod connect;
mod connection;
mod facts;
mod fence;
mod lease;
mod manager;
mod mark;
mod monitor_connection;
mod pool;
mod promotion_lock;
mod pulse;
mod recycle;
mod rights;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use tokio::runtime::Handle;
use tokio::sync::Notify;

pub(crate) use cancel::NodeCancel;
pub(crate) use connect::{Connector, SetupHook};
pub(crate) use connection::NodeConnection;
pub(crate) use facts::{Facts, Place, Receiver, Run};
pub(crate) use fence::Whose;
pub(crate) use lease::{Failure, Lease, Use};
pub(crate) use mark::Mark;
pub(crate) use monitor_connection::{MonitorConnection, code_changes};
pub(crate) use pool::{NodePool, Pooled, Probe};
pub(crate) use promotion_lock::{Clock, Order, PromotionLock};
pub(crate) use pulse::Pulse;
pub(crate) use rights::Limit;

use crate::config::NodeSettings;
use crate::error::ConnectError;

/// What a node's connections find out while nobody uses them.
#[derive(Clone, Debug)]
pub(crate) enum Trouble {
    /// No connection could be opened, at an attempt that began then.
    ConnectFailed(ConnectError, Instant),
    /// A connection ended that nobody had asked to end.
    ConnectionDied(String),
}

/// Who is told of troubles.
pub(crate) type Reporter = Arc<dyn Fn(&Arc<Node>, Trouble) + Send + Sync>;

/// What a server last said of itself.
#[derive(Clone, Debug)]
pub(crate) struct LastReport {
    pub(crate) facts: Facts,
    /// When it was asked; what has become of it since it has not told.
    pub(crate) asked: Instant,
    /// How long answers take, averaged over the last ones.
    pub(crate) round_trip: Duration,
}

/// How asking a server fares.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asking {
    /// What this role may not ask.
    pub(crate) limits: Arc<[Limit]>,
    /// Why it cannot be asked at all.
    pub(crate) error: Option<String>,
    /// How long a commit has waited there for a synchronous standby, if one does.
    pub(crate) commits_wait: Option<Duration>,
}

/// One server: its settings, its pool and its load.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) tags: BTreeMap<String, String>,
    pub(crate) pool: NodePool,
    /// Statements, and transactions on this node alone, under way.
    in_flight: AtomicUsize,
    quiet: Notify,
    last_report: Mutex<Option<Arc<LastReport>>>,
    asking: Mutex<Asking>,
    /// Of its monitor.
    pub(crate) pulse: Pulse,
    /// When it last answered.
    pub(crate) heard: Pulse,
    pub(crate) runtime: Handle,
}

impl Node {
    /// `fallback_share` is the share of the pool that reads of other nodes may take; `report` is
    /// told of troubles that no statement meets.
    pub(crate) fn new(
        settings: NodeSettings,
        setup: SetupHook,
        fallback_share: f64,
        runtime: Handle,
        report: Reporter,
    ) -> Arc<Self> {
        let name = settings.name.clone();
        let tags = settings.tags.clone();
        // bb8 starts its reaper when the pool is built.
        let _runtime = runtime.enter();
        Arc::new_cyclic(|node: &Weak<Self>| {
            let node = Weak::clone(node);
            let report = move |trouble| {
                if let Some(node) = node.upgrade() {
                    report(&node, trouble);
                }
            };
            let connector = Connector::new(settings, setup, Arc::new(report));
            Self {
                name,
                tags,
                pool: NodePool::new(connector, fallback_share),
                in_flight: AtomicUsize::new(0),
                quiet: Notify::new(),
                last_report: Mutex::default(),
                asking: Mutex::default(),
                pulse: Pulse::default(),
                heard: Pulse::default(),
                runtime: runtime.clone(),
            }
        })
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }

    /// The server has said this of itself, and took so long. For the monitor alone.
    pub(crate) fn tells(&self, facts: &Facts, took: Duration) {
        /// Of the average, so much is the last answer's.
        const WEIGHT: f64 = 0.3;
        self.heard.beat();
        let now = Instant::now();
        let mut told = self.last_report_mut();
        let known = told.as_ref().map_or(took, |told| told.round_trip);
        *told = Some(Arc::new(LastReport {
            facts: facts.clone(),
            asked: now.checked_sub(took).unwrap_or(now),
            round_trip: known.mul_f64(1.0 - WEIGHT) + took.mul_f64(WEIGHT),
        }));
    }

    pub(crate) fn last_report(&self) -> Option<Arc<LastReport>> {
        self.last_report_mut().clone()
    }

    fn last_report_mut(&self) -> MutexGuard<'_, Option<Arc<LastReport>>> {
        self.last_report.lock()
    }

    /// What may be asked of it, and why it cannot be asked, if so.
    pub(crate) fn asking(&self) -> MutexGuard<'_, Asking> {
        self.asking.lock()
    }

    /// Keeps the node from counting as quiet, for a statement or a transaction.
    pub(crate) fn busy(self: &Arc<Self>) -> Busy {
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        Busy(Arc::clone(self))
    }

    /// Waits until no statement and no transaction is under way, then ends every connection, and
    /// opens no more.
    pub(crate) async fn retire(&self) {
        self.drained().await;
        self.end();
    }

    /// Waits until no statement and no transaction is under way.
    pub(crate) async fn drained(&self) {
        loop {
            let quiet = self.quiet.notified();
            if self.in_flight() == 0 {
                return;
            }
            quiet.await;
        }
    }

    /// Ends every connection, whatever runs on it, and opens no more.
    pub(crate) fn end(&self) {
        self.pool.connector().shutdown.cancel();
    }
}

/// Something is under way on the node.
#[derive(Debug)]
pub(crate) struct Busy(Arc<Node>);

impl Drop for Busy {
    fn drop(&mut self) {
        if self.0.in_flight.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.quiet.notify_waiters();
        }
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("name", &self.name)
            .field("in_flight", &self.in_flight())
            .finish_non_exhaustive()
    }
}
