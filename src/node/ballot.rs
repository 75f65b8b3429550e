//! A connection over which a node agrees to a promotion: by a lock that one process can hold.

use std::time::Duration;

use diesel::sql_types::{BigInt, Bool, Text};
use diesel::{QueryResult, QueryableByName, sql_query};
use diesel_async::{RunQueryDsl, SimpleAsyncConnection};

use super::facts::{Facts, Identity, ask, identify};
use super::{Node, NodeConnection};
use crate::error::ConnectError;

/// The key of the lock: `diesel_r` in ASCII.
///
/// Advisory locks work on standbys, and each server has its own; see
/// <https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS>.
const KEY: i64 = i64::from_be_bytes(*b"diesel_r");

/// A process that vanishes must not keep its locks for long: the server ends its connection.
const SETTINGS: &str = "SET idle_session_timeout = '60s'; SET statement_timeout = '10s'; \
    SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 2; SET tcp_keepalives_count = 3";

#[derive(QueryableByName)]
struct Answer {
    #[diesel(sql_type = Bool)]
    yes: bool,
}

/// A connection to a node that may agree. The lock is held for as long as this lives.
pub(crate) struct Ballot {
    connection: NodeConnection,
    identity: Identity,
}

impl Ballot {
    /// Connects to `database`, without the application's set-up.
    pub(crate) async fn open(node: &Node, database: &str) -> Result<Self, ConnectError> {
        let connector = node.pool.connector();
        let failed = |error: diesel::result::Error| connector.monitor_failed(&error);
        let mut connection = connector.connect_bare(database).await?;
        connection
            .pg
            .batch_execute(SETTINGS)
            .await
            .map_err(failed)?;
        let identity = identify(&mut connection).await.map_err(failed)?;
        Ok(Self {
            connection,
            identity,
        })
    }

    /// Takes the lock. `false` if another process holds it.
    pub(crate) async fn take(&mut self) -> QueryResult<bool> {
        let query = sql_query("SELECT pg_catalog.pg_try_advisory_lock($1) AS yes");
        self.ask_whether(query.bind::<BigInt, _>(KEY)).await
    }

    /// Asks the node where it is.
    pub(crate) async fn ask(&mut self) -> QueryResult<Option<Facts>> {
        ask(&mut self.connection, self.identity).await
    }

    /// Promotes the standby, and does not wait until it has come to that.
    pub(crate) async fn promote(&mut self) -> QueryResult<bool> {
        let query = sql_query("SELECT pg_catalog.pg_promote(false) AS yes");
        self.ask_whether(query).await
    }

    /// Whether this role may [`fence`](Self::fence).
    pub(crate) async fn may_fence(&mut self) -> QueryResult<bool> {
        let may = "SELECT rolsuper AS yes FROM pg_catalog.pg_roles WHERE rolname = current_user";
        self.ask_whether(sql_query(may)).await
    }

    /// Has transactions be read only from now on where nobody says otherwise, whoever connects. Returns
    /// the server's time from which on that holds for new connections.
    pub(crate) async fn fence(&mut self) -> QueryResult<String> {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = Bool)]
            set: bool,
            #[diesel(sql_type = Text)]
            now: String,
        }
        // A session hears of it from the postmaster, which has then read it itself.
        let look = "SELECT pg_catalog.current_setting('default_transaction_read_only') = 'on' AS set, \
            pg_catalog.clock_timestamp()::text AS now";
        let pg = &mut self.connection.pg;
        pg.batch_execute("ALTER SYSTEM SET default_transaction_read_only = on")
            .await?;
        pg.batch_execute("SELECT pg_catalog.pg_reload_conf()")
            .await?;
        loop {
            let row: Row = RunQueryDsl::get_result(sql_query(look), pg).await?;
            if row.set {
                return Ok(row.now);
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Takes back what [`fence`](Self::fence) has set.
    pub(crate) async fn unfence(&mut self) -> QueryResult<()> {
        let pg = &mut self.connection.pg;
        pg.batch_execute("ALTER SYSTEM RESET default_transaction_read_only")
            .await?;
        pg.batch_execute("SELECT pg_catalog.pg_reload_conf()").await
    }

    /// Ends the connections of others that were opened up to `moment`, and tells whether there were any.
    pub(crate) async fn end_others(&mut self, moment: &str) -> QueryResult<bool> {
        let end = "SELECT pg_catalog.count(pg_catalog.pg_terminate_backend(pid)) > 0 AS yes \
            FROM pg_catalog.pg_stat_activity WHERE backend_type = 'client backend' \
            AND pid <> pg_catalog.pg_backend_pid() AND backend_start <= $1::timestamptz";
        self.ask_whether(sql_query(end).bind::<Text, _>(moment.to_owned()))
            .await
    }

    async fn ask_whether<'q, Q>(&mut self, query: Q) -> QueryResult<bool>
    where
        Q: diesel_async::methods::LoadQuery<'q, diesel_async::AsyncPgConnection, Answer> + 'q,
    {
        let answer: Answer = RunQueryDsl::get_result(query, &mut self.connection.pg).await?;
        Ok(answer.yes)
    }
}
