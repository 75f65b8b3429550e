#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![deny(missing_docs)]
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod blocking;
mod classify;
mod cluster;
pub mod config;
pub mod connection;
mod consistency;
pub mod credentials;
mod deadline;
pub mod discovery;
mod election;
pub mod error;
mod groups;
pub mod guide;
mod health;
pub mod metrics;
mod node;
mod pool;
pub mod position;
mod route;
mod routing;
mod statement;
pub mod status;
#[cfg(all(feature = "testing", unix))]
#[cfg_attr(docsrs, doc(cfg(feature = "testing")))]
pub mod testing;
mod tls;
pub mod token;
#[cfg(feature = "tower")]
#[cfg_attr(docsrs, doc(cfg(feature = "tower")))]
pub mod web;
mod wire;

/// Several groups of one primary each: what comes with [`MultiPrimaryPool`].
pub mod multi_primary {
    pub use crate::groups::{Home, setup_sql};
    pub use crate::pool::{
        Direction, Finding, Forced, GroupStatus, LateWrite, Moved, MultiPrimaryBuilder,
        MultiPrimarySession, Survivor,
    };
}

/// How a node is chosen for a read.
pub mod policy {
    pub use crate::routing::{
        Candidate, LatencyAware, LeastInFlight, LoadBalancingPolicy, Nearest, RoundRobin,
        WeightedRandom,
    };
}

pub use config::{Config, Consistency, Durability, NodeConfig, RetryPolicy, Routing};
pub use connection::{ReplicatedConnection, SyncConnection};
pub use error::{Error, ErrorExt, Outcome};
pub use pool::{Builder, MultiPrimaryPool, ReplicatedPool, Session};
pub use position::PositionSource;
pub use route::Route;
#[cfg(feature = "rustls")]
#[cfg_attr(docsrs, doc(cfg(feature = "rustls")))]
pub use rustls;
pub use status::{Event, PoolStatus};
pub use token::SessionToken;
