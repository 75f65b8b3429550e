//! Why a pool does less than it could.

/// A reason why a pool does less than it could.
///
/// Each is sent once when it begins, as [`Event::Degraded`](crate::Event::Degraded), and once when it is over.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Degraded {
    /// The node; `None` for the whole pool.
    pub node: Option<String>,
    /// The reason.
    pub reason: Degradation,
    /// The reason in words, with what would mend it.
    pub detail: String,
}

impl Degraded {
    pub(crate) fn of(node: &str, reason: Degradation, detail: impl Into<String>) -> Self {
        Self {
            node: Some(node.to_owned()),
            ..Self::of_pool(reason, detail)
        }
    }

    pub(crate) fn of_pool(reason: Degradation, detail: impl Into<String>) -> Self {
        Self {
            node: None,
            reason,
            detail: detail.into(),
        }
    }
}

/// The kinds of reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Degradation {
    /// A node is not used: it is of another cluster, another name of the same server, connected to another database,
    /// or takes writes though it should not.
    NodeUnused,
    /// The name of a replica leads to several servers, as that of a load balancer does. Each connection is asked itself
    /// what it shows before it serves a read; where this role may not ask, only `Eventual` reads are served.
    SeveralServers,
    /// A pooler between this pool and a node gives each transaction another server connection, or may do so. Then the
    /// node serves only `Eventual` reads and what the primary serves, unless
    /// [`NodeConfig::monitor`](crate::NodeConfig::monitor) goes around it; and nothing that a session would leave behind.
    Pooler,
    /// A node serves over the connections that are open, and no more can be opened.
    CannotGrow,
    /// A node serves, but cannot be asked where it is.
    NotAsked,
    /// The role lacks a right on a node.
    RightMissing,
    /// A node does not tell on which timeline it is.
    TimelineUntold,
    /// Commits on the primary have waited for a synchronous standby for more than a second.
    CommitsWait,
    /// The primary takes no writes yet: `default_transaction_read_only` is on there.
    Fenced,
    /// The list of nodes cannot be had, or cannot be meant; the pool goes on with what it has. See
    /// [`discovery`](crate::discovery).
    Discovery,
    /// Somebody has [paused](crate::ReplicatedPool::pause_writes) new writes.
    Paused,
    /// Writes need a majority of the nodes, and fewer answer.
    NoQuorum,
    /// Automatic promotion is on, and would fail now.
    PromotionUnable,
    /// A standby was left behind by a promotion, with `PromotionConfig::standbys_follow`. See
    /// [`PromotionStatus::following`](super::PromotionStatus::following).
    StandbyLeft,
    /// No node is in one of the zones that this pool prefers, so all nodes are alike.
    NoPreferredZone,
    /// Replicas have refused statements that look like reads. These go to the primary.
    Learned,
}

impl Degradation {
    /// The name, as it stands in logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NodeUnused => "node_unused",
            Self::Pooler => "pooler",
            Self::CannotGrow => "cannot_grow",
            Self::NotAsked => "not_asked",
            Self::RightMissing => "right_missing",
            Self::TimelineUntold => "timeline_untold",
            Self::CommitsWait => "commits_wait",
            Self::Fenced => "fenced",
            Self::Discovery => "discovery",
            Self::Paused => "paused",
            Self::NoQuorum => "no_quorum",
            Self::SeveralServers => "several_servers",
            Self::PromotionUnable => "promotion_unable",
            Self::StandbyLeft => "standby_left",
            Self::NoPreferredZone => "no_preferred_zone",
            Self::Learned => "learned",
        }
    }
}
