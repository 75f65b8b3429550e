//! The connection over which one node is asked again and again.

use std::sync::Arc;
use std::time::Duration;

use diesel::sql_types::{Array, BigInt, Bool, Double, Nullable, Text};
use diesel::{QueryResult, QueryableByName, sql_query};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};

use super::asked_again::AskedAgain;
use super::facts::{Facts, Identity, ask, identify};
use super::rights::MissingRight;
use super::{Node, NodeConnection};
use crate::error::ConnectError;
use crate::position::Lsn;
use crate::wire::Wire;

/// Which of some transactions are over on the server that is asked.
const OVER: &str = "SELECT ARRAY(SELECT xid FROM pg_catalog.unnest($1) AS xid \
    WHERE pg_catalog.pg_xact_status(xid::text::xid8) IS DISTINCT FROM 'in progress') AS over";

/// A number that grows with each change of the code in the database, from the server's count of changed catalog rows.
/// It reads no table, and may come a second late. Catalogs that temporary tables change are left out.
const CODE_CHANGES: &str = "SELECT sum(pg_catalog.pg_stat_get_tuples_inserted(oid) \
    + pg_catalog.pg_stat_get_tuples_updated(oid) + pg_catalog.pg_stat_get_tuples_deleted(oid))::bigint \
    AS changes FROM pg_catalog.unnest('{pg_catalog.pg_proc, pg_catalog.pg_trigger, pg_catalog.pg_rewrite, \
    pg_catalog.pg_policy, pg_catalog.pg_operator, pg_catalog.pg_cast, pg_catalog.pg_aggregate, \
    pg_catalog.pg_event_trigger, pg_catalog.pg_amop, pg_catalog.pg_amproc, pg_catalog.pg_range, \
    pg_catalog.pg_partitioned_table, pg_catalog.pg_statistic_ext}'::pg_catalog.regclass[]) AS oid";

#[derive(QueryableByName)]
struct CodeChanges {
    #[diesel(sql_type = BigInt)]
    changes: i64,
}

/// A connection over which a node is asked again and again.
pub(crate) struct MonitorConnection {
    pub(super) connection: NodeConnection,
    identity: Identity,
}

impl MonitorConnection {
    /// `answered` is called after each answer. A server that is far away answers long before it has told where it is.
    pub(crate) async fn open(
        node: &Node,
        answered: impl Fn() + Send + Sync,
    ) -> Result<Self, ConnectError> {
        let mut connection = node.pool.connector().connect_monitor().await?;
        answered();
        let identity = identify(&mut connection, &answered).await;
        let identity = identity.map_err(|error| node.pool.connector().monitor_failed(&error))?;
        answered();
        Ok(Self {
            connection,
            identity,
        })
    }

    /// While this connection lives the server was not restarted. A restarted server may be behind its last report.
    pub(crate) fn wire(&self) -> &Arc<Wire> {
        &self.connection.wire
    }

    /// The rights that this role lacks.
    pub(crate) fn limits(&self) -> &Arc<[MissingRight]> {
        &self.identity.limits
    }

    /// Asks again for what seldom changes.
    pub(crate) async fn identify(&mut self) -> QueryResult<()> {
        self.identity = identify(&mut self.connection, || ()).await?;
        Ok(())
    }

    /// Asks where the node is. `None` if it does not know itself: it is being promoted.
    pub(crate) async fn ask(&mut self) -> QueryResult<Option<Facts>> {
        ask(&mut self.connection, &self.identity).await
    }

