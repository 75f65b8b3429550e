//! The mistakes that a configuration can contain.
//!
//! No text here ever carries a password: values of connection strings are not quoted back, and
//! names from them only where they cannot be a piece of a badly escaped password.

use std::fmt;

use crate::config::setting;

/// One mistake in a [`Config`](crate::Config).
///
/// Its text names the node and the setting and says what to do. A node is called by its name,
/// else by its `host:port`, else by its position (`#2`).
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// There is no node at all.
    #[error("no node is configured: add at least the primary, for example with `.primary(url)`")]
    NoNodes,
    /// Every node is declared a replica.
    #[error(
        "no node can be the primary, as every node is declared a replica: add the primary with \
         `.primary(url)`, or leave the role of a node open with `.node(url)` so that it is asked for"
    )]
    NoPrimary {
        /// How many replicas there are.
        replicas: usize,
    },
    /// More than one node is declared the primary.
    #[error(
        "{} are all declared the primary: keep one and declare the others replicas, or leave \
         their roles open so that they are asked for",
        quoted(nodes)
    )]
    SeveralPrimaries {
        /// Their names.
        nodes: Vec<String>,
    },
    /// The URL of one node lists several hosts.
    #[error(
        "node `{node}`: its URL lists {hosts} hosts: give each its own node, or pass the URL to \
         `Config::from_url`, which makes a node of every host"
    )]
    SeveralHosts {
        /// The node.
        node: String,
        /// How many hosts its URL lists.
        hosts: usize,
    },
    /// The URL of a node names no host.
    #[error(
        "node `{node}`: its URL names no host: write one, for example `postgres://db1:5432/app`"
    )]
    NoHost {
        /// The node.
        node: String,
    },
    /// Two nodes are the same server.
    #[error("nodes `{first}` and `{second}` are the same server, {address}: remove one of them")]
    DuplicateNode {
        /// The node that comes first.
        first: String,
        /// The node that repeats it.
        second: String,
        /// The address that both have.
        address: String,
    },
    /// Two nodes have the same name.
    #[error("two nodes are named `{name}`: give one of them another name")]
    DuplicateName {
        /// The name.
        name: String,
    },
    /// The name of a node is empty.
    #[error(
        "node `{node}`: its name is empty: write a name, or remove it, then `host:port` is the name"
    )]
    EmptyName {
        /// The node.
        node: String,
    },
    /// A node has a connection string where its name should be.
    #[error(
        "node `{node}`: its name looks like a connection string: put that into `url`, and write a \
         name, or remove it, then `host:port` is the name"
    )]
    NameIsUrl {
        /// The node.
        node: String,
    },
    /// The name of a tag is empty.
    #[error("node `{node}`: a tag has an empty name: name it or remove it")]
    EmptyTag {
        /// The node.
        node: String,
    },
    /// The name of a tag that can be asked for is empty.
    #[error("`tagged`: a tag has an empty name: name it or remove it")]
    TaggedWithoutName,
    /// No connection would be there for a tag.
    #[error("`tagged`: the `max_size` of `{tag}` is 0: at least 1, or remove the tag")]
    TaggedZeroMaxSize {
        /// The tag.
        tag: String,
    },
    /// No statement for a tag would have any time.
    #[error("`tagged`: the `statement_deadline` of `{tag}` is zero: more, or none")]
    TaggedZeroDeadline {
        /// The tag.
        tag: String,
    },
    /// The name of a node's zone is empty.
    #[error("node `{node}`: its zone has an empty name: name it or remove it")]
    EmptyZone {
        /// The node.
        node: String,
    },
    /// A URL lists other zones than hosts.
    #[error(
        "node `{node}`: its URL has {hosts} hosts and {zones} zones: write one zone for all, or one for each host, in \
         their order, such as `zone=a,a,b`"
    )]
    ZoneCount {
        /// The node.
        node: String,
        /// How many zones it lists.
        zones: usize,
        /// How many hosts it lists.
        hosts: usize,
    },
    /// The name of a preferred zone is empty.
    #[error("`prefer_zones`: name {position} is empty: write a zone or remove it")]
    EmptyPreferredZone {
        /// Its place, from 1.
        position: usize,
    },
    /// A zone is preferred twice.
    #[error("`prefer_zones` has `{zone}` twice: keep the first one")]
    ZoneTwice {
        /// The zone.
        zone: String,
    },
    /// A weight is below zero.
    #[error(
        "node `{node}`: `weight` is {weight}: use 0 for a node that serves reads only when no other node can"
    )]
    NegativeWeight {
        /// The node.
        node: String,
        /// The weight given.
        weight: i64,
    },
    /// A weight is so large that it must be a mistake.
    #[error(
        "node `{node}`: `weight` is {weight}, the largest is {}: weights are relative, so use small numbers such as 3 and 1",
        crate::config::MAX_WEIGHT
    )]
    WeightTooLarge {
        /// The node.
        node: String,
        /// The weight given.
        weight: i64,
    },
    /// The connection string of a node cannot be read.
    #[error("node `{node}`: its URL cannot be read: {problem}")]
    Url {
        /// The node.
        node: String,
        /// What is wrong with it.
        problem: UrlProblem,
    },
    /// A connection string has a parameter that nothing here knows.
    #[error("node `{node}`: {} (`Config::from_url` lists all)", unknown(name.as_deref()))]
    UnknownParameter {
        /// The node.
        node: String,
        /// The parameter; `None` if it follows a password, of which it may be a piece.
        name: Option<String>,
    },
    /// The URL of a single node has a parameter of the pool.
    #[error(
        "node `{node}`: `{name}` belongs to the pool, not into the URL of one node: set it on \
         `Config` or on the node, or pass the URL to `Config::from_url`"
    )]
    MisplacedParameter {
        /// The node.
        node: String,
        /// The parameter.
        name: &'static str,
    },
    /// A parameter of libpq has a value that it cannot have.
    #[error("node `{node}`: `{name}` is not {expected}")]
    InvalidParameter {
        /// The node.
        node: String,
        /// The parameter, or the environment variable that gives it.
        name: &'static str,
        /// What it should be.
        expected: &'static str,
    },
    /// A parameter of libpq asks for what is not here.
    #[error("node `{node}`: `{name}` cannot be honoured: {reason}")]
    RefusedParameter {
        /// The node.
        node: String,
        /// The parameter, or the environment variable that gives it.
        name: &'static str,
        /// Why, and what to do.
        reason: &'static str,
    },
    /// Connections are to be set up, and a pooler gives each transaction another one.
    #[error(
        "node `{node}`: `{setting}` sets up connections, and its pooler gives each transaction another one: let the \
         role have the settings (`ALTER ROLE … IN DATABASE … SET …`), or use `SET LOCAL` in transactions"
    )]
    PooledSetUp {
        /// The node.
        node: String,
        /// The setting.
        setting: &'static str,
    },
    /// The monitor of a node would go through a pooler.
    #[error("node `{node}`: `monitor` leads to a pooler: give the URL of the server itself")]
    PooledMonitor {
        /// The node.
        node: String,
    },
    /// The service that a connection string names was not found.
    #[error("node `{node}`: its `service` cannot be read: {problem}")]
    Service {
        /// The node.
        node: String,
        /// Why.
        problem: String,
    },
    /// A setting asks for TLS.
    #[error(
        "node `{node}`: `{setting}` asks for TLS, which this crate is built without: enable its Cargo feature `rustls`, \
         or remove the setting"
    )]
    TlsUnavailable {
        /// The node.
        node: String,
        /// The parameter that asks for TLS.
        setting: &'static str,
    },
    /// A setting given as text, in a URL or a variable, cannot be read.
    #[error("`{setting}` is not {expected}")]
    InvalidSetting {
        /// The parameter of the URL or the environment variable.
        setting: String,
        /// What it should be.
        expected: &'static str,
    },
    /// There are not as many weights as hosts.
    #[error(
        "`{setting}` needs one weight for each of the {nodes} nodes, in their order: it lists {weights}"
    )]
    WeightCount {
        /// The parameter of the URL or the environment variable.
        setting: String,
        /// How many weights it lists.
        weights: usize,
        /// How many nodes there are.
        nodes: usize,
    },
    /// A pool that can hold no connection.
    #[error("{}: `max_size` is 0: allow at least one connection", scope(node.as_deref()))]
    ZeroMaxSize {
        /// The node; `None` for the settings of every node.
        node: Option<String>,
    },
    /// No connection may be opened.
    #[error("pool: `max_connecting` is 0: allow at least one attempt")]
    ZeroMaxConnecting,
    /// A pool that should keep more connections idle than it can hold.
    #[error("{}: `min_idle` is {min_idle}, more than `max_size`, which is {max_size}: lower the one or raise the other", scope(node.as_deref()))]
    MinIdleAboveMaxSize {
        /// The node; `None` for the settings of every node.
        node: Option<String>,
        /// The idle connections to keep.
        min_idle: u32,
        /// The largest number of connections.
        max_size: u32,
    },
    /// A time limit of nothing.
    #[error("{}: `{setting}` is zero: set it above zero{}", scope(node.as_deref()), or_never(setting))]
    ZeroDuration {
        /// The node; `None` for the settings of every node.
        node: Option<String>,
        /// The setting.
        setting: &'static str,
    },
    /// `fallback_share` is not a share.
    #[error("`fallback_share` is {share}: give a number from 0.0 to 1.0")]
    FallbackShare {
        /// What was given.
        share: f64,
    },
    /// The share of [`Routing::Automatic`](crate::Routing::Automatic) is none.
    #[error("the share of `routing` is {share}: give a number from 0.0 to 1.0")]
    RoutingShare {
        /// What was given.
        share: f64,
    },
    /// A setting of [`HealthConfig`](crate::config::HealthConfig) is not valid.
    #[error("`health.{setting}` is not valid: use {expected}")]
    Health {
        /// The setting.
        setting: &'static str,
        /// What it can be.
        expected: &'static str,
    },
    /// A setting of [`PromotionConfig`](crate::config::PromotionConfig) is not valid.
    #[cfg(feature = "promotion")]
    #[cfg_attr(docsrs, doc(cfg(feature = "promotion")))]
    #[error("`promotion.{setting}` is not valid: use {expected}")]
    Promotion {
        /// The setting.
        setting: &'static str,
        /// What it can be.
        expected: &'static str,
    },
    /// [`NodeConfig::replication_address`](crate::NodeConfig::replication_address) is no address.
    #[error(
        "node `{node}`: `replication_address` is not valid: use `host:port`, without user and database"
    )]
    ReplicationAddress {
        /// The node.
        node: String,
    },
    /// A function is said both to write and not to.
    #[error("function `{name}` is both in `functions.allow` and in `functions.deny`: keep one")]
    FunctionAllowedAndDenied {
        /// The function.
        name: String,
    },
    /// The name of a function is empty.
    #[error("`functions.{list}` contains an empty name: remove it")]
    EmptyFunction {
        /// `allow` or `deny`.
        list: &'static str,
    },
    /// A statement to set up connections is empty.
    #[error("`setup_sql`: statement {position} is empty: remove it")]
    EmptySetupSql {
        /// Its position, from 1.
        position: usize,
    },
    /// The environment names no database.
    #[error("neither `{url}` nor `{primary}` is set: set one of them")]
    NotInEnvironment {
        /// The variable of the one URL.
        url: String,
        /// The variable of the URL of the primary.
        primary: String,
    },
    /// The environment names two different databases.
    #[error("`{url}` and `{primary}` are both set and differ: unset one of them")]
    AmbiguousEnvironment {
        /// The variable of the one URL.
        url: String,
        /// The variable of the URL of the primary.
        primary: String,
    },
    /// An environment variable is not Unicode.
    #[error("`{name}` is not Unicode")]
    NotUnicode {
        /// The variable.
        name: String,
    },
}

