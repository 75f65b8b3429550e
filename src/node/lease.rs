//! One connection lent out: who uses it, how its statements fail, and how it goes back.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use diesel::result::{DatabaseErrorKind, Error as DieselError};
use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;

use super::pool::Pooled;
use super::{Busy, Node, NodeCancel, NodeConnection, recycle};
use crate::metrics;
use crate::wire::Remark;

/// How tokio-postgres says that it cannot talk to the server any more. Its texts are not translated.
const LOST: [&str; 2] = ["connection closed", "error communicating with the server"];

/// A connection of a node in the hands of one session. It goes back when the last holder drops it.
pub(crate) struct Lease {
    pooled: Option<Pooled>,
    /// Its node, and how many statements and row streams use it now.
    cancel: Arc<NodeCancel>,
    /// A statement was abandoned before its end. The connection is closed when it goes back.
    abandoned: AtomicBool,
    /// The session may have left anything behind: locks, temporary tables. The connection is cleaned when it goes
    /// back.
    state: AtomicBool,
    /// The names of the settings that it made. If it left nothing else, only these are undone.
    settings: Mutex<Vec<Box<str>>>,
    /// The version of the session's settings that was sent to this connection; see [`Self::settings_told`].
    settings_version: AtomicU64,
    /// The application had the connection itself.
    lent: AtomicBool,
    /// A read over it has told how fast the node is.
    timed: AtomicBool,
    /// Since when it is lent out, if anybody records that.
    since: Option<Instant>,
    _fallback: Option<OwnedSemaphorePermit>,
}

/// What the wire knows of a failed statement, beyond Diesel's error.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) remark: Option<Remark>,
    /// The connection is gone, for this cause.
    pub(crate) lost: Option<String>,
    /// This pool ended it, which says nothing of the node.
    pub(crate) ours: bool,
}

impl Lease {
    pub(crate) fn new(
        pooled: Pooled,
        node: Arc<Node>,
        fallback: Option<OwnedSemaphorePermit>,
    ) -> Self {
        Self {
            cancel: Arc::new(NodeCancel {
                node,
                peer: Arc::clone(&pooled.peer),
                users: AtomicUsize::new(0),
                asked: AtomicBool::new(false),
            }),
            pooled: Some(pooled),
            abandoned: AtomicBool::new(false),
            state: AtomicBool::new(false),
            settings: Mutex::default(),
            settings_version: AtomicU64::new(0),
            lent: AtomicBool::new(false),
            timed: AtomicBool::new(false),
            since: metrics::clock(),
            _fallback: fallback,
        }
    }

    /// Whether the connection is of those that everybody uses.
    pub(crate) fn is_general(&self) -> bool {
        self.connection().lane.is_general()
    }

