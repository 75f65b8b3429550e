//! What is known of one server connection, readable by anyone who holds it.

use std::collections::VecDeque;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::Generation;
use super::frame::Fields;
use crate::error::SqlState;

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

/// Why a connection died.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Death {
    /// The server's own word, where it had one.
    pub(crate) sqlstate: Option<SqlState>,
    pub(crate) message: String,
    /// This pool ended it.
    pub(crate) ours: bool,
}

/// What the server said of an error and Diesel does not pass on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Remark {
    pub(crate) sqlstate: SqlState,
    /// A prepared statement that the server will never run again, because a table has changed.
    pub(crate) stale_plan: bool,
    /// The server ended the session with it.
    pub(crate) fatal: bool,
    /// Refused because the server is in recovery, said in other words than SQLSTATE `25006`.
    pub(crate) in_recovery: bool,
}

impl Remark {
    fn of(fields: &Fields<'_>, sqlstate: SqlState) -> Self {
        let stale_plan = fields.routine == b"RevalidateCachedQuery";
        let in_recovery = match sqlstate {
            SqlState::FEATURE_NOT_SUPPORTED => !stale_plan,
            SqlState::NOT_IN_PREREQUISITE_STATE => true,
            // "cannot assign TransactionIds" or "OIDs during recovery".
            SqlState::INTERNAL_ERROR => fields.routine.starts_with(b"GetNew"),
            _ => false,
        };
        Self {
            sqlstate,
            stale_plan,
            fatal: fields.is_fatal(),
            in_recovery,
        }
    }
}

/// The state of one connection as its bytes tell it.
#[derive(Debug)]
pub(crate) struct Wire {
    /// Of the last `ReadyForQuery`: `I` idle, `T` in a transaction, `E` in a failed one.
    transaction: AtomicU8,
    /// Requests sent that no `ReadyForQuery` has answered yet.
    owed: AtomicI64,
    /// Messages sent that have the server run something.
    commands: AtomicU64,
    role: AtomicU8,
    closed: AtomicBool,
    condemned: AtomicBool,
    /// What it was opened for, if that can end before the connection does.
    generation: Option<Arc<Generation>>,
    /// A commit's wait for a synchronous standby was cancelled.
    unconfirmed: AtomicBool,
    /// A transaction was in the way of another.
    conflict: AtomicBool,
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
            role: AtomicU8::new(0),
            closed: AtomicBool::new(false),
            condemned: AtomicBool::new(false),
            generation: None,
            unconfirmed: AtomicBool::new(false),
            conflict: AtomicBool::new(false),
            answered: Notify::new(),
            memory: Mutex::default(),
        }
    }
}

impl Wire {
    pub(crate) fn of(generation: &Arc<Generation>) -> Self {
        Self {
            generation: Some(Arc::clone(generation)),
            ..Self::default()
        }
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

    /// Whether the server or the network has ended the connection.
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

    pub(super) fn sent_request(&self) {
        self.owed.fetch_add(1, Ordering::AcqRel);
    }

    /// How many messages were sent that have the server run something. A statement over whose time the
    /// number stays the same has not been run.
    pub(crate) fn commands(&self) -> u64 {
        self.commands.load(Ordering::Acquire)
    }

    pub(super) fn sent_command(&self) {
        self.commands.fetch_add(1, Ordering::AcqRel);
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
    }

    pub(super) fn saw_error(&self, fields: &Fields<'_>) {
        let Some(code) = SqlState::from_bytes(fields.code) else {
            return;
        };
        if code.is_conflict() {
            self.conflict.store(true, Ordering::Release);
        }
        let mut memory = self.memory();
        if memory.errors.len() == REMEMBERED {
            memory.errors.pop_front();
        }
        let remark = Remark::of(fields, code);
        memory.errors.push_back((digest(fields.message), remark));
        drop(memory);
        if fields.is_fatal() {
            self.close(Death::of(fields, code));
        }
    }

    /// An immediate shutdown and a crash elsewhere are announced as warnings; the end follows.
    pub(super) fn saw_notice(&self, fields: &Fields<'_>) {
        if fields.routine == b"SyncRepWaitForLSN" {
            self.unconfirmed.store(true, Ordering::Release);
        }
        if let Some(code) = SqlState::from_bytes(fields.code) {
            if code.ends_the_session() {
                self.close(Death::of(fields, code));
            }
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
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
