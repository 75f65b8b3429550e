//! What a statement reports at its end, and the error for a connection that broke.

use std::sync::{Arc, Weak};
use std::time::Instant;

use super::pending_write::PendingWrite;
use super::spans::Spans;
use crate::cluster::Cluster;
use crate::error::{Error, Outcome};
use crate::node::{Failure, Lease};

/// What is to be done at the end of a statement.
#[derive(Debug)]
pub(super) struct Report {
    /// Whom to tell of a connection that breaks.
    pub(super) cluster: Weak<Cluster>,
    /// The outcome in that case.
    pub(super) outcome_if_lost: Outcome,
    pub(super) pending_write: Option<PendingWrite>,
    /// When the statement began.
    pub(super) started: Instant,
    /// They are at their end with the report.
    pub(super) spans: Option<Box<Spans>>,
}

impl Report {
    pub(super) fn acknowledged(self) {
        if let Some(pending_write) = self.pending_write {
            pending_write.acknowledged();
        }
    }
}

/// The error for a statement whose connection was lost, if it was. The manager hears of it.
pub(super) fn lost(
    cluster: &Weak<Cluster>,
    lease: &Arc<Lease>,
    failure: &Failure,
    outcome: Outcome,
) -> Option<diesel::result::Error> {
    let cause = failure.lost.clone()?;
    let node = lease.node();
    if let Some(cluster) = cluster.upgrade().filter(|_| !failure.ours) {
        // The end of one connection is no proof. The manager checks the node.
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
