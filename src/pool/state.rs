//! What a pool says of itself.

use std::collections::BTreeMap;

use crate::cluster::{Cluster, Health, Member};
use crate::route::NodeKind;

/// A pool and its nodes at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct PoolState {
    /// The nodes, in the order of the configuration.
    pub nodes: Vec<NodeState>,
    /// The name of the primary, if one is known.
    #[doc(alias = "master")]
    pub primary: Option<String>,
    /// Connections that the application holds.
    pub connections_out: usize,
    /// How many standbys have to confirm a commit, by the primary's `synchronous_standby_names`.
    pub synchronous_standbys: usize,
    /// Whether that is as many as there are replicas, so that what was committed with
    /// [`Durability::RemoteApply`](crate::Durability::RemoteApply) is shown by each of them.
    pub remote_apply_covers_replicas: bool,
    /// Whether the pool was closed.
    pub closed: bool,
    /// Grows with each change of the topology.
    pub epoch: u64,
}

/// A node and its pool at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct NodeState {
    /// Its name.
    pub name: String,
    /// Whether it is the primary or a replica, if that is known and agrees with the configuration.
    pub kind: Option<NodeKind>,
    /// How it is.
    pub health: NodeHealth,
    /// Why it is down.
    pub cause: Option<String>,
    /// Its weight in the choice of a node for a read.
    pub weight: u32,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// Open connections of its pool.
    pub connections: u32,
    /// Of these, those that nobody uses.
    pub idle_connections: u32,
    /// The most connections that the pool may open.
    pub max_size: u32,
    /// Statements that it is running for this pool.
    pub in_flight: usize,
}

/// How a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
#[non_exhaustive]
pub enum NodeHealth {
    /// It has not been reached yet.
    Unknown,
    /// It was reached, and nothing has failed since.
    Up,
    /// It failed, and is tried again after a growing delay.
    Down,
}

impl PoolState {
    pub(super) fn of(cluster: &Cluster) -> Self {
        let topology = cluster.topology();
        let synchronous_standbys = cluster.board.with(|view| view.synchronous_standbys);
        Self {
            nodes: topology.members.iter().map(NodeState::of).collect(),
            primary: topology.primary().map(|member| member.node.name.clone()),
            connections_out: cluster.tracker.out(),
            synchronous_standbys,
            remote_apply_covers_replicas: synchronous_standbys >= topology.replicas().count(),
            closed: cluster.tracker.is_closed(),
            epoch: topology.epoch,
        }
    }

    /// The node of this name.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&NodeState> {
        self.nodes.iter().find(|node| node.name == name)
    }
}

impl NodeState {
    fn of(member: &Member) -> Self {
        let pool = member.node.pool.state();
        let (health, cause) = match &member.health {
            Health::Unknown => (NodeHealth::Unknown, None),
            Health::Up => (NodeHealth::Up, None),
            Health::Down(cause) => (NodeHealth::Down, Some(cause.clone())),
        };
        Self {
            name: member.node.name.clone(),
            kind: member.kind(),
            health,
            cause,
            weight: member.weight(),
            tags: member.node.tags.clone(),
            connections: pool.connections,
            idle_connections: pool.idle_connections,
            max_size: member.node.pool.max_size(),
            in_flight: member.node.in_flight(),
        }
    }
}
