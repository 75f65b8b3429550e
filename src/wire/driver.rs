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

/// Drives `connection` in a task until it ends. Keeps its notifications for their reader.
///
/// The task also ends with its generation. `on_end` runs once, when the task ends for whatever
/// reason, also when it is aborted.
pub(crate) fn drive<S, T>(
    mut connection: Connection<S, T>,
    wire: Arc<Wire>,
    generation: Arc<Generation>,
    on_end: impl FnOnce() + Send + 'static,
) -> (AbortHandle, Arc<Notifications>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let notifications = Arc::<Notifications>::default();
    let end = OnEnd {
        wire,
        notifications: Arc::clone(&notifications),
        run: Some(on_end),
    };
    let task = tokio::spawn(async move {
        let death = loop {
            let message = tokio::select! {
                message = poll_fn(|cx| connection.poll_message(cx)) => message,
                () = generation.over() => break Death::ours(generation.cause()),
            };
            match message {
                Some(Ok(AsyncMessage::Notification(sent))) => {
                    end.notifications.push(PgNotification {
                        process_id: sent.process_id(),
                        channel: sent.channel().to_owned(),
                        payload: sent.payload().to_owned(),
                    });
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => break Death::from(&error),
                None => break Death::ours(generation.cause()),
            }
        };
        end.wire.close(death);
    });
    (task.abort_handle(), notifications)
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
