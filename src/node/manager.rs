//! What bb8 asks of us about connections.

use std::sync::Arc;

use bb8::{ErrorSink, ManageConnection};
use tokio::sync::watch;

use super::connect::Connector;
use super::connection::NodeConnection;
use crate::error::ConnectError;

/// The newest failure to connect, and how many there were before it.
#[derive(Clone, Debug, Default)]
pub(super) struct Failures {
    pub(super) count: u64,
    pub(super) last: Option<ConnectError>,
}

/// Opens connections, and judges them by what their wires say: no ping, ever.
#[derive(Debug)]
pub(crate) struct Manager {
    pub(super) connector: Arc<Connector>,
}

impl ManageConnection for Manager {
    type Connection = NodeConnection;
    type Error = ConnectError;

    async fn connect(&self) -> Result<NodeConnection, ConnectError> {
        self.connector.connect().await
    }

    async fn is_valid(&self, connection: &mut NodeConnection) -> Result<(), ConnectError> {
        if connection.is_usable() {
            return Ok(());
        }
        Err(ConnectError::new(
            self.connector.node(),
            crate::error::ConnectErrorKind::Other,
            "the connection died while it was idle",
        ))
    }

    fn has_broken(&self, connection: &mut NodeConnection) -> bool {
        !connection.is_usable() || !connection.wire.is_idle()
    }
}

/// Hands failures to connect to whoever waits for a connection; bb8 would let them wait on.
#[derive(Clone, Debug)]
pub(super) struct Sink {
    pub(super) failures: watch::Sender<Failures>,
    pub(super) connector: Arc<Connector>,
}

impl ErrorSink<ConnectError> for Sink {
    fn sink(&self, error: ConnectError) {
        tracing::debug!(target: "diesel_replicated", node = error.node, %error, "connect_failed");
        self.failures.send_modify(|failures| {
            failures.count += 1;
            failures.last = Some(error.clone());
        });
        self.connector.connect_failed(error);
    }

    fn boxed_clone(&self) -> Box<dyn ErrorSink<ConnectError>> {
        Box::new(self.clone())
    }
}
