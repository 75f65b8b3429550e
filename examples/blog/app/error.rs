//! Everything that can go wrong with a request, and what the client is told.

use axum::Json;
use axum::extract::rejection::{FormRejection, JsonRejection, QueryRejection};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel_replicated::web::ConnectionRejection;
use diesel_replicated::{ErrorExt, Outcome};
use serde::Serialize;
use serde_json::json;

use super::markup;

/// A field that cannot be accepted as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Mistake {
    pub(crate) field: &'static str,
    pub(crate) message: String,
}

#[derive(Debug)]
pub(crate) enum Error {
    /// The request cannot be understood.
    Request(StatusCode, String),
    /// It can, but what it asks for is not acceptable; every mistake is listed.
    Invalid(Vec<Mistake>),
    NotFound(String),
    /// The state of things does not allow it.
    Conflict(String),
    /// The statement failed.
    Database(DieselError),
    /// The pool gave no connection.
    Pool(diesel_replicated::Error),
}

impl Error {
    pub(crate) fn no_post(id: i64) -> Self {
        Self::NotFound(format!("there is no post {id}"))
    }

    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Request(status, _) => *status,
            Self::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::Conflict(_) => StatusCode::CONFLICT,
            Self::Database(DieselError::DatabaseError(..)) | Self::Pool(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Database(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    pub(crate) fn message(&self) -> String {
        match self {
            Self::Request(_, message) | Self::NotFound(message) | Self::Conflict(message) => {
                message.clone()
            }
            Self::Invalid(mistakes) => {
                let list: Vec<String> = mistakes
                    .iter()
                    .map(|mistake| format!("{}: {}", mistake.field, mistake.message))
                    .collect();
                list.join("; ")
            }
            // Neither carries a password.
            Self::Database(error) => format!("the database cannot do this now: {error}"),
            Self::Pool(error) => format!("no connection to the database: {error}"),
        }
    }

    /// Whether the change was made, where a failure leaves that open to question.
    pub(crate) fn outcome(&self) -> Option<&'static str> {
        let outcome = match self {
            Self::Database(error) => error.outcome(),
            Self::Pool(error) => error.outcome(),
            _ => return None,
        };
        Some(match outcome {
            Outcome::NotRun | Outcome::Failed => "nothing was changed; try again",
            Outcome::Unknown => "it may have been saved; look before you try again",
        })
    }

    fn logged(self) -> Self {
        if self.status().is_server_error() {
            tracing::error!("request failed: {}", self.message());
        }
        self
    }
}

impl From<DieselError> for Error {
    fn from(error: DieselError) -> Self {
        if let DieselError::DatabaseError(DatabaseErrorKind::ForeignKeyViolation, details) = &error
        {
            // The rest of the row was checked before; what it refers to only the database knows.
            return match details.constraint_name() {
                Some("comments_post_id_fkey") => Self::NotFound("there is no such post".to_owned()),
                _ => Self::Invalid(vec![Mistake {
                    field: "author_id",
                    message: "there is no such user".to_owned(),
                }]),
            };
        }
        Self::Database(error)
    }
}

impl From<ConnectionRejection> for Error {
    fn from(rejection: ConnectionRejection) -> Self {
        Self::Pool(rejection.into_inner())
    }
}

/// What axum could not read.
macro_rules! from_rejection {
    ($($rejection:ty),*) => {$(
        impl From<$rejection> for Error {
            fn from(rejection: $rejection) -> Self {
                Self::Request(rejection.status(), rejection.body_text())
            }
        }
    )*};
}

from_rejection!(JsonRejection, FormRejection, QueryRejection);

/// An error as JSON.
#[derive(Debug)]
pub(crate) struct ApiError(Error);

impl<E: Into<Error>> From<E> for ApiError {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let error = self.0.logged();
        let mut body = json!({ "error": error.message() });
        if let Error::Invalid(mistakes) = &error {
            body["fields"] = json!(mistakes);
        }
        if let Some(outcome) = error.outcome() {
            body["outcome"] = json!(outcome);
        }
        retry_later((error.status(), Json(body)).into_response())
    }
}

/// An error as a page.
#[derive(Debug)]
pub(crate) struct PageError(Error);

impl<E: Into<Error>> From<E> for PageError {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for PageError {
    fn into_response(self) -> Response {
        let error = self.0.logged();
        retry_later((error.status(), markup::failure(&error)).into_response())
    }
}

fn retry_later(mut response: Response) -> Response {
    if response.status() == StatusCode::SERVICE_UNAVAILABLE {
        let soon = header::HeaderValue::from_static("1");
        response.headers_mut().insert(header::RETRY_AFTER, soon);
    }
    response
}
