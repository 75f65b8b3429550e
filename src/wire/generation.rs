//! Connections that end together.

use std::sync::{Arc, OnceLock};

use tokio_util::sync::CancellationToken;

pub(super) const CLOSED: &str = "the connection was closed by this pool";

/// The connections to one node that were opened while its role did not change.
#[derive(Debug)]
pub(crate) struct Generation {
    over: CancellationToken,
    cause: OnceLock<String>,
}

impl Generation {
    /// One that ends at the latest when `node` does.
    pub(crate) fn within(node: &CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            over: node.child_token(),
            cause: OnceLock::new(),
        })
    }

    /// Ends its connections, whatever runs on them.
    pub(crate) fn end(&self, cause: String) {
        let _ = self.cause.set(cause);
        self.over.cancel();
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.is_cancelled()
    }

    /// Why it ended.
    pub(super) fn cause(&self) -> String {
        let cause = self.cause.get();
        cause.map_or_else(|| CLOSED.to_owned(), Clone::clone)
    }

    /// Ends when it does.
    pub(super) async fn over(&self) {
        self.over.cancelled().await;
    }
}
