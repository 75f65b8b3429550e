//! Choosing among the nodes that can serve a read: by weight, and by how they are.

use std::sync::Arc;

use super::ReplicatedConnection;
use super::reading::Reading;
use crate::cluster::{Member, Topology};
use crate::config::HealthConfig;
use crate::node::Node;
use crate::route::NodeKind;
use crate::routing::{Candidate, select};

impl ReplicatedConnection {
    /// Whether reads that went there may go on going there.
    pub(super) fn may_stay(&self, member: &Member, reading: &Reading<'_>) -> bool {
        self.qualifies(member, reading) && member.is_preferred(&self.cluster.health)
    }

    /// The member that the policy chooses for a read; the primary takes part by its weight.
    pub(super) fn pick<'t>(
        &self,
        topology: &'t Topology,
        reading: &Reading<'_>,
    ) -> Option<&'t Member> {
        let forced = self.session().forced == Some(NodeKind::Replica);
        let primary = topology.primary().filter(|member| {
            member.weight() > 0 && !forced && member.is_of_use() && reading.may_try(member)
        });
        let mut members: Vec<&Member> = topology
            .usable_replicas()
            .filter(|member| self.qualifies(member, reading))
            .collect();
        if members.is_empty() {
            return None;
        }
        members.extend(primary);
        if let [only] = members[..] {
            return Some(only);
        }
        let sound = members.iter().all(|member| member.health.is_sound());
        let candidates: Vec<Candidate<'_>> = members
            .iter()
            .map(|member| Candidate {
                name: &member.node.name,
                weight: weight(member, sound, &self.cluster.health),
                in_flight: member.node.in_flight(),
                tags: &member.node.tags,
            })
            .collect();
        let place = select(&candidates, &*self.cluster.policy, &mut rand::random)?;
        members.get(place).copied()
    }

    /// The node to wait for: `first`, unless its pool is full and another's can still grow.
    pub(super) fn with_room(
        &self,
        topology: &Topology,
        first: Arc<Node>,
        reading: &Reading<'_>,
    ) -> Arc<Node> {
        let can_grow =
            |member: &Member| member.node.pool.can_grow() && !member.health.is_hindered();
        if topology.member(&first).is_none_or(can_grow) {
            return first;
        }
        let mut others = topology
            .usable_replicas()
            .filter(|member| can_grow(member) && self.qualifies(member, reading));
        others
            .next()
            .map_or(first, |member| Arc::clone(&member.node))
    }
}

/// Its weight as it counts now: in thousandths, where one of the candidates has less than its own.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "at most 1000 times the largest weight"
)]
fn weight(member: &Member, sound: bool, health: &HealthConfig) -> u32 {
    if sound {
        return member.weight();
    }
    (f64::from(member.weight()) * member.share(health) * 1000.0).ceil() as u32
}
