//! Which of the nodes that can serve a read serves it: by weight, by zone, by health, by the policy.

use std::sync::Arc;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::ReplicatedConnection;
use super::reading::Reading;
use crate::cluster::{Member, Topology, lag};
use crate::config::HealthConfig;
use crate::consistency::WriteLog;
use crate::node::{Node, NodePool};
use crate::route::{NodeKind, RouteReason};
use crate::routing::{Candidate, Figures, select};

/// Up to this many nodes a choice takes no memory of its own.
pub(super) const FEW_NODES: usize = 8;

/// The nodes that can serve a read.
pub(super) type Members<'t> = SmallVec<[&'t Member; FEW_NODES]>;

/// How long a read waits for a busy node at the most while one is free that the policy would rather not take, if it is not
/// known how long that one takes.
const PATIENCE: Duration = Duration::from_secs(1);

/// Which replicas may serve a read because all connections of the chosen one are in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StandIns {
    /// Those that the policy lets.
    Willing,
    /// Any that is as near: the wait has taken longer than a read takes there.
    Any,
}

/// The replicas that are as near as the chosen one, and can serve the read.
pub(super) struct Others<'t> {
    willing: Members<'t>,
    /// Those that the policy would rather not take.
    unwilling: Members<'t>,
}

impl<'t> Others<'t> {
    pub(super) fn which(&self, which: StandIns) -> impl Iterator<Item = &'t Member> {
        let unwilling = self
            .unwilling
            .iter()
            .filter(move |_| which == StandIns::Any);
        self.willing.iter().chain(unwilling).copied()
    }

    /// How long to wait for a busy node before one is taken that the policy would rather not take: as long as a read takes
    /// there. `None` if there is no such one.
    pub(super) fn patience(&self, now: Instant) -> Option<Duration> {
        let takes = |it: &&Member| it.node.pace.latency(now).unwrap_or(PATIENCE);
        self.unwilling.iter().map(takes).min()
    }
}

impl ReplicatedConnection {
    /// Whether reads that went there may go on going there.
    pub(super) fn may_stay(
        &self,
        topology: &Topology,
        member: &Member,
        reading: &Reading<'_>,
    ) -> bool {
        self.qualifies(member, reading)
            && member.is_preferred(&self.cluster.config.health)
            && !self.is_nearer_there(topology, member, reading)
    }

    /// Whether a node of a nearer zone can serve the read. One of weight 0 waits until no other can.
    pub(super) fn is_nearer_there(
        &self,
        topology: &Topology,
        member: &Member,
        reading: &Reading<'_>,
    ) -> bool {
        let nearer =
            |other: &Member| other.node.distance < member.node.distance && other.weight() > 0;
        if member.node.distance == 0 {
            return false;
        }
        let mut replicas = reading.replicas(topology);
        replicas.any(|other| nearer(other) && self.qualifies(other, reading))
            || Self::reading_primary(topology, reading).is_some_and(nearer)
    }

    /// The primary, if it takes part in reads by its weight.
    fn reading_primary<'t>(topology: &'t Topology, reading: &Reading<'_>) -> Option<&'t Member> {
        let primary = topology.primary()?;
        let takes_part = primary.weight() > 0
            && reading.reason != RouteReason::Forced
            && primary.is_of_use()
            && reading.may_try(primary);
        takes_part.then_some(primary)
    }