/// Why a connection string cannot be read. Never carries any of the string itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UrlProblem {
    /// There is no text.
    #[error("it is empty")]
    Empty,
    /// It is neither a URL of PostgreSQL nor a list of `key=value`.
    #[error("it neither starts with `postgres://` or `postgresql://` nor is a list of `key=value`")]
    Scheme,
    /// It is not clear which `@` ends the password.
    #[error(
        "it has more than one `@`, or a `/` or `?` before the `@`: in a user, a password or a parameter \
         write `%40` for `@`, `%2F` for `/` and `%3F` for `?`"
    )]
    Escaping,
    /// Something other than the password is not UTF-8 once decoded.
    #[error("a percent-encoded part is not UTF-8")]
    Encoding,
    /// A parameter without a name or a value.
    #[error(
        "a parameter is not of the form `key=value`; in a URL, write `%26` for an `&` in a value"
    )]
    Parameter,
    /// The quotes of a `key='value'` do not match.
    #[error("a quoted value does not end where it should: write `\\'` for a `'` in it")]
    Quote,
    /// A parameter has a value that it cannot have.
    #[error("the value of `{0}` is invalid")]
    Value(&'static str),
    /// A parameter is given twice.
    #[error("`{0}` is given twice")]
    Repeated(&'static str),
    /// Hosts, ports and addresses do not pair up.
    #[error("it lists {hosts} hosts but {count} times `{setting}`: list one for each host")]
    Count {
        /// `port` or `hostaddr`.
        setting: &'static str,
        /// How often it is given.
        count: usize,
        /// How many hosts there are.
        hosts: usize,
    },
    /// It names a host where hosts come from elsewhere.
    #[error("it names a host: leave that out, as in `postgres://user@/database`")]
    NamesHost,
    /// It says where its host is, where that comes from elsewhere.
    #[error("it has a `hostaddr`: leave that out, as the addresses of the host are looked for")]
    NamesAddress,
    /// It has an unknown parameter after the password.
    #[error(
        "it has an unknown parameter after the password, which is not shown because it may be a part of it: in a URL \
         write `%26` for an `&` in the password, and in `key=value` form quote the password"
    )]
    Unknown,
}

