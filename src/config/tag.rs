//! What reads get that ask for nodes with a tag.

use std::collections::BTreeMap;
use std::time::Duration;

use super::declare::settings;
use crate::config::ConfigError;

settings! {
    /// What reads get that ask for nodes with a tag, by [`tagged`](crate::ReplicatedConnection::tagged): connections of their
    /// own and limits of their own. So a report takes no connection from a web request. It does not change while the pool
    /// runs, and a connection that is made from a URL has none.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use diesel_replicated::config::TagConfig;
    /// use diesel_replicated::{NodeConfig, ReplicatedPool};
    ///
    /// let reports = TagConfig::default()
    ///     .max_size(4)
    ///     .statement_deadline(Duration::from_secs(600));
    /// let builder = ReplicatedPool::builder()
    ///     .primary("postgres://app@db1/app")
    ///     .replica("postgres://app@db2/app")
    ///     // Nothing else is read there.
    ///     .replica(NodeConfig::new("postgres://app@db3/app").tag("analytics", "true").no_reads(true))
    ///     .tagged("analytics", reports);
    /// ```
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct TagConfig {
        /// The largest number of connections to each node with the tag, beside those of
        /// [`PoolConfig::max_size`](super::PoolConfig::max_size). Default: 2.
        max_size: u32 = 2, set;
        /// How long a read waits for a node with the tag to show what the session must see, instead of
        /// [`ConsistencyConfig::wait`](super::ConsistencyConfig::wait): the primary does not stand in. Default: 1 second.
        #[cfg_attr(feature = "serde", serde(with = "super::duration::human"))]
        wait: Duration = Duration::from_secs(1), set;
        /// How long a statement may take, all in all, instead of
        /// [`Config::statement_deadline`](super::Config::statement_deadline). Default: no limit.
        #[cfg_attr(feature = "serde", serde(with = "super::duration::human"))]
        statement_deadline: Option<Duration> = None, into;
    }
}

/// Whether the node has the tag. One with the value `false` does not have it.
pub(crate) fn has_tag(tags: &BTreeMap<String, String>, tag: &str) -> bool {
    tags.get(tag).is_some_and(|value| value != "false")
}

/// Checks what is said of tags.
pub(super) fn check(tagged: &BTreeMap<String, TagConfig>, errors: &mut Vec<ConfigError>) {
    for (tag, config) in tagged {
        if tag.trim().is_empty() {
            errors.push(ConfigError::TaggedWithoutName);
        }
        if config.max_size == 0 {
            errors.push(ConfigError::TaggedZeroMaxSize { tag: tag.clone() });
        }
        if config
            .statement_deadline
            .is_some_and(|limit| limit.is_zero())
        {
            errors.push(ConfigError::TaggedZeroDeadline { tag: tag.clone() });
        }
    }
}
