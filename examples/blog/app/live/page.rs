//! The page of the nodes: files that are part of the program, and load nothing from elsewhere.

use axum::extract::Path;
use axum::http::{Uri, header};
use axum::response::{Html, IntoResponse, Response};

use super::super::error::{ApiError, Error};

/// Beyond what the other pages may do, this one runs the blog's own scripts and asks the blog.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; \
     img-src data:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'";

const SCRIPT: &str = "text/javascript; charset=utf-8";

/// Name, type and text of each file.
const FILES: [(&str, &str, &str); 8] = [
    (
        "live.css",
        "text/css; charset=utf-8",
        include_str!("live.css"),
    ),
    ("live.js", SCRIPT, include_str!("live.js")),
    ("nodes.js", SCRIPT, include_str!("nodes.js")),
    ("lines.js", SCRIPT, include_str!("lines.js")),
    ("words.js", SCRIPT, include_str!("words.js")),
    ("charts.js", SCRIPT, include_str!("charts.js")),
    ("story.js", SCRIPT, include_str!("story.js")),
    ("demo.js", SCRIPT, include_str!("demo.js")),
];

pub(super) async fn page() -> impl IntoResponse {
    let policy = [(header::CONTENT_SECURITY_POLICY, POLICY)];
    (policy, Html(include_str!("live.html")))
}

pub(super) async fn file(Path(name): Path<String>, uri: Uri) -> Result<Response, ApiError> {
    let found = FILES.iter().find(|(file, _, _)| *file == name);
    let (_, kind, text) =
        found.ok_or_else(|| Error::NotFound(format!("there is nothing at {}", uri.path())))?;
    Ok(([(header::CONTENT_TYPE, *kind)], *text).into_response())
}
