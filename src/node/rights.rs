//! What a role may ask of a server, and how it is asked without what it may not.
//!
//! PostgreSQL checks a function's privilege when a query begins, in whichever branch of it the function
//! stands. So that one missing right does not silence the rest, a query is put together from what is
//! allowed.

use std::sync::Arc;

use diesel::result::Error;
use diesel::sql_types::{Array, Bool, Text};
use diesel::{QueryResult, QueryableByName};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use futures_util::future::join_all;

use super::asked_again::AskedAgain;
use super::connection::NodeConnection;
use super::position_sql::PositionSql;
use super::run::{ADDRESS, START_TIME};
use crate::error::SqlState;

/// A function that is asked, and what is not known without it.
struct Function {
    signature: &'static str,
    costs: &'static str,
    /// Of whom it is asked: standbys, primaries, or both.
    of: Of,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    Primary,
    Standby,
    Both,
}

const fn function(signature: &'static str, of: Of, costs: &'static str) -> Function {
    Function {
        signature,
        costs,
        of,
    }
}

const SYSTEM: usize = 0;
const CHECKPOINT: usize = 1;
const RECOVERY: usize = 2;
const REPLAYED: usize = 3;
const RECEIVED: usize = 4;
const PAUSED: usize = 5;
const SNAPSHOT: usize = 6;
const RECEIVER: usize = 7;
const FLUSHED: usize = 8;
const INSERTED: usize = 9;
const FILE: usize = 10;
const STARTED: usize = 11;

const FUNCTIONS: [Function; 12] = [
    function(
        "pg_control_system()",
        Of::Both,
        "a server of another cluster is not told from one of this",
    ),
    function(
        "pg_control_checkpoint()",
        Of::Standby,
        "a standby's timeline is known only when it shows what the new primary was given to do",
    ),
    function(
        "pg_control_recovery()",
        Of::Standby,
        "a standby's timeline is known later than it could be",
    ),
    function(
        "pg_last_wal_replay_lsn()",
        Of::Standby,
        "how far a replica is behind is not known; it serves no reads that need to know, nor any where a \
         limit is set; see `ConsistencyConfig::assumed_lag` and `PositionSource`",
    ),
    function(
        "pg_last_wal_receive_lsn()",
        Of::Standby,
        "what a replica has received is not known, only what it has replayed",
    ),
    function(
        "pg_get_wal_replay_pause_state()",
        Of::Standby,
        "whether somebody has paused the replay is not known",
    ),
    function(
        "pg_current_snapshot()",
        Of::Standby,
        "a session that has seen a replica reads on the primary only when that has been looked at",
    ),
    function(
        "pg_stat_get_wal_receiver()",
        Of::Standby,
        "whether a replica receives anything is not known",
    ),
    function(
        "pg_current_wal_flush_lsn()",
        Of::Primary,
        "positions of writes are known less exactly",
    ),
    function(
        "pg_current_wal_insert_lsn()",
        Of::Primary,
        "positions of writes are not known; reads that need one go to the primary",
    ),
    function(
        "pg_walfile_name(pg_catalog.pg_lsn)",
        Of::Primary,
        "the primary's timeline is not known; it takes no writes beside another that takes them",
    ),
    function(
        "pg_postmaster_start_time()",
        Of::Both,
        "it is not noticed when two names lead to one server, or one name to several",
    ),
];

/// Something that this role may not ask, and what it takes to mend that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MissingRight {
    /// What is missing.
    pub(crate) right: String,
    /// What that costs.
    pub(crate) costs: &'static str,
    /// The statement that mends it.
    pub(crate) grant: String,
    /// Without it nobody knows how far a standby has replayed.
    pub(crate) hides_replay: bool,
}

/// What a role may ask of a server.
#[derive(Debug)]
pub(super) struct Rights {
    sql: Arc<PositionSql>,
    told: Told,
}

/// What the server tells of a role's rights.
#[derive(Debug, QueryableByName)]
struct Told {
    /// In the order of [`FUNCTIONS`].
    #[diesel(sql_type = Array<Bool>)]
    held: Vec<bool>,
    /// It sees all columns of `pg_stat_wal_receiver`.
    #[diesel(sql_type = Bool)]
    sees_all: bool,
    #[diesel(sql_type = Bool)]
    in_recovery: bool,
    /// The role, as SQL has it.
    #[diesel(sql_type = Text)]
    role: String,
    /// Of these, those that the server refuses to everybody.
    #[diesel(sql_type = Array<Bool>)]
    refused: Vec<bool>,
}

