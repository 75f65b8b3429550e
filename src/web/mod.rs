//! Sessions of the web: what one request writes, the next one reads (feature `tower`).
//!
//! The session of a user is many requests, and each may reach another process. [`SessionLayer`] carries the session
//! from one to the next. It takes the token of the session from a cookie or a header, runs the request in the
//! session, and sends the new token with the response. Handlers do not change: the connections that they get from the
//! pool belong to the session.
//!
//! ```no_run
//! # #[cfg(feature = "axum")]
//! # fn example(pool: diesel_replicated::ReplicatedPool) -> axum::Router {
//! use axum::Router;
//! use axum::routing::{get, post};
//! use diesel_async::RunQueryDsl;
//! use diesel_replicated::web::{DatabaseConnection, SessionLayer};
//!
//! async fn visit(DatabaseConnection(mut conn): DatabaseConnection) {
//!     let visit = diesel::sql_query("INSERT INTO visits DEFAULT VALUES");
//!     let _ = visit.execute(&mut conn).await;
//! }
//!
//! async fn visits(DatabaseConnection(mut conn): DatabaseConnection) {
//!     // On a replica, and yet it counts the visit before.
//!     let count = diesel::sql_query("SELECT count(*) FROM visits");
//!     let _ = count.execute(&mut conn).await;
//! }
//!
//! Router::new()
//!     .route("/", get(visits).post(visit))
//!     .layer(SessionLayer::new(&pool))
//!     .with_state(pool)
//! # }
//! ```
//!
//! # What it cannot do
//!
//! - A write that a body makes comes after the headers, so the token does not cover it. Queries in a body still
//!   belong to the session. A handler that writes there can send [`Session::token`](crate::Session::token) as a part of
//!   the body. (A trailer would not help: browsers do not show trailers to pages, and many proxies drop them.)
//! - A client that goes away before the response gets no token. Its next request does not know what the lost one
//!   wrote.
//! - A client may send requests *at the same time*. The last response to arrive decides the cookie, and it may not
//!   cover what the others wrote. A client that keeps tokens itself can send them all (see [`SessionLayer::header`]).
//!   For others [`WriteScope::Pool`](crate::config::WriteScope::Pool), the default, helps if one process serves them.
//! - A task that a handler spawns is outside of the session. Give it the [`Session`](crate::Session)
//!   that is in the request's extensions.

mod body;
mod carrier;
mod cookie;
mod error;
#[cfg(feature = "axum")]
mod extract;
mod layer;
#[cfg(test)]
mod tests;

pub use ::cookie::SameSite;

pub use self::body::SessionBody;
pub use self::cookie::SessionCookie;
pub use self::error::InvalidCarrier;
#[cfg(feature = "axum")]
pub use self::extract::{ConnectionRejection, DatabaseConnection};
pub use self::layer::{SessionLayer, SessionService};
