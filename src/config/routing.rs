//! What the configuration says about where statements go.

use std::fmt;

use super::declare::named;
use super::setting::Text;

/// Which statements may move to replicas: none, those that are marked, or all that are known to be safe there.
///
/// With it a pool is put in the place of another without moving a query, shows what would move, and is turned up step
/// by step: [the roll-out](crate::guide::roll_out). It changes at run time with
/// [`set_routing`](crate::ReplicatedPool::set_routing).
///
/// ```
/// use diesel_replicated::{ReplicatedPool, Routing};
///
/// let builder = ReplicatedPool::builder().routing(Routing::Observe);
/// assert_eq!("automatic:5%".parse(), Ok(Routing::Automatic { share: 0.05 }));
/// assert_eq!(Routing::default().to_string(), "automatic");
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Routing {
    /// None: everything runs on the primary, also reads that ask for a replica. What asks for one and is no plain read
    /// goes there as in every mode, and fails there if it writes. [`Route::held_back`](crate::Route::held_back) and
    /// [`PoolStatus::routing`](crate::PoolStatus::routing) tell where each statement would have gone. While the primary is
    /// away there are no reads, as with a pool of one server. In text: `observe`.
    Observe,
    /// What is marked: by [`replica_allowed`](crate::ReplicatedConnection::replica_allowed) as what may move if it is
    /// safe, or by its name as what is to be read elsewhere:
    /// [`snapshot`](crate::ReplicatedConnection::snapshot), a transaction
    /// [`on_replicas`](crate::connection::TransactionBuilder::on_replicas),
    /// [`replica`](crate::ReplicatedConnection::replica). In text: `opt_in`.
    OptIn,
    /// What is known to be safe on a replica, and what is marked. The default. In text: `automatic`, or
    /// `automatic:5%`.
    Automatic {
        /// The share of the connections that the pool hands out whose statements may move, from 0.0 to 1.0. The
        /// default is 1.0. A connection is in or out as a whole, until it is given back.
        share: f64,
    },
}

impl Routing {
    const EXPECTED: &'static str = "`observe`, `opt_in`, `automatic` or `automatic:5%`";
}

impl Default for Routing {
    fn default() -> Self {
        Self::Automatic { share: 1.0 }
    }
}

impl fmt::Display for Routing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Observe => f.write_str("observe"),
            Self::OptIn => f.write_str("opt_in"),
            Self::Automatic { share: 1.0 } => f.write_str("automatic"),
            Self::Automatic { share } => write!(f, "automatic:{share}"),
        }
    }
}

/// A text that names no [`Routing`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no way of routing; expected {}", Routing::EXPECTED)]
#[non_exhaustive]
pub struct InvalidRouting;

impl std::str::FromStr for Routing {
    type Err = InvalidRouting;

    fn from_str(text: &str) -> Result<Self, InvalidRouting> {
        let share = match text.split_once(':') {
            Some(("automatic", share)) => share,
            Some(_) => return Err(InvalidRouting),
            None => {
                return match text {
                    "observe" => Ok(Self::Observe),
                    "opt_in" => Ok(Self::OptIn),
                    "automatic" => Ok(Self::default()),
                    _ => Err(InvalidRouting),
                };
            }
        };
        let (number, whole) = match share.strip_suffix('%') {
            Some(percent) => (percent, 100.0),
            None => (share, 1.0),
        };
        let number: f64 = number.trim().parse().map_err(|_| InvalidRouting)?;
        let share = number / whole;
        is_share(share)
            .then_some(Self::Automatic { share })
            .ok_or(InvalidRouting)
    }
}

/// Written so that not-a-number is none.
pub(super) fn is_share(share: f64) -> bool {
    (0.0..=1.0).contains(&share)
}

impl Text for Routing {
    const EXPECTED: &'static str = Self::EXPECTED;

    fn read(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for Routing {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for Routing {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// How a replica is chosen for a read, among those that may answer it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Policy {
    /// At random, in proportion to the weights, without those where reads take clearly longer than elsewhere. In text:
    /// `latency_aware`.
    #[default]
    LatencyAware,
    /// At random, in proportion to the weights. In text: `weighted_random`.
    WeightedRandom,
    /// Of two the one with the fewest statements under way for its weight. In text: `least_in_flight`.
    LeastInFlight,
    /// One after the other, each as often as its weight says. In text: `round_robin`.
    RoundRobin,
}

named! {
    Policy: "a policy: `latency_aware`, `weighted_random`, `least_in_flight` or `round_robin`" {
        LatencyAware = "latency_aware",
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
