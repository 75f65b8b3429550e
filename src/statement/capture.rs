//! Turns a Diesel query into a [`Statement`] at once, because the query itself is not `Send`. Later shows it to
//! Diesel again under the original type.

use std::any::TypeId;
use std::marker::PhantomData;
use std::sync::{Arc, LazyLock};

use diesel::QueryResult;
use diesel::pg::{Pg, PgQueryBuilder};
use diesel::query_builder::bind_collector::RawBytesBindCollector;
use diesel::query_builder::{AstPass, Query, QueryBuilder, QueryFragment, QueryId};
use diesel::result::Error as DieselError;
use diesel::sql_types::Untyped;
use diesel_async::{AsyncConnectionCore, AsyncPgConnection};
use futures_core::future::BoxFuture;
use quick_cache::sync::Cache;

use super::binds::Binds;
use super::oids::CustomType;

/// The rows of one statement; they do not borrow the connection.
pub(crate) type Rows = <AsyncPgConnection as AsyncConnectionCore>::Stream<'static, 'static>;

/// How a statement is sent: Diesel's own entry points, for the type of the query.
pub(crate) type SendFn<R> =
    for<'a> fn(&'a AsyncPgConnection, &'a Statement) -> BoxFuture<'a, QueryResult<R>>;

/// The texts of queries whose type determines the text. A program has only so many of them.
static TEXTS: LazyLock<Cache<TypeId, Arc<str>>> = LazyLock::new(|| Cache::new(4096));

/// The message counts them in 16 bits.
const MOST_BINDS: usize = 65_535;

/// SQL text, collected bind values and how to run them.
///
/// It has no `Debug`: bind values must never be printed.
pub(crate) struct Statement {
    pub(super) sql: Arc<str>,
    pub(super) binds: Binds,
    pub(super) cacheable: bool,
    pub(super) anew: bool,
    /// The identity of the query's type, and whether that determines the text. An `Option` would take more room.
    id: TypeId,
    has_id: bool,
    load: SendFn<Rows>,
    execute: SendFn<usize>,
}

impl Statement {
    /// Captures `query`; the OIDs of custom types are filled in later, see [`Self::custom_types`].
    pub(crate) fn capture<Q>(query: &Q) -> QueryResult<Self>
    where
        Q: QueryFragment<Pg> + QueryId,
    {
        let id = Q::query_id();
        let (sql, cacheable, binds) = collect(query, id)?;
        Ok(Self {
            sql,
            binds,
            cacheable,
            anew: false,
            id: id.unwrap_or_else(TypeId::of::<()>),
            has_id: id.is_some(),
            load: load::<Q>,
            execute: execute::<Q>,
        })
    }

    pub(crate) fn sql(&self) -> &str {
        &self.sql
    }

    /// The static identity of the query's type, if it has one: equal ids mean equal SQL.
    pub(crate) fn id(&self) -> Option<TypeId> {
        self.has_id.then_some(self.id)
    }

    /// The bind of this number, from 0.
    pub(crate) fn bound(&self, number: usize) -> super::Bound {
        self.binds.bound(number)
    }

    /// Custom types whose OIDs must be filled in before the statement can be sent.
    pub(crate) fn custom_types(&self) -> &[CustomType] {
        self.binds.custom_types()
    }

    /// Whether it is to be prepared anew, whatever the connection has in its cache.
    pub(crate) fn prepare_anew(&mut self, anew: bool) {
        self.anew = anew;
    }

    /// Fills in the OIDs of [`Self::custom_types`], in their order.
    pub(crate) fn resolve(&mut self, oids: &[super::Oids]) {
        self.binds.resolve(oids);
    }

    pub(crate) async fn load(&self, connection: &AsyncPgConnection) -> QueryResult<Rows> {
        (self.load)(connection, self).await
    }

    pub(crate) async fn execute(&self, connection: &AsyncPgConnection) -> QueryResult<usize> {
        (self.execute)(connection, self).await
    }
}

/// The part that is not generic, compiled once.
fn collect(
    query: &dyn QueryFragment<Pg>,
    id: Option<TypeId>,
) -> QueryResult<(Arc<str>, bool, Binds)> {
    let cacheable = query.is_safe_to_cache_prepared(&Pg)?;
    let build = || -> QueryResult<Arc<str>> {
        let mut builder = PgQueryBuilder::default();
        query.to_sql(&mut builder, &Pg)?;
        Ok(builder.finish().into())
    };
    // Diesel's own cache of prepared statements rests on the same: what is safe to cache has one text for its type.
    let sql = match id.filter(|_| cacheable) {
        Some(id) => TEXTS.get_or_insert_with(&id, build)?,
        None => build()?,
    };
    let binds = Binds::collect(query)?;
    if binds.len() > MOST_BINDS {
        let told = format!(
            "the statement has {} bind values, and PostgreSQL takes {MOST_BINDS} at the most: divide it, or send \
             arrays",
            binds.len()
        );
        return Err(DieselError::QueryBuilderError(told.into()));
    }
    Ok((sql, cacheable, binds))
}

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

fn load<'a, Q: QueryId>(
    mut connection: &'a AsyncPgConnection,
    statement: &'a Statement,
) -> BoxFuture<'a, QueryResult<Rows>> {
    AsyncConnectionCore::load(&mut connection, Replay::<Q>::of(statement))
}

fn execute<'a, Q: QueryId>(
    mut connection: &'a AsyncPgConnection,
    statement: &'a Statement,
) -> BoxFuture<'a, QueryResult<usize>> {
    AsyncConnectionCore::execute_returning_count(&mut connection, Replay::<Q>::of(statement))
}

#[cfg(test)]
mod tests {
    use diesel::dsl::{count_star, frame};
    use diesel::expression_methods::{FrameBoundDsl, FrameClauseDsl, WindowExpressionMethods};

    use super::*;

    /// <https://github.com/diesel-rs/diesel/pull/5193>: values that stand in the text and not among the binds.
    #[test]
    fn queries_of_one_type_with_different_texts_keep_their_texts() {
        let captured = |rows: u64| {
            let frame = frame::Rows.frame_start_with(rows.preceding());
            let query = diesel::select(count_star().over().frame_by(frame));
            Statement::capture(&query).unwrap()
        };
        assert!(captured(2).sql().contains("2 PRECEDING"));
        assert!(captured(3).sql().contains("3 PRECEDING"));
    }
}