/// Every mistake found in a [`Config`](crate::Config), at least one.
#[derive(Clone, PartialEq)]
pub struct ConfigErrors(Vec<ConfigError>);

impl ConfigErrors {
    /// `Err` with the mistakes, or `value` if there are none.
    pub(crate) fn unless_empty<T>(errors: Vec<ConfigError>, value: T) -> Result<T, Self> {
        if errors.is_empty() {
            Ok(value)
        } else {
            Err(Self(errors))
        }
    }

    /// The mistakes, in the order in which they were found.
    pub fn iter(&self) -> std::slice::Iter<'_, ConfigError> {
        self.0.iter()
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [only] = self.0.as_slice() {
            return write!(f, "the configuration has a mistake: {only}");
        }
        write!(f, "the configuration has {} mistakes:", self.0.len())?;
        self.0.iter().try_for_each(|error| write!(f, "\n- {error}"))
    }
}

/// The text of [`Display`](fmt::Display), as `main` and `unwrap` show this one.
impl fmt::Debug for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for ConfigErrors {}

impl From<ConfigError> for ConfigErrors {
    fn from(error: ConfigError) -> Self {
        Self(vec![error])
    }
}

impl<'a> IntoIterator for &'a ConfigErrors {
    type Item = &'a ConfigError;
    type IntoIter = std::slice::Iter<'a, ConfigError>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl IntoIterator for ConfigErrors {
    type Item = ConfigError;
    type IntoIter = std::vec::IntoIter<ConfigError>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

fn quoted(names: &[String]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    quoted.join(", ")
}

fn scope(node: Option<&str>) -> String {
    node.map_or_else(|| "pool".to_owned(), |node| format!("node `{node}`"))
}

fn or_never(setting: &str) -> &'static str {
    match setting {
        "max_lifetime" | "idle_timeout" | "statement_deadline" => {
            ", or `never` (`None`) for no limit"
        }
        _ => "",
    }
}

