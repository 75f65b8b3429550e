//! Whether it is found out what became of a COMMIT whose connection broke.

use super::declare::named;

/// The table that [`CommitResolution::Marker`] needs, as a migration in one statement.
///
/// The role of the pool needs `SELECT`, `INSERT` and `DELETE` on it. Rows are removed by the pool after an
/// hour.
pub const COMMIT_MARKER_SQL: &str = "CREATE TABLE IF NOT EXISTS diesel_replicated_commits (\
    id uuid PRIMARY KEY, at timestamptz NOT NULL DEFAULT now())";

/// Whether, and how, it is found out what became of a COMMIT whose connection broke.
///
/// Such a COMMIT may have succeeded. Where this is on, the pool asks whichever server is the primary then,
/// for up to 5 seconds: `commit` returns `Ok` if it has succeeded, an error with
/// [`Outcome::NotRun`](crate::Outcome) if it was rolled back, and else, as without it, one with
/// [`Outcome::Unknown`](crate::Outcome). It costs one round trip for each transaction that writes, with
/// markers two; it does nothing for statements outside of transactions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum CommitResolution {
    /// It is not found out. In text: `off`.
    #[default]
    Off,
    /// By the transaction's number
    /// ([`pg_xact_status`](https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-INFO-SNAPSHOT)).
    /// After a failover it is not known: the new primary gives the same numbers to other
    /// transactions. After a crash of the server it may not be, for the same reason. In text: `transaction_id`.
    TransactionId,
    /// By a row that each transaction writes into a table of its own ([`COMMIT_MARKER_SQL`]), which tells
    /// also after a failover. In text: `marker`.
    Marker,
}

named! {
    CommitResolution: "`off`, `transaction_id` or `marker`" {
        Off = "off",
        TransactionId = "transaction_id",
        Marker = "marker",
    }
}
