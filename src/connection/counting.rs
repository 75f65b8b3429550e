//! What is counted of a statement: where it went, and what has kept it on the primary.

use super::ReplicatedConnection;
use super::execution::{Execution, Went};
use crate::classify::Verdict;
use crate::route::{NodeKind, RouteReason};

impl ReplicatedConnection {
    /// Counts a statement that has succeeded.
    pub(super) fn count(&self, execution: &Execution) {
        let Some(went) = execution.went else {
            return;
        };
        let tally = &self.cluster.tally;
        match (went.kind, went.held_back) {
            (NodeKind::Replica, _) => tally.on_replica(),
            (NodeKind::Primary, Some(ready)) => tally.held_back(ready),
            (NodeKind::Primary, None) if keeps_a_read(went, execution.verdict) => {
                let verdict = execution.verdict;
                let cause = verdict.cause.filter(|_| verdict.reason == went.reason);
                tally.kept((went.reason, cause));
            }
            (NodeKind::Primary, None) => {}
        }
    }
}

/// Whether a statement on the primary is one that could be elsewhere, but for something that the application or its
/// operator may change.
fn keeps_a_read(went: Went, verdict: Verdict) -> bool {
    match went.reason {
        RouteReason::Write | RouteReason::TransactionControl | RouteReason::PrimaryWeight => false,
        RouteReason::InTransaction | RouteReason::Forced => {
            verdict.reason == RouteReason::PlainSelect
        }
        _ => true,
    }
}
