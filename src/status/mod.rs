//! What a pool tells of itself and its nodes: its state now, and events as they happen.

mod degraded;
mod event;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

pub use degraded::{Degradation, Degraded};
pub use event::{Event, Events};
pub(crate) use event::{EventBus, EventSender};

use crate::config::Routing;
use crate::position::Position;
pub use crate::route::{NodeKind, RouteReason};

/// A pool and its nodes at one moment.
///
/// ```no_run
/// # fn example(pool: &diesel_replicated::ReplicatedPool) {
/// let status = pool.status();
/// for node in &status.nodes {
///     println!("{}: {:?}, {} bytes behind", node.name, node.health, node.lag_bytes.unwrap_or(0));
/// }
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct PoolStatus {
    /// The nodes, in the order of the configuration. [`NodeStatus::upstream`] makes them a tree.
    pub nodes: Vec<NodeStatus>,
    /// The name of the primary, if one is known.
    #[doc(alias = "master")]
    pub primary: Option<String>,
    /// Whether the primary is outside of the zone that this pool prefers, so that each write and each transaction takes a
    /// longer way.
    pub primary_is_far: bool,
    /// The cluster's system identifier, once a node has told it.
    pub cluster: Option<u64>,
    /// The newest timeline that a node was seen on; 0 while none is known. Each failover begins a new one.
    pub timeline: u32,
    /// Whether a write can be sent somewhere now.
    pub takes_writes: bool,
    /// Whether a read can be sent somewhere now. A replica that serves only
    /// [`Eventual`](crate::Consistency::Eventual) reads does not count.
    pub takes_reads: bool,
    /// Connections that the application holds.
    pub connections_out: usize,
    /// How many standbys have to confirm a commit, by the primary's `synchronous_standby_names`.
    pub synchronous_standbys: usize,
    /// Whether these are as many as there are replicas. Then each replica shows what was committed with
    /// [`Durability::RemoteApply`](crate::Durability::RemoteApply).
    pub remote_apply_covers_replicas: bool,
    /// Which statements may move, and what keeps reads on the primary.
    pub routing: RoutingStatus,
    /// Statements that look like reads and that replicas have refused. The primary has accepted them, and gets them
    /// for an hour each. The newest 256.
    pub learned: Vec<LearnedStatement>,
    /// Whether this process promotes a replica if the primary is gone, and whether it could.
    pub promotion: PromotionStatus,
    /// What keeps the pool from doing all that it could, and what mends it. For a node that is not well see its
    /// [`health`](NodeStatus::health) and [`cause`](NodeStatus::cause).
    pub degraded: Vec<Degraded>,
    /// Whether the pool was closed.
    pub closed: bool,
    /// Grows with each change of the topology.
    pub epoch: u64,
}

/// Which statements may move, and what was counted since the pool was built, of statements that succeeded.
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct RoutingStatus {
    /// What [`set_routing`](crate::ReplicatedPool::set_routing) or the configuration says.
    pub mode: Routing,
    /// Statements that replicas have run.
    pub on_replicas: u64,
    /// Statements that the mode has kept on the primary, though a replica was ready to serve them.
    pub could_move: u64,
    /// Other statements that the mode has kept there: no replica had what they must see at that moment. With
    /// [`Automatic`](Routing::Automatic) many of these find one within a short wait.
    pub could_not_yet: u64,
    /// Reads that nodes outside of the nearest zone have served, by zone, because no node of a nearer one could, or was known
    /// to show what they had to see; not those within a transaction on the primary. `None` stands for nodes of which no zone
    /// is known. Empty without [`Config::prefer_zones`](crate::Config::prefer_zones).
    pub far: Vec<FarReads>,
    /// What else has kept reads on the primary, the ten greatest first. Of a read in a transaction that no replica would
    /// run anyway, that is the reason.
    pub kept_on_primary: Vec<KeptOnPrimary>,
}

/// Reads that a zone has served though another one is preferred.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct FarReads {
    /// The zone.
    pub zone: Option<String>,
    /// How many statements.
    pub statements: u64,
}

impl FarReads {
    pub(crate) fn new(zone: Option<&str>, statements: u64) -> Self {
        let zone = zone.map(str::to_owned);
        Self { zone, statements }
    }
}

/// What has kept reads on the primary.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct KeptOnPrimary {
    /// Why.
    pub reason: RouteReason,
    /// The function, the view, the operator or the setting that is the reason, where it is one; of what a session has left,
    /// the command that has left it, such as `listen`.
    pub name: Option<String>,
    /// How many statements.
    pub statements: u64,
}

