//! Follows a list of nodes that changes: nodes join, leave and are replaced.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::FutureExt;

use crate::cluster::{Cluster, Member};
use crate::config::{NodeConfig, PoolConfig, check_node, check_replica};
use crate::discovery::{Discovery, MOST};
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
        Ok(Ok(list)) => checked(list, pool),
        Ok(Err(_)) => Err("the source panicked".to_owned()),
        Err(_) => Err(format!("the source does not answer within {PATIENCE:?}")),
    }
}

/// The list by names, if it may be meant.
fn checked(
    list: Result<Vec<NodeConfig>, crate::discovery::DiscoveryError>,
    pool: &PoolConfig,
) -> Result<Nodes, String> {
    let list = list.map_err(|error| error.to_string())?;
    if list.is_empty() {
        return Err("the list is empty".to_owned());
    }
    if list.len() > MOST {
        return Err(format!("the list has {} nodes; at most {MOST}", list.len()));
    }
    let mut nodes = Nodes::new();
    for node in list {
        let settings = check_replica(node.clone(), pool).map_err(|error| error.to_string())?;
        let name = settings.name;
        if nodes.insert(name.clone(), node).is_some() {
            return Err(format!("the list has two nodes named `{name}`"));
        }
    }
    Ok(nodes)
}

/// Follows a source, if there is one, until the pool is closed. `known` is what it has listed and the pool has.
pub(super) fn follow(cluster: &Arc<Cluster>, source: Option<Arc<dyn Discovery>>, known: Nodes) {
    if let Some(source) = source {
        let following = Following {
            source,
            cluster: Arc::downgrade(cluster),
            known,
        };
        cluster.runtime.spawn(following.run());
    }
}

struct Following {
    source: Arc<dyn Discovery>,
    cluster: Weak<Cluster>,
    /// What the source has listed and the pool has.
    known: Nodes,
}

impl Following {
    async fn run(mut self) {
        let mut wanted = self.known.clone();
        let mut refused = None;
        loop {
            let Some(undone) = self.apply(&wanted).await else {
                return;
            };
            let done = undone.is_empty();
            if let Some(cluster) = self.cluster.upgrade() {
                let causes = undone.into_iter().chain(refused.take());
                let causes: Vec<String> = causes.collect();
                cluster.note_discovery((!causes.is_empty()).then(|| causes.join("; ")));
            }
            let again = async {
                if done {
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep(AGAIN).await;
            };
            tokio::select! {
                () = self.changed() => {}
                () = self.without_primary() => {}
                () = again => continue,
            }
            let Some(config) = self
                .cluster
                .upgrade()
                .map(|cluster| Arc::clone(&cluster.config))
            else {
                return;
            };
            match list(&*self.source, &config.pool).await {
                Ok(nodes) => wanted = nodes,
                Err(cause) => refused = Some(cause),
            }
        }
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

    /// Makes the pool's nodes those that are wanted. Returns why some are not yet; `None` if the pool is closed.
    async fn apply(&mut self, wanted: &Nodes) -> Option<Vec<String>> {
        let cluster = self.cluster.upgrade()?;
        if cluster.is_over() {
            return None;
        }
        let mut undone = Vec::new();
        for (name, node) in wanted {
            let change = match self.known.get(name) {
                Some(known) if known == node => continue,
                Some(_) => replace(&cluster, name, node).await,
                None => join(&cluster, node).await,
            };
            match change {
                Ok(()) => {
                    self.known.insert(name.clone(), node.clone());
                }
                Err(error) => undone.push(format!("node `{name}`: {error}")),
            }
        }
        let gone = self.known.keys().filter(|name| !wanted.contains_key(*name));
        for name in gone.cloned().collect::<Vec<String>>() {
            match leave(&cluster, &name).await {
                Ok(()) | Err(Error::UnknownNode { .. }) => {
                    self.known.remove(&name);
                }
                // It leaves when another is the primary.
                Err(error) => undone.push(format!("node `{name}` cannot leave: {error}")),
            }
        }
        Some(undone)
    }
}

async fn join(cluster: &Cluster, node: &NodeConfig) -> Result<(), Error> {
    let settings = check_replica(node.clone(), &cluster.config.pool)?;
    let name = settings.name.clone();
    cluster.add(settings).await?;
    tracing::info!(target: "diesel_replicated", node = name, "node_joined");
    Ok(())
}

async fn replace(cluster: &Cluster, name: &str, node: &NodeConfig) -> Result<(), Error> {
    let before = cluster.settings_of(name)?;
    let settings = check_node(node.clone(), &before, &cluster.config.pool)?;
    cluster.replace_soon(settings).await?;
    tracing::info!(target: "diesel_replicated", node = name, "node_replaced");
    Ok(())
}

async fn leave(cluster: &Cluster, name: &str) -> Result<(), Error> {
    cluster.remove_soon(name).await?;
    tracing::info!(target: "diesel_replicated", node = name, "node_left");
    Ok(())
}
