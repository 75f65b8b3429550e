//! A node's health, by what was heard of it and when: a state machine that asks nobody.
//!
//! Three things are kept apart: whether the node can be reached ([`Reach`]), whether it is too far behind, and
//! whether it is slow beside its peers ([`slow`]). Together they make one [`NodeHealth`] for people, and a share of
//! the reads for the router.

mod slow;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::HealthConfig;
use crate::deadline;
use crate::status::NodeHealth;
use slow::{LEAST, Slowness};

/// A lag is over when it has fallen to this part of its bound.
const CAUGHT_UP: f64 = 0.8;

/// Something that was heard of a node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Signal {
    /// It was reached by a new connection and answered.
    Reached,
    /// A connection ended that nobody had asked to end. The node may be well, and is checked.
    Doubted(String),
    /// It did not answer in time.
    Silent(String),
    /// It serves over open connections, and no more can be opened.
    Hindered(String),
    /// It cannot be reached.
    Failed(String),
    /// How it compares with its peers, once in an interval.
    Measured(Measure),
    /// It is being drained, or is not any more.
    Drain(bool),
}

/// What a replica is whose log is not the primary's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Apart {
    /// It has log that the primary lost.
    Diverged,
    /// Nobody knows whether it has.
    Doubtful,
    /// It gets nothing of what was written since a failover.
    Orphaned,
}

/// How a node compares with its peers, as far as that is known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Measure {
    /// How long its answers take.
    pub(crate) round_trip: Option<Duration>,
    /// The median of its peers' answers.
    pub(crate) peers: Option<Duration>,
    /// How old its data is.
    pub(crate) lag: Option<Duration>,
    /// How much log it has yet to replay.
    pub(crate) lag_bytes: Option<u64>,
    /// Whether its lag could be told, if its position were known.
    pub(crate) compared: bool,
}

/// Whether it can be reached.
#[derive(Clone, Debug, Default, PartialEq)]
enum Reach {
    #[default]
    Unknown,
    Up,
    /// It is being checked, and serves only if nothing else can. It was silent so many times in a row.
    Doubted(u32, Arc<str>),
    Down(Arc<str>),
}

/// One node's health.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Health {
    reach: Reach,
    /// Why no more connections can be opened, though it is up.
    hindrance: Option<Arc<str>>,
    draining: bool,
    /// Why it is too far behind.
    lagging: Option<Arc<str>>,
    /// Since when its lag is not known.
    unknown: Option<Instant>,
    /// Why its log is not the primary's.
    apart: Option<(Apart, Arc<str>)>,
    slowness: Slowness,
    /// When it came back. Its share grows since.
    back: Option<Instant>,
}

impl Health {
    /// Notes `signal`, heard at `now`.
    pub(crate) fn hear(&mut self, signal: Signal, config: &HealthConfig, now: Instant) {
        let (asked, served) = (self.is_asked(), self.serves());
        match signal {
            Signal::Reached => {
                if self.is_down() {
                    self.unknown = None;
                }
                (self.reach, self.hindrance) = (Reach::Up, None);
            }
            Signal::Hindered(cause) => self.hindered(&cause),
            Signal::Doubted(cause) => self.doubted(&cause, 0, config),
            Signal::Silent(cause) => self.doubted(&cause, 1, config),
            Signal::Failed(cause) => {
                (self.reach, self.hindrance) = (Reach::Down(cause.into()), None);
            }
            Signal::Measured(measure) => self.measured(&measure, config, now),
            Signal::Drain(draining) => self.draining = draining,
        }
        // The first node to come has nothing to recover from.
        if asked && !served && self.serves() {
            self.back = Some(now);
        }
    }

    fn hindered(&mut self, cause: &str) {
        if self.is_up() {
            // It has answered.
            self.reach = Reach::Up;
            if self.hindrance.as_deref() != Some(cause) {
                self.hindrance = Some(cause.into());
            }
        }
    }

    fn doubted(&mut self, cause: &str, silent: u32, config: &HealthConfig) {
        let times = match self.reach {
            // A node must be reached before it can be doubted.
            Reach::Down(_) | Reach::Unknown => return,
            Reach::Doubted(times, _) => times.saturating_add(silent),
            Reach::Up => silent,
        };
        self.reach = if times >= config.failures {
            Reach::Down(cause.into())
        } else {
            Reach::Doubted(times, cause.into())
        };
    }

    fn measured(&mut self, measure: &Measure, config: &HealthConfig, now: Instant) {
        if self.reach != Reach::Up {
            return;
        }
        self.lagging = self.lag(measure, config, now);
        let was_slow = self.slowness.is_slow();
        let Measure {
            round_trip, peers, ..
        } = *measure;
        self.slowness.measured(round_trip, peers, config, now);
        if was_slow && !self.slowness.is_slow() {
            self.back = Some(now);
        }
        let done = |back: Instant| now.saturating_duration_since(back) >= config.slow_start;
        if self.back.is_some_and(done) {
            self.back = None;
        }
    }

