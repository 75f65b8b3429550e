//! Settings that change while the pool runs, checked like those that it was built from.

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
