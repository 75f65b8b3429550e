//! What one node says of its place in the log, asked over a connection of its own.

use std::sync::Arc;

use diesel::deserialize::{self, FromSql};
use diesel::pg::{Pg, PgValue};
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{Array, BigInt, Bool, Integer, Nullable, SqlType, Text};
use diesel::{QueryResult, QueryableByName, sql_query};
use diesel_async::RunQueryDsl;

use super::{Node, NodeConnection};
use crate::error::ConnectError;
use crate::position::Lsn;
use crate::wire::Wire;

/// PostgreSQL's type `pg_lsn`.
#[derive(SqlType)]
#[diesel(postgres_type(oid = 3220, array_oid = 3221))]
struct PgLsn;

impl FromSql<PgLsn, Pg> for Lsn {
    fn from_sql(value: PgValue<'_>) -> deserialize::Result<Self> {
        Ok(Self(u64::from_be_bytes(value.as_bytes().try_into()?)))
    }
}

/// Asks where the node is. It is prepared once for a connection, and as cheap as `SELECT 1`.
///
/// On a primary the timeline is in the name of the log's current file, at once after a promotion;
/// the control file says it only after the next checkpoint. A standby tells what it receives to who
/// may see it (`pg_monitor`), and else only the control file.
const WHERE: &str = "SELECT pg_catalog.pg_is_in_recovery(), \
    CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() \
    ELSE pg_catalog.pg_current_wal_flush_lsn() END, \
    CASE WHEN NOT pg_catalog.pg_is_in_recovery() \
    THEN pg_catalog.pg_current_wal_insert_lsn() END, \
    CASE WHEN pg_catalog.pg_is_in_recovery() \
    THEN receiver.received_tli::text \
    ELSE pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_flush_lsn()), 1, 8) END, \
    pg_catalog.pg_last_wal_receive_lsn(), receiver.written_lsn, \
    CASE WHEN pg_catalog.pg_is_in_recovery() \
    THEN pg_catalog.pg_current_snapshot()::text END, \
    pg_catalog.current_setting('synchronous_standby_names') \
    FROM (VALUES (1)) AS one LEFT JOIN pg_catalog.pg_stat_wal_receiver AS receiver ON true";

/// What changes seldom.
const IDENTITY: &str = "SELECT system_identifier AS cluster, timeline_id AS timeline, \
    pg_catalog.current_setting('synchronous_commit') = 'off' AS asynchronous \
    FROM pg_catalog.pg_control_system(), pg_catalog.pg_control_checkpoint()";

/// Which of some transactions are over where it is asked.
const OVER: &str = "SELECT ARRAY(SELECT xid FROM pg_catalog.unnest($1) AS xid \
    WHERE pg_catalog.pg_xact_status(xid::text::xid8) IS DISTINCT FROM 'in progress') AS over";

#[derive(QueryId)]
struct Where;

impl QueryFragment<Pg> for Where {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql(WHERE);
        Ok(())
    }
}

impl Query for Where {
    type SqlType = (
        Bool,
        Nullable<PgLsn>,
        Nullable<PgLsn>,
        Nullable<Text>,
        Nullable<PgLsn>,
        Nullable<PgLsn>,
        Nullable<Text>,
        Text,
    );
}

impl<Conn> diesel::RunQueryDsl<Conn> for Where {}

type WhereRow = (
    bool,
    Option<Lsn>,
    Option<Lsn>,
    Option<String>,
    Option<Lsn>,
    Option<Lsn>,
    Option<String>,
    String,
);

#[derive(Clone, Copy, Debug, QueryableByName)]
struct Identity {
    #[diesel(sql_type = BigInt)]
    cluster: i64,
    #[diesel(sql_type = Integer)]
    timeline: i32,
    #[diesel(sql_type = Bool)]
    asynchronous: bool,
}

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The system identifier that all nodes of one cluster share.
    pub(crate) cluster: u64,
    pub(crate) timeline: u32,
    pub(crate) place: Place,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Primary {
        flushed: Lsn,
        inserted: Lsn,
        /// `synchronous_commit` is off where a session does not say otherwise.
        asynchronous: bool,
        /// So many standbys have to confirm a commit. They show it before the primary does.
        synchronous_standbys: usize,
    },
    Standby {
        replayed: Lsn,
        /// How much has been received on disk, and how much at all.
        received: Option<(Lsn, Lsn)>,
        /// The transactions that it shows, as `pg_snapshot`.
        snapshot: Option<Arc<str>>,
    },
}

/// A connection over which a node is asked again and again.
pub(crate) struct Monitor {
    connection: NodeConnection,
    identity: Identity,
}

impl Monitor {
    pub(crate) async fn open(node: &Node) -> Result<Self, ConnectError> {
        let mut connection = node.pool.connector().connect_monitor().await?;
        let identity = identify(&mut connection).await;
        let identity = identity.map_err(|error| node.pool.connector().monitor_failed(&error))?;
        Ok(Self {
            connection,
            identity,
        })
    }