/// A function that this server does not have cannot be asked either. `{names}` are those of [`FUNCTIONS`].
const ASK: &str = "SELECT ARRAY(SELECT COALESCE(pg_catalog.has_function_privilege( \
        pg_catalog.to_regprocedure('pg_catalog.' || name), 'EXECUTE'), false) \
        AND (name NOT LIKE 'pg_stat_get_wal_receiver%' \
        OR pg_catalog.has_table_privilege('pg_catalog.pg_stat_wal_receiver', 'SELECT')) \
        FROM pg_catalog.unnest(ARRAY[{names}]) WITH ORDINALITY AS it(name, place) ORDER BY place) AS held, \
    pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE') AS sees_all, \
    pg_catalog.pg_is_in_recovery() AS in_recovery, \
    pg_catalog.quote_ident(current_user) AS role, '{}'::bool[] AS refused";

impl Rights {
    pub(super) async fn ask(
        pg: &mut AsyncPgConnection,
        sql: Arc<PositionSql>,
    ) -> QueryResult<Self> {
        let quoted = FUNCTIONS.iter().map(|it| format!("'{}'", it.signature));
        let names: Vec<String> = quoted.collect();
        let ask = ASK.replace("{names}", &names.join(", "));
        let told = AskedAgain(&ask).get_result(pg).await?;
        Ok(Self { sql, told })
    }

    /// Tries each function. Some servers have them, and refuse them to everybody, as Aurora's readers do.
    ///
    /// They are sent together: the server may be far away.
    pub(super) async fn try_each(&mut self, connection: &NodeConnection) {
        let tried = FUNCTIONS.iter().enumerate().map(async |(place, it)| {
            let refused = self.may(place) && !self.is_replaced(place) && {
                let tried = it.signature.replace("(pg_catalog.pg_lsn)", "('0/1000000')");
                // Without preparing it, which would take turns.
                let tried = format!("SELECT pg_catalog.{tried}");
                match (&mut connection.pg()).batch_execute(&tried).await {
                    Err(Error::DatabaseError(_, said)) => {
                        let remark = connection.wire.remark_of(said.message());
                        let code = remark.map(|remark| remark.sqlstate);
                        code == Some(SqlState::FEATURE_NOT_SUPPORTED)
                    }
                    _ => false,
                }
            };
            (place, refused)
        });
        let refused: Vec<usize> = join_all(tried)
            .await
            .into_iter()
            .filter_map(|(place, refused)| refused.then_some(place))
            .collect();
        self.told.refused = vec![false; FUNCTIONS.len()];
        for place in refused {
            (self.told.held[place], self.told.refused[place]) = (false, true);
        }
    }

    /// Whether a function of this kind is asked of the server.
    fn is_asked(&self, of: Of) -> bool {
        match of {
            Of::Both => true,
            Of::Primary => !self.told.in_recovery,
            Of::Standby => self.told.in_recovery,
        }
    }

    fn may(&self, function: usize) -> bool {
        self.told.held.get(function).copied().unwrap_or(false)
    }

    /// Whether the application's source of positions stands in for the function.
    fn is_replaced(&self, function: usize) -> bool {
        let timeline = [CHECKPOINT, RECOVERY, FILE];
        self.sql.is_given() && [REPLAYED, RECEIVED, FLUSHED, INSERTED].contains(&function)
            || self.sql.timeline().is_some() && timeline.contains(&function)
    }

    /// `expression`, or nothing of this type where `function` may not be called and nothing stands in for it.
    fn if_allowed(&self, function: usize, expression: &str, kind: &str) -> String {
        if self.may(function) || self.is_replaced(function) {
            expression.to_owned()
        } else {
            format!("NULL::{kind}")
        }
    }

