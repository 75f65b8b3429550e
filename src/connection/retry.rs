//! Doing a transaction again that is known not to have been committed.

use std::sync::Arc;
use std::time::Instant;

use diesel::QueryResult;
use diesel::result::Error as DieselError;
use diesel_async::{AnsiTransactionManager, TransactionManager};

use super::ReplicatedConnection;
use super::func::AsyncFunc;
use super::transaction_builder::TransactionBuilder;
use crate::config::RetryPolicy;
use crate::error::{ErrorExt, Outcome};

/// How one attempt ended.
enum Attempt<T, E> {
    Over(Result<T, E>),
    /// It has left nothing behind and may succeed another time.
    Again(E),
}

/// So many attempts at a read-only transaction may be on replicas.
const REPLICAS: u32 = 2;

impl ReplicatedConnection {
    /// Runs `callback` in a transaction, and runs it again where that may help and can do no harm:
    ///
    /// - after a serialization failure or a deadlock (SQLSTATE `40001`, `40P01`);
    /// - when the transaction was lost with its connection before its COMMIT was sent;
    /// - when it could not begin, because no primary was there.
    ///
    /// Whatever may have been committed is not repeated: a connection that breaks during COMMIT is an
    /// error with [`Outcome::Unknown`](crate::Outcome). What `callback` does outside of the database it may do
    /// several times.
    ///
    /// `callback` has to be `Clone`, as closures are that borrow what they use: each attempt has its own.
    ///
    /// It is this connection that remembers why a statement failed, so the error may be of any type. Who
    /// catches such an error in `callback` and returns another one has it repeated all the same; who
    /// returns `Ok` is held to it, if the server commits.
    ///
    /// ```no_run
    /// # async fn example(conn: &mut diesel_replicated::ReplicatedConnection) -> diesel::QueryResult<()> {
    /// use diesel::prelude::*;
    /// use diesel_async::RunQueryDsl;
    /// use diesel_replicated::RetryPolicy;
    /// # diesel::table! { accounts (id) { id -> Integer, balance -> BigInt } }
    ///
    /// conn.retry_transaction(RetryPolicy::default(), async |conn| {
    ///     let balance: i64 = accounts::table.find(1).select(accounts::balance).first(conn).await?;
    ///     diesel::update(accounts::table.find(1))
    ///         .set(accounts::balance.eq(balance - 10))
    ///         .execute(conn)
    ///         .await
    /// })
    /// .await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// For an isolation level see [`TransactionBuilder::retry`].
    ///
    /// # Errors
    ///
    /// That of the last attempt. `AlreadyInTransaction` inside of a transaction, of which a part alone
    /// cannot be done again.
    ///
    /// # Cancel safety
    ///
    /// As [`TransactionBuilder::run`].
    pub async fn retry_transaction<'a, T, E, F>(
        &mut self,
        policy: RetryPolicy,
        callback: F,
    ) -> Result<T, E>
    where
        for<'r> F: AsyncFnOnce(&'r mut Self) -> Result<T, E>
            + AsyncFunc<&'r mut Self, Result<T, E>, Fut: Send>
            + Clone
            + Send
            + Sync
            + 'a,
        T: Send + 'a,
        E: From<DieselError> + Send + 'a,
    {
        self.build_transaction().retry(policy, callback).await
    }
}

impl TransactionBuilder<'_> {
    /// As [`run`](Self::run), again and again by `policy`; see
    /// [`ReplicatedConnection::retry_transaction`].
    ///
    /// A read-only transaction that two attempts on replicas could not finish is tried on the primary, as is
    /// the last attempt.
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
                Attempt::Over(result) => return result,
                Attempt::Again(error) => error,
            };
            let Some(delay) = policy.next(attempt, started.elapsed(), rand::random()) else {
                return Err(error);
            };
            attempt += 1;
            // Two replicas had their turn, or there is no other: the primary has the last word.
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

    async fn attempt<'b, T, E, F>(&mut self, callback: F) -> Attempt<T, E>
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
        // It tells more than the errors that come out of the callback.
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
                    Ok(()) => Attempt::Over(Ok(value)),
                    Err(error) => judge(error, conflict()),
                }
            }
            Err(error) => {
                let lost = wire.as_ref().is_none_or(|wire| !wire.is_usable());
                let again = conflict() || lost;
                let rolled_back: QueryResult<()> =
                    AnsiTransactionManager::rollback_transaction(&mut *self.connection).await;
                match rolled_back {
                    Ok(()) if again => Attempt::Again(error),
                    Ok(()) => Attempt::Over(Err(error)),
                    Err(failure) => Attempt::Over(Err(failure.into())),
                }
            }
        }
    }
}

/// What comes after an error of BEGIN or COMMIT.
fn judge<T, E: From<DieselError>>(error: DieselError, conflict: bool) -> Attempt<T, E> {
    let from_database = matches!(error, DieselError::DatabaseError(..));
    if conflict || (from_database && error.outcome() == Outcome::NotRun) {
        Attempt::Again(error.into())
    } else {
        Attempt::Over(Err(error.into()))
    }
}
