//! What the pool knows of the nodes: an immutable value that the manager replaces as a whole.

use std::sync::Arc;
use std::time::Instant;

use super::identity::Identities;
use super::member::Member;
use crate::election::{Past, Sight, Standing, elect, needed};
use crate::node::Node;
use crate::route::NodeKind;
use crate::wire::ServerRole;

/// The gate before the primary: whether statements may go there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Gate {
    #[default]
    Open,
    /// Another node is about to take the primary's place.
    Held,
    /// Writes take a majority of the nodes, and it is not yet known whether one answers.
    Unasked,
    /// Writes take a majority of the nodes, and fewer answer.
    NoQuorum { answer: usize, needed: usize },
}

/// What a statement wants to do on the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Read.
    Read,
    /// Change the session, or anything else that writes nothing that stays.
    State,
    /// Anything else.
    Write,
}

/// All nodes. The epoch grows with each change.
#[derive(Clone, Debug, Default)]
pub(crate) struct Topology {
    pub(crate) epoch: u64,
    pub(crate) members: Vec<Member>,
    /// The pool has asked for the database's catalog, which classification needs.
    pub(crate) catalog_asked: bool,
    pub(crate) gate: Gate,
    /// Somebody has paused new writes, until then.
    pub(crate) paused_until: Option<Instant>,
    /// What the last election found. It tells the primary by its place among the members.
    past: Past,
    /// When this process first heard of the newest timeline.
    timeline_since: Option<Instant>,
    /// Which names stand for one server, and which database the nodes are connected to.
    identities: Identities,
}

impl Topology {
    pub(crate) fn new(members: Vec<Member>) -> Self {
        let mut topology = Self {
            members,
            ..Self::default()
        };
        topology.elect(None);
        topology
    }

    pub(crate) fn primary(&self) -> Option<&Member> {
        self.past.primary.and_then(|place| self.members.get(place))
    }

    pub(crate) fn usable_replicas(&self) -> impl Iterator<Item = &Member> {
        self.members
            .iter()
            .filter(|member| member.is_usable_replica())
    }

    /// Whether there is a primary, and it is not known to be down.
    pub(crate) fn primary_is_up(&self) -> bool {
        self.primary().is_some_and(Member::is_up)
    }

    /// Whether there is a primary of which it is known whether it takes writes.
    pub(crate) fn knows_primary(&self) -> bool {
        self.primary().is_some() && self.gate != Gate::Unasked
    }

    /// Whether a read may choose among the replicas: there are some, or all nodes have been asked.
    pub(crate) fn knows_replicas(&self) -> bool {
        self.trusted_replicas().next().is_some() || self.is_settled()
    }

    /// Usable replicas whose log is the primary's.
    pub(crate) fn trusted_replicas(&self) -> impl Iterator<Item = &Member> {
        self.usable_replicas().filter(|member| member.is_trusted())
    }

    /// The replicas, also those that are down.
    pub(crate) fn replicas(&self) -> impl Iterator<Item = &Member> {
        let replica = |member: &&Member| member.kind() == Some(NodeKind::Replica);
        self.members.iter().filter(replica)
    }

    /// Whether there is a server that reads are meant for beside the primary, if it is up or not.
    pub(crate) fn has_replicas(&self) -> bool {
        self.servers()
            .any(|member| member.kind() != Some(NodeKind::Primary) && !member.no_reads())
    }

    /// The system identifier of the cluster, once it is known.
    pub(crate) fn cluster(&self) -> Option<u64> {
        self.past.cluster
    }

    /// The newest timeline that any node was seen on.
    pub(crate) fn timeline(&self) -> u32 {
        self.past.newest
    }

    /// When this process first heard of that timeline.
    pub(super) fn timeline_since(&self) -> Option<Instant> {
        self.timeline_since
    }

    /// The nodes, each server once.
    pub(crate) fn servers(&self) -> impl Iterator<Item = &Member> + Clone {
        let servers = self.members.iter();
        servers.filter(|member| member.twin.is_none())
    }

    /// A topology with each server once.
    #[cfg(feature = "promotion")]
    pub(crate) fn of_servers(&self) -> Self {
        let mut servers = self.clone();
        servers.members.retain(|member| member.twin.is_none());
        let is_primary = |member: &Member| member.standing == Standing::Primary;
        servers.past.primary = servers.members.iter().position(is_primary);
        servers
    }

    /// How many of the servers are a majority.
    pub(crate) fn majority(&self) -> usize {
        needed(self.servers().count())
    }

    /// Whether there has ever been a primary.
    pub(crate) fn began(&self) -> bool {
        self.past.began
    }

    /// Whether it is open which names stand for one server, so that it must be looked again.
    pub(super) fn has_open_identities(&self) -> bool {
        self.identities.are_pending()
    }

    /// Whether the primary takes writes, also while somebody has paused them here.
    pub(crate) fn takes_writes(&self) -> bool {
        self.allowed_for(Purpose::Write).is_some_and(Member::is_up)
    }

    /// Whether a write can be sent somewhere now.
    pub(crate) fn lets_writes_pass(&self) -> bool {
        self.takes_writes() && !self.is_paused()
    }

    /// The primary, if it may be used for this purpose, and nobody has paused that.
    pub(crate) fn primary_for(&self, purpose: Purpose) -> Option<&Member> {
        let paused = self.is_paused() && purpose == Purpose::Write;
        self.allowed_for(purpose).filter(|_| !paused)
    }

