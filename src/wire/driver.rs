//! Drives one connection, and learns of its death, idle or not.

use std::future::poll_fn;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use diesel::pg::PgNotification;
use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::AbortHandle;
use tokio_postgres::{AsyncMessage, Connection};

use super::generation::CLOSED;
use super::state::{Death, Wire};
use super::{Generation, Notifications};
use crate::blocking;
use crate::error::SqlState;

/// After this time without a statement of theirs, the threads that drove a connection have left it.
const LEFT: Duration = Duration::from_secs(1);

/// The tasks of one connection. They end, and the socket with them, when this is dropped.
pub(crate) struct Driver {
    drive: Arc<Drive>,
    task: AbortHandle,
    /// Waits for the end of the generation. A task of its own: the driver runs twice for each statement, and would look
    /// each time.
    generation: AbortHandle,
}

impl Deref for Driver {
    type Target = Drive;

    fn deref(&self) -> &Drive {
        &self.drive
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.task.abort();
        self.generation.abort();
    }
}

/// What drives a connection: its task, or the thread that waits for an answer; see [`blocking`].
pub(crate) struct Drive {
    /// `None` once it is over.
    connection: Mutex<Option<Box<dyn Turn>>>,
    wire: Arc<Wire>,
    generation: Arc<Generation>,
    notifications: Arc<Notifications>,
    /// Threads drive it. The task looks after it from time to time.
    lent: AtomicBool,
    /// Has gone on since a thread drove it.
    turns: AtomicU64,
    /// Wakes the task, which has the same waker all its life. Before its first turn nobody has to.
    task: OnceLock<Waker>,
    bell: Arc<Bell>,
}

/// What a connection calls that has something to do, while threads drive it. A thread that has left is not woken.
#[derive(Default)]
struct Bell {
    rung: AtomicBool,
    thread: AtomicWaker,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        self.thread.wake();
    }
}

/// What a connection does when it is polled.
trait Turn: Send {
    fn turn(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<AsyncMessage, tokio_postgres::Error>>>;
}

impl<S, T> Turn for Connection<S, T>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
    T: AsyncRead + AsyncWrite + Unpin + Send,
{
    fn turn(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<AsyncMessage, tokio_postgres::Error>>> {
        self.poll_message(cx)
    }
}

impl Drive {
    /// Does all that can be done now. Ready when the connection has ended.
    fn turn(&self, connection: &mut Option<Box<dyn Turn>>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(open) = connection else {
            return Poll::Ready(());
        };
        let death = loop {
            match open.turn(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(AsyncMessage::Notification(sent)))) => {
                    self.notifications.push(PgNotification {
                        process_id: sent.process_id(),
                        channel: sent.channel().to_owned(),
                        payload: sent.payload().to_owned(),
                    });
                }
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(error))) => break Death::from(&error),
                Poll::Ready(None) => break Death::ours(self.generation.cause()),
            }
        };
        self.wire.close(death);
        *connection = None;
        Poll::Ready(())
    }

    /// The task's turn. Ready when it has ended, or is lent.
    fn turn_of_task(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.task.get_or_init(|| cx.waker().clone());
        let mut connection = self.connection.lock();
        if self.is_lent() {
            return Poll::Ready(());
        }
        self.turn(&mut connection, cx)
    }

    /// Drives it on this thread, which is within [`blocking::block_on`].
    fn turn_of_thread(&self) {
        self.turns.fetch_add(1, Ordering::Relaxed);
        let bell = Waker::from(Arc::clone(&self.bell));
        let mut connection = self.connection.lock();
        let newly = !self.lent.swap(true, Ordering::AcqRel);
        let ended = self.turn(&mut connection, &mut Context::from_waker(&bell));
        drop(connection);
        if newly || ended.is_ready() {
            self.wake_task();
        }
    }

    /// Polls what needs answers of this connection.
    #[inline]
    pub(crate) fn poll<T>(
        &self,
        cx: &mut Context<'_>,
        mut work: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        if blocking::is_within() {
            return self.poll_within(cx, work);
        }
        self.recall();
        work(cx)
    }

    /// The same on a thread that waits. Kept out of the way of the others.
    #[inline(never)]
    fn poll_within<T>(
        &self,
        cx: &mut Context<'_>,
        mut work: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        self.bell.thread.take();
        let mut turned = false;
        loop {
            if let Poll::Ready(done) = work(cx) {
                return Poll::Ready(done);
            }
            // What the work has just sent is written at once.
            if !self.bell.rung.swap(false, Ordering::AcqRel) && turned {
                self.bell.thread.register(cx.waker());
                if !self.bell.rung.load(Ordering::Acquire) {
                    return Poll::Pending;
                }
                self.bell.thread.take();
            }
            self.turn_of_thread();
            turned = true;
        }
    }

    /// Awaits what needs answers of this connection.
    pub(crate) fn run<'a, F: Future>(&'a self, work: Pin<&'a mut F>) -> Driven<'a, F> {
        Driven { drive: self, work }
    }

    /// Has the task drive it again: what is wanted of it does not come from a thread that waits, or comes later.
    pub(crate) fn recall(&self) {
        if self.is_lent() && self.lent.swap(false, Ordering::AcqRel) {
            self.wake_task();
        }
    }

    fn wake_task(&self) {
        if let Some(task) = self.task.get() {
            task.wake_by_ref();
        }
    }

    /// Whoever drove it leaves. It does not stay alone with what it still has to do.
    pub(crate) fn leave(&self) {
        if self.is_lent() {
            self.bell.thread.take();
            if !self.wire.is_answered() {
                self.recall();
            }
        }
    }

    /// Hears what the server has said since the last thread has left. Asks nobody.
    pub(crate) fn listen(&self) {
        if !self.is_lent() {
            return;
        }
        let mut connection = self.connection.lock();
        if !self.is_lent() {
            // The task has just taken it back, and is to be woken.
            return;
        }
        let mut cx = Context::from_waker(Waker::noop());
        let ended = blocking::looking(|| self.turn(&mut connection, &mut cx).is_ready());
        drop(connection);
        if ended == Some(true) {
            self.wake_task();
        }
    }

    fn is_lent(&self) -> bool {
        self.lent.load(Ordering::Acquire)
    }

    fn is_over(&self) -> bool {
        self.connection.lock().is_none()
    }

    /// Returns when the task has to drive it again, or it is over.
    async fn left(&self) {
        loop {
            let turns = self.turns.load(Ordering::Relaxed);
            let recalled = poll_fn(|_| match self.is_lent() && !self.is_over() {
                true => Poll::Pending,
                false => Poll::Ready(()),
            });
            if tokio::time::timeout(LEFT, recalled).await.is_ok() {
                return;
            }
            if self.turns.load(Ordering::Relaxed) == turns {
                self.lent.store(false, Ordering::Release);
                return;
            }
        }
    }
}

