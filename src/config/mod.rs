//! Everything that a pool is built from.

mod at_run_time;
mod checked;
mod commit;
mod conn_string;
#[cfg(feature = "promotion")]
mod conninfo;
mod consistency;
mod declare;
mod durability;
mod duration;
mod env;
#[cfg(feature = "serde")]
mod file;
mod health;
mod libpq;
mod login;
mod mistakes;
mod node;
mod pool;
mod pooler;
#[cfg(feature = "promotion")]
mod promotion;
mod retry;
mod routing;
pub(crate) mod setting;
mod tag;
#[cfg(test)]
mod tests;
mod url;
mod url_at;
mod validate;
mod zone;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

pub(crate) use at_run_time::{
    check_max_lag, check_max_size, check_node, check_replica, check_url, check_weight,
    checked_routing,
};
pub(crate) use checked::{Host, NodeSettings, Settings};
pub use commit::{COMMIT_MARKER_SQL, CommitResolution};
#[cfg(feature = "patroni")]
pub(crate) use conn_string::DEFAULT_PORT;
pub(crate) use conn_string::{Address, redact};
#[cfg(feature = "promotion")]
pub(crate) use conninfo::PrimaryConninfo;
pub use consistency::{Consistency, ConsistencyConfig, InvalidConsistency, WriteScope};
pub use durability::Durability;
pub use health::HealthConfig;
pub(crate) use login::{AuthMethod, RequireAuth, SocketSettings, SslMode, TlsSettings};
#[cfg(feature = "rustls")]
pub(crate) use login::{ParamFile, Roots, TlsVersion};
pub use mistakes::{ConfigError, ConfigErrors, UrlProblem};
pub use node::{DeclaredRole, NodeConfig};
pub use pool::{PoolConfig, PoolOverrides};
pub use pooler::Pooler;
#[cfg(feature = "promotion")]
pub use promotion::PromotionConfig;
pub use retry::RetryPolicy;
pub use routing::{FunctionConfig, InvalidPolicy, InvalidRouting, Policy, Routing};
pub use tag::TagConfig;
pub(crate) use tag::has_tag;
#[cfg(any(feature = "patroni", feature = "srv"))]
pub(crate) use url_at::url_at;
pub(crate) use url_at::{check_names_no_address, url_of_address};
pub(crate) use zone::distance;

/// The largest weight of a node.
pub(crate) const MAX_WEIGHT: u32 = 10_000;