    fn allowed_for(&self, purpose: Purpose) -> Option<&Member> {
        let passes = match self.gate {
            Gate::Open => true,
            Gate::Held => false,
            // Without a majority a read may be old, but it loses nothing.
            Gate::Unasked | Gate::NoQuorum { .. } => purpose == Purpose::Read,
        };
        // A fenced primary is the primary, so it serves reads.
        let primary = self.primary().filter(|_| passes);
        primary.filter(|member| !member.fenced || purpose != Purpose::Write)
    }

    /// Whether somebody has paused new writes.
    pub(crate) fn is_paused(&self) -> bool {
        self.paused_until.is_some()
    }

    /// Returns the next topology, with new writes paused until then, or going on.
    pub(super) fn paused(&self, until: Option<Instant>) -> Self {
        Self {
            epoch: self.epoch + 1,
            paused_until: until,
            ..self.clone()
        }
    }

    /// Whether there was a primary, and none is there now. A fenced primary is there.
    #[cfg(feature = "promotion")]
    pub(crate) fn has_lost_its_primary(&self) -> bool {
        let passes = matches!(self.gate, Gate::Open | Gate::Unasked);
        let there = passes && self.primary().is_some_and(Member::is_up);
        self.past.began && !self.members.is_empty() && !there
    }

    /// Whether every node has been asked at least once, and the catalog too if any node is up.
    pub(crate) fn is_settled(&self) -> bool {
        let nobody_to_ask = !self.members.iter().any(Member::is_of_use);
        self.is_asked() && (self.catalog_asked || nobody_to_ask)
    }

    /// Whether every node has been asked at least once.
    pub(crate) fn is_asked(&self) -> bool {
        let mut members = self.members.iter();
        members.all(|member| member.health.is_asked())
    }

    pub(crate) fn member(&self, node: &Arc<Node>) -> Option<&Member> {
        self.members
            .iter()
            .find(|member| Arc::ptr_eq(&member.node, node))
    }

    pub(crate) fn named(&self, name: &str) -> Option<&Member> {
        self.members.iter().find(|member| member.node.name == name)
    }

    /// The name of the node at this address, or the address itself.
    pub(crate) fn name_at(&self, address: &str) -> String {
        let at = |member: &&Member| member.node.pool.connector().settings.host.is_at(address);
        let found = self.members.iter().find(at);
        found.map_or_else(|| address.to_owned(), |member| member.node.name.clone())
    }

    /// Whether a read can be sent to this node now.
    pub(crate) fn serves_reads(&self, member: &Member) -> bool {
        if member.kind() == Some(NodeKind::Primary) {
            return self.primary_for(Purpose::Read).is_some() && member.is_up();
        }
        member.is_usable_replica() && member.is_trusted()
    }

    /// The same if all reads are kept on the primary.
    pub(crate) fn takes_reads_if(&self, on_primary: bool) -> bool {
        if !on_primary {
            return self.takes_reads();
        }
        let primary = self.primary();
        primary.is_some_and(|primary| self.serves_reads(primary))
    }

    /// Whether a read can be sent somewhere now.
    pub(crate) fn takes_reads(&self) -> bool {
        let mut members = self.members.iter();
        members.any(|member| self.serves_reads(member))
    }

    pub(crate) fn describe(&self) -> Vec<String> {
        let paused = self.is_paused().then(|| "new writes are paused".to_owned());
        let members = self.members.iter().map(Member::describe);
        members.chain(paused).collect()
    }

    /// The nodes that take writes, if it cannot be told which of them is the primary.
    pub(crate) fn rivals(&self) -> Vec<String> {
        let rival = |member: &&Member| {
            matches!(member.standing, Standing::Rival | Standing::Candidate)
                && member.role == Some(ServerRole::Primary)
                && member.is_up()
        };
        let rivals = self.members.iter().filter(rival);
        rivals.map(|member| member.node.name.clone()).collect()
    }

    /// Returns the next topology, after the catalog was asked for.
    pub(crate) fn with_catalog_asked(&self) -> Self {
        Self {
            catalog_asked: true,
            ..self.clone()
        }
    }

    /// Returns the next topology with the gate set to `gate`.
    pub(crate) fn gated(&self, gate: Gate) -> Self {
        let mut next = self.clone();
        next.close(gate);
        next
    }

    /// Sets the gate.
    pub(super) fn close(&mut self, gate: Gate) {
        if gate != self.gate {
            self.gate = gate;
            self.epoch += 1;
        }
    }

    /// Returns the next topology, with `change` made to the members.
    pub(crate) fn changed(&self, change: impl FnOnce(&mut Vec<Member>)) -> Self {
        let mut next = self.clone();
        change(&mut next.members);
        next.epoch += 1;
        next.elect(self.primary().map(|member| &member.node));
        next
    }

    /// Returns the next topology, with `change` made to one member.
    pub(crate) fn with(&self, node: &Arc<Node>, change: impl FnOnce(&mut Member)) -> Self {
        self.changed(|members| {
            let mut members = members.iter_mut();
            if let Some(member) = members.find(|member| Arc::ptr_eq(&member.node, node)) {
                change(member);
            }
        })
    }

    fn elect(&mut self, primary: Option<&Arc<Node>>) {
        self.identities.tell(&mut self.members, primary);
        let sights: Vec<Sight> = self.members.iter().map(Member::sight).collect();
        let place = primary.and_then(|node| {
            let is_it = |member: &Member| Arc::ptr_eq(&member.node, node);
            self.members.iter().position(is_it)
        });
        let past = Past {
            primary: place,
            ..self.past
        };
        let elected = elect(&sights, past);
        if elected.past.newest != self.past.newest {
            self.timeline_since = Some(Instant::now());
        }
        for (member, standing) in self.members.iter_mut().zip(elected.standings) {
            member.standing = standing;
        }
        self.past = elected.past;
    }
}
