//! Follows a list of nodes that changes: nodes join, leave and are replaced.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::cluster::{Cluster, Member};
use crate::config::{Config, Host, NodeConfig, PoolConfig, check_node, check_replica};
use crate::discovery::{Discovery, check};
use crate::error::Error;

/// How long a source may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How soon what could not be done is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// Nodes by their names.
pub(super) type Nodes = BTreeMap<String, NodeConfig>;

/// The list of the source, if it has one in time that may be meant.
pub(super) async fn list(source: &dyn Discovery, pool: &PoolConfig) -> Result<Nodes, String> {
    // It is the application's code.
    let asking = AssertUnwindSafe(source.nodes()).catch_unwind();
    match tokio::time::timeout(PATIENCE, asking).await {
        Ok(Ok(Ok(list))) => check(&list, pool),
        Ok(Ok(Err(error))) => Err(error.to_string()),
        Ok(Err(_)) => Err("the source panicked".to_owned()),
        Err(_) => Err(format!("the source does not answer within {PATIENCE:?}")),
    }
}

/// The nodes that a pool was given beside its list, by names and addresses. The list says nothing of them.
#[derive(Default)]
pub(super) struct Given {
    names: BTreeSet<String>,
    hosts: Vec<Host>,
}

impl Given {
    /// Those of `nodes` that are valid.
    pub(super) fn new(nodes: &[NodeConfig], pool: &PoolConfig) -> Self {
        let mut given = Self::default();
        for node in nodes {
            if let Ok(settings) = check_replica(node.clone(), pool) {
                given.hosts.push(settings.host);
                given.names.insert(settings.name);
            }
        }
        given
    }

    /// Leaves out of a list what was given.
    pub(super) fn leave_out(&self, nodes: &mut Nodes, pool: &PoolConfig) {
        nodes.retain(|name, node| {
            let settings = check_replica(node.clone(), pool);
            let there = settings.is_ok_and(|settings| self.hosts.contains(&settings.host));
            !self.names.contains(name) && !there
        });
    }
}

/// What is followed, and what is known of it.
pub(super) struct Followed {
    source: Arc<dyn Discovery>,
    /// What it listed, if it was asked.
    listed: Result<Nodes, String>,
    was_asked: bool,
    given: Given,
}

impl Followed {
    /// A source that was asked, beside nodes that were given.
    pub(super) fn asked(
        source: Arc<dyn Discovery>,
        listed: Result<Nodes, String>,
        given: Given,
    ) -> Self {
        Self {
            source,
            listed,
            was_asked: true,
            given,
        }
    }

    /// A source that nobody has asked yet.
    pub(super) fn unasked(source: Arc<dyn Discovery>, given: Given) -> Self {
        Self {
            source,
            listed: Ok(Nodes::new()),
            was_asked: false,
            given,
        }
    }
}

/// Follows a source until the pool is closed.
pub(super) fn follow(cluster: &Arc<Cluster>, followed: Followed) {
    let (known, refused) = match followed.listed {
        Ok(nodes) => (nodes, None),
        Err(cause) => (Nodes::new(), Some(cause)),
    };
    let following = Following {
        source: followed.source,
        cluster: Arc::downgrade(cluster),
        given: followed.given,
        was_asked: AtomicBool::new(followed.was_asked),
        wanted: watch::Sender::new(known.clone()),
        known: Mutex::new(known),
        lacking: Mutex::new(Lacking {
            refused,
            undone: Vec::new(),
        }),
    };
    following.tell();
    cluster.runtime.spawn(following.run());
}

/// One part asks the source, and the other does what the list says. Neither waits for the other.
struct Following {
    source: Arc<dyn Discovery>,
    cluster: Weak<Cluster>,
    given: Given,
    was_asked: AtomicBool,
    /// The last list that may be meant.
    wanted: watch::Sender<Nodes>,
    /// What the source has listed and the pool has.
    known: Mutex<Nodes>,
    lacking: Mutex<Lacking>,
}

/// What does not go as the source says.
#[derive(Default)]
struct Lacking {
    /// Why the last list was not taken.
    refused: Option<String>,
    /// What of the last good list could not be done yet.
    undone: Vec<String>,
}

impl Following {
    async fn run(self) {
        tokio::join!(guarded(|| self.ask()), guarded(|| self.carry_out()));
    }

    /// Asks the source again and again.
    async fn ask(&self) {
        loop {
            if self.was_asked.swap(true, Ordering::Relaxed) {
                tokio::select! {
                    () = self.changed() => {}
                    () = self.without_primary() => {}
                }
            }
            let Some(config) = self.config() else {
                return;
            };
            let refused = match list(&*self.source, &config.pool).await {
                Ok(mut nodes) => {
                    self.given.leave_out(&mut nodes, &config.pool);
                    self.wanted.send_if_modified(|wanted| {
                        let other = *wanted != nodes;
                        *wanted = nodes;
                        other
                    });
                    None
                }
                Err(cause) => Some(cause),
            };
            self.lacking.lock().refused = refused;
            self.tell();
        }
    }

    /// The configuration, unless the pool is over.
    fn config(&self) -> Option<Arc<Config>> {
        let cluster = self
            .cluster
            .upgrade()
            .filter(|cluster| !cluster.is_over())?;
        Some(Arc::clone(&cluster.config))
    }

