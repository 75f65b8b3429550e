//! The state of one server connection, which anyone who holds it can read.

use std::collections::VecDeque;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use super::Generation;
use super::auth::Login;
use super::fields::Fields;
use super::remark::{Remark, announces_the_end};
use crate::config::{AuthMethod, RequireAuth};
use crate::error::{ConnectErrorKind, SqlState};

/// How many of the newest errors are remembered, so that each pipelined statement finds its own.
const REMEMBERED: usize = 16;

/// Which kind of node the server says that it is (its parameter `in_hot_standby`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ServerRole {
    /// It is in recovery: a standby.
    Standby,
    /// It is not in recovery.
    Primary,
}

impl ServerRole {
    /// The name, as it stands in logs.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Standby => "standby",
            Self::Primary => "primary",
        }
    }
}

/// Whether the transactions of a session are read only by default (its parameter `default_transaction_read_only`),
/// and who made them so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadOnly {
    Off,
    /// Who made them so was not asked yet.
    On,
    /// The server, for whoever connects: somebody keeps it from being written to.
    Server,
    /// Its role, its database, its URL or itself: writes fail on any server, unless the transaction says `READ
    /// WRITE`.
    Own,
}

/// What is known of a pooler between this process and the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pooling {
    /// There is none, as far as that can be seen.
    None,
    /// There is one. In which mode it works is not known.
    Unknown,
    /// A connection has a server for itself.
    Session,
    /// Each transaction may run on another server connection.
    Transaction,
}

impl Pooling {
    /// Whether each transaction may run on another server connection.
    pub(crate) fn shares_servers(self) -> bool {
        matches!(self, Self::Unknown | Self::Transaction)
    }
}

/// Why a connection died.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Death {
    /// The server's own word, where it had one.
    pub(crate) sqlstate: Option<SqlState>,
    pub(crate) message: String,
    /// This pool ended it.
    pub(crate) ours: bool,
}

/// The state of one connection as its bytes tell it.
#[derive(Debug)]
pub(crate) struct Wire {
    /// Of the last `ReadyForQuery`: `I` idle, `T` in a transaction, `E` in a failed one.
    transaction: AtomicU8,
    /// Requests sent that no `ReadyForQuery` has answered yet.
    owed: AtomicI64,
    /// Messages sent that make the server run something.
    commands: AtomicU64,
    /// Of these, those that have run, or may have.
    ran: AtomicU64,
    /// The server has dropped the session's prepared statements.
    forgot_statements: AtomicBool,
    /// Its session was given an isolation level that a standby can run at.
    fitted: AtomicBool,
    role: AtomicU8,
    read_only: AtomicU8,
    closed: AtomicBool,
    condemned: AtomicBool,
    /// When this generation is over, the connection must not be used.
    generation: Option<Arc<Generation>>,
    /// A commit's wait for a synchronous standby was cancelled.
    unconfirmed: AtomicBool,
    /// The server reported a serialization failure or a deadlock.
    conflict: AtomicBool,
    login: Login,
    pooling: AtomicU8,
    /// What the pooler itself has told: 1 for sessions, 2 for transactions.
    told_pooling: AtomicU8,
    /// A pooler had no server for the statement.
    turned_away: AtomicBool,
    answered: Notify,
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    /// Hashes, not texts: an error's text may quote values of the user's.
    errors: VecDeque<(u64, Remark)>,
    death: Option<Death>,
}

impl Default for Wire {
    fn default() -> Self {
        Self {
            transaction: AtomicU8::new(b'I'),
            owed: AtomicI64::new(0),
            commands: AtomicU64::new(0),
            ran: AtomicU64::new(0),
            forgot_statements: AtomicBool::new(false),
            fitted: AtomicBool::new(false),
            role: AtomicU8::new(0),
            read_only: AtomicU8::new(0),
            closed: AtomicBool::new(false),
            condemned: AtomicBool::new(false),
            generation: None,
            unconfirmed: AtomicBool::new(false),
            conflict: AtomicBool::new(false),
            login: Login::default(),
            pooling: AtomicU8::new(0),
            told_pooling: AtomicU8::new(0),
            turned_away: AtomicBool::new(false),
            answered: Notify::new(),
            memory: Mutex::default(),
        }
    }
}

impl Wire {
    pub(crate) fn of(generation: &Arc<Generation>, require_auth: Option<RequireAuth>) -> Self {
        Self {
            generation: Some(Arc::clone(generation)),
            login: Login::new(require_auth),
            ..Self::default()
        }
    }

    pub(super) fn login(&self) -> &Login {
        &self.login
    }

    /// Whether a pooler in between had no server for the last statement, and ended the connection. So nothing of it ran.
    pub(crate) fn is_turned_away(&self) -> bool {
        self.turned_away.load(Ordering::Acquire)
    }

    pub(crate) fn pooling(&self) -> Pooling {
        match self.pooling.load(Ordering::Acquire) {
            1 => Pooling::Unknown,
            2 => Pooling::Session,
            3 => Pooling::Transaction,
            _ => Pooling::None,
        }
    }

