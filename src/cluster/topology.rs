//! What is known of the nodes: an immutable value, replaced as a whole.

use std::sync::Arc;

use crate::config::DeclaredRole;
use crate::guarantee::Progress;
use crate::node::Node;
use crate::route::NodeKind;
use crate::wire::ServerRole;

/// How a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    /// Not asked yet. Leaves to `Up` or `Down` with the first answer.
    Unknown,
    /// It was reached, and nothing has failed since. Leaves to `Down` with the first failure.
    Up,
    /// It failed, with this for a cause. Leaves to `Up` when a probe reaches it.
    Down(String),
}

/// One node and what is known of it.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) node: Arc<Node>,
    /// How far it is in the log.
    pub(crate) progress: Arc<Progress>,
    pub(crate) declared: DeclaredRole,
    /// What the server itself last said.
    pub(crate) role: Option<ServerRole>,
    pub(crate) health: Health,
    /// The timeline of a node that takes writes; 0 while that is not known.
    pub(crate) timeline: u32,
    /// Set while the pool runs; wins over what was configured.
    pub(crate) set_weight: Option<u32>,
}

impl Member {
    /// Which kind of node it is, if its server and the configuration do not contradict each other.
    pub(crate) fn kind(&self) -> Option<NodeKind> {
        match (self.declared, self.role) {
            (DeclaredRole::Primary, None | Some(ServerRole::Primary))
            | (DeclaredRole::Unknown, Some(ServerRole::Primary)) => Some(NodeKind::Primary),
            (DeclaredRole::Replica, None | Some(ServerRole::Standby))
            | (DeclaredRole::Unknown, Some(ServerRole::Standby)) => Some(NodeKind::Replica),
            _ => None,
        }
    }

    /// Its weight in the choice of a node for a read. The primary takes part only if it was
    /// declared with a weight, or one was set since.
    pub(crate) fn weight(&self) -> u32 {
        let role = match self.kind() {
            Some(NodeKind::Primary) => DeclaredRole::Primary,
            Some(NodeKind::Replica) | None => DeclaredRole::Replica,
        };
        let settings = &self.node.pool.connector().settings;
        self.set_weight.unwrap_or_else(|| settings.weight_as(role))
    }

    /// Whether it is up and what it was declared to be.
    pub(crate) fn is_of_use(&self) -> bool {
        self.health == Health::Up && self.kind().is_some()
    }

    pub(crate) fn is_usable_replica(&self) -> bool {
        self.kind() == Some(NodeKind::Replica) && self.health == Health::Up
    }

    /// For error messages and reports.
    pub(crate) fn describe(&self) -> String {
        let name = &self.node.name;
        let what = match (self.kind(), self.declared) {
            (Some(kind), _) => kind.to_string(),
            (None, DeclaredRole::Primary) => "declared the primary, but is a standby".to_owned(),
            (None, DeclaredRole::Replica) => {
                "declared a replica, but is not in recovery".to_owned()
            }
            (None, _) => "role not known".to_owned(),
        };
        match &self.health {
            Health::Unknown => format!("`{name}`: {what}, not reached yet"),
            Health::Up => format!("`{name}`: {what}, up"),
            Health::Down(cause) => format!("`{name}`: {what}, down: {cause}"),
        }
    }
}

/// All nodes. The epoch grows with each change.
#[derive(Clone, Debug, Default)]
pub(crate) struct Topology {
    pub(crate) epoch: u64,
    pub(crate) members: Vec<Member>,
    /// Whether the database's catalog has been asked for what classification needs.
    pub(crate) catalog_asked: bool,
    /// The position of the primary among the members.
    primary: Option<usize>,
}

impl Topology {
    pub(crate) fn new(members: Vec<Member>) -> Self {
        let mut topology = Self {
            epoch: 0,
            members,
            catalog_asked: false,
            primary: None,
        };
        topology.primary = topology.elect(None);
        topology
    }

