//! The nodes of one cluster as all its connections share them; where control and data meet.
//!
//! Connections only read the published [`Topology`]; the [`manager`] alone writes it.

mod catalog_loader;
mod checkout_tracker;
mod command;
mod degradation;
mod gauges;
mod handle;
mod health_check;
mod identity;
mod lag;
mod lineage;
mod liveness;
mod manager;
mod marks;
mod member;
mod monitor;
mod node_maker;
mod of_process;
mod oid_cache;
#[cfg(feature = "promotion")]
mod promotion;
mod registry;
mod rewind;
mod runtime;
mod start;
mod survivors;
mod tally;
mod topology;
mod transitions;

pub(crate) use checkout_tracker::Permit;
pub(crate) use degradation::degraded;
pub(crate) use handle::{Cluster, Options};
pub(crate) use lag::lag;
pub(crate) use member::Member;
#[cfg(feature = "promotion")]
pub(crate) use promotion::PromotionRequest;
pub(crate) use registry::shared;
pub(crate) use rewind::remedy;
pub(crate) use runtime::background;
pub(crate) use start::{options, started};
pub(crate) use tally::Kept;
pub(crate) use topology::{Gate, Purpose, Topology};
