//! Transactions with an isolation level, an access mode and deferrability, and snapshots.

use diesel::QueryResult;
use diesel::pg::Pg;
use diesel::query_builder::{AstPass, QueryFragment};
use diesel_async::{AnsiTransactionManager, SimpleAsyncConnection, TransactionManager};

use super::ReplicatedConnection;
use super::func::AsyncFunc;
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

impl ReplicatedConnection {
    /// Runs `callback` on one snapshot of the data, on one node: in a transaction that is
    /// `REPEATABLE READ READ ONLY`. The snapshot has what the reads of this connection must see
    /// ([`Consistency`](crate::Consistency)); a replica serves it where one shows that, whatever the
    /// pool says of read-only transactions.
    ///
    /// ```no_run
    /// # async fn example(conn: &mut diesel_replicated::ReplicatedConnection) -> diesel::QueryResult<()> {
    /// use diesel::prelude::*;
    /// use diesel_async::RunQueryDsl;
    /// # diesel::table! { orders (id) { id -> Integer, total -> BigInt } }
    ///
    /// let (number, newest) = conn
    ///     .snapshot(async |conn| {
    ///         let number: i64 = orders::table.count().get_result(conn).await?;
    ///         let newest = orders::table.select(orders::id).order(orders::id.desc());
    ///         let newest: Vec<i32> = newest.limit(10).load(conn).await?;
    ///         QueryResult::Ok((number, newest))
    ///     })
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`TransactionBuilder::run`].
    pub async fn snapshot<'a, T, E, F>(&mut self, callback: F) -> Result<T, E>
    where
        for<'r> F: AsyncFnOnce(&'r mut Self) -> Result<T, E>
            + AsyncFunc<&'r mut Self, Result<T, E>, Fut: Send>
            + Send
            + 'a,
        T: 'a,
        E: From<diesel::result::Error> + 'a,
    {
        let mut transaction = self.build_transaction().repeatable_read().read_only();
        transaction.on_replicas = Some(true);
        transaction.run(callback).await
    }

    /// Starts to build a transaction.
    pub fn build_transaction(&mut self) -> TransactionBuilder<'_> {
        TransactionBuilder {
            connection: self,
            isolation: None,
            access: None,
            deferrable: None,
            durability: None,
            on_replicas: None,
        }
    }
}

impl<'a> TransactionBuilder<'a> {
    /// `READ ONLY`. Where the pool lets it
    /// ([`Config::read_only_transactions_on_replicas`](crate::Config)), it runs on a replica.
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

    /// `ISOLATION LEVEL SERIALIZABLE`. Always on the primary: no standby offers it.
    pub fn serializable(mut self) -> Self {
        self.isolation = Some(" ISOLATION LEVEL SERIALIZABLE");
        self
    }

    /// How far this transaction's commit must get before it is acknowledged.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = Some(durability);
        self
    }

    /// Runs `callback` inside the transaction: commits if it returns `Ok`, else rolls back.
    ///
    /// # Errors
    ///
    /// The error of the callback, or of BEGIN, COMMIT or ROLLBACK.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the transaction open on a server connection that is then closed
    /// with this connection, which rolls it back; the connection refuses further transactions.
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

    /// Its BEGIN, also as a fragment of a query.
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
