//! Notifications that the primary sends after LISTEN.

use diesel::QueryResult;
use diesel::pg::PgNotification;
use futures_core::Stream;
use futures_util::stream::unfold;

use super::acquire::cause_of_death;
use crate::error::{Error, Outcome};
use crate::node::Lease;
use crate::wire::Received;

/// What comes over this connection, if there is one and nobody else uses it.
pub(super) fn stream<'a>(
    lease: Option<Option<&'a mut Lease>>,
) -> impl Stream<Item = QueryResult<PgNotification>> + Send + 'a {
    let source = match lease {
        None => Source::Nothing,
        Some(None) => Source::Fails(Error::StillInUse),
        Some(Some(lease)) => Source::Lease(lease),
    };
    unfold(source, next)
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
            lease.driver.recall();
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
