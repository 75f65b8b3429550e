//! Connections that end together.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use tokio_util::sync::CancellationToken;

pub(super) const CLOSED: &str = "the connection was closed by this pool";

/// How long the connections of one node may live.
#[derive(Debug, Default)]
pub(crate) struct Lifetime {
    /// The same as the token says. To ask the token takes a lock, and each statement asks several times.
    is_over: AtomicBool,
    over: CancellationToken,
}

impl Lifetime {
    fn within(&self) -> Self {
        Self {
            is_over: AtomicBool::new(false),
            over: self.over.child_token(),
        }
    }

    pub(crate) fn end(&self) {
        self.is_over.store(true, Ordering::Release);
        self.over.cancel();
    }

    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    /// Ends when it does.
    pub(crate) async fn over(&self) {
        self.over.cancelled().await;
    }
}

/// The connections to one node that were opened while its role did not change.
#[derive(Debug)]
pub(crate) struct Generation {
    node: Arc<Lifetime>,
    own: Lifetime,
    cause: OnceLock<String>,
}

impl Generation {
    /// One that ends at the latest when `node` does.
    pub(crate) fn within(node: &Arc<Lifetime>) -> Arc<Self> {
        Arc::new(Self {
            own: node.within(),
            node: Arc::clone(node),
            cause: OnceLock::new(),
        })
    }

    /// Ends its connections, whatever runs on them.
    pub(crate) fn end(&self, cause: String) {
        let _ = self.cause.set(cause);
        self.own.end();
    }

    pub(crate) fn is_over(&self) -> bool {
        self.own.is_over() || self.node.is_over()
    }

    /// Why it ended.
    pub(super) fn cause(&self) -> String {
        let cause = self.cause.get();
        cause.map_or_else(|| CLOSED.to_owned(), Clone::clone)
    }

    /// Ends when it does.
    pub(super) async fn over(&self) {
        self.own.over().await;
    }
}
