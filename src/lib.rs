#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![deny(missing_docs)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod classify;
mod cluster;
mod config;
mod connection;
mod consistency;
mod deadline;
mod election;
mod error;
pub mod guide;
mod health;
mod node;
mod pool;
mod position;
mod route;
mod routing;
mod statement;
mod status;
#[cfg(all(feature = "testing", unix))]
pub mod testing;
mod token;
#[cfg(feature = "tower")]
pub mod web;
mod wire;

pub use config::{
    COMMIT_MARKER_SQL, CommitResolution, Config, ConfigError, ConfigErrors, Consistency,
    ConsistencyConfig, DeclaredRole, Durability, FunctionConfig, HealthConfig, InvalidConsistency,
    NodeConfig, Policy, PoolConfig, PoolOverrides, Primary, Replica, RetryPolicy, UrlProblem,
    WriteScope,
};
pub use connection::{
    CancelToken, Replicas, ReplicatedConnection, Replication, RowStream, Scope, TransactionBuilder,
};
pub use consistency::Stage;
pub use error::{
    ConnectError, ConnectErrorKind, Error, ErrorExt, InvalidSqlState, Outcome, SqlState,
};
pub use pool::{Builder, ReplicatedPool, Session};
pub use position::{InvalidLsn, Lsn, Position};
pub use route::{NodeKind, Route, RouteReason};
pub use routing::{Candidate, LeastInFlight, LoadBalancingPolicy, RoundRobin, WeightedRandom};
pub use status::{
    Degradation, Degraded, Event, Events, LastRefusal, LearnedStatement, Limit, NodeHealth,
    NodeStatus, PoolStatus, PromotionStatus, Transition,
};
pub use token::{InvalidToken, SessionToken};
#[cfg(feature = "signed")]
pub use token::{TokenKeys, WeakKey};
#[cfg(feature = "promotion")]
#[cfg_attr(docsrs, doc(cfg(feature = "promotion")))]
pub use {config::PromotionConfig, error::PromotionRefusal, status::Promoted};
