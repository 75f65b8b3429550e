//! Settings that change while the pool runs, checked like those that it was built from.

use std::time::Duration;

use super::health::HealthConfig;
use super::routing::Routing;
use super::validate::check_routing;
use super::{Config, DeclaredRole, MAX_WEIGHT, NodeConfig, NodeSettings, PoolConfig};
use crate::config::{ConfigError, ConfigErrors};

/// Checks a replica that is added to a pool whose other nodes have `defaults`.
pub(crate) fn check_replica(
    replica: NodeConfig,
    defaults: &PoolConfig,
) -> Result<NodeSettings, ConfigErrors> {
    // A configuration of a replica alone would lack its primary.
    let alone = Config {
        nodes: vec![replica.role(DeclaredRole::Unknown)],
        pool: defaults.clone(),
        ..Config::default()
    };
    let mut settings = alone.validate()?;
    let mut node = settings
        .nodes
        .pop()
        .ok_or_else(|| ConfigErrors::from(ConfigError::NoNodes))?;
    node.declared = DeclaredRole::Replica;
    Ok(node)
}

/// Checks another configuration of a node, which keeps its name and what was declared of it.
pub(crate) fn check_node(
    node: NodeConfig,
    before: &NodeSettings,
    defaults: &PoolConfig,
) -> Result<NodeSettings, ConfigErrors> {
    let mut settings = check_replica(node.name(&before.name), defaults)?;
    settings.declared = before.declared;
    Ok(settings)
}

/// Checks another URL of a node, which keeps all else.
pub(crate) fn check_url(url: String, before: NodeSettings) -> Result<NodeSettings, ConfigErrors> {
    let found = check_replica(NodeConfig::new(url).name(&before.name), &before.pool)?;
    Ok(NodeSettings {
        login: found.login,
        host: found.host,
        pooler: found.pooler.or(before.pooler),
        pool: found.pool,
        ..before
    })
}

/// Checks another size of a node's pool.
pub(crate) fn check_max_size(
    max_size: u32,
    before: NodeSettings,
) -> Result<NodeSettings, ConfigErrors> {
    if max_size == 0 {
        let node = Some(before.name);
        return Err(ConfigError::ZeroMaxSize { node }.into());
    }
    let mut settings = before;
    settings.pool.max_size = max_size;
    settings.pool.min_idle = settings.pool.min_idle.map(|idle| idle.min(max_size));
    Ok(settings)
}

/// Checks limits of lag.
pub(crate) fn check_max_lag(
    max_lag: Option<Duration>,
    max_lag_bytes: Option<u64>,
) -> Result<HealthConfig, ConfigErrors> {
    let health = HealthConfig {
        max_lag,
        max_lag_bytes,
        ..HealthConfig::default()
    };
    let mut errors = Vec::new();
    health.check(&mut errors);
    ConfigErrors::unless_empty(errors, health)
}

/// Checks which statements may move.
pub(crate) fn checked_routing(routing: Routing) -> Result<Routing, ConfigErrors> {
    let mut errors = Vec::new();
    check_routing(routing, &mut errors);
    ConfigErrors::unless_empty(errors, routing)
}

/// Checks a weight that is given to `node`.
pub(crate) fn check_weight(node: &str, weight: i64) -> Result<u32, ConfigErrors> {
    let node = node.to_owned();
    let mistake = match u32::try_from(weight) {
        Ok(weight) if weight <= MAX_WEIGHT => return Ok(weight),
        _ if weight < 0 => ConfigError::NegativeWeight { node, weight },
        _ => ConfigError::WeightTooLarge { node, weight },
    };
    Err(mistake.into())
}