    async fn changed(&self) {
        let waiting = AssertUnwindSafe(self.source.changed()).catch_unwind();
        if waiting.await.is_err() {
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Returns when no primary is up, a moment after the list was asked for: it may be a node that only the next list
    /// has.
    async fn without_primary(&self) {
        loop {
            tokio::time::sleep(AGAIN).await;
            let topology = self.cluster.upgrade().map(|cluster| cluster.topology());
            let primary = topology.as_ref().and_then(|topology| topology.primary());
            if !primary.is_some_and(Member::is_up) {
                return;
            }
        }
    }

    /// Makes the pool's nodes those of the list, and tries again what could not be done.
    async fn carry_out(&self) {
        let mut wanted = self.wanted.subscribe();
        loop {
            let nodes = wanted.borrow_and_update().clone();
            let Some(mut undone) = self.join_and_leave(&nodes).await else {
                return;
            };
            // What cannot be reached holds up no newer list for longer.
            let newer = async {
                tokio::time::sleep(AGAIN).await;
                wanted.changed().await
            };
            tokio::select! {
                failed = self.replace(&nodes) => undone.extend(failed),
                _ = newer => continue,
            }
            let done = undone.is_empty();
            self.lacking.lock().undone = undone;
            self.tell();
            let again = async {
                if done {
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep(AGAIN).await;
            };
            tokio::select! {
                _ = wanted.changed() => {}
                () = again => {}
                () = self.over() => return,
            }
        }
    }

    /// Returns when the pool is over.
    async fn over(&self) {
        while self.config().is_some() {
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Says what does not go as the source says.
    fn tell(&self) {
        let causes = {
            let lacking = self.lacking.lock();
            let causes = lacking.undone.iter().chain(&lacking.refused);
            causes.cloned().collect::<Vec<String>>()
        };
        if let Some(cluster) = self.cluster.upgrade() {
            cluster.note_discovery((!causes.is_empty()).then(|| causes.join("; ")));
        }
    }

    /// Has those join that are new, and those leave that are gone. Returns what could not be done; `None` if the pool is
    /// over.
    async fn join_and_leave(&self, wanted: &Nodes) -> Option<Vec<String>> {
        let cluster = self.cluster.upgrade()?;
        if cluster.is_over() {
            return None;
        }
        let mut undone = Vec::new();
        let known = self.known();
        for (name, node) in wanted.iter().filter(|(name, _)| !known.contains_key(*name)) {
            match join(&cluster, node).await {
                Ok(()) => self.knows(name, node),
                Err(error) => undone.push(format!("node `{name}`: {error}")),
            }
        }
        for name in known.keys().filter(|name| !wanted.contains_key(*name)) {
            match leave(&cluster, name).await {
                Ok(()) | Err(Error::UnknownNode { .. }) => {
                    self.known.lock().remove(name);
                }
                // It leaves when another is the primary.
                Err(error) => undone.push(format!("node `{name}` cannot leave: {error}")),
            }
        }
        Some(undone)
    }

    /// Puts those that have changed in the place of what was there, each if it can be reached. Returns what could not be
    /// done.
    async fn replace(&self, wanted: &Nodes) -> Vec<String> {
        let Some(cluster) = self.cluster.upgrade() else {
            return Vec::new();
        };
        let known = self.known();
        let changed = wanted.iter().filter_map(|(name, node)| {
            let before = known.get(name).filter(|before| *before != node)?;
            Some((name, before, node))
        });
        let moved = changed.map(async |(name, before, node)| {
            match replace(&cluster, name, (before, node)).await {
                Ok(()) => {
                    self.knows(name, node);
                    None
                }
                Err(error) => Some(format!("node `{name}`: {error}")),
            }
        });
        let failed = futures_util::future::join_all(moved).await;
        failed.into_iter().flatten().collect()
    }

    fn known(&self) -> Nodes {
        self.known.lock().clone()
    }

    fn knows(&self, name: &str, node: &NodeConfig) {
        self.known.lock().insert(name.to_owned(), node.clone());
    }
}

/// Does its work again if it panics. What is called in there may be the application's: a source, a subscriber of events.
async fn guarded<F: Future<Output = ()>>(mut work: impl FnMut() -> F) {
    while AssertUnwindSafe(work()).catch_unwind().await.is_err() {
        let told = std::panic::catch_unwind(|| {
            let error = "the task that follows the list of nodes panicked";
            tracing::error!(target: "diesel_replicated", error, "task_died");
        });
        // Who panics at this, too, has said enough.
        drop(told);
        tokio::time::sleep(AGAIN).await;
    }
}

async fn join(cluster: &Cluster, node: &NodeConfig) -> Result<(), Error> {
    let settings = check_replica(node.clone(), &cluster.config.pool)?;
    let name = settings.name.clone();
    cluster.add(settings).await?;
    tracing::info!(target: "diesel_replicated", node = name, "node_joined");
    Ok(())
}

async fn replace(
    cluster: &Cluster,
    name: &str,
    (listed, node): (&NodeConfig, &NodeConfig),
) -> Result<(), Error> {
    let before = cluster.settings_of(name)?;
    let mut settings = check_node(node.clone(), &before, &cluster.config.pool)?;
    if listed.pool == node.pool {
        // An operator may have set it while the pool runs.
        settings.pool.max_size = before.pool.max_size;
        settings.pool.min_idle = before.pool.min_idle;
    }
    cluster.replace_soon(settings).await?;
    tracing::info!(target: "diesel_replicated", node = name, "node_replaced");
    Ok(())
}

async fn leave(cluster: &Cluster, name: &str) -> Result<(), Error> {
    cluster.remove_soon(name).await?;
    tracing::info!(target: "diesel_replicated", node = name, "node_left");
    Ok(())
}
