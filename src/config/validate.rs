//! Finding every mistake in a configuration at once.

use std::path::Path;
use std::time::Duration;

use super::checked::{Host, NodeSettings, Settings};
use super::conn_string::{Address, ConnString, is_like_url};
use super::login::{self, Login, Lookup};
use super::routing::{Routing, is_share};
use super::{Config, DeclaredRole, MAX_WEIGHT, NodeConfig, PoolConfig, Pooler, tag, zone};
use crate::config::{ConfigError, ConfigErrors};

/// [`Config::validate`].
pub(super) fn validate(config: &Config, environment: Lookup<'_>) -> Result<Settings, ConfigErrors> {
    let mut errors = Vec::new();
    check_roles(config, environment, &mut errors);
    check_pool(&config.pool, &mut errors);
    check_shared(config, &mut errors);
    let nodes: Vec<NodeSettings> = config
        .nodes
        .iter()
        .enumerate()
        .filter_map(|(position, node)| {
            check_node(node, position, &config.pool, environment, &mut errors)
        })
        .collect();
    check_distinct(&nodes, &mut errors);
    check_set_up(config, &nodes, &mut errors);
    let mut shared = Config {
        nodes: Vec::new(),
        prefer_zones: zone::preferred(&config.prefer_zones, &mut errors),
        ..config.clone()
    };
    if let Some(level) = config.durability {
        shared.setup_sql.insert(0, level.sql("SET"));
    }
    ConfigErrors::unless_empty(errors, Settings { nodes, shared })
}

fn check_roles(config: &Config, environment: Lookup<'_>, errors: &mut Vec<ConfigError>) {
    let nodes = &config.nodes;
    if nodes.is_empty() {
        return errors.push(ConfigError::NoNodes);
    }
    if nodes.iter().all(|node| node.role == DeclaredRole::Replica) {
        errors.push(ConfigError::NoPrimary {
            replicas: nodes.len(),
        });
    }
    let primaries: Vec<String> = nodes
        .iter()
        .enumerate()
        .filter(|(_, node)| node.role == DeclaredRole::Primary)
        .map(|(position, node)| label(node, position, environment))
        .collect();
    if primaries.len() > 1 {
        errors.push(ConfigError::SeveralPrimaries { nodes: primaries });
    }
}

fn check_pool(pool: &PoolConfig, errors: &mut Vec<ConfigError>) {
    let node = None;
    if pool.max_size == 0 {
        errors.push(ConfigError::ZeroMaxSize { node: node.clone() });
    } else if let Some(min_idle) = pool.min_idle.filter(|min_idle| *min_idle > pool.max_size) {
        let max_size = pool.max_size;
        errors.push(ConfigError::MinIdleAboveMaxSize {
            node: node.clone(),
            min_idle,
            max_size,
        });
    }
    if pool.max_connecting == 0 {
        errors.push(ConfigError::ZeroMaxConnecting);
    }
    for (setting, duration) in [
        ("connection_timeout", Some(pool.connection_timeout)),
        ("connect_timeout", Some(pool.connect_timeout)),
        ("max_lifetime", pool.max_lifetime),
        ("idle_timeout", pool.idle_timeout),
    ] {
        check_duration(node.as_deref(), setting, duration, errors);
    }
}

/// Checks only what the node overrides, so that a mistake in what all share is told once.
fn check_overrides(
    node: &NodeConfig,
    name: &str,
    pool: &PoolConfig,
    errors: &mut Vec<ConfigError>,
) {
    let own = &node.pool;
    let sized = own.max_size.is_some() || own.min_idle.is_some();
    if own.max_size == Some(0) {
        errors.push(ConfigError::ZeroMaxSize {
            node: Some(name.to_owned()),
        });
    } else if let Some(min_idle) = pool.min_idle.filter(|idle| sized && *idle > pool.max_size) {
        errors.push(ConfigError::MinIdleAboveMaxSize {
            node: Some(name.to_owned()),
            min_idle,
            max_size: pool.max_size,
        });
    }
    for (setting, duration) in [
        ("connection_timeout", own.connection_timeout),
        ("connect_timeout", own.connect_timeout),
        ("max_lifetime", own.max_lifetime.flatten()),
        ("idle_timeout", own.idle_timeout.flatten()),
    ] {
        check_duration(Some(name), setting, duration, errors);
    }
}

fn check_duration(
    node: Option<&str>,
    setting: &'static str,
    duration: Option<Duration>,
    errors: &mut Vec<ConfigError>,
) {
    if duration.is_some_and(|duration| duration.is_zero()) {
        errors.push(ConfigError::ZeroDuration {
            node: node.map(str::to_owned),
            setting,
        });
    }
}

