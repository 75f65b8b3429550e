//! The pool of one node: checkouts that fail fast and say why.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bb8::{Pool, PooledConnection};
use futures_util::FutureExt;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::bb8_manager::{ConnectionManager, Failures, Sink, is_fit};
use super::connect::Connector;
use super::facts::{Facts, ask, identify};
use super::lane::Lane;
use super::line::{Line, Waiter};
use super::{Ending, enter};
use crate::deadline;
use crate::error::{ConnectError, Error};
use crate::metrics::{NodeMeter, Pending};
use crate::wire::ServerRole;

/// How often a wait looks whether anything is open that may come back, once the pool cannot grow.
const LOOK: Duration = Duration::from_millis(50);

/// How long who waits for a full pool just stands in line. Connections come back sooner as a rule, and to look for one,
/// and for what else may happen, would cost more than many statements.
const SOON: Duration = Duration::from_millis(10);

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
    /// Who waits for a connection.
    line: Arc<Line<Pooled>>,
    /// How many connections were closed while others waited: they may open another one.
    closed: watch::Sender<u64>,
    runtime: Handle,
    connector: Arc<Connector>,
    max_size: u32,
    /// How many connections are open, in use or not.
    open: Arc<AtomicUsize>,
    failures: watch::Sender<Failures>,
    /// How many of the connections may serve reads that failed elsewhere.
    pub(crate) fallback: Arc<Semaphore>,
    pub(crate) fallback_limit: usize,
    /// How many of the connections may wait for the server to catch up. Reads that need not wait have the others.
    pub(crate) waits: Arc<Semaphore>,
    meter: Arc<NodeMeter>,
}

impl NodePool {
    /// Everybody's connections. Within the runtime on which they live.
    pub(super) fn new(
        connector: Arc<Connector>,
        fallback_share: f64,
        meter: Arc<NodeMeter>,
    ) -> Self {
        let size = connector.settings.pool.max_size;
        let min_idle = connector.settings.pool.min_idle;
        Self::sized(
            connector,
            Lane::default(),
            (size, min_idle),
            fallback_share,
            meter,
        )
    }

    /// The connections for reads that ask for a tag.
    pub(super) fn for_tag(
        connector: Arc<Connector>,
        lane: Lane,
        max_size: u32,
        meter: Arc<NodeMeter>,
    ) -> Self {
        Self::sized(connector, lane, (max_size, None), 0.0, meter)
    }

