//! What the world does to a pool: one small test for each situation, named by the situation.
//!
//! Each comes from a public report where there is one; the comment before it names project and number.
#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::large_futures,
    clippy::too_many_lines,
    clippy::print_stderr,
    missing_debug_implementations,
    dead_code,
    unreachable_pub,
    reason = "a program of tests, which fail by panicking; its helpers are those of the program `it`"
)]

mod answers;
mod balancer;
mod connections;
mod errors;
mod foreseen;
mod history;
mod names;
mod outages_fence;
mod outages_promotion;
mod outages_quorum;
mod outages_reads;
mod places;
mod poisoned;
mod standbys;
mod state;
mod state_code;
mod statements;
#[path = "../it/support.rs"]
mod support;
mod synchronous;
mod tagged;
mod told;
mod turns;
mod unready;
mod waits;
mod waits_on_server;
mod writes;
mod writes_asynchronous;
mod writes_lost;
