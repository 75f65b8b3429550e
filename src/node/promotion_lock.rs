//! A connection over which a node agrees to a promotion: by a lock that one process can hold.

use std::time::{Duration, Instant};

use diesel::sql_types::{BigInt, Bool, Double, Integer, Text};
use diesel::{QueryResult, QueryableByName, sql_query};
use diesel_async::{RunQueryDsl, SimpleAsyncConnection};

use super::facts::{Facts, Identity, ask, identify};
use super::{Node, NodeConnection};
use crate::deadline;
use crate::error::{ConnectError, SqlState};
use crate::position::Lsn;

/// The key of the lock: `diesel_r` in ASCII.
///
/// Advisory locks work on standbys, and each server has its own; see
/// <https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS>.
const KEY: i64 = i64::from_be_bytes(*b"diesel_r");

/// The key of the claim on a primary that is to give way: `diesel_f`. Who has it may fence the primary, and takes no
/// fence away but its own: two processes may be asked for a switchover at once.
const CLAIM: i64 = i64::from_be_bytes(*b"diesel_f");

/// Who holds the claim.
const HOLDER: &str = "pg_catalog.pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND granted \
    AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()) \
    AND (classid::bigint << 32 | objid::bigint) = $1";

/// A process that vanishes must not keep its locks for long: the server ends its connection.
const SETTINGS: &str = "SET idle_session_timeout = '60s'; SET statement_timeout = '10s'; \
    SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 2; SET tcp_keepalives_count = 3";

#[derive(QueryableByName)]
struct Answer {
    #[diesel(sql_type = Bool)]
    yes: bool,
}

/// What a server's clock showed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// In seconds, by that server.
    epoch: f64,
    /// When it was told; it showed that earlier.
    told: Instant,
}

impl Clock {
    /// When it is certainly later there than so long after this.
    pub(crate) fn certainly_past(&self, after: Duration) -> Instant {
        self.told + after
    }
}

/// The order to be promoted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order {
    /// By the server's own clock, before the decision was made.
    pub(crate) asked: Clock,
    /// So long after that it is not carried out any more.
    pub(crate) valid: Duration,
    /// It is void if the node has heard of whom it receives from within this time.
    pub(crate) not_heard: Option<Duration>,
    /// It is void if the node has more of the log than this.
    pub(crate) no_more: Option<Lsn>,
}

/// A setting that nobody sets: asking for it is an error of its own.
const OUTDATED: &str = "diesel_replicated.order_is_outdated";

impl Order {
    fn sql(&self) -> String {
        let until = self.asked.epoch + self.valid.as_secs_f64();
        // One who may not see what it receives counts as hearing; see `cluster::promotion`.
        let not_heard = self.not_heard.map(|age| {
            format!(
                "AND NOT EXISTS (SELECT FROM pg_catalog.pg_stat_wal_receiver WHERE status IS NULL \
                 OR status = 'streaming' AND pg_catalog.clock_timestamp() - last_msg_receipt_time \
                 < '{} microseconds'::interval)",
                age.min(deadline::EVER).as_micros()
            )
        });
        let no_more = self.no_more.map(|has| {
            format!(
                "AND GREATEST(pg_catalog.pg_last_wal_receive_lsn(), \
                 pg_catalog.pg_last_wal_replay_lsn()) <= '{has}'::pg_catalog.pg_lsn"
            )
        });
        let (not_heard, no_more) = (not_heard.unwrap_or_default(), no_more.unwrap_or_default());
        format!(
            "SELECT CASE WHEN EXTRACT(epoch FROM pg_catalog.clock_timestamp())::float8 < {until:.6} \
             {not_heard} {no_more} THEN pg_catalog.pg_promote(false) \
             ELSE pg_catalog.current_setting('{OUTDATED}')::bool END"
        )
    }
}

/// Opens a connection for advisory locks, without the application's set-up, and learns which server it leads to.
pub(super) async fn open_for_locks(
    node: &Node,
    database: &str,
) -> Result<(NodeConnection, Identity), ConnectError> {
    let connector = node.pool.connector();
    let failed = |error: diesel::result::Error| connector.monitor_failed(&error);
    let mut connection = connector.connect_bare(database).await?;
    let set = connection.pg_mut().batch_execute(SETTINGS).await;
    set.map_err(failed)?;
    let identity = identify(&mut connection, || ()).await.map_err(failed)?;
    Ok((connection, identity))
}

/// A connection to a node that may agree. The lock is held for as long as this lives.
pub(crate) struct PromotionLock {
    connection: NodeConnection,
    identity: Identity,
}

