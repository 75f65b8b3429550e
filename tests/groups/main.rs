//! Several groups of one primary each, on real servers with logical replication in both directions (PostgreSQL 16 or
//! later).
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    unreachable_pub,
    reason = "a program of tests, which fail by panicking"
)]

mod found;
mod history;
mod homes;
mod moves;
mod outages;
mod support;
mod trips;
