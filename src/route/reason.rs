//! The reasons for which a statement went where it went.

use std::fmt;

/// Why a statement was sent to the node that ran it.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum RouteReason {
    /// A query that is known to be safe on a replica.
    PlainSelect,
    /// It could have moved to a replica, and [`Routing`](crate::Routing) does not let it.
    HeldBack,
    /// It changes data or definitions.
    Write,
    /// It belongs to a transaction that runs on the primary.
    InTransaction,
    /// It belongs to a transaction that was declared read only.
    ReadOnlyTransaction,
    /// It begins, ends or divides a transaction.
    TransactionControl,
    /// It locks the rows that it reads, or a table.
    LockingClause,
    /// It calls a function (or uses a view or an operator) that may have effects.
    VolatileFunction,
    /// It asks about the server that answers: its activity, statistics, sequences, settings.
    ServerState,
    /// It changes or needs the state of the session.
    SessionState,
    /// It is not known to be safe on a replica.
    UnknownStatement,
    /// A replica refused this statement before.
    Learned,
    /// The session's own last write has not reached a usable replica yet.
    OwnWrite,
    /// What the session wrote did not survive a failover, or its place was not known when that came;
    /// only the primary tells what is there.
    LostWrite,
    /// What the session wrote may not have survived a failover: how that went is not known.
    UnclearWrite,
    /// No usable replica is known to have data as young as asked for.
    TooOld,
    /// The read must see everything that anyone has written.
    Strong,
    /// No replica was usable.
    NoUsableReplica,
    /// The replica that was tried first failed.
    ReplicaFailed,
    /// No connection to a replica was free, and the primary's was at hand.
    ReplicaBusy,
    /// The primary takes part in reads by its weight.
    PrimaryWeight,
    /// The caller asked for that node.
    Forced,
}

impl RouteReason {
    /// All of them, in their order.
    #[cfg(feature = "metrics")]
    pub(crate) const ALL: [Self; 22] = [
        Self::PlainSelect,
        Self::HeldBack,
        Self::Write,
        Self::InTransaction,
        Self::ReadOnlyTransaction,
        Self::TransactionControl,
        Self::LockingClause,
        Self::VolatileFunction,
        Self::ServerState,
        Self::SessionState,
        Self::UnknownStatement,
        Self::Learned,
        Self::OwnWrite,
        Self::LostWrite,
        Self::UnclearWrite,
        Self::TooOld,
        Self::Strong,
        Self::NoUsableReplica,
        Self::ReplicaFailed,
        Self::ReplicaBusy,
        Self::PrimaryWeight,
        Self::Forced,
    ];

    /// The reason as one word in snake case, fit for a label of a metric.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PlainSelect => "plain_select",
            Self::HeldBack => "held_back",
            Self::Write => "write",
            Self::InTransaction => "in_transaction",
            Self::ReadOnlyTransaction => "read_only_transaction",
            Self::TransactionControl => "transaction_control",
            Self::LockingClause => "locking_clause",
            Self::VolatileFunction => "volatile_function",
            Self::ServerState => "server_state",
            Self::SessionState => "session_state",
            Self::UnknownStatement => "unknown_statement",
            Self::Learned => "learned",
            Self::OwnWrite => "own_write",
            Self::LostWrite => "lost_write",
            Self::UnclearWrite => "unclear_write",
            Self::TooOld => "too_old",
            Self::Strong => "strong",
            Self::NoUsableReplica => "no_usable_replica",
            Self::ReplicaFailed => "replica_failed",
            Self::ReplicaBusy => "replica_busy",
            Self::PrimaryWeight => "primary_weight",
            Self::Forced => "forced",
        }
    }
}

impl fmt::Display for RouteReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