/// Everything a pool is built from: the nodes and how they are used.
///
/// [`Builder`](crate::Builder) fills it call by call. It can also be read from one URL
/// ([`from_url`](Self::from_url)), from environment variables ([`from_env`](Self::from_env)), or, with the feature
/// `serde`, from a file. Building the pool, or [`check`](Self::check), looks for mistakes and lists all of them.
/// Nothing is connected to before that.
///
/// ```
/// use diesel_replicated::{Builder, Config};
///
/// let mut config = Config::from_url("postgres://app@db1,db2,db3/app?policy=least_in_flight")?;
/// config.nodes[2].weight = Some(0);
/// config.pool.max_size = 20;
/// config.check()?;
/// let builder = Builder::from(config);
/// # Ok::<(), diesel_replicated::config::ConfigErrors>(())
/// ```
///
/// # Roles
///
/// At most one node may be declared the primary. At least one node must be declared the primary, or not be declared
/// anything. Declared and undeclared nodes may be mixed. Every server is asked for its role in any case.
///
/// # Secrets
///
/// `Debug` shows no password, and only the number of statements of [`setup_sql`](Self::setup_sql). Serialising writes
/// both in full. Errors of reading a file show no values. But a format may show the line of the file beside them, as
/// `toml` does in its `Display` (not in `message()`).
#[derive(Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(
    feature = "serde",
    serde(default, deny_unknown_fields, remote = "Self")
)]
#[non_exhaustive]
pub struct Config {
    /// The servers. Default: none; at least one is needed.
    pub nodes: Vec<NodeConfig>,
    /// The pool of each node. Default: see [`PoolConfig`].
    pub pool: PoolConfig,
    /// Which statements may move to replicas. Default: all that are known to be safe there.
    pub routing: Routing,
    /// How a replica is chosen for a read. Default: [`Policy::LatencyAware`].
    pub policy: Policy,
    /// The [zones](NodeConfig::zone) in which this pool reads, the nearest first: its own, then those that it falls back
    /// to. A read goes to a zone only if no node of an earlier one can serve it. Nodes of other zones, and those of which
    /// no zone is known, come last. Default: none, and all nodes are alike. See [the guide](crate::guide::places).
    pub prefer_zones: Vec<String>,
    /// What reads get that ask for nodes with a tag, by the tag. Default: nothing, and nobody can ask for one.
    pub tagged: BTreeMap<String, TagConfig>,
    /// The largest share of the primary's pool that reads may take because no replica can serve them, from 0.0 (none)
    /// to 1.0 (all of it). Beyond it they fail with [`Error::FallbackLimit`](crate::Error::FallbackLimit), so that
    /// losing the replicas does not take the primary down. Default: 0.5.
    pub fallback_share: f64,
    /// Whether the pool can be built while the primary is down. Until the primary is up, only reads work. Default:
    /// `false`.
    pub start_read_only: bool,
    /// Whether read-only transactions run on a replica. Default: `false`, as they may have to see what was just
    /// written.
    pub read_only_transactions_on_replicas: bool,
    /// What reads must see, and what they may wait for. Default: see [`ConsistencyConfig`].
    pub consistency: ConsistencyConfig,
    /// How far commits must get before they are acknowledged. Default: what the server says.
    pub durability: Option<Durability>,
    /// Whether the pool finds out what became of a COMMIT whose connection broke. Default: it does not.
    pub commit_resolution: CommitResolution,
    /// How nodes are watched, and from when on one counts as down, lagging or slow. Default: see
    /// [`HealthConfig`].
    pub health: HealthConfig,
    /// Whether this pool promotes replicas. Default: it does not; see [`PromotionConfig`].
    #[cfg(feature = "promotion")]
    #[cfg_attr(docsrs, doc(cfg(feature = "promotion")))]
    pub promotion: PromotionConfig,
    /// Whether writes need answers of a majority of the configured nodes. Then a process that is cut off with the old
    /// primary stops writing there within [`HealthConfig::interval`] and [`timeout`](HealthConfig::timeout). Reads of
    /// the levels [`Strong`](Consistency::Strong) and [`BoundedStaleness`](Consistency::BoundedStaleness), and the
    /// beginning of such a session's transactions, need a majority's answers that are no older than what they may
    /// see. Other reads go on. A pool is not built without a majority, unless
    /// [`start_read_only`](Self::start_read_only) is set. Default: `false`.
    pub write_quorum: bool,
    /// What the application knows of SQL functions. Default: nothing.
    pub functions: FunctionConfig,
    /// Statements run in this order on every new server connection of every node, such as
    /// `SET statement_timeout = '5s'`. Default: none.
    pub setup_sql: Vec<String>,
    /// How long a statement that needs the primary waits for one, over a failover. Only a statement that was not sent
    /// yet waits. Zero does not wait. A shorter [`connection_timeout`](PoolConfig::connection_timeout) wins. Default:
    /// 15 seconds: it may take 10 to find out that a primary is frozen, and to promote another.
    #[cfg_attr(feature = "serde", serde(with = "duration::human"))]
    pub failover_wait: Duration,
    /// How long a statement may take, all in all: choosing a node, waiting for a connection, opening one, failing over,
    /// running. A [scope](crate::ReplicatedConnection::with_deadline) may say otherwise. Default: no limit.
    #[cfg_attr(feature = "serde", serde(with = "duration::human"))]
    pub statement_deadline: Option<Duration>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            nodes: Vec::new(),
            pool: PoolConfig::default(),
            routing: Routing::default(),
            policy: Policy::default(),
            prefer_zones: Vec::new(),
            tagged: BTreeMap::new(),
            fallback_share: 0.5,
            start_read_only: false,
            read_only_transactions_on_replicas: false,
            consistency: ConsistencyConfig::default(),
            durability: None,
            commit_resolution: CommitResolution::Off,
            health: HealthConfig::default(),
            #[cfg(feature = "promotion")]
            promotion: PromotionConfig::default(),
            write_quorum: false,
            functions: FunctionConfig::default(),
            setup_sql: Vec::new(),
            failover_wait: Duration::from_secs(15),
            statement_deadline: None,
        }
    }
}

