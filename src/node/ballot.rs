//! A connection over which a node agrees to a promotion: by a lock that one process can hold.

use diesel::sql_types::{BigInt, Bool};
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

    async fn ask_whether<'q, Q>(&mut self, query: Q) -> QueryResult<bool>
    where
        Q: diesel_async::methods::LoadQuery<'q, diesel_async::AsyncPgConnection, Answer> + 'q,
    {
        let answer: Answer = RunQueryDsl::get_result(query, &mut self.connection.pg).await?;
        Ok(answer.yes)
    }
}
