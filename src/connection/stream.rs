//! The rows of one statement. They hold their server connection until the last row.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use diesel::QueryResult;
use diesel_async::{AsyncConnectionCore, AsyncPgConnection};
use futures_core::Stream;
use futures_util::stream::{self, StreamExt};

use super::report::{Report, lost};
use crate::error::{ErrorExt, SqlState};
use crate::metrics;
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
    /// `None` at the end. A stream that is dropped early has not failed: that is how one row is read.
    report: Option<Report>,
}

impl RowStream {
    pub(super) fn new(first: Option<Row>, rows: Rows, using: Use) -> Self {
        // Without a first row the statement is at its end.
        let more = first.is_some();
        Self {
            first,
            rows: more.then_some(rows),
            using: more.then_some(using),
            report: None,
        }
    }

    /// What to do at the end of the rows.
    pub(super) fn report_to(&mut self, mut report: Report) {
        if self.rows.is_none() {
            report.acknowledged();
        } else {
            if let Some(pending_write) = &mut report.pending_write {
                pending_write.answering();
            }
            self.report = Some(report);
        }
    }

    /// Reads all rows and keeps them.
    pub(super) async fn gather(&mut self) -> QueryResult<()> {
        let mut gathered = Vec::new();
        while let Some(row) = self.next().await {
            gathered.push(Ok(row?));
        }
        *self = Self {
            rows: Some(stream::iter(gathered).boxed()),
            ..Self::default()
        };
        Ok(())
    }

    fn end(&mut self) {
        self.rows = None;
        self.using = None;
    }

    /// The error for the caller in the middle of the rows.
    fn failed(&mut self, error: diesel::result::Error) -> diesel::result::Error {
        let (Some(using), Some(report)) = (&self.using, self.report.take()) else {
            return error;
        };
        let failure = using.lease().diagnose(&error);
        let lease = using.lease();
        let error = match lost(&report.cluster, lease, &failure, report.outcome_if_lost) {
            // What was being written is in doubt.
            Some(lost) => lost,
            None => {
                if let Some(pending_write) = report.pending_write {
                    pending_write.refused();
                }
                error
            }
        };
        let sqlstate = failure.remark.map(|remark| remark.sqlstate);
        if let Some(spans) = report.spans {
            spans.broke_off(sqlstate, &error);
        }
        let sqlstate = sqlstate.as_ref().map(SqlState::as_str);
        let (node, took) = (&*lease.node().meter, report.started.elapsed());
        metrics::failed(Some(node), sqlstate, error.outcome(), took);
        error
    }
}

/// No rows.
impl Default for RowStream {
    fn default() -> Self {
        Self {
            first: None,
            rows: None,
            using: None,
            report: None,
        }
    }
}

impl Stream for RowStream {
    type Item = QueryResult<Row>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        let this = &mut *self;
        let Some(rows) = &mut this.rows else {
            return Poll::Ready(None);
        };
        let next = match &this.using {
            Some(using) => {
                let driver = &using.lease().driver;
                driver.poll(cx, |cx| rows.as_mut().poll_next(cx))
            }
            None => rows.as_mut().poll_next(cx),
        };
        match ready!(next) {
            Some(Ok(row)) => Poll::Ready(Some(Ok(row))),
            Some(Err(error)) => {
                let error = self.failed(error);
                self.end();
                Poll::Ready(Some(Err(error)))
            }
            None => {
                if let Some(report) = self.report.take() {
                    report.acknowledged();
                }
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
