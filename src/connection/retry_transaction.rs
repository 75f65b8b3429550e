//! Runs a transaction again that was surely not committed.

use std::sync::Arc;
use std::time::Instant;

use diesel::QueryResult;
use diesel::result::Error as DieselError;
use diesel_async::{AnsiTransactionManager, TransactionManager};

use super::ReplicatedConnection;
use super::transaction_builder::{AsyncFunc, TransactionBuilder};
use crate::config::RetryPolicy;
use crate::error::{ErrorExt, Outcome};

/// How one attempt ended.
enum Tried<T, E> {
    Over(Result<T, E>),
    /// It has left nothing behind, and may succeed another time.
    Again(E),
}

/// How many attempts at a read-only transaction may be on replicas.
const REPLICAS: u32 = 2;

impl TransactionBuilder<'_> {
    /// As [`run`](Self::run), again and again by `policy`; see
    /// [`ReplicatedConnection::retry_transaction`].
    ///
    /// If two attempts at a read-only transaction on replicas fail, the next ones run on the primary, as the last
    /// attempt does.
    ///
    /// # Errors
    ///
    /// That of the last attempt.
    pub async fn retry<'b, T, E, F>(&mut self, policy: RetryPolicy, callback: F) -> Result<T, E>
    where
        for<'r> F: AsyncFnOnce(&'r mut ReplicatedConnection) -> Result<T, E>
            + AsyncFunc<&'r mut ReplicatedConnection, Result<T, E>, Fut: Send>
            + Clone
            + Send
            + Sync
            + 'b,
        T: Send + 'b,
        E: From<DieselError> + Send + 'b,
    {
        let started = Instant::now();
        let mut attempt = 1;
        loop {
            let error = match self.attempt(callback.clone()).await {
                Tried::Over(result) => return result,
                Tried::Again(error) => error,
            };
            let Some(delay) = policy.next(attempt, started.elapsed(), rand::random()) else {
                return Err(error);
            };
            attempt += 1;
            // Two replicas had their turn, or there is no other. The primary has the last word.
            if attempt > REPLICAS || attempt == policy.attempts {
                self.on_replicas = Some(false);
            }
            let seconds = delay.as_secs_f64();
            tracing::debug!(target: "diesel_replicated", attempt, delay = seconds, "transaction_repeated");
            let cluster = &self.connection.cluster;
            cluster
                .within(async { tokio::time::sleep(delay).await })
                .await;
        }
    }

    async fn attempt<'b, T, E, F>(&mut self, callback: F) -> Tried<T, E>
    where
        for<'r> F: AsyncFnOnce(&'r mut ReplicatedConnection) -> Result<T, E>
            + AsyncFunc<&'r mut ReplicatedConnection, Result<T, E>, Fut: Send>
            + Send
            + 'b,
        T: Send + 'b,
        E: From<DieselError> + Send + 'b,
    {
        if let Err(error) = self.start().await {
            return judge(error, false);
        }
        // The wire tells more than the errors that come out of the callback.
        let wire = match self.connection.transaction_lease() {
            Ok(lease) => lease.map(|lease| Arc::clone(&lease.wire)),
            Err(_) => None,
        };
        let conflict = || wire.as_ref().is_some_and(|wire| wire.take_conflict());
        conflict();
        match callback(&mut *self.connection).await {
            Ok(value) => {
                let committed: QueryResult<()> =
                    AnsiTransactionManager::commit_transaction(&mut *self.connection).await;
                match committed {
                    Ok(()) => Tried::Over(Ok(value)),
                    Err(error) => judge(error, conflict()),
                }
            }
            Err(error) => {
                let lost = wire.as_ref().is_none_or(|wire| !wire.is_usable());
                let again = conflict() || lost;
                let rolled_back: QueryResult<()> =
                    AnsiTransactionManager::rollback_transaction(&mut *self.connection).await;
                match rolled_back {
                    Ok(()) if again => Tried::Again(error),
                    Ok(()) => Tried::Over(Err(error)),
                    Err(failure) => Tried::Over(Err(failure.into())),
                }
            }
        }
    }
}

/// What follows an error of BEGIN or COMMIT.
fn judge<T, E: From<DieselError>>(error: DieselError, conflict: bool) -> Tried<T, E> {
    let from_database = matches!(error, DieselError::DatabaseError(..));
    if conflict || (from_database && error.outcome() == Outcome::NotRun) {
        Tried::Again(error.into())
    } else {
        Tried::Over(Err(error.into()))
    }
}
