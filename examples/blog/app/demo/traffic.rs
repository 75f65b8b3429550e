//! The load of both sides: it can be started and stopped, and ends by itself.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::super::error::Error;
use super::super::routes::App;
use super::faults::{Stage, lock};
use super::visitors::{Figures, Pools, Street, VISITORS};

/// It ends by itself, because nobody looks at a forgotten page.
const LIMIT: Duration = Duration::from_secs(5 * 60);

/// What can be started and stopped.
#[derive(Clone, Debug)]
pub(super) struct Traffic(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    street: Street,
    run: Mutex<Option<JoinHandle<()>>>,
    /// When it ends.
    until: watch::Sender<Instant>,
}

/// The traffic at one moment, and what it has met since the last beginning.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Flow {
    running: bool,
    seconds_left: u64,
    /// On each side.
    visitors: usize,
    ours: Figures,
    plain: Figures,
}

impl Traffic {
    pub(super) fn new(stage: Arc<Mutex<Stage>>, database: &str) -> Self {
        Self(Arc::new(Shared {
            street: Street::new(stage, database),
            run: Mutex::default(),
            until: watch::Sender::new(Instant::now()),
        }))
    }

    pub(super) fn database(&self) -> &str {
        self.0.street.database()
    }

    pub(super) fn flow(&self) -> Flow {
        let running = self.is_running();
        let left = self
            .0
            .until
            .borrow()
            .saturating_duration_since(Instant::now());
        Flow {
            running,
            seconds_left: if running { left.as_secs() } else { 0 },
            visitors: VISITORS,
            ours: self.0.street.ours.figures(),
            plain: self.0.street.plain.figures(),
        }
    }

    fn is_running(&self) -> bool {
        let run = lock(&self.0.run);
        let over = *self.0.until.borrow() <= Instant::now();
        !over && run.as_ref().is_some_and(|task| !task.is_finished())
    }

    pub(super) fn start(&self, app: App) -> Result<(), Error> {
        if self.is_running() {
            return Err(Error::Conflict("there is traffic already".to_owned()));
        }
        self.go_on(app);
        Ok(())
    }

    /// Starts it, or lets it run longer.
    pub(super) fn go_on(&self, app: App) {
        let mut run = lock(&self.0.run);
        self.0.until.send_replace(Instant::now() + LIMIT);
        if run.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        let shared = Arc::clone(&self.0);
        *run = Some(tokio::spawn(async move { visits(&shared, &app).await }));
    }

    pub(super) fn stop(&self) -> Result<(), Error> {
        if !self.is_running() {
            return Err(Error::Conflict("there is no traffic".to_owned()));
        }
        self.0.until.send_replace(Instant::now());
        Ok(())
    }

    /// The plain side is configured with these from now on.
    pub(super) fn configure(&self, pools: Pools) {
        self.0.street.pools.send_replace(Some(Arc::new(pools)));
    }

    pub(super) fn is_configured(&self) -> bool {
        self.0.street.pools.borrow().is_some()
    }

    /// Counts from now on.
    pub(super) fn count_anew(&self) {
        self.0.street.ours.begin();
        self.0.street.plain.begin();
    }

    pub(super) fn load(&self, heavy: bool) {
        self.0.street.load.send_replace(heavy);
    }

    /// Whether both sides have read something since the last beginning.
    pub(super) fn is_counted(&self) -> bool {
        let street = &self.0.street;
        street.ours.figures().has_rows() && street.plain.figures().has_rows()
    }
}

/// Lets visitors come until the time is over.
async fn visits(shared: &Shared, app: &App) {
    let mut stop = app.stop.clone();
    let mut until = shared.until.subscribe();
    loop {
        shared.street.open(true);
        tokio::select! {
            () = shared.street.visit(app) => {}
            () = end(&mut until) => {}
            // An error means that nobody is left to say it.
            _ = stop.wait_for(|stop| *stop) => return,
        }
        shared.street.open(false);
        // What was confirmed at last is looked after, too.
        shared.street.audit().await;
        // Who lets it run longer holds this, too.
        let mut run = lock(&shared.run);
        if *until.borrow() <= Instant::now() {
            *run = None;
            return;
        }
    }
}

/// The end may be put off or brought forward meanwhile.
async fn end(until: &mut watch::Receiver<Instant>) {
    loop {
        let at = *until.borrow_and_update();
        if at <= Instant::now() {
            return;
        }
        tokio::select! {
            () = sleep_until(at) => {}
            _ = until.changed() => {}
        }
    }
}
