//! Why a replica is not promoted.

use std::fmt;
use std::time::Duration;

/// A reason not to promote a replica. While one holds, nothing is done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(tag = "reason", rename_all = "snake_case"))]
#[non_exhaustive]
pub enum PromotionRefusal {
    /// A node takes writes.
    #[non_exhaustive]
    PrimaryAlive {
        /// The node.
        node: String,
    },
    /// This process does not reach the primary, but a replica hears of it.
    #[non_exhaustive]
    PrimaryHeard {
        /// The replica.
        by: String,
        /// How long ago it heard of the primary; `None` if it does not say.
        ago: Option<Duration>,
    },
    /// Fewer than a majority of the configured nodes agree. The others cannot be reached, or another process is
    /// promoting.
    #[non_exhaustive]
    NoMajority {
        /// How many agree.
        agree: usize,
        /// How many have to.
        needed: usize,
        /// Why the others do not agree.
        others: Vec<String>,
    },
    /// A node is on a newer timeline: a promotion has happened already.
    #[non_exhaustive]
    Overtaken {
        /// The node.
        node: String,
        /// Its timeline.
        timeline: u32,
    },
    /// No replica that may be promoted was found on the newest timeline.
    #[non_exhaustive]
    NoCandidate {
        /// The newest timeline.
        timeline: u32,
    },
    /// The order came late, or the node has heard of the primary since. So nothing was done.
    #[non_exhaustive]
    Outdated {
        /// The node that was to be promoted.
        node: String,
    },
    /// The node cannot be promoted.
    #[non_exhaustive]
    NotPromotable {
        /// The node.
        node: String,
        /// Why.
        why: &'static str,
    },
    /// Another replica has more of the log, and could not follow this one.
    #[non_exhaustive]
    Behind {
        /// The node that would be promoted.
        node: String,
        /// The one that has more.
        other: String,
        /// So many bytes more.
        bytes: u64,
        /// So many would be tolerated (`max_loss_bytes`).
        allowed: u64,
    },
    /// More would be lost of what the primary is known to have written than is tolerated.
    #[non_exhaustive]
    WouldLose {
        /// The node that would be promoted.
        node: String,
        /// So many bytes are missing there.
        bytes: u64,
        /// So many would be tolerated (`max_loss_bytes`).
        allowed: u64,
    },
    /// Synchronous standbys confirm commits, and as many replicas cannot be asked. An acknowledged commit may be on
    /// these alone.
    #[non_exhaustive]
    SynchronousMissing {
        /// The replicas that cannot be asked.
        nodes: Vec<String>,
        /// How many confirm a commit; `None` if the primary was gone before it could be asked.
        confirming: Option<usize>,
    },
}

impl fmt::Display for PromotionRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PrimaryAlive { node } => write!(f, "`{node}` takes writes"),
            Self::PrimaryHeard { by, ago: Some(ago) } => {
                write!(f, "`{by}` heard of the primary {ago:?} ago")
            }
            Self::PrimaryHeard { by, ago: None } => write!(f, "`{by}` hears of the primary"),
            Self::NoMajority {
                agree,
                needed,
                others,
            } => write!(
                f,
                "{agree} nodes agree, and {needed} have to: {}",
                others.join("; ")
            ),
            Self::Overtaken { node, timeline } => {
                write!(f, "`{node}` is on timeline {timeline} already")
            }
            Self::NoCandidate { timeline } => {
                write!(f, "no replica on timeline {timeline} may be promoted")
            }
            Self::Outdated { node } => write!(
                f,
                "the order came to `{node}` too late, or it has heard of the primary since it was asked"
            ),
            Self::NotPromotable { node, why } => write!(f, "`{node}` {why}"),
            Self::Behind {
                node,
                other,
                bytes,
                allowed,
            } => write!(
                f,
                "`{other}` has {bytes} bytes of log more than `{node}`, and {allowed} are tolerated \
                 (`max_loss_bytes`)"
            ),
            Self::WouldLose {
                node,
                bytes,
                allowed,
            } => write!(
                f,
                "`{node}` lacks {bytes} bytes of what the primary has written, and {allowed} are \
                 tolerated (`max_loss_bytes`)"
            ),
            Self::SynchronousMissing { nodes, confirming } => {
                match confirming {
                    Some(number) => write!(f, "{number} standbys confirm a commit")?,
                    None => f.write_str("how many standbys confirm a commit is not known")?,
                }
                write!(
                    f,
                    ", and {} cannot be asked: an acknowledged commit may be there alone",
                    nodes.join(", ")
                )
            }
        }
    }
}
