//! Which run of which server a connection leads to.

use diesel::sql_types::{BigInt, Integer};
use diesel::{QueryResult, QueryableByName, sql_query};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

/// When the server was started, in microseconds.
pub(super) const START_TIME: &str =
    "(1000000 * EXTRACT(epoch FROM pg_catalog.pg_postmaster_start_time()))::bigint";

/// One run of one server. Two names of one server report the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, QueryableByName)]
pub(crate) struct Run {
    /// When the server was started, in microseconds.
    #[diesel(sql_type = BigInt)]
    pub(crate) started: i64,
    #[diesel(sql_type = Integer)]
    pub(crate) port: i32,
}

impl Run {
    /// Whether both are known and differ.
    pub(crate) fn differ(one: Option<Self>, other: Option<Self>) -> bool {
        one.zip(other).is_some_and(|(one, other)| one != other)
    }

    /// Asks over a connection.
    pub(super) async fn ask(pg: &mut AsyncPgConnection) -> QueryResult<Self> {
        let look = format!(
            "SELECT {START_TIME} AS started, pg_catalog.current_setting('port')::int AS port"
        );
        sql_query(look).get_result(pg).await
    }
}
