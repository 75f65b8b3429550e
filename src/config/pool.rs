//! How large the pool of a node is and how long its connections live.

use std::time::Duration;

use super::declare::settings;

settings! {
    /// The pool of every node, unless the node overrides it. The names and defaults are those of `bb8`.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct PoolConfig {
        /// The largest number of connections to one node. Default: 10.
        max_size: u32 = 10;
        /// How many connections to one node are opened at the same time, at the most. The others wait their turn, so that
        /// a server that comes back is not met by all at once. Default: 2.
        max_connecting: u32 = 2;
        /// The number of idle connections that the pool tries to keep, at most `max_size`. Default:
        /// none are kept on purpose.
        #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
        min_idle: Option<u32> = None;
        /// How long a checkout waits for a connection before it fails. Default: 30 seconds.
        #[cfg_attr(feature = "serde", serde(with = "super::duration::human"))]
        connection_timeout: Duration = Duration::from_secs(30);
        /// How long opening a server connection may take: connecting, authenticating and starting up.
        /// libpq's `connect_timeout` in the URL of a node wins over it. Default: 5 seconds.
        #[cfg_attr(feature = "serde", serde(with = "super::duration::human"))]
        connect_timeout: Duration = Duration::from_secs(5);
        /// The age at which a connection is closed the next time that it is idle, less up to a tenth by chance, so that those
        /// that were opened together do not end together; `None` (in a file
        /// `"never"`) for no limit. Default: 30 minutes.
        #[cfg_attr(feature = "serde", serde(with = "super::duration::human"))]
        max_lifetime: Option<Duration> = Some(Duration::from_secs(30 * 60));
        /// How long a connection may be idle before it is closed; `None` (in a file `"never"`) for no
        /// limit. Default: 10 minutes.
        #[cfg_attr(feature = "serde", serde(with = "super::duration::human"))]
        idle_timeout: Option<Duration> = Some(Duration::from_secs(10 * 60));
    }
}

/// What one node does differently from [`PoolConfig`]. What is `None` is as there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
#[non_exhaustive]
pub struct PoolOverrides {
    /// See [`PoolConfig::max_size`].
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub max_size: Option<u32>,
    /// See [`PoolConfig::min_idle`]; 0 for none.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub min_idle: Option<u32>,
    /// See [`PoolConfig::connection_timeout`].
    #[cfg_attr(
        feature = "serde",
        serde(
            with = "super::duration::human::optional",
            skip_serializing_if = "Option::is_none"
        )
    )]
    pub connection_timeout: Option<Duration>,
    /// See [`PoolConfig::connect_timeout`].
    #[cfg_attr(
        feature = "serde",
        serde(
            with = "super::duration::human::optional",
            skip_serializing_if = "Option::is_none"
        )
    )]
    pub connect_timeout: Option<Duration>,
    /// See [`PoolConfig::max_lifetime`]; `Some(None)` for no limit.
    #[cfg_attr(
        feature = "serde",
        serde(
            with = "super::duration::human::optional",
            skip_serializing_if = "Option::is_none"
        )
    )]
    pub max_lifetime: Option<Option<Duration>>,
    /// See [`PoolConfig::idle_timeout`]; `Some(None)` for no limit.
    #[cfg_attr(
        feature = "serde",
        serde(
            with = "super::duration::human::optional",
            skip_serializing_if = "Option::is_none"
        )
    )]
    pub idle_timeout: Option<Option<Duration>>,
}

impl PoolOverrides {
    /// The pool of the node: `defaults` with what is overridden here.
    pub(crate) fn resolve(&self, defaults: &PoolConfig) -> PoolConfig {
        PoolConfig {
            max_size: self.max_size.unwrap_or(defaults.max_size),
            max_connecting: defaults.max_connecting,
            min_idle: self.min_idle.or(defaults.min_idle),
            connection_timeout: self
                .connection_timeout
                .unwrap_or(defaults.connection_timeout),
            connect_timeout: self.connect_timeout.unwrap_or(defaults.connect_timeout),
            max_lifetime: self.max_lifetime.unwrap_or(defaults.max_lifetime),
            idle_timeout: self.idle_timeout.unwrap_or(defaults.idle_timeout),
        }
    }
}