/// What is neither of a node nor of its pool.
fn check_shared(config: &Config, errors: &mut Vec<ConfigError>) {
    config.health.check(errors);
    #[cfg(feature = "promotion")]
    config.promotion.check(errors);
    check_duration(
        None,
        "statement_deadline",
        config.statement_deadline,
        errors,
    );
    check_routing(config.routing, errors);
    tag::check(&config.tagged, errors);
    if !is_share(config.fallback_share) {
        errors.push(ConfigError::FallbackShare {
            share: config.fallback_share,
        });
    }
    let functions = &config.functions;
    for (list, names) in [("allow", &functions.allow), ("deny", &functions.deny)] {
        if names.iter().any(|name| name.trim().is_empty()) {
            errors.push(ConfigError::EmptyFunction { list });
        }
    }
    let folded = |name: &String| name.trim().to_lowercase();
    for name in &functions.allow {
        let name = folded(name);
        if !name.is_empty() && functions.deny.iter().any(|denied| folded(denied) == name) {
            errors.push(ConfigError::FunctionAllowedAndDenied { name });
        }
    }
    for (position, statement) in config.setup_sql.iter().enumerate() {
        if statement.trim().is_empty() {
            errors.push(ConfigError::EmptySetupSql {
                position: position + 1,
            });
        }
    }
}

/// What the node is called in errors before its URL is read.
fn label(node: &NodeConfig, position: usize, environment: Lookup<'_>) -> String {
    let given = node.name.as_deref().filter(|name| !name.trim().is_empty());
    let address = || {
        let parsed = ConnString::parse(&node.url).ok()?;
        let whole = login::completed(&parsed, "", environment, &mut Vec::new());
        let addresses = whole.addresses().ok()?;
        addresses.first().map(ToString::to_string)
    };
    given
        .filter(|given| !is_like_url(given))
        .map(str::to_owned)
        .or_else(address)
        .unwrap_or_else(|| format!("#{}", position + 1))
}

fn check_node(
    node: &NodeConfig,
    position: usize,
    defaults: &PoolConfig,
    environment: Lookup<'_>,
    errors: &mut Vec<ConfigError>,
) -> Option<NodeSettings> {
    let name = label(node, position, environment);
    if node
        .name
        .as_deref()
        .is_some_and(|given| given.trim().is_empty())
    {
        errors.push(ConfigError::EmptyName { node: name.clone() });
    }
    if node.name.as_deref().is_some_and(is_like_url) {
        errors.push(ConfigError::NameIsUrl { node: name.clone() });
    }
    if node.tags.keys().any(|tag| tag.trim().is_empty()) {
        errors.push(ConfigError::EmptyTag { node: name.clone() });
    }
    let weight = check_weight(node.weight, &name, errors);
    let zone = zone::given(node, &name, errors);
    let mut pool = node.pool.resolve(defaults);
    check_overrides(node, &name, &pool, errors);
    let replication = check_replication_address(node, &name, errors);
    let (address, login) = check_url((&node.url, node.role), &name, environment, errors)?;
    // libpq's parameter is the more specific one: it is written next to the host.
    if let Some(timeout) = login.connect_timeout {
        pool.connect_timeout = timeout;
    }
    let pooler = node.pooler.or(login.pooler);
    let mut settings = NodeSettings {
        name,
        declared: node.role,
        #[cfg(feature = "promotion")]
        promotion_priority: node.promotion_priority.unwrap_or(1),
        weight,
        no_reads: node.no_reads,
        zone,
        tags: node.tags.clone(),
        login,
        host: host(address),
        pooler,
        monitor: None,
        replication: replication?,
        pool,
    };
    if let Some(url) = &node.monitor {
        let name = &settings.name;
        let (address, login) = check_url((url, node.role), name, environment, errors)?;
        if login.pooler.is_some() {
            let node = name.clone();
            errors.push(ConfigError::PooledMonitor { node });
        }
        let mut monitor = settings.clone();
        (monitor.login, monitor.host, monitor.pooler) = (login, host(address), None);
        monitor.name = format!("{name} (monitor)");
        settings.monitor = Some(Box::new(monitor));
    }
    Some(settings)
}

