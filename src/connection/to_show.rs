//! What the server of a connection has to show before a statement counts.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::OwnedSemaphorePermit;

use crate::consistency::Reports;
use crate::node::{WaitForLsn, Wanted};

/// What the server of a connection has to show before the statement counts.
#[derive(Debug)]
pub(super) enum ToShow {
    /// It shows it now.
    AtOnce(Wanted),
    /// It shows it in time.
    InTime(ServerWait),
}

/// A wait of a server.
#[derive(Debug)]
pub(super) struct ServerWait {
    pub(super) wait: WaitForLsn,
    /// When its answer is not waited for any more.
    pub(super) end: Instant,
    /// Since when the read waits.
    pub(super) since: Instant,
    pub(super) reports: Arc<Reports>,
    pub(super) _permit: OwnedSemaphorePermit,
}