    /// What can be seen of a pooler at the log-in. PgBouncer tells its mode from version 1.26 on. Before that it gives a
    /// process number by chance, which is greater than any that a system has.
    pub(crate) fn seen_pooling(&self) -> Pooling {
        const GREATEST: i32 = 4_194_304;
        match self.told_pooling.load(Ordering::Acquire) {
            1 => Pooling::Session,
            2 => Pooling::Transaction,
            _ if self
                .key()
                .is_some_and(|(process, _)| !(0..=GREATEST).contains(&process)) =>
            {
                Pooling::Unknown
            }
            _ => Pooling::None,
        }
    }

    pub(crate) fn set_pooling(&self, pooling: Pooling) {
        let mark = match pooling {
            Pooling::None => 0,
            Pooling::Unknown => 1,
            Pooling::Session => 2,
            Pooling::Transaction => 3,
        };
        self.pooling.store(mark, Ordering::Release);
    }

    /// Whether prepared statements must have no names, now that the log-in is over.
    pub(super) fn wants_no_names(&self) -> bool {
        self.pooling().shares_servers()
    }

    /// The way of logging in that the server asked for and that is not allowed.
    pub(crate) fn refused_auth(&self) -> Option<AuthMethod> {
        self.login.refused()
    }

    /// The process that serves the connection, as the server calls it, and the secret to cancel it by.
    pub(crate) fn key(&self) -> Option<(i32, i32)> {
        self.login.key()
    }

    pub(crate) fn transaction_status(&self) -> u8 {
        self.transaction.load(Ordering::Acquire)
    }

    pub(crate) fn in_transaction(&self) -> bool {
        self.transaction_status() != b'I'
    }

    /// Whether every request has been answered and no transaction is open.
    pub(crate) fn is_idle(&self) -> bool {
        self.is_answered() && !self.in_transaction()
    }

    pub(crate) fn is_answered(&self) -> bool {
        self.owed.load(Ordering::Acquire) <= 0
    }

    /// Waits until every request has been answered, or the connection died.
    pub(crate) async fn answered(&self) {
        loop {
            let answered = self.answered.notified();
            if self.is_answered() || self.is_closed() {
                return;
            }
            answered.await;
        }
    }

    pub(crate) fn role(&self) -> Option<ServerRole> {
        match self.role.load(Ordering::Acquire) {
            1 => Some(ServerRole::Standby),
            2 => Some(ServerRole::Primary),
            _ => None,
        }
    }

    pub(crate) fn set_role(&self, role: ServerRole) {
        let code = match role {
            ServerRole::Standby => 1,
            ServerRole::Primary => 2,
        };
        self.role.store(code, Ordering::Release);
    }

    /// Whether its session got another default of isolation because the server is a standby.
    pub(crate) fn is_fitted(&self) -> bool {
        self.fitted.load(Ordering::Acquire)
    }

    pub(crate) fn set_fitted(&self, fitted: bool) {
        self.fitted.store(fitted, Ordering::Release);
    }

    /// The last report of the server.
    pub(crate) fn read_only(&self) -> ReadOnly {
        match self.read_only.load(Ordering::Acquire) {
            0 => ReadOnly::Off,
            1 => ReadOnly::On,
            2 => ReadOnly::Server,
            _ => ReadOnly::Own,
        }
    }

    /// Whether its transactions may be read only because the server is not to be written to.
    pub(crate) fn may_be_fenced(&self) -> bool {
        matches!(self.read_only(), ReadOnly::On | ReadOnly::Server)
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only() != ReadOnly::Off
    }

    /// Who made its transactions read only is to be asked again.
    pub(crate) fn doubt_read_only(&self) {
        let doubted = |now| (now != 0).then_some(1);
        let (set, get) = (Ordering::AcqRel, Ordering::Acquire);
        let _ = self.read_only.fetch_update(set, get, doubted);
    }

    /// Notes who made its transactions read only. A newer report of the server wins.
    pub(crate) fn learn_read_only(&self, own: bool) {
        let learnt = if own { 3 } else { 2 };
        let learn = |now| (now != 0).then_some(learnt);
        let (set, get) = (Ordering::AcqRel, Ordering::Acquire);
        let _ = self.read_only.fetch_update(set, get, learn);
    }

    /// Whether the connection has ended.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Marks the connection as not to be used again by anyone.
    pub(crate) fn condemn(&self) {
        self.condemned.store(true, Ordering::Release);
    }

    pub(crate) fn is_usable(&self) -> bool {
        let over = self.generation.as_ref().is_some_and(|it| it.is_over());
        !over && !self.is_closed() && !self.condemned.load(Ordering::Acquire)
    }

    pub(crate) fn death(&self) -> Option<Death> {
        self.memory().death.clone()
    }

    /// The connection is over. The first cause that was seen is the one that is kept.
    pub(crate) fn close(&self, death: Death) {
        self.memory().death.get_or_insert(death);
        self.closed.store(true, Ordering::Release);
        self.answered.notify_waiters();
    }

