//! A query that one connection asks again and again. It is parsed and planned once for each connection.

use diesel::QueryResult;
use diesel::pg::Pg;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::Untyped;

/// SQL whose columns are read by name. `diesel::sql_query` is parsed and planned each time: on an idle server that was
/// most of what its monitors cost.
pub(super) struct AskedAgain<'a>(pub(super) &'a str);

impl QueryId for AskedAgain<'_> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl QueryFragment<Pg> for AskedAgain<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql(self.0);
        Ok(())
    }
}

impl Query for AskedAgain<'_> {
    type SqlType = Untyped;
}

impl<Conn> diesel::RunQueryDsl<Conn> for AskedAgain<'_> {}
