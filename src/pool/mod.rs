//! What the application holds: the pool of a whole cluster.

mod builder;
mod following;
mod multi_primary;
#[cfg(feature = "promotion")]
mod promotion;
mod session;
mod status;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use crate::cluster::Cluster;
use crate::config::{
    Config, ConsistencyConfig, NodeConfig, Routing, check_max_lag, check_max_size, check_node,
    check_replica, check_url, check_weight, checked_routing,
};
use crate::connection::ReplicatedConnection;
use crate::error::Error;
use crate::status::{Events, PoolStatus};
use crate::token::SessionToken;

pub use builder::Builder;
pub use multi_primary::{
    Direction, Finding, Forced, GroupStatus, LateWrite, Moved, MultiPrimaryBuilder,
    MultiPrimaryPool, MultiPrimarySession, Survivor,
};
pub use session::Session;

/// A pool over one primary and its replicas. Put it where a Diesel pool was.
///
/// Cloning it is cheap, and all clones are the same pool.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use diesel_async::RunQueryDsl;
/// use diesel_replicated::{NodeConfig, ReplicatedPool};
///
/// let pool = ReplicatedPool::builder()
///     .primary("postgres://app@db1/app")
///     .replica("postgres://app@db2/app")
///     .replica(NodeConfig::new("postgres://app@db3/app").weight(3).name("eu-1"))
///     .max_size(20)
///     .build()
///     .await?;
///
/// let mut conn = pool.get().await?;
/// let now = diesel::select(diesel::dsl::now);
/// now.execute(&mut conn).await?;
/// # Ok(())
/// # }
/// ```
///
/// # Cancel safety
///
/// Dropping the future of a method ends the wait and undoes nothing. What was begun goes on: a replica that is being
/// removed or drained takes no new reads, a promotion or switchover runs to its end. After a dropped
/// [`close`](Self::close) the pool hands out nothing more, and ends when its last clone and connection are dropped.
#[derive(Clone)]
pub struct ReplicatedPool {
    cluster: Arc<Cluster>,
}

impl ReplicatedPool {
    /// Starts to build a pool.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Builds a pool from one libpq-style URL that names every host, for example
    /// `postgres://app@db1:5432,db2:5432,db3:5432/app`. The nodes tell which of them is the primary. For more
    /// settings see [`Builder::url`].
    ///
    /// # Errors
    ///
    /// The URL is not valid, or no primary can be found within `connect_timeout`.
    pub async fn connect(url: &str) -> Result<Self, Error> {
        Builder::from(Config::from_url(url)?).build().await
    }

    /// Builds a pool from the environment; see [`Config::from_env`].
    ///
    /// # Errors
    ///
    /// As [`Config::from_env`] and [`connect`](Self::connect).
    pub async fn from_env() -> Result<Self, Error> {
        Builder::from(Config::from_env()?).build().await
    }

    /// Hands out a connection.
    ///
    /// This touches no server and waits for nothing. The statements of the connection wait, each for what it needs.
    /// Within [`Session::scope`] the connection belongs to that session; else it is a session of its own.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] after [`ReplicatedPool::close`].
    pub async fn get(&self) -> Result<ReplicatedConnection, Error> {
        self.get_blocking()
    }

