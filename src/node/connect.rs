//! Opens connections to one node: addresses, start-up, set-up statements.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use diesel::result::{ConnectionError, Error as DieselError};
use diesel::{QueryResult, sql_query};
use diesel_async::{AsyncPgConnection, SimpleAsyncConnection};
use futures_core::future::BoxFuture;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::Trouble;
use super::connection::NodeConnection;
use super::dial::{Dialed, Dialer, Peer};
use super::login::{Login, Logins};
use super::position_sql::PositionSql;
use super::run::Run;
use super::shows::Shows;
use super::socket::Address;
use crate::config::{NodeSettings, Pooler};
use crate::credentials::Credentials;
use crate::deadline;
use crate::error::{ConnectError, ConnectErrorKind};
use crate::position::PositionSource;
use crate::tls::OwnConfig;
use crate::wire::{Generation, Lifetime, Pooling, ServerRole, Wire, drive};

/// Code that runs on every new server connection before anyone gets it.
pub(crate) type SetupHook =
    Arc<dyn for<'a> Fn(&'a mut AsyncPgConnection) -> BoxFuture<'a, QueryResult<()>> + Send + Sync>;

/// What the application brings along for opening connections.
#[derive(Clone)]
pub(crate) struct ConnectHooks {
    pub(crate) setup: SetupHook,
    /// The set-up does something.
    pub(crate) sets_up: bool,
    pub(crate) tls: Option<OwnConfig>,
    pub(crate) credentials: Option<Arc<dyn Credentials>>,
    pub(crate) positions: Option<Arc<dyn PositionSource>>,
}

/// What a connection is opened for.
#[derive(Clone, Copy)]
enum For<'a> {
    Statements,
    /// It asks for the run of the server itself, with all else.
    Monitor,
    /// Another database than the application's, without the application's set-up.
    #[cfg_attr(
        not(feature = "promotion"),
        expect(dead_code, reason = "a promotion alone needs it")
    )]
    Database(&'a str),
}

/// How to reach one node.
pub(crate) struct Connector {
    pub(crate) settings: NodeSettings,
    dialer: Dialer,
    logins: Logins,
    setup: SetupHook,
    sets_up: bool,
    position_sql: Arc<PositionSql>,
    /// What was seen of a pooler when a connection was last opened.
    pooling: Mutex<Pooling>,
    /// The way around a pooler.
    monitor: Option<Box<Self>>,
    report: Arc<dyn Fn(Trouble) + Send + Sync>,
    /// When it ends, every connection of the node ends, for good.
    pub(crate) lifetime: Arc<Lifetime>,
    /// The generation of the connections that are opened now.
    generation: Mutex<Arc<Generation>>,
    /// Turns for opening connections for statements.
    turns: Semaphore,
    /// The last attempt to open a connection for statements failed.
    failing: AtomicBool,
    /// This role may not ask for the run of the server.
    hides_its_run: AtomicBool,
}

impl Connector {
    pub(crate) fn new(
        settings: NodeSettings,
        hooks: ConnectHooks,
        report: Arc<dyn Fn(Trouble) + Send + Sync>,
    ) -> Self {
        Self::until(Arc::default(), settings, hooks, report)
    }

    fn until(
        lifetime: Arc<Lifetime>,
        mut settings: NodeSettings,
        hooks: ConnectHooks,
        report: Arc<dyn Fn(Trouble) + Send + Sync>,
    ) -> Self {
        let monitor = settings.monitor.take().map(|around| {
            let (lifetime, report) = (Arc::clone(&lifetime), Arc::clone(&report));
            Box::new(Self::until(lifetime, *around, hooks.clone(), report))
        });
        Self {
            pooling: Mutex::new(match settings.pooler {
                Some(Pooler::Session) => Pooling::Session,
                Some(Pooler::Transaction) => Pooling::Transaction,
                None => Pooling::None,
            }),
            turns: Semaphore::new(settings.pool.max_connecting as usize),
            monitor,
            sets_up: hooks.sets_up,
            position_sql: Arc::new(PositionSql::new(hooks.positions)),
            dialer: Dialer::new(&settings, hooks.tls),
            logins: Logins::new(&settings, hooks.credentials),
            report,
            settings,
            setup: hooks.setup,
            generation: Mutex::new(Generation::within(&lifetime)),
            lifetime,
            failing: AtomicBool::new(false),
            hides_its_run: AtomicBool::new(false),
        }
    }