    pub(crate) fn primary(&self) -> Option<&Member> {
        self.primary.and_then(|place| self.members.get(place))
    }

    pub(crate) fn usable_replicas(&self) -> impl Iterator<Item = &Member> {
        self.members
            .iter()
            .filter(|member| member.is_usable_replica())
    }

    /// The replicas, also those that are down.
    pub(crate) fn replicas(&self) -> impl Iterator<Item = &Member> {
        let replica = |member: &&Member| member.kind() == Some(NodeKind::Replica);
        self.members.iter().filter(replica)
    }

    pub(crate) fn has_replicas(&self) -> bool {
        self.members
            .iter()
            .any(|member| member.kind() != Some(NodeKind::Primary))
    }

    /// Whether every node has been asked at least once, and one that is up for its catalog.
    pub(crate) fn is_settled(&self) -> bool {
        let mut members = self.members.iter();
        let nobody_to_ask = !members.clone().any(Member::is_of_use);
        members.all(|member| member.health != Health::Unknown)
            && (self.catalog_asked || nobody_to_ask)
    }

    pub(crate) fn member(&self, node: &Arc<Node>) -> Option<&Member> {
        self.members
            .iter()
            .find(|member| Arc::ptr_eq(&member.node, node))
    }

    pub(crate) fn named(&self, name: &str) -> Option<&Member> {
        self.members.iter().find(|member| member.node.name == name)
    }

    pub(crate) fn describe(&self) -> Vec<String> {
        self.members.iter().map(Member::describe).collect()
    }

    /// The nodes that say that they take writes and may do so.
    pub(crate) fn writable(&self) -> Vec<String> {
        let writable = self.members.iter().filter(|member| {
            member.kind() == Some(NodeKind::Primary) && member.role == Some(ServerRole::Primary)
        });
        writable.map(|member| member.node.name.clone()).collect()
    }

    /// The next topology, after the catalog has been asked for.
    pub(crate) fn with_catalog_asked(&self) -> Self {
        Self {
            catalog_asked: true,
            ..self.clone()
        }
    }

    /// The next topology, after `change` has been made to the members.
    pub(crate) fn changed(&self, change: impl FnOnce(&mut Vec<Member>)) -> Self {
        let mut next = self.clone();
        change(&mut next.members);
        next.epoch += 1;
        next.primary = next.elect(self.primary().map(|member| Arc::clone(&member.node)));
        next
    }

    /// The next topology, after `change` has been made to one member.
    pub(crate) fn with(&self, node: &Arc<Node>, change: impl FnOnce(&mut Member)) -> Self {
        self.changed(|members| {
            let mut members = members.iter_mut();
            if let Some(member) = members.find(|member| Arc::ptr_eq(&member.node, node)) {
                change(member);
            }
        })
    }

    /// The primary stays what it is while it may be one, and until another is on a newer timeline:
    /// that was promoted since. Of several candidates none is taken: writing to the wrong one is
    /// worse than not writing.
    fn elect(&self, current: Option<Arc<Node>>) -> Option<usize> {
        let is_primary = |place: &usize| {
            self.members
                .get(*place)
                .is_some_and(|member| member.kind() == Some(NodeKind::Primary))
        };
        let timeline = |place: usize| self.members.get(place).map_or(0, |member| member.timeline);
        let candidates = (0..self.members.len()).filter(is_primary);
        let newest = candidates.clone().map(timeline).max().unwrap_or_default();
        let mut candidates = candidates.filter(|place| timeline(*place) == newest);
        if let Some(current) = current {
            let stays = |place: &usize| {
                self.members
                    .get(*place)
                    .is_some_and(|member| Arc::ptr_eq(&member.node, &current))
            };
            if let Some(place) = candidates.clone().find(stays) {
                return Some(place);
            }
        }
        match (candidates.next(), candidates.next()) {
            (Some(only), None) => Some(only),
            _ => None,
        }
    }
}
