//! One limit for all that a statement may take: choosing a node, waiting, connecting, failing over, running.

use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::QueryResult;

use super::ReplicatedConnection;
use super::action::Action;
use super::execution::{Execution, Progress};
use crate::classify::TransactionControl;
use crate::deadline;
use crate::error::{Error, Outcome};
use crate::metrics;

impl ReplicatedConnection {
    /// When the next statement has to be at its end, and how long it may take until then.
    pub(super) fn time_limit(&self) -> Option<(Instant, Duration)> {
        let (scope, tagged) = {
            let session = self.session();
            // A transaction that is open on the primary stays there.
            let transaction = session.transaction.as_ref();
            let elsewhere = transaction.is_some_and(|open| open.replica.is_none());
            let tagged = session.tagged.as_ref().filter(|_| !elsewhere);
            (session.deadline, tagged.map(|it| it.statement_deadline()))
        };
        let default = tagged.unwrap_or(self.cluster.config.statement_deadline);
        if scope.is_none() && default.is_none() {
            return None;
        }
        let now = Instant::now();
        let default = default.map(|limit| deadline::after(now, limit));
        let end = scope.or(default)?;
        Some((end, end.saturating_duration_since(now)))
    }

    /// Runs a statement until `end`.
    pub(super) async fn run_until<A: Action>(
        &self,
        action: &mut A,
        mut execution: Execution,
        (end, limit): (Instant, Duration),
    ) -> QueryResult<A::Output> {
        let progress = Arc::<Progress>::default();
        execution.progress = Some(Arc::clone(&progress));
        let control = execution.verdict.control;
        // Given up, it leaves its write behind at once.
        let running = async {
            let mut execution = execution;
            let result = self.run_through(action, &mut execution).await;
            self.ended(action, &execution, result)
        };
        tokio::select! {
            biased;
            ended = running => return ended,
            () = self.cluster.reaches(end) => {}
        }
        let outcome = progress.give_up();
        let mut session = self.session();
        let outcome = match (session.transaction.is_some(), control) {
            (_, Some(TransactionControl::End)) => {
                session.transaction_ended();
                outcome
            }
            (_, Some(TransactionControl::Begin { .. })) => {
                session.transaction = None;
                Outcome::NotRun
            }
            // The server rolls it back, with its connection.
            (true, _) => Outcome::NotRun,
            (false, _) => outcome,
        };
        metrics::failed(None, None, outcome, limit);
        Err(Error::DeadlineExceeded { limit, outcome }.into())
    }
}
