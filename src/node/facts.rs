//! What a server says of itself: its role, its place in the log, its cluster and timeline.

use std::sync::Arc;
use std::time::Duration;

use diesel::deserialize::{self, FromSql};
use diesel::pg::{Pg, PgValue};
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{BigInt, Bool, Double, Integer, Nullable, SqlType, Text};
use diesel::{QueryResult, QueryableByName, sql_query};
use diesel_async::RunQueryDsl;

use super::NodeConnection;
use crate::position::Lsn;

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
    CASE WHEN NOT pg_catalog.pg_is_in_recovery() \
    THEN pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_flush_lsn()), 1, 8) END, \
    pg_catalog.pg_last_wal_receive_lsn(), receiver.written_lsn, \
    CASE WHEN pg_catalog.pg_is_in_recovery() \
    THEN pg_catalog.pg_current_snapshot()::text END, \
    pg_catalog.current_setting('synchronous_standby_names'), \
    CASE WHEN pg_catalog.pg_is_in_recovery() \
    THEN pg_catalog.pg_get_wal_replay_pause_state() <> 'not paused' ELSE false END, \
    receiver.received_tli, receiver.status, receiver.sender_host, receiver.sender_port, \
    EXTRACT(epoch FROM pg_catalog.clock_timestamp() - receiver.last_msg_receipt_time)::float8, \
    receiver.pid IS NOT NULL \
    FROM (VALUES (1)) AS one LEFT JOIN pg_catalog.pg_stat_wal_receiver AS receiver ON true";

/// What changes seldom.
const IDENTITY: &str = "SELECT system_identifier AS cluster, timeline_id AS timeline, \
    pg_catalog.current_setting('server_version_num')::int AS version \
    FROM pg_catalog.pg_control_system(), pg_catalog.pg_control_checkpoint()";

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
        Bool,
        Nullable<Integer>,
        Nullable<Text>,
        Nullable<Text>,
        Nullable<Integer>,
        Nullable<Double>,
        Bool,
    );
}

impl<Conn> diesel::RunQueryDsl<Conn> for Where {}

#[derive(diesel::Queryable)]
struct Row {
    in_recovery: bool,
    /// Flushed on a primary, replayed on a standby.
    lsn: Option<Lsn>,
    inserted: Option<Lsn>,
    timeline: Option<String>,
    flushed: Option<Lsn>,
    written: Option<Lsn>,
    snapshot: Option<String>,
    standbys: String,
    paused: bool,
    received_timeline: Option<i32>,
    status: Option<String>,
    sender_host: Option<String>,
    sender_port: Option<i32>,
    silent_for: Option<f64>,
    receives: bool,
}

#[derive(Clone, Copy, Debug, QueryableByName)]
pub(super) struct Identity {
    #[diesel(sql_type = BigInt)]
    cluster: i64,
    #[diesel(sql_type = Integer)]
    timeline: i32,
    #[diesel(sql_type = Integer)]
    version: i32,
}

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Facts {
    /// The system identifier that all nodes of one cluster share.
    pub(crate) cluster: u64,
    pub(crate) timeline: u32,
    /// As PostgreSQL numbers them: 150018 is 15.18.
    pub(crate) version: u32,
    /// The server has transactions be read only where they do not say otherwise, whoever begins them.
    pub(crate) fenced: bool,
    pub(crate) place: Place,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Place {
    Primary {
        flushed: Lsn,
        inserted: Lsn,
        /// So many standbys have to confirm a commit. They show it before the primary does.
        synchronous_standbys: usize,
    },
    Standby {
        replayed: Lsn,
        /// How much has been received on disk, and how much at all.
        received: Option<(Lsn, Lsn)>,
        /// The transactions that it shows, as `pg_snapshot`.
        snapshot: Option<Arc<str>>,
        /// Its replay was paused by somebody.
        paused: bool,
        /// `None` while nothing is received, and for who may not see it.
        receiver: Option<Receiver>,
        /// It has a receiver, whether one may see more of it or not.
        receives: bool,
    },
}

/// How a standby receives its log.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Receiver {
    pub(crate) timeline: u32,
    /// As `pg_stat_wal_receiver` has it: `streaming`, or `waiting` where there is nothing to follow.
    pub(crate) status: String,
    /// Whom it follows.
    pub(crate) sender: Option<(String, u16)>,
    /// How long ago it heard of that.
    pub(crate) silent_for: Option<Duration>,
}

impl Receiver {
    /// Whom it follows, if it does.
    pub(crate) fn followed(&self) -> Option<String> {
        let (host, port) = self.sender.as_ref()?;
        (self.status == "streaming").then(|| format!("{host}:{port}"))
    }
}

pub(super) async fn identify(connection: &mut NodeConnection) -> QueryResult<Identity> {
    sql_query(IDENTITY).get_result(&mut connection.pg).await
}

/// Asks where the node is. `None` if it does not know itself: it is being promoted, or has
/// replayed nothing yet.
pub(super) async fn ask(
    connection: &mut NodeConnection,
    identity: Identity,
) -> QueryResult<Option<Facts>> {
    let row: Row = Where.get_result(&mut connection.pg).await?;
    let mut facts = row.into_facts(identity);
    if let Some(facts) = &mut facts {
        facts.fenced = connection.is_fenced().await?;
    }
    Ok(facts)
}

impl Row {
    fn into_facts(self, identity: Identity) -> Option<Facts> {
        let known = u32::try_from(identity.timeline).unwrap_or_default();
        let receiver = self.receiver();
        let timeline = if self.in_recovery {
            // One that receives nothing says nothing.
            receiver.as_ref().map(|receiver| receiver.timeline)
        } else {
            let text = self.timeline.as_deref();
            text.and_then(|text| u32::from_str_radix(text, 16).ok())
        };
        let lsn = self.lsn?;
        let place = if self.in_recovery {
            let written = self.written;
            Place::Standby {
                replayed: lsn,
                received: self
                    .flushed
                    .map(|flushed| (flushed, written.unwrap_or(flushed))),
                snapshot: self.snapshot.map(Arc::from),
                paused: self.paused,
                receiver,
                receives: self.receives,
            }
        } else {
            Place::Primary {
                flushed: lsn,
                inserted: self.inserted?.normalised(),
                synchronous_standbys: to_confirm(&self.standbys),
            }
        };
        Some(Facts {
            // PostgreSQL's integers have signs; the identifier has none.
            cluster: u64::from_ne_bytes(identity.cluster.to_ne_bytes()),
            timeline: timeline.map_or(known, |timeline: u32| timeline.max(known)),
            version: u32::try_from(identity.version).unwrap_or_default(),
            fenced: false,
            place,
        })
    }

    fn receiver(&self) -> Option<Receiver> {
        let port = self.sender_port.and_then(|port| u16::try_from(port).ok());
        Some(Receiver {
            timeline: u32::try_from(self.received_timeline?).ok()?,
            status: self.status.clone().unwrap_or_default(),
            sender: self.sender_host.clone().zip(port),
            silent_for: self
                .silent_for
                .and_then(|seconds| Duration::try_from_secs_f64(seconds.max(0.0)).ok()),
        })
    }
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
}
