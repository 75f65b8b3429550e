//! What is counted of a statement: where it went, and what has kept it on the primary.

use diesel::QueryResult;

use super::ReplicatedConnection;
use super::action::Action;
use super::execution::Execution;
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
        let reads = execution.verdict.reason == RouteReason::PlainSelect;
        if node.distance > 0 && reads && chose_a_zone(went) {
            tally.far(&node.zone);
            metrics::far(node.zone.as_deref());
        }
        match (went.kind, went.held_back) {
            (NodeKind::Replica, _) => tally.on_replica(),
            (NodeKind::Primary, Some(ready)) => tally.held_back(ready),
            // Its transaction was counted.
            (NodeKind::Primary, None) if self.is_in_held_back_transaction() => {}
            (NodeKind::Primary, None) => {
                let verdict = execution.verdict;
                let Some(reason) = keeps_a_read(went.reason, verdict.reason) else {
                    return;
                };
                let cause = match reason {
                    reason if reason == verdict.reason => verdict.cause,
                    RouteReason::SessionState => self.session().pinned_by,
                    _ => None,
                };
                tally.kept((reason, cause));
            }
        }
    }

    fn is_in_held_back_transaction(&self) -> bool {
        let session = self.session();
        let transaction = session.transaction.as_ref();
        transaction.is_some_and(|transaction| transaction.held_back)
    }

    /// A statement is at its end. Counts it if it has failed, and hands out what it has brought.
    pub(super) fn ended<A: Action>(
        &self,
        action: &mut A,
        execution: &Execution,
        result: QueryResult<()>,
    ) -> QueryResult<A::Output> {
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
        self.rests_after(execution.verdict);
        result.map(|()| action.take_output())
    }
}

/// Whether a read could have gone elsewhere, for all that its caller said.
fn chose_a_zone(went: Went) -> bool {
    let bound = matches!(
        went.reason,
        RouteReason::InTransaction | RouteReason::SessionState | RouteReason::HeldBack
    );
    let asked_for_primary = went.reason == RouteReason::Forced && went.kind == NodeKind::Primary;
    !bound && !asked_for_primary
}

/// What has kept a statement on the primary that could be elsewhere, but for something that the application or its
/// operator may change. `own`: what the statement is by itself.
fn keeps_a_read(went: RouteReason, own: RouteReason) -> Option<RouteReason> {
    match went {
        RouteReason::Write | RouteReason::TransactionControl | RouteReason::PrimaryWeight => None,
        RouteReason::InTransaction | RouteReason::Forced => match own {
            RouteReason::PlainSelect => Some(went),
            // It would be there without the transaction, too.
            RouteReason::LockingClause
            | RouteReason::VolatileFunction
            | RouteReason::ServerState
            | RouteReason::UnknownStatement
            | RouteReason::Learned => Some(own),
            _ => None,
        },
        _ => Some(went),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_keeps_plain_reads_and_others_keep_themselves() {
        use RouteReason::{
            Forced, InTransaction, LockingClause, OwnWrite, PlainSelect, SessionState,
            TransactionControl, VolatileFunction, Write,
        };
        for (went, own, kept) in [
            (InTransaction, PlainSelect, Some(InTransaction)),
            (InTransaction, LockingClause, Some(LockingClause)),
            (InTransaction, VolatileFunction, Some(VolatileFunction)),
            (InTransaction, Write, None),
            (InTransaction, SessionState, None),
            (InTransaction, TransactionControl, None),
            (Forced, PlainSelect, Some(Forced)),
            (Forced, Write, None),
            (OwnWrite, PlainSelect, Some(OwnWrite)),
            (LockingClause, LockingClause, Some(LockingClause)),
            (Write, Write, None),
        ] {
            assert_eq!(keeps_a_read(went, own), kept, "{went} {own}");
        }
    }
}
