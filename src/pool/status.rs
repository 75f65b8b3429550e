//! Puts together what a pool tells of itself.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::cluster::{Cluster, Kept, Member, Topology, degraded, lag, remedy};
use crate::config::Routing;
use crate::consistency::Stage;
use crate::node::{self, Facts, Lane, Place};
use crate::position::Position;
use crate::route::NodeKind;
use crate::status::{
    Degradation, Degraded, FarReads, FollowingState, KeptOnPrimary, Limit, NodeStatus, PoolStatus,
    PromotionStatus, RoutingStatus, TaggedConnections,
};

pub(super) fn of(cluster: &Cluster) -> PoolStatus {
    let topology = cluster.topology();
    let synchronous_standbys = cluster.write_log.with(|view| view.synchronous_standbys);
    let synchronous_standbys = synchronous_standbys.unwrap_or_default();
    let takes_writes = topology.lets_writes_pass();
    let nodes = topology.members.iter();
    let (learned, promotion) = (cluster.learned(), cluster.promotion());
    PoolStatus {
        nodes: nodes
            .map(|member| node(member, &topology, &promotion, cluster))
            .collect(),
        primary_is_far: topology.primary().is_some_and(|it| it.node.distance > 0),
        primary: topology.primary().map(|member| member.node.name.clone()),
        cluster: topology.cluster(),
        timeline: topology.timeline(),
        takes_writes,
        takes_reads: topology.takes_reads_if(cluster.routing() == Routing::Observe),
        connections_out: cluster.tracker.out(),
        synchronous_standbys,
        remote_apply_covers_replicas: synchronous_standbys >= topology.replicas().count(),
        degraded: {
            let zones = &cluster.config.prefer_zones;
            let mut all = degraded(&topology, zones, &promotion, learned.len());
            let cause = cluster.discovery();
            all.extend(cause.map(|cause| Degraded::of_pool(Degradation::Discovery, cause)));
            all
        },
        routing: routing(cluster),
        learned,
        promotion,
        closed: cluster.is_closed(),
        epoch: topology.epoch,
    }
}

/// How many causes are named.
const NAMED: usize = 10;

fn routing(cluster: &Cluster) -> RoutingStatus {
    let mut counted = cluster.tally.counted();
    counted
        .kept
        .sort_by_key(|(what, count)| (Reverse(*count), *what));
    counted.kept.truncate(NAMED);
    let named = |((reason, cause), count): (Kept, u64)| {
        let name = cause.and_then(|cause| cluster.classifier.name_of(cause));
        KeptOnPrimary::from((reason, name, count))
    };
    RoutingStatus {
        mode: cluster.routing(),
        on_replicas: counted.on_replicas,
        could_move: counted.could_move,
        could_not_yet: counted.could_not_yet,
        far: {
            counted.far.sort_unstable();
            let far = counted.far.iter();
            far.map(|(zone, count)| FarReads::new(zone.as_deref(), *count))
                .collect()
        },
        kept_on_primary: counted.kept.into_iter().map(named).collect(),
    }
}

/// Why it is not up, or does not do all that it could, and what mends that.
fn cause(member: &Member, topology: &Topology, promotion: &PromotionStatus) -> Option<String> {
    let mut following = promotion.following.iter();
    let left = following
        .find(|it| it.node == member.node.name && it.state == FollowingState::Left)
        .and_then(|it| it.cause.clone());
    let remedy = remedy(member, topology).filter(|_| left.is_none());
    let parts = [member.health.cause(), left, remedy];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

fn node(
    member: &Member,
    topology: &Topology,
    promotion: &PromotionStatus,
    cluster: &Cluster,
) -> NodeStatus {
    let pool = member.node.pool.state();
    let last = member.reports.last();
    let facts = last.facts.as_deref();
    let (lag_bytes, lag) = match member.kind() {
        Some(NodeKind::Replica) => lag(member, &cluster.write_log),
        _ => (None, None),
    };
    let upstream = member.sender.as_deref();
    NodeStatus {
        name: member.node.name.clone(),
        kind: member.kind(),
        standing: member.what(),
        health: member.health.kind(),
        serves_reads: topology.serves_reads(member),
        serves_writes: topology.lets_writes_pass() && member.kind() == Some(NodeKind::Primary),
        cause: cause(member, topology, promotion),
        transitions: member.transitions.to_vec(),
        timeline: Some(member.timeline).filter(|timeline| *timeline != 0),
        position: facts.and_then(|facts| position(facts, member.timeline)),
        received: member
            .reports
            .at(Stage::Received)
            .filter(|_| member.kind() == Some(NodeKind::Replica)),
        lag_bytes,
        lag,
        upstream: upstream.map(|address| topology.name_at(address)),
        receiving: facts.and_then(receiving),
        replay_paused: member.paused,
        diverged: member.diverged,
        limited: last.limits.iter().map(limit).collect(),
        monitor_error: last.error.as_deref().map(str::to_owned),
        version: facts
            .map(|facts| facts.version)
            .filter(|number| *number != 0)
            .map(version),
        servers: member.servers(),
        round_trip: last.round_trip,
        weight: member.weight(),
        zone: member.node.zone.as_deref().map(str::to_owned),
        distance: member.node.distance,
        tags: member.node.tags.clone(),
        tagged: tagged(member, cluster),
        connections: pool.connections,
        idle_connections: pool.idle_connections,
        max_size: member.node.pool.max_size(),
        in_flight: member.node.in_flight(),
    }
}

fn tagged(member: &Member, cluster: &Cluster) -> BTreeMap<String, TaggedConnections> {
    let tagged = &cluster.config.tagged;
    let of = |tag: &String| {
        let pool = member.node.pool_of(Lane::of(tag, tagged)?)?;
        let state = pool.state();
        let open =
            TaggedConnections::new(state.connections, state.idle_connections, pool.max_size());
        Some((tag.clone(), open))
    };
    tagged.keys().filter_map(of).collect()
}

/// `None` if it may not be asked.
fn position(facts: &Facts, timeline: u32) -> Option<Position> {
    let lsn = match facts.place {
        Place::Primary { flushed, .. } => flushed?,
        Place::Standby { replayed, .. } => replayed?,
    };
    let timeline = match facts.timeline {
        0 => timeline,
        told => told,
    };
    (timeline != 0).then_some(Position::new(timeline, lsn))
}

fn limit(limit: &node::MissingRight) -> Limit {
    let node::MissingRight {
        right,
        costs,
        grant,
        hides_replay: _,
    } = limit.clone();
    Limit::new(right, costs.to_owned(), grant)
}

fn receiving(facts: &Facts) -> Option<bool> {
    match facts.place {
        Place::Primary { .. } => None,
        Place::Standby { receives, .. } => receives,
    }
}

/// `150018` is 15.18.
fn version(number: u32) -> String {
    format!("{}.{}", number / 10_000, number % 10_000)
}

#[cfg(test)]
mod tests {
    #[test]
    fn versions_are_as_postgresql_writes_them() {
        assert_eq!(super::version(150_018), "15.18");
        assert_eq!(super::version(180_006), "18.6");
    }
}