impl Config {
    /// The defaults, without any node.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads one connection string with any number of hosts. Each becomes a node with an undeclared role.
    ///
    /// It reads both forms of libpq, with [its parameters](crate::guide::connecting), `pooler`, `zone`, and these:
    ///
    /// | Parameter | Sets |
    /// |---|---|
    /// | `max_size` | [`PoolConfig::max_size`] |
    /// | `min_idle` | [`PoolConfig::min_idle`] |
    /// | `connection_timeout` | [`PoolConfig::connection_timeout`] |
    /// | `max_lifetime` | [`PoolConfig::max_lifetime`] |
    /// | `idle_timeout` | [`PoolConfig::idle_timeout`] |
    /// | `failover_wait` | [`Config::failover_wait`] |
    /// | `statement_deadline` | [`Config::statement_deadline`] |
    /// | `max_connecting` | [`PoolConfig::max_connecting`] |
    /// | `routing` | [`Config::routing`]: `observe`, `opt_in`, `automatic` or `automatic:5%` |
    /// | `policy` | [`Config::policy`]: `latency_aware`, `nearest`, `nearest:5ms`, `weighted_random`, `least_in_flight` or `round_robin` |
    /// | `prefer_zones` | [`Config::prefer_zones`]: names with commas between |
    /// | `weights` | [`NodeConfig::weight`] of each host, in order: `0,3,1` |
    /// | `fallback_share` | [`Config::fallback_share`] |
    /// | `start_read_only` | [`Config::start_read_only`]: `true` or `false` |
    /// | `read_only_transactions_on_replicas` | [`Config::read_only_transactions_on_replicas`] |
    /// | `consistency` | [`ConsistencyConfig::level`]: `eventual`, `bounded_staleness:5s`, `read_your_writes`, `causal` or `strong` |
    /// | `write_scope` | [`ConsistencyConfig::write_scope`]: `session` or `pool` |
    /// | `consistency_wait` | [`ConsistencyConfig::wait`] |
    /// | `wait_for_lsn` | [`ConsistencyConfig::wait_for_lsn`]: `true` or `false` |
    /// | `strong_reads_on_replicas` | [`ConsistencyConfig::strong_reads_on_replicas`] |
    /// | `assumed_lag` | [`ConsistencyConfig::assumed_lag`] |
    /// | `durability` | [`Config::durability`]: `off`, `local`, `remote_write`, `on` or `remote_apply` |
    /// | `commit_resolution` | [`Config::commit_resolution`]: `off`, `transaction_id` or `marker` |
    /// | `health_interval`, `health_timeout` | [`HealthConfig::interval`] and [`HealthConfig::timeout`] |
    /// | `automatic_promotion` | `PromotionConfig::automatic`, with the feature `promotion` |
    /// | `standbys_follow` | `PromotionConfig::standbys_follow`, with the feature `promotion` |
    /// | `write_quorum` | [`Config::write_quorum`] |
    /// | `max_lag`, `max_lag_bytes` | [`HealthConfig::max_lag`] and [`HealthConfig::max_lag_bytes`] |
    /// | `functions_allow`, `functions_deny` | [`Config::functions`]: names with commas between |
    ///
    /// A duration is a number of seconds (`30`, `2.5`) or has a unit (`250ms`, `30s`, `10min`,
    /// `1h`); `max_lifetime` and `idle_timeout` may also be `never`.
    ///
    /// ```
    /// use diesel_replicated::Config;
    ///
    /// let config = Config::from_url(
    ///     "postgres://app:secret@db1:5432,db2:5432,db3:5432/app?connect_timeout=3&max_size=20",
    /// )?;
    /// assert_eq!(config.nodes.len(), 3);
    /// assert_eq!(config.pool.max_size, 20);
    /// assert!(!format!("{config:?}").contains("secret"));
    /// # Ok::<(), diesel_replicated::config::ConfigErrors>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The string cannot be read, or a parameter is unknown, has an invalid value, or asks for what is not supported:
    /// [the guide](crate::guide::connecting) tells of each of libpq's parameters.
    /// [`check`](Self::check) finds more, such as a host that is listed twice.
    pub fn from_url(url: &str) -> Result<Self, ConfigErrors> {
        let mut config = Self::default();
        config.read_url(url)?;
        Ok(config)
    }

