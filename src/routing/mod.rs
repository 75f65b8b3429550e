//! Where a statement goes, and why. Pure: no clock, no I/O, randomness is an argument.

mod decide;
mod policy;
mod reason;
mod recover;
mod select;

pub(crate) use decide::{Decision, SessionView, TransactionView, decide};
pub use policy::{Candidate, LeastInFlight, LoadBalancingPolicy, RoundRobin, WeightedRandom};
pub use reason::RouteReason;
pub(crate) use recover::{Recovery, recover};
pub(crate) use select::select;

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

impl std::fmt::Display for NodeKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Primary => "primary",
            Self::Replica => "replica",
        })
    }
}
