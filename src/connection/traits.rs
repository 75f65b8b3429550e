//! The traits of diesel-async. They are thin: the work is in [`super::execute`].
//!
//! Each exists for `ReplicatedConnection` and for `&ReplicatedConnection`, on one implementation.

use diesel::associations::{HasTable, Identifiable};
use diesel::connection::{CacheSize, Instrumentation, InstrumentationEvent, StrQueryHelper};
use diesel::pg::Pg;
use diesel::query_builder::{AsChangeset, AsQuery, IntoUpdateTarget, QueryFragment, QueryId};
use diesel::query_dsl::methods::FindDsl;
use diesel::{ConnectionResult, QueryResult};
use diesel_async::methods::LoadQuery;
use diesel_async::pooled_connection::{PoolableConnection, RecyclingMethod};
use diesel_async::{
    AnsiTransactionManager, AsyncConnection, AsyncConnectionCore, RunQueryDsl,
    SimpleAsyncConnection, TransactionManager, UpdateAndFetchResults,
};
use futures_core::future::BoxFuture;
use futures_util::FutureExt;
use std::sync::atomic::Ordering;

use super::ReplicatedConnection;
use super::action::{Action, Batch, Execute, Load};
use super::stream::{Row, RowStream};
use crate::cluster::shared;
use crate::config::redact;
use crate::error::Error;
use crate::statement::Statement;

impl ReplicatedConnection {
    /// Captures the query now, because it is not `Send`. Runs it when polled.
    fn start<'a, Q, A>(&'a self, query: &Q) -> BoxFuture<'a, QueryResult<A::Output>>
    where
        Q: QueryFragment<Pg> + QueryId,
        A: Action + From<Statement> + 'a,
    {
        self.record(InstrumentationEvent::start_query(&diesel::debug_query(
            query,
        )));
        let captured = Statement::capture(query);
        self.finish(captured.map(A::from))
    }

    fn finish<'a, A: Action + 'a>(
        &'a self,
        action: QueryResult<A>,
    ) -> BoxFuture<'a, QueryResult<A::Output>> {
        match action {
            Ok(mut action) => async move {
                let result = match &self.keyed {
                    None => self.run(&mut action).await,
                    Some(keyed) => self.run_keyed(keyed, &mut action).await,
                };
                self.record_end(action.sql(), result.as_ref().err());
                result
            }
            .boxed(),
            Err(error) => async move {
                self.record_end("", Some(&error));
                Err(error)
            }
            .boxed(),
        }
    }

    async fn batch(&self, sql: &str) -> QueryResult<()> {
        self.record(InstrumentationEvent::start_query(&StrQueryHelper::new(sql)));
        let result = match &self.keyed {
            None => self.run(&mut Batch(sql)).await,
            Some(keyed) => self.run_keyed(keyed, &mut Batch(sql)).await,
        };
        self.record_end(sql, result.as_ref().err());
        result
    }

    fn record_end(&self, sql: &str, error: Option<&diesel::result::Error>) {
        self.record(InstrumentationEvent::finish_query(
            &StrQueryHelper::new(sql),
            error,
        ));
    }
}

impl SimpleAsyncConnection for ReplicatedConnection {
    async fn batch_execute(&mut self, query: &str) -> QueryResult<()> {
        self.batch(query).await
    }
}

impl SimpleAsyncConnection for &ReplicatedConnection {
    async fn batch_execute(&mut self, query: &str) -> QueryResult<()> {
        self.batch(query).await
    }
}

impl AsyncConnectionCore for ReplicatedConnection {
    type ExecuteFuture<'conn, 'query> = BoxFuture<'conn, QueryResult<usize>>;
    type LoadFuture<'conn, 'query> = BoxFuture<'conn, QueryResult<RowStream>>;
    type Stream<'conn, 'query> = RowStream;
    type Row<'conn, 'query> = Row;
    type Backend = Pg;

    fn load<'conn, 'query, T>(&'conn mut self, source: T) -> Self::LoadFuture<'conn, 'query>
    where
        T: AsQuery + 'query,
        T::Query: QueryFragment<Self::Backend> + QueryId + 'query,
    {
        self.start::<_, Load>(&source.as_query())
    }

    fn execute_returning_count<'conn, 'query, T>(
        &'conn mut self,
        source: T,
    ) -> Self::ExecuteFuture<'conn, 'query>
    where
        T: QueryFragment<Self::Backend> + QueryId + 'query,
    {
        self.start::<_, Execute>(&source)
    }
}

impl<'a> AsyncConnectionCore for &'a ReplicatedConnection {
    type ExecuteFuture<'conn, 'query> = BoxFuture<'a, QueryResult<usize>>;
    type LoadFuture<'conn, 'query> = BoxFuture<'a, QueryResult<RowStream>>;
    type Stream<'conn, 'query> = RowStream;
    type Row<'conn, 'query> = Row;
    type Backend = Pg;

    fn load<'conn, 'query, T>(&'conn mut self, source: T) -> Self::LoadFuture<'conn, 'query>
    where
        T: AsQuery + 'query,
        T::Query: QueryFragment<Self::Backend> + QueryId + 'query,
    {
        ReplicatedConnection::start::<_, Load>(self, &source.as_query())
    }

    fn execute_returning_count<'conn, 'query, T>(
        &'conn mut self,
        source: T,
    ) -> Self::ExecuteFuture<'conn, 'query>
    where
        T: QueryFragment<Self::Backend> + QueryId + 'query,
    {
        ReplicatedConnection::start::<_, Execute>(self, &source)
    }
}

impl AsyncConnection for ReplicatedConnection {
    type TransactionManager = AnsiTransactionManager;

