//! Readers and a writer that keep the pool busy, so that rates and failures can be seen.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use diesel_replicated::{ErrorExt, Outcome};
use futures_util::future::join_all;
use serde::Serialize;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

use super::super::error::Error;
use super::super::routes::App;
use super::super::store;
use super::faults::lock;

const READERS: usize = 4;

/// Each reader waits this long between two reads, the writer between two writes.
const PAUSE: Duration = Duration::from_millis(20);

/// After a failure it waits longer.
const REST: Duration = Duration::from_millis(250);

/// It ends by itself, because nobody looks at a forgotten page.
const LIMIT: Duration = Duration::from_secs(5 * 60);

/// The post that is written, again and again; the seeds have it.
const POST: i64 = 1;

/// What can be started and stopped.
#[derive(Clone, Debug, Default)]
pub(super) struct Traffic(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    run: Mutex<Option<Run>>,
    failed: AtomicU64,
    in_doubt: AtomicU64,
}

#[derive(Debug)]
struct Run {
    task: AbortHandle,
    until: Instant,
}

/// The traffic at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Flow {
    running: bool,
    seconds_left: u64,
    readers: usize,
    /// Statements that failed and left nothing in doubt, since the application was started.
    failed: u64,
    /// Writes that may have run.
    in_doubt: u64,
}

impl Traffic {
    pub(super) fn flow(&self) -> Flow {
        let run = lock(&self.0.run);
        let run = run.as_ref().filter(|run| !run.task.is_finished());
        let left = run.map(|run| run.until.saturating_duration_since(Instant::now()));
        Flow {
            running: run.is_some(),
            seconds_left: left.unwrap_or_default().as_secs(),
            readers: READERS,
            failed: self.0.failed.load(Ordering::Relaxed),
            in_doubt: self.0.in_doubt.load(Ordering::Relaxed),
        }
    }

    pub(super) fn start(&self, app: App) -> Result<(), Error> {
        let mut run = lock(&self.0.run);
        if run.as_ref().is_some_and(|run| !run.task.is_finished()) {
            return Err(Error::Conflict("there is traffic already".to_owned()));
        }
        // It must not keep what stops it.
        let shared = Arc::clone(&self.0);
        let task = tokio::spawn(async move {
            let mut stop = app.stop.clone();
            let readers = join_all((0..READERS).map(|_| read(&app, &shared)));
            tokio::select! {
                _ = timeout(LIMIT, readers) => {}
                () = write(&app, &shared) => {}
                // An error means that nobody is left to say it.
                _ = stop.wait_for(|stop| *stop) => {}
            }
        });
        *run = Some(Run {
            task: task.abort_handle(),
            until: Instant::now() + LIMIT,
        });
        Ok(())
    }

    pub(super) fn stop(&self) -> Result<(), Error> {
        match lock(&self.0.run).take() {
            Some(run) if !run.task.is_finished() => {
                run.task.abort();
                Ok(())
            }
            _ => Err(Error::Conflict("there is no traffic".to_owned())),
        }
    }
}

impl Shared {
    /// Counts what became of it. Whether it went well.
    fn note(&self, outcome: Result<(), Outcome>) -> bool {
        match outcome {
            Ok(()) => return true,
            Err(Outcome::Unknown) => self.in_doubt.fetch_add(1, Ordering::Relaxed),
            Err(_) => self.failed.fetch_add(1, Ordering::Relaxed),
        };
        false
    }
}

async fn read(app: &App, shared: &Shared) {
    loop {
        let done = async {
            let mut conn = app.pool.get().await.map_err(|error| error.outcome())?;
            // Nothing is in doubt after a read.
            let read = store::posts(&mut conn, None, None).await;
            read.map_err(|_| Outcome::Failed)?;
            app.log.count(&conn);
            Ok(())
        };
        pause(shared.note(done.await)).await;
    }
}

/// Writes and reads what it wrote, as the application's users do.
async fn write(app: &App, shared: &Shared) {
    loop {
        let done = async {
            let mut conn = app.pool.get().await.map_err(|error| error.outcome())?;
            let write = store::touch(&mut conn, POST).await;
            write.map_err(|error| error.outcome())?;
            app.log.count(&conn);
            let read = store::post(&mut conn, POST).await;
            read.map_err(|_| Outcome::Failed)?;
            app.log.count(&conn);
            Ok(())
        };
        pause(shared.note(done.await)).await;
    }
}

async fn pause(went_well: bool) {
    sleep(if went_well { PAUSE } else { REST }).await;
}
