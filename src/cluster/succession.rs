//! What follows when a node becomes something else among the others: who is told, and whose
//! connections end.

use std::sync::Arc;

use super::member::Member;
use super::topology::Topology;
use crate::election::Standing;

/// Comes after `after` was published: whoever takes a connection from now on, looks there.
///
/// What was opened to a node while it was the primary must not run one more statement once another
/// is, or may be.
pub(super) fn follow(before: &Topology, after: &Topology) {
    let of = |topology: &Topology| topology.primary().map(|member| Arc::clone(&member.node));
    let (old, new) = (of(before), of(after));
    let same = match (&old, &new) {
        (Some(old), Some(new)) => Arc::ptr_eq(old, new),
        (None, None) => true,
        _ => false,
    };
    if !same {
        let name = |node: &Option<Arc<_>>| {
            node.as_ref()
                .map(|node: &Arc<crate::node::Node>| node.name.clone())
        };
        let timeline = after.primary().map(|member| member.timeline);
        tracing::warn!(
            target: "diesel_replicated",
            from = name(&old), to = name(&new), timeline, "primary_changed"
        );
    }
    for member in &after.members {
        let earlier = before.member(&member.node);
        let was = earlier.map_or(Standing::Unknown, |earlier| earlier.standing);
        if was != member.standing {
            // One that was only expected to be the primary has ruled over nothing.
            let ruled =
                was == Standing::Primary && earlier.is_some_and(|earlier| earlier.role.is_some());
            changed(ruled, member);
        }
        if member.stray && !earlier.is_some_and(|earlier| earlier.stray) {
            tracing::warn!(target: "diesel_replicated", node = member.describe(), "replica_stray");
        }
    }
}

fn changed(ruled: bool, member: &Member) {
    let node = member.describe();
    match member.standing {
        Standing::Superseded { .. } => {
            tracing::error!(target: "diesel_replicated", node, "primary_superseded");
        }
        Standing::Rival => tracing::error!(target: "diesel_replicated", node, "two_primaries"),
        Standing::Foreign => tracing::error!(target: "diesel_replicated", node, "node_unused"),
        _ => {}
    }
    let useless = matches!(
        member.standing,
        Standing::Superseded { .. } | Standing::Rival | Standing::Foreign
    );
    if ruled || useless {
        let cause = format!("it is no longer the primary: {}", member.describe());
        member.node.pool.connector().end_generation(cause);
    }
}
