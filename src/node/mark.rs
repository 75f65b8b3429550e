//! Proves without any privilege that a standby has a primary's log.
//!
//! The primary runs a few empty transactions, of which some commit and some roll back, by chance. A standby that
//! shows the same ends has replayed them: no other history has the same numbers with the same ends. A standby that
//! has replayed log beyond them and shows other ends has another history.

use diesel::sql_types::{Array, BigInt, Nullable, Text};
use diesel::{QueryResult, QueryableByName, sql_query};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use crate::position::Lsn;

/// The ends of some transactions on the server that is asked. It leaves out those that the server does not know.
const ENDS: &str = "SELECT ARRAY(SELECT CASE WHEN xid::text::xid8 < \
        pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot()) \
        THEN pg_catalog.pg_xact_status(xid::text::xid8) END \
    FROM pg_catalog.unnest($1) WITH ORDINALITY AS it(xid, place) ORDER BY place) AS ends";

/// Transactions of a primary that no other history has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    /// The timeline on which they ran.
    pub(crate) timeline: u32,
    /// A standby that has replayed this log up to here shows them.
    pub(crate) end: Lsn,
    /// Each with whether it was committed.
    pub(super) transactions: Vec<(i64, bool)>,
}

impl Mark {
    /// Whether the server of a connection shows it.
    pub(crate) async fn is_shown_by(&self, pg: &AsyncPgConnection) -> QueryResult<bool> {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = Array<Nullable<Text>>)]
            ends: Vec<Option<String>>,
        }
        let numbers: Vec<i64> = self.transactions.iter().map(|(xid, _)| *xid).collect();
        let query = sql_query(ENDS).bind::<Array<BigInt>, _>(numbers);
        let row: Row = query.get_result(&mut &*pg).await?;
        let ends = row.ends.iter().map(|end| match end.as_deref() {
            Some("committed") => Some(true),
            Some("aborted") => Some(false),
            _ => None,
        });
        Ok(ends.eq(self.transactions.iter().map(|(_, commits)| Some(*commits))))
    }
}
