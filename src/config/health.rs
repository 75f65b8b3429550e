//! How nodes are watched, and from when on one counts as down, lagging or slow.

use std::time::Duration;

use super::ConfigError;

/// How nodes are watched, and from when on one counts as down, lagging or slow.
///
/// What a server says by itself (it refuses, it ends a connection, it is another than it was) is
/// used the moment it is said. These settings are for what nobody tells.
///
/// ```
/// use std::time::Duration;
/// use diesel_replicated::{Config, HealthConfig};
///
/// let health = HealthConfig::default()
///     .interval(Duration::from_millis(500))
///     .max_lag(Duration::from_secs(30));
/// let config = Config::new().health(health);
/// # let _ = config;
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
#[non_exhaustive]
pub struct HealthConfig {
    /// How often each node is asked how it is while nobody waits to know. While no node takes
    /// writes it is far more often. Default: 1 second.
    #[cfg_attr(feature = "serde", serde(with = "super::duration::human"))]
    pub interval: Duration,
    /// How long the answer may take before the node is suspected. Default: 1 second.
    #[cfg_attr(feature = "serde", serde(with = "super::duration::human"))]
    pub timeout: Duration,
    /// So many times in a row a node has to keep silent to be down. One that refuses is down at once.
    /// Default: 2.
    pub failures: u32,
    /// A replica whose data is older gets no reads until it has caught up to four fifths of that.
    /// Default: none.
    #[cfg_attr(feature = "serde", serde(with = "super::duration::human::limit"))]
    pub max_lag: Option<Duration>,
    /// A replica with more bytes of log to replay gets no reads until it has caught up to four
    /// fifths of that. Default: none.
    pub max_lag_bytes: Option<u64>,
    /// A node is slow if its answers take so many times as long as those of its peers in the
    /// median. It then gets a tenth of its reads, and none if it stays slow for ten seconds.
    /// Default: 10.
    pub slow_factor: f64,
    /// A node that answers faster than this is never slow. Default: 50 milliseconds.
    #[cfg_attr(feature = "serde", serde(with = "super::duration::human"))]
    pub slow_floor: Duration,
    /// The time in which a node that comes back grows from a tenth of its reads to all of them.
    /// Zero gives it all at once. Default: 10 seconds.
    #[cfg_attr(feature = "serde", serde(with = "super::duration::human"))]
    pub slow_start: Duration,
}

impl Default for HealthConfig {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            failures: 2,
            max_lag: None,
            max_lag_bytes: None,
            slow_factor: 10.0,
            slow_floor: Duration::from_millis(50),
            slow_start: Duration::from_secs(10),
        }
    }
}

impl HealthConfig {
    /// Sets [`interval`](Self::interval).
    #[must_use]
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Sets [`timeout`](Self::timeout).
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets [`failures`](Self::failures).
    #[must_use]
    pub fn failures(mut self, failures: u32) -> Self {
        self.failures = failures;
        self
    }

    /// Sets [`max_lag`](Self::max_lag).
    #[must_use]
    pub fn max_lag(mut self, lag: impl Into<Option<Duration>>) -> Self {
        self.max_lag = lag.into();
        self
    }

    /// Sets [`max_lag_bytes`](Self::max_lag_bytes).
    #[must_use]
    pub fn max_lag_bytes(mut self, bytes: impl Into<Option<u64>>) -> Self {
        self.max_lag_bytes = bytes.into();
        self
    }

    /// Sets [`slow_factor`](Self::slow_factor).
    #[must_use]
    pub fn slow_factor(mut self, factor: f64) -> Self {
        self.slow_factor = factor;
        self
    }

    /// Sets [`slow_floor`](Self::slow_floor).
    #[must_use]
    pub fn slow_floor(mut self, floor: Duration) -> Self {
        self.slow_floor = floor;
        self
    }

    /// Sets [`slow_start`](Self::slow_start).
    #[must_use]
    pub fn slow_start(mut self, time: Duration) -> Self {
        self.slow_start = time;
        self
    }

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
