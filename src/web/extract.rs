//! The extractor that gives an axum handler its connection.

use std::fmt;
use std::ops::{Deref, DerefMut};

use axum_core::extract::{FromRef, FromRequestParts};
use axum_core::response::{IntoResponse, Response};
use http::StatusCode;
use http::request::Parts;

use crate::connection::ReplicatedConnection;
use crate::error::Error;
use crate::pool::ReplicatedPool;

/// The connection of an axum handler, from the pool in the application's state.
///
/// Below a [`SessionLayer`](super::SessionLayer) it belongs to the session of the client. Extracting it touches no
/// server and does not wait. A handler may take several.
///
/// ```
/// use diesel::QueryResult;
/// use diesel_async::RunQueryDsl;
/// use diesel_replicated::{ReplicatedConnection, web::DatabaseConnection};
///
/// async fn handler(DatabaseConnection(mut conn): DatabaseConnection) {
///     let _ = visit(&mut conn).await;
/// }
///
/// async fn visit(conn: &mut ReplicatedConnection) -> QueryResult<usize> {
///     diesel::sql_query("INSERT INTO visits DEFAULT VALUES").execute(conn).await
/// }
/// ```
///
/// If the state holds more than the pool, implement `FromRef`:
///
/// ```
/// use axum::extract::FromRef;
/// use diesel_replicated::ReplicatedPool;
///
/// #[derive(Clone)]
/// struct App {
///     pool: ReplicatedPool,
/// }
///
/// impl FromRef<App> for ReplicatedPool {
///     fn from_ref(app: &App) -> Self {
///         app.pool.clone()
///     }
/// }
/// ```
#[derive(Debug)]
pub struct DatabaseConnection(pub ReplicatedConnection);

impl Deref for DatabaseConnection {
    type Target = ReplicatedConnection;

    fn deref(&self) -> &ReplicatedConnection {
        &self.0
    }
}

impl DerefMut for DatabaseConnection {
    fn deref_mut(&mut self) -> &mut ReplicatedConnection {
        &mut self.0
    }
}

impl<S> FromRequestParts<S> for DatabaseConnection
where
    S: Send + Sync,
    ReplicatedPool: FromRef<S>,
{
    type Rejection = ConnectionRejection;

    async fn from_request_parts(_: &mut Parts, state: &S) -> Result<Self, ConnectionRejection> {
        let conn = ReplicatedPool::from_ref(state).get().await;
        conn.map(Self).map_err(ConnectionRejection)
    }
}

/// Why there is no [`DatabaseConnection`]: the pool was closed. As a response, `503 Service Unavailable`.
///
/// For another response, take `Result<DatabaseConnection, ConnectionRejection>`.
#[derive(Clone, Debug)]
pub struct ConnectionRejection(Error);

impl ConnectionRejection {
    /// The failure of the pool.
    #[must_use]
    pub fn into_inner(self) -> Error {
        self.0
    }

    /// The status of the response.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        StatusCode::SERVICE_UNAVAILABLE
    }

    /// The text of the response.
    #[must_use]
    pub fn body_text(&self) -> String {
        self.to_string()
    }
}

impl fmt::Display for ConnectionRejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no connection to the database: {}", self.0)
    }
}

impl std::error::Error for ConnectionRejection {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

impl IntoResponse for ConnectionRejection {
    fn into_response(self) -> Response {
        (self.status(), self.body_text()).into_response()
    }
}