    /// How far a standby has replayed that waits for more log, because it has replayed all whole records. `None` if it
    /// does not wait, or this role may not see that, or the application's source tells positions, which PostgreSQL's may
    /// not compare with.
    pub(crate) async fn replayed_all(&mut self) -> QueryResult<Option<Lsn>> {
        if self.connection.shows.sql.is_given() {
            return Ok(None);
        }
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = Nullable<BigInt>)]
            end: Option<i64>,
        }
        let look = "SELECT max(pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_last_wal_replay_lsn(), '0/0'))::bigint AS end \
            FROM pg_catalog.pg_stat_activity WHERE backend_type = 'startup' \
            AND wait_event IN ('RecoveryWalStream', 'RecoveryRetrieveRetryInterval')";
        let row: Row = AskedAgain(look)
            .get_result(self.connection.pg_mut())
            .await?;
        Ok(row.end.and_then(|end| u64::try_from(end).ok()).map(Lsn))
    }

    /// Has an idle primary write a few bytes of log, so that its standbys hear of it.
    pub(crate) async fn heartbeat(&mut self) -> QueryResult<()> {
        let beat = "SELECT pg_catalog.pg_logical_emit_message(false, 'diesel_replicated', '')";
        self.connection.pg_mut().batch_execute(beat).await
    }

    /// See [`code_changes`].
    pub(crate) async fn code_changes(&mut self) -> QueryResult<i64> {
        let row: CodeChanges = AskedAgain(CODE_CHANGES)
            .get_result(self.connection.pg_mut())
            .await?;
        Ok(row.changes)
    }

    /// How long commits have waited for a synchronous standby, as far as this role may see.
    pub(crate) async fn commits_wait(&mut self) -> QueryResult<Option<Duration>> {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = Nullable<Double>)]
            wait: Option<f64>,
        }
        let look = "SELECT EXTRACT(epoch FROM pg_catalog.clock_timestamp() - min(query_start))::float8 AS wait \
            FROM pg_catalog.pg_stat_activity WHERE wait_event = 'SyncRep' AND backend_type = 'client backend'";
        let row: Row = AskedAgain(look)
            .get_result(self.connection.pg_mut())
            .await?;
        let wait = row.wait.map(|seconds| seconds.max(0.0));
        Ok(wait.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()))
    }

    /// Whether the table for markers of commits is on this role's path.
    pub(crate) async fn has_markers(&mut self) -> QueryResult<bool> {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = Bool)]
            there: bool,
        }
        let look =
            "SELECT pg_catalog.to_regclass('diesel_replicated_commits') IS NOT NULL AS there";
        let row: Row = sql_query(look).get_result(self.connection.pg_mut()).await?;
        Ok(row.there)
    }

    /// Removes old markers of commits.
    pub(crate) async fn sweep(&mut self) -> QueryResult<()> {
        let sweep = "DELETE FROM diesel_replicated_commits WHERE id IN (SELECT id FROM \
            diesel_replicated_commits WHERE at < now() - interval '1 hour' LIMIT 1000)";
        self.connection.pg_mut().batch_execute(sweep).await
    }

    /// Which of these transactions are over here.
    pub(crate) async fn over(&mut self, transactions: Vec<i64>) -> QueryResult<Vec<i64>> {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = Array<BigInt>)]
            over: Vec<i64>,
        }
        let query = sql_query(OVER).bind::<Array<BigInt>, _>(transactions);
        let row: Row = query.get_result(self.connection.pg_mut()).await?;
        Ok(row.over)
    }

    /// The server's history of timelines: where each that came before `current` ended. `None` if
    /// this role may not read it (`GRANT EXECUTE ON FUNCTION pg_read_file(text) TO …`).
    ///
    /// See <https://www.postgresql.org/docs/current/continuous-archiving.html#BACKUP-TIMELINES>.
    pub(crate) async fn timelines(&mut self, current: u32) -> QueryResult<Option<Vec<(u32, Lsn)>>> {
        #[derive(QueryableByName)]
        struct May {
            #[diesel(sql_type = Bool)]
            may: bool,
        }
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = Text)]
            history: String,
        }
        let pg = self.connection.pg_mut();
        let may = "SELECT pg_catalog.has_function_privilege('pg_catalog.pg_read_file(text)', \
            'EXECUTE') AS may";
        let may: May = sql_query(may).get_result(pg).await?;
        if !may.may {
            return Ok(None);
        }
        let sql =
            format!("SELECT pg_catalog.pg_read_file('pg_wal/{current:08X}.history') AS history");
        let row: Row = sql_query(sql).get_result(pg).await?;
        Ok(Some(parse_history(&row.history)))
    }
}

/// A number that grows with each change of the code in the database.
pub(crate) async fn code_changes(pg: &mut AsyncPgConnection) -> QueryResult<i64> {
    let row: CodeChanges = sql_query(CODE_CHANGES).get_result(pg).await?;
    Ok(row.changes)
}

/// Reads a timeline history file: on each line a timeline, where it ended, and why.
fn parse_history(text: &str) -> Vec<(u32, Lsn)> {
    let entry = |line: &str| {
        let mut words = line.split_whitespace();
        let timeline = words.next()?.parse().ok()?;
        Some((timeline, words.next()?.parse().ok()?))
    };
    text.lines().filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_files_are_read() {
        let text = "1\t0/3000158\tno recovery target specified\n\n\
                    2\t1/40A\tbefore 2026-01-01 00:00:00+00\n# a comment\n";
        let expected = vec![(1, Lsn(0x300_0158)), (2, Lsn(0x1_0000_040A))];
        assert_eq!(parse_history(text), expected);
        assert!(parse_history("").is_empty());
    }
}
