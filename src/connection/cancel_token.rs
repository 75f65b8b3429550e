//! Cancels what a connection runs, from elsewhere.

use std::fmt;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use smallvec::SmallVec;

use crate::cluster::Cluster;
use crate::error::ConnectError;
use crate::node::{Lease, NodeCancel};

/// The server connections that a session has used and still holds.
#[derive(Default)]
pub(super) struct Running(Mutex<SmallVec<[Arc<NodeCancel>; 2]>>);

impl Running {
    pub(super) fn note(&self, lease: &Lease) {
        let mut running = self.0.lock();
        running.retain(|cancel| !cancel.is_over());
        running.push(lease.canceller());
    }

    fn busy(&self) -> Vec<Arc<NodeCancel>> {
        let running = self.0.lock();
        running
            .iter()
            .filter(|cancel| !cancel.is_over() && cancel.is_busy())
            .cloned()
            .collect()
    }
}

/// Cancels what a [`ReplicatedConnection`](super::ReplicatedConnection) runs at the time when the token is used.
///
/// You may take it before the statement starts, and use it from another task. A statement may end before the request
/// arrives. See [Canceling Requests in
/// Progress](https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-CANCELING-REQUESTS).
#[derive(Clone)]
pub struct CancelToken {
    running: Arc<Running>,
    cluster: Weak<Cluster>,
}

impl CancelToken {
    pub(super) fn new(running: &Arc<Running>, cluster: &Arc<Cluster>) -> Self {
        Self {
            running: Arc::clone(running),
            cluster: Arc::downgrade(cluster),
        }
    }

    /// Asks each server that runs a statement of the connection to cancel it.
    ///
    /// `Ok` means that the requests were sent, not that something was cancelled.
    ///
    /// # Errors
    ///
    /// A server cannot be reached within `connect_timeout`.
    pub async fn cancel(&self) -> Result<(), ConnectError> {
        for cancel in self.running.busy() {
            // Without its cluster no statement of it runs.
            let Some(cluster) = self.cluster.upgrade() else {
                break;
            };
            cluster.within(cancel.cancel()).await.transpose()?;
        }
        Ok(())
    }

    /// As [`cancel`](Self::cancel), by the name that the token of diesel-async's own connection has for it. The
    /// connector for TLS is not used: requests go the way that the pool's connections go.
    ///
    /// # Errors
    ///
    /// As [`cancel`](Self::cancel).
    pub async fn cancel_query<T>(&self, _tls: T) -> Result<(), ConnectError> {
        self.cancel().await
    }
}

impl fmt::Debug for CancelToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancelToken").finish_non_exhaustive()
    }
}
