//! The SQL that asks a server for its position: PostgreSQL's functions, or what stands in for them.

use std::sync::Arc;

use crate::position::PositionSource;

/// The timeline of a standby, from PostgreSQL: at least that of its last restartpoint, and that on which it receives,
/// if this role may see that.
pub(super) const OF_STANDBY: &str = "GREATEST(\
     (SELECT timeline_id FROM pg_catalog.pg_control_checkpoint()), \
     (SELECT min_recovery_end_timeline FROM pg_catalog.pg_control_recovery()), \
     (SELECT received_tli FROM pg_catalog.pg_stat_wal_receiver))";

/// The timeline of a server, from PostgreSQL.
const TIMELINE: &str = "CASE WHEN pg_catalog.pg_is_in_recovery() THEN {of_standby} \
     ELSE ('x' || substr(pg_catalog.pg_walfile_name({primary}), 1, 8))::bit(32)::int \
     END";

/// The cluster, the timeline and the position of a server.
const PLACE: &str = "(SELECT system_identifier FROM pg_catalog.pg_control_system()) AS cluster, \
     {timeline} AS timeline, \
     CASE WHEN pg_catalog.pg_is_in_recovery() THEN {standby} ELSE {primary} END AS lsn";

/// How a server is asked for its position.
#[derive(Debug)]
pub(crate) struct PositionSql {
    source: Option<Arc<dyn PositionSource>>,
    /// The columns `cluster`, `timeline` and `lsn`.
    pub(super) place: String,
}

impl Default for PositionSql {
    fn default() -> Self {
        Self::new(None)
    }
}

impl PositionSql {
    pub(super) fn new(source: Option<Arc<dyn PositionSource>>) -> Self {
        let mut sql = Self {
            source,
            place: String::new(),
        };
        sql.place = PLACE
            .replace("{timeline}", sql.timeline().unwrap_or(TIMELINE))
            .replace("{of_standby}", OF_STANDBY)
            .replace("{standby}", sql.standby())
            .replace("{primary}", sql.inserted());
        sql
    }

    /// Whether PostgreSQL's functions are not asked.
    pub(super) fn is_given(&self) -> bool {
        self.source.is_some()
    }

    /// How far a standby has replayed.
    pub(super) fn standby(&self) -> &str {
        match &self.source {
            Some(source) => source.of_standby(),
            None => "pg_catalog.pg_last_wal_replay_lsn()",
        }
    }

    /// What a standby has received.
    pub(super) fn received(&self) -> &str {
        match &self.source {
            // It may not compare with what the source tells.
            Some(_) => "NULL::pg_catalog.pg_lsn",
            None => "pg_catalog.pg_last_wal_receive_lsn()",
        }
    }

    /// What a primary has written.
    pub(super) fn inserted(&self) -> &str {
        match &self.source {
            Some(source) => source.of_primary(),
            None => "pg_catalog.pg_current_wal_insert_lsn()",
        }
    }

    /// What a primary has on its disk.
    pub(super) fn flushed(&self) -> &str {
        match &self.source {
            Some(source) => source.of_primary(),
            None => "pg_catalog.pg_current_wal_flush_lsn()",
        }
    }

    /// The timeline, if the application's source tells it.
    pub(super) fn timeline(&self) -> Option<&str> {
        self.source.as_ref()?.timeline()
    }
}
