//! Opens and judges connections for bb8.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Instant;

use bb8::{ErrorSink, ManageConnection};
use futures_util::FutureExt;
use tokio::sync::watch;

use super::connect::Connector;
use super::connection::NodeConnection;
use super::lane::Lane;
use crate::error::{ConnectError, ConnectErrorKind};
use crate::metrics::NodeMeter;

/// The newest failure to connect, and how many came before it.
#[derive(Clone, Debug, Default)]
pub(super) struct Failures {
    pub(super) count: u64,
    pub(super) last: Option<ConnectError>,
}

/// Why the pool has one connection less than it would like.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// An attempt failed that had begun at that time.
    Connect(ConnectError, Instant),
    /// A connection was found to be over, or too old. Its end was reported when it came.
    DiedIdle,
}

/// Opens connections, and judges them by their wires. It never pings.
#[derive(Debug)]
pub(crate) struct ConnectionManager {
    pub(super) connector: Arc<Connector>,
    /// How many of its connections are open, in use or not.
    pub(super) open: Arc<AtomicUsize>,
    pub(super) lane: Lane,
    pub(super) meter: Arc<NodeMeter>,
}

/// Whether a connection can serve the next session. No server is asked.
pub(super) fn is_fit(connector: &Connector, connection: &NodeConnection) -> bool {
    connection.driver.listen();
    connection.is_usable() && !is_too_old(connector, connection)
}

/// An old connection is better than none: where no other can be opened, it stays.
fn is_too_old(connector: &Connector, connection: &NodeConnection) -> bool {
    let is_due = connection
        .last_day
        .is_some_and(|last| Instant::now() >= last);
    is_due && !connector.cannot_grow()
}

impl ManageConnection for ConnectionManager {
    /// In a box, because bb8 and its users move it by value many times.
    type Connection = Box<NodeConnection>;
    type Error = Refusal;

    async fn connect(&self) -> Result<Box<NodeConnection>, Refusal> {
        let _turn = self.connector.turn().await;
        let started = Instant::now();
        // The application's code runs in there. bb8 would count a connection for ever whose making panicked.
        let connecting = AssertUnwindSafe(self.connector.connect(&self.open)).catch_unwind();
        let connected = connecting.await.unwrap_or_else(|_| {
            let kind = ConnectErrorKind::SetUp;
            Err(ConnectError::new(
                self.connector.node(),
                kind,
                "setting up a connection panicked",
            ))
        });
        if connected.is_ok() {
            self.meter.created_connection(started.elapsed());
        }
        let connected = connected.map(|connection| Box::new(connection.of(self.lane)));
        connected.map_err(|error| Refusal::Connect(error, started))
    }

    async fn is_valid(&self, connection: &mut Box<NodeConnection>) -> Result<(), Refusal> {
        match is_fit(&self.connector, connection) {
            true => Ok(()),
            false => Err(Refusal::DiedIdle),
        }
    }

    fn has_broken(&self, connection: &mut Box<NodeConnection>) -> bool {
        !connection.is_usable()
            || connection.wire.in_transaction()
            || is_too_old(&self.connector, connection)
    }
}

/// Tells those who wait for a connection that an attempt failed. bb8 would let them wait on.
#[derive(Clone, Debug)]
pub(super) struct Sink {
    pub(super) failures: watch::Sender<Failures>,
    pub(super) connector: Arc<Connector>,
}

impl ErrorSink<Refusal> for Sink {
    fn sink(&self, refusal: Refusal) {
        let Refusal::Connect(error, since) = refusal else {
            return;
        };
        tracing::debug!(target: "diesel_replicated", node = error.node, %error, "connect_failed");
        self.failures.send_modify(|failures| {
            failures.count += 1;
            failures.last = Some(error.clone());
        });
        self.connector.connect_failed(error, since);
    }

    fn boxed_clone(&self) -> Box<dyn ErrorSink<Refusal>> {
        Box::new(self.clone())
    }
}
