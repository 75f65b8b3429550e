//! Transactions with an isolation level, an access mode and deferrability, and snapshots.

use diesel::QueryResult;
use diesel::pg::Pg;
use diesel::query_builder::{AstPass, QueryFragment};
use diesel_async::{AnsiTransactionManager, SimpleAsyncConnection, TransactionManager};

use super::ReplicatedConnection;
use crate::config::Durability;

/// Builds a transaction, as diesel-async's builder for its PostgreSQL connection does.
///
/// See [`SET TRANSACTION`](https://www.postgresql.org/docs/current/sql-set-transaction.html).
///
/// ```no_run
/// # async fn example(conn: &mut diesel_replicated::ReplicatedConnection) -> diesel::QueryResult<()> {
/// conn.build_transaction()
///     .read_only()
///     .repeatable_read()
///     .run(async |conn| {
///         // every read in here sees the same snapshot
///         diesel::QueryResult::Ok(())
///     })
///     .await
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a transaction builder does nothing until `run` is called"]
pub struct TransactionBuilder<'a> {
    pub(super) connection: &'a mut ReplicatedConnection,
    isolation: Option<&'static str>,
    access: Option<&'static str>,
    deferrable: Option<&'static str>,
    durability: Option<Durability>,
    pub(super) on_replicas: Option<bool>,
}

impl<'a> TransactionBuilder<'a> {
    pub(super) fn new(connection: &'a mut ReplicatedConnection) -> Self {
        Self {
            connection,
            isolation: None,
            access: None,
            deferrable: None,
            durability: None,
            on_replicas: None,
        }
    }

    /// `READ ONLY`. It runs on a replica if the pool allows that
    /// ([`Config::read_only_transactions_on_replicas`](crate::Config)).
    pub fn read_only(mut self) -> Self {
        self.access = Some(" READ ONLY");
        self
    }

    /// `READ WRITE`.
    pub fn read_write(mut self) -> Self {
        self.access = Some(" READ WRITE");
        self
    }

    /// `DEFERRABLE`; it matters for serializable read-only transactions only.
    pub fn deferrable(mut self) -> Self {
        self.deferrable = Some(" DEFERRABLE");
        self
    }

    /// `NOT DEFERRABLE`.
    pub fn not_deferrable(mut self) -> Self {
        self.deferrable = Some(" NOT DEFERRABLE");
        self
    }

    /// `ISOLATION LEVEL READ COMMITTED`.
    pub fn read_committed(mut self) -> Self {
        self.isolation = Some(" ISOLATION LEVEL READ COMMITTED");
        self
    }

    /// `ISOLATION LEVEL REPEATABLE READ`.
    pub fn repeatable_read(mut self) -> Self {
        self.isolation = Some(" ISOLATION LEVEL REPEATABLE READ");
        self
    }

    /// `ISOLATION LEVEL SERIALIZABLE`. Always on the primary: a standby does not have it.
    pub fn serializable(mut self) -> Self {
        self.isolation = Some(" ISOLATION LEVEL SERIALIZABLE");
        self
    }

    /// How far this transaction's commit must get before it is acknowledged.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = Some(durability);
        self
    }

    /// Runs `callback` inside the transaction. Commits if it returns `Ok`, else rolls back.
    ///
    /// # Errors
    ///
    /// The error of the callback, or of BEGIN, COMMIT or ROLLBACK.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the transaction stays open on its server connection. That is closed with this
    /// connection, which rolls it back. Until then this connection refuses further transactions.
    pub async fn run<'b, T, E, F>(&mut self, callback: F) -> Result<T, E>
    where
        for<'r> F: AsyncFnOnce(&'r mut ReplicatedConnection) -> Result<T, E>
            + AsyncFunc<&'r mut ReplicatedConnection, Result<T, E>, Fut: Send>
            + Send
            + 'b,
        T: 'b,
        E: From<diesel::result::Error> + 'b,
    {
        self.start().await?;
        match callback(&mut *self.connection).await {
            Ok(value) => {
                AnsiTransactionManager::commit_transaction(&mut *self.connection).await?;
                Ok(value)
            }
            Err(error) => {
                let rolled_back: QueryResult<()> =
                    AnsiTransactionManager::rollback_transaction(&mut *self.connection).await;
                rolled_back?;
                Err(error)
            }
        }
    }

    pub(super) async fn start(&mut self) -> QueryResult<()> {
        let sql = self.begin();
        self.connection.session().begins_on_replicas = self.on_replicas;
        AnsiTransactionManager::begin_transaction_sql(&mut *self.connection, &sql).await?;
        match self.durability {
            Some(durability) => self.set_durability(durability).await,
            None => Ok(()),
        }
    }

    async fn set_durability(&mut self, durability: Durability) -> QueryResult<()> {
        let set = durability.sql("SET LOCAL");
        let result = self.connection.batch_execute(&set).await;
        if result.is_err() {
            AnsiTransactionManager::rollback_transaction(&mut *self.connection).await?;
        }
        result
    }

    /// The BEGIN, also as a fragment of a query.
    fn begin(&self) -> String {
        let parts = [self.isolation, self.access, self.deferrable];
        let options: String = parts.into_iter().flatten().collect();
        format!("BEGIN TRANSACTION{options}")
    }
}

/// The BEGIN that it sends, as with diesel-async's builder.
impl QueryFragment<Pg> for TransactionBuilder<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql(&self.begin());
        Ok(())
    }
}

/// An async closure whose future has a name, so that one can ask that it be `Send`.
///
/// The future of an `AsyncFnOnce` cannot be named on stable Rust. Every async closure implements this trait; there is
/// nothing to implement.
pub trait AsyncFunc<T, R>:
    AsyncFnOnce(T) -> R + FnOnce(T) -> <Self as AsyncFunc<T, R>>::Fut
{
    /// The closure's future.
    type Fut: Future<Output = R>;
}

impl<F, T, Fut, R> AsyncFunc<T, R> for F
where
    F: AsyncFnOnce(T) -> R + FnOnce(T) -> Fut,
    Fut: Future<Output = R>,
{
    type Fut = Fut;
}
