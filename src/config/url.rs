//! One URL for the whole cluster.

use super::conn_string::ConnString;
use super::{Config, DeclaredRole, NodeConfig, login, setting, zone};
use crate::config::{ConfigError, ConfigErrors};

/// What a URL says: its nodes are added to `config` with `role`, and its parameters of the pool are
/// set. Mistakes are added to `errors`. `label` names the URL where it cannot be read.
pub(super) fn read(
    config: &mut Config,
    url: &str,
    role: DeclaredRole,
    label: &str,
    errors: &mut Vec<ConfigError>,
) {
    let problem = |problem| ConfigError::Url {
        node: label.to_owned(),
        problem,
    };
    let mut parsed = match ConnString::parse(url) {
        Ok(parsed) => parsed,
        Err(reason) => return errors.push(problem(reason)),
    };
    // In the URL of a replica they would look as if they were of that replica alone; left in, they
    // are told as misplaced.
    let weights = if role == DeclaredRole::Replica {
        None
    } else {
        take_pool_parameters(config, &mut parsed, errors)
    };
    let zones = zone::take(&mut parsed);
    let whole = login::completed(&parsed, label, &login::process, errors);
    let addresses = match whole.addresses() {
        Ok(addresses) => addresses,
        Err(reason) => return errors.push(problem(reason)),
    };
    if addresses.is_empty() {
        return errors.push(ConfigError::NoHost {
            node: label.to_owned(),
        });
    }
    let zones = zone::of_each(&zones, addresses.len(), label, errors);
    let hosts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    if login::read(&whole, &hosts.join(","), role, &login::process, errors).is_none() {
        return;
    }
    let first = config.nodes.len();
    for (address, zone) in addresses.iter().zip(zones) {
        let mut node = parsed.clone();
        node.set_address(address);
        config.nodes.push(NodeConfig {
            zone,
            ..NodeConfig::new(node.to_url()).role(role)
        });
    }
    if let Some(weights) = weights {
        set_weights(&mut config.nodes[first..], &weights, "weights", errors);
    }
}

/// Gives each of `nodes` its weight.
pub(super) fn set_weights(
    nodes: &mut [NodeConfig],
    weights: &[i64],
    setting: &str,
    errors: &mut Vec<ConfigError>,
) {
    if weights.len() != nodes.len() {
        return errors.push(ConfigError::WeightCount {
            setting: setting.to_owned(),
            weights: weights.len(),
            nodes: nodes.len(),
        });
    }
    for (node, weight) in nodes.iter_mut().zip(weights) {
        node.weight = Some(*weight);
    }
}

/// Moves the parameters of the pool from `parsed` to `config` and returns the weights.
fn take_pool_parameters(
    config: &mut Config,
    parsed: &mut ConnString,
    errors: &mut Vec<ConfigError>,
) -> Option<Vec<i64>> {
    let mut weights = None;
    let (ours, theirs) = parsed
        .params
        .drain(..)
        .partition::<Vec<_>, _>(|param| setting::of_pool().any(|name| name == param.name));
    parsed.params = theirs;
    for param in ours {
        let read = if param.name == "weights" {
            setting::weights(&param.value).map(|list| weights = Some(list))
        } else {
            setting::apply(config, &param.name, &param.value)
        };
        if let Err(expected) = read {
            errors.push(ConfigError::InvalidSetting {
                setting: param.name,
                expected,
            });
        }
    }
    weights
}

/// [`Config::read_url`].
pub(super) fn read_all(config: &mut Config, url: &str) -> Result<(), ConfigErrors> {
    let mut errors = Vec::new();
    read(config, url, DeclaredRole::Unknown, "#1", &mut errors);
    ConfigErrors::unless_empty(errors, ())
}
