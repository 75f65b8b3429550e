//! The configuration in environment variables.

use std::cell::RefCell;

use super::conn_string::ConnString;
use super::{Config, DeclaredRole, setting, url};
use crate::config::{ConfigError, ConfigErrors, UrlProblem};

/// The prefix of [`Config::from_env`].
const PREFIX: &str = "DATABASE";

/// [`Config::from_env`].
pub(super) fn from_env() -> Result<Config, ConfigErrors> {
    let not_unicode = RefCell::new(Vec::new());
    let config = from_env_with(PREFIX, |name| match std::env::var(name) {
        Ok(value) => Some(value),
        Err(std::env::VarError::NotPresent) => None,
        Err(std::env::VarError::NotUnicode(_)) => {
            let name = name.to_owned();
            not_unicode
                .borrow_mut()
                .push(ConfigError::NotUnicode { name });
            None
        }
    });
    let mut errors = not_unicode.into_inner();
    match config {
        Ok(config) => ConfigErrors::unless_empty(errors, config),
        Err(others) => {
            errors.extend(others);
            ConfigErrors::unless_empty(errors, Config::default())
        }
    }
}

/// [`Config::from_env_with`].
pub(super) fn from_env_with(
    prefix: &str,
    lookup: impl Fn(&str) -> Option<String>,
) -> Result<Config, ConfigErrors> {
    let variable = |suffix: &str| format!("{prefix}_{}", suffix.to_uppercase());
    let get = |suffix: &str| {
        let value = lookup(&variable(suffix))?;
        Some(value.trim().to_owned()).filter(|value| !value.is_empty())
    };
    let mut config = Config::default();
    let mut errors = Vec::new();
    add_nodes(&mut config, &variable, &get, &mut errors);
    for (name, apply) in setting::SETTINGS {
        if let Some(value) = get(name) {
            if let Err(expected) = apply(&mut config, &value) {
                errors.push(ConfigError::InvalidSetting {
                    setting: variable(name),
                    expected,
                });
            }
        }
    }
    config.setup_sql.extend(get("setup_sql"));
    ConfigErrors::unless_empty(errors, config)
}

fn add_nodes(
    config: &mut Config,
    variable: &impl Fn(&str) -> String,
    get: &impl Fn(&str) -> Option<String>,
    errors: &mut Vec<ConfigError>,
) {
    let (one, primary) = (get("url"), get("primary_url"));
    let replicas = get("replica_urls");
    let (name, main) = match (one, primary) {
        (Some(one), Some(primary)) if one != primary => {
            return errors.push(ConfigError::AmbiguousEnvironment {
                url: variable("url"),
                primary: variable("primary_url"),
            });
        }
        (_, Some(primary)) => ("primary_url", primary),
        (Some(one), None) => ("url", one),
        (None, None) => {
            return errors.push(ConfigError::NotInEnvironment {
                url: variable("url"),
                primary: variable("primary_url"),
            });
        }
    };
    url::read(
        config,
        &main,
        DeclaredRole::Unknown,
        &variable(name),
        errors,
    );
    // One host next to a list of replicas can only be meant as the primary; several are asked.
    let is_primary = name == "primary_url" || (replicas.is_some() && config.nodes.len() == 1);
    if is_primary {
        for node in &mut config.nodes {
            node.role = DeclaredRole::Primary;
        }
    }
    let first = config.nodes.len();
    let replicas: Vec<&str> = replicas
        .iter()
        .flat_map(|list| list.split_whitespace())
        .collect();
    let label = variable("replica_urls");
    if is_torn(&replicas) {
        errors.push(ConfigError::Url {
            node: label,
            problem: UrlProblem::Scheme,
        });
    } else {
        for replica in replicas {
            url::read(config, replica, DeclaredRole::Replica, &label, errors);
        }
    }
    if let Some(list) = get("replica_weights") {
        let setting = variable("replica_weights");
        match setting::weights(&list) {
            Ok(weights) => url::set_weights(&mut config.nodes[first..], &weights, &setting, errors),
            Err(expected) => errors.push(ConfigError::InvalidSetting { setting, expected }),
        }
    }
}

/// Whether white space within a URL, as in a password that is not encoded, has torn it in two. What looks like a host
/// in one part may be of the password then, so no part is read.
fn is_torn(urls: &[&str]) -> bool {
    let mut are_urls = urls
        .iter()
        .map(|url| ConnString::after_scheme(url).is_some());
    are_urls.next() == Some(true) && are_urls.any(|is_url| !is_url)
}