    /// As [`get`](Self::get), for code that is not async: [`SyncConnection`](crate::SyncConnection)`::from` makes a
    /// connection for synchronous Diesel of it. It does not block, and works on any thread while the pool's runtime
    /// lives. See [the guide](crate::guide::synchronous).
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] after [`ReplicatedPool::close`].
    pub fn get_blocking(&self) -> Result<ReplicatedConnection, Error> {
        match Session::ambient(&self.cluster) {
            Some(session) => session.connection(),
            None => ReplicatedConnection::new(Arc::clone(&self.cluster), Arc::default()),
        }
    }

    /// As [`get`](Self::get), but fails in an outage: if no node serves reads or writes. For applications that look
    /// whether their pool hands out a connection.
    ///
    /// It touches no server either. The pool watches all nodes, and hears at once of a connection that ends. It finds
    /// a frozen machine within the limits of [`HealthConfig`](crate::config::HealthConfig).
    ///
    /// # Errors
    ///
    /// [`Error::NotReady`] if nothing can be served within `connection_timeout`; [`Error::Closed`].
    pub async fn get_checked(&self) -> Result<ReplicatedConnection, Error> {
        let connection = self.get().await?;
        self.cluster.ready().await?;
        Ok(connection)
    }

    /// Hands out a connection that goes on with the session of `token`. Its reads see what that session wrote, and
    /// with [`Consistency::Causal`](crate::Consistency) nothing older than what it saw. A token of another cluster is
    /// ignored.
    ///
    /// # Errors
    ///
    /// As [`ReplicatedPool::get`].
    pub async fn get_with(&self, token: &SessionToken) -> Result<ReplicatedConnection, Error> {
        self.resume(token).get().await
    }

    /// Begins a session that several connections share.
    #[must_use]
    pub fn session(&self) -> Session {
        Session::new(&self.cluster)
    }

    /// Goes on with the session of `token`.
    #[must_use]
    pub fn resume(&self, token: &SessionToken) -> Session {
        Session::resumed(&self.cluster, token)
    }

    /// The state of the nodes and their pools now. Asks nobody.
    #[doc(alias = "state")]
    #[must_use]
    pub fn status(&self) -> PoolStatus {
        status::of(&self.cluster)
    }

    /// Asks every node now, and tells whether the pool can serve. A readiness endpoint calls this.
    ///
    /// It takes no longer than `limit`. Of a node that has not answered by then, it goes by the last report.
    ///
    /// ```no_run
    /// # async fn example(pool: &diesel_replicated::ReplicatedPool) {
    /// let ready = pool.check(std::time::Duration::from_secs(1)).await.is_ok();
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NotReady`] if writes, or both reads and writes, are impossible now; [`Error::Closed`].
    pub async fn check(&self, limit: Duration) -> Result<PoolStatus, Error> {
        self.cluster.refreshed(limit).await;
        if self.is_closed() {
            return Err(Error::Closed);
        }
        let status = self.status();
        if status.takes_writes {
            return Ok(status);
        }
        Err(Error::NotReady {
            reads: status.takes_reads,
            nodes: self.cluster.topology().describe(),
        })
    }

    /// A stream of what happens to the nodes from now on. It ends when the pool is closed.
    ///
    /// ```no_run
    /// # async fn example(pool: &diesel_replicated::ReplicatedPool) {
    /// use futures_util::StreamExt;
    ///
    /// let mut events = pool.subscribe();
    /// while let Some(event) = events.next().await {
    ///     println!("{event:?}");
    /// }
    /// # }
    /// ```
    #[must_use]
    pub fn subscribe(&self) -> Events {
        self.cluster.event_sender.listen()
    }

    /// Adds a replica. It serves reads as soon as the pool has reached it.
    ///
    /// # Errors
    ///
    /// A setting is not valid, a node of this name exists, or the pool is closed.
    pub async fn add_replica(&self, replica: impl Into<NodeConfig>) -> Result<(), Error> {
        let settings = check_replica(replica.into(), &self.cluster.config.pool)?;
        self.cluster.add(settings).await
    }

    /// Takes a replica out: no further statement goes there. Returns when its statements and read-only transactions
    /// have ended; then its connections are closed.
    ///
    /// # Errors
    ///
    /// There is no node of this name, it is the primary, or the pool is closed.
    pub async fn remove_replica(&self, name: &str) -> Result<(), Error> {
        self.cluster.remove(name).await
    }

    /// Stops sending statements to a replica until [`undrain_replica`](Self::undrain_replica), for example before
    /// maintenance. Returns when its statements and read-only transactions have ended.
    ///
    /// # Errors
    ///
    /// There is no node of this name, it is the primary, or the pool is closed.
    pub async fn drain_replica(&self, name: &str) -> Result<(), Error> {
        self.cluster.drain(name, true).await
    }

    /// Takes a drained replica back. Its share of the reads grows, by
    /// [`HealthConfig::slow_start`](crate::config::HealthConfig::slow_start).
    ///
    /// # Errors
    ///
    /// There is no node of this name, or the pool is closed.
    pub async fn undrain_replica(&self, name: &str) -> Result<(), Error> {
        self.cluster.drain(name, false).await
    }

    /// Changes the weight of a node from the next choice on.
    ///
    /// # Errors
    ///
    /// There is no node of this name, the weight is not valid, or the pool is closed.
    pub async fn set_weight(&self, name: &str, weight: impl Into<i64>) -> Result<(), Error> {
        let weight = check_weight(name, weight.into())?;
        self.cluster.set_weight(name, weight).await
    }

    /// Gives a node another URL, the primary as well: another password, another address of its server, or another
    /// server of the same cluster in its place. All else stays as it is. A connection is opened first; if that fails,
    /// nothing changes. Returns when the statements and transactions on the old connections have ended; these
    /// connections are closed then, with what sessions have left on them. A long report is one of these. A zone that stood in
    /// the old URL has to stand in the new one, too.
    ///
    /// For passwords that change again and again, [`Builder::credentials`] is the better way.
    ///
    /// # Errors
    ///
    /// The URL is not valid, no connection can be opened, it leads to another cluster, there is no node of this name, or
    /// the pool is closed.
    pub async fn set_url(&self, name: &str, url: impl Into<String>) -> Result<(), Error> {
        let settings = check_url(url.into(), self.cluster.settings_of(name)?)?;
        self.cluster.replace(settings).await
    }

    /// Gives the pool of a node another size. The rest is as for [`set_url`](Self::set_url).
    ///
    /// # Errors
    ///
    /// As [`set_url`](Self::set_url).
    pub async fn set_max_size(&self, name: &str, connections: u32) -> Result<(), Error> {
        let settings = check_max_size(connections, self.cluster.settings_of(name)?)?;
        self.cluster.replace(settings).await
    }

    /// Configures a node anew. It keeps its name, and whether it was declared the primary or a replica. The rest is as
    /// for [`set_url`](Self::set_url).
    ///
    /// # Errors
    ///
    /// As [`set_url`](Self::set_url).
    pub async fn replace_node(&self, name: &str, node: impl Into<NodeConfig>) -> Result<(), Error> {
        let before = self.cluster.settings_of(name)?;
        let settings = check_node(node.into(), &before, &self.cluster.config.pool)?;
        self.cluster.replace(settings).await
    }

    /// Sets how far replicas may be behind, in time and in bytes of log, instead of
    /// [`HealthConfig::max_lag`](crate::config::HealthConfig::max_lag) and `max_lag_bytes`. `None` is for no limit.
    ///
    /// # Errors
    ///
    /// A limit is zero, or the pool is closed.
    pub async fn set_max_lag(
        &self,
        time: impl Into<Option<Duration>>,
        bytes: impl Into<Option<u64>>,
    ) -> Result<(), Error> {
        let limits = check_max_lag(time.into(), bytes.into())?;
        self.cluster.set_max_lag(limits).await
    }

    /// Sets what reads must see and may wait for, instead of [`Config::consistency`]. It holds for statements that begin
    /// from now on, of connections and sessions that do not say otherwise.
    /// [`write_scope`](crate::config::ConsistencyConfig::write_scope) stays as it was built.
    pub fn set_consistency(&self, consistency: impl Into<ConsistencyConfig>) {
        self.cluster.set_consistency(consistency.into());
    }

    /// Pauses new writes for at most `limit`, or until [`resume_writes`](Self::resume_writes): an operator's hold, for a restart of the
    /// primary or a change by hand. Returns at once. It holds for this process alone.
    ///
    /// What runs goes on, and so do reads, open transactions (with `COMMIT AND CHAIN`, and one that was begun read only and then made to
    /// write), sessions with state on the primary's connection (`LISTEN`, `PREPARE` or a session lock, taken now as well), and what has
    /// borrowed [`primary_connection`](crate::ReplicatedConnection::primary_connection). A text of several statements with a BEGIN in
    /// it, and COPY, count as writes.
    ///
    /// A statement that writes, and a BEGIN that may, waits as over a failover, up to
    /// [`failover_wait`](Config::failover_wait), and then fails with [`Error::WritesPaused`]: nothing ran. A second call
    /// sets the limit anew. What ran is at its end when [`NodeStatus::in_flight`](crate::status::NodeStatus::in_flight) of
    /// the primary is 0.
    ///
    /// # Errors
    ///
    /// The pool is closed.
    pub async fn pause_writes(&self, limit: Duration) -> Result<(), Error> {
        self.cluster.pause(Some(limit)).await
    }

    /// Lets writes go on after [`pause_writes`](Self::pause_writes).
    ///
    /// # Errors
    ///
    /// The pool is closed.
    pub async fn resume_writes(&self) -> Result<(), Error> {
        self.cluster.pause(None).await
    }

    /// Sets which statements may move to replicas, instead of [`Config::routing`]. It holds for statements that begin
    /// from now on; a transaction stays where it was begun.
    ///
    /// # Errors
    ///
    /// The share is none.
    pub fn set_routing(&self, routing: Routing) -> Result<(), Error> {
        self.cluster.set_routing(checked_routing(routing)?);
        Ok(())
    }

    /// Closes the pool. It hands out nothing more, waits up to `deadline` for the connections in use, then closes
    /// every server connection and ends every background task.
    ///
    /// Returns how many connections were still in use at the deadline. Their server connections are closed under
    /// them.
    pub async fn close(&self, deadline: Duration) -> usize {
        self.cluster.close(deadline).await
    }

    /// Whether the pool was closed. A pool whose runtime has ended is closed, too.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.cluster.is_closed()
    }
}

impl fmt::Debug for ReplicatedPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplicatedPool")
            .field("cluster", &self.cluster)
            .finish()
    }
}

/// The runtime of the caller.
fn ambient() -> Result<Handle, Error> {
    Handle::try_current().map_err(|error| Error::Runtime {
        message: error.to_string(),
    })
}
