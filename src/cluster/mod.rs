//! The nodes of one cluster as all its connections share them; where control and data meet.
//!
//! Connections only read the published [`Topology`]; the [`manager`] alone writes it.

mod catalog_loader;
mod command;
mod degraded;
mod handle;
mod health_check;
mod identity;
mod lineage;
mod maker;
mod manager;
mod marks;
mod measure;
mod member;
mod monitor;
mod oids;
#[cfg(feature = "promotion")]
mod promotion;
mod pulse;
mod registry;
mod runtime;
mod start;
mod succession;
mod topology;
mod tracker;

pub(crate) use degraded::degraded;
pub(crate) use handle::{Cluster, Options};
pub(crate) use measure::lag;
pub(crate) use member::Member;
#[cfg(feature = "promotion")]
pub(crate) use promotion::Order;
pub(crate) use registry::shared;
pub(crate) use start::{options, started};
pub(crate) use topology::{Gate, Purpose, Topology};
pub(crate) use tracker::Permit;
