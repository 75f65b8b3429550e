//! One server, as it is configured.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::conn_string::{redact, shown};
use super::pool::PoolOverrides;
use super::pooler::Pooler;

/// The role that a node is declared to have.
///
/// The pool always finds the primary by asking the servers. The declaration tells what you expect, so that a mistake
/// is found at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum DeclaredRole {
    /// The one server that takes writes.
    #[doc(alias = "master")]
    #[cfg_attr(feature = "serde", serde(alias = "master"))]
    Primary,
    /// A streaming replica of the primary, which is only read.
    #[doc(alias = "slave")]
    #[doc(alias = "standby")]
    #[cfg_attr(feature = "serde", serde(alias = "slave", alias = "standby"))]
    Replica,
    /// Not declared: the server is asked.
    #[default]
    Unknown,
}

/// One server of the cluster, for [`Builder::primary`](crate::Builder::primary) and
/// [`Builder::replica`](crate::Builder::replica).
///
/// ```
/// use diesel_replicated::NodeConfig;
///
/// let node = NodeConfig::new("postgres://app@db2:5432/app")
///     .name("eu-1")
///     .weight(3)
///     .zone("eu-central")
///     .max_size(20);
/// assert_eq!(node.weight, Some(3));
/// ```
///
/// `Debug` shows `***` in place of the password, and nothing of a URL that cannot be read.
/// Serialising it writes the URL with its password.
#[derive(Clone, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields, remote = "Self"))]
#[non_exhaustive]
pub struct NodeConfig {
    /// Where it is and how to log in: `postgres://user:password@host:port/database?parameter=value`
    /// or `host=… user=…`, with exactly one host. The parameters are those of libpq
    /// ([the guide](crate::guide::connecting) has them all), `pooler` and `pgbouncer`. **Secret**: usually contains the password.
    pub url: String,
    /// Its declared role. Default: unknown.
    #[cfg_attr(feature = "serde", serde(default))]
    pub role: DeclaredRole,
    /// Its name in errors, logs and metrics; unique. Default: `host:port`.
    #[cfg_attr(
        feature = "serde",
        serde(default, skip_serializing_if = "Option::is_none")
    )]
    pub name: Option<String>,
    /// Its share of the reads, in relation to the weights of the others, 0 to 10 000. With 0 it is read only if
    /// nothing else can be. Default: 1 for a replica, 0 for the primary.
    ///
    /// The weight holds while the node has its declared role (a node without one: while it is a replica). In the
    /// other role it has that role's default. So a promoted replica does not keep its share of the reads.
    #[cfg_attr(
        feature = "serde",
        serde(default, skip_serializing_if = "Option::is_none")
    )]
    pub weight: Option<i64>,
    /// Nothing is read there while it is a replica, not even if nothing else can be read, but by who asks for one of its
    /// [tags](Self::tags) that [`Config::tagged`](crate::Config::tagged) names. It is watched, counts in a majority, and may become the primary. Default: false.
    #[cfg_attr(feature = "serde", serde(default))]
    pub no_reads: bool,
    /// Where it is: the name of a region, a data centre or a rack. See
    /// [`Config::prefer_zones`](crate::Config::prefer_zones). Default: what `zone=…` in the URL says, else its tag `zone`.
    #[cfg_attr(
        feature = "serde",
        serde(default, skip_serializing_if = "Option::is_none")
    )]
    pub zone: Option<String>,
    /// Free labels, which reads can ask for ([`tagged`](crate::ReplicatedConnection::tagged)) and a policy of your own can
    /// look at. Who has the value `false` does not have the tag. Default: none.
    #[cfg_attr(
        feature = "serde",
        serde(default, skip_serializing_if = "BTreeMap::is_empty")
    )]
    pub tags: BTreeMap<String, String>,
    /// Of several replicas with as much log, the one with the greatest priority is promoted. With 0 a node is never
    /// promoted. Default: 1. See `PromotionConfig`, with the feature `promotion`.
    #[cfg_attr(
        feature = "serde",
        serde(default, skip_serializing_if = "Option::is_none")
    )]
    pub promotion_priority: Option<u32>,
    /// Which kind of pooler `url` leads to, if to one. Default: what `pooler=…` in the URL says, else none, unless one
    /// is seen. A PgBouncer of version 1.26 or later tells its mode itself.
    #[cfg_attr(
        feature = "serde",
        serde(default, skip_serializing_if = "Option::is_none")
    )]
    pub pooler: Option<Pooler>,
    /// Another URL to the same server, which goes around a pooler: for the connections that watch the server, and for
    /// promotions. **Secret**, as [`url`](Self::url) is. Default: none; they go the same way as statements.
    #[cfg_attr(
        feature = "serde",
        serde(default, skip_serializing_if = "Option::is_none")
    )]
    pub monitor: Option<String>,
    /// Where standbys reach it while it is the primary, as `host:port`, if not where this pool does (around a pooler:
    /// [`monitor`](Self::monitor)). For `PromotionConfig::standbys_follow`, with the feature `promotion`, and for the
    /// commands that `status()` tells. Default: none.
    #[cfg_attr(
        feature = "serde",
        serde(default, skip_serializing_if = "Option::is_none")
    )]
    pub replication_address: Option<String>,
    /// What its pool does differently from [`Config::pool`](crate::Config::pool). Default: nothing.
    #[cfg_attr(feature = "serde", serde(default))]
    pub pool: PoolOverrides,
}

