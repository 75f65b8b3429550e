//! What follows when a statement fails: another attempt, or an error that says what became of it.

use std::sync::Arc;
use std::time::Instant;

use diesel::QueryResult;
use diesel::result::{DatabaseErrorKind, Error as DieselError};

use super::ReplicatedConnection;
use super::acquire::cause_of_death;
use super::execution::{Behind, Execution};
use super::report::lost;
use super::session_settings::Ending;
use crate::classify::{TransactionControl, Verdict};
use crate::error::{Error, Outcome, SqlState};
use crate::node::{Failure, Lease};
use crate::route::RouteReason;
use crate::routing::{Decision, Recovery, Stale, Symptoms, recover, stale};

/// How many times one statement may find a connection's memory outdated. Once heals it; the catalog may change a
/// second time.
const HEALS: u16 = 3;

/// What follows a failure that the caller need not hear of.
pub(super) enum AfterFailure {
    /// Another attempt.
    Retry,
    /// Nothing: the transaction is rolled back already.
    Done,
    /// Another attempt when the primary takes writes. It has refused the statement because transactions are read only
    /// there.
    Refused(DieselError),
}

impl ReplicatedConnection {
    /// Prepares the next attempt, or returns the error for the caller.
    pub(super) fn failed(
        &self,
        execution: &mut Execution,
        lease: &Arc<Lease>,
        on_replica: bool,
        error: DieselError,
    ) -> QueryResult<AfterFailure> {
        let failure = lease.diagnose(&error);
        execution.sqlstate = failure.remark.map(|remark| remark.sqlstate);
        let symptoms = symptoms(execution, &failure);
        if execution.verdict.control == Some(TransactionControl::End) {
            // A COMMIT that is refused rolls back.
            self.session().settings_ending(match failure.lost {
                Some(_) => Ending::Unknown,
                None => Ending::RolledBack,
            });
        }
        if let Some(TransactionControl::Begin { .. }) = execution.verdict.control {
            // The transaction has not begun.
            self.session().transaction = None;
        }
        if let Some(stale) = stale(symptoms) {
            self.forget(stale, lease);
            if self.may_heal(execution, lease) {
                execution.heals += 1;
                execution.healing = Some(stale);
                return Ok(AfterFailure::Retry);
            }
        }
        if on_replica && matches!(execution.decision, Decision::Replica { may_move: true, .. }) {
            self.failed_on_replica(execution, lease, (symptoms, &failure), error)?;
            return Ok(AfterFailure::Retry);
        }
        if !on_replica && self.is_refused_as_read_only(execution, lease, &failure) {
            return Ok(AfterFailure::Refused(error));
        }
        self.note_serialization_failure(execution.verdict, &error);
        if failure.lost.is_some() && (self.may_send_again(execution) || self.may_move(execution)) {
            lease.condemn();
            if !failure.ours {
                self.cluster.suspect(lease.node(), cause_of_death(lease));
            }
            return Ok(AfterFailure::Retry);
        }
        let pending_write = execution.pending_write.take();
        let cluster = Arc::downgrade(&self.cluster);
        let Some(lost) = lost(&cluster, lease, &failure, execution.outcome_if_lost()) else {
            if let Some(pending_write) = pending_write {
                pending_write.refused();
            }
            return Err(error);
        };
        if let Some(pending_write) = pending_write.filter(|_| execution.unsent) {
            pending_write.never_sent();
        }
        let ends = execution.verdict.control == Some(TransactionControl::End);
        let mut session = self.session();
        if ends {
            // The session is out of the transaction, whether that was committed or not.
            session.transaction_ended();
        }
        match (session.transaction.is_some(), failure.lost) {
            // The server rolls back what it loses.
            _ if ends && execution.only_rolls_back => Ok(AfterFailure::Done),
            (true, Some(cause)) => {
                let node = lease.node().name.clone();
                Err(Error::TransactionLost { node, cause }.into())
            }
            _ => Err(lost),
        }
    }

    /// Leaves a server that does not show what the statement must see. Nothing is wrong with it. `false` if it failed
    /// for another reason.
    pub(super) fn is_behind(&self, execution: &mut Execution, lease: &Lease) -> bool {
        let behind = std::mem::take(&mut execution.behind);
        if behind == Behind::No || !lease.is_usable() {
            return false;
        }
        // After a wait it may have caught up. If not, nobody waits again.
        if behind == Behind::Now {
            execution.avoid.push(Arc::clone(lease.node()));
        }
        let mut session = self.session();
        session.replica = None;
        session.transaction.take_if(|open| !open.begun);
        true
    }

    /// Makes connections forget what they remember wrongly.
    fn forget(&self, stale: Stale, lease: &Arc<Lease>) {
        let mut session = self.session();
        if session.transaction.is_some() {
            // The transaction has failed. Another attempt does not meet this again.
            lease.wire.note_conflict();
        }
        if let Some(own) = &mut session.own_types {
            *own = Arc::default();
        }
        match stale {
            Stale::Statements => {
                lease.wire.note_forgotten_statements();
                let is_it = |held: &mut Arc<Lease>| Arc::ptr_eq(held, lease);
                if !session.pinned && session.transaction.is_none() {
                    session.primary.take_if(is_it);
                    session.replica.take_if(is_it);
                }
            }
            Stale::Catalog => self.cluster.oids.outdated(lease.remembers()),
            Stale::Types => self.cluster.oids.forget(),
        }
    }

