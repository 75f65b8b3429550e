//! What Diesel sees: a connection that sends each statement to the node that it needs.

mod acquire;
mod action;
mod at_once;
mod cancel_token;
mod choice;
mod counting;
mod doubts;
mod execute;
mod execution;
mod fenced_primary;
mod guarded;
mod homes;
mod keyed;
mod majority;
mod notifications;
mod origin;
mod pending_commit;
mod pending_write;
mod primary_shows;
mod proof;
mod read_level;
mod reading;
mod recovery;
mod replication;
mod report;
mod retry_transaction;
mod scope;
mod session_settings;
mod session_state;
mod spans;
mod stream;
mod tagged;
mod time_limit;
mod to_show;
mod traits;
mod transaction_builder;
mod types;
mod wait_for_lsn;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use diesel::QueryResult;
use diesel::connection::{CacheSize, DynInstrumentation, InstrumentationEvent};
use diesel::pg::PgNotification;
use diesel::result::Error as DieselError;
use diesel_async::async_connection_wrapper::AsyncConnectionWrapper;
use diesel_async::{AnsiTransactionManager, AsyncPgConnection};
use futures_core::Stream;
use futures_util::StreamExt;
use parking_lot::{Mutex, MutexGuard};

use crate::blocking::OnThisThread;
use crate::cluster::{Cluster, Permit, Purpose};
use crate::config::{Consistency, Durability, RetryPolicy};
use crate::consistency::SessionHistory;
use crate::error::Error;
use crate::node::{Lease, NodeConnection};
use crate::position::Position;
use crate::route::{NodeKind, Route, RouteReason};
use crate::token::SessionToken;

pub use crate::consistency::Stage;
pub use cancel_token::CancelToken;
use cancel_token::Running;
pub(crate) use homes::{HomeAt, finish_move, home_at, is_cut_off, row_at};
use keyed::Keyed;
use origin::Origin;
pub(crate) use read_level::token_of;
use reading::Served;
pub use replication::{Replicas, Replication};
pub use scope::Scope;
use session_state::{LastRoute, SessionState};
pub use stream::RowStream;
use tagged::Tagged;
use transaction_builder::AsyncFunc;
pub use transaction_builder::TransactionBuilder;

/// A [`ReplicatedConnection`] for synchronous Diesel, in the place of a `PgConnection`. See
/// [the guide](crate::guide::synchronous).
///
/// It is made from a URL, by itself or by an r2d2 pool, or from a connection of a pool
/// ([`get_blocking`](crate::ReplicatedPool::get_blocking)). It brings no runtime, and it can be used and dropped on any thread.
///
/// ```no_run
/// # fn example(pool: &diesel_replicated::ReplicatedPool) -> Result<(), Box<dyn std::error::Error>> {
/// use diesel::prelude::*;
/// use diesel_replicated::SyncConnection;
/// # diesel::table! { notes (id) { id -> Integer, text -> Text, } }
///
/// let mut conn = SyncConnection::from(pool.get_blocking()?);
/// let texts: Vec<String> = notes::table.select(notes::text).load(&mut conn)?;
/// println!("{:?}", conn.last_route());
/// # Ok(())
/// # }
/// ```
pub type SyncConnection = AsyncConnectionWrapper<ReplicatedConnection, OnThisThread>;

