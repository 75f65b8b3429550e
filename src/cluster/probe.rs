//! Looking at a node: when, and by opening a connection.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::watch;
use tokio::time::Instant;

use super::topology::Topology;
use crate::error::{ConnectError, ConnectErrorKind};
use crate::node::{Node, Probe};

/// How often nodes are looked at while none takes writes.
const URGENT: Duration = Duration::from_millis(100);

/// Waits before a node is looked at again: shorter while nothing takes writes.
pub(super) async fn until_due(pause: Duration, mut topology: watch::Receiver<Arc<Topology>>) {
    let due = Instant::now() + pause;
    if pause > URGENT {
        let urgent = topology.wait_for(|topology| !topology.takes_writes());
        let _ = tokio::time::timeout_at(due, urgent).await;
    }
    tokio::time::sleep_until(due.min(Instant::now() + URGENT)).await;
}

/// How long that is at the most, as things stand.
pub(super) fn until_tried(pause: Duration, topology: &Topology) -> Duration {
    if topology.takes_writes() {
        pause
    } else {
        pause.min(URGENT)
    }
}

/// Opens a connection to the node within `limit`: one that is silent on those that are open has
/// little time left.
pub(super) async fn look_at(node: &Node, limit: Duration) -> Result<Probe, ConnectError> {
    // Code of the application's runs in there, when a connection is set up.
    let probe = AssertUnwindSafe(node.pool.probe()).catch_unwind();
    let failed = |kind, message: &str| Err(ConnectError::new(&node.name, kind, message));
    match tokio::time::timeout(limit, probe).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => failed(ConnectErrorKind::SetUp, "setting up a connection panicked"),
        Err(_) => {
            let message =
                format!("no answer on open connections, nor on a new one within {limit:?}");
            failed(ConnectErrorKind::TimedOut, &message)
        }
    }
}
