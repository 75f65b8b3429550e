//! Sessions of the web: what one request writes, the next one reads (feature `tower`).
//!
//! A user's session is many requests, and each of them may meet another process. [`SessionLayer`]
//! lets it go on from one to the next: it takes the session's token from a cookie or a header, runs
//! the request within the session, and sends the new token along with the answer where the session
//! has got further. Handlers stay as they are: what they get from the pool belongs to the session.
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
//! - What is written while the body of an answer is under way comes after the headers, and so is
//!   not told. Queries in a body still belong to the session. A handler that writes there
//!   sends what [`Session::token`](crate::Session::token) says then as a part of the body. (There
//!   is no trailer: browsers do not show them to pages, and many proxies drop them.)
//! - A client that goes away before the answer gets no token. What its request wrote until then is
//!   unknown to its next one, as it is to the client.
//! - Of the answers to requests that one client sends *at the same time*, the last to arrive decides
//!   what its cookie says, and that may not cover what the others wrote. A client that keeps
//!   tokens itself (see [`SessionLayer::header`]) can send them all. For others
//!   [`WriteScope::Pool`](crate::config::WriteScope::Pool), the default, helps where one process serves them.
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
