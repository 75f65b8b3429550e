//! The rows of one statement, which hold their server connection until the last one.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};

use diesel::QueryResult;
use diesel_async::{AsyncConnectionCore, AsyncPgConnection};
use futures_core::Stream;

use super::failure::lost;
use crate::cluster::Cluster;
use crate::error::Outcome;
use crate::node::Use;
use crate::statement::Rows;

/// A row as diesel-async's PostgreSQL connection gives it.
pub(super) type Row = <AsyncPgConnection as AsyncConnectionCore>::Row<'static, 'static>;

/// The rows of one statement.
///
/// The server connection stays with the stream until its end, or until it is dropped.
pub struct RowStream {
    first: Option<Row>,
    rows: Option<Rows>,
    using: Option<Use>,
    cluster: Weak<Cluster>,
    outcome_if_lost: Outcome,
}

impl RowStream {
    pub(super) fn new(first: Option<Row>, rows: Rows, using: Use) -> Self {
        // Without a first row the statement is at its end.
        let more = first.is_some();
        Self {
            first,
            rows: more.then_some(rows),
            using: more.then_some(using),
            cluster: Weak::new(),
            outcome_if_lost: Outcome::Unknown,
        }
    }

    /// Whom to tell of a connection that breaks while rows are read, and what to tell the caller.
    pub(super) fn reporting_to(mut self, cluster: &Arc<Cluster>, outcome_if_lost: Outcome) -> Self {
        self.cluster = Arc::downgrade(cluster);
        self.outcome_if_lost = outcome_if_lost;
        self
    }

    fn end(&mut self) {
        self.rows = None;
        self.using = None;
    }
}

/// No rows.
impl Default for RowStream {
    fn default() -> Self {
        Self {
            first: None,
            rows: None,
            using: None,
            cluster: Weak::new(),
            outcome_if_lost: Outcome::Unknown,
        }
    }
}

impl Stream for RowStream {
    type Item = QueryResult<Row>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        let Some(rows) = &mut self.rows else {
            return Poll::Ready(None);
        };
        match ready!(rows.as_mut().poll_next(cx)) {
            Some(Ok(row)) => Poll::Ready(Some(Ok(row))),
            Some(Err(error)) => {
                let error = match &self.using {
                    Some(using) => {
                        let failure = using.lease().diagnose(&error);
                        let outcome = self.outcome_if_lost;
                        lost(&self.cluster, using.lease(), &failure, outcome).unwrap_or(error)
                    }
                    None => error,
                };
                self.end();
                Poll::Ready(Some(Err(error)))
            }
            None => {
                self.end();
                Poll::Ready(None)
            }
        }
    }
}

impl fmt::Debug for RowStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RowStream")
            .field("using", &self.using)
            .finish_non_exhaustive()
    }
}
