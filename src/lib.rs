//! A connection pool for Diesel over one PostgreSQL primary and its streaming replicas.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod classify;
mod cluster;
mod config;
mod connection;
mod error;
mod node;
mod pool;
mod routing;
mod statement;
#[cfg(all(feature = "testing", unix))]
pub mod testing;
mod wire;

pub use config::{
    Config, DeclaredRole, FunctionConfig, NodeConfig, Policy, PoolConfig, PoolOverrides, Primary,
    Replica,
};
pub use connection::{
    CancelToken, ReplicatedConnection, Route, RowStream, Scope, TransactionBuilder,
};
pub use error::*;
pub use pool::{Builder, NodeHealth, NodeState, PoolState, ReplicatedPool};
pub use routing::{
    Candidate, LeastInFlight, LoadBalancingPolicy, NodeKind, RoundRobin, RouteReason,
    WeightedRandom,
};
