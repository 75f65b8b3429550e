//! The path of a statement: classify, decide, take a connection, send, and what follows.

use std::sync::Arc;

use diesel::QueryResult;
use diesel::connection::InstrumentationEvent;
use diesel::result::{DatabaseErrorKind, Error as DieselError};

use super::ReplicatedConnection;
use super::acquire::Chosen;
use super::action::Action;
use super::failure::lost;
use super::session::Transaction;
use crate::classify::{TransactionControl, Verdict};
use crate::error::{Error, Outcome};
use crate::node::{Failure, Lease, Node};
use crate::route::{NodeKind, RouteReason};
use crate::routing::{Decision, Recovery, recover};

/// How often one statement may meet connections with outdated plans before the primary serves it.
const STALE_PLANS: u32 = 3;

/// What comes after a failure that the caller need not hear of.
enum Next {
    /// Another attempt.
    Retry,
    /// Nothing: what was asked for is so already.
    Done,
}

/// One statement on its way.
struct Journey {
    verdict: Verdict,
    decision: Decision,
    /// Replicas that failed it.
    avoid: Vec<Arc<Node>>,
    stale_plans: u32,
    /// A replica refused it, and it is remembered as the primary's if the primary accepts it.
    learn: bool,
    /// The primary serves it because replicas fail.
    fallback: bool,
    only_rolls_back: bool,
}

impl ReplicatedConnection {
    /// Sends a statement to the node that it needs, and again elsewhere where that is harmless.
    pub(super) async fn run<A: Action>(&self, action: &mut A) -> QueryResult<A::Output> {
        let verdict = self.cluster.classifier.classify(action.id(), action.sql());
        if self.cluster.classifier.take_wants_catalog() {
            self.cluster.catalog_wanted();
        }
        let decision = self
            .session()
            .decide(verdict, self.cluster.read_only_transactions_on_replicas);
        let mut journey = Journey {
            verdict,
            decision,
            avoid: Vec::new(),
            stale_plans: 0,
            learn: false,
            fallback: false,
            only_rolls_back: only_rolls_back(verdict, action.sql()),
        };
        if let Some(end) = self.end_of_lost_transaction(&journey) {
            return Ok(end.map(|()| A::Output::default())?);
        }
        loop {
            let (lease, on_replica) = self.lease(&mut journey).await?;
            self.begins(verdict, &lease, on_replica);
            let result = self.send(action, &lease).await;
            for sql in lease.newly_prepared() {
                self.record(InstrumentationEvent::cache_query(&sql));
            }
            match result {
                Ok(output) => {
                    self.succeeded(&journey, action);
                    return Ok(action.reporting(output, &self.cluster, outcome_if_lost(&journey)));
                }
                Err(error) => match self.failed(&mut journey, &lease, on_replica, error)? {
                    Next::Retry => {}
                    Next::Done => return Ok(A::Output::default()),
                },
            }
        }
    }

    async fn send<A: Action>(&self, action: &mut A, lease: &Arc<Lease>) -> QueryResult<A::Output> {
        if let Some(statement) = action.statement() {
            self.resolve_types(statement, lease).await?;
        }
        action.send(lease).await
    }

    /// The connection for the journey's next attempt, and whether it is a replica's.
    async fn lease(&self, journey: &mut Journey) -> Result<(Arc<Lease>, bool), Error> {
        if self.cluster.is_over() {
            return Err(Error::Closed);
        }
        let (lease, kind, reason) = match journey.decision {
            Decision::TransactionReplica => match self.transaction_lease()? {
                Some(lease) => (lease, NodeKind::Replica, RouteReason::ReadOnlyTransaction),
                // It ended while this statement was on its way.
                None => {
                    let lease = self.primary_lease(false).await?;
                    (lease, NodeKind::Primary, RouteReason::ReadOnlyTransaction)
                }
            },
            Decision::Primary(reason) => {
                let lease = match self.transaction_lease()? {
                    Some(lease) => lease,
                    None => self.primary_lease(journey.fallback).await?,
                };
                (lease, NodeKind::Primary, reason)
            }
            Decision::Replica { reason, .. } => {
                self.reading_lease(reason, &mut journey.avoid).await?
            }
        };
        self.note_route(lease.node(), kind, reason);
        let on_replica = kind == NodeKind::Replica;
        if journey.verdict.session_state {
            if on_replica {
                let node = lease.node().name.clone();
                return Err(Error::SessionStateOnReplica { node });
            }
            lease.note_session_state();
        }
        Ok((lease, on_replica))
    }