    /// All of its settings, those of the way around a pooler among them.
    pub(crate) fn settings(&self) -> NodeSettings {
        let around = self.monitor.as_ref().map(|monitor| monitor.settings());
        NodeSettings {
            monitor: around.map(Box::new),
            ..self.settings.clone()
        }
    }

    pub(crate) fn node(&self) -> &str {
        &self.settings.name
    }

    /// Ends every connection for statements, also one that runs a statement. The monitor's connection stays. New ones
    /// can be opened.
    pub(crate) fn end_generation(&self, cause: String) {
        let next = Generation::within(&self.lifetime);
        std::mem::replace(&mut *self.generation(), next).end(cause);
    }

    /// What was last seen of a pooler on the way of statements.
    pub(crate) fn pooling(&self) -> Pooling {
        *self.pooling.lock()
    }

    /// Whether what the monitor reports is of the server that serves statements. It need not be if a pooler gives each
    /// transaction another connection and the monitor goes the same way.
    pub(crate) fn vouches(&self) -> bool {
        self.monitor.is_some() || !self.pooling().shares_servers()
    }

    /// What the monitor's connections, and those for a promotion, are opened by.
    fn around(&self) -> &Self {
        self.monitor.as_deref().unwrap_or(self)
    }

    fn generation(&self) -> MutexGuard<'_, Arc<Generation>> {
        self.generation.lock()
    }

    /// Opens a connection and sets it up, within `connect_timeout`. While it is open it counts in `open`.
    pub(crate) async fn connect(
        &self,
        open: &Arc<AtomicUsize>,
    ) -> Result<NodeConnection, ConnectError> {
        let generation = Arc::clone(&self.generation());
        let connected = self
            .connect_counted(open, &generation, For::Statements)
            .await;
        self.failing.store(connected.is_err(), Ordering::Release);
        connected
    }

    /// Waits until one more connection may be opened. Health checks do not wait.
    pub(super) async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        // Nobody closes it.
        self.turns.acquire().await.ok()
    }

    /// Whether the last attempt to open a connection for statements failed.
    pub(super) fn cannot_grow(&self) -> bool {
        self.failing.load(Ordering::Acquire)
    }

    /// The same for the monitor. Its connection serves no statement, is not counted, and stays whatever the node
    /// becomes.
    pub(super) async fn connect_monitor(&self) -> Result<NodeConnection, ConnectError> {
        let generation = Generation::within(&self.lifetime);
        let around = self.around();
        let mut connection = around
            .connect_counted(&Arc::default(), &generation, For::Monitor)
            .await?;
        around.free_of_limits(&mut connection).await?;
        Ok(connection)
    }

    /// The same to another database, and without the application's set-up, which may need the application's database.
    #[cfg(feature = "promotion")]
    pub(super) async fn connect_bare(
        &self,
        database: &str,
    ) -> Result<NodeConnection, ConnectError> {
        let generation = Generation::within(&self.lifetime);
        let around = self.around();
        around.keeps_locks(around.pooling())?;
        let mut connection = around
            .connect_counted(&Arc::default(), &generation, For::Database(database))
            .await?;
        around.keeps_locks(connection.wire.pooling())?;
        around.free_of_limits(&mut connection).await?;
        Ok(connection)
    }

    /// The same for a statement whose text is a secret.
    #[cfg(feature = "promotion")]
    pub(super) async fn connect_quietly(
        &self,
        database: &str,
    ) -> Result<super::quiet_connection::QuietConnection, ConnectError> {
        let (generation, around) = (Generation::within(&self.lifetime), self.around());
        let found = Address::all(&around.settings.host, &around.settings.login.socket).await;
        let found = found.map_err(|error| ConnectError::from_io(around.node(), &error))?;
        let mut failures = Vec::new();
        for address in &found {
            let dialed = around.log_in(address, &generation, For::Database(database));
            match around.in_time(Box::pin(dialed)).await {
                Ok(dialed) => {
                    let counter = Counter::start(Arc::default());
                    let at_the_end = around.at_the_end(counter, &dialed.wire);
                    let (driver, _) = drive(dialed.connection, dialed.wire, generation, at_the_end);
                    return Ok(super::quiet_connection::QuietConnection {
                        client: dialed.client,
                        _driver: driver,
                    });
                }
                Err(error) => failures.push((address, error)),
            }
        }
        Err(around.no_address(failures))
    }

    /// Refuses a connection that would not have a lock for itself: two processes were given the same one.
    #[cfg(feature = "promotion")]
    fn keeps_locks(&self, pooling: Pooling) -> Result<(), ConnectError> {
        if !pooling.shares_servers() {
            return Ok(());
        }
        let message = "a pooler gives each transaction another connection, and so one lock to several processes: \
            give the node a `monitor` that goes around it";
        Err(self.error(ConnectErrorKind::SetUp, message))
    }

    /// A role or database may limit its applications. The limits are not meant for the monitor.
    async fn free_of_limits(&self, connection: &mut NodeConnection) -> Result<(), ConnectError> {
        if connection.wire.pooling().shares_servers() {
            // Others would get these settings.
            return Ok(());
        }
        let limit = self.settings.pool.connect_timeout;
        let setting = connection.pg_mut().batch_execute(NO_LIMITS);
        match tokio::time::timeout(limit, setting).await {
            Ok(set) => set.map_err(|error| self.monitor_failed(&error)),
            Err(_) => Err(self.too_slow(limit)),
        }
    }

    async fn connect_counted(
        &self,
        open: &Arc<AtomicUsize>,
        generation: &Arc<Generation>,
        purpose: For<'_>,
    ) -> Result<NodeConnection, ConnectError> {
        if self.lifetime.is_over() {
            return Err(self.error(ConnectErrorKind::Retired, "it has left the pool"));
        }
        let addresses = Address::all(&self.settings.host, &self.settings.login.socket);
        let addresses = self.in_time(async {
            let found = addresses.await;
            found.map_err(|error| ConnectError::from_io(self.node(), &error))
        });
        let addresses = addresses.await?;
        let mut failures = Vec::new();
        for address in &addresses {
            let attempt = Box::pin(self.attempt(address, open, generation, purpose));
            match self.in_time(attempt).await {
                Ok(connection) => return Ok(connection),
                Err(error) => {
                    let last = !error.is_of_the_address();
                    failures.push((address, error));
                    if last {
                        break;
                    }
                }
            }
        }
        Err(self.no_address(failures))
    }

    /// `connect_timeout` is for each address, as in libpq.
    async fn in_time<T>(
        &self,
        work: impl Future<Output = Result<T, ConnectError>>,
    ) -> Result<T, ConnectError> {
        let limit = self.settings.pool.connect_timeout;
        tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
            let message = format!("`connect_timeout` is {limit:?}");
            Err(self.error(ConnectErrorKind::TimedOut, message))
        })
    }

    /// The last failure, which tells those of the addresses before.
    fn no_address(&self, mut failures: Vec<(&Address, ConnectError)>) -> ConnectError {
        let several = failures.len() > 1;
        let Some((address, last)) = failures.pop() else {
            return self.error(ConnectErrorKind::Unreachable, "the name has no address");
        };
        if !several {
            return last;
        }
        let before = failures
            .iter()
            .map(|(address, error)| format!("{address}: {}", error.message));
        let before: Vec<String> = before.collect();
        let message = format!(
            "{address}: {}; before that: {}",
            last.message,
            before.join("; ")
        );
        ConnectError { message, ..last }
    }

    async fn attempt(
        &self,
        address: &Address,
        open: &Arc<AtomicUsize>,
        generation: &Arc<Generation>,
        purpose: For<'_>,
    ) -> Result<NodeConnection, ConnectError> {
        let Dialed {
            client,
            connection,
            wire,
            peer,
        } = self.log_in(address, generation, purpose).await?;
        self.see_pooler(&wire);
        let counter = Counter::start(Arc::clone(open));
        // From here on dropping the guard ends the driver, whatever fails.
        let (guard, notifications) = drive(
            connection,
            Arc::clone(&wire),
            Arc::clone(generation),
            self.at_the_end(counter, &wire),
        );
        let mut pg = AsyncPgConnection::try_from(client)
            .await
            .map_err(|error| self.set_up_failed(&wire, &error))?;
        let own = !wire.pooling().shares_servers();
        if own && wire.role() == Some(ServerRole::Standby) {
            fit_for_a_standby(&mut pg, &wire).await.map_err(|error| {
                self.set_up_failed(&wire, &ConnectionError::CouldntSetupConfiguration(error))
            })?;
        }
        // Before the set-up, which may leave limits or a role behind.
        let run = match purpose {
            For::Statements => self.ask_run(&mut pg, &wire).await?,
            For::Monitor | For::Database(_) => None,
        };
        if !matches!(purpose, For::Database(_)) && self.may_set_up(&wire)? {
            self.set_up(&mut pg).await.map_err(|error| {
                self.set_up_failed(&wire, &ConnectionError::CouldntSetupConfiguration(error))
            })?;
        }
        // A pooler repeats for ever what the server said at its first log-in.
        if wire.role().is_none() || wire.pooling() != Pooling::None {
            let asked = ask_role(&mut pg, &wire).await;
            asked.map_err(|error| {
                self.set_up_failed(&wire, &ConnectionError::CouldntSetupConfiguration(error))
            })?;
        }
        let mut connection =
            NodeConnection::new(pg, wire, guard, notifications, peer, run, self.last_day());
        connection.shows = Shows::new(Arc::clone(&self.position_sql));
        Ok(connection)
    }

    /// When a connection that is opened now is too old: at `max_lifetime`, less up to a tenth by chance.
    fn last_day(&self) -> Option<Instant> {
        let lifetime = self.settings.pool.max_lifetime?;
        let part = 1.0 - rand::random::<f64>() / 10.0;
        Some(deadline::after(
            Instant::now(),
            deadline::times(lifetime, part),
        ))
    }

    /// Notes what is known of a pooler, now that the log-in is over.
    fn see_pooler(&self, wire: &Wire) {
        let seen = match self.settings.pooler {
            // What the pooler tells of itself is so.
            Some(Pooler::Session) if wire.seen_pooling() == Pooling::Transaction => {
                Pooling::Transaction
            }
            Some(Pooler::Session) => Pooling::Session,
            Some(Pooler::Transaction) => Pooling::Transaction,
            None => wire.seen_pooling(),
        };
        wire.set_pooling(seen);
        *self.pooling.lock() = seen;
    }

    /// Whether the application's set-up runs. Where others would get it, and this pool lose it, that is an error.
    fn may_set_up(&self, wire: &Wire) -> Result<bool, ConnectError> {
        if !wire.pooling().shares_servers() {
            return Ok(true);
        }
        if self.sets_up {
            let message = "connections are set up (`setup_sql`, `durability` or `on_connect`), and a pooler may give \
                each transaction another one: let the role have the settings, or write `pooler=session` into the URL \
                if that is its mode";
            return Err(self.error(ConnectErrorKind::SetUp, message));
        }
        Ok(false)
    }

    /// Logs in, once more if the server refuses a password that has changed since.
    async fn log_in(
        &self,
        address: &Address,
        generation: &Arc<Generation>,
        purpose: For<'_>,
    ) -> Result<Dialed, ConnectError> {
        let mut refused: Option<(Login, ConnectError)> = None;
        loop {
            let known = refused.as_ref().map(|(login, _)| login);
            let Some(mut login) = self.logins.next(&self.settings, known).await? else {
                let error = refused.map(|(_, error)| error);
                return Err(error.unwrap_or_else(|| {
                    self.error(ConnectErrorKind::Credentials, "there are none")
                }));
            };
            if let For::Database(database) = purpose {
                login.postgres.dbname(database);
            }
            let dialed = self
                .dialer
                .dial(&self.settings, &login.postgres, address, generation);
            let error = match dialed.await {
                Ok(dialed) => return Ok(dialed),
                Err(error) => login.remark_on(error),
            };
            if refused.is_some() || !error.is_of_the_login() {
                return Err(error);
            }
            refused = Some((login, error));
        }
    }

    /// This role may ask for the run of the server now, perhaps.
    pub(crate) fn ask_for_its_run_again(&self) {
        self.hides_its_run.store(false, Ordering::Release);
    }

    /// Reports that a connection could not be opened, at an attempt that began at `since`.
    pub(super) fn connect_failed(&self, error: ConnectError, since: Instant) {
        (self.report)(Trouble::ConnectFailed(error, since));
    }

    /// A connection has ended. If it was not ended by us, the node is checked.
    fn at_the_end(&self, counter: Counter, wire: &Arc<Wire>) -> impl FnOnce() + Send + 'static {
        let wire = Arc::clone(wire);
        let report = Arc::clone(&self.report);
        move || {
            drop(counter);
            if let Some(death) = wire.death().filter(|death| !death.ours) {
                report(Trouble::ConnectionDied(death.message));
            }
        }
    }

    /// Runs the set-up that every connection of the pool has.
    pub(super) async fn set_up(&self, pg: &mut AsyncPgConnection) -> QueryResult<()> {
        (self.setup)(pg).await
    }

    /// Which run of which server a connection leads to. The name of a node may lead to several servers, as that of a
    /// load balancer does, or to another one than before. `None` if this role may not ask.
    async fn ask_run(
        &self,
        pg: &mut AsyncPgConnection,
        wire: &Wire,
    ) -> Result<Option<Run>, ConnectError> {
        if self.hides_its_run.load(Ordering::Acquire) {
            return Ok(None);
        }
        match Run::ask(pg).await {
            Ok((run, process)) => {
                let same = wire.key().is_none_or(|(known, _)| known == process);
                if !same && wire.pooling() == Pooling::None {
                    wire.set_pooling(Pooling::Unknown);
                    *self.pooling.lock() = Pooling::Unknown;
                }
                Ok(Some(run))
            }
            Err(DieselError::DatabaseError(_, said)) if is_refused(wire, said.message()) => {
                // The next connections need not ask.
                self.hides_its_run.store(true, Ordering::Release);
                Ok(None)
            }
            Err(error) => {
                Err(self.set_up_failed(wire, &ConnectionError::CouldntSetupConfiguration(error)))
            }
        }
    }

    /// The error for a monitor that could not ask what it has to know.
    pub(super) fn monitor_failed(&self, error: &diesel::result::Error) -> ConnectError {
        self.error(ConnectErrorKind::Other, error.to_string())
    }

    /// The server did not answer a question in time.
    pub(super) fn too_slow(&self, limit: Duration) -> ConnectError {
        let message = format!("no answer to a question within {limit:?}");
        self.error(ConnectErrorKind::TimedOut, message)
    }

    fn set_up_failed(&self, wire: &Wire, error: &ConnectionError) -> ConnectError {
        match wire.death() {
            // The set-up is not the cause.
            Some(death) => {
                let kind = ConnectErrorKind::of_pooler(&death.message);
                self.error(kind.unwrap_or(ConnectErrorKind::Other), death.message)
            }
            None => self.error(ConnectErrorKind::SetUp, error.to_string()),
        }
    }

    fn error(&self, kind: ConnectErrorKind, message: impl Into<String>) -> ConnectError {
        ConnectError::new(self.node(), kind, message)
    }

    /// Asks the server to cancel what runs on the connection that leads to `peer`.
    pub(super) async fn cancel(&self, peer: &Peer) -> Result<(), ConnectError> {
        self.in_time(self.dialer.cancel(&self.settings, peer)).await
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector")
            .field("node", &self.settings.name)
            .finish_non_exhaustive()
    }
}