/// A connection to a whole cluster: one primary and its replicas.
///
/// It implements the traits of diesel-async, so query builders run on it as they run on an [`AsyncPgConnection`].
/// Transactions, and statements that are not known to be safe on a replica, run on the primary. Plain selects run on
/// a replica that has what the session has written ([`Consistency`] sets what else they see). While none has it, this
/// connection reads on the primary if it holds the primary's connection; else it waits for a replica a little, and then
/// the primary serves.
///
/// Nothing is taken from any pool before the first statement. The primary's connection, once taken, stays until this
/// one is dropped. So `SET`, `LISTEN`, temporary tables and advisory locks work as on a plain connection. A
/// connection that used them runs everything on the primary from then on.
///
/// For pipelining, `&ReplicatedConnection` takes statements, too. Concurrent statements share a round trip on the
/// primary, and run side by side on replicas.
///
/// # Cancel safety
///
/// Dropping the future of a statement closes the server connection that was running it when this
/// connection lets go of it; no other session ever gets a connection in the middle of a command.
/// Whether the statement ran is then unknown.
pub struct ReplicatedConnection {
    cluster: Arc<Cluster>,
    session: Mutex<SessionState>,
    /// Server connections that a cancel token may have to reach.
    running: Arc<Running>,
    /// Held while the primary's connection is taken, so that concurrent statements take only one.
    checkout: tokio::sync::Mutex<()>,
    transaction: AnsiTransactionManager,
    /// A statement of the open transaction failed to serialize. The transaction manager must hear of it as soon as
    /// possible.
    must_roll_back: AtomicBool,
    instrumentation: Mutex<DynInstrumentation>,
    cache_size: CacheSize,
    /// What the connection was when a pool over this one first lent it out.
    origin: Origin,
    /// What it has beside this, over several groups of one primary each.
    keyed: Option<Box<Keyed>>,
    /// Its statements may move where a share of this size or more may.
    lot: f64,
    /// The last field: server connections are back in their pools before this one counts as back.
    _permit: Permit,
}

impl ReplicatedConnection {
    /// A connection that has touched no server yet.
    pub(crate) fn new(cluster: Arc<Cluster>, history: Arc<SessionHistory>) -> Result<Self, Error> {
        let permit = cluster.tracker.admit().ok_or(Error::Closed)?;
        let lot = cluster.draws.share();
        Ok(Self {
            cluster,
            session: Mutex::new(SessionState::new(history)),
            running: Arc::default(),
            checkout: tokio::sync::Mutex::default(),
            transaction: AnsiTransactionManager::default(),
            must_roll_back: AtomicBool::new(false),
            instrumentation: Mutex::new(DynInstrumentation::default_instrumentation()),
            cache_size: CacheSize::Unbounded,
            origin: Origin::Own,
            keyed: None,
            lot,
            _permit: permit,
        })
    }

