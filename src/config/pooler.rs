//! Poolers between the application and the servers.

use super::declare::named;

/// How a pooler between this pool and a server shares server connections; see
/// <https://www.pgbouncer.org/features.html>.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Pooler {
    /// A connection has a server connection for itself until it ends. All works as without a pooler.
    Session,
    /// Each transaction may run on another server connection. What a session leaves behind is refused:
    /// [`Error::PooledTransactions`](crate::Error::PooledTransactions).
    Transaction,
}

named! {
    Pooler: "`session` or `transaction`" {
        Session = "session",
        Transaction = "transaction",
    }
}
