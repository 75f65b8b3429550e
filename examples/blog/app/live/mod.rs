//! How the nodes are: for those who check, for programs, and as a page that keeps itself up to date.

mod page;
mod stream;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use diesel_replicated::{Error, PoolStatus};
use serde::Serialize;
use serde_json::json;

use super::demo::Scene;
use super::routes::App;
use super::served::{Counters, Waits};
use super::switch::OpenTo;

/// How long the nodes may take to answer a check.
const LIMIT: Duration = Duration::from_secs(2);

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/status", get(status))
        .route("/status/events", get(stream::events))
        .route("/status/live", get(page::page))
        .route("/status/live/{file}", get(page::file))
}

/// Everything that is known at one moment.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Snapshot {
    pool: PoolStatus,
    /// What each node has served for this application since its start.
    served: Counters,
    /// How its reads have waited for replicas.
    waits: Waits,
    /// The servers themselves, where they are the application's own.
    demo: Option<Scene>,
    /// Who may move the switch of the routing, if there is one.
    switch: Option<OpenTo>,
}

impl Snapshot {
    fn take(app: &App) -> Self {
        let (served, waits) = app.log.counters();
        Self {
            pool: app.pool.status(),
            served,
            waits,
            demo: app.demo.as_ref().map(|demo| demo.scene()),
            switch: OpenTo::of(app),
        }
    }
}

/// Whether the application can do its work: 200 if something can be written, else 503 with what is
/// impossible. With `?reads` it is enough that something can be read: for a load balancer that
/// should go on sending readers here while the cluster has no primary.
async fn healthz(
    State(app): State<App>,
    Query(options): Query<BTreeMap<String, String>>,
) -> Response {
    let (writes, reads, nodes) = match app.pool.check(LIMIT).await {
        Ok(status) => (true, status.takes_reads, Vec::new()),
        Err(Error::NotReady { reads, nodes, .. }) => (false, reads, nodes),
        Err(other) => (false, false, vec![other.to_string()]),
    };
    let enough = writes || reads && options.contains_key("reads");
    // A pool that was closed gives no connection, whatever the nodes could do.
    let status = match enough && !app.pool.is_closed() {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    let body = json!({ "writes": writes, "reads": reads, "nodes": nodes });
    (status, fresh(Json(body))).into_response()
}

/// The nodes and what they have served; it asks none of them.
async fn status(State(app): State<App>) -> impl IntoResponse {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    // Milliseconds since 1970, as the times in the pool's status.
    let at = u64::try_from(now.unwrap_or_default().as_millis()).unwrap_or(u64::MAX);
    let mut status = json!(Snapshot::take(&app));
    status["at"] = json!(at);
    fresh(Json(status))
}

fn fresh(body: impl IntoResponse) -> impl IntoResponse {
    ([(header::CACHE_CONTROL, "no-store")], body)
}
