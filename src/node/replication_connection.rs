//! A connection over which a standby is told whom to follow, and the primary is asked for its slots.

use std::time::Duration;

use diesel::result::Error as DieselError;
use diesel::sql_types::{Bool, Integer, Nullable, Text};
use diesel::{QueryResult, QueryableByName, sql_query};
use diesel_async::RunQueryDsl;
use tokio::time::sleep;

use super::facts::{Facts, Identity, ask};
use super::promotion_lock::open_for_locks;
use super::{Node, NodeConnection};
use crate::config::PrimaryConninfo;
use crate::error::ConnectError;

/// The key of the lock on a standby: `diesel_s` in ASCII. Who has it may tell the standby whom to follow.
const KEY: i64 = i64::from_be_bytes(*b"diesel_s");

/// The first version with rights on single parameters.
const RIGHTS_ON_PARAMETERS: u32 = 150_000;

/// The first version that reads `primary_conninfo` again without a restart.
const RELOADS: u32 = 130_000;

/// How often it is looked whether the server has read its configuration, and how many times.
const PAUSE: Duration = Duration::from_millis(10);
const LOOKS: u32 = 200;

/// What keeps the text of a statement out of a server's log and views. A superuser may set all of it.
const QUIET: &str = "('log_statement', 'none'), ('log_min_duration_statement', '-1'), ('log_duration', 'off'), \
    ('log_min_duration_sample', '-1'), ('log_transaction_sample_rate', '0'), \
    ('log_min_error_statement', 'panic'), ('track_activities', 'off'), \
    ('pg_stat_statements.track_utility', 'off')";

/// What a standby's settings say of whom it follows. It may hold a password, so it has no `Debug`.
#[derive(QueryableByName)]
pub(crate) struct Followed {
    #[diesel(sql_type = Text)]
    conninfo: String,
    /// Its slot on whom it follows; empty if it uses none.
    #[diesel(sql_type = Text)]
    pub(crate) slot: String,
    #[diesel(sql_type = Text)]
    pub(crate) target_timeline: String,
    /// Its replay is delayed on purpose.
    #[diesel(sql_type = Bool)]
    pub(crate) delayed: bool,
    /// Its replay waits for more log. `None` if this role may not see that.
    #[diesel(sql_type = Nullable<Bool>)]
    pub(crate) idle: Option<bool>,
    /// The newest timeline of the log that it keeps. `None` if this role may not see that.
    #[diesel(sql_type = Nullable<Integer>)]
    newest: Option<i32>,
}

impl Followed {
    /// `None` if it cannot be read.
    pub(crate) fn conninfo(&self) -> Option<PrimaryConninfo> {
        PrimaryConninfo::read(self.conninfo.clone())
    }

    /// The newest timeline of the log that it keeps.
    pub(crate) fn newest(&self) -> Option<u32> {
        u32::try_from(self.newest?).ok()
    }
}

/// A slot of a primary.
#[derive(Debug, QueryableByName)]
pub(crate) struct Slot {
    #[diesel(sql_type = Bool)]
    pub(crate) physical: bool,
    #[diesel(sql_type = Bool)]
    pub(crate) active: bool,
    #[diesel(sql_type = Bool)]
    pub(crate) lost: bool,
}

/// The statements that give this role the rights that it lacks on a standby.
#[derive(Debug, Default, QueryableByName)]
pub(crate) struct Grants {
    /// To read whom it follows.
    #[diesel(sql_type = Nullable<Text>)]
    pub(crate) to_read: Option<String>,
    /// To change that.
    #[diesel(sql_type = Nullable<Text>)]
    pub(crate) to_change: Option<String>,
    #[diesel(sql_type = Bool)]
    sees_activity: bool,
    #[diesel(sql_type = Bool)]
    lists_log: bool,
}

/// A connection over which a standby is told whom to follow. The lock is held for as long as this lives.
pub(crate) struct ReplicationConnection {
    connection: NodeConnection,
    identity: Identity,
}

