//! What a statement reports when it comes to its end, and what its caller is told of a connection that broke.

use std::sync::{Arc, Weak};

use super::pending_write::PendingWrite;
use crate::cluster::Cluster;
use crate::error::{Error, Outcome};
use crate::node::{Failure, Lease};

/// What is to be done when a statement comes to its end.
#[derive(Debug)]
pub(super) struct Report {
    /// Whom to tell of a connection that breaks.
    pub(super) cluster: Weak<Cluster>,
    /// What to tell the caller then.
    pub(super) outcome_if_lost: Outcome,
    pub(super) pending_write: Option<PendingWrite>,
}

impl Report {
    pub(super) fn acknowledged(self) {
        if let Some(pending_write) = self.pending_write {
            pending_write.acknowledged();
        }
    }
}

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
