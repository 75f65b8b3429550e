//! What a statement reports when it comes to its end.

use std::sync::Weak;

use super::pending_write::PendingWrite;
use crate::cluster::Cluster;
use crate::error::Outcome;

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
