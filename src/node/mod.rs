//! One server's connections: opening, pooling, lending, and knowing when they are broken.

mod asked_again;
mod bb8_manager;
mod cancel_request;
mod connect;
mod connection;
mod dial;
mod facts;
mod fence;
mod lane;
mod lease;
mod line;
mod login;
mod mark;
mod marking;
mod monitor_connection;
mod pace;
mod pool;
mod position_sql;
#[cfg(feature = "promotion")]
mod promotion_lock;
#[cfg(feature = "promotion")]
mod quiet_connection;
mod recycle;
#[cfg(feature = "promotion")]
mod replication_connection;
mod rights;
mod run;
mod shows;
mod socket;
mod wait_for_lsn;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use tokio::runtime::{EnterGuard, Handle};
use tokio::sync::Notify;

pub(crate) use cancel_request::NodeCancel;
pub(crate) use connect::{ConnectHooks, Connector, SetupHook, ask_role};
pub(crate) use connection::NodeConnection;
pub(crate) use facts::{Facts, Place, Receiver};
pub(crate) use fence::Whose;
pub(crate) use lane::Lane;
pub(crate) use lease::{Failure, Lease, Use};
pub(crate) use mark::Mark;
pub(crate) use monitor_connection::{MonitorConnection, code_changes};
pub(crate) use pool::{InLine, NodePool, Pooled, Probe};
#[cfg(feature = "promotion")]
pub(crate) use promotion_lock::{Clock, Order, PromotionLock};
#[cfg(feature = "promotion")]
pub(crate) use replication_connection::{Grants, ReplicationConnection};
pub(crate) use rights::MissingRight;
pub(crate) use run::Run;
pub(crate) use shows::{Known, Wanted};
pub(crate) use wait_for_lsn::WaitForLsn;

use pace::Pace;

use crate::config::{Config, NodeSettings, distance, has_tag};
use crate::error::ConnectError;
use crate::metrics::NodeMeter;

/// What a node's connections find out, also while nobody uses them.
#[derive(Clone, Debug)]
pub(crate) enum Trouble {
    /// No connection could be opened, at an attempt that began at that time.
    ConnectFailed(ConnectError, Instant),
    /// A connection ended that nobody had asked to end; the server may be well.
    ConnectionDied(String),
    /// A connection, opened at that time, leads to this run of a server. The one that reports is another.
    LeadsElsewhere(Run, Instant),
    /// The server does not answer, though connections to it are open.
    Silent(String),
}

/// Who hears of trouble.
pub(crate) type Reporter = Arc<dyn Fn(&Arc<Node>, Trouble) + Send + Sync>;

/// One server: its settings, its pool and its load.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) zone: Option<Arc<str>>,
    /// How many of the zones that the pool prefers come before its own.
    pub(crate) distance: usize,
    pub(crate) tags: BTreeMap<String, String>,
    /// The connections that everybody uses.
    pub(crate) pool: NodePool,
    /// Those for reads that ask for a tag.
    tagged: Vec<(Lane, NodePool)>,
    pub(crate) meter: Arc<NodeMeter>,
    /// Statements, and transactions on this node alone, under way.
    in_flight: AtomicUsize,
    /// How long reads take there.
    pub(crate) pace: Pace,
    quiet: Notify,
    pub(crate) runtime: Handle,
}

impl Node {
    /// `config` is that of the whole pool. `report` hears of trouble.
    pub(crate) fn new(
        settings: NodeSettings,
        config: &Config,
        hooks: ConnectHooks,
        runtime: Handle,
        report: Reporter,
    ) -> Arc<Self> {
        let name = settings.name.clone();
        let zone = settings.zone().map(Arc::from);
        let distance = distance(&config.prefer_zones, zone.as_deref());
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
            let (address, port) = settings.host.address();
            let meter = Arc::new(NodeMeter::new(&name, &address, port));
            let connector = Arc::new(Connector::new(settings, hooks, Arc::new(report)));
            let tagged = config.tagged.iter().filter(|(tag, _)| has_tag(&tags, tag));
            let tagged = tagged.filter_map(|(tag, it)| {
                let lane = Lane::of(tag, &config.tagged)?;
                let (connector, meter) = (Arc::clone(&connector), Arc::clone(&meter));
                Some((lane, NodePool::for_tag(connector, lane, it.max_size, meter)))
            });
            Self {
                tagged: tagged.collect(),
                name,
                zone,
                distance,
                tags,
                pool: NodePool::new(connector, config.fallback_share, Arc::clone(&meter)),
                meter,
                in_flight: AtomicUsize::new(0),
                pace: Pace::new(Instant::now()),
                quiet: Notify::new(),
                runtime: runtime.clone(),
            }
        })
    }

    /// The connections of a lane, if the node has some.
    pub(crate) fn pool_of(&self, lane: Lane) -> Option<&NodePool> {
        if lane.is_general() {
            return Some(&self.pool);
        }
        let mut tagged = self.tagged.iter();
        tagged.find(|(of, _)| *of == lane).map(|(_, pool)| pool)
    }

    /// The pool that a connection belongs to.
    fn home_of(&self, connection: &NodeConnection) -> &NodePool {
        self.pool_of(connection.lane).unwrap_or(&self.pool)
    }

    /// Whether any connection for statements is open, in use or not.
    pub(crate) fn is_connected(&self) -> bool {
        let tagged = self.tagged.iter().map(|(_, pool)| pool);
        std::iter::once(&self.pool)
            .chain(tagged)
            .any(|pool| pool.open() > 0)
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }

    /// How much it has to do: what is under way, and what waits for a connection.
    pub(crate) fn load(&self) -> usize {
        self.in_flight() + self.pool.waiting()
    }

    /// The node is busy while the guard lives.
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
        self.pool.connector().lifetime.end();
    }
}

/// The thread is ending, and can enter no runtime any more.
#[derive(Debug)]
pub(crate) struct Ending;

/// Enters the runtime, unless the caller is in it: to look is cheaper.
pub(crate) fn enter(runtime: &Handle) -> Result<Option<EnterGuard<'_>>, Ending> {
    match Handle::try_current() {
        Ok(current) if current.id() == runtime.id() => Ok(None),
        Err(error) if error.is_thread_local_destroyed() => Err(Ending),
        _ => Ok(Some(runtime.enter())),
    }
}

/// Whether this thread is ending: the destructors of its local values run, and tokio's are gone.
pub(crate) fn is_ending() -> bool {
    Handle::try_current().is_err_and(|error| error.is_thread_local_destroyed())
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