    /// Adds what a URL says.
    pub(crate) fn read_url(&mut self, url: &str) -> Result<(), ConfigErrors> {
        url::read_all(self, url)
    }

    /// Reads the environment variables below. An empty one counts as not set.
    ///
    /// | Variable | Meaning |
    /// |---|---|
    /// | `DATABASE_URL` | As for [`from_url`](Self::from_url). With one host and `DATABASE_REPLICA_URLS` set: the primary |
    /// | `DATABASE_PRIMARY_URL` | The primary; replaces `DATABASE_URL`, which may then only be the same |
    /// | `DATABASE_REPLICA_URLS` | URLs of replicas with white space between; each may list several hosts, but no parameters of the pool |
    /// | `DATABASE_REPLICA_WEIGHTS` | [`NodeConfig::weight`] of each of these replicas, in order: `3,1` |
    /// | `DATABASE_CONNECT_TIMEOUT` | [`PoolConfig::connect_timeout`] |
    /// | `DATABASE_MAX_SIZE` and so on | Each parameter of the pool in the list of [`from_url`](Self::from_url), written in capitals |
    /// | `DATABASE_SETUP_SQL` | One statement of [`Config::setup_sql`] |
    ///
    /// A variable wins over a parameter of a URL. Durations and the rest are written as for
    /// [`from_url`](Self::from_url).
    ///
    /// # Errors
    ///
    /// As [`from_url`](Self::from_url), and if neither `DATABASE_URL` nor `DATABASE_PRIMARY_URL` is
    /// set, if they differ, or if a variable is not Unicode.
    pub fn from_env() -> Result<Self, ConfigErrors> {
        env::from_env()
    }

    /// As [`from_env`](Self::from_env), with another prefix than `DATABASE`, and with `lookup` instead of the
    /// environment of the process.
    ///
    /// ```
    /// use diesel_replicated::Config;
    ///
    /// let config = Config::from_env_with("APP_DB", |name| match name {
    ///     "APP_DB_PRIMARY_URL" => Some("postgres://app@db1/app".to_owned()),
    ///     "APP_DB_REPLICA_URLS" => Some("postgres://app@db2/app postgres://app@db3/app".to_owned()),
    ///     _ => None,
    /// })?;
    /// assert_eq!(config.nodes.len(), 3);
    /// # Ok::<(), diesel_replicated::config::ConfigErrors>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`from_env`](Self::from_env).
    pub fn from_env_with(
        prefix: &str,
        lookup: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigErrors> {
        env::from_env_with(prefix, lookup)
    }

    /// Looks for mistakes, as building the pool does. Connects to nothing.
    ///
    /// # Errors
    ///
    /// Every mistake found.
    pub fn check(&self) -> Result<(), ConfigErrors> {
        self.validate().map(drop)
    }

    /// The checked form, which the rest of the crate works with.
    pub(crate) fn validate(&self) -> Result<Settings, ConfigErrors> {
        validate::validate(self, &login::process)
    }
}

/// Shows nothing of [`Config::setup_sql`].
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Config");
        shown
            .field("nodes", &self.nodes)
            .field("pool", &self.pool)
            .field("routing", &self.routing)
            .field("policy", &self.policy)
            .field("prefer_zones", &self.prefer_zones)
            .field("tagged", &self.tagged)
            .field("fallback_share", &self.fallback_share)
            .field("start_read_only", &self.start_read_only)
            .field(
                "read_only_transactions_on_replicas",
                &self.read_only_transactions_on_replicas,
            )
            .field("consistency", &self.consistency)
            .field("durability", &self.durability)
            .field("commit_resolution", &self.commit_resolution)
            .field("health", &self.health);
        #[cfg(feature = "promotion")]
        shown.field("promotion", &self.promotion);
        shown
            .field("write_quorum", &self.write_quorum)
            .field("functions", &self.functions)
            .field("setup_sql", &statement_count(&self.setup_sql))
            .field("failover_wait", &self.failover_wait)
            .field("statement_deadline", &self.statement_deadline)
            .finish()
    }
}

/// Statements may carry secrets, so only their number is shown.
fn statement_count(statements: &[String]) -> String {
    format!("{} statements", statements.len())
}
