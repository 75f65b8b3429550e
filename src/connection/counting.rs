//! What is counted of a statement: where it went, and what has kept it on the primary.

use diesel::QueryResult;

use super::ReplicatedConnection;
use super::execution::Execution;
use crate::classify::Verdict;
use crate::error::{ErrorExt, SqlState};
use crate::metrics::{self, Route as Went};
use crate::node::Node;
use crate::route::{NodeKind, RouteReason};

impl ReplicatedConnection {
    /// Counts a statement that has succeeded on this node.
    pub(super) fn count(&self, execution: &Execution, node: &Node) {
        let Some(went) = execution.went else {
            return;
        };
        if metrics::is_recording() {
            node.meter.succeeded(went, execution.started.elapsed());
        }
        let tally = &self.cluster.tally;
        match (went.kind, went.held_back) {
            (NodeKind::Replica, _) => tally.on_replica(),
            (NodeKind::Primary, Some(ready)) => tally.held_back(ready),
            // Its transaction was counted.
            (NodeKind::Primary, None) if self.is_in_held_back_transaction() => {}
            (NodeKind::Primary, None) if keeps_a_read(went, execution.verdict) => {
                let verdict = execution.verdict;
                let cause = match went.reason {
                    reason if reason == verdict.reason => verdict.cause,
                    RouteReason::SessionState => self.session().pinned_by,
                    _ => None,
                };
                tally.kept((went.reason, cause));
            }
            (NodeKind::Primary, None) => {}
        }
    }

    fn is_in_held_back_transaction(&self) -> bool {
        let session = self.session();
        let transaction = session.transaction.as_ref();
        transaction.is_some_and(|transaction| transaction.held_back)
    }

    /// Counts a statement if it has failed.
    pub(super) fn counted<T>(
        &self,
        execution: &Execution,
        result: QueryResult<T>,
    ) -> QueryResult<T> {
        if let (Err(_), Some(spans)) = (&result, &execution.spans) {
            spans.refused(execution.sqlstate);
        }
        if let Some(error) = result.as_ref().err().filter(|_| metrics::is_recording()) {
            let took = execution.started.elapsed();
            let sqlstate = execution.sqlstate.as_ref().map(SqlState::as_str);
            // Not the session's last route: another statement may be on its way.
            let node = execution.node.as_ref().map(|node| &*node.meter);
            metrics::failed(node, sqlstate, error.outcome(), took);
        }
        result
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
