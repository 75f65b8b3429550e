//! The task that drives one connection and learns of its death, idle or not.

use std::future::poll_fn;
use std::sync::Arc;

use diesel::pg::PgNotification;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::AbortHandle;
use tokio_postgres::{AsyncMessage, Connection};

use super::generation::CLOSED;
use super::state::{Death, Wire};
use super::{Generation, Notifications};
use crate::error::SqlState;

/// The tasks of one connection. They end, and the socket with them, when this is dropped.
#[derive(Debug)]
pub(crate) struct Driver {
    task: AbortHandle,
    /// Waits for the end of the generation. A task of its own: the driver runs twice for each statement, and would look
    /// each time.
    generation: AbortHandle,
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.task.abort();
        self.generation.abort();
    }
}

/// Drives `connection` in a task until it ends. Keeps its notifications for their reader.
///
/// The task also ends with its generation. `on_end` runs once, when the task ends for whatever
/// reason, also when it is aborted.
pub(crate) fn drive<S, T>(
    mut connection: Connection<S, T>,
    wire: Arc<Wire>,
    generation: Arc<Generation>,
    on_end: impl FnOnce() + Send + 'static,
) -> (Driver, Arc<Notifications>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let notifications = Arc::<Notifications>::default();
    let end = OnEnd {
        wire: Arc::clone(&wire),
        notifications: Arc::clone(&notifications),
        run: Some(on_end),
    };
    let of_generation = Arc::clone(&generation);
    let task = tokio::spawn(async move {
        let death = loop {
            match poll_fn(|cx| connection.poll_message(cx)).await {
                Some(Ok(AsyncMessage::Notification(sent))) => {
                    end.notifications.push(PgNotification {
                        process_id: sent.process_id(),
                        channel: sent.channel().to_owned(),
                        payload: sent.payload().to_owned(),
                    });
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => break Death::from(&error),
                None => break Death::ours(of_generation.cause()),
            }
        };
        end.wire.close(death);
    });
    let task = task.abort_handle();
    let driven = task.clone();
    let watching = tokio::spawn(async move {
        generation.over().await;
        wire.close(Death::ours(generation.cause()));
        driven.abort();
    });
    let generation = watching.abort_handle();
    (Driver { task, generation }, notifications)
}

/// Runs its action when dropped, so that an aborted task is noticed as well.
struct OnEnd<F: FnOnce()> {
    wire: Arc<Wire>,
    notifications: Arc<Notifications>,
    run: Option<F>,
}

impl<F: FnOnce()> Drop for OnEnd<F> {
    fn drop(&mut self) {
        self.wire.close(Death::ours(CLOSED.to_owned()));
        self.notifications.end();
        if let Some(run) = self.run.take() {
            run();
        }
    }
}

impl Death {
    fn ours(message: String) -> Self {
        Self {
            sqlstate: None,
            message,
            ours: true,
        }
    }
}

impl From<&tokio_postgres::Error> for Death {
    fn from(error: &tokio_postgres::Error) -> Self {
        Self {
            sqlstate: error
                .code()
                .and_then(|code| SqlState::from_bytes(code.code().as_bytes())),
            message: error
                .as_db_error()
                .map_or_else(|| error.to_string(), |server| server.message().to_owned()),
            ours: false,
        }
    }
}