    /// The query for what changes seldom.
    ///
    /// A standby's log is at least on the timeline of its last restartpoint, and on that which its pages
    /// on disk need to be replayed up to.
    pub(super) fn seldom(&self) -> String {
        let cluster = "(SELECT system_identifier FROM pg_catalog.pg_control_system())";
        let checkpoint = "(SELECT timeline_id FROM pg_catalog.pg_control_checkpoint())";
        let recovery = "(SELECT min_recovery_end_timeline FROM pg_catalog.pg_control_recovery())";
        let timeline = match self.sql.timeline() {
            Some(timeline) => timeline.to_owned(),
            None => format!(
                "GREATEST({}, {})",
                self.if_allowed(CHECKPOINT, checkpoint, "int"),
                self.if_allowed(RECOVERY, recovery, "int"),
            ),
        };
        format!(
            "SELECT {} AS cluster, {timeline} AS timeline, \
             pg_catalog.current_setting('server_version_num')::int AS version, \
             {} AS started, pg_catalog.current_setting('port')::int AS port, {ADDRESS} AS address, \
             pg_catalog.current_database()::text AS database",
            self.if_allowed(SYSTEM, cluster, "bigint"),
            self.if_allowed(STARTED, START_TIME, "bigint"),
        )
    }

    /// The query for where the node is.
    ///
    /// On a primary the timeline is in the name of the log's current file, at once after a promotion;
    /// the control file says it only after the next checkpoint. A standby tells what it receives to who
    /// may see it (`pg_monitor`), and else only the control file.
    pub(super) fn place(&self) -> String {
        let inserted = self.if_allowed(INSERTED, self.sql.inserted(), "pg_catalog.pg_lsn");
        // What was inserted covers what was flushed.
        let flushed = match self.may(FLUSHED) {
            true => self.sql.flushed(),
            false => &inserted,
        };
        let file = match self.sql.timeline() {
            Some(timeline) => format!("pg_catalog.to_hex({timeline})"),
            None => format!("pg_catalog.substr(pg_catalog.pg_walfile_name({flushed}), 1, 8)"),
        };
        let (receiver, receives) = match self.may(RECEIVER) {
            true => (
                "pg_catalog.pg_stat_wal_receiver AS receiver",
                "receiver.pid IS NOT NULL",
            ),
            false => (
                "(SELECT NULL::pg_catalog.pg_lsn AS written_lsn, NULL::int AS received_tli, NULL::text AS status, \
                 NULL::text AS sender_host, NULL::int AS sender_port, \
                 NULL::timestamptz AS last_msg_receipt_time) AS receiver",
                "NULL::bool",
            ),
        };
        let (replayed, received, paused, snapshot) = (
            self.if_allowed(REPLAYED, self.sql.standby(), "pg_catalog.pg_lsn"),
            self.if_allowed(RECEIVED, self.sql.received(), "pg_catalog.pg_lsn"),
            self.if_allowed(
                PAUSED,
                "pg_catalog.pg_get_wal_replay_pause_state() <> 'not paused'",
                "bool",
            ),
            self.if_allowed(SNAPSHOT, "pg_catalog.pg_current_snapshot()::text", "text"),
        );
        let file = self.if_allowed(FILE, &file, "text");
        // The source's timelines may be others than the server's.
        let receives_on = match self.sql.timeline() {
            Some(timeline) => format!("CASE WHEN receiver.received_tli > 0 THEN {timeline} END"),
            None => "receiver.received_tli".to_owned(),
        };
        format!(
            "SELECT standby, CASE WHEN standby THEN {replayed} ELSE {flushed} END, \
             CASE WHEN NOT standby THEN {inserted} END, CASE WHEN NOT standby THEN {file} END, \
             {received}, receiver.written_lsn, CASE WHEN standby THEN {snapshot} END, \
             pg_catalog.current_setting('synchronous_standby_names'), \
             COALESCE(CASE WHEN standby THEN {paused} END, false), \
             {receives_on}, receiver.status, receiver.sender_host, receiver.sender_port, \
             EXTRACT(epoch FROM pg_catalog.clock_timestamp() - receiver.last_msg_receipt_time)::float8, \
             {receives} \
             FROM (SELECT pg_catalog.pg_is_in_recovery() OFFSET 0) AS one(standby) \
             LEFT JOIN {receiver} ON true"
        )
    }

    /// The same where the application's source of positions has told nothing of this standby.
    pub(super) fn without_position() -> MissingRight {
        MissingRight {
            right: "a position from the `PositionSource`".to_owned(),
            costs: FUNCTIONS[REPLAYED].costs,
            grant: "let `PositionSource::of_standby` return one".to_owned(),
            hides_replay: true,
        }
    }

