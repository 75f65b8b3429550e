//! What follows when nodes become something else: who is told, and whose connections end.

use std::sync::Arc;
use std::time::SystemTime;

use super::member::Member;
use super::topology::Topology;
use crate::election::Standing;
use crate::node::Node;
use crate::status::{Event, EventBus, NodeHealth};
use crate::wire::ServerRole;

/// Comes after `after` was published: whoever takes a connection from now on, looks there.
///
/// What was opened to a node while it was the primary must not run one more statement once another
/// is, or may be.
pub(super) fn follow(before: &Topology, after: &Topology, event_bus: &EventBus) {
    let of = |topology: &Topology| topology.primary().map(|member| Arc::clone(&member.node));
    let (old, new) = (of(before), of(after));
    if !same(old.as_ref(), new.as_ref()) {
        let name = |node: Option<&Arc<Node>>| node.map(|node| node.name.clone());
        let (from, to) = (name(old.as_ref()), name(new.as_ref()));
        let timeline = after.primary().map(|member| member.timeline);
        if before.began() {
            tracing::warn!(target: "diesel_replicated", from, to, timeline, "primary_changed");
        } else {
            tracing::info!(target: "diesel_replicated", from, to, timeline, "primary_changed");
        }
        event_bus.ring(Event::PrimaryChanged {
            at: SystemTime::now(),
            from,
            to,
            timeline,
        });
    }
    if let (Some(from), Some(to)) = (before.cluster(), after.cluster()) {
        if from != to {
            tracing::warn!(target: "diesel_replicated", from, to, "cluster_replaced");
            event_bus.ring(Event::ClusterReplaced {
                at: SystemTime::now(),
                from,
                to,
            });
        }
    }
    for member in &after.members {
        if let Some(earlier) = before.member(&member.node) {
            let goes_on = goes_on(earlier, member, after);
            compare(earlier, member, after, goes_on, event_bus);
            let is_twin = |member: &Member| member.standing == Standing::Twin;
            let went_on = same(earlier.twin.as_ref(), old.as_ref());
            if is_twin(earlier) && is_twin(member) && went_on && !goes_on {
                end_connections(member);
            }
        }
    }
}

/// Whether what runs on a node's connections may go on although another name of its server is used now: the server
/// is still the primary, and this name has led to no other one.
fn goes_on(earlier: &Member, member: &Member, after: &Topology) -> bool {
    let primary = after.primary().map(|primary| &primary.node);
    let used = member.standing == Standing::Twin && same(member.twin.as_ref(), primary);
    if earlier.standing == Standing::Twin {
        used && same(earlier.twin.as_ref(), member.twin.as_ref())
    } else {
        used && member.run.is_some() && earlier.run == member.run
    }
}

fn same(one: Option<&Arc<Node>>, other: Option<&Arc<Node>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        _ => false,
    }
}

fn compare(
    earlier: &Member,
    member: &Member,
    after: &Topology,
    goes_on: bool,
    event_bus: &EventBus,
) {
    let (at, node) = (SystemTime::now(), member.node.name.clone());
    let (from, to) = (earlier.health.kind(), member.health.kind());
    if from != to {
        let cause = member.health.cause();
        let came = matches!(from, NodeHealth::Unknown | NodeHealth::Down) && to == NodeHealth::Up;
        if to == NodeHealth::Orphaned {
            tracing::warn!(target: "diesel_replicated", node, cause, "replica_orphaned");
        } else if to != NodeHealth::Down && !came {
            // Those two are told where the node was looked at.
            let (from, to) = (from.to_string(), to.to_string());
            tracing::info!(target: "diesel_replicated", node, from, to, cause, "node_changed");
        }
        let node = node.clone();
        event_bus.ring(Event::NodeChanged {
            at,
            node,
            from,
            to,
            cause,
        });
    }
    if earlier.standing != member.standing {
        // One that was only expected to be the primary has ruled over nothing.
        let ruled = earlier.standing == Standing::Primary && earlier.role.is_some();
        depose(ruled, goes_on, member);
        let standing = member.what();
        tracing::info!(target: "diesel_replicated", node, standing, "standing_changed");
        event_bus.ring(Event::StandingChanged {
            at,
            node: node.clone(),
            standing,
        });
    }
    if earlier.fenced != member.fenced && member.role == Some(ServerRole::Primary) {
        tracing::warn!(target: "diesel_replicated", node, fenced = member.fenced, "primary_fenced");
        event_bus.ring(Event::StandingChanged {
            at,
            node: node.clone(),
            standing: member.what(),
        });
    }
    let feed = |member: &Member| (member.sender.clone(), member.paused, member.diverged);
    // A primary receives from nobody, which is no news.
    if feed(earlier) != feed(member) && member.role == Some(ServerRole::Standby) {
        if member.diverged && !earlier.diverged {
            tracing::warn!(target: "diesel_replicated", node = member.describe(), "replica_diverged");
        }
        let address = member.sender.as_deref();
        let upstream = address.map(|address| after.name_at(address));
        let paused = member.paused;
        tracing::info!(target: "diesel_replicated", node, upstream, paused, "replication_changed");
        event_bus.ring(Event::ReplicationChanged {
            at,
            node,
            upstream,
            replay_paused: member.paused,
            diverged: member.diverged,
        });
    }
}

/// Ends the connections to a node that must not be used any more.
fn depose(ruled: bool, goes_on: bool, member: &Member) {
    let (node, reason) = (&member.node.name, member.describe());
    match member.standing {
        // One that is down can do no harm yet.
        Standing::Superseded { .. } if !member.is_up() => {
            tracing::warn!(target: "diesel_replicated", node, reason, "primary_superseded");
        }
        Standing::Superseded { .. } => {
            tracing::error!(target: "diesel_replicated", node, reason, "primary_superseded");
        }
        Standing::Rival => {
            tracing::error!(target: "diesel_replicated", node, reason, "two_primaries");
        }
        Standing::Foreign | Standing::Twin | Standing::Elsewhere => {
            tracing::error!(target: "diesel_replicated", node, reason, "node_unused");
        }
        _ => {}
    }
    let useless = matches!(
        member.standing,
        Standing::Superseded { .. }
            | Standing::Rival
            | Standing::Foreign
            | Standing::Twin
            | Standing::Elsewhere
    );
    if (ruled || useless) && !goes_on {
        end_connections(member);
    }
}

fn end_connections(member: &Member) {
    let cause = format!("it is no longer the primary: {}", member.describe());
    member.node.pool.connector().end_generation(cause);
}
