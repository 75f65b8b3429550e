//! The spans of a statement: one for all of it, and inside one for each attempt on a node, and one for each wait for a
//! connection.
//!
//! Their names and fields are those of OpenTelemetry's
//! [conventions for database clients](https://opentelemetry.io/docs/specs/semconv/database/database-spans/), where it has
//! some. The level `DEBUG` of the target [`TARGET`] switches them on, and `TRACE` adds the text of the statement. Bind
//! values never appear.
//!
//! Nothing here asks whether a level is enabled. An answer would stay with the filters of single layers, and they would
//! take it for the next event of the application. A span is made, and it says itself whether it is disabled.

use std::cell::Cell;
use std::fmt;
use std::time::Duration;

use tracing::field::{Empty, display};
use tracing::level_filters::LevelFilter;
use tracing::{Span, debug_span, trace_span};

use crate::error::{ErrorExt, SqlState};
use crate::metrics::Route as Went;
use crate::node::Node;

/// The target of the spans.
const TARGET: &str = "diesel_replicated::statement";

/// The type of the error if nobody waited for the end.
const CANCELLED: &str = "cancelled";

/// The type of an error that has no code. The conventions call it so.
const OTHER: &str = "_OTHER";

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

/// The spans of a statement. They are at their end when this is dropped, and all copies of them.
#[derive(Debug)]
pub(super) struct Spans {
    statement: Span,
    /// None between two attempts.
    attempt: Span,
}

impl Spans {
    pub(super) fn of(statement: Span) -> Self {
        Self {
            statement,
            attempt: Span::none(),
        }
    }

    /// An attempt to run it on a node begins.
    pub(super) fn attempts(&mut self, node: &Node) -> Span {
        self.attempt = attempt(node);
        self.attempt.clone()
    }

    /// The attempt is at its end.
    pub(super) fn attempted(&mut self) {
        self.attempt = Span::none();
    }

    /// Notes where the statement goes.
    pub(super) fn goes(&self, went: Went, node: &Node) {
        let span = &self.statement;
        span.record("node", node.name.as_str());
        span.record("kind", display(went.kind));
        span.record("reason", went.reason.as_str());
        if let Some(ready) = went.held_back {
            span.record("would_be", if ready { "replica" } else { "primary" });
        }
    }

    /// Notes how long a read has waited for a replica to show what it must see, in seconds.
    pub(super) fn waited(&self, time: Duration) {
        self.statement.record("position_wait", time.as_secs_f64());
    }

    /// Notes what the server said of a statement that has failed.
    pub(super) fn refused(&self, sqlstate: Option<SqlState>) {
        if let Some(code) = sqlstate {
            let span = &self.statement;
            span.record("db.response.status_code", code.as_str());
        }
    }

    /// Notes that the statement has failed after its first row.
    pub(super) fn broke_off(&self, sqlstate: Option<SqlState>, error: &diesel::result::Error) {
        attempt_failed(&self.attempt, sqlstate);
        self.refused(sqlstate);
        failed(&self.statement, error);
    }
}

/// A span that is told how it ends. If it is not, then whoever waited for the end has gone.
#[derive(Debug)]
pub(super) struct Awaited(Span);

impl Awaited {
    pub(super) fn new(span: &Span) -> Self {
        Self(span.clone())
    }

    pub(super) fn ended(mut self) {
        self.0 = Span::none();
    }
}

impl Drop for Awaited {
    fn drop(&mut self) {
        // A subscriber that panics must not do it twice.
        if !std::thread::panicking() {
            failed_by(&self.0, CANCELLED);
        }
    }
}

/// The span of a statement, if anybody may look at it.
pub(super) fn statement(sql: &str) -> Option<Span> {
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
    if span.is_disabled() {
        return None;
    }
    if LevelFilter::current() >= LevelFilter::TRACE {
        show_text(&span, sql);
    }
    Some(span)
}

/// Notes the text in the span of a statement, if anybody asks for it.
///
/// Whether a span is disabled does not tell that: with filters of single layers it may be there for nobody. So the text
/// is handed out in a span of its own, and is noted if anybody has read it there.
fn show_text(span: &Span, sql: &str) {
    let text = Text {
        sql,
        is_read: Cell::new(false),
    };
    // Filters may ask for all that is inside of a statement.
    span.in_scope(|| {
        trace_span!(target: TARGET, "statement_text", db.query.text = ?text);
    });
    if text.is_read.get() {
        span.record("db.query.text", sql);
    }
}

/// The text of a statement. It knows whether anybody has read it.
struct Text<'a> {
    sql: &'a str,
    is_read: Cell<bool>,
}

impl fmt::Debug for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.is_read.set(true);
        f.write_str(self.sql)
    }
}

/// A span of this name for what is done on a node. The address is looked up only for a span that is there.
macro_rules! span_on {
    ($name:literal, $node:expr) => {
        debug_span!(
            target: TARGET,
            $name,
            otel.status_code = Empty,
            server.address = $node.pool.connector().settings.host.address().0,
            server.port = $node.pool.connector().settings.host.address().1,
            node = $node.name,
            db.response.status_code = Empty,
            error.r#type = Empty,
        )
    };
}

/// The span of an attempt to run a statement on a node.
fn attempt(node: &Node) -> Span {
    span_on!("attempt", node)
}

/// The span of the wait for a connection of a node, which may have to be opened. It is inside of the running statement's.
pub(super) fn connect(node: &Node) -> Span {
    span_on!("connect", node)
}

/// Notes in the span of an attempt what the server said.
pub(super) fn attempt_failed(span: &Span, sqlstate: Option<SqlState>) {
    if let Some(code) = sqlstate {
        span.record("db.response.status_code", code.as_str());
    }
    failed_by(span, sqlstate.as_ref().map_or(OTHER, SqlState::as_str));
}

/// Notes in the span of a statement that it has failed.
pub(super) fn failed(span: &Span, error: &diesel::result::Error) {
    failed_by(span, error.outcome().as_str());
}

fn failed_by(span: &Span, cause: &str) {
    span.record("otel.status_code", "ERROR");
    span.record("error.type", cause);
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
