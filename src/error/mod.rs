//! Everything that can go wrong, and for each failure what became of the statement.

mod connect;
mod diesel;
mod groups;
#[cfg(feature = "promotion")]
mod refusal;
mod sqlstate;

use std::time::Duration;

use crate::config::ConfigErrors;
use crate::position::Position;

pub use self::connect::{ConnectError, ConnectErrorKind};
pub use self::diesel::ErrorExt;
pub use self::groups::GroupsError;
#[cfg(feature = "promotion")]
pub use self::refusal::PromotionRefusal;
pub use self::sqlstate::{InvalidSqlState, SqlState};

/// What became of a statement that failed.
///
/// The SQL standard knows the last case as SQLSTATE `40003` (statement completion unknown) and
/// `08007` (transaction resolution unknown).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// No server has run it. It is safe to run it again.
    NotRun,
    /// The server ran it, and reported that it failed. It has had no effect.
    Failed,
    /// It was sent and no answer came. It may have run, or may still run. Find out before you run it again.
    Unknown,
}

/// A failure of the pool itself, not one that the server reports of a statement.
///
/// No variant carries a password or a bind value.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting is wrong. Every mistake is listed.
    #[error(transparent)]
    Config(#[from] ConfigErrors),

    /// No connection to the node could be opened, and none is open that could be waited for.
    #[error(transparent)]
    Connect(#[from] ConnectError),

    /// The statement is of several groups, and none can run it.
    #[error(transparent)]
    Groups(#[from] GroupsError),

    /// No connection of the node's pool came free for the whole wait: there were `max_size`, or no more could be opened.
    #[error("{}", exhausted(.node, *.max_size, *.waited, .connect.as_deref()))]
    PoolExhausted {
        /// The node.
        node: String,
        /// The most connections that its pool may open.
        max_size: u32,
        /// How long the caller waited (`connection_timeout`).
        waited: Duration,
        /// Why the pool could not grow meanwhile, if it tried.
        connect: Option<Box<ConnectError>>,
    },

    /// No node is known to be the primary, or the primary takes no writes yet.
    #[error("no node is known to be the primary and to take writes{}; {}", after(*.waited), list(.nodes))]
    NoPrimary {
        /// How long the caller waited.
        waited: Duration,
        /// The state of each node, in words.
        nodes: Vec<String>,
    },

    /// Somebody has paused new writes, with [`pause_writes`](crate::ReplicatedPool::pause_writes).
    #[error("new writes are paused by `pause_writes`{}; `resume_writes` lets them go on", after(*.waited))]
    WritesPaused {
        /// How long the caller waited.
        waited: Duration,
    },

    /// Transactions of this login are read only by default, on whichever node.
    #[error(
        "node `{node}` takes no writes from this pool: `default_transaction_read_only` is on by the {whose} \
         that it connects with; reset it there, or begin transactions with `read_write()`"
    )]
    ReadOnlyLogin {
        /// The node.
        node: String,
        /// Where the setting comes from: the role, the database, or the options of the connection.
        whose: &'static str,
    },

    /// More than one node takes writes.
    #[error(
        "more than one node takes writes: {}; name one with `.primary(url)`, or take the others out",
        .nodes.join(", ")
    )]
    TwoPrimaries {
        /// The names of the nodes.
        nodes: Vec<String>,
    },

    /// A check of the pool found that nothing can be written, or not even read.
    #[error("the pool cannot {}; {}", if *.reads { "write" } else { "read or write" }, list(.nodes))]
    NotReady {
        /// Whether reads can be served.
        reads: bool,
        /// The state of each node, in words.
        nodes: Vec<String>,
    },

    /// The caller asked for a replica, and none can serve.
    #[error("no replica can serve reads at present; {}", list(.nodes))]
    NoReplica {
        /// The state of each node, in words.
        nodes: Vec<String>,
    },

    /// The caller asked for nodes with a tag, and none can serve. The primary does not stand in.
    #[error("no replica with the tag `{tag}` can serve reads at present; {}", list(.nodes))]
    NoTaggedReplica {
        /// The tag.
        tag: String,
        /// The state of each node, in words.
        nodes: Vec<String>,
    },

    /// The caller asked for nodes with a tag, and none showed in time what the session must see. The primary does not
    /// stand in.
    #[error(
        "no replica with the tag `{tag}` shows what this session must see within {waited:?}: give it longer \
         (`TagConfig::wait`), or let the read see less (`with_consistency`); {}", list(.nodes)
    )]
    TaggedBehind {
        /// The tag.
        tag: String,
        /// How long it waited.
        waited: Duration,
        /// The state of each node, in words.
        nodes: Vec<String>,
    },

    /// The caller asked for nodes with a tag, and only the primary can show what the read must see.
    #[error(
        "no replica with the tag `{tag}` may serve this read: only the primary can show what it must see ({reason}); let \
         it see less (`with_consistency`)"
    )]
    TaggedNeedsPrimary {
        /// The tag.
        tag: String,
        /// Why, as a [`RouteReason`](crate::status::RouteReason) says it.
        reason: String,
    },

    /// The caller asked for nodes with a tag for which the pool has no connections.
    #[error(
        "the pool has no connections for the tag `{tag}`: add them with `Builder::tagged` or `Config::tagged`; it has \
         {}", tags(.known)
    )]
    UnknownTag {
        /// The tag.
        tag: String,
        /// The tags for which it has some.
        known: Vec<String>,
    },

    /// The caller asked for a replica while holding the primary's connection, and no replica's connection was free at
    /// once. Waiting for one pool while holding another can deadlock.
    #[error(
        "every connection of the replicas is in use, and this session holds the primary's, with \
         which it cannot wait for them; {}", list(.nodes)
    )]
    ReplicasBusy {
        /// The state of each node, in words.
        nodes: Vec<String>,
    },

    /// The statement would leave something on its connection (a setting, a temporary table, a lock, `LISTEN`), and a
    /// pooler gives each transaction another connection: others would find it, and this session would not.
    #[error(
        "session state over node `{node}`, whose pooler {}: nothing was run; use `SET LOCAL` or \
         `pg_advisory_xact_lock` in a transaction, or lead the URL around the pooler{}",
        if *.mode_is_known { "gives each transaction another connection" } else { "may give each transaction another connection" },
        if *.mode_is_known { "" } else { ", or write `pooler=session` into it if that is its mode" }
    )]
    PooledTransactions {
        /// The node.
        node: String,
        /// Whether the mode of the pooler is known.
        mode_is_known: bool,
    },

    /// A statement that changes the session was to run on a replica. The rest of the session would not find the
    /// change.
    #[error(
        "this statement changes the session's state (SET, LISTEN, locks, prepared statements), \
         which would be lost on replica `{node}`; run it outside of the replica's scope or \
         transaction, or for the transaction only (SET LOCAL)"
    )]
    SessionStateOnReplica {
        /// The replica.
        node: String,
    },

    /// An advisory lock on a replica excludes only those who ask the same replica.
    #[error(
        "the statement takes an advisory lock, which would exclude nobody on replica `{node}`; take it \
         outside of the replica's scope or transaction"
    )]
    LockOnReplica {
        /// The replica.
        node: String,
    },

    /// Notifications came faster than they were read, and the oldest were dropped.
    #[error("{count} notifications were dropped, as nobody read them")]
    NotificationsLost {
        /// How many.
        count: u64,
    },

    /// No replica can serve, and the reads that fell back on the primary have used up their share.
    #[error(
        "no replica can serve this read, and {limit} connections of the primary already serve such \
         reads (`fallback_share`); {}", list(.nodes)
    )]
    FallbackLimit {
        /// How many connections of the primary reads may take.
        limit: usize,
        /// The state of each node, in words.
        nodes: Vec<String>,
    },

    /// The connection to the node was lost while the statement was under way.
    #[error("the connection to node `{node}` was lost: {cause}")]
    ConnectionLost {
        /// The node.
        node: String,
        /// The last words of the connection.
        cause: String,
        /// Whether the statement may have run.
        outcome: Outcome,
    },

    /// The statement was not at its end in time; see
    /// [`with_deadline`](crate::ReplicatedConnection::with_deadline) and
    /// [`Config::statement_deadline`](crate::Config::statement_deadline).
    #[error("not at its end within {limit:?}; the server was asked to cancel what ran")]
    DeadlineExceeded {
        /// The time that it had.
        limit: Duration,
        /// Whether it may have run.
        outcome: Outcome,
    },

    /// The connection that carried this session's settings, locks or temporary tables is gone.
    #[error(
        "the connection to node `{node}` that held this session's state (SET, temporary tables, \
         LISTEN, locks) was lost: {cause}; get a new connection from the pool and set it up again"
    )]
    SessionLost {
        /// The node.
        node: String,
        /// The last words of the connection.
        cause: String,
    },

    /// The connection that carried the open transaction is gone, and the transaction with it.
    #[error("the connection to node `{node}` was lost, and the open transaction with it: {cause}")]
    TransactionLost {
        /// The node.
        node: String,
        /// The last words of the connection.
        cause: String,
    },

    /// The connection is in use by a row stream, or the session is in a transaction on a replica.
    #[error(
        "the connection is still in use by a row stream or a read-only transaction; end that first"
    )]
    StillInUse,

    /// There is no runtime that the pool's tasks could live on: it was built outside of one, the one that was named has
    /// ended, or that of connections opened from a URL could not be started.
    #[error("no runtime for the pool's tasks: {message}")]
    Runtime {
        /// Why, in tokio's or the operating system's words.
        message: String,
    },

    /// The pool has fewer replicas than were to confirm a write.
    #[error("{wanted} replicas were to confirm the write, and the pool has {have}")]
    TooFewReplicas {
        /// How many were asked for.
        wanted: usize,
        /// How many there are.
        have: usize,
    },

    /// The position of a write was not known in time: the primary did not answer, or nobody knows whether the write
    /// was committed.
    #[error("the position of the write was not known within {waited:?}")]
    PositionUnknown {
        /// How long the caller waited.
        waited: Duration,
    },

    /// Replicas have shown what the primary does not show yet: a commit there still waits for a synchronous standby.
    #[error(
        "replicas or other groups have shown commits that the primary does not show yet, because they still wait for \
         a synchronous standby"
    )]
    PrimaryBehind,

    /// A write of the session did not survive a failover.
    #[error("what was written at {position} did not survive the failover")]
    WriteLost {
        /// Its position.
        position: Position,
    },

    /// A promotion was refused; nothing was done.
    #[cfg(feature = "promotion")]
    #[cfg_attr(docsrs, doc(cfg(feature = "promotion")))]
    #[error("no replica is promoted: {}", .reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    PromotionRefused {
        /// Everything that speaks against it.
        reasons: Vec<PromotionRefusal>,
    },

    /// A promotion was begun, and is not known to have succeeded. The node may yet become the primary.
    #[cfg(feature = "promotion")]
    #[cfg_attr(docsrs, doc(cfg(feature = "promotion")))]
    #[error("the promotion of node `{node}` did not succeed: {cause}")]
    PromotionFailed {
        /// The node.
        node: String,
        /// What went wrong.
        cause: String,
    },

    /// Fewer than a majority of the nodes can be reached. Writes, and reads that must see what others wrote, need one
    /// (`write_quorum`).
    #[error("{answer} of the nodes answer, and {needed} have to (`write_quorum`); {}", list(.nodes))]
    NoQuorum {
        /// How many answer.
        answer: usize,
        /// How many have to.
        needed: usize,
        /// The state of each node, in words.
        nodes: Vec<String>,
    },

    /// The marker of a COMMIT could not be written, so nothing was committed.
    #[error(
        "the commit's marker could not be written, and the transaction was rolled back: {cause}; \
         `COMMIT_MARKER_SQL` creates its table"
    )]
    CommitMarker {
        /// What the server said.
        cause: String,
    },

    /// The connection broke during COMMIT, and the pool found that the transaction was not committed.
    #[error("the transaction was rolled back: {cause}")]
    RolledBack {
        /// How the connection broke.
        cause: String,
    },

    /// No list of nodes was to be had when the pool was built; see [`discovery`](crate::discovery).
    #[error("the list of nodes is not to be had: {cause}")]
    Discovery {
        /// Why.
        cause: String,
    },

    /// The pool was closed.
    #[error("the pool is closed")]
    Closed,

    /// The statement was to run in the destructor of a thread-local value, when the thread had lost what tokio needs.
    #[error(
        "the thread is ending, and can open no connection any more: run this before, not in the \
         destructor of a thread-local value"
    )]
    ThreadEnding,

    /// There is no node of this name.
    #[error("there is no node named `{name}`; {}", list(.nodes))]
    UnknownNode {
        /// The name that was given.
        name: String,
        /// The state of each node, in words.
        nodes: Vec<String>,
    },

    /// A node of this name is there already.
    #[error("there is a node named `{name}` already; give the new one another with `.name(…)`")]
    DuplicateNode {
        /// The name that was given.
        name: String,
    },

    /// A node was to be led to another cluster.
    #[error("the new URL of node `{name}` leads to another cluster; nothing was changed")]
    AnotherCluster {
        /// The node.
        name: String,
    },

    /// The call would take away the primary.
    #[error("node `{name}` is the primary; only replicas can be removed")]
    IsPrimary {
        /// The node.
        name: String,
    },
}