/// The outer `None` is a mistake.
fn check_replication_address(
    node: &NodeConfig,
    name: &str,
    errors: &mut Vec<ConfigError>,
) -> Option<Option<Address>> {
    let Some(text) = &node.replication_address else {
        return Some(None);
    };
    let bare = !text.is_empty() && !text.contains(['@', '/', '?', ',', ' ']);
    let parsed = bare.then(|| ConnString::parse(&format!("postgres://{text}")));
    let addresses = parsed.and_then(|parsed| parsed.ok()?.addresses().ok());
    match addresses.and_then(|mut addresses| addresses.pop()) {
        Some(address) => Some(Some(address)),
        None => {
            let node = name.to_owned();
            errors.push(ConfigError::ReplicationAddress { node });
            None
        }
    }
}

/// What each connection would be set up with is lost where each transaction has another one.
fn check_set_up(config: &Config, nodes: &[NodeSettings], errors: &mut Vec<ConfigError>) {
    let setting = match (config.setup_sql.is_empty(), config.durability) {
        (false, _) => "setup_sql",
        (true, Some(_)) => "durability",
        (true, None) => return,
    };
    let pooled = |node: &&NodeSettings| node.pooler == Some(Pooler::Transaction);
    for node in nodes.iter().filter(pooled) {
        errors.push(ConfigError::PooledSetUp {
            node: node.name.clone(),
            setting,
        });
    }
}

fn check_weight(weight: Option<i64>, name: &str, errors: &mut Vec<ConfigError>) -> Option<u32> {
    let weight = weight?;
    let node = name.to_owned();
    match u32::try_from(weight) {
        Ok(checked) if checked <= MAX_WEIGHT => return Some(checked),
        Err(_) if weight < 0 => errors.push(ConfigError::NegativeWeight { node, weight }),
        _ => errors.push(ConfigError::WeightTooLarge { node, weight }),
    }
    None
}

fn check_url(
    (url, role): (&str, DeclaredRole),
    name: &str,
    environment: Lookup<'_>,
    errors: &mut Vec<ConfigError>,
) -> Option<(Address, Login)> {
    let before = errors.len();
    let parsed = ConnString::parse(url);
    let node = name.to_owned();
    let parsed = parsed.and_then(|parsed| {
        let whole = login::completed(&parsed, name, environment, errors);
        Ok((whole.addresses()?, whole))
    });
    let (mut addresses, whole) = match parsed {
        Ok(parsed) => parsed,
        Err(problem) => {
            errors.push(ConfigError::Url { node, problem });
            return None;
        }
    };
    if addresses.len() > 1 {
        errors.push(ConfigError::SeveralHosts {
            node,
            hosts: addresses.len(),
        });
    } else if addresses.is_empty() {
        errors.push(ConfigError::NoHost { node });
    }
    let login = login::read(&whole, name, role, environment, errors)?;
    if errors.len() > before {
        return None;
    }
    Some((addresses.pop()?, login))
}

fn host(address: Address) -> Host {
    let Address {
        host,
        hostaddr,
        port,
    } = address;
    if host.starts_with('/') {
        Host::Unix(Path::new(&host).join(format!(".s.PGSQL.{port}")))
    } else {
        Host::Tcp {
            // It was checked to be one.
            hostaddr: hostaddr
                .filter(|address| *address != host)
                .and_then(|address| address.parse().ok()),
            host,
            port,
        }
    }
}

fn check_distinct(nodes: &[NodeSettings], errors: &mut Vec<ConfigError>) {
    for (position, node) in nodes.iter().enumerate() {
        for earlier in &nodes[..position] {
            // A pooler has a database for each of its servers.
            let database =
                |node: &NodeSettings| node.login.postgres.get_dbname().map(str::to_owned);
            let same_database = database(earlier) == database(node);
            if same_host(&earlier.host, &node.host) && same_database {
                errors.push(ConfigError::DuplicateNode {
                    first: earlier.name.clone(),
                    second: node.name.clone(),
                    address: node.host.to_string(),
                });
            } else if earlier.name == node.name {
                errors.push(ConfigError::DuplicateName {
                    name: node.name.clone(),
                });
            }
        }
    }
}

fn same_host(one: &Host, other: &Host) -> bool {
    match (one, other) {
        (
            Host::Tcp {
                host: a,
                hostaddr: x,
                port: p,
            },
            Host::Tcp {
                host: b,
                hostaddr: y,
                port: q,
            },
        ) => p == q && x == y && a.eq_ignore_ascii_case(b),
        _ => one == other,
    }
}

/// Checks which statements may move.
pub(super) fn check_routing(routing: Routing, errors: &mut Vec<ConfigError>) {
    if let Routing::Automatic { share } = routing {
        if !is_share(share) {
            errors.push(ConfigError::RoutingShare { share });
        }
    }
}
