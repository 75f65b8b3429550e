//! The words for where a statement went: the kind of node, the reason, and both with the node's name.

mod reason;

use std::fmt;
use std::time::Duration;

pub use reason::RouteReason;

/// The two kinds of node that a statement can be sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum NodeKind {
    /// The node that takes writes.
    #[doc(alias = "master")]
    Primary,
    /// A node that follows the primary and serves reads.
    #[doc(alias = "slave")]
    Replica,
}

impl NodeKind {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Replica => "replica",
        }
    }
}

impl fmt::Display for NodeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which node served a statement, and why that one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Route {
    /// The node's name.
    pub node: String,
    /// The node's group, over several groups of one primary each.
    pub group: Option<String>,
    /// Whether it is the primary or a replica.
    pub kind: NodeKind,
    /// The node's zone.
    pub zone: Option<String>,
    /// Whether a nearer zone is preferred ([`Config::prefer_zones`](crate::Config::prefer_zones)). A read goes far if no near
    /// node could serve it; a write goes where the primary is.
    pub far: bool,
    /// Why it went there.
    pub reason: RouteReason,
    /// How long it waited for a replica to catch up with what it had to see.
    pub waited: Duration,
    /// What [`Routing`](crate::Routing) has kept from a replica, as the reason
    /// [`HeldBack`](RouteReason::HeldBack) says.
    pub held_back: Option<HeldBack>,
}

/// Where a statement would have gone that [`Routing`](crate::Routing) has kept on the primary.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct HeldBack {
    /// A replica that had what the statement must see, when it began. `None` if none had. Then it would have waited for one,
    /// up to [`wait`](crate::config::ConsistencyConfig::wait), before the primary served it.
    pub replica: Option<String>,
    /// Why it would have gone there.
    pub reason: RouteReason,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} `{}`: {}", self.kind, self.node, self.reason)
    }
}
