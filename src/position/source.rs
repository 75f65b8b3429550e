//! Where servers tell their positions that refuse PostgreSQL's functions.

use std::fmt;

/// How servers are asked for their positions, where they refuse PostgreSQL's functions.
///
/// Give it to [`Builder::position_source`](crate::Builder::position_source). What compares positions does not care
/// where they come from. Each method returns an SQL expression, without parameters. The pool puts all of them into the
/// question that it asks each server, and into those that it sends together with a read: every server must understand
/// all of them, and evaluates its own. An error is told as the node's `monitor_error`, and a standby for which the
/// expression is `NULL` as one that tells no position; see
/// [`assumed_lag`](crate::config::ConsistencyConfig::assumed_lag).
///
/// For Aurora, from its [documentation](https://docs.aws.amazon.com/AmazonRDS/latest/AuroraUserGuide/aurora_replica_status.html);
/// nobody has tried it there yet:
///
/// ```
/// use diesel_replicated::{PositionSource, ReplicatedPool};
///
/// #[derive(Debug)]
/// struct Aurora;
///
/// impl PositionSource for Aurora {
///     fn of_primary(&self) -> &str {
///         "(SELECT '0/0'::pg_lsn + durable_lsn FROM aurora_replica_status() \
///          WHERE session_id = 'MASTER_SESSION_ID')"
///     }
///
///     fn of_standby(&self) -> &str {
///         "(SELECT '0/0'::pg_lsn + current_read_lsn FROM aurora_replica_status() \
///          WHERE server_id = aurora_db_instance_identifier())"
///     }
///
///     // All servers share one volume, and a failover leaves nothing of it behind.
///     fn timeline(&self) -> Option<&str> {
///         Some("1")
///     }
/// }
///
/// let builder = ReplicatedPool::builder().position_source(Aurora);
/// ```
pub trait PositionSource: fmt::Debug + Send + Sync + 'static {
    /// How far a primary has come, as `pg_lsn`. It must cover all commits that were acknowledged before it is asked.
    fn of_primary(&self) -> &str;

    /// How far a standby has come, as `pg_lsn`. Reads that begin there later must see all commits up to it.
    fn of_standby(&self) -> &str;

    /// The server's timeline, as a positive `int`: it grows with each failover after which positions may go on
    /// elsewhere than where they were. It then counts instead of what PostgreSQL tells. Default: `None`; PostgreSQL's
    /// functions tell it.
    fn timeline(&self) -> Option<&str> {
        None
    }
}