impl NodeConfig {
    /// The node at `url`, with an undeclared role, the default weight and no overrides.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            ..Self::default()
        }
    }

    /// Sets [`role`](Self::role). [`Builder::primary`](crate::Builder::primary) and
    /// [`Builder::replica`](crate::Builder::replica) do so on their own.
    #[must_use]
    pub fn role(mut self, role: DeclaredRole) -> Self {
        self.role = role;
        self
    }

    /// Sets [`name`](Self::name).
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets [`weight`](Self::weight).
    #[must_use]
    pub fn weight(mut self, weight: i64) -> Self {
        self.weight = Some(weight);
        self
    }

    /// Sets [`no_reads`](Self::no_reads).
    #[must_use]
    pub fn no_reads(mut self, none: bool) -> Self {
        self.no_reads = none;
        self
    }

    /// Sets [`zone`](Self::zone).
    #[must_use]
    pub fn zone(mut self, zone: impl Into<String>) -> Self {
        self.zone = Some(zone.into());
        self
    }

    /// Adds a [tag](Self::tags); a second one with the same name replaces the first.
    #[must_use]
    pub fn tag(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.tags.insert(name.into(), value.into());
        self
    }

    /// Sets [`promotion_priority`](Self::promotion_priority).
    #[must_use]
    pub fn promotion_priority(mut self, priority: u32) -> Self {
        self.promotion_priority = Some(priority);
        self
    }

    /// Sets [`pooler`](Self::pooler).
    #[must_use]
    pub fn pooler(mut self, pooler: Pooler) -> Self {
        self.pooler = Some(pooler);
        self
    }

    /// Sets [`monitor`](Self::monitor).
    #[must_use]
    pub fn monitor(mut self, url: impl Into<String>) -> Self {
        self.monitor = Some(url.into());
        self
    }

    /// Sets [`replication_address`](Self::replication_address).
    #[must_use]
    pub fn replication_address(mut self, address: impl Into<String>) -> Self {
        self.replication_address = Some(address.into());
        self
    }

    /// Sets [`PoolOverrides::max_size`].
    #[must_use]
    pub fn max_size(mut self, connections: u32) -> Self {
        self.pool.max_size = Some(connections);
        self
    }

    /// Sets [`PoolOverrides::min_idle`].
    #[must_use]
    pub fn min_idle(mut self, connections: u32) -> Self {
        self.pool.min_idle = Some(connections);
        self
    }

    /// Sets [`PoolOverrides::connection_timeout`].
    #[must_use]
    pub fn connection_timeout(mut self, timeout: Duration) -> Self {
        self.pool.connection_timeout = Some(timeout);
        self
    }

    /// Sets [`PoolOverrides::connect_timeout`].
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.pool.connect_timeout = Some(timeout);
        self
    }

    /// Sets [`PoolOverrides::max_lifetime`]; `None` for no limit.
    #[must_use]
    pub fn max_lifetime(mut self, lifetime: impl Into<Option<Duration>>) -> Self {
        self.pool.max_lifetime = Some(lifetime.into());
        self
    }

    /// Sets [`PoolOverrides::idle_timeout`]; `None` for no limit.
    #[must_use]
    pub fn idle_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.pool.idle_timeout = Some(timeout.into());
        self
    }
}

impl From<&str> for NodeConfig {
    fn from(url: &str) -> Self {
        Self::new(url)
    }
}

impl From<String> for NodeConfig {
    fn from(url: String) -> Self {
        Self::new(url)
    }
}

impl fmt::Debug for NodeConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeConfig")
            .field("url", &format_args!("{}", redact(&self.url)))
            .field("role", &self.role)
            .field("name", &self.name.as_deref().map(shown))
            .field("weight", &self.weight)
            .field("no_reads", &self.no_reads)
            .field("zone", &self.zone.as_deref().map(shown))
            .field(
                "tags",
                &self
                    .tags
                    .iter()
                    .map(|(tag, value)| (shown(tag), shown(value)))
                    .collect::<BTreeMap<_, _>>(),
            )
            .field("promotion_priority", &self.promotion_priority)
            .field("pooler", &self.pooler)
            .field("monitor", &self.monitor.as_deref().map(redact))
            .field(
                "replication_address",
                &self.replication_address.as_deref().map(shown),
            )
            .field("pool", &self.pool)
            .finish()
    }
}