impl ReplicationConnection {
    /// Connects to `database`, without the application's set-up.
    pub(crate) async fn open(node: &Node, database: &str) -> Result<Self, ConnectError> {
        let (connection, identity) = open_for_locks(node, database).await?;
        Ok(Self {
            connection,
            identity,
        })
    }

    /// Takes the lock. `false` if another process tells this standby something now.
    pub(crate) async fn take(&mut self) -> QueryResult<bool> {
        let sql = format!("SELECT pg_catalog.pg_try_advisory_lock({KEY}) AS yes");
        self.whether(&sql).await
    }

    /// Asks the server where it is.
    pub(crate) async fn ask(&mut self) -> QueryResult<Option<Facts>> {
        ask(&mut self.connection, &self.identity).await
    }

    /// What this role may not do on a standby of this version.
    pub(crate) async fn grants(&mut self, version: u32) -> QueryResult<Grants> {
        let (may_alter, alter) = if version >= RIGHTS_ON_PARAMETERS {
            (
                "pg_catalog.has_parameter_privilege('primary_conninfo', 'ALTER SYSTEM')",
                "'GRANT ALTER SYSTEM ON PARAMETER primary_conninfo TO ' || role",
            )
        } else if version >= RELOADS {
            (
                "rolsuper",
                "'before PostgreSQL 15 it takes a superuser: ALTER ROLE ' || role || ' SUPERUSER'",
            )
        } else {
            ("false", "'before PostgreSQL 13 it takes a restart'")
        };
        let sql = format!(
            "SELECT CASE WHEN NOT pg_catalog.pg_has_role('pg_read_all_settings', 'USAGE') THEN 'GRANT pg_monitor TO ' || role END \
             AS to_read, NULLIF(pg_catalog.concat_ws('; ', CASE WHEN NOT {may_alter} THEN {alter} END, \
             CASE WHEN NOT pg_catalog.has_function_privilege('pg_catalog.pg_reload_conf()', 'EXECUTE') \
             THEN 'GRANT EXECUTE ON FUNCTION pg_catalog.pg_reload_conf() TO ' || role END), '') AS to_change, \
             pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE') AS sees_activity, \
             pg_catalog.has_function_privilege('pg_catalog.pg_ls_waldir()', 'EXECUTE') AS lists_log \
             FROM (SELECT pg_catalog.quote_ident(rolname) AS role, rolsuper FROM pg_catalog.pg_roles \
             WHERE rolname = CURRENT_USER) AS it"
        );
        RunQueryDsl::get_result(sql_query(sql), self.connection.pg_mut()).await
    }

    /// Whom the standby follows. It takes the right to read that.
    pub(crate) async fn followed(&mut self, grants: &Grants) -> QueryResult<Followed> {
        let idle = match grants.sees_activity {
            true => {
                "EXISTS (SELECT FROM pg_catalog.pg_stat_activity WHERE backend_type = 'startup' AND wait_event IN \
                 ('RecoveryWalStream', 'RecoveryWalAll', 'RecoveryRetrieveRetryInterval'))"
            }
            false => "NULL::bool",
        };
        let newest = match grants.lists_log {
            true => {
                "(SELECT max(('x' || pg_catalog.left(name, 8))::bit(32)::int) FROM pg_catalog.pg_ls_waldir() \
                 WHERE name ~ '^[0-9A-F]{24}$')"
            }
            false => "NULL::int",
        };
        let sql = format!(
            "SELECT pg_catalog.current_setting('primary_conninfo') AS conninfo, \
             pg_catalog.current_setting('primary_slot_name') AS slot, \
             pg_catalog.current_setting('recovery_target_timeline') AS target_timeline, \
             (SELECT setting <> '0' FROM pg_catalog.pg_settings WHERE name = 'recovery_min_apply_delay') AS delayed, \
             {idle} AS idle, {newest} AS newest"
        );
        RunQueryDsl::get_result(sql_query(sql), self.connection.pg_mut()).await
    }

