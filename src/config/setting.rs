//! The settings by their names, as they are written in URLs and in the environment.

use std::time::Duration;

use super::{Config, duration, libpq};

/// What `tokio-postgres` calls libpq's `keepalives_count`.
pub(crate) const RETRIES: &str = "keepalives_retries";

/// The parameters of libpq.
fn of_libpq() -> impl Iterator<Item = &'static str> {
    let names = libpq::PARAMETERS.iter().map(|parameter| parameter.name);
    names.filter(|name| !name.is_empty()).chain([RETRIES])
}

/// The parameters of a node that libpq does not know: which kind of pooler is there, also as Prisma has it, and where it is.
pub(crate) const OF_NODE: [&str; 3] = ["pooler", "pgbouncer", ZONE];

/// The zones of the hosts.
pub(crate) const ZONE: &str = "zone";

/// The parameter of a URL that belongs to its nodes.
const WEIGHTS: &str = "weights";

/// Sets one setting from text. `Err` tells what was expected.
type Apply = fn(&mut Config, &str) -> Result<(), &'static str>;

/// The settings that can be set by a text: by a parameter of [`Config::from_url`], and by a variable of
/// [`Config::from_env`].
pub(super) const SETTINGS: &[(&str, Apply)] = &[
    ("max_size", |to, text| set(&mut to.pool.max_size, text)),
    ("min_idle", |to, text| set(&mut to.pool.min_idle, text)),
    ("max_connecting", |to, text| {
        set(&mut to.pool.max_connecting, text)
    }),
    ("connection_timeout", |to, text| {
        set(&mut to.pool.connection_timeout, text)
    }),
    ("connect_timeout", |to, text| {
        set(&mut to.pool.connect_timeout, text)
    }),
    ("max_lifetime", |to, text| {
        limit(&mut to.pool.max_lifetime, text)
    }),
    ("idle_timeout", |to, text| {
        limit(&mut to.pool.idle_timeout, text)
    }),
    ("failover_wait", |to, text| set(&mut to.failover_wait, text)),
    ("statement_deadline", |to, text| {
        limit(&mut to.statement_deadline, text)
    }),
    ("routing", |to, text| set(&mut to.routing, text)),
    ("policy", |to, text| set(&mut to.policy, text)),
    // Their names may have white space in them.
    ("prefer_zones", |to, text| {
        let names = text.split(',').map(str::trim).map(str::to_owned);
        to.prefer_zones = names.filter(|name| !name.is_empty()).collect();
        Ok(())
    }),
    ("fallback_share", |to, text| {
        set(&mut to.fallback_share, text)
    }),
    ("start_read_only", |to, text| {
        set(&mut to.start_read_only, text)
    }),
    ("read_only_transactions_on_replicas", |to, text| {
        set(&mut to.read_only_transactions_on_replicas, text)
    }),
    ("consistency", |to, text| {
        set(&mut to.consistency.level, text)
    }),
    ("write_scope", |to, text| {
        set(&mut to.consistency.write_scope, text)
    }),
    ("consistency_wait", |to, text| {
        set(&mut to.consistency.wait, text)
    }),
    ("wait_for_lsn", |to, text| {
        set(&mut to.consistency.wait_for_lsn, text)
    }),
    ("strong_reads_on_replicas", |to, text| {
        set(&mut to.consistency.strong_reads_on_replicas, text)
    }),
    ("assumed_lag", |to, text| {
        limit(&mut to.consistency.assumed_lag, text)
    }),
    ("durability", |to, text| set(&mut to.durability, text)),
    ("commit_resolution", |to, text| {
        set(&mut to.commit_resolution, text)
    }),
    ("health_interval", |to, text| {
        set(&mut to.health.interval, text)
    }),
    ("health_timeout", |to, text| {
        set(&mut to.health.timeout, text)
    }),
    ("write_quorum", |to, text| set(&mut to.write_quorum, text)),
    #[cfg(feature = "promotion")]
    ("automatic_promotion", |to, text| {
        set(&mut to.promotion.automatic, text)
    }),
    #[cfg(feature = "promotion")]
    ("standbys_follow", |to, text| {
        set(&mut to.promotion.standbys_follow, text)
    }),
    #[cfg(not(feature = "promotion"))]
    ("automatic_promotion", |_, text| not_compiled(text)),
    #[cfg(not(feature = "promotion"))]
    ("standbys_follow", |_, text| not_compiled(text)),
    ("max_lag", |to, text| limit(&mut to.health.max_lag, text)),
    ("max_lag_bytes", |to, text| {
        set(&mut to.health.max_lag_bytes, text)
    }),
    ("functions_allow", |to, text| {
        set(&mut to.functions.allow, text)
    }),
    ("functions_deny", |to, text| {
        set(&mut to.functions.deny, text)
    }),
];

