//! Connecting to the PostgreSQL that people really have: TLS, changing passwords, parameters, names over several servers,
//! poolers in between. One small test for each situation, named by the situation.
//!
//! Each comes from a public report where there is one; the comment before it names project and number.
#![allow(
    clippy::allow_attributes,
    clippy::panic,
    clippy::unwrap_used,
    clippy::large_futures,
    clippy::too_many_lines,
    missing_debug_implementations,
    dead_code,
    unreachable_pub,
    reason = "a program of tests, which fail by panicking; its helpers are those of the program `it`"
)]

mod at_run_time;
#[path = "../world/balancer.rs"]
mod balancer;
mod credentials;
mod discovery;
mod endpoints;
mod gentle;
mod middleman;
mod mute;
mod patroni;
mod pooler;
mod poolers;
mod srv;
#[path = "../it/support.rs"]
mod support;
mod tls;
mod tls_certificates;
mod unprivileged;