fn unknown(name: Option<&str>) -> String {
    let Some(name) = name else {
        return "its URL has an unknown parameter after the password, which is not shown because it may be a part of it: in a URL \
                write `%26` for an `&` in the password, and in `key=value` form quote the password"
            .to_owned();
    };
    match nearest(name) {
        Some(known) => {
            format!("its URL has an unknown parameter `{name}`: did you mean `{known}`?")
        }
        None => format!("its URL has an unknown parameter `{name}`: remove it"),
    }
}

/// What Prisma, pgx and other libraries call our settings.
const ELSEWHERE: &[(&str, &str)] = &[
    ("connection_limit", "max_size"),
    ("pool_size", "max_size"),
    ("pool_max_size", "max_size"),
    ("pool_max_conns", "max_size"),
    ("max_connections", "max_size"),
    ("pool_min_conns", "min_idle"),
    ("min_connections", "min_idle"),
    ("pool_timeout", "connection_timeout"),
    ("pool_max_conn_lifetime", "max_lifetime"),
    ("pool_max_conn_idle_time", "idle_timeout"),
];

/// The parameter that was meant, if one is like it.
fn nearest(name: &str) -> Option<&'static str> {
    let same = |(theirs, _): &&(&str, &str)| *theirs == name;
    if let Some((_, ours)) = ELSEWHERE.iter().find(same) {
        return Some(ours);
    }
    let known = setting::all();
    let distance = |known: &&str| strsim::damerau_levenshtein(known, name);
    let nearest = known.min_by_key(distance)?;
    (distance(&nearest) <= name.len() / 3 + 1).then_some(nearest)
}