    /// The primary's slot of this name.
    pub(crate) async fn slot(&mut self, name: &str) -> QueryResult<Option<Slot>> {
        let sql = "SELECT slot_type = 'physical' AS physical, active, COALESCE(wal_status = 'lost', false) AS lost \
            FROM pg_catalog.pg_replication_slots WHERE slot_name = $1";
        let query = sql_query(sql).bind::<Text, _>(name.to_owned());
        let slots: Vec<Slot> = RunQueryDsl::get_results(query, self.connection.pg_mut()).await?;
        Ok(slots.into_iter().next())
    }

    /// Makes a slot on the primary. `false` if this role may not.
    pub(crate) async fn make_slot(&mut self, name: &str) -> QueryResult<bool> {
        let may = "SELECT rolsuper OR rolreplication AS yes FROM pg_catalog.pg_roles WHERE rolname = CURRENT_USER";
        if !self.whether(may).await? {
            return Ok(false);
        }
        // Another process may have made it meanwhile.
        let sql = "SELECT slot_name::text FROM pg_catalog.pg_create_physical_replication_slot($1, true) \
            WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_replication_slots WHERE slot_name = $1)";
        let query = sql_query(sql).bind::<Text, _>(name.to_owned());
        match RunQueryDsl::execute(query, self.connection.pg_mut()).await {
            Err(error) if self.slot(name).await?.is_none() => Err(error),
            _ => Ok(true),
        }
    }

    /// Has the standby follow whom `conninfo` names from now on. The error is fit to be shown.
    pub(crate) async fn follow(
        &mut self,
        (node, database): (&Node, &str),
        conninfo: &PrimaryConninfo,
        (grants, version): (&Grants, u32),
    ) -> Result<(), String> {
        let quiet = node.pool.connector().connect_quietly(database).await;
        let quiet = quiet.map_err(|error| error.to_string())?;
        let may = match version >= RIGHTS_ON_PARAMETERS {
            true => "pg_catalog.has_parameter_privilege(name, 'SET')",
            false => "(SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = CURRENT_USER)",
        };
        let hush = format!(
            "SELECT pg_catalog.set_config(name, value, false) FROM (VALUES {QUIET}) AS it(name, value) WHERE {may}"
        );
        quiet.run(&hush).await?;
        let text = literal(conninfo.text());
        quiet
            .run(&format!("ALTER SYSTEM SET primary_conninfo = {text}"))
            .await?;
        drop(quiet);
        let failed = |error: DieselError| error.to_string();
        let reload = "SELECT pg_catalog.pg_reload_conf() AS yes";
        self.whether(reload).await.map_err(failed)?;
        for _ in 0..LOOKS {
            let now = self.followed(grants).await.map_err(failed)?;
            if now.conninfo == conninfo.text() {
                return Ok(());
            }
            sleep(PAUSE).await;
        }
        Err("`ALTER SYSTEM` has no effect on `primary_conninfo`: is it given on the server's command line?".to_owned())
    }

    async fn whether(&mut self, sql: &str) -> QueryResult<bool> {
        #[derive(QueryableByName)]
        struct Answer {
            #[diesel(sql_type = Bool)]
            yes: bool,
        }
        let answer: Answer =
            RunQueryDsl::get_result(sql_query(sql), self.connection.pg_mut()).await?;
        Ok(answer.yes)
    }
}

/// `text` as SQL has it, whatever `standard_conforming_strings` says.
fn literal(text: &str) -> String {
    let doubled = text.replace('\'', "''");
    match doubled.contains('\\') {
        true => format!("E'{}'", doubled.replace('\\', "\\\\")),
        false => format!("'{doubled}'"),
    }
}

#[cfg(test)]
mod tests {
    use super::literal;

    #[test]
    fn texts_are_quoted() {
        assert_eq!(literal("a b"), "'a b'");
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal(r"a\'b"), r"E'a\\''b'");
    }
}
