//! The three ways in which Diesel sends a statement, behind one trait.

use std::any::TypeId;
use std::pin::pin;
use std::sync::Arc;

use diesel::QueryResult;
use diesel_async::SimpleAsyncConnection;
use futures_util::StreamExt;

use super::report::Report;
use super::stream::RowStream;
use crate::node::Lease;
use crate::statement::{Bound, Statement};

/// A statement and the way to send it. It can be sent again.
///
/// It keeps what it brings. Through all the futures of a statement that would be moved again and again.
pub(super) trait Action: Send {
    type Output: Send;

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

    fn send(&mut self, lease: &Arc<Lease>) -> impl Future<Output = QueryResult<()>> + Send;

    /// Reads all that it brings, so that it is at its end.
    fn settle(&mut self) -> impl Future<Output = QueryResult<()>> + Send {
        async { Ok(()) }
    }

    /// The statement is at its end, unless its output goes on: then the output reports.
    fn report_to(&mut self, report: Report) {
        report.acknowledged();
    }

    /// What it has brought since the last call; nothing if it was not sent.
    fn take_output(&mut self) -> Self::Output;
}

/// Runs a statement for its rows.
pub(super) struct Load {
    statement: Statement,
    rows: RowStream,
}

impl From<Statement> for Load {
    fn from(statement: Statement) -> Self {
        Self {
            statement,
            rows: RowStream::default(),
        }
    }
}

impl Action for Load {
    type Output = RowStream;

    fn sql(&self) -> &str {
        self.statement.sql()
    }

    fn id(&self) -> Option<TypeId> {
        self.statement.id()
    }

    fn bound(&self, number: usize) -> Bound {
        self.statement.bound(number)
    }

    fn statement(&mut self) -> Option<&mut Statement> {
        Some(&mut self.statement)
    }

    async fn settle(&mut self) -> QueryResult<()> {
        self.rows.gather().await
    }

    fn report_to(&mut self, report: Report) {
        self.rows.report_to(report);
    }

    fn take_output(&mut self) -> RowStream {
        std::mem::take(&mut self.rows)
    }

    async fn send(&mut self, lease: &Arc<Lease>) -> QueryResult<()> {
        let using = lease.enter();
        // Errors of execution come in place of the first row. After the first row was handed out nothing can be
        // mended, so the first row is waited for.
        let started = async {
            let mut rows = self.statement.load(lease.driven()).await?;
            let first = rows.next().await.transpose()?;
            Ok((first, rows))
        };
        match lease.driver.run(pin!(started)).await {
            Ok((first, rows)) => {
                self.rows = RowStream::new(first, rows, using.into_stream());
                Ok(())
            }
            Err(error) => {
                using.finish();
                Err(error)
            }
        }
    }
}

/// Runs a statement for the number of its rows.
pub(super) struct Execute {
    statement: Statement,
    count: usize,
}

impl From<Statement> for Execute {
    fn from(statement: Statement) -> Self {
        Self {
            statement,
            count: 0,
        }
    }
}

impl Action for Execute {
    type Output = usize;

    fn sql(&self) -> &str {
        self.statement.sql()
    }

    fn id(&self) -> Option<TypeId> {
        self.statement.id()
    }

    fn bound(&self, number: usize) -> Bound {
        self.statement.bound(number)
    }

    fn statement(&mut self) -> Option<&mut Statement> {
        Some(&mut self.statement)
    }

    fn take_output(&mut self) -> usize {
        std::mem::take(&mut self.count)
    }

    async fn send(&mut self, lease: &Arc<Lease>) -> QueryResult<()> {
        let using = lease.enter();
        let executed = self.statement.execute(lease.driven());
        let result = lease.driver.run(pin!(executed)).await;
        using.finish();
        self.count = result?;
        Ok(())
    }
}

/// Runs a text of one or more statements.
pub(super) struct Batch<'a>(pub(super) &'a str);

impl Action for Batch<'_> {
    type Output = ();

    fn sql(&self) -> &str {
        self.0
    }

    fn take_output(&mut self) {}

    async fn send(&mut self, lease: &Arc<Lease>) -> QueryResult<()> {
        let using = lease.enter();
        let mut connection = lease.driven();
        let executed = connection.batch_execute(self.0);
        let result = lease.driver.run(pin!(executed)).await;
        using.finish();
        result
    }
}
