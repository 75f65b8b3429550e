//! What the configuration says about where statements go.

use std::fmt;
use std::time::Duration;

use super::declare::as_text;
use super::duration;
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
    /// [`replica`](crate::ReplicatedConnection::replica), [`tagged`](crate::ReplicatedConnection::tagged). In text: `opt_in`.
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

as_text!(Routing);
as_text!(Policy);

/// How a replica is chosen for a read, among those that may answer it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Policy {
    /// At random, in proportion to the weights, without those where reads take clearly longer than elsewhere. In text:
    /// `latency_aware`.
    #[default]
    LatencyAware,
    /// Among those that are hardly further away than the nearest: of two the one with the fewest statements under way for
    /// its weight. How far one is, is measured: see [`Nearest`](crate::policy::Nearest). In text: `nearest` for a window of
    /// 15 ms, or `nearest:5ms`.
    Nearest {
        /// How much longer than to the nearest the round trip may be.
        window: Duration,
    },
    /// At random, in proportion to the weights. In text: `weighted_random`.
    WeightedRandom,
    /// Of two the one with the fewest statements under way for its weight. In text: `least_in_flight`.
    LeastInFlight,
    /// One after the other, each as often as its weight says. In text: `round_robin`.
    RoundRobin,
}

impl Policy {
    const EXPECTED: &'static str = "a policy: `latency_aware`, `nearest`, `nearest:5ms`, `weighted_random`, \
                                    `least_in_flight` or `round_robin`";

    /// The window of `nearest` if none is written. `MongoDB`'s drivers have the same (`localThresholdMS`): the zones of one
    /// region are nearer to each other, and other regions are further away.
    const WINDOW: Duration = Duration::from_millis(15);

    /// Its name, without what belongs to it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::LatencyAware => "latency_aware",
            Self::Nearest { .. } => "nearest",
            Self::WeightedRandom => "weighted_random",
            Self::LeastInFlight => "least_in_flight",
            Self::RoundRobin => "round_robin",
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nearest { window } if *window != Self::WINDOW => {
                write!(f, "nearest:{}", duration::format(*window))
            }
            _ => f.write_str(self.as_str()),
        }
    }
}

/// A text that names no [`Policy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no policy; expected {}", Policy::EXPECTED)]
#[non_exhaustive]
pub struct InvalidPolicy;

impl std::str::FromStr for Policy {
    type Err = InvalidPolicy;

    fn from_str(text: &str) -> Result<Self, InvalidPolicy> {
        if let Some(window) = text.strip_prefix("nearest:") {
            let window = duration::parse(window).ok_or(InvalidPolicy)?;
            return Ok(Self::Nearest { window });
        }
        let nearest = Self::Nearest {
            window: Self::WINDOW,
        };
        let all = [
            Self::LatencyAware,
            nearest,
            Self::WeightedRandom,
            Self::LeastInFlight,
            Self::RoundRobin,
        ];
        let named = all.into_iter().find(|policy| policy.as_str() == text);
        named.ok_or(InvalidPolicy)
    }
}

impl Text for Policy {
    const EXPECTED: &'static str = Self::EXPECTED;

    fn read(text: &str) -> Option<Self> {
        text.parse().ok()
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
