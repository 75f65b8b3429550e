//! Shows a [`Statement`] to Diesel as the query that it was.

use std::marker::PhantomData;

use diesel::QueryResult;
use diesel::pg::Pg;
use diesel::query_builder::bind_collector::RawBytesBindCollector;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::Untyped;
use diesel_async::{AsyncConnectionCore, AsyncPgConnection};
use futures_core::future::BoxFuture;

use super::capture::Statement;

/// The rows of one statement; they do not borrow the connection.
pub(crate) type Rows = <AsyncPgConnection as AsyncConnectionCore>::Stream<'static, 'static>;

/// A statement under the static identity of the query type `Q`, so that the prepared-statement
/// cache of the connection finds it by type.
struct Replay<'a, Q> {
    statement: &'a Statement,
    query: PhantomData<fn() -> Q>,
}

impl<'a, Q> Replay<'a, Q> {
    fn of(statement: &'a Statement) -> Self {
        Self {
            statement,
            query: PhantomData,
        }
    }
}

impl<Q: QueryId> QueryId for Replay<'_, Q> {
    type QueryId = Q::QueryId;
    const HAS_STATIC_QUERY_ID: bool = Q::HAS_STATIC_QUERY_ID;
}

impl<Q> Query for Replay<'_, Q> {
    type SqlType = Untyped;
}

impl<Q> QueryFragment<Pg> for Replay<'_, Q> {
    fn walk_ast<'b>(&'b self, mut pass: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        if !self.statement.cacheable || self.statement.anew {
            pass.unsafe_to_cache_prepared();
        }
        pass.push_sql(&self.statement.sql);
        pass.push_bind_collector_data::<RawBytesBindCollector<Pg>>(&self.statement.binds.collected)
    }
}

pub(super) fn load<'a, Q: QueryId>(
    mut connection: &'a AsyncPgConnection,
    statement: &'a Statement,
) -> BoxFuture<'a, QueryResult<Rows>> {
    AsyncConnectionCore::load(&mut connection, Replay::<Q>::of(statement))
}

pub(super) fn execute<'a, Q: QueryId>(
    mut connection: &'a AsyncPgConnection,
    statement: &'a Statement,
) -> BoxFuture<'a, QueryResult<usize>> {
    AsyncConnectionCore::execute_returning_count(&mut connection, Replay::<Q>::of(statement))
}