impl From<(RouteReason, Option<String>, u64)> for KeptOnPrimary {
    fn from((reason, name, statements): (RouteReason, Option<String>, u64)) -> Self {
        Self {
            reason,
            name,
            statements,
        }
    }
}

/// Whether this process promotes a replica if the primary is gone, and whether it could.
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct PromotionStatus {
    /// It promotes without being asked: `PromotionConfig::automatic`, with the feature `promotion`.
    pub automatic: bool,
    /// With automatic promotion: what stands in the way of one, and what would mend it. For example a missing right,
    /// a database that cannot be connected to, or too few nodes. The pool looks when it starts, and every ten seconds
    /// while there is something.
    pub hindrances: Vec<String>,
    /// The last automatic promotion that was refused or failed.
    pub last_refusal: Option<LastRefusal>,
    /// With `PromotionConfig::standbys_follow`: the standbys that did not follow the new primary by themselves, and what
    /// was done about each. Empty until a primary is replaced.
    pub following: Vec<Following>,
}

/// A standby that is to follow the new primary.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Following {
    /// The standby.
    pub node: String,
    /// The new primary.
    pub primary: String,
    /// The new primary's timeline.
    pub timeline: u32,
    /// How far it has come.
    pub state: FollowingState,
    /// What is waited for, or why it was left, with what mends it.
    pub cause: Option<String>,
    /// Since when.
    #[cfg_attr(feature = "serde", serde(serialize_with = "unix"))]
    pub at: SystemTime,
}

/// How far a standby has come on its way to the new primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
#[non_exhaustive]
pub enum FollowingState {
    /// Nothing was done yet. It is looked at again.
    Waiting,
    /// It was told to follow the new primary, by this process or another.
    Told,
    /// It receives the new primary's log.
    Follows,
    /// It was left as it is, for the cause. It is looked at again, as an operator may have mended that.
    Left,
}

/// A promotion that was refused or failed.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct LastRefusal {
    /// When.
    #[cfg_attr(feature = "serde", serde(serialize_with = "unix"))]
    pub at: SystemTime,
    /// Everything that spoke against it.
    pub reason: String,
}

impl From<(SystemTime, String)> for LastRefusal {
    fn from((at, reason): (SystemTime, String)) -> Self {
        Self { at, reason }
    }
}

/// A node and its pool at one moment.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// Whether it is the primary or a replica; `None` if that is not known, or it may not be used.
    pub kind: Option<NodeKind>,
    /// Its role among the others, in words.
    pub standing: String,
    /// Its health.
    pub health: NodeHealth,
    /// Whether a read can be sent to it now. The primary serves what replicas cannot. A replica that serves only
    /// [`Eventual`](crate::Consistency::Eventual) reads does not count.
    pub serves_reads: bool,
    /// Whether a write can be sent to it now.
    pub serves_writes: bool,
    /// Why it is not up. Or, while it is up, why no more connections can be opened: a refused login, a full server.
    pub cause: Option<String>,
    /// Its last transitions, the oldest first.
    pub transitions: Vec<Transition>,
    /// The timeline that it is on, once known.
    pub timeline: Option<u32>,
    /// Its position: what the primary has written, or what a replica has replayed.
    pub position: Option<Position>,
    /// The position up to which a replica has received its log.
    pub received: Option<Position>,
    /// How many bytes of log a replica has yet to replay, compared with the primary's last report. `None` if that is
    /// not known.
    pub lag_bytes: Option<u64>,
    /// How old a replica's data is at the most, by the primary's history and no server's clock. `None` if that is not
    /// known. On an idle cluster it is the time since the last report.
    #[cfg_attr(feature = "serde", serde(serialize_with = "seconds"))]
    pub lag: Option<Duration>,
    /// Whom a replica receives from: a node of the pool by its name, else `host:port`. `None` if it receives nothing,
    /// or this role may not see it (it takes `pg_monitor`).
    pub upstream: Option<String>,
    /// Whether a replica receives log from anyone. If not, it has lost its upstream, and must be made to follow the
    /// primary. `None` for the primary, and while it is not known.
    pub receiving: Option<bool>,
    /// Somebody has paused its replay (`pg_wal_replay_pause`).
    pub replay_paused: bool,
    /// It has log that the primary lost in a failover. It can follow nobody, and serves no reads.
    pub diverged: bool,
    /// The rights that this role lacks on the server, with what that costs and the statement that mends it.
    pub limited: Vec<Limit>,
    /// Why the server cannot be asked. Then its position is an old one.
    pub monitor_error: Option<String>,
    /// The server's version, such as `15.18`.
    pub version: Option<String>,
    /// How long the server takes to answer a small question, on average over the last ones.
    #[cfg_attr(feature = "serde", serde(serialize_with = "seconds"))]
    pub round_trip: Option<Duration>,
    /// The servers that its name was found to lead to, by the address and port that they see. More than one are those
    /// behind a balancer, as far as connections have met them.
    pub servers: Vec<String>,
    /// Its weight in the choice of a node for a read.
    pub weight: u32,
    /// Its zone.
    pub zone: Option<String>,
    /// How many of the zones that the pool prefers come before its own; 0 without any.
    pub distance: usize,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// Its connections for reads that ask for one of its tags, by the tag; see [`Config::tagged`](crate::Config::tagged).
    pub tagged: BTreeMap<String, TaggedConnections>,
    /// Open connections of its pool.
    pub connections: u32,
    /// Of these, those that nobody uses.
    pub idle_connections: u32,
    /// The most connections that the pool may open.
    pub max_size: u32,
    /// Statements that it is running for this pool.
    pub in_flight: usize,
}

