//! The two sides: the pool of this crate, and plain pools as applications put them together by hand.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use diesel::QueryResult;
use diesel::pg::Pg;
use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel_async::pooled_connection::AsyncDieselConnectionManager;
use diesel_async::pooled_connection::bb8::{Pool, PooledConnection};
use diesel_async::{AsyncConnection, AsyncPgConnection};
use diesel_replicated::testing::LocalCluster;
use diesel_replicated::{ErrorExt, Outcome, ReplicatedConnection, Session};
use tokio::sync::watch;

use super::super::super::routes::App;
use super::super::faults::Stage;
use super::LIMIT;

/// As many connections as a node has in the other pool.
const CONNECTIONS: u32 = 10;

/// Where visitors take their connections from.
pub(super) trait Side: Sync {
    /// Who makes several requests, one after the other.
    type Visitor: Sync;
    type Conn: AsyncConnection<Backend = Pg> + Send;

    fn arrive(&self) -> Self::Visitor;

    fn to_write(
        &self,
        visitor: &Self::Visitor,
    ) -> impl Future<Output = QueryResult<Self::Conn>> + Send;

    fn to_read(
        &self,
        visitor: &Self::Visitor,
    ) -> impl Future<Output = QueryResult<Self::Conn>> + Send;

    /// The connection has run a statement.
    fn noted(&self, _conn: &Self::Conn) {}

    /// Whether the error says that a write may have been done.
    fn is_in_doubt(_error: &DieselError) -> bool {
        false
    }
}

/// One pool for everything.
pub(super) struct Ours<'a>(&'a App);

impl<'a> Ours<'a> {
    pub(super) fn new(app: &'a App) -> Self {
        Self(app)
    }
}

impl Side for Ours<'_> {
    type Visitor = Session;
    type Conn = ReplicatedConnection;

    fn arrive(&self) -> Session {
        self.0.pool.session()
    }

    async fn to_write(&self, session: &Session) -> QueryResult<ReplicatedConnection> {
        session.get().await.map_err(Into::into)
    }

    async fn to_read(&self, session: &Session) -> QueryResult<ReplicatedConnection> {
        self.to_write(session).await
    }

    fn noted(&self, conn: &ReplicatedConnection) {
        self.0.log.count(conn);
    }

    fn is_in_doubt(error: &DieselError) -> bool {
        error.outcome() == Outcome::Unknown
    }
}

/// A pool on the primary's URL, and one on each replica's, which take turns.
#[derive(Debug)]
pub(crate) struct Pools {
    primary: Pool<AsyncPgConnection>,
    replicas: Vec<Pool<AsyncPgConnection>>,
    turn: AtomicUsize,
}

impl Pools {
    /// With the URLs that are right now.
    pub(crate) fn new(cluster: &LocalCluster, stage: &Stage, database: &str) -> Self {
        let pool = |url: String| {
            let manager = AsyncDieselConnectionManager::<AsyncPgConnection>::new(url);
            Pool::builder()
                .max_size(CONNECTIONS)
                .connection_timeout(LIMIT)
                .build_unchecked(manager)
        };
        let primary = stage.primary(cluster);
        let replicas = cluster.nodes().filter(|node| node.name() != primary.name());
        Self {
            primary: pool(primary.url(database)),
            replicas: replicas.map(|node| pool(node.url(database))).collect(),
            turn: AtomicUsize::new(0),
        }
    }

    fn next(&self) -> &Pool<AsyncPgConnection> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let place = turn.checked_rem(self.replicas.len()).unwrap_or_default();
        self.replicas.get(place).unwrap_or(&self.primary)
    }
}

/// Plain pools, until they are configured anew.
pub(super) struct Plain(watch::Receiver<Option<Arc<Pools>>>);

impl Plain {
    pub(super) fn new(pools: watch::Receiver<Option<Arc<Pools>>>) -> Self {
        Self(pools)
    }

    fn pools(&self) -> QueryResult<Arc<Pools>> {
        let pools = self.0.borrow().clone();
        pools.ok_or_else(|| unreachable_now("there are no plain pools"))
    }
}

impl Side for Plain {
    type Visitor = ();
    type Conn = PooledConnection<'static, AsyncPgConnection>;

    fn arrive(&self) {}

    async fn to_write(&self, (): &()) -> QueryResult<Self::Conn> {
        let pools = self.pools()?;
        let conn = pools.primary.get_owned().await;
        conn.map_err(|error| unreachable_now(&error))
    }

    async fn to_read(&self, (): &()) -> QueryResult<Self::Conn> {
        let pools = self.pools()?;
        let conn = pools.next().get_owned().await;
        conn.map_err(|error| unreachable_now(&error))
    }
}

fn unreachable_now(error: &(impl ToString + ?Sized)) -> DieselError {
    let kind = DatabaseErrorKind::UnableToSendCommand;
    DieselError::DatabaseError(kind, Box::new(error.to_string()))
}