    /// Whether a statement can be sent once more after a connection's memory was outdated. In a transaction it
    /// cannot: the server has given the transaction up.
    fn may_heal(&self, execution: &Execution, lease: &Lease) -> bool {
        execution.heals < HEALS
            && execution.verdict.control.is_none()
            && !lease.wire.in_transaction()
            && self.session().transaction.is_none()
    }

    /// Whether the statement can be sent over another connection. Nothing of it was sent, or it only began a
    /// transaction; and nothing else was lost with the connection.
    fn may_send_again(&self, execution: &Execution) -> bool {
        let session = self.session();
        let begins = matches!(
            execution.verdict.control,
            Some(TransactionControl::Begin { .. })
        );
        let left_nothing = begins && execution.outcome_if_lost() == Outcome::NotRun;
        (execution.unsent || left_nothing)
            && execution.verdict.control != Some(TransactionControl::End)
            && session.transaction.is_none()
            && !session.pinned
            && execution.started.elapsed() < self.cluster.outage_wait()
    }

    /// Whether the primary only stood in for a replica. Then a plain select runs again on another node.
    fn may_move(&self, execution: &Execution) -> bool {
        matches!(execution.decision, Decision::Replica { may_move: true, .. })
            && self.session().transaction.is_none()
            && execution.started.elapsed() < self.cluster.outage_wait()
    }

    fn failed_on_replica(
        &self,
        execution: &mut Execution,
        lease: &Arc<Lease>,
        (symptoms, failure): (Symptoms, &Failure),
        error: DieselError,
    ) -> QueryResult<()> {
        let remark = failure.remark;
        let missing_type = matches!(error, DieselError::SerializationError(_));
        let mut recovery = recover(symptoms);
        // The primary has the last word on a setting, and on roles that have not arrived at the replica.
        let of_settings = execution.settings_refused || !execution.settings.is_empty();
        let final_here = matches!(recovery, Recovery::Return | Recovery::Primary { .. });
        if missing_type || of_settings && final_here {
            recovery = Recovery::Primary { learn: false };
        }
        tracing::debug!(
            target: "diesel_replicated",
            node = lease.node().name,
            sqlstate = remark.as_ref().map(|remark| remark.sqlstate.as_str()),
            recovery = recovery.as_str(),
            "replica_failed_statement"
        );
        match recovery {
            Recovery::Return => {
                if remark.is_some_and(|remark| remark.sqlstate == SqlState::QUERY_CANCELED) {
                    execution.gave_up();
                }
                return Err(error);
            }
            Recovery::LeaveReplica => {
                let cause = failure.lost.clone().unwrap_or_else(|| error.to_string());
                if !failure.ours {
                    self.cluster.suspect(lease.node(), cause);
                }
                execution.avoid.push(Arc::clone(lease.node()));
            }
            Recovery::OtherNode => {
                lease.failed_read(Instant::now());
                execution.avoid.push(Arc::clone(lease.node()));
            }
            Recovery::FreshConnection => {
                lease.condemn();
                execution.heals += 1;
                if execution.heals >= HEALS && self.session().forced.is_some() {
                    return Err(error);
                }
                if execution.heals >= HEALS {
                    execution.decision = Decision::Primary(RouteReason::ReplicaFailed);
                    execution.fallback = true;
                }
            }
            Recovery::Primary { learn } if self.session().forced.is_none() => {
                execution.learn = learn;
                if learn {
                    // What a replica refuses for being read only may well write.
                    let pending_write = self.pending_write(&self.session());
                    execution.pending_write = Some(pending_write);
                }
                execution.decision = Decision::Primary(if learn {
                    RouteReason::Learned
                } else {
                    RouteReason::ReplicaFailed
                });
            }
            Recovery::Primary { .. } => return Err(error),
        }
        // What comes next is another node's time.
        execution.asks();
        Ok(())
    }

    fn note_serialization_failure(&self, verdict: Verdict, error: &DieselError) {
        let failed_to_serialize = matches!(
            error,
            DieselError::DatabaseError(DatabaseErrorKind::SerializationFailure, _)
        );
        // After a failed COMMIT there is nothing left to roll back.
        if failed_to_serialize
            && verdict.control != Some(TransactionControl::End)
            && self.session().transaction.is_some()
        {
            self.transaction_must_roll_back();
        }
    }

    /// How the end of a lost transaction ends. The server has rolled it back: a ROLLBACK has nothing to do, a COMMIT
    /// fails.
    pub(super) fn end_of_lost_transaction(
        &self,
        execution: &Execution,
    ) -> Option<Result<(), Error>> {
        if execution.verdict.control != Some(TransactionControl::End) {
            return None;
        }
        let lost = self.transaction_lease().err()?;
        self.session().transaction_ended();
        let done = execution.only_rolls_back;
        Some(if done { Ok(()) } else { Err(lost) })
    }
}

fn symptoms(execution: &Execution, failure: &Failure) -> Symptoms {
    Symptoms {
        remark: failure.remark,
        lost: failure.lost.is_some(),
        unsent: execution.unsent,
        refused: execution.refused,
        custom_types: execution.custom_types,
    }
}
