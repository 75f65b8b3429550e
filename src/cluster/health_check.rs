//! Checks of a node by a new connection: when, and how the earlier ones went.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::watch;
use tokio::time::Instant;

use super::topology::Topology;
use crate::deadline;
use crate::error::{ConnectError, ConnectErrorKind};
use crate::node::{Node, Probe};

/// The delay after the first failure.
const FIRST: Duration = Duration::from_millis(100);

/// The longest delay if the server is there and refuses us. Each attempt is a line in its log, and may lock the user out.
const LONGEST: Duration = Duration::from_secs(10);

/// After this time without a failure, earlier failures are forgotten.
const FORGIVEN_AFTER: Duration = Duration::from_secs(30);

/// How often nodes are checked while none takes writes.
const URGENT: Duration = Duration::from_millis(40);

/// Waits before a node is checked again. The wait is shorter while nothing takes writes.
pub(super) async fn until_due(pause: Duration, mut topology: watch::Receiver<Arc<Topology>>) {
    let due = Instant::now() + pause;
    if pause > URGENT {
        let urgent = topology.wait_for(|topology| !topology.takes_writes());
        let _ = tokio::time::timeout_at(due, urgent).await;
    }
    tokio::time::sleep_until(due.min(Instant::now() + URGENT)).await;
}

/// How long that wait is at the most.
pub(super) fn until_tried(pause: Duration, topology: &Topology) -> Duration {
    if topology.takes_writes() {
        pause
    } else {
        pause.min(URGENT)
    }
}

/// Opens a connection to the node within `limit`. A node that is silent on open connections gets little time.
pub(super) async fn look_at(node: &Node, limit: Duration) -> Result<Probe, ConnectError> {
    // The application's code runs in there, when a connection is set up.
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

/// The records of all nodes.
#[derive(Default)]
pub(super) struct Records(Vec<Record>);

/// How the checks of one node went.
pub(super) struct Record {
    node: Arc<Node>,
    failures: u32,
    last_failure: Instant,
    pub(super) checking: bool,
    /// When the last check began that reached it. A failure from before that says nothing any more.
    pub(super) reached: Option<std::time::Instant>,
    /// It does not answer on open connections.
    pub(super) silent: bool,
    /// Its server was there, and refused the last attempt.
    pub(super) refuses: bool,
}

impl Records {
    /// The record of this node. Makes one if there is none.
    pub(super) fn of(&mut self, node: &Arc<Node>) -> &mut Record {
        let found = self.0.iter();
        let place = found
            .take_while(|record| !Arc::ptr_eq(&record.node, node))
            .count();
        if place == self.0.len() {
            self.0.push(Record {
                node: Arc::clone(node),
                failures: 0,
                last_failure: Instant::now(),
                checking: false,
                reached: None,
                silent: false,
                refuses: false,
            });
        }
        &mut self.0[place]
    }

    /// Forgets a node that has left the pool.
    pub(super) fn forget(&mut self, node: &Arc<Node>) {
        self.0.retain(|record| !Arc::ptr_eq(&record.node, node));
    }
}

impl Record {
    /// Counts a failure. Returns how long to wait before the next check: a server that is away is looked for about as
    /// often as one that is there, so that it serves soon after it has come back.
    pub(super) fn fails(&mut self, interval: Duration) -> Duration {
        if self.last_failure.elapsed() > FORGIVEN_AFTER {
            self.failures = 0;
        }
        self.failures = self.failures.saturating_add(1);
        self.last_failure = Instant::now();
        delay(self.failures, self.refuses, interval, rand::random())
    }

    /// Whether a failure from then says nothing, because the node was reached since.
    pub(super) fn is_past(&self, tried: std::time::Instant) -> bool {
        self.reached.is_some_and(|reached| tried < reached)
    }
}

fn delay(failures: u32, refuses: bool, interval: Duration, random: f64) -> Duration {
    let longest = if refuses { LONGEST } else { interval };
    deadline::backoff(FIRST, longest.max(FIRST), failures, random)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Patroni's restarts and reinitialised replicas: they came back into service up to 15 s late.
    #[test]
    fn a_server_that_is_away_is_looked_for_once_in_an_interval() {
        let interval = Duration::from_secs(1);
        let away = |failures| delay(failures, false, interval, 0.5);
        assert_eq!(
            [away(1), away(2), away(3)].map(|it| it.as_millis()),
            [100, 200, 400]
        );
        assert_eq!((away(5), away(1000)), (interval, interval));
        assert_eq!(delay(1000, false, interval, 1.0), interval.mul_f64(1.5));
        assert_eq!(delay(1000, true, interval, 0.5), LONGEST);
        assert_eq!(delay(1000, false, Duration::ZERO, 0.5), FIRST);
    }
}
