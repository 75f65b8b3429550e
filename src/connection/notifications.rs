//! Notifications that the primary sends after LISTEN.

use std::sync::Arc;

use diesel::QueryResult;
use diesel::pg::PgNotification;
use futures_core::Stream;
use futures_util::stream;

use super::ReplicatedConnection;
use super::acquire::cause_of_death;
use crate::error::{Error, Outcome};
use crate::node::Lease;
use crate::wire::Received;

impl ReplicatedConnection {
    /// The notifications that the primary's connection receives, those that came before this call
    /// included.
    ///
    /// [`LISTEN`](https://www.postgresql.org/docs/current/sql-listen.html) first, on this
    /// connection; until then nothing ever comes. What nobody reads is kept up to some megabytes; beyond
    /// that the oldest go, and the stream yields [`Error::NotificationsLost`] and goes on. When the server connection is lost the stream
    /// yields one error and ends.
    ///
    /// ```no_run
    /// # async fn example(conn: &mut diesel_replicated::ReplicatedConnection) -> diesel::QueryResult<()> {
    /// use diesel_async::RunQueryDsl;
    /// use futures_util::StreamExt;
    ///
    /// diesel::sql_query("LISTEN news").execute(conn).await?;
    /// let mut news = std::pin::pin!(conn.notifications_stream());
    /// while let Some(notification) = news.next().await {
    ///     println!("{}", notification?.payload);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn notifications_stream(
        &mut self,
    ) -> impl Stream<Item = QueryResult<PgNotification>> + Send + '_ {
        let session = self.session.get_mut();
        session.notice_transaction_end();
        let source = match session.primary.as_mut().map(Arc::get_mut) {
            None => Source::Nothing,
            Some(None) => Source::Fails(Error::StillInUse),
            Some(Some(lease)) => Source::Lease(lease),
        };
        stream::unfold(source, next)
    }
}

enum Source<'a> {
    Nothing,
    Lease(&'a mut Lease),
    Fails(Error),
    Over,
}

async fn next(source: Source<'_>) -> Option<(QueryResult<PgNotification>, Source<'_>)> {
    match source {
        Source::Nothing => std::future::pending().await,
        Source::Over => None,
        Source::Fails(error) => Some((Err(error.into()), Source::Over)),
        Source::Lease(lease) => {
            let cause = match lease.notifications.receive().await {
                Received::Notification(notification) => {
                    return Some((Ok(notification), Source::Lease(lease)));
                }
                Received::Lost(count) => {
                    let error = Error::NotificationsLost { count };
                    return Some((Err(error.into()), Source::Lease(lease)));
                }
                Received::End => cause_of_death(lease),
            };
            let error = Error::ConnectionLost {
                node: lease.node().name.clone(),
                cause,
                outcome: Outcome::NotRun,
            };
            Some((Err(error.into()), Source::Over))
        }
    }
}