/// Work that needs answers of a connection. A thread that drives it leaves at the end, also when this is dropped.
///
/// It has a reference to the work, and no copy: it is part of the future of each statement.
pub(crate) struct Driven<'a, F> {
    drive: &'a Drive,
    work: Pin<&'a mut F>,
}

impl<F: Future> Future for Driven<'_, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Self { drive, work } = &mut *self;
        drive.poll(cx, |cx| work.as_mut().poll(cx))
    }
}

impl<F> Drop for Driven<'_, F> {
    fn drop(&mut self) {
        self.drive.leave();
    }
}

/// Drives `connection` in a task until it ends. Keeps its notifications for their reader.
///
/// The task also ends with its generation. `on_end` runs once, when the task ends for whatever
/// reason, also when it is aborted.
pub(crate) fn drive<S, T>(
    connection: Connection<S, T>,
    wire: Arc<Wire>,
    generation: Arc<Generation>,
    on_end: impl FnOnce() + Send + 'static,
) -> (Driver, Arc<Notifications>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let notifications = Arc::<Notifications>::default();
    let drive = Arc::new(Drive {
        connection: Mutex::new(Some(Box::new(connection))),
        wire: Arc::clone(&wire),
        generation: Arc::clone(&generation),
        notifications: Arc::clone(&notifications),
        lent: AtomicBool::new(false),
        turns: AtomicU64::new(0),
        task: OnceLock::new(),
        bell: Arc::default(),
    });
    let end = OnEnd {
        drive: Arc::clone(&drive),
        run: Some(on_end),
    };
    let task = tokio::spawn(async move {
        let drive = &end.drive;
        loop {
            poll_fn(|cx| drive.turn_of_task(cx)).await;
            if drive.is_lent() {
                drive.left().await;
            }
            if drive.wire.is_closed() {
                break;
            }
        }
    });
    let task = task.abort_handle();
    let driven = task.clone();
    let watching = tokio::spawn(async move {
        generation.over().await;
        wire.close(Death::ours(generation.cause()));
        driven.abort();
    });
    let generation = watching.abort_handle();
    let driver = Driver {
        drive,
        task,
        generation,
    };
    (driver, notifications)
}

/// Runs its action when dropped, so that an aborted task is noticed as well.
struct OnEnd<F: FnOnce()> {
    drive: Arc<Drive>,
    run: Option<F>,
}

impl<F: FnOnce()> Drop for OnEnd<F> {
    fn drop(&mut self) {
        self.drive.wire.close(Death::ours(CLOSED.to_owned()));
        let connection = self.drive.connection.lock().take();
        drop(connection);
        self.drive.notifications.end();
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
