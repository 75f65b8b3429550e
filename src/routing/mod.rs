//! Where a statement goes, and why. Pure: no clock, no I/O, randomness is an argument.

mod decide;
mod draws;
mod latency_aware;
mod nearest;
mod policy;
mod recover;
mod select;

pub(crate) use decide::{Decision, HeldBack, SessionView, TransactionView, decide};
pub(crate) use draws::Draws;
pub use latency_aware::LatencyAware;
pub use nearest::Nearest;
pub(crate) use policy::Figures;
pub use policy::{Candidate, LeastInFlight, LoadBalancingPolicy, RoundRobin, WeightedRandom};
pub(crate) use recover::{Recovery, Stale, Symptoms, recover, stale};
pub(crate) use select::select;
