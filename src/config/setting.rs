//! The settings by their names, as they are written in URLs and in the environment.

use super::{CommitResolution, Config, Consistency, Durability, Policy, WriteScope, duration};

/// The parameters of libpq that `tokio-postgres` knows.
pub(crate) const LIBPQ: &[&str] = &[
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "options",
    "application_name",
    "sslmode",
    "sslnegotiation",
    "channel_binding",
    "connect_timeout",
    "tcp_user_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_retries",
    "target_session_attrs",
    "load_balance_hosts",
];

/// The parameters of the pool, which [`Config::from_url`] accepts besides.
pub(crate) const POOL: &[&str] = &[
    "max_size",
    "min_idle",
    "connection_timeout",
    "max_lifetime",
    "idle_timeout",
    "close_timeout",
    "failover_wait",
    "policy",
    "weights",
    "fallback_share",
    "start_read_only",
    "read_only_transactions_on_replicas",
    "consistency",
    "write_scope",
    "consistency_wait",
    "strong_reads_on_replicas",
    "durability",
    "commit_resolution",
    "health_interval",
    "health_timeout",
    "automatic_promotion",
    "max_lag",
    "max_lag_bytes",
    "functions_allow",
    "functions_deny",
];

/// `name` as a constant, if a connection string may contain it.
pub(crate) fn known(name: &str) -> Option<&'static str> {
    LIBPQ
        .iter()
        .chain(POOL)
        .find(|known| **known == name)
        .copied()
}

const NUMBER: &str = "a whole number, such as 10";
const SWITCH: &str = "`true` or `false`";
const SHARE: &str = "a number from 0.0 to 1.0";
pub(crate) const WEIGHTS: &str = "a list of whole numbers with commas between, such as 3,1";

/// Sets the setting `name` of `config` from text. `Err` tells what was expected; `weights` is not
/// among them, as it belongs to the nodes.
pub(crate) fn apply(config: &mut Config, name: &str, value: &str) -> Result<(), &'static str> {
    let value = value.trim();
    let pool = &mut config.pool;
    match name {
        "max_size" => pool.max_size = value.parse().map_err(|_| NUMBER)?,
        "min_idle" => pool.min_idle = Some(value.parse().map_err(|_| NUMBER)?),
        "connection_timeout" => pool.connection_timeout = length(value)?,
        "connect_timeout" => pool.connect_timeout = length(value)?,
        "max_lifetime" => pool.max_lifetime = limit(value)?,
        "idle_timeout" => pool.idle_timeout = limit(value)?,
        "close_timeout" => config.close_timeout = length(value)?,
        "failover_wait" => config.failover_wait = length(value)?,
        "policy" => config.policy = Policy::parse(value).ok_or(Policy::EXPECTED)?,
        "fallback_share" => config.fallback_share = value.parse().map_err(|_| SHARE)?,
        "start_read_only" => config.start_read_only = switch(value)?,
        "read_only_transactions_on_replicas" => {
            config.read_only_transactions_on_replicas = switch(value)?;
        }
        "consistency" => {
            config.consistency.level = value.parse().map_err(|_| Consistency::EXPECTED)?;
        }
        "write_scope" => {
            config.consistency.write_scope =
                WriteScope::parse(value).ok_or(WriteScope::EXPECTED)?;
        }
        "consistency_wait" => config.consistency.wait = length(value)?,
        "strong_reads_on_replicas" => {
            config.consistency.strong_reads_on_replicas = switch(value)?;
        }
        "durability" => {
            config.durability = Some(Durability::parse(value).ok_or(Durability::EXPECTED)?);
        }
        "commit_resolution" => {
            let way = CommitResolution::parse(value);
            config.commit_resolution = way.ok_or(CommitResolution::EXPECTED)?;
        }
        "health_interval" => config.health.interval = length(value)?,
        "health_timeout" => config.health.timeout = length(value)?,
        "automatic_promotion" => config.promotion.automatic = switch(value)?,
        "max_lag" => config.health.max_lag = limit(value)?,
        "max_lag_bytes" => {
            config.health.max_lag_bytes = Some(value.parse().map_err(|_| NUMBER)?);
        }
        "functions_allow" => config.functions.allow = words(value),
        "functions_deny" => config.functions.deny = words(value),
        _ => return Err("a setting of the pool"),
    }
    Ok(())
}

/// Reads a list of names.
fn words(value: &str) -> Vec<String> {
    let words = value.split([',', ' ', '\t', '\n']).map(str::to_owned);
    words.filter(|word| !word.is_empty()).collect()
}

/// Reads a list such as `3,1`.
pub(crate) fn weights(value: &str) -> Result<Vec<i64>, &'static str> {
    let weights = value.split(',').map(|weight| weight.trim().parse());
    weights.collect::<Result<_, _>>().map_err(|_| WEIGHTS)
}

fn length(value: &str) -> Result<std::time::Duration, &'static str> {
    duration::parse(value).ok_or(duration::EXPECTED)
}

fn limit(value: &str) -> Result<Option<std::time::Duration>, &'static str> {
    duration::parse_limit(value).ok_or(duration::EXPECTED_LIMIT)
}

fn switch(value: &str) -> Result<bool, &'static str> {
    match value {
        "true" | "on" | "yes" | "1" => Ok(true),
        "false" | "off" | "no" | "0" => Ok(false),
        _ => Err(SWITCH),
    }
}