    /// What the server said with the newest error of this text.
    ///
    /// Diesel keeps an error's text and drops the rest; the text finds the rest again.
    pub(crate) fn remark_of(&self, message: &str) -> Option<Remark> {
        let wanted = digest(message.as_bytes());
        let memory = self.memory();
        let found = memory.errors.iter().rev().find(|(hash, _)| *hash == wanted);
        found.map(|(_, remark)| *remark)
    }

    /// Whether a commit was made that no synchronous standby has confirmed, since this was last
    /// asked.
    pub(crate) fn take_unconfirmed(&self) -> bool {
        self.unconfirmed.load(Ordering::Acquire) && self.unconfirmed.swap(false, Ordering::AcqRel)
    }

    /// Whether the server has ended a transaction for being in the way of another, since this was
    /// last asked.
    pub(crate) fn take_conflict(&self) -> bool {
        self.conflict.swap(false, Ordering::AcqRel)
    }

    /// The transaction has failed for a reason that another attempt does not meet.
    pub(crate) fn note_conflict(&self) {
        self.conflict.store(true, Ordering::Release);
    }

    pub(super) fn sent_request(&self) {
        self.owed.fetch_add(1, Ordering::AcqRel);
    }

    /// How many messages were sent that make the server run something. If the number does not change while a
    /// statement runs, nothing of it has run.
    pub(crate) fn commands(&self) -> u64 {
        self.commands.load(Ordering::Acquire)
    }

    /// `at_once`: the message runs without a separate step that binds values.
    pub(super) fn sent_command(&self, at_once: bool) {
        self.commands.fetch_add(1, Ordering::AcqRel);
        if at_once {
            self.ran.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// How many statements have run, or may have. If the number does not change while a statement runs, and the
    /// server answers with an error, nothing of it has run: the server could not parse it, or not bind its values.
    pub(crate) fn ran(&self) -> u64 {
        self.ran.load(Ordering::Acquire)
    }

    pub(super) fn saw_bound(&self) {
        self.ran.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether prepared statements that this side knows of may be gone.
    pub(crate) fn forgot_statements(&self) -> bool {
        self.forgot_statements.load(Ordering::Acquire)
    }

    /// A prepared statement was found to be gone.
    pub(crate) fn note_forgotten_statements(&self) {
        self.forgot_statements.store(true, Ordering::Release);
    }

    pub(super) fn saw_done(&self, command: &[u8]) {
        if matches!(command, b"DISCARD ALL" | b"DEALLOCATE ALL") {
            self.note_forgotten_statements();
        }
    }

    pub(super) fn saw_ready(&self, status: u8) {
        self.transaction.store(status, Ordering::Release);
        if self.owed.fetch_sub(1, Ordering::AcqRel) <= 1 {
            self.answered.notify_waiters();
        }
    }

    pub(super) fn saw_parameter(&self, name: &[u8], value: &[u8]) {
        if name == b"in_hot_standby" {
            self.set_role(if value == b"on" {
                ServerRole::Standby
            } else {
                ServerRole::Primary
            });
        }
        if name == b"pgbouncer.pool_mode" {
            self.told_pooling
                .store(1 + u8::from(value != b"session"), Ordering::Release);
        }
        if name == b"default_transaction_read_only" {
            let on = u8::from(value == b"on");
            self.read_only.store(on, Ordering::Release);
        }
    }

    pub(super) fn saw_error(&self, fields: &Fields<'_>) {
        let Some(code) = SqlState::from_bytes(fields.code) else {
            return;
        };
        if code.is_conflict() {
            self.note_conflict();
        }
        let mut memory = self.memory();
        if memory.errors.len() == REMEMBERED {
            memory.errors.pop_front();
        }
        let remark = Remark::of(fields, code);
        memory.errors.push_back((digest(fields.message), remark));
        drop(memory);
        if fields.is_fatal() {
            let message = String::from_utf8_lossy(fields.message);
            let kind = ConnectErrorKind::of_pooler(&message);
            if kind.is_some_and(|kind| kind != ConnectErrorKind::Authentication) {
                self.turned_away.store(true, Ordering::Release);
            }
            self.close(Death::of(fields, code));
        }
    }

    /// Some ends are announced by a warning; they follow at once.
    pub(super) fn saw_notice(&self, fields: &Fields<'_>) {
        if fields.routine == b"SyncRepWaitForLSN" {
            self.unconfirmed.store(true, Ordering::Release);
        }
        if let Some(code) = SqlState::from_bytes(fields.code) {
            if announces_the_end(fields, code) {
                self.close(Death::of(fields, code));
            }
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock()
    }
}

impl Death {
    fn of(fields: &Fields<'_>, code: SqlState) -> Self {
        Self {
            sqlstate: Some(code),
            message: String::from_utf8_lossy(fields.message).into_owned(),
            ours: false,
        }
    }
}

fn digest(message: &[u8]) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(message)
}