    /// A view of this connection that sends everything to the primary.
    ///
    /// ```no_run
    /// # async fn example(conn: &mut diesel_replicated::ReplicatedConnection) -> diesel::QueryResult<()> {
    /// use diesel_async::RunQueryDsl;
    ///
    /// diesel::select(diesel::dsl::now).execute(&mut conn.primary()).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "master")]
    pub fn primary(&mut self) -> Scope<'_> {
        Scope::forced(self, NodeKind::Primary)
    }

    /// A view of this connection that sends everything to a replica.
    ///
    /// Nothing falls back on the primary. Without a usable replica statements fail with [`Error::NoReplica`]. What a
    /// replica refuses is the caller's error. Reads may miss what this connection has written.
    #[doc(alias = "slave")]
    pub fn replica(&mut self) -> Scope<'_> {
        Scope::forced(self, NodeKind::Replica)
    }

    /// A view of this connection whose reads may move to replicas with [`Routing::OptIn`](crate::Routing::OptIn), as
    /// all may with [`Routing::Automatic`](crate::Routing::Automatic): if they are safe there, and a replica has what
    /// they must see.
    ///
    /// ```no_run
    /// # async fn example(conn: &mut diesel_replicated::ReplicatedConnection) -> diesel::QueryResult<()> {
    /// use diesel_async::RunQueryDsl;
    ///
    /// let count = diesel::sql_query("SELECT count(*) FROM visits");
    /// count.execute(&mut conn.replica_allowed()).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn replica_allowed(&mut self) -> Scope<'_> {
        Scope::replica_allowed(self)
    }

    /// A view of this connection whose statements all go to replicas with this [tag](crate::NodeConfig::tags), over
    /// connections and with limits that [`Config::tagged`](crate::Config::tagged) gives them. So a report takes no
    /// connection from a web request.
    ///
    /// Its reads see what the level of the connection says, as elsewhere, and wait longer for that
    /// ([`TagConfig::wait`](crate::config::TagConfig::wait)). Nothing falls back on the primary or on other replicas: without a node
    /// that can serve, statements fail with [`Error::NoTaggedReplica`], [`Error::TaggedBehind`],
    /// [`Error::TaggedNeedsPrimary`], or, of a tag that the pool was not told of, [`Error::UnknownTag`]; nothing is left of
    /// them. (With [`Routing::Observe`](crate::Routing::Observe) plain reads run on the primary, as all do.) A read that a
    /// recovery conflict cancels runs again on another replica with the tag, if there is one. What a replica refuses is the
    /// caller's error. [`snapshot`](Self::snapshot) works there.
    ///
    /// Before such a read the connection gives back what it keeps of everybody's connections and nothing depends on. With
    /// session state or an open transaction on the primary it keeps that, and fails with [`Error::ReplicasBusy`] where it
    /// would have to wait for another one.
    ///
    /// ```no_run
    /// # async fn example(conn: &mut diesel_replicated::ReplicatedConnection) -> diesel::QueryResult<()> {
    /// use diesel_async::RunQueryDsl;
    ///
    /// let report = diesel::sql_query("SELECT path, count(*) FROM visits GROUP BY path");
    /// report.execute(&mut conn.tagged("analytics")).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn tagged(&mut self, tag: &str) -> Scope<'_> {
        let tagged = Tagged::new(tag, &self.cluster.config);
        Scope::tagged(self, tagged)
    }

    /// Which node served the last statement, and why that one.
    #[must_use]
    pub fn last_route(&self) -> Option<Route> {
        if let Some(keyed) = &self.keyed {
            return keyed.last_route();
        }
        self.session().last_route.as_ref().map(LastRoute::route)
    }

    /// Lends the connection to the primary itself, for what only it can do.
    ///
    /// The pool does not see what is done with it. So from now on everything of this connection runs on the primary.
    /// Notifications and instrumentation stay with this connection.
    ///
    /// # Errors
    ///
    /// The primary cannot be reached, or a row stream still uses its connection. Over several groups it is refused.
    #[doc(alias = "master")]
    pub async fn primary_connection(&mut self) -> QueryResult<&mut AsyncPgConnection> {
        self.is_of_one_group("primary_connection")?;
        self.session().notice_transaction_end();
        drop(self.transaction_lease()?);
        let transaction = self.session().transaction.clone();
        if transaction.is_some_and(|open| open.replica.is_some()) {
            return Err(Error::StillInUse.into());
        }
        let lease = self.primary_lease(false, Purpose::State).await?;
        if let Some(untold) = self.untold_settings(&lease) {
            self.tell_settings(&lease, untold).await?;
        }
        self.lends(&lease);
        drop(lease);
        let lease = {
            let mut session = self.session();
            session.pin();
            session.primary.clone()
        };
        if let Some(lease) = lease {
            self.note_route(&Served::by_primary(lease, RouteReason::Forced));
        }
        self.session
            .get_mut()
            .primary
            .as_mut()
            .and_then(Arc::get_mut)
            .and_then(Lease::connection_mut)
            .map(NodeConnection::pg_mut)
            .ok_or_else(|| Error::StillInUse.into())
    }

    /// What the reads of this connection must see.
    #[must_use]
    pub fn consistency(&self) -> Consistency {
        self.level_of(&self.session())
    }

    /// Sets what the reads of this connection must see, instead of the pool's level.
    pub fn set_consistency(&mut self, level: Consistency) {
        self.session().consistency = Some(level);
    }

    /// A view of this connection whose reads see what `level` says.
    ///
    /// ```no_run
    /// # async fn example(conn: &mut diesel_replicated::ReplicatedConnection) -> diesel::QueryResult<()> {
    /// use diesel_async::RunQueryDsl;
    /// use diesel_replicated::Consistency;
    ///
    /// let count = diesel::sql_query("SELECT count(*) FROM visits");
    /// count.execute(&mut conn.with_consistency(Consistency::Eventual)).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_consistency(&mut self, level: Consistency) -> Scope<'_> {
        Scope::consistent(self, level)
    }

    /// A view of this connection whose statements have to be at their end within `limit`, all together. It covers
    /// choosing a node, waiting for a connection, opening one, failing over, and running; of a row stream, up to its
    /// first row. Instead of [`Config::statement_deadline`](crate::Config::statement_deadline).
    ///
    /// What is not at its end by then fails with [`Error::DeadlineExceeded`], which tells whether it may have run; the
    /// server is asked to cancel it, and an open transaction is lost.
    ///
    /// ```no_run
    /// # async fn example(conn: &mut diesel_replicated::ReplicatedConnection) -> diesel::QueryResult<()> {
    /// use std::time::Duration;
    ///
    /// use diesel_async::RunQueryDsl;
    ///
    /// let count = diesel::sql_query("SELECT count(*) FROM visits");
    /// count.execute(&mut conn.with_deadline(Duration::from_millis(200))).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_deadline(&mut self, limit: Duration) -> Scope<'_> {
        Scope::until(self, limit)
    }

    /// The token of what this session has written and seen until now. See [`Session::token`](crate::Session::token). Over
    /// several groups it tells of the local one alone; see
    /// [`MultiPrimarySession::token`](crate::multi_primary::MultiPrimarySession::token).
    pub async fn session_token(&self) -> SessionToken {
        let history = Arc::clone(&self.session().history);
        token_of(&self.cluster, &history).await
    }

    /// The position of a write of this session that a failover has lost, or may have lost.
    ///
    /// The primary died before the next primary had received the write, or before it told the write's position. In
    /// the second case this is where its timeline ended, as far as that is known. A position is taken a moment after
    /// the write, so a write of the last milliseconds may have survived: look for it if that matters. From then on
    /// the session reads on the primary, with [`RouteReason::LostWrite`].
    ///
    /// It is known before the new primary serves the session.
    #[must_use]
    pub fn lost_write(&self) -> Option<Position> {
        if let Some(keyed) = &self.keyed {
            return keyed.lost_write();
        }
        let session = self.session();
        session.history.lost(&self.cluster.write_log)
    }

    /// Sets how far the commits of this connection must get before they are acknowledged, from the
    /// next transaction on. It is not session state: reads stay on replicas.
    pub fn set_durability(&mut self, durability: Durability) {
        self.session().durability.level = Some(durability);
    }

    /// Whether the last write of this session is on the primary alone, because its wait for a synchronous standby was
    /// cancelled. It is committed, but a failover may lose it.
    ///
    /// PostgreSQL reports such a commit as a success with a warning; see
    /// [Synchronous Replication](https://www.postgresql.org/docs/current/warm-standby.html#SYNCHRONOUS-REPLICATION).
    #[must_use]
    pub fn last_commit_is_unconfirmed(&self) -> bool {
        if let Some(keyed) = &self.keyed {
            return keyed.last_is_unconfirmed();
        }
        let session = self.session();
        session.history.last_is_unconfirmed()
    }

    /// Waits until replicas have what this session has written, up to `timeout`.
    ///
    /// With [`Stage::Applied`] by [`Replicas::All`], every later read anywhere sees it. Only replicas of the pool
    /// count. If some do not confirm in time, that is no error: the answer names them.
    ///
    /// ```no_run
    /// # async fn example(conn: &mut diesel_replicated::ReplicatedConnection) -> Result<(), diesel_replicated::Error> {
    /// use std::time::Duration;
    /// use diesel_replicated::connection::{Replicas, Stage};
    ///
    /// let wait = Duration::from_secs(1);
    /// let answer = conn.wait_for_replicas(Replicas::Majority, Stage::Flushed, wait).await?;
    /// if !answer.is_met {
    ///     eprintln!("not yet on {:?}", answer.missing);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::TooFewReplicas`] if the pool has fewer replicas, [`Error::PositionUnknown`] if the primary did not
    /// tell its position in time or the outcome of a write is unknown, and [`Error::WriteLost`] if a failover has
    /// lost what the session wrote.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the wait and nothing else.
    pub async fn wait_for_replicas(
        &self,
        replicas: Replicas,
        stage: Stage,
        timeout: Duration,
    ) -> Result<Replication, Error> {
        self.is_of_one_group("wait_for_replicas")?;
        self.replicated(replicas, stage, timeout).await
    }

    /// Runs `callback` on one snapshot of the data, on one node: in a transaction that is `REPEATABLE READ READ
    /// ONLY`. The snapshot shows what the reads of this connection must see ([`Consistency`]). A replica serves it if
    /// one shows that, also where the pool keeps read-only transactions on the primary.
    ///
    /// ```no_run
    /// # async fn example(conn: &mut diesel_replicated::ReplicatedConnection) -> diesel::QueryResult<()> {
    /// use diesel::prelude::*;
    /// use diesel_async::RunQueryDsl;
    /// # diesel::table! { orders (id) { id -> Integer, total -> BigInt } }
    ///
    /// let (number, newest) = conn
    ///     .snapshot(async |conn| {
    ///         let number: i64 = orders::table.count().get_result(conn).await?;
    ///         let newest = orders::table.select(orders::id).order(orders::id.desc());
    ///         let newest: Vec<i32> = newest.limit(10).load(conn).await?;
    ///         QueryResult::Ok((number, newest))
    ///     })
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`TransactionBuilder::run`].
    ///
    /// # Cancel safety
    ///
    /// As [`TransactionBuilder::run`].
    pub async fn snapshot<'a, T, E, F>(&mut self, callback: F) -> Result<T, E>
    where
        for<'r> F: AsyncFnOnce(&'r mut Self) -> Result<T, E>
            + AsyncFunc<&'r mut Self, Result<T, E>, Fut: Send>
            + Send
            + 'a,
        T: 'a,
        E: From<diesel::result::Error> + 'a,
    {
        let mut transaction = self.build_transaction().repeatable_read().read_only();
        transaction.on_replicas = Some(true);
        transaction.run(callback).await
    }

    /// Starts to build a transaction.
    pub fn build_transaction(&mut self) -> TransactionBuilder<'_> {
        TransactionBuilder::new(self)
    }

    /// Runs `callback` in a transaction, and runs it again if that may help and does no harm:
    ///
    /// - after a serialization failure or a deadlock (SQLSTATE `40001`, `40P01`);
    /// - when the transaction was lost with its connection before its COMMIT was sent;
    /// - when it could not begin, because no primary was there.
    ///
    /// What may have been committed is not repeated: if the connection breaks during COMMIT, the error has
    /// [`Outcome::Unknown`](crate::Outcome). What `callback` does outside of the database it may do several times.
    ///
    /// `callback` has to be `Clone`, as closures are that borrow what they use. Each attempt has its own.
    ///
    /// The connection remembers why a statement failed, so the error may be of any type. If `callback` catches such
    /// an error and returns another one, the transaction is repeated all the same. If it returns `Ok`, the
    /// transaction is committed, if the server agrees.
    ///
    /// ```no_run
    /// # async fn example(conn: &mut diesel_replicated::ReplicatedConnection) -> diesel::QueryResult<()> {
    /// use diesel::prelude::*;
    /// use diesel_async::RunQueryDsl;
    /// use diesel_replicated::RetryPolicy;
    /// # diesel::table! { accounts (id) { id -> Integer, balance -> BigInt } }
    ///
    /// conn.retry_transaction(RetryPolicy::default(), async |conn| {
    ///     let balance: i64 = accounts::table.find(1).select(accounts::balance).first(conn).await?;
    ///     diesel::update(accounts::table.find(1))
    ///         .set(accounts::balance.eq(balance - 10))
    ///         .execute(conn)
    ///         .await
    /// })
    /// .await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// For an isolation level see [`TransactionBuilder::retry`].
    ///
    /// # Errors
    ///
    /// That of the last attempt. `AlreadyInTransaction` inside of a transaction: a part of it cannot be done again.
    ///
    /// # Cancel safety
    ///
    /// As [`TransactionBuilder::run`].
    pub async fn retry_transaction<'a, T, E, F>(
        &mut self,
        policy: RetryPolicy,
        callback: F,
    ) -> Result<T, E>
    where
        for<'r> F: AsyncFnOnce(&'r mut Self) -> Result<T, E>
            + AsyncFunc<&'r mut Self, Result<T, E>, Fut: Send>
            + Clone
            + Send
            + Sync
            + 'a,
        T: Send + 'a,
        E: From<DieselError> + Send + 'a,
    {
        self.build_transaction().retry(policy, callback).await
    }

    /// The notifications that the primary's connection receives, also those from before this call.
    ///
    /// [`LISTEN`](https://www.postgresql.org/docs/current/sql-listen.html) first, on this
    /// connection; until then nothing ever comes. What nobody reads is kept up to some megabytes; beyond
    /// that the oldest go, and the stream yields [`Error::NotificationsLost`] and goes on. When the server connection is lost the stream
    /// yields one error and ends.
    ///
    /// ```no_run
    /// # async fn example(conn: &mut diesel_replicated::ReplicatedConnection) -> diesel::QueryResult<()> {
    /// use diesel_async::RunQueryDsl;
    /// use futures_util::StreamExt;
    ///
    /// diesel::sql_query("LISTEN news").execute(conn).await?;
    /// let mut news = std::pin::pin!(conn.notifications_stream());
    /// while let Some(notification) = news.next().await {
    ///     println!("{}", notification?.payload);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn notifications_stream(
        &mut self,
    ) -> impl Stream<Item = QueryResult<PgNotification>> + Send + '_ {
        let refused = self.is_of_one_group("notifications_stream").err();
        let refused = refused.map(|error| Err(error.into()));
        let session = self.session.get_mut();
        session.notice_transaction_end();
        let stream = notifications::stream(session.primary.as_mut().map(Arc::get_mut));
        futures_util::stream::iter(refused).chain(stream)
    }

    /// A token that cancels what this connection runs at the time when the token is used.
    #[must_use]
    pub fn cancel_token(&self) -> CancelToken {
        CancelToken::new(&self.running, &self.cluster)
    }

    /// Makes the settings of this connection part of it. A pool over this one, such as deadpool or mobc, hands the
    /// connection out with them from now on, whatever its users set.
    ///
    /// Call it in the hook of such a pool that makes connections. Those pools lend a new connection without a check,
    /// so nobody can tell what the hook has set from what the first user sets. Without this call they make a new
    /// connection for each use. bb8 and r2d2 need no such call.
    ///
    /// It keeps only settings that any node can have: `SET name = value`, `set_config`, `SET ROLE`.
    pub fn keep_settings(&mut self) {
        self.origin = Origin::Open;
        self.settle_origin();
        drop(self.session.get_mut().give_back());
    }

    fn session(&self) -> MutexGuard<'_, SessionState> {
        self.session.lock()
    }

    fn note_route(&self, served: &Served) {
        let node = served.lease.node();
        let (kind, reason) = (served.kind, served.reason);
        tracing::trace!(target: "diesel_replicated", node = node.name, %kind, %reason, "route");
        self.session().last_route = Some(LastRoute {
            node: Arc::clone(node),
            kind,
            reason,
            waited: served.waited,
            held_back: served.held_back.clone(),
        });
    }

    fn record(&self, event: InstrumentationEvent<'_>) {
        let mut instrumentation = self.instrumentation.lock();
        instrumentation.on_connection_event(event);
    }

    fn transaction_must_roll_back(&self) {
        self.must_roll_back.store(true, Ordering::Release);
    }
}

impl fmt::Debug for ReplicatedConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplicatedConnection")
            .field("session", &*self.session())
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}
