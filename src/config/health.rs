//! How nodes are watched, and from when on one counts as down, lagging or slow.

use std::time::Duration;

use super::ConfigError;
use super::declare::settings;

settings! {
    /// How nodes are watched, and from when on one counts as down, lagging or slow.
    ///
    /// What a server says by itself (it refuses, it ends a connection, it is another than it was) is
    /// used the moment it is said. These settings are for what nobody tells.
    ///
    /// ```
    /// use std::time::Duration;
    /// use diesel_replicated::ReplicatedPool;
    /// use diesel_replicated::config::HealthConfig;
    ///
    /// let health = HealthConfig::default()
    ///     .interval(Duration::from_millis(500))
    ///     .max_lag(Duration::from_secs(30));
    /// let builder = ReplicatedPool::builder().health(health);
    /// ```
    #[derive(Clone, Debug, PartialEq)]
    pub struct HealthConfig {
        /// How often each node is asked how it is while nobody waits to know. While no node takes
        /// writes it is far more often. Default: 1 second.
        #[cfg_attr(feature = "serde", serde(with = "super::duration::human"))]
        interval: Duration = Duration::from_secs(1), set;
        /// How long the answer may take before the node is suspected. Default: 1 second.
        #[cfg_attr(feature = "serde", serde(with = "super::duration::human"))]
        timeout: Duration = Duration::from_secs(1), set;
        /// So many times in a row a node has to keep silent to be down. One that refuses is down at once.
        /// Default: 2.
        failures: u32 = 2, set;
        /// A replica whose data is older gets no reads until it has caught up to four fifths of that.
        /// Default: none.
        #[cfg_attr(feature = "serde", serde(with = "super::duration::human"))]
        max_lag: Option<Duration> = None, into;
        /// A replica with more bytes of log to replay gets no reads until it has caught up to four
        /// fifths of that. Default: none.
        max_lag_bytes: Option<u64> = None, into;
        /// A node is slow if its answers take so many times as long as those of its peers in the
        /// median. It then gets a tenth of its reads, and none if it stays slow for ten seconds.
        /// Default: 10.
        slow_factor: f64 = 10.0, set;
        /// A node that answers faster than this is never slow. Default: 50 milliseconds.
        #[cfg_attr(feature = "serde", serde(with = "super::duration::human"))]
        slow_floor: Duration = Duration::from_millis(50), set;
        /// The time in which a node that comes back grows from a tenth of its reads to all of them.
        /// Zero gives it all at once. Default: 10 seconds.
        #[cfg_attr(feature = "serde", serde(with = "super::duration::human"))]
        slow_start: Duration = Duration::from_secs(10), set;
    }
}

impl HealthConfig {
    pub(super) fn check(&self, errors: &mut Vec<ConfigError>) {
        const TIME: &str = "more than zero and at most an hour";
        let time = |time: Duration| !time.is_zero() && time <= Duration::from_secs(3600);
        let checks = [
            ("interval", time(self.interval), TIME),
            ("timeout", time(self.timeout), TIME),
            ("failures", self.failures > 0, "1 or more"),
            (
                "max_lag",
                self.max_lag.is_none_or(|lag| !lag.is_zero()),
                "more than zero, or none",
            ),
            (
                "max_lag_bytes",
                self.max_lag_bytes != Some(0),
                "more than zero, or none",
            ),
            (
                "slow_factor",
                self.slow_factor >= 1.0 && self.slow_factor.is_finite(),
                "a number of at least 1",
            ),
        ];
        let wrong = checks.into_iter().filter(|(_, valid, _)| !valid);
        errors
            .extend(wrong.map(|(setting, _, expected)| ConfigError::Health { setting, expected }));
    }
}
