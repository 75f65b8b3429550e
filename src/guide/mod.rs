//! The guide: how to begin, and how to run it. Pages of text, no code.
//!
//! - [`getting_started`]: From nothing to a first query.
//! - [`connecting`]: TLS, passwords that change, each of libpq's parameters.
//! - [`providers`]: What to write for the servers that you have.
//! - [`coming_from`]: Coming from bb8, deadpool, mobc or r2d2.
//! - [`synchronous`]: Diesel without async: r2d2, threads, `web::block`.
//! - [`roll_out`]: Observing first, then turning it up.
//! - [`routing`]: Which statement goes where.
//! - [`consistency`]: What a read sees.
//! - [`places`]: Servers in several zones: reads that stay near.
//! - [`several_primaries`]: Writes in several places: groups of one primary each.
//! - [`failover`]: What happens when the primary changes.
//! - [`patroni`]: Under Patroni, with what was measured.
//! - [`pg_auto_failover`]: The same, under `pg_auto_failover`.
//! - [`operations`]: Running it: grants, limits, alerts.
//! - [`peers`]: What a row costs through this crate, and through what you would use instead.
//! - [`scale`]: How many connections, which policy, what many of anything take.
//! - [`terms`]: The words of this crate.

#[doc = include_str!("getting_started.md")]
pub mod getting_started {}

#[doc = include_str!("connecting.md")]
pub mod connecting {}

#[doc = include_str!("providers.md")]
pub mod providers {}

#[doc = include_str!("coming_from.md")]
pub mod coming_from {}

#[doc = include_str!("synchronous.md")]
pub mod synchronous {}

#[doc = include_str!("roll_out.md")]
pub mod roll_out {}

#[doc = include_str!("routing.md")]
pub mod routing {}

#[doc = include_str!("consistency.md")]
pub mod consistency {}

#[doc = include_str!("places.md")]
pub mod places {}

#[doc = include_str!("several_primaries.md")]
pub mod several_primaries {}

#[doc = include_str!("failover.md")]
pub mod failover {}

#[doc = include_str!("patroni.md")]
pub mod patroni {}

#[doc = include_str!("pg_auto_failover.md")]
pub mod pg_auto_failover {}

#[doc = include_str!("operations.md")]
pub mod operations {}

#[doc = include_str!("peers.md")]
/// ## Drawn
///
/// <div>
#[doc = include_str!("peers.svg")]
/// </div>
pub mod peers {}
#[doc = include_str!("scale.md")]
pub mod scale {}

#[doc = include_str!("terms.md")]
pub mod terms {}