/// Asks for the role of the server. A pooler in between may not pass on the parameter that tells it, or an old one.
pub(crate) async fn ask_role(pg: &mut AsyncPgConnection, wire: &Wire) -> QueryResult<()> {
    use diesel_async::RunQueryDsl;

    #[derive(diesel::QueryableByName)]
    struct Answer {
        #[diesel(sql_type = diesel::sql_types::Bool)]
        in_recovery: bool,
    }
    let asked = sql_query("SELECT pg_catalog.pg_is_in_recovery() AS in_recovery");
    let answer: Answer = asked.get_result(pg).await?;
    wire.set_role(if answer.in_recovery {
        ServerRole::Standby
    } else {
        ServerRole::Primary
    });
    Ok(())
}

/// Whether the server refused a question because a right or the function is missing: class 42 of
/// <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
fn is_refused(wire: &Wire, message: &str) -> bool {
    let remark = wire.remark_of(message);
    remark.is_some_and(|remark| remark.sqlstate.is_of_class(b"42"))
}

/// Sets `repeatable read` if the default is `serializable`, which a standby refuses with every statement.
async fn fit_for_a_standby(pg: &mut AsyncPgConnection, wire: &Wire) -> QueryResult<()> {
    #[derive(diesel::QueryableByName)]
    struct Level {
        #[diesel(sql_type = diesel::sql_types::Text)]
        default_transaction_isolation: String,
    }
    // A SELECT would be refused.
    let shown = sql_query("SHOW default_transaction_isolation");
    let level: Level = diesel_async::RunQueryDsl::get_result(shown, pg).await?;
    if level.default_transaction_isolation == "serializable" {
        pg.batch_execute(FIT).await?;
        wire.set_fitted(true);
    }
    Ok(())
}

/// What [`fit_for_a_standby`] sets. It is set again after a reset.
pub(super) const FIT: &str = "SET default_transaction_isolation TO 'repeatable read'";

/// Older versions of PostgreSQL lack some of these settings. A `SERIALIZABLE READ ONLY DEFERRABLE` transaction may
/// wait when it begins.
///
/// `application_name` marks the monitor in `pg_stat_activity`.
const NO_LIMITS: &str = "SELECT pg_catalog.set_config(name, CASE vartype WHEN 'integer' THEN '0' \
    WHEN 'bool' THEN 'off' WHEN 'string' THEN setting || ' (watching)' ELSE 'read committed' END, false) \
    FROM pg_catalog.pg_settings WHERE name IN ('application_name', 'statement_timeout', 'lock_timeout', 'transaction_timeout', 'idle_session_timeout', \
    'idle_in_transaction_session_timeout', 'default_transaction_isolation', \
    'default_transaction_deferrable')";

/// Counts a connection for as long as its driver lives.
struct Counter(Arc<AtomicUsize>);

impl Counter {
    fn start(open: Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Ordering::AcqRel);
        Self(open)
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