impl Error {
    /// What became of the statement.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::ConnectionLost { outcome, .. } | Self::DeadlineExceeded { outcome, .. } => {
                *outcome
            }
            _ => Outcome::NotRun,
        }
    }
}

impl Error {
    /// Whether it failed because servers, or connections to them, are away.
    pub(crate) fn is_outage(&self) -> bool {
        match self {
            Self::Connect(error) => error.is_outage(),
            Self::ConnectionLost { .. }
            | Self::SessionLost { .. }
            | Self::TransactionLost { .. }
            | Self::NoPrimary { .. }
            | Self::WritesPaused { .. }
            | Self::NoReplica { .. }
            | Self::NoTaggedReplica { .. }
            | Self::NoQuorum { .. }
            | Self::NotReady { .. } => true,
            _ => false,
        }
    }
}

fn tags(known: &[String]) -> String {
    match known {
        [] => "none".to_owned(),
        known => format!("some for {}", known.join(", ")),
    }
}

fn after(waited: Duration) -> String {
    if waited.is_zero() {
        return String::new();
    }
    let millis = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
    format!(" after {:?}", Duration::from_millis(millis))
}

fn list(nodes: &[String]) -> String {
    if nodes.is_empty() {
        "no nodes are configured".to_owned()
    } else {
        nodes.join("; ")
    }
}

/// A pool that could not grow is no larger for another `max_size`.
fn exhausted(
    node: &str,
    max_size: u32,
    waited: Duration,
    connect: Option<&ConnectError>,
) -> String {
    match connect {
        None => format!(
            "no connection of node `{node}` came free for {waited:?}; raise `max_size` ({max_size}), \
             or hold connections for a shorter time"
        ),
        Some(error) => format!(
            "no connection of node `{node}` came free for {waited:?}, and no more could be opened: {error}"
        ),
    }
}