    /// A read failed there that another node serves. What a report fails by says nothing of other reads.
    pub(crate) fn failed_read(&self, now: Instant) {
        if self.is_general() {
            self.node().pace.failed(now);
        }
    }

    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.cancel.node
    }

    #[expect(
        clippy::expect_used,
        reason = "the connection is taken out only when the lease is dropped"
    )]
    fn connection(&self) -> &NodeConnection {
        let pooled = self.pooled.as_ref();
        pooled.expect("a lease holds a connection")
    }

    pub(crate) fn connection_mut(&mut self) -> Option<&mut NodeConnection> {
        self.pooled.as_deref_mut().map(Box::as_mut)
    }

    /// Whether the next statement can be sent over it.
    pub(crate) fn is_usable(&self) -> bool {
        self.driver.listen();
        self.wire.is_usable()
    }

    /// Whether a statement on it was dropped before its end. The next one waits behind it.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Acquire)
    }

    /// Whether nobody uses it now.
    pub(crate) fn is_free(&self) -> bool {
        self.cancel.users.load(Ordering::Acquire) == 0
    }

    /// Nobody may use the connection any more, though the node is well.
    pub(crate) fn condemn(&self) {
        self.wire.condemn();
    }

    /// The session may leave anything behind.
    pub(crate) fn note_state(&self) {
        self.state.store(true, Ordering::Release);
    }

    /// Whether the session may have left anything behind.
    pub(crate) fn has_state(&self) -> bool {
        self.state.load(Ordering::Acquire)
    }

    /// The session is about to make these settings.
    pub(crate) fn note_settings<'a>(&self, names: impl Iterator<Item = &'a str>) {
        let mut settings = self.settings.lock();
        for name in names {
            if !settings.iter().any(|known| **known == *name) {
                settings.push(name.into());
            }
        }
    }

    /// The connection has the session's settings of this version.
    pub(crate) fn settings_told(&self, version: u64) {
        self.settings_version.store(version, Ordering::Release);
    }

    /// Which settings of the session it has; 0 for none.
    pub(crate) fn settings_version(&self) -> u64 {
        self.settings_version.load(Ordering::Acquire)
    }

    /// The application had the connection itself. Nobody knows what it did.
    pub(crate) fn note_lent(&self) {
        self.lent.store(true, Ordering::Release);
    }

    /// Whether a read over it is to tell how fast the node is: only the first, for which the node was chosen. Who keeps
    /// the connection reads there however long that takes, and his reads may be others than those of everybody else.
    pub(crate) fn is_to_be_timed(&self) -> bool {
        !self.timed.load(Ordering::Relaxed) && !self.timed.swap(true, Ordering::Relaxed)
    }

    /// Whether its prepared statements may be outdated.
    pub(crate) fn is_stale(&self, generation: u64) -> bool {
        self.remembers() < generation || self.wire.forgot_statements()
    }

    /// Registers a user; see [`Use`].
    pub(crate) fn enter(self: &Arc<Self>) -> Use {
        self.cancel.users.fetch_add(1, Ordering::AcqRel);
        Use {
            _busy: self.node().busy(),
            lease: Arc::clone(self),
            finished: false,
        }
    }

    /// Whether what runs on it was to be cancelled since it is lent out.
    pub(crate) fn was_to_be_cancelled(&self) -> bool {
        self.cancel.asked.load(Ordering::Acquire)
    }

    pub(crate) fn canceller(&self) -> Arc<NodeCancel> {
        Arc::clone(&self.cancel)
    }

    /// What the wire knows of an error that Diesel reported.
    pub(crate) fn diagnose(&self, error: &DieselError) -> Failure {
        let death = self.wire.is_closed().then(|| self.wire.death()).flatten();
        let remark = match error {
            DieselError::DatabaseError(_, information) => {
                self.wire.remark_of(information.message())
            }
            _ => None,
        };
        // diesel-async uses one error kind for every error of the client, also for a wrong number of bind values.
        // Only some of them mean that the connection is gone.
        let gone = match error {
            DieselError::DatabaseError(
                DatabaseErrorKind::UnableToSendCommand | DatabaseErrorKind::ClosedConnection,
                information,
            ) => {
                death.is_some()
                    || LOST
                        .iter()
                        .any(|text| information.message().starts_with(text))
            }
            _ => false,
        };
        let ended = remark.is_some_and(|remark| remark.fatal);
        let ours = death.as_ref().is_some_and(|death| death.ours);
        let lost = match (death, gone || ended) {
            (Some(death), true) => Some(death.message),
            // The client noticed it before the driver did.
            (None, true) => Some("the connection was closed".to_owned()),
            (_, false) => None,
        };
        Failure { remark, lost, ours }
    }
}

impl Deref for Lease {
    type Target = NodeConnection;

    fn deref(&self) -> &NodeConnection {
        self.connection()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(since) = self.since {
            self.node().meter.used_connection(since.elapsed());
        }
        if let Some(pooled) = self.pooled.take() {
            let condition = recycle::Condition {
                untrusted: *self.abandoned.get_mut()
                    || *self.lent.get_mut()
                    || pooled.wire.forgot_statements(),
                state: *self.state.get_mut(),
                settings: std::mem::take(self.settings.get_mut()),
            };
            recycle::give_back(pooled, condition, &self.cancel.node);
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("node", &self.node().name)
            .field("users", &self.cancel.users)
            .finish_non_exhaustive()
    }
}

/// One statement's or row stream's use of a lease.
///
/// If it is dropped before [`Use::finish`], the connection was abandoned in the middle of a command, and nobody else
/// gets it.
#[derive(Debug)]
pub(crate) struct Use {
    lease: Arc<Lease>,
    finished: bool,
    _busy: Busy,
}

impl Use {
    pub(crate) fn lease(&self) -> &Arc<Lease> {
        &self.lease
    }

    /// The command came to its own end, good or bad.
    pub(crate) fn finish(mut self) {
        self.finished = true;
    }

    /// Becomes the use of a row stream. A stream may be dropped early: the wire knows when the rest was answered.
    pub(crate) fn into_stream(mut self) -> Self {
        self.finished = true;
        self
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        self.lease.driver.leave();
        if !self.finished {
            self.lease.abandoned.store(true, Ordering::Release);
        }
        self.lease.cancel.users.fetch_sub(1, Ordering::AcqRel);
    }
}