    /// The connection for a read: a replica's, or the primary's where that is to serve it.
    async fn reading_lease(
        &self,
        reason: RouteReason,
        avoid: &mut Vec<Arc<Node>>,
    ) -> Result<(Arc<Lease>, NodeKind, RouteReason), Error> {
        loop {
            let (why, fallback) = match self.replica_lease(avoid).await? {
                Chosen::Replica(lease) => return Ok((lease, NodeKind::Replica, reason)),
                Chosen::Primary { reason: why, .. } if reason == RouteReason::Forced => {
                    let nodes = self.cluster.topology().describe();
                    return Err(match why {
                        RouteReason::ReplicaBusy => Error::ReplicasBusy { nodes },
                        _ => Error::NoReplica { nodes },
                    });
                }
                Chosen::Primary { reason, fallback } => (reason, fallback),
            };
            match self.primary_lease(fallback).await {
                Ok(lease) => return Ok((lease, NodeKind::Primary, why)),
                Err(Error::Connect(error)) if why == RouteReason::PrimaryWeight => {
                    // It was one of several that could serve; the others still can.
                    let topology = self.cluster.topology();
                    let primary = topology.named(&error.node);
                    avoid.push(Arc::clone(&primary.ok_or(Error::Connect(error))?.node));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Notes an open transaction before its BEGIN is sent: if the future is dropped while BEGIN
    /// is under way, what follows must not run outside of it.
    fn begins(&self, verdict: Verdict, lease: &Arc<Lease>, on_replica: bool) {
        if let Some(TransactionControl::Begin { .. }) = verdict.control {
            self.session().transaction = Some(Transaction {
                replica: on_replica.then(|| Arc::clone(lease)),
                begun: false,
                _busy: on_replica.then(|| Arc::new(lease.node().busy())),
            });
        }
    }

    fn succeeded<A: Action>(&self, journey: &Journey, action: &A) {
        if let Some(TransactionControl::Begin { .. }) = journey.verdict.control {
            if let Some(transaction) = &mut self.session().transaction {
                transaction.begun = true;
            }
        }
        self.note_catalog_change(journey.verdict);
        if journey.learn {
            // A replica refused it and the primary accepted it: it is the primary's from now on.
            // Its text holds no bind values.
            tracing::warn!(
                target: "diesel_replicated",
                sql = shortened(action.sql()),
                "statement_learned"
            );
            self.cluster.classifier.learn(action.id(), action.sql());
        }
    }

    /// Others see a change of the catalog when it is committed; this session sees it at once.
    fn note_catalog_change(&self, verdict: Verdict) {
        let mut session = self.session();
        session.notice_transaction_end();
        let committed =
            session.transaction.is_none() && std::mem::take(&mut session.changed_catalog);
        session.changed_catalog |= verdict.ddl && session.transaction.is_some();
        drop(session);
        if verdict.ddl || committed {
            self.cluster.catalog_changed();
        }
    }

    /// Prepares the next attempt, or returns the error that the caller gets.
    fn failed(
        &self,
        journey: &mut Journey,
        lease: &Arc<Lease>,
        on_replica: bool,
        error: DieselError,
    ) -> QueryResult<Next> {
        let failure = lease.diagnose(&error);
        if failure
            .remark
            .is_some_and(|remark| remark.sqlstate.may_mean_stale_types())
        {
            self.cluster.oids.forget();
        }
        if let Some(TransactionControl::Begin { .. }) = journey.verdict.control {
            // It has not begun.
            self.session().transaction = None;
        }
        if on_replica && matches!(journey.decision, Decision::Replica { may_move: true, .. }) {
            self.failed_on_replica(journey, lease, &failure, error)?;
            return Ok(Next::Retry);
        }
        self.note_serialization_failure(journey.verdict, &error);
        let cluster = Arc::downgrade(&self.cluster);
        let Some(lost) = lost(&cluster, lease, &failure, outcome_if_lost(journey)) else {
            return Err(error);
        };
        let ends = journey.verdict.control == Some(TransactionControl::End);
        let mut session = self.session();
        if ends {
            // Whether it was committed or not, the session is out of it.
            session.transaction_ended();
        }
        match (session.transaction.is_some(), failure.lost) {
            // The server rolls back what it loses.
            _ if ends && journey.only_rolls_back => Ok(Next::Done),
            (true, Some(cause)) => {
                let node = lease.node().name.clone();
                Err(Error::TransactionLost { node, cause }.into())
            }
            _ => Err(lost),
        }
    }

    fn failed_on_replica(
        &self,
        journey: &mut Journey,
        lease: &Arc<Lease>,
        failure: &Failure,
        error: DieselError,
    ) -> QueryResult<()> {
        let remark = failure.remark;
        let missing_type = matches!(error, DieselError::SerializationError(_));
        let mut recovery = recover(remark, failure.lost.is_some());
        if missing_type {
            recovery = Recovery::Primary { learn: false };
        }
        tracing::debug!(
            target: "diesel_replicated",
            node = lease.node().name, ?remark, ?recovery, "replica_failed_statement"
        );
        let primary = |reason| Decision::Primary(reason);
        match recovery {
            Recovery::Return => return Err(error),
            Recovery::LeaveReplica => {
                let cause = failure.lost.clone().unwrap_or_else(|| error.to_string());
                self.cluster.report_failure(lease.node(), cause);
                journey.avoid.push(Arc::clone(lease.node()));
            }
            Recovery::OtherNode => journey.avoid.push(Arc::clone(lease.node())),
            Recovery::FreshConnection => {
                lease.condemn();
                journey.stale_plans += 1;
                if journey.stale_plans >= STALE_PLANS {
                    journey.decision = primary(RouteReason::ReplicaFailed);
                    journey.fallback = true;
                }
            }
            Recovery::Primary { learn } if self.session().forced.is_none() => {
                journey.learn = learn;
                // Whatever the replica refused for being read only may well write.
                self.session().wrote |= learn;
                journey.decision = primary(if learn {
                    RouteReason::Learned
                } else {
                    RouteReason::ReplicaFailed
                });
            }
            Recovery::Primary { .. } => return Err(error),
        }
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

    /// The end of a transaction whose connection has died: it is rolled back already, so ROLLBACK
    /// has nothing to do, and COMMIT has failed. Either way the session is out of it.
    fn end_of_lost_transaction(&self, journey: &Journey) -> Option<Result<(), Error>> {
        if journey.verdict.control != Some(TransactionControl::End) {
            return None;
        }
        let lost = self.transaction_lease().err()?;
        self.session().transaction_ended();
        let done = journey.only_rolls_back;
        Some(if done { Ok(()) } else { Err(lost) })
    }
}

/// Whether the text is a ROLLBACK and nothing else.
fn only_rolls_back(verdict: Verdict, sql: &str) -> bool {
    let alone = verdict.control == Some(TransactionControl::End) && !verdict.writes;
    alone
        && ["rollback", "abort"].iter().any(|word| {
            let start = sql.trim_start().get(..word.len());
            start.is_some_and(|start| start.eq_ignore_ascii_case(word))
        })
}

/// What became of a statement whose connection broke: a read, or the beginning of a transaction,
/// leaves nothing behind.
fn outcome_if_lost(journey: &Journey) -> Outcome {
    let Journey { verdict, learn, .. } = journey;
    let harmless = match verdict.control {
        None => verdict.idempotent,
        Some(control) => control != TransactionControl::End,
    };
    if harmless && !verdict.writes && !learn {
        Outcome::NotRun
    } else {
        Outcome::Unknown
    }
}

fn shortened(sql: &str) -> &str {
    const LONGEST: usize = 200;
    let end = (0..=LONGEST.min(sql.len()))
        .rev()
        .find(|end| sql.is_char_boundary(*end));
    &sql[..end.unwrap_or(0)]
}
