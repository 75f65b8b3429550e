//! What the caller is told when a connection breaks under a statement.

use std::sync::{Arc, Weak};

use crate::cluster::Cluster;
use crate::error::{Error, Outcome};
use crate::node::{Failure, Lease};

/// The error for a statement whose connection was lost, if it was; the manager is told.
pub(super) fn lost(
    cluster: &Weak<Cluster>,
    lease: &Arc<Lease>,
    failure: &Failure,
    outcome: Outcome,
) -> Option<diesel::result::Error> {
    let cause = failure.lost.clone()?;
    let node = lease.node();
    if let Some(cluster) = cluster.upgrade().filter(|_| !failure.ours) {
        // One connection's end is no proof: the node is asked.
        cluster.suspect(node, cause.clone());
    }
    tracing::warn!(target: "diesel_replicated", node = node.name, cause, outcome = outcome.as_str(), "connection_lost");
    Some(
        Error::ConnectionLost {
            node: node.name.clone(),
            cause,
            outcome,
        }
        .into(),
    )
}
