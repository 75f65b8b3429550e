//! Follows a list of nodes that changes: nodes join, leave and are replaced.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::cluster::Cluster;
use crate::config::{NodeConfig, PoolConfig, check_node, check_replica};
use crate::discovery::{Discovery, MOST};
use crate::error::Error;

/// How long a source may take when the pool is built.
const FIRST: Duration = Duration::from_secs(10);

/// How soon what could not be done is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// Nodes by their names.
pub(super) type Nodes = BTreeMap<String, NodeConfig>;

/// The first list, if the source has one in time.
pub(super) async fn first(source: &dyn Discovery, pool: &PoolConfig) -> Result<Nodes, String> {
    match tokio::time::timeout(FIRST, source.nodes()).await {
        Ok(list) => checked(list, pool),
        Err(_) => Err(format!("no answer within {FIRST:?}")),
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
        loop {
            let done = self.apply(&wanted).await;
            let Some(done) = done else { return };
            let again = async {
                if done {
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep(AGAIN).await;
            };
            tokio::select! {
                () = self.source.changed() => {}
                () = again => continue,
            }
            let Some(cluster) = self.cluster.upgrade() else {
                return;
            };
            match checked(self.source.nodes().await, &cluster.config.pool) {
                Ok(nodes) => {
                    cluster.note_discovery(None);
                    wanted = nodes;
                }
                Err(cause) => cluster.note_discovery(Some(cause)),
            }
        }
    }

    /// Makes the pool's nodes those that are wanted. Returns whether all was done; `None` if the pool is closed.
    async fn apply(&mut self, wanted: &Nodes) -> Option<bool> {
        let cluster = self.cluster.upgrade()?;
        if cluster.is_over() {
            return None;
        }
        let mut done = true;
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
                Err(error) => {
                    done = false;
                    cluster.note_discovery(Some(format!("node `{name}`: {error}")));
                }
            }
        }
        let gone: BTreeSet<String> = self
            .known
            .keys()
            .filter(|name| !wanted.contains_key(*name))
            .cloned()
            .collect();
        for name in gone {
            match leave(&cluster, &name).await {
                Ok(()) | Err(Error::UnknownNode { .. }) => {
                    self.known.remove(&name);
                }
                // It leaves when another is the primary.
                Err(error) => {
                    done = false;
                    cluster.note_discovery(Some(format!("node `{name}` cannot leave: {error}")));
                }
            }
        }
        Some(done)
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