/// The parameters of the pool, which [`Config::from_url`] accepts besides those of libpq.
pub(crate) fn of_pool() -> impl Iterator<Item = &'static str> {
    let names = SETTINGS.iter().map(|(name, _)| *name);
    let ours = names.filter(|name| libpq::find(name).is_none());
    ours.chain([WEIGHTS])
}

/// All that a connection string may contain.
pub(crate) fn all() -> impl Iterator<Item = &'static str> {
    of_libpq().chain(OF_NODE).chain(of_pool())
}

/// `name` as a constant, if a connection string may contain it.
pub(crate) fn known(name: &str) -> Option<&'static str> {
    all().find(|known| *known == name)
}

/// Sets the setting `name` of `config` from text. `Err` tells what was expected; `weights` is not
/// among them, as it belongs to the nodes.
pub(crate) fn apply(config: &mut Config, name: &str, text: &str) -> Result<(), &'static str> {
    let setting = SETTINGS.iter().find(|(known, _)| *known == name);
    let (_, apply) = setting.ok_or("a setting of the pool")?;
    apply(config, text.trim())
}

fn set<T: Text>(place: &mut T, text: &str) -> Result<(), &'static str> {
    *place = T::read(text).ok_or(T::EXPECTED)?;
    Ok(())
}

/// Whoever asks for it is told, and not left without it.
#[cfg(not(feature = "promotion"))]
fn not_compiled(text: &str) -> Result<(), &'static str> {
    match bool::read(text) {
        Some(false) => Ok(()),
        _ => {
            Err("available without the Cargo feature `promotion`: enable it, or remove the setting")
        }
    }
}

/// As [`set`], where `never` is read, too.
fn limit(place: &mut Option<Duration>, text: &str) -> Result<(), &'static str> {
    *place = duration::parse_limit(text).ok_or(duration::EXPECTED_LIMIT)?;
    Ok(())
}

/// What can be written as the value of a setting.
pub(crate) trait Text: Sized {
    /// What [`read`](Self::read) reads, for errors.
    const EXPECTED: &'static str;

    fn read(text: &str) -> Option<Self>;
}

impl Text for u32 {
    const EXPECTED: &'static str = "a whole number, such as 10";

    fn read(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl Text for u64 {
    const EXPECTED: &'static str = u32::EXPECTED;

    fn read(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl Text for f64 {
    const EXPECTED: &'static str = "a number from 0.0 to 1.0";

    fn read(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl Text for bool {
    const EXPECTED: &'static str = "`true` or `false`";

    fn read(text: &str) -> Option<Self> {
        match text {
            "true" | "on" | "yes" | "1" => Some(true),
            "false" | "off" | "no" | "0" => Some(false),
            _ => None,
        }
    }
}

impl Text for Duration {
    const EXPECTED: &'static str = duration::EXPECTED;

    fn read(text: &str) -> Option<Self> {
        duration::parse(text)
    }
}

impl<T: Text> Text for Option<T> {
    const EXPECTED: &'static str = T::EXPECTED;

    fn read(text: &str) -> Option<Self> {
        T::read(text).map(Some)
    }
}

/// Names with commas or white space between.
impl Text for Vec<String> {
    const EXPECTED: &'static str = "a list of names";

    fn read(text: &str) -> Option<Self> {
        let words = text.split([',', ' ', '\t', '\n']).map(str::to_owned);
        Some(words.filter(|word| !word.is_empty()).collect())
    }
}

/// The weights of nodes, such as `3,1`.
impl Text for Vec<i64> {
    const EXPECTED: &'static str = "a list of whole numbers with commas between, such as 3,1";

    fn read(text: &str) -> Option<Self> {
        let weights = text.split(',').map(|weight| weight.trim().parse());
        weights.collect::<Result<_, _>>().ok()
    }
}

/// Reads the weights of nodes. `Err` tells what was expected.
pub(crate) fn weights(text: &str) -> Result<Vec<i64>, &'static str> {
    Text::read(text).ok_or(<Vec<i64>>::EXPECTED)
}
