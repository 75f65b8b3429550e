//! The spans of a statement: one for all of it, and one inside for each attempt on a node.
//!
//! Their names and fields are those of OpenTelemetry's
//! [conventions for database clients](https://opentelemetry.io/docs/specs/semconv/database/database-spans/), where it has
//! some. The level `DEBUG` of the target [`TARGET`] switches them on, and `TRACE` adds the text of the statement. Bind
//! values never appear.

use std::time::Duration;

use tracing::field::{Empty, display};
use tracing::{Level, Span, debug_span, enabled};

use super::execution::Execution;
use crate::error::{ErrorExt, SqlState};
use crate::node::Node;

/// The target of the spans.
pub(super) const TARGET: &str = "diesel_replicated::statement";

/// The words that stand for an operation. Others may be anything.
const OPERATIONS: [&str; 22] = [
    "SELECT",
    "INSERT",
    "UPDATE",
    "DELETE",
    "MERGE",
    "WITH",
    "VALUES",
    "BEGIN",
    "START",
    "COMMIT",
    "ROLLBACK",
    "SAVEPOINT",
    "RELEASE",
    "SET",
    "SHOW",
    "COPY",
    "CREATE",
    "ALTER",
    "DROP",
    "CALL",
    "TRUNCATE",
    "EXPLAIN",
];

/// Whether anybody looks at the spans.
pub(super) fn are_wanted() -> bool {
    enabled!(target: TARGET, Level::DEBUG)
}

/// The span of a statement.
pub(super) fn statement(sql: &str) -> Span {
    let span = debug_span!(
        target: TARGET,
        "statement",
        otel.kind = "client",
        otel.status_code = Empty,
        db.system.name = "postgresql",
        db.operation.name = operation(sql),
        db.query.text = Empty,
        db.response.status_code = Empty,
        error.r#type = Empty,
        node = Empty,
        kind = Empty,
        reason = Empty,
        would_be = Empty,
        position_wait = Empty,
    );
    if enabled!(target: TARGET, Level::TRACE) {
        span.record("db.query.text", sql);
    }
    span
}

/// The span of an attempt to run it on a node.
pub(super) fn attempt(node: &Node) -> Span {
    let (address, port) = node.pool.connector().settings.host.address();
    debug_span!(
        target: TARGET,
        "attempt",
        otel.status_code = Empty,
        server.address = address,
        server.port = port,
        node = node.name,
        db.response.status_code = Empty,
    )
}

/// Notes in the span of an attempt what the server said.
pub(super) fn attempt_failed(span: &Span, sqlstate: Option<SqlState>) {
    span.record("otel.status_code", "ERROR");
    if let Some(code) = sqlstate {
        span.record("db.response.status_code", code.as_str());
    }
}

/// Notes in the span of a statement where it went, and what the server said.
pub(super) fn went(span: &Span, execution: &Execution, node: Option<&Node>) {
    if let (Some(went), Some(node)) = (execution.went, node) {
        span.record("node", node.name.as_str());
        span.record("kind", display(went.kind));
        span.record("reason", went.reason.as_str());
        if let Some(ready) = went.held_back {
            span.record("would_be", if ready { "replica" } else { "primary" });
        }
    }
    if let Some(code) = execution.sqlstate {
        span.record("db.response.status_code", code.as_str());
    }
}

/// Notes in the span of a statement that it has failed.
pub(super) fn failed(span: &Span, error: &diesel::result::Error) {
    span.record("otel.status_code", "ERROR");
    span.record("error.type", error.outcome().as_str());
}

/// Notes how long a read has waited for a replica to show what it must see, in seconds.
pub(super) fn waited(span: &Span, time: Duration) {
    span.record("position_wait", time.as_secs_f64());
}

/// The first word of a statement, if it is one that is known.
fn operation(sql: &str) -> Option<&'static str> {
    let word = sql
        .trim_start()
        .split(|it: char| !it.is_ascii_alphabetic())
        .next()?;
    OPERATIONS
        .into_iter()
        .find(|known| known.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_is_a_word_that_is_known() {
        assert_eq!(operation("  select 1"), Some("SELECT"));
        assert_eq!(operation("COMMIT"), Some("COMMIT"));
        assert_eq!(operation("hunter2"), None);
        assert_eq!(operation("/* of a user */ SELECT 1"), None);
        assert_eq!(operation(""), None);
    }
}