impl PromotionLock {
    /// The GRANT that is wanting for this node to be promoted by this role, if one is.
    pub(crate) async fn lacks(&mut self) -> QueryResult<Option<String>> {
        #[derive(QueryableByName)]
        struct Lacks {
            #[diesel(sql_type = diesel::sql_types::Nullable<Text>)]
            lacks: Option<String>,
        }
        let sql = "SELECT CASE WHEN NOT pg_catalog.has_function_privilege(\
            'pg_catalog.pg_promote(boolean, integer)', 'EXECUTE') THEN pg_catalog.format('GRANT EXECUTE ON \
            FUNCTION pg_catalog.pg_promote(boolean, integer) TO %I', CURRENT_USER) END AS lacks";
        let row: Lacks = sql_query(sql).get_result(self.connection.pg_mut()).await?;
        Ok(row.lacks)
    }

    /// Connects to `database`, without the application's set-up.
    pub(crate) async fn open(node: &Node, database: &str) -> Result<Self, ConnectError> {
        let (connection, identity) = open_for_locks(node, database).await?;
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
        let facts = ask(&mut self.connection, &self.identity).await?;
        // This connection is to another database than those of the pool.
        Ok(facts.map(|facts| Facts {
            database: None,
            ..facts
        }))
    }

    /// The server's clock.
    pub(crate) async fn clock(&mut self) -> QueryResult<Clock> {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = Double)]
            epoch: f64,
        }
        let query =
            sql_query("SELECT EXTRACT(epoch FROM pg_catalog.clock_timestamp())::float8 AS epoch");
        let row: Row = RunQueryDsl::get_result(query, self.connection.pg_mut()).await?;
        Ok(Clock {
            epoch: row.epoch,
            told: Instant::now(),
        })
    }

    /// Promotes the standby, and does not wait until it has come to that. `false` if `order` did not hold
    /// any more there, and nothing was done.
    ///
    /// The order and what it rests on are one message: a promise that was checked before it was sent
    /// says nothing of the moment at which it arrives.
    pub(crate) async fn promote(&mut self, order: &Order) -> QueryResult<bool> {
        match self.connection.pg_mut().batch_execute(&order.sql()).await {
            Ok(()) => Ok(true),
            Err(error) if self.is_outdated(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn is_outdated(&self, error: &diesel::result::Error) -> bool {
        let diesel::result::Error::DatabaseError(_, information) = error else {
            return false;
        };
        let remark = self.connection.wire.remark_of(information.message());
        remark.is_some_and(|remark| remark.sqlstate == SqlState::UNDEFINED_OBJECT)
    }

    /// Has the server forget what it was told last, if it has not begun with it, and ends the connection:
    /// the lock goes with it.
    pub(crate) async fn recall(self, node: &Node) {
        let connector = node.pool.connector();
        // Whoever cannot be told so finds the order outdated.
        let _ = connector.cancel(&self.connection.peer).await;
    }

    /// Whether this role may [`fence`](Self::fence).
    pub(crate) async fn may_fence(&mut self) -> QueryResult<bool> {
        let may = "SELECT rolsuper AS yes FROM pg_catalog.pg_roles WHERE rolname = current_user";
        self.ask_whether(sql_query(may)).await
    }

    /// Takes the claim on this primary, for as long as this lives. By which process of the server it is held; `None`
    /// if another has it.
    pub(crate) async fn claim(&mut self) -> QueryResult<Option<i32>> {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = Bool)]
            taken: bool,
            #[diesel(sql_type = Integer)]
            pid: i32,
        }
        let claim = "SELECT pg_catalog.pg_try_advisory_lock($1) AS taken, \
            pg_catalog.pg_backend_pid() AS pid";
        let claim = sql_query(claim).bind::<BigInt, _>(CLAIM);
        let row: Row = RunQueryDsl::get_result(claim, self.connection.pg_mut()).await?;
        Ok(row.taken.then_some(row.pid))
    }

    /// Takes the claim over from a connection of this process's that may be gone. `None` if the server has not ended
    /// that yet; `false` if somebody else has the claim by now.
    pub(crate) async fn take_over(&mut self, pid: i32) -> QueryResult<Option<bool>> {
        let end = format!(
            "SELECT pg_catalog.count(pg_catalog.pg_terminate_backend(pid)) > 0 AS yes FROM {HOLDER} AND pid = $2"
        );
        let end = sql_query(end)
            .bind::<BigInt, _>(CLAIM)
            .bind::<Integer, _>(pid);
        if self.ask_whether(end).await? {
            return Ok(None);
        }
        Ok(Some(self.claim().await?.is_some()))
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
        let pg = self.connection.pg_mut();
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
        let pg = self.connection.pg_mut();
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
        let answer: Answer = RunQueryDsl::get_result(query, self.connection.pg_mut()).await?;
        Ok(answer.yes)
    }
}
