//! What Diesel sees: a connection that sends each statement to the node that it needs.

mod acquire;
mod action;
mod cancel;
mod choice;
mod commit;
mod consistency;
mod durability;
mod execute;
mod failure;
mod fence;
mod func;
mod notifications;
mod pending_write;
mod quorum;
mod reading;
mod recovery;
mod report;
mod retry;
mod route;
mod scope;
mod session;
mod settings;
mod shown;
mod stream;
mod traits;
mod transaction_builder;
mod types;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use diesel::QueryResult;
use diesel::connection::{CacheSize, DynInstrumentation, InstrumentationEvent};
use diesel_async::{AnsiTransactionManager, AsyncPgConnection};
use parking_lot::{Mutex, MutexGuard};

use crate::cluster::{Cluster, Permit, Purpose};
use crate::consistency::SessionHistory;
use crate::error::Error;
use crate::node::Lease;
use crate::route::{NodeKind, Route, RouteReason};

pub use cancel::CancelToken;
use cancel::Running;
pub(crate) use consistency::token_of;
pub use durability::{Replicas, Replication};
use reading::Served;
use route::LastRoute;
pub use scope::Scope;
use session::Session;
use settings::Settings;
pub use stream::RowStream;
pub use transaction_builder::TransactionBuilder;

/// A connection to a whole cluster: one primary and its replicas.
///
/// It implements the traits of diesel-async, so query builders run on it as they run on an
/// [`AsyncPgConnection`]. A transaction runs on the primary, and so does every statement that is
/// not known to be safe on a replica; plain selects run on a replica that has what the session
/// has written ([`Consistency`](crate::Consistency) sets what else they see), waited for a little,
/// and else on the primary.
///
/// Nothing is taken from any pool before the first statement. The primary's connection, once
/// taken, stays until this one is dropped, so that `SET`, `LISTEN`, temporary tables and advisory
/// locks work as they do on a plain connection; a connection that used them runs everything on
/// the primary from then on.
///
/// For pipelining, `&ReplicatedConnection` takes statements too: concurrent ones share a round
/// trip on the primary, and run side by side on replicas.
///
/// # Cancel safety
///
/// Dropping the future of a statement closes the server connection that was running it when this
/// connection lets go of it; no other session ever gets a connection in the middle of a command.
/// Whether the statement ran is then unknown.
pub struct ReplicatedConnection {
    cluster: Arc<Cluster>,
    session: Mutex<Session>,
    /// Server connections that a cancel token may have to reach.
    running: Arc<Running>,
    /// Held while the primary's connection is taken, so that concurrent statements take one.
    checkout: tokio::sync::Mutex<()>,
    transaction: AnsiTransactionManager,
    /// A statement of the open transaction failed to serialize: the transaction manager must hear
    /// of it as soon as it can be reached.
    must_roll_back: AtomicBool,
    instrumentation: Mutex<DynInstrumentation>,
    cache_size: CacheSize,
    /// What a pool over this one made of the connection before it lent it out for the first time.
    origin: Origin,
    /// Last, so that server connections are back in their pools before this one counts as back.
    _permit: Permit,
}

/// What a connection was when it was first lent out by a pool over this one.
#[derive(Debug)]
enum Origin {
    /// It has not been, or it is not known yet.
    Open,
    /// It had these settings, and nothing else that a user could notice.
    Known(Settings),
    /// It had something that cannot be made again.
    Unknown,
}

impl ReplicatedConnection {
    /// A connection that has touched no server yet.
    pub(crate) fn new(cluster: Arc<Cluster>, history: Arc<SessionHistory>) -> Result<Self, Error> {
        let permit = cluster.tracker.admit().ok_or(Error::Closed)?;
        Ok(Self {
            cluster,
            session: Mutex::new(Session {
                history,
                ..Session::default()
            }),
            running: Arc::default(),
            checkout: tokio::sync::Mutex::default(),
            transaction: AnsiTransactionManager::default(),
            must_roll_back: AtomicBool::new(false),
            instrumentation: Mutex::new(DynInstrumentation::default_instrumentation()),
            cache_size: CacheSize::Unbounded,
            origin: Origin::Open,
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
    /// Nothing falls back on the primary: without a usable replica statements fail with
    /// [`Error::NoReplica`], and what a replica refuses is the caller's error. Reads may miss what
    /// this connection has written.
    #[doc(alias = "slave")]
    pub fn replica(&mut self) -> Scope<'_> {
        Scope::forced(self, NodeKind::Replica)
    }

    /// Which node served the last statement, and why that one.
    #[must_use]
    pub fn last_route(&self) -> Option<Route> {
        self.session().last_route.as_ref().map(LastRoute::route)
    }

    /// The connection to the primary itself, for what only it can do.
    ///
    /// What is done with it is not seen here, so from now on everything runs on the primary.
    /// Notifications and instrumentation stay with this connection.
    ///
    /// # Errors
    ///
    /// The primary cannot be reached, or a row stream still uses its connection.
    #[doc(alias = "master")]
    pub async fn primary_connection(&mut self) -> QueryResult<&mut AsyncPgConnection> {
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
            session.pinned = true;
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
            .map(|connection| &mut connection.pg)
            .ok_or_else(|| Error::StillInUse.into())
    }

    /// Makes the settings of this connection part of it: a pool over this one, as of deadpool or mobc,
    /// hands it out with them from now on, whatever its users set.
    ///
    /// It is for the hook of such a pool that makes connections. Those pools lend a new connection out
    /// without a check, so that what its hook has set cannot be told from what its first user sets, and
    /// without this call they make a new connection for each use. bb8 and r2d2 need no such call.
    ///
    /// Only settings that can be made on any node are kept: `SET name = value`, `set_config`, `SET ROLE`.
    pub fn keep_settings(&mut self) {
        self.origin = Origin::Open;
        self.settle_origin();
    }

    /// Forgets what was done on this connection, and gives the server connections back. An open
    /// transaction stays: tests keep one open between checkouts on purpose. (Any other makes the
    /// connection broken.)
    fn renew(&mut self) {
        let session = self.session.get_mut();
        session.notice_transaction_end();
        if session.transaction.is_none() {
            let settings = match &self.origin {
                Origin::Known(settings) => settings.clone(),
                Origin::Open | Origin::Unknown => Settings::default(),
            };
            *session = Session {
                settings,
                ..Session::default()
            };
            self.transaction = AnsiTransactionManager::default();
            self.must_roll_back = AtomicBool::new(false);
            self.cache_size = CacheSize::Unbounded;
        }
    }

    /// Takes what was set until now as what every user of the connection is to have: a pool over this
    /// one checks a connection before it lends it out, and its hooks have run before that.
    fn settle_origin(&mut self) {
        let session = self.session.get_mut();
        if matches!(self.origin, Origin::Open) {
            self.origin = if session.pinned || session.transaction.is_some() {
                Origin::Unknown
            } else {
                Origin::Known(session.settings.clone())
            };
        }
    }

    /// Whether a pool over this one would have to make the connection anew to have it as it was when it
    /// was first lent out. Comes after its first use.
    fn has_lost_its_origin(&mut self) -> bool {
        let session = self.session.get_mut();
        if matches!(self.origin, Origin::Open) {
            // Lent out unchecked: its hooks cannot be told from its user.
            let touched = session.pinned || !session.settings.is_empty();
            self.origin = if touched {
                Origin::Unknown
            } else {
                Origin::Known(Settings::default())
            };
        }
        matches!(self.origin, Origin::Unknown)
    }

    fn session(&self) -> MutexGuard<'_, Session> {
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
