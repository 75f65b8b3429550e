//! A write that asks its database, in its own transaction, whether its key is at home there.
//!
//! Of a statement by itself BEGIN and the question go out in one flight with it, then COMMIT. If the key is not at home,
//! the transaction has failed before the statement, which the server then refuses: nothing runs.

use std::any::TypeId;
use std::sync::Arc;

use diesel::QueryResult;
use diesel::result::Error as DieselError;
use futures_util::future::join;

use super::action::{Action, Batch};
use super::report::Report;
use crate::groups::{Refusal, SQLSTATE};
use crate::node::Lease;
use crate::statement::{Bound, Statement};

/// A statement, and the question that guards it.
pub(super) struct Guarded<'a, A> {
    inner: &'a mut A,
    /// The question, as SQL.
    check: String,
    /// The statement begins a transaction, which goes on.
    begins: bool,
    /// Why the database refused it, at the last attempt.
    refusal: Option<Refused>,
}

/// Why nothing ran.
#[derive(Debug)]
pub(super) enum Refused {
    NotAtHome(Refusal),
    /// The key has moved since the transaction's snapshot was taken.
    Moved,
}

impl<'a, A: Action> Guarded<'a, A> {
    pub(super) fn new(inner: &'a mut A, check: String, begins: bool) -> Self {
        Self {
            inner,
            check,
            begins,
            refusal: None,
        }
    }

    pub(super) fn take_refusal(&mut self) -> Option<Refused> {
        self.refusal.take()
    }

    /// BEGIN and the question, in one text: no server can take one without the other.
    fn opening(&self) -> String {
        let begin = match self.begins {
            true => self.inner.sql().trim_end_matches([';', ' ', '\n']),
            false => "BEGIN",
        };
        // On a line of its own: what ends in a comment ends there.
        format!("{begin}\n; {}", self.check)
    }

    /// Begins a transaction that goes on.
    async fn open(&mut self, lease: &Arc<Lease>) -> QueryResult<()> {
        let opened = Batch(&self.opening()).send(lease).await;
        if let Err(error) = &opened {
            self.refused(error, lease);
            roll_back(lease).await;
        }
        opened
    }

    /// Sends the statement in a transaction of its own.
    async fn send_within(&mut self, lease: &Arc<Lease>) -> QueryResult<()> {
        let opening = self.opening();
        let mut opens = Batch(&opening);
        let inner = &mut *self.inner;
        // The opening is sent when it is first polled, so it comes before the statement.
        let (opened, done) = join(opens.send(lease), async {
            inner.send(lease).await?;
            inner.settle().await
        })
        .await;
        if let Err(error) = &opened {
            self.refused(error, lease);
            drop(self.inner.take_output());
        }
        // Why the transaction failed comes first: what came after it failed for that.
        if let Err(error) = opened.and(done) {
            roll_back(lease).await;
            return Err(error);
        }
        Batch("COMMIT").send(lease).await
    }

    fn refused(&mut self, error: &DieselError, lease: &Lease) {
        let DieselError::DatabaseError(_, information) = error else {
            return;
        };
        let remark = lease.diagnose(error).remark;
        self.refusal = match remark.map(|remark| remark.sqlstate) {
            Some(state) if state.as_str() == SQLSTATE => {
                Some(Refused::NotAtHome(Refusal::read(information.details())))
            }
            Some(state) if state.as_str() == "40001" => Some(Refused::Moved),
            _ => None,
        };
    }
}

impl<A: Action> Action for Guarded<'_, A> {
    type Output = A::Output;

    fn sql(&self) -> &str {
        self.inner.sql()
    }

    fn id(&self) -> Option<TypeId> {
        self.inner.id()
    }

    fn bound(&self, number: usize) -> Bound {
        self.inner.bound(number)
    }

    fn statement(&mut self) -> Option<&mut Statement> {
        self.inner.statement()
    }

    fn report_to(&mut self, report: Report) {
        self.inner.report_to(report);
    }

    fn take_output(&mut self) -> A::Output {
        self.inner.take_output()
    }

    async fn send(&mut self, lease: &Arc<Lease>) -> QueryResult<()> {
        self.refusal = None;
        if self.begins {
            return self.open(lease).await;
        }
        // Dropped on the way, the transaction ends with its connection.
        let unfinished = Unfinished(Some(lease));
        let sent = self.send_within(lease).await;
        unfinished.finish();
        sent
    }
}

/// A transaction that is open on a connection, and that nobody but this statement knows of.
struct Unfinished<'a>(Option<&'a Arc<Lease>>);

impl Unfinished<'_> {
    fn finish(mut self) {
        self.0 = None;
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if let Some(lease) = self.0 {
            lease.condemn();
        }
    }
}

/// What cannot be rolled back ends with its connection.
async fn roll_back(lease: &Arc<Lease>) {
    if lease.is_usable() && Batch("ROLLBACK").send(lease).await.is_err() {
        lease.condemn();
    }
}
