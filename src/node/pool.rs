//! The pool of one node: checkouts that fail fast and say why.

use std::sync::Arc;
use std::time::Duration;

use bb8::{Pool, PooledConnection};
use futures_util::FutureExt;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::bb8_manager::{ConnectionManager, Failures, Sink};
use super::connect::Connector;
use super::facts::{Facts, ask, identify};
use crate::error::{ConnectError, Error};
use crate::metrics::NodeMeter;
use crate::wire::ServerRole;

/// How often a wait looks whether anything is open that may come back, once the pool cannot grow.
const LOOK: Duration = Duration::from_millis(50);

/// A connection that goes back to its bb8 pool when dropped.
pub(crate) type Pooled = PooledConnection<'static, ConnectionManager>;

/// What a new connection found out.
#[derive(Clone, Debug)]
pub(crate) struct Probe {
    pub(crate) role: Option<ServerRole>,
    pub(crate) facts: Option<Facts>,
    /// How long the answer took.
    pub(crate) took: Duration,
}

/// The connections of one node.
#[derive(Debug)]
pub(crate) struct NodePool {
    pool: Pool<ConnectionManager>,
    connector: Arc<Connector>,
    failures: watch::Sender<Failures>,
    /// How many of the connections may serve reads that failed elsewhere.
    pub(crate) fallback: Arc<Semaphore>,
    pub(crate) fallback_limit: usize,
    /// How many of the connections may wait for the server to catch up. Reads that need not wait have the others.
    pub(crate) waits: Arc<Semaphore>,
    meter: Arc<NodeMeter>,
}

impl NodePool {
    pub(super) fn new(connector: Connector, fallback_share: f64, meter: Arc<NodeMeter>) -> Self {
        let fallback = share_of(connector.settings.pool.max_size, fallback_share);
        let waits = connector.settings.pool.max_size / 2;
        let connector = Arc::new(connector);
        let failures = watch::Sender::new(Failures::default());
        let settings = &connector.settings.pool;
        let pool = Pool::builder()
            .max_size(settings.max_size)
            .min_idle(settings.min_idle)
            .connection_timeout(settings.connection_timeout)
            .max_lifetime(settings.max_lifetime)
            .idle_timeout(settings.idle_timeout)
            // Looks at a flag; asks no server.
            .test_on_check_out(true)
            // A failed attempt is reported at once; the next checkout makes the next attempt.
            .retry_connection(false)
            .error_sink(Box::new(Sink {
                failures: failures.clone(),
                connector: Arc::clone(&connector),
            }))
            .build_unchecked(ConnectionManager {
                connector: Arc::clone(&connector),
                meter: Arc::clone(&meter),
            });
        Self {
            pool,
            connector,
            failures,
            fallback: Arc::new(Semaphore::new(fallback)),
            fallback_limit: fallback,
            waits: Arc::new(Semaphore::new(waits as usize)),
            meter,
        }
    }

    pub(crate) fn connector(&self) -> &Arc<Connector> {
        &self.connector
    }

    pub(crate) fn state(&self) -> bb8::State {
        self.pool.state()
    }

    /// Whether it may open more connections than it has.
    pub(crate) fn can_grow(&self) -> bool {
        self.pool.state().connections < self.max_size()
    }

    /// Whether a connection is free for a read that other nodes were to serve. If there is none, one more is
    /// opened for later.
    pub(crate) fn has_room(&self) -> bool {
        if self.fallback.available_permits() == 0 {
            return false;
        }
        let is_free = self.pool.state().idle_connections > 0;
        if !is_free && self.can_grow() {
            drop(self.try_checkout());
        }
        is_free
    }

    pub(crate) fn max_size(&self) -> u32 {
        self.connector.settings.pool.max_size
    }

    /// Opens a connection outside of any checkout, asks the server what it is, and keeps the
    /// connection in the pool.
    pub(crate) async fn probe(&self) -> Result<Probe, ConnectError> {
        let started = Instant::now();
        let mut connection = self.connector.connect().await?;
        self.meter.created_connection(started.elapsed());
        let limit = self.connector.settings.pool.connect_timeout;
        let asked = async {
            let identity = identify(&mut connection, || ()).await?;
            let started = Instant::now();
            let facts = ask(&mut connection, &identity).await?;
            Ok::<_, diesel::result::Error>((facts, started.elapsed()))
        };
        let (facts, took) = match tokio::time::timeout(limit, asked).await {
            Ok(Ok(facts)) => facts,
            // It may not tell. What it is stands in the role alone.
            Ok(Err(_)) if connection.is_usable() => (None, Duration::ZERO),
            Ok(Err(error)) => return Err(self.connector.monitor_failed(&error)),
            Err(_) => return Err(self.connector.too_slow(limit)),
        };
        // These are no statements of the application's.
        let _ = connection.newly_prepared();
        let role = connection.wire.role();
        // A full pool needs no more; the connection was opened to ask, and is closed.
        let _ = self.pool.add(Box::new(connection));
        Ok(Probe { role, facts, took })
    }

    /// A connection that is free right now. If there is none, one more is opened for later.
    pub(crate) fn try_checkout(&self) -> Option<Pooled> {
        self.pool.get_owned().now_or_never()?.ok()
    }

    /// A connection, waited for up to `connection_timeout`.
    pub(crate) async fn checkout(&self) -> Result<Pooled, Error> {
        // Seen before the attempt, so that no failure of the attempt can be missed.
        let mut failures = self.failures.subscribe();
        let started = Instant::now();
        let _pending = self.meter.waits();
        let get = self.pool.get_owned();
        tokio::pin!(get);
        let mut seen = None;
        loop {
            tokio::select! {
                biased;
                got = &mut get => {
                    self.meter.waited_for_connection(started.elapsed());
                    return got.map_err(|_| self.exhausted(started, seen));
                }
                changed = failures.changed() => {
                    let failure = failures.borrow_and_update().last.clone();
                    // With connections in use, one of them comes back; with none, nothing will.
                    if let (Ok(()), Some(error)) = (changed, failure) {
                        if self.connector.open() == 0 {
                            return Err(error.into());
                        }
                        seen = Some(error);
                    }
                }
                // What was open at that time may end without coming back.
                () = tokio::time::sleep(LOOK), if seen.is_some() => {
                    if let Some(error) = seen.take_if(|_| self.connector.open() == 0) {
                        return Err(error.into());
                    }
                }
            }
        }
    }

    fn exhausted(&self, started: Instant, connect: Option<ConnectError>) -> Error {
        self.meter.waited_in_vain();
        match connect {
            // Nothing was in use: the server is why.
            Some(error) if self.pool.state().connections == 0 => error.into(),
            connect => Error::PoolExhausted {
                node: self.connector.node().to_owned(),
                max_size: self.max_size(),
                waited: started.elapsed(),
                connect: connect.map(Box::new),
            },
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share of a pool's size, rounded up"
)]
fn share_of(size: u32, share: f64) -> usize {
    (f64::from(size) * share).ceil() as usize
}
