//! Several groups of one primary each, on real servers with logical replication in both directions (PostgreSQL 16 or
//! later).
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod history;
mod homes;
mod support;
