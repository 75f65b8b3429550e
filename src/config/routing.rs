//! What the configuration says about where statements go.

use super::declare::named;

/// How a replica is chosen for a read, among those that may answer it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Policy {
    /// At random, in proportion to the weights. In text: `weighted_random`.
    #[default]
    WeightedRandom,
    /// The one with the fewest connections in use for its weight. In text: `least_in_flight`.
    LeastInFlight,
    /// One after the other, each as often as its weight says. In text: `round_robin`.
    RoundRobin,
}

named! {
    Policy: "a policy: `weighted_random`, `least_in_flight` or `round_robin`" {
        WeightedRandom = "weighted_random",
        LeastInFlight = "least_in_flight",
        RoundRobin = "round_robin",
    }
}

/// What the application knows of SQL functions.
///
/// A query that calls a function is read on a replica only if the function is known not to write.
/// Names are compared without regard to case and may be qualified: `app.balance`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
#[non_exhaustive]
pub struct FunctionConfig {
    /// Functions that only read, so that queries which call them may run on a replica. Default:
    /// none beyond those that are built in.
    pub allow: Vec<String>,
    /// Functions that write or must see the newest data, so that queries which call them run on
    /// the primary. Default: none beyond those that are built in.
    pub deny: Vec<String>,
}
