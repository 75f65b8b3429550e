//! The switch of the routing: which statements may move to replicas, set while the blog runs.

use std::fmt;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use diesel_replicated::Routing;
use serde::Serialize;

use super::demo::is_from_the_page;
use super::error::{ApiError, Error};
use super::routes::App;

/// A key of fewer characters is guessed.
const SHORTEST: usize = 16;

/// What opens the switch to whoever has it.
#[derive(Clone)]
pub(crate) struct Key(String);

/// Who may move the switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OpenTo {
    /// The servers are the demo's, and so is the risk.
    Page,
    /// An operator has set a key.
    Key,
}

impl Key {
    /// # Errors
    ///
    /// The text is too short, or cannot be sent in a header.
    pub(crate) fn new(text: &str) -> Result<Self, String> {
        let sendable = text.bytes().all(|byte| byte.is_ascii_graphic());
        if text.len() < SHORTEST || !sendable {
            return Err(format!(
                "it must have at least {SHORTEST} characters, and only letters, digits and signs of ASCII"
            ));
        }
        Ok(Self(text.to_owned()))
    }

    /// How long this takes tells nothing of the key but its length.
    fn is_in(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(header::AUTHORIZATION);
        let given = given.and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        given.is_some_and(|given| {
            let key = self.0.as_bytes();
            let pairs = given.iter().zip(key);
            let different = pairs.fold(0, |bits, (one, other)| bits | (one ^ other));
            given.len() == key.len() && different == 0
        })
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

impl OpenTo {
    /// `None`: there is no switch.
    pub(crate) fn of(app: &App) -> Option<Self> {
        match (&app.key, &app.demo) {
            (Some(_), _) => Some(Self::Key),
            (None, Some(_)) => Some(Self::Page),
            (None, None) => None,
        }
    }
}

pub(crate) fn routes(app: &App) -> Router<App> {
    Router::new()
        .route("/status/routing/{mode}", post(set))
        .layer(from_fn_with_state(app.clone(), guard))
}

/// Sets the mode: as in the text of [`Routing`].
async fn set(State(app): State<App>, Path(mode): Path<String>) -> Result<StatusCode, ApiError> {
    let mode: Routing = mode
        .parse()
        .map_err(|error| Error::NotFound(format!("`{mode}`: {error}")))?;
    app.pool
        .set_routing(mode)
        .map_err(|error| Error::Request(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(StatusCode::NO_CONTENT)
}

/// Whoever reaches the blog could take all reads from the replicas. So without a key only the demo has a switch.
async fn guard(State(app): State<App>, request: Request, next: Next) -> Response {
    let Some(key) = &app.key else {
        return is_from_the_page(request, next).await;
    };
    if key.is_in(request.headers()) {
        return next.run(request).await;
    }
    let message = "only with the key: `authorization: Bearer …`".to_owned();
    let refused = ApiError::from(Error::Request(StatusCode::UNAUTHORIZED, message));
    let how = [(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))];
    (how, refused).into_response()
}
