//! A session that several connections share, here or, through its token, elsewhere.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use crate::cluster::Cluster;
use crate::connection::{ReplicatedConnection, token_of};
use crate::consistency::SessionHistory;
use crate::error::Error;
use crate::position::Position;
use crate::token::SessionToken;

tokio::task_local! {
    /// The sessions that the running task is within, at most one for each pool.
    static AMBIENT: Vec<Session>;
}

/// A session that several connections share: what one of them writes, the others read.
///
/// A connection from [`ReplicatedPool::get`](super::ReplicatedPool::get) is a session of its own. If a user's session
/// is more than one connection, for example all of one web request, take them from one `Session`. If it goes on in
/// another request, process or machine, send its [`token`](Self::token) along.
///
/// ```no_run
/// # async fn example(pool: &diesel_replicated::ReplicatedPool, cookie: &str) -> Result<(), Box<dyn std::error::Error>> {
/// let session = pool.resume(&cookie.parse()?);
/// let first = session.get().await?;
/// let second = session.get().await?; // reads what `first` has written
/// let cookie = session.token().await.to_string();
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Session {
    cluster: Arc<Cluster>,
    history: Arc<SessionHistory>,
}

impl Session {
    pub(super) fn new(cluster: &Arc<Cluster>) -> Self {
        Self {
            cluster: Arc::clone(cluster),
            history: Arc::default(),
        }
    }

    pub(super) fn resumed(cluster: &Arc<Cluster>, token: &SessionToken) -> Self {
        let history = if token.is_empty() {
            SessionHistory::default()
        } else {
            SessionHistory::resumed(token.cluster(), token.written(), token.seen())
        };
        Self {
            cluster: Arc::clone(cluster),
            history: Arc::new(history),
        }
    }

    /// Hands out a connection that belongs to this session.
    ///
    /// # Errors
    ///
    /// As [`ReplicatedPool::get`](super::ReplicatedPool::get).
    #[expect(
        clippy::unused_async,
        reason = "as in other pools, so that one can be swapped for the other"
    )]
    pub async fn get(&self) -> Result<ReplicatedConnection, Error> {
        self.connection()
    }

    pub(super) fn connection(&self) -> Result<ReplicatedConnection, Error> {
        let history = Arc::clone(&self.history);
        ReplicatedConnection::new(Arc::clone(&self.cluster), history)
    }

    /// The token of what the session has written and seen until now, for whoever goes on with it.
    ///
    /// Waits no longer than reads do ([`ConsistencyConfig::wait`](crate::config::ConsistencyConfig::wait)). If the
    /// primary has not told its position by then, the token says that there is a write of unknown position. The first
    /// read under it finds one that covers it.
    pub async fn token(&self) -> SessionToken {
        token_of(&self.cluster, &self.history).await
    }

    /// The write of this session that a failover has lost, or may have lost, if there is one.
    #[must_use]
    pub fn lost_write(&self) -> Option<Position> {
        self.history.lost(&self.cluster.write_log)
    }

    /// Runs `future` within this session: connections that it gets from the pool belong to it.
    ///
    /// Tasks that it spawns are outside, unless they run within a clone.
    pub async fn scope<F: Future>(&self, future: F) -> F::Output {
        let outer = AMBIENT.try_with(Clone::clone).unwrap_or_default();
        let others = outer
            .into_iter()
            .filter(|other| !other.is_of(&self.cluster));
        let within = others.chain([self.clone()]).collect();
        AMBIENT.scope(within, future).await
    }

    /// The session of `cluster` that the running task is within.
    pub(super) fn ambient(cluster: &Arc<Cluster>) -> Option<Self> {
        let find = |within: &Vec<Self>| {
            within
                .iter()
                .find(|session| session.is_of(cluster))
                .cloned()
        };
        AMBIENT.try_with(find).ok().flatten()
    }

    fn is_of(&self, cluster: &Arc<Cluster>) -> bool {
        Arc::ptr_eq(&self.cluster, cluster)
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("history", &self.history)
            .finish_non_exhaustive()
    }
}