    fn sized(
        connector: Arc<Connector>,
        lane: Lane,
        (max_size, min_idle): (u32, Option<u32>),
        fallback_share: f64,
        meter: Arc<NodeMeter>,
    ) -> Self {
        let fallback = share_of(max_size, fallback_share);
        let waits = max_size / 2;
        let open = Arc::<AtomicUsize>::default();
        let failures = watch::Sender::new(Failures::default());
        let settings = &connector.settings.pool;
        let pool = Pool::builder()
            .max_size(max_size)
            .min_idle(min_idle)
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
                open: Arc::clone(&open),
                lane,
                meter: Arc::clone(&meter),
            });
        Self {
            pool,
            line: Line::new(),
            closed: watch::Sender::new(0),
            runtime: Handle::current(),
            connector,
            max_size,
            open,
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
        if self.fallback.available_permits() == 0 || self.waiting() > 0 {
            return false;
        }
        let is_free = self.pool.state().idle_connections > 0;
        if !is_free && self.can_grow() {
            drop(self.try_checkout());
        }
        is_free
    }

    pub(crate) fn max_size(&self) -> u32 {
        self.max_size
    }

    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    /// Opens a connection outside of any checkout, asks the server what it is, and keeps the
    /// connection in the pool.
    pub(crate) async fn probe(&self) -> Result<Probe, ConnectError> {
        let started = Instant::now();
        let mut connection = self.connector.connect(&self.open).await?;
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

    /// How many wait for a connection.
    pub(crate) fn waiting(&self) -> usize {
        self.line.len()
    }

    /// Takes back a connection that can serve on. Who has waited longest gets it at once: bb8 would wake somebody who
    /// fetches it, and then has to wake him.
    pub(crate) fn put_back(&self, pooled: Pooled) {
        if self.waiting() == 0 {
            return;
        }
        match is_fit(&self.connector, &pooled) {
            true => drop(self.line.give(pooled)),
            false => self.close(pooled),
        }
    }

    /// Closes a connection. All who wait look whether they may open another one: bb8 would wake one of them, who may have
    /// been served meanwhile, or be polled by nobody.
    pub(super) fn close(&self, pooled: Pooled) {
        pooled.wire.condemn();
        drop(pooled);
        if self.waiting() > 0 {
            self.closed.send_modify(|count| *count += 1);
        }
    }

    /// A connection that is free right now, unless others wait for one. If there is none, one more is opened for later.
    pub(crate) fn try_checkout(&self) -> Option<Pooled> {
        if self.waiting() > 0 {
            return None;
        }
        self.pool.get_owned().now_or_never()?.ok()
    }

    /// Gives free connections to those who wait. bb8 wakes one for each that comes free; of two that come free while
    /// nobody listens yet it tells of one.
    fn hand_on(&self) {
        while self.waiting() > 0 && self.pool.state().idle_connections > 0 {
            let free = self.pool.get_owned().now_or_never();
            let Some(Ok(free)) = free else {
                return;
            };
            if let Some(nobodys) = self.line.give(free) {
                drop(nobodys);
                return;
            }
        }
    }

    /// A connection, waited for up to `connection_timeout`. Who asked first is served first.
    pub(crate) async fn checkout(&self) -> Result<Pooled, Error> {
        let mut place = self.join();
        match place.soon().await {
            Some(pooled) => Ok(pooled),
            None => place.pooled().await,
        }
    }

    /// A place at the end of the line of those who wait.
    pub(crate) fn join(&self) -> InLine<'_> {
        InLine {
            pool: self,
            waiter: self.line.join(),
            started: Instant::now(),
            _pending: self.meter.waits(),
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

/// Who waits. If he leaves when a connection was just given to him, it goes back, wherever he leaves from: bb8 may
/// open another one in its place, which needs the runtime.
pub(crate) struct InLine<'a> {
    pool: &'a NodePool,
    waiter: Waiter<Pooled>,
    started: Instant,
    _pending: Option<Pending>,
}

impl InLine<'_> {
    /// The connection that somebody gives back to a full pool, if that is soon.
    pub(crate) async fn soon(&mut self) -> Option<Pooled> {
        if self.pool.can_grow() {
            return None;
        }
        let given = poll_fn(|context| self.waiter.poll_given(context));
        let limit = self.pool.connector.settings.pool.connection_timeout;
        let pooled = tokio::time::timeout(SOON.min(limit), given).await.ok()?;
        Some(self.served_with(pooled))
    }

    /// A connection, waited for up to `connection_timeout`, whichever way it comes.
    pub(crate) async fn pooled(mut self) -> Result<Pooled, Error> {
        let node = self.pool;
        // Seen before the attempt, so that no failure of the attempt can be missed.
        let mut failures = node.failures.subscribe();
        let mut closed = node.closed.subscribe();
        let get = node.pool.get_owned();
        tokio::pin!(get);
        // bb8's own limit begins anew with each connection that was found for somebody else.
        let limit = node.connector.settings.pool.connection_timeout;
        let over = tokio::time::sleep_until(deadline::after(self.started.into_std(), limit).into());
        tokio::pin!(over);
        let mut seen = None;
        loop {
            tokio::select! {
                biased;
                pooled = poll_fn(|context| self.waiter.poll_given(context)) => {
                    return Ok(self.served_with(pooled));
                }
                got = &mut get => {
                    let Ok(found) = got else {
                        return Err(node.exhausted(self.started, seen));
                    };
                    if let Some(pooled) = self.waiter.found(found) {
                        return Ok(self.served_with(pooled));
                    }
                    get.set(node.pool.get_owned());
                }
                () = &mut over => return Err(node.exhausted(self.started, seen)),
                _ = closed.changed() => {
                    if node.can_grow() {
                        get.set(node.pool.get_owned());
                    }
                }
                changed = failures.changed() => {
                    let failure = failures.borrow_and_update().last.clone();
                    // With connections in use, one of them comes back; with none, nothing will.
                    if let (Ok(()), Some(error)) = (changed, failure) {
                        if node.open() == 0 {
                            return Err(error.into());
                        }
                        seen = Some(error);
                    }
                }
                // What was open at that time may end without coming back.
                () = tokio::time::sleep(LOOK), if seen.is_some() => {
                    if let Some(error) = seen.take_if(|_| node.open() == 0) {
                        return Err(error.into());
                    }
                }
            }
        }
    }

    fn served_with(&self, pooled: Pooled) -> Pooled {
        self.pool.hand_on();
        self.pool
            .meter
            .waited_for_connection(self.started.elapsed());
        pooled
    }
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        let Some(taken) = self.waiter.leave() else {
            return;
        };
        match enter(&self.pool.runtime) {
            Ok(_runtime) => self.pool.put_back(taken),
            Err(Ending) => drop(self.pool.runtime.spawn(async move { drop(taken) })),
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