    /// The replicas that may stand in for the chosen one. One of weight 0, or of a zone further away, waits until the others
    /// cannot serve at all.
    pub(super) fn others<'t>(
        &self,
        topology: &'t Topology,
        first: &Arc<Node>,
        reading: &Reading<'_>,
    ) -> Others<'t> {
        let (mut willing, mut unwilling) = (Members::new(), Members::new());
        let Some(chosen) = topology.member(first) else {
            return Others { willing, unwilling };
        };
        let rank = |it: &Member| (it.weight() == 0, it.node.distance);
        let alike = |it: &&Member| rank(it) == rank(chosen) && self.qualifies(it, reading);
        let members: Members<'t> = reading.replicas(topology).filter(alike).collect();
        let looks: SmallVec<[Look<'_>; FEW_NODES]> = members
            .iter()
            .map(|it| Look(it, &self.cluster.write_log))
            .collect();
        let candidates: SmallVec<[Candidate<'_>; FEW_NODES]> = looks
            .iter()
            .map(|look| self.candidate(look, reading.started))
            .collect();
        for (member, candidate) in members.iter().zip(&candidates) {
            if Arc::ptr_eq(&member.node, first) {
                continue;
            }
            match self.cluster.policy.stands_in(candidate, &candidates) {
                true => willing.push(member),
                false => unwilling.push(member),
            }
        }
        Others { willing, unwilling }
    }

    /// What a policy is told of a node at this moment.
    fn candidate<'c>(&self, look: &'c Look<'_>, now: Instant) -> Candidate<'c> {
        let Look(member, _) = look;
        let node = &member.node;
        let weight = member.weight();
        Candidate {
            name: &node.name,
            weight,
            in_flight: node.load(),
            latency: node.pace.latency(now),
            zone: node.zone.as_deref(),
            tags: &node.tags,
            distance: node.distance,
            is_last: weight == 0,
            figures: look,
        }
    }

    /// The member that the policy chooses for a read. The primary takes part by its weight.
    pub(super) fn pick<'t>(
        &self,
        topology: &'t Topology,
        reading: &Reading<'_>,
    ) -> Option<&'t Member> {
        // Loops, because `collect` and `extend` of a `SmallVec` cost more than all the rest.
        let mut members = Members::new();
        for member in reading.replicas(topology) {
            if self.qualifies(member, reading) {
                members.push(member);
            }
        }
        if members.is_empty() {
            return None;
        }
        if let Some(primary) = Self::reading_primary(topology, reading) {
            members.push(primary);
        }
        let place = self.choose(&members, reading.started)?;
        members.get(place).copied()
    }

    /// The place of the one that the policy chooses at this moment.
    pub(super) fn choose(&self, members: &[&Member], now: Instant) -> Option<usize> {
        if let [_] = members {
            return Some(0);
        }
        let sound = members.iter().all(|member| member.health.is_sound());
        let mut looks = SmallVec::<[Look<'_>; FEW_NODES]>::new();
        for member in members {
            looks.push(Look(member, &self.cluster.write_log));
        }
        let mut candidates = SmallVec::<[Candidate<'_>; FEW_NODES]>::new();
        for look in &looks {
            let candidate = self.candidate(look, now);
            candidates.push(match sound {
                true => candidate,
                false => Candidate {
                    weight: reduced(look.0, &self.cluster.config.health),
                    ..candidate
                },
            });
        }
        select(&candidates, &*self.cluster.policy, &mut || {
            self.cluster.draws.next()
        })
    }
}

/// The node to wait for: `first`, unless its pool is full and another's can still grow.
pub(super) fn with_room<'t>(
    topology: &Topology,
    first: Arc<Node>,
    mut others: impl Iterator<Item = &'t Member>,
    reading: &Reading<'_>,
) -> Arc<Node> {
    let can_grow = |member: &Member| {
        let pool = member.node.pool_of(reading.lane());
        pool.is_some_and(NodePool::can_grow) && member.health.hindrance().is_none()
    };
    if topology.member(&first).is_none_or(can_grow) {
        return first;
    }
    let growing = others.find(|member| can_grow(member));
    growing.map_or(first, |member| Arc::clone(&member.node))
}

/// What a policy may ask of a candidate.
#[derive(Debug)]
struct Look<'a>(&'a Member, &'a WriteLog);

impl Figures for Look<'_> {
    fn round_trip(&self) -> Option<Duration> {
        self.0.reports.round_trip()
    }

    fn lag(&self) -> Option<Duration> {
        let is_replica = self.0.kind() == Some(NodeKind::Replica);
        lag(self.0, self.1).1.filter(|_| is_replica)
    }
}

/// The weight that counts while some candidate has a reduced share: in thousandths.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "at most 1000 times the largest weight"
)]
fn reduced(member: &Member, health: &HealthConfig) -> u32 {
    (f64::from(member.weight()) * member.share(health) * 1000.0).ceil() as u32
}
