//! Makes a [`Mark`] on a primary, and looks for it on standbys.

use diesel::sql_types::BigInt;
use diesel::{QueryResult, QueryableByName, sql_query};
use diesel_async::{RunQueryDsl, SimpleAsyncConnection};

use super::facts::Place;
use super::mark::Mark;
use super::monitor_connection::MonitorConnection;

/// How many transactions.
const TRANSACTIONS: usize = 32;

/// How often the primary is asked whether they are on its disk.
const TRIES: u32 = 100;
const PAUSE: std::time::Duration = std::time::Duration::from_millis(5);

/// Writes a little and flushes it with all that came before. Waits for no standby. If this role may not flush, the
/// server does it a moment later.
const FLUSH: &str = "SET LOCAL synchronous_commit = local; \
    SELECT pg_catalog.pg_logical_emit_message(true, 'diesel_replicated', ''); COMMIT";

impl MonitorConnection {
    /// Makes a mark on a primary. `None` if it is none, or may not tell where it is.
    pub(crate) async fn mark(&mut self) -> QueryResult<Option<Mark>> {
        let done = self.toss().await;
        if done.is_err() {
            // Otherwise the next question would fail as well.
            self.connection.pg_mut().batch_execute("ROLLBACK").await?;
        }
        let transactions = done?;
        let flush = self.connection.pg_mut().batch_execute(FLUSH).await;
        if flush.is_err() {
            self.connection.pg_mut().batch_execute("ROLLBACK").await?;
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
        let pg = self.connection.pg_mut();
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
        mark.is_shown_by(self.connection.pg()).await
    }
}
