//! Asks a server to cancel what one of its connections runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::Node;
use super::dial::Peer;
use crate::error::ConnectError;

/// Cancels what runs on the server connection that it was taken from. The lease of that connection has one, too.
pub(crate) struct NodeCancel {
    pub(super) node: Arc<Node>,
    pub(super) peer: Arc<Peer>,
    /// How many statements and row streams use the connection now.
    pub(super) users: AtomicUsize,
    /// Whether that was ever asked for.
    pub(super) asked: AtomicBool,
}

impl NodeCancel {
    /// Whether a statement is under way on the connection.
    pub(crate) fn is_busy(&self) -> bool {
        self.users.load(Ordering::Acquire) > 0
    }

    /// Whether the connection has gone back to its pool.
    pub(crate) fn is_over(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) == 1
    }

    /// Sends the request over a socket of its own, on the node's runtime.
    pub(crate) async fn cancel(&self) -> Result<(), ConnectError> {
        self.asked.store(true, Ordering::Release);
        self.node.pool.connector().cancel(&self.peer).await
    }
}
