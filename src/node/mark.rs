//! Proves without any privilege that a standby has a primary's log.
//!
//! The primary runs a few empty transactions, of which some commit and some roll back, by chance. A standby that
//! shows the same ends has replayed them: no other history has the same numbers with the same ends. A standby that
//! has replayed log beyond them and shows other ends has another history.

use diesel::sql_types::{Array, BigInt, Nullable, Text};
use diesel::{QueryResult, QueryableByName, sql_query};
use diesel_async::{RunQueryDsl, SimpleAsyncConnection};

use super::facts::Place;
use super::monitor_connection::MonitorConnection;
use crate::position::Lsn;

/// How many transactions.
const TRANSACTIONS: usize = 32;

/// How often the primary is asked whether they are on its disk.
const TRIES: u32 = 100;
const PAUSE: std::time::Duration = std::time::Duration::from_millis(5);

/// Writes a little and flushes it with all that came before. Waits for no standby. If this role may not flush, the
/// server does it a moment later.
const FLUSH: &str = "SET LOCAL synchronous_commit = local; \
    SELECT pg_catalog.pg_logical_emit_message(true, 'diesel_replicated', ''); COMMIT";

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
    transactions: Vec<(i64, bool)>,
}

impl MonitorConnection {
    /// Makes a mark on a primary. `None` if it is none, or may not tell where it is.
    pub(crate) async fn mark(&mut self) -> QueryResult<Option<Mark>> {
        let done = self.toss().await;
        if done.is_err() {
            // Otherwise the next question would fail as well.
            self.connection.pg.batch_execute("ROLLBACK").await?;
        }
        let transactions = done?;
        let flush = self.connection.pg.batch_execute(FLUSH).await;
        if flush.is_err() {
            self.connection.pg.batch_execute("ROLLBACK").await?;
        }
        let mut end = None;
        for _ in 0..TRIES {
            let Some(facts) = self.ask().await? else {
                return Ok(None);
            };
            let Place::Primary {
                flushed: Some(flushed),
                inserted: Some(inserted),
                ..
            } = facts.place
            else {
                return Ok(None);
            };
            let end = *end.get_or_insert(inserted);
            // A crash may take back what is not on disk.
            if flushed >= end {
                return Ok(Some(Mark {
                    timeline: facts.timeline,
                    end,
                    transactions,
                }));
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(None)
    }

    /// Runs within a transaction, and ends it.
    async fn toss(&mut self) -> QueryResult<Vec<(i64, bool)>> {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = BigInt)]
            xid: i64,
        }
        let pg = &mut self.connection.pg;
        let mut transactions = Vec::with_capacity(TRANSACTIONS);
        pg.batch_execute("BEGIN").await?;
        for _ in 0..TRANSACTIONS {
            let query = sql_query("SELECT pg_catalog.pg_current_xact_id()::text::bigint AS xid");
            let row: Row = query.get_result(pg).await?;
            let commits: bool = rand::random();
            pg.batch_execute(match commits {
                true => "COMMIT AND CHAIN",
                false => "ROLLBACK AND CHAIN",
            })
            .await?;
            transactions.push((row.xid, commits));
        }
        Ok(transactions)
    }

    /// Whether a standby shows the mark.
    pub(crate) async fn shows(&mut self, mark: &Mark) -> QueryResult<bool> {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = Array<Nullable<Text>>)]
            ends: Vec<Option<String>>,
        }
        let numbers: Vec<i64> = mark.transactions.iter().map(|(xid, _)| *xid).collect();
        let query = sql_query(ENDS).bind::<Array<BigInt>, _>(numbers);
        let row: Row = query.get_result(&mut self.connection.pg).await?;
        let ends = row.ends.iter().map(|end| match end.as_deref() {
            Some("committed") => Some(true),
            Some("aborted") => Some(false),
            _ => None,
        });
        Ok(ends.eq(mark.transactions.iter().map(|(_, commits)| Some(*commits))))
    }
}
