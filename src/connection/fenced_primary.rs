//! A primary that takes no writes yet: statements wait for it as for any primary, and nothing breaks the fence.
//!
//! Orchestrators set `default_transaction_read_only` on a new primary until the old one is gone. The server reports
//! the setting to each session, and refuses (SQLSTATE 25006) before anything was written.

use std::sync::Arc;

use diesel::QueryResult;
use diesel::result::Error as DieselError;
use diesel_async::SimpleAsyncConnection;

use super::ReplicatedConnection;
use super::acquire::no_primary;
use super::execution::Execution;
use crate::classify::{TransactionControl, Verdict};
use crate::deadline;
use crate::error::{Error, SqlState};
use crate::node::{Failure, Lease, NodeConnection, Whose};
use crate::wire::Says;

/// How many times one statement may meet a connection whose setting is outdated.
const OUTDATED: u16 = 32;

impl ReplicatedConnection {
    /// Whether a transaction has just begun that must not write, or would break the fence.
    pub(super) fn began_fenced(&self, verdict: Verdict, lease: &Lease) -> bool {
        let begins = matches!(
            verdict.control,
            Some(TransactionControl::Begin {
                read_only: false,
                ..
            })
        );
        begins && lease.wire.may_be_fenced() && lease.wire.in_transaction()
    }

    /// Undoes the transaction that has just begun.
    pub(super) async fn undo_begin(&self, lease: &Arc<Lease>) {
        self.session().transaction = None;
        let using = lease.enter();
        let mut pg = lease.pg();
        if pg.batch_execute("ROLLBACK").await.is_err() {
            lease.condemn();
        }
        using.finish();
    }

    /// Whether the primary has refused the statement only because its session's transactions are read only, and
    /// nothing else ended with it.
    pub(super) fn is_refused_as_read_only(
        &self,
        execution: &Execution,
        lease: &Lease,
        failure: &Failure,
    ) -> bool {
        let refused = failure.lost.is_none()
            && failure.remark.is_some_and(|remark| {
                remark.sqlstate == SqlState::READ_ONLY_SQL_TRANSACTION
                    && remark.says == Says::InRecovery
            });
        if !refused {
            return false;
        }
        if self.session().transaction.is_some() || lease.wire.in_transaction() {
            // Whose setting it is may have changed since.
            lease.wire.doubt_read_only();
            return false;
        }
        // The server reports a setting that it has just read from its files only at the end of the statement. So it
        // must be asked.
        execution.verdict.control.is_none()
            && (lease.wire.is_read_only() || execution.outdated == 0)
    }

    /// Whose setting makes this session's transactions read only.
    pub(super) async fn whose_read_only(&self, connection: &NodeConnection) -> Option<Whose> {
        let limit = self.cluster.config.health.timeout;
        let asking = async { tokio::time::timeout(limit, connection.whose_read_only()).await };
        let whose = self.cluster.within(asking).await;
        if let Some(Ok(Ok(whose))) = whose {
            return Some(whose);
        }
        connection.wire.condemn();
        None
    }

    /// Waits until the statement can be sent to a primary that takes writes. The caller gets `refused` if no fence is
    /// the cause.
    pub(super) async fn until_it_takes_writes(
        &self,
        execution: &mut Execution,
        lease: Arc<Lease>,
        refused: Option<DieselError>,
    ) -> QueryResult<()> {
        let whose = self.whose_read_only(&lease).await;
        let node = Arc::clone(lease.node());
        execution.outdated += 1;
        let deadline = deadline::after(execution.started, self.cluster.outage_wait());
        match (whose, refused) {
            (Some(Whose::Servers), _) => {
                self.cluster.fenced(&node).await?;
                self.give_up_primary(lease);
                let look =
                    |topology: &crate::cluster::Topology| topology.takes_writes().then_some(());
                if self.cluster.with_changes(deadline, look).await.is_none() {
                    never_sent(execution);
                    return Err(no_primary(&self.cluster.topology()).into());
                }
                Ok(())
            }
            (Some(Whose::Logins(whose)), Some(_)) => {
                never_sent(execution);
                let node = node.name.clone();
                Err(Error::ReadOnlyLogin { node, whose }.into())
            }
            (Some(Whose::Sessions), Some(error)) => {
                if let Some(pending_write) = execution.pending_write.take() {
                    pending_write.refused();
                }
                Err(error)
            }
            (_, refused) if execution.outdated > OUTDATED => {
                never_sent(execution);
                Err(refused.unwrap_or_else(|| no_primary(&self.cluster.topology()).into()))
            }
            (Some(Whose::Outdated) | None, _) => {
                if !self.session().pinned {
                    lease.condemn();
                    self.give_up_primary(lease);
                }
                Ok(())
            }
            (Some(_), _) => Ok(()),
        }
    }

    /// Gives the primary's connection back, unless the session has left something there.
    fn give_up_primary(&self, lease: Arc<Lease>) {
        let mut session = self.session();
        if !session.pinned {
            session.primary.take_if(|held| Arc::ptr_eq(held, &lease));
        }
        drop(session);
        drop(lease);
    }
}

fn never_sent(execution: &mut Execution) {
    if let Some(pending_write) = execution.pending_write.take() {
        pending_write.never_sent();
    }
}
