//! The three ways in which Diesel sends a statement, behind one trait.

use std::any::TypeId;
use std::sync::Arc;

use diesel::QueryResult;
use diesel_async::SimpleAsyncConnection;
use futures_util::StreamExt;

use super::report::Report;
use super::stream::RowStream;
use crate::node::Lease;
use crate::statement::{Bound, Statement};

/// A statement and the way to send it. It can be sent again.
pub(super) trait Action: Send {
    type Output: Send + Default;

    fn sql(&self) -> &str;

    fn id(&self) -> Option<TypeId> {
        None
    }

    /// The bind value of this number, from 0, if a setting can be made from it.
    fn bound(&self, _number: usize) -> Bound {
        Bound::Other
    }

    /// The statement, whose custom types may have no OIDs yet.
    fn statement(&mut self) -> Option<&mut Statement> {
        None
    }

    fn send(&self, lease: &Arc<Lease>) -> impl Future<Output = QueryResult<Self::Output>> + Send;

    /// The statement is at its end, unless its output goes on: then the output reports.
    fn reporting(&self, output: Self::Output, report: Report) -> Self::Output {
        report.acknowledged();
        output
    }
}

/// Runs a statement for its rows.
pub(super) struct Load(pub(super) Statement);

impl Action for Load {
    type Output = RowStream;

    fn sql(&self) -> &str {
        self.0.sql()
    }

    fn id(&self) -> Option<TypeId> {
        self.0.id()
    }

    fn bound(&self, number: usize) -> Bound {
        self.0.bound(number)
    }

    fn statement(&mut self) -> Option<&mut Statement> {
        Some(&mut self.0)
    }

    fn reporting(&self, rows: RowStream, report: Report) -> RowStream {
        rows.reporting_to(report)
    }

    async fn send(&self, lease: &Arc<Lease>) -> QueryResult<RowStream> {
        let using = lease.enter();
        // Errors of execution come in place of the first row. After the first row was handed out nothing can be
        // mended, so the first row is waited for.
        let started = async {
            let mut rows = self.0.load(lease.pg()).await?;
            let first = rows.next().await.transpose()?;
            Ok((first, rows))
        };
        match started.await {
            Ok((first, rows)) => Ok(RowStream::new(first, rows, using.into_stream())),
            Err(error) => {
                using.finish();
                Err(error)
            }
        }
    }
}

/// Runs a statement for the number of its rows.
pub(super) struct Execute(pub(super) Statement);

impl Action for Execute {
    type Output = usize;

    fn sql(&self) -> &str {
        self.0.sql()
    }

    fn id(&self) -> Option<TypeId> {
        self.0.id()
    }

    fn bound(&self, number: usize) -> Bound {
        self.0.bound(number)
    }

    fn statement(&mut self) -> Option<&mut Statement> {
        Some(&mut self.0)
    }

    async fn send(&self, lease: &Arc<Lease>) -> QueryResult<usize> {
        let using = lease.enter();
        let result = self.0.execute(lease.pg()).await;
        using.finish();
        result
    }
}

/// Runs a text of one or more statements.
pub(super) struct Batch<'a>(pub(super) &'a str);

impl Action for Batch<'_> {
    type Output = ();

    fn sql(&self) -> &str {
        self.0
    }

    async fn send(&self, lease: &Arc<Lease>) -> QueryResult<()> {
        let using = lease.enter();
        let result = lease.pg().batch_execute(self.0).await;
        using.finish();
        result
    }
}
