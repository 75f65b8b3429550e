//! The map of the application.

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRef, Request};
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use diesel_replicated::ReplicatedPool;
use diesel_replicated::testing::LocalCluster;
use diesel_replicated::web::{SessionCookie, SessionLayer};
use tokio::sync::watch;

use super::demo::{self, Demo};
use super::error::{ApiError, Error, PageError};
use super::served::{self, Log};
use super::switch::{self, Key};
use super::{api, live, metrics, pages};

/// Far above the longest post in any script, far below what could hurt.
const MAX_REQUEST: usize = 128 * 1024;

/// What every request needs.
#[derive(Clone, Debug)]
pub(crate) struct App {
    pub(crate) pool: ReplicatedPool,
    pub(crate) log: Log,
    /// Becomes true, or ends, when the application is to stop.
    pub(crate) stop: watch::Receiver<bool>,
    /// What can be done to the servers, where they are the application's own.
    pub(crate) demo: Option<Demo>,
    /// Who has it may move the switch of the routing.
    pub(crate) key: Option<Key>,
}

impl App {
    /// `own`: the servers and the database, where these are the application's own.
    pub(crate) fn new(
        pool: ReplicatedPool,
        own: Option<(&Arc<LocalCluster>, &str)>,
        stop: watch::Receiver<bool>,
    ) -> Self {
        Self {
            pool,
            log: Log::default(),
            stop,
            demo: own.map(|(cluster, database)| Demo::new(cluster, database)),
            key: None,
        }
    }

    /// Opens the switch of the routing to whoever has the key, and to nobody else.
    pub(crate) fn key(mut self, key: Option<Key>) -> Self {
        self.key = key;
        self
    }
}

/// Where handlers take their connections from.
impl FromRef<App> for ReplicatedPool {
    fn from_ref(app: &App) -> Self {
        app.pool.clone()
    }
}

/// The pages, the JSON endpoints, and what watches the nodes and, on a cluster of its own, breaks them.
pub(crate) fn router(app: App) -> Router {
    let mut watching = live::routes().route("/metrics", get(metrics::page));
    if app.demo.is_some() {
        watching = watching.merge(demo::routes());
    }
    if switch::OpenTo::of(&app).is_some() {
        watching = watching.merge(switch::routes(&app));
    }
    let watching = watching.method_not_allowed_fallback(not_allowed);
    blog(&app)
        .merge(watching)
        .layer(from_fn(guard))
        .with_state(app)
}

fn blog(app: &App) -> Router<App> {
    // The page after a redirect is another request with another connection. The cookie makes both
    // one session, so that people see what they have just written. This blog is served over plain
    // HTTP on the machine's own address; anywhere else leave the cookie `Secure`.
    let sessions = SessionLayer::new(&app.pool).cookie(SessionCookie::default().secure(false));
    Router::new()
        .route("/", get(pages::home))
        .route("/posts", post(pages::add_post))
        .route("/posts/{id}", get(pages::show_post))
        .route("/posts/{id}/comments", post(pages::add_comment))
        .route("/posts/{id}/status", post(pages::set_status))
        .route("/style.css", get(pages::style))
        .route("/api/posts", get(api::posts).post(api::add_post))
        .route("/api/posts/{id}", get(api::post).patch(api::set_status))
        .route("/api/posts/{id}/comments", post(api::add_comment))
        .route("/api/users", get(api::users))
        .route("/api/served", get(api::served))
        .fallback(not_found)
        .method_not_allowed_fallback(not_allowed)
        .layer(DefaultBodyLimit::max(MAX_REQUEST))
        .layer(from_fn_with_state(app.clone(), served::record))
        .layer(sessions)
}

async fn not_found(uri: Uri) -> Response {
    let error = Error::NotFound(format!("there is nothing at {}", uri.path()));
    refuse(&uri, error)
}

async fn not_allowed(method: Method, uri: Uri) -> Response {
    let message = format!("{method} is not possible at {}", uri.path());
    refuse(
        &uri,
        Error::Request(StatusCode::METHOD_NOT_ALLOWED, message),
    )
}

fn refuse(uri: &Uri, error: Error) -> Response {
    let programs = ["/api/", "/status/", "/healthz", "/metrics"];
    if programs.iter().any(|start| uri.path().starts_with(start)) {
        ApiError::from(error).into_response()
    } else {
        PageError::from(error).into_response()
    }
}

/// Forms of other sites cannot write here, and pages load nothing but their own style.
async fn guard(request: Request, next: Next) -> Response {
    let foreign = request
        .headers()
        .get("sec-fetch-site")
        .is_some_and(|site| site == "cross-site");
    let mut response = if foreign && !request.method().is_safe() {
        let message = "requests of other sites cannot change anything".to_owned();
        refuse(
            request.uri(),
            Error::Request(StatusCode::FORBIDDEN, message),
        )
    } else {
        next.run(request).await
    };
    for (name, value) in [
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'self'; img-src data:; form-action 'self'; \
             base-uri 'none'; frame-ancestors 'none'",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "same-origin"),
    ] {
        // Who needs more has said so.
        let headers = response.headers_mut();
        headers
            .entry(name)
            .or_insert(HeaderValue::from_static(value));
    }
    response
}