    /// Takes one libpq-style URL that names every host of the cluster, for example
    /// `postgres://app@db1:5432,db2:5432,db3:5432/app`. The nodes tell which of them is the primary.
    ///
    /// Connections from one URL share one cluster within the process: its pools and its manager. So only the first
    /// costs something, and pools of `ReplicatedConnection` work as they are.
    async fn establish(database_url: &str) -> ConnectionResult<Self> {
        // The events of plain connections carry the whole URL. Ours carry no password.
        let url = redact(database_url);
        let mut instrumentation = diesel::connection::DynInstrumentation::default_instrumentation();
        instrumentation.on_connection_event(InstrumentationEvent::start_establish_connection(&url));
        let connection = match shared(database_url).await {
            Ok(cluster) => Self::new(cluster, std::sync::Arc::default()).map(Self::of_url),
            Err(error) => Err(error),
        };
        let connection = connection.map_err(Into::into);
        instrumentation.on_connection_event(InstrumentationEvent::finish_establish_connection(
            &url,
            connection.as_ref().err(),
        ));
        connection
    }

    fn transaction_state(&mut self) -> &mut AnsiTransactionManager {
        let keyed = self.keyed.as_ref();
        let in_a_part = keyed.is_some_and(|keyed| keyed.take_must_roll_back());
        if self.must_roll_back.swap(false, Ordering::AcqRel) || in_a_part {
            // The call comes back here once, with the flag taken.
            AnsiTransactionManager::transaction_manager_status_mut(self)
                .set_requires_rollback_maybe_up_to_top_level(true);
        }
        &mut self.transaction
    }

    fn instrumentation(&mut self) -> &mut dyn Instrumentation {
        &mut **self.instrumentation.get_mut()
    }

    fn set_instrumentation(&mut self, instrumentation: impl Instrumentation) {
        *self.instrumentation.get_mut() = instrumentation.into();
    }

    fn set_prepared_statement_cache_size(&mut self, size: CacheSize) {
        self.cache_size = size;
        let session = self.session.get_mut();
        session.notice_transaction_end();
        // A connection that a row stream still uses keeps its cache until it goes back.
        for lease in [&mut session.primary, &mut session.replica] {
            let lease = lease.as_mut().and_then(std::sync::Arc::get_mut);
            if let Some(connection) = lease.and_then(crate::node::Lease::connection_mut) {
                connection.set_cache_size(size);
            }
        }
    }
}

impl PoolableConnection for ReplicatedConnection {
    /// Makes the connection as good as new, without asking a server. The next user starts without the history of the
    /// last one.
    async fn ping(&mut self, config: &RecyclingMethod<Self>) -> QueryResult<()> {
        let is_new = self.is_new();
        self.settle_origin();
        // What a hook has left that cannot be made again is for the one user that the connection has.
        if !is_new || !self.has_lost_its_origin() {
            self.renew();
        } else if let Some((node, cause)) = self.lost_state() {
            return Err(Error::SessionLost { node, cause }.into());
        }
        match config {
            RecyclingMethod::Fast | RecyclingMethod::Verified => Ok(()),
            RecyclingMethod::CustomQuery(query) => {
                diesel::sql_query(query.as_ref()).execute(self).await?;
                Ok(())
            }
            RecyclingMethod::CustomFunction(check) => check(self).await,
        }
    }

    /// A pool over this one asks when a user has gone: what that left is undone, and the server
    /// connections go back to their own pools.
    fn is_broken(&mut self) -> bool {
        let broken = AnsiTransactionManager::is_broken_transaction_manager(self);
        // Only the open transactions of tests leave the manager unbroken.
        let manager = AnsiTransactionManager::transaction_manager_status_mut(self);
        let test_transaction = manager
            .transaction_depth()
            .is_ok_and(|depth| depth.is_some());
        let session = self.session.get_mut();
        session.notice_transaction_end();
        if test_transaction && session.transaction.is_some() {
            return broken;
        }
        let lost = self.has_lost_its_origin();
        self.renew();
        broken || lost
    }
}

impl<'b, Changes, Output, Tab, V> UpdateAndFetchResults<Changes, Output> for ReplicatedConnection
where
    Output: Send + 'static,
    Changes: Copy + AsChangeset<Target = Tab> + Send + Identifiable<Table = Tab>,
    Tab: diesel::Table + FindDsl<Changes::Id> + 'b,
    diesel::dsl::Find<Tab, Changes::Id>: IntoUpdateTarget<Table = Tab, WhereClause = V>,
    diesel::query_builder::UpdateStatement<Tab, V, Changes::Changeset>: AsQuery,
    diesel::dsl::Update<Changes, Changes>: LoadQuery<'b, Self, Output>,
    V: Send + 'b,
    Changes::Changeset: Send + 'b,
    Tab::FromClause: Send,
    Changes: HasTable,
{
    fn update_and_fetch<'conn, 'changes>(
        &'conn mut self,
        changeset: Changes,
    ) -> BoxFuture<'changes, QueryResult<Output>>
    where
        Changes: 'changes,
        'conn: 'changes,
        Self: 'changes,
    {
        async move {
            diesel::update(changeset)
                .set(changeset)
                .get_result(self)
                .await
        }
        .boxed()
    }
}