    /// Whether it is too far behind. After a moment, an unknown lag counts as too much.
    fn lag(&mut self, measure: &Measure, config: &HealthConfig, now: Instant) -> Option<Arc<str>> {
        let slack = if self.lagging.is_some() {
            CAUGHT_UP
        } else {
            1.0
        };
        let age = measure.lag.zip(config.max_lag);
        if let Some((lag, limit)) = age.filter(|(lag, limit)| *lag > deadline::times(*limit, slack))
        {
            return Some(format!("{lag:?} behind; `max_lag` is {limit:?}").into());
        }
        #[expect(clippy::cast_precision_loss, reason = "a bound, roughly")]
        let above = |(lag, limit): &(u64, u64)| *lag as f64 > *limit as f64 * slack;
        let bytes = measure.lag_bytes.zip(config.max_lag_bytes);
        if let Some((lag, limit)) = bytes.filter(above) {
            return Some(format!("{lag} bytes behind; `max_lag_bytes` is {limit}").into());
        }
        let silent = (config.max_lag.is_some() && measure.lag.is_none())
            || (config.max_lag_bytes.is_some() && measure.lag_bytes.is_none());
        self.unknown = match (silent, measure.compared) {
            (true, true) => self.unknown.or(Some(now)),
            (true, false) => self.unknown,
            (false, _) => None,
        };
        let long = |since: Instant| {
            now.saturating_duration_since(since) >= config.interval.saturating_mul(2)
        };
        if measure.compared && self.unknown.is_some_and(long) {
            let limit = match config.max_lag {
                Some(_) if measure.lag.is_none() => "max_lag",
                _ => "max_lag_bytes",
            };
            let cause = format!("how far it is behind is not known, and `{limit}` is set");
            return Some(cause.into());
        }
        self.lagging.clone().filter(|_| silent)
    }

    pub(crate) fn kind(&self) -> NodeHealth {
        match self.reach {
            Reach::Down(_) => NodeHealth::Down,
            Reach::Unknown => NodeHealth::Unknown,
            Reach::Doubted(..) => NodeHealth::Suspect,
            Reach::Up if self.draining => NodeHealth::Draining,
            Reach::Up if self.apart.is_some() => match self.apart {
                Some((Apart::Diverged, _)) => NodeHealth::Diverged,
                Some((Apart::Doubtful, _)) => NodeHealth::Doubtful,
                _ => NodeHealth::Orphaned,
            },
            Reach::Up if self.lagging.is_some() => NodeHealth::Lagging,
            Reach::Up if self.slowness.is_slow() => NodeHealth::Slow,
            Reach::Up => NodeHealth::Up,
        }
    }

    /// Why it is not up, or what hinders it though it is up.
    pub(crate) fn cause(&self) -> Option<String> {
        match (&self.reach, self.kind()) {
            (Reach::Down(cause) | Reach::Doubted(_, cause), _) => Some(cause.to_string()),
            (_, NodeHealth::Draining) => Some("it is being drained".to_owned()),
            (_, NodeHealth::Diverged | NodeHealth::Doubtful | NodeHealth::Orphaned) => {
                self.apart.as_ref().map(|(_, cause)| cause.to_string())
            }
            (_, NodeHealth::Lagging) => self.lagging.as_deref().map(str::to_owned),
            (_, NodeHealth::Slow) => self.slowness.cause().map(str::to_owned),
            _ => self.hindrance.as_deref().map(str::to_owned),
        }
    }

    /// Whether it gets its whole share.
    pub(crate) fn is_sound(&self) -> bool {
        self.reach == Reach::Up && self.back.is_none() && !self.slowness.is_slow()
    }

    /// Whether it has answered, or failed to, at least once.
    pub(crate) fn is_asked(&self) -> bool {
        self.reach != Reach::Unknown
    }

    /// Whether statements can be sent there.
    pub(crate) fn is_up(&self) -> bool {
        matches!(self.reach, Reach::Up | Reach::Doubted(..))
    }

    /// Why no more connections to it can be opened, though it serves.
    pub(crate) fn hindrance(&self) -> Option<&str> {
        self.hindrance.as_deref()
    }

    pub(crate) fn is_down(&self) -> bool {
        matches!(self.reach, Reach::Down(_))
    }

    /// Whether it may serve reads that other nodes could serve.
    pub(crate) fn serves(&self) -> bool {
        self.is_up() && !self.draining && self.lagging.is_none() && !self.is_diverged()
    }

    /// Whether its log is the primary's, as far as that is known.
    pub(crate) fn is_trusted(&self) -> bool {
        self.apart.is_none()
    }

    /// Notes that its log is not the primary's, and why; or that it is again.
    pub(crate) fn set_apart(&mut self, apart: Option<(Apart, Arc<str>)>) {
        self.apart = apart;
    }

    pub(crate) fn apart(&self) -> Option<&(Apart, Arc<str>)> {
        self.apart.as_ref()
    }

    fn is_diverged(&self) -> bool {
        matches!(self.apart, Some((Apart::Diverged, _)))
    }

    /// How much of its weight counts, from 0 (it serves only if nothing else can) to 1.
    pub(crate) fn share(&self, config: &HealthConfig, now: Instant) -> f64 {
        if matches!(self.reach, Reach::Doubted(..)) {
            return 0.0;
        }
        self.slowness.share(now) * self.grown(config, now)
    }

    /// How far its share has grown since it came back.
    fn grown(&self, config: &HealthConfig, now: Instant) -> f64 {
        let Some(back) = self.back else {
            return 1.0;
        };
        let since = now.saturating_duration_since(back);
        if since >= config.slow_start {
            return 1.0;
        }
        let part = since.as_secs_f64() / config.slow_start.as_secs_f64();
        LEAST + (1.0 - LEAST) * part
    }
}
