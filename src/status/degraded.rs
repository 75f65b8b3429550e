//! Why a pool does less than it could.

/// What keeps a pool from doing all that it could.
///
/// Each is told once when it begins, as [`Event::Degraded`](crate::Event::Degraded), and once when it is over.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Degraded {
    /// The node of which it is; `None` if it is of the whole pool.
    pub node: Option<String>,
    /// What it is.
    pub reason: Degradation,
    /// The same in words, with what would mend it where that is known.
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

/// What a pool lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Degradation {
    /// A node is not used: it is of another cluster, another name of a server that is there, leads to another
    /// database, or takes writes though it should not.
    NodeUnused,
    /// A node serves, and cannot be asked where it is.
    NotAsked,
    /// The role may not ask something of a node.
    RightMissing,
    /// A node does not tell on which timeline it is.
    TimelineUntold,
    /// Commits on the primary have waited for a synchronous standby for more than a second.
    CommitsWait,
    /// The primary takes no writes yet: `default_transaction_read_only` is on there.
    Fenced,
    /// Writes take a majority of the nodes, and fewer answer.
    NoQuorum,
    /// Automatic promotion is on, and would fail now.
    PromotionUnable,
    /// Replicas have refused statements that look like reads, so that these go to the primary.
    Learned,
}

impl Degradation {
    /// The name, as it stands in logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NodeUnused => "node_unused",
            Self::NotAsked => "not_asked",
            Self::RightMissing => "right_missing",
            Self::TimelineUntold => "timeline_untold",
            Self::CommitsWait => "commits_wait",
            Self::Fenced => "fenced",
            Self::NoQuorum => "no_quorum",
            Self::PromotionUnable => "promotion_unable",
            Self::Learned => "learned",
        }
    }
}