    /// Whether what it said last still holds: a server that was restarted may be behind that.
    pub(crate) fn wire(&self) -> &Arc<Wire> {
        &self.connection.wire
    }

    /// Asks anew for what changes seldom.
    pub(crate) async fn identify(&mut self) -> QueryResult<()> {
        self.identity = identify(&mut self.connection).await?;
        Ok(())
    }

    /// Asks where the node is. `None` if it does not know itself: it is being promoted, or has
    /// replayed nothing yet.
    pub(crate) async fn ask(&mut self) -> QueryResult<Option<Facts>> {
        let (in_recovery, lsn, inserted, timeline, flushed, written, snapshot, standbys) = Where
            .get_result::<WhereRow>(&mut self.connection.pg)
            .await?;
        let Some(lsn) = lsn else {
            return Ok(None);
        };
        let known = u32::try_from(self.identity.timeline).unwrap_or_default();
        let place = match (in_recovery, inserted) {
            (true, _) => Place::Standby {
                replayed: lsn,
                received: flushed.map(|flushed| (flushed, written.unwrap_or(flushed))),
                snapshot: snapshot.map(Arc::from),
            },
            (false, Some(inserted)) => Place::Primary {
                flushed: lsn,
                inserted: inserted.normalised(),
                asynchronous: self.identity.asynchronous,
                synchronous_standbys: to_confirm(&standbys),
            },
            (false, None) => return Ok(None),
        };
        let timeline = if in_recovery {
            // One that receives nothing says nothing.
            timeline.and_then(|text| text.parse().ok())
        } else {
            timeline.and_then(|text| u32::from_str_radix(&text, 16).ok())
        };
        Ok(Some(Facts {
            // PostgreSQL's integers have signs; the identifier has none.
            cluster: u64::from_ne_bytes(self.identity.cluster.to_ne_bytes()),
            timeline: timeline.map_or(known, |timeline: u32| timeline.max(known)),
            place,
        }))
    }

    /// Which of these transactions are over here.
    pub(crate) async fn over(&mut self, transactions: Vec<i64>) -> QueryResult<Vec<i64>> {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = Array<BigInt>)]
            over: Vec<i64>,
        }
        let query = sql_query(OVER).bind::<Array<BigInt>, _>(transactions);
        let row: Row = query.get_result(&mut self.connection.pg).await?;
        Ok(row.over)
    }

    /// The server's history of timelines: where each that came before `current` ended. `None` if
    /// this role may not read it (`GRANT EXECUTE ON FUNCTION pg_read_file(text) TO …`).
    ///
    /// See <https://www.postgresql.org/docs/current/continuous-archiving.html#BACKUP-TIMELINES>.
    pub(crate) async fn timelines(&mut self, current: u32) -> QueryResult<Option<Vec<(u32, Lsn)>>> {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = Nullable<Text>)]
            history: Option<String>,
        }
        let sql = format!(
            "SELECT CASE WHEN pg_catalog.has_function_privilege('pg_catalog.pg_read_file(text)', \
             'EXECUTE') THEN pg_catalog.pg_read_file('pg_wal/{current:08X}.history') END AS history"
        );
        let row: Row = sql_query(sql).get_result(&mut self.connection.pg).await?;
        Ok(row.history.map(|text| parse_history(&text)))
    }
}

async fn identify(connection: &mut NodeConnection) -> QueryResult<Identity> {
    sql_query(IDENTITY).get_result(&mut connection.pg).await
}

/// How many standbys have to confirm a commit by this value of `synchronous_standby_names`:
/// `FIRST n (…)`, `ANY n (…)`, `n (…)`, or a list of which one suffices.
///
/// See <https://www.postgresql.org/docs/current/runtime-config-replication.html#GUC-SYNCHRONOUS-STANDBY-NAMES>.
fn to_confirm(names: &str) -> usize {
    let names = names.trim();
    let number = names.split_once('(').and_then(|(before, _)| {
        let number = before.split_whitespace().last()?;
        number.parse().ok()
    });
    number.unwrap_or(usize::from(!names.is_empty()))
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
    fn the_number_of_synchronous_standbys_is_read() {
        for (names, number) in [
            ("", 0),
            ("*", 1),
            ("s1, s2", 1),
            ("\"s 1\"", 1),
            ("2 (s1, s2, s3)", 2),
            ("FIRST 2 (s1, s2)", 2),
            ("any 3(s1, s2, s3)", 3),
            ("ANY 1 (*)", 1),
        ] {
            assert_eq!(to_confirm(names), number, "{names}");
        }
    }

    #[test]
    fn history_files_are_read() {
        let text = "1\t0/3000158\tno recovery target specified\n\n\
                    2\t1/40A\tbefore 2026-01-01 00:00:00+00\n# a comment\n";
        let expected = vec![(1, Lsn(0x300_0158)), (2, Lsn(0x1_0000_040A))];
        assert_eq!(parse_history(text), expected);
        assert!(parse_history("").is_empty());
    }
}
