//! What is measured, and under which names: for the recorder of the `metrics` facade, if there is one.
//!
//! Names and units of what every client has are those of OpenTelemetry's
//! [conventions for database clients](https://opentelemetry.io/docs/specs/semconv/database/database-metrics/). Nothing is
//! looked at while nobody records. Each label has few values: names of nodes, words of this crate, SQLSTATEs.
//!
//! Install the recorder in `main`. A recorder without fields counts as none, and one that is installed for a thread alone may be
//! missed. With an exporter for Prometheus:
//!
//! ```
//! # fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use diesel_replicated::metrics::BUCKETS;
//! use metrics_exporter_prometheus::PrometheusBuilder;
//!
//! let handle = PrometheusBuilder::new()
//!     .set_buckets(&BUCKETS)?
//!     .install_recorder()?;
//! let page: String = handle.render();
//! # Ok(())
//! # }
//! ```
//!
//! [`INSTRUMENTS`] lists them all. `examples/monitoring` has a dashboard for Grafana and alerts for Prometheus that rest on
//! them; [operations](crate::guide::operations#what-to-alert-on) tells what to do.

mod instruments;
#[cfg(feature = "metrics")]
mod recorded;
#[cfg(not(feature = "metrics"))]
mod silent;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

pub use instruments::{BUCKETS, INSTRUMENTS, Instrument, InstrumentKind};
#[cfg(feature = "metrics")]
pub(crate) use recorded::{
    NodeMeter, Pending, direction, event, failed, far, home_moved, is_recording, pool, writes_go_on,
};
#[cfg(not(feature = "metrics"))]
pub(crate) use silent::{
    NodeMeter, Pending, direction, event, failed, far, home_moved, is_recording, pool, writes_go_on,
};

#[cfg(all(feature = "metrics", feature = "tower"))]
pub(crate) use recorded::token_refused;
#[cfg(all(not(feature = "metrics"), feature = "tower"))]
pub(crate) use silent::token_refused;

use crate::route::{NodeKind, RouteReason};

/// The time, if anybody records.
pub(crate) fn clock() -> Option<Instant> {
    is_recording().then(Instant::now)
}

/// Where a statement went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) kind: NodeKind,
    pub(crate) reason: RouteReason,
    /// The pool's routing has kept it on the primary: whether a replica was ready.
    pub(crate) held_back: Option<bool>,
}

/// How a node is.
#[cfg_attr(not(feature = "metrics"), expect(dead_code, reason = "nobody records"))]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct NodeState {
    pub(crate) up: bool,
    pub(crate) is_replica: bool,
    pub(crate) serves_reads: bool,
    pub(crate) serves_writes: bool,
    /// Nothing is to be read there.
    pub(crate) no_reads: bool,
    /// It takes writes and is not the primary.
    pub(crate) stray_primary: bool,
    pub(crate) lag_bytes: Option<u64>,
    pub(crate) lag: Option<Duration>,
    pub(crate) connections: u32,
    pub(crate) idle: u32,
    pub(crate) max_size: u32,
    /// Connections that serve reads which other nodes should have served, and how many may.
    pub(crate) fallback: usize,
    pub(crate) fallback_limit: usize,
}

/// How a pool is.
#[cfg_attr(not(feature = "metrics"), expect(dead_code, reason = "nobody records"))]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PoolState {
    pub(crate) takes_writes: bool,
    pub(crate) takes_reads: bool,
    pub(crate) learned: usize,
    pub(crate) degradations: usize,
}

/// How what one group gets from another stands.
#[cfg_attr(not(feature = "metrics"), expect(dead_code, reason = "nobody records"))]
#[derive(Clone, Copy, Debug)]
pub(crate) struct DirectionState<'a> {
    pub(crate) applies: bool,
    pub(crate) lag: Option<Duration>,
    pub(crate) lag_bytes: Option<u64>,
    /// How many times the worker has failed.
    pub(crate) errors: u64,
    pub(crate) conflicts: &'a BTreeMap<String, u64>,
}