    /// What this role may not ask.
    pub(super) fn limits(&self) -> Vec<MissingRight> {
        let role = &self.told.role;
        let missing = |(place, it): (usize, &Function)| {
            let missing = self.is_asked(it.of) && !self.may(place) && !self.is_replaced(place);
            let refused = self.told.refused.get(place) == Some(&true);
            let grant = match refused {
                true => "nothing mends it: the server refuses it to everybody".to_owned(),
                false => format!(
                    "GRANT EXECUTE ON FUNCTION pg_catalog.{} TO {role}",
                    it.signature
                ),
            };
            missing.then(|| MissingRight {
                right: format!("EXECUTE ON FUNCTION pg_catalog.{}", it.signature),
                costs: it.costs,
                grant,
                hides_replay: place == REPLAYED,
            })
        };
        let functions = FUNCTIONS.iter().enumerate().filter_map(missing);
        let monitor = (self.told.in_recovery && !self.told.sees_all).then(|| MissingRight {
            right: "membership in pg_monitor".to_owned(),
            costs: "whom a replica receives from, and on which timeline, is not seen; after a failover \
                    it is found out by what the replica shows",
            grant: format!("GRANT pg_monitor TO {role}"),
            hides_replay: false,
        });
        functions.chain(monitor).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::PositionSource;

    fn rights(held: bool) -> Rights {
        rights_with(held, PositionSql::default())
    }

    fn rights_with(held: bool, sql: PositionSql) -> Rights {
        let told = Told {
            held: vec![held; FUNCTIONS.len()],
            sees_all: held,
            in_recovery: true,
            role: "\"my app\"".to_owned(),
            refused: Vec::new(),
        };
        Rights {
            sql: Arc::new(sql),
            told,
        }
    }

    #[test]
    fn what_may_not_be_asked_stands_in_no_query() {
        let (all, none) = (rights(true), rights(false));
        for (place, it) in FUNCTIONS.iter().enumerate() {
            let name = it.signature.split('(').next().unwrap();
            let queries = |rights: &Rights| format!("{} {}", rights.seldom(), rights.place());
            let name = match place {
                RECEIVER => "pg_stat_wal_receiver",
                _ => name,
            };
            assert!(queries(&all).contains(name), "{name}");
            assert!(!queries(&none).contains(name), "{name}");
        }
    }

    #[derive(Debug)]
    struct Elsewhere;

    impl PositionSource for Elsewhere {
        fn of_primary(&self) -> &str {
            "its_writer()"
        }

        fn of_standby(&self) -> &str {
            "its_reader()"
        }

        fn timeline(&self) -> Option<&str> {
            Some("its_timeline()")
        }
    }

    #[test]
    fn what_an_application_knows_better_is_not_asked_of_the_server() {
        let rights = |held| rights_with(held, PositionSql::new(Some(Arc::new(Elsewhere))));
        let missing = rights(false).limits();
        for held in [true, false] {
            let rights = rights(held);
            let queries = [rights.seldom(), rights.place(), rights.sql.place.clone()];
            let queries = queries.join(" ");
            for place in [
                CHECKPOINT, RECOVERY, REPLAYED, RECEIVED, FLUSHED, INSERTED, FILE,
            ] {
                let signature = FUNCTIONS[place].signature;
                let name = signature.split('(').next().unwrap();
                assert!(!queries.contains(name), "{name}");
                assert!(!missing.iter().any(|limit| limit.right.contains(signature)));
            }
            for name in ["its_writer()", "its_reader()", "its_timeline()"] {
                assert!(queries.matches(name).count() > 1, "{name}");
            }
        }
    }

    #[test]
    fn each_missing_right_is_told_with_its_grant() {
        assert!(rights(true).limits().is_empty());
        let limits = rights(false).limits();
        let grants: Vec<&str> = limits.iter().map(|limit| limit.grant.as_str()).collect();
        let first = "GRANT EXECUTE ON FUNCTION pg_catalog.pg_control_system() TO \"my app\"";
        assert!(grants.contains(&first), "{grants:?}");
        assert_eq!(grants.last(), Some(&"GRANT pg_monitor TO \"my app\""));
        // What only a primary is asked is of no use on a standby.
        assert!(!grants.iter().any(|grant| grant.contains("insert_lsn")));
    }
}
