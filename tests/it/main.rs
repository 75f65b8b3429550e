//! Tests against a real PostgreSQL cluster. Which node ran a statement is asked of the server.
#![expect(
    clippy::unwrap_used,
    clippy::too_many_lines,
    clippy::type_complexity,
    missing_debug_implementations,
    unreachable_pub,
    reason = "a program of tests, which fail by panicking"
)]

mod cancellation;
mod checkout;
mod commits;
mod consistency;
mod custom_types;
mod differential;
mod durability;
mod failover;
mod failures;
mod health;
mod instrumentation;
mod learning;
mod lifecycle;
mod lost;
mod matrix;
mod notifications;
mod pause;
mod pools;
mod promotion;
mod property;
mod retry;
mod routing;
mod routing_modes;
mod runtimes;
mod spans;
mod standbys;
mod status;
mod streams;
mod support;
mod switchover;
mod sync_wrapper;
mod tasks;
mod tokens;
mod transactions;
mod web;
