//! What a standby has shown, of which the primary may show less for a moment.
//!
//! A commit is sent to standbys before the primary itself shows it: by a moment, or for as long as it
//! waits for a synchronous standby.

use std::sync::Arc;

use parking_lot::MutexGuard;
use tokio::sync::oneshot;

use super::ReplicaPosition;
use crate::position::Position;
use crate::wire::Wire;

/// What a standby showed when it was last asked, and the connection over which it said so.
#[derive(Clone, Debug)]
pub(crate) struct StandbySnapshot {
    pub(crate) position: Position,
    /// As `pg_snapshot`. That of a standby lacks the transactions that are still under way; only
    /// that none begins at or after its `xmax` is known from it.
    pub(crate) snapshot: Arc<str>,
    pub(super) progress: Arc<ReplicaPosition>,
    pub(super) wire: Arc<Wire>,
}

impl StandbySnapshot {
    /// Which of these transactions are over on the standby. `None` if it cannot be asked any more.
    pub(crate) async fn over(&self, transactions: Vec<i64>) -> Option<Vec<i64>> {
        let (answer, answered) = oneshot::channel();
        self.progress.put(Question {
            transactions,
            answer,
        });
        let (over, wire) = answered.await.ok()?;
        // Another connection may be to another run of the server, which may show less.
        Arc::ptr_eq(&wire, &self.wire).then_some(over)
    }

    /// Whether all that earlier runs of the server have shown is known to be shown by the primary.
    pub(crate) fn is_vouched_for(&self) -> bool {
        self.vouched()
            .as_ref()
            .is_some_and(|run| Arc::ptr_eq(run, &self.wire))
    }

    /// The primary shows all that earlier runs of the server have shown.
    pub(crate) fn vouch(&self) {
        *self.vouched() = Some(Arc::clone(&self.wire));
    }

    fn vouched(&self) -> MutexGuard<'_, Option<Arc<Wire>>> {
        self.progress.vouched.lock()
    }
}

/// Which of these transactions are over?
#[derive(Debug)]
pub(crate) struct Question {
    pub(crate) transactions: Vec<i64>,
    pub(crate) answer: oneshot::Sender<(Vec<i64>, Arc<Wire>)>,
}