/// A node's connections for reads that ask for a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct TaggedConnections {
    /// Open ones.
    pub connections: u32,
    /// Of these, those that nobody uses.
    pub idle_connections: u32,
    /// The most that may be open.
    pub max_size: u32,
}

impl TaggedConnections {
    pub(crate) fn new(connections: u32, idle_connections: u32, max_size: u32) -> Self {
        Self {
            connections,
            idle_connections,
            max_size,
        }
    }
}

/// A right that the pool's role lacks on a server.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Limit {
    /// What is missing, such as `EXECUTE ON FUNCTION pg_catalog.pg_control_system()`.
    pub right: String,
    /// What that costs.
    pub costs: String,
    /// The statement that mends it, for a superuser to run on the primary.
    pub grant: String,
}

/// A statement that a replica has refused. It goes to the primary.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct LearnedStatement {
    /// Its text, which holds no bind values.
    pub sql: String,
    /// When it was refused.
    #[cfg_attr(feature = "serde", serde(serialize_with = "unix"))]
    pub at: SystemTime,
}

/// The health of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
#[non_exhaustive]
pub enum NodeHealth {
    /// The pool has not reached it yet.
    Unknown,
    /// It was reached, and nothing has failed since.
    Up,
    /// Something failed there, or it does not answer. It is being checked, and still serves.
    Suspect,
    /// It is further behind than `max_lag` or `max_lag_bytes`.
    Lagging,
    /// It answers far more slowly than the others.
    Slow,
    /// The primary was replaced, and this replica gets nothing of what was written since. It serves only
    /// [`Eventual`](crate::Consistency::Eventual) reads until it follows the new primary.
    Orphaned,
    /// The primary was replaced, and nobody knows whether this replica has the new primary's log or what the old one
    /// lost. It serves only [`Eventual`](crate::Consistency::Eventual) reads.
    Doubtful,
    /// It has log that the primary lost in a failover, and can follow nobody. It serves nothing until it is rebuilt.
    Diverged,
    /// It is drained: it gets no more statements.
    Draining,
    /// It failed. The pool checks it again after a growing delay.
    Down,
}

/// The health of a node changed.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Transition {
    /// When.
    #[cfg_attr(feature = "serde", serde(serialize_with = "unix"))]
    pub at: SystemTime,
    /// What it was.
    pub from: NodeHealth,
    /// What it became.
    pub to: NodeHealth,
    /// Why.
    pub cause: Option<String>,
}

/// The result of a promotion.
#[cfg(feature = "promotion")]
#[cfg_attr(docsrs, doc(cfg(feature = "promotion")))]
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Promoted {
    /// The new primary.
    pub node: String,
    /// The timeline that began with it.
    pub timeline: u32,
}

impl Limit {
    pub(crate) fn new(right: String, costs: String, grant: String) -> Self {
        Self {
            right,
            costs,
            grant,
        }
    }
}

impl PoolStatus {
    /// The node of this name.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&NodeStatus> {
        self.nodes.iter().find(|node| node.name == name)
    }
}

impl std::fmt::Display for NodeHealth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Suspect => "suspect",
            Self::Lagging => "lagging",
            Self::Slow => "slow",
            Self::Orphaned => "orphaned",
            Self::Doubtful => "doubtful",
            Self::Diverged => "diverged",
            Self::Draining => "draining",
            Self::Down => "down",
        })
    }
}

#[cfg(feature = "serde")]
fn seconds<S: serde::Serializer>(
    time: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serde::Serialize::serialize(&time.map(|time| time.as_secs_f64()), serializer)
}

/// Milliseconds since 1970, as JavaScript counts.
#[cfg(feature = "serde")]
fn unix<S: serde::Serializer>(at: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    let since = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    serializer.serialize_u64(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
