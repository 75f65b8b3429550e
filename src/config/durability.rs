//! How far a commit must have got before it is acknowledged: PostgreSQL's `synchronous_commit`.

use super::declare::named;

/// How far a commit must have got before the primary acknowledges it.
///
/// These are the values of
/// [`synchronous_commit`](https://www.postgresql.org/docs/current/runtime-config-wal.html#GUC-SYNCHRONOUS-COMMIT).
/// The last three wait for standbys only if the server's `synchronous_standby_names` names some.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Durability {
    /// Nowhere: a crash of the primary may lose what was acknowledged within the last moments.
    Off,
    /// On the primary's disk.
    Local,
    /// Received by the synchronous standbys, which have handed it to their operating systems.
    RemoteWrite,
    /// On the disks of the synchronous standbys.
    On,
    /// Applied by the synchronous standbys: reads there see it. With `ANY 1 (…)` one of them has
    /// applied it and nobody is told which; only if all that take reads must confirm does every
    /// replica show it.
    RemoteApply,
}

named! {
    Durability: "`off`, `local`, `remote_write`, `on` or `remote_apply`" {
        Off = "off",
        Local = "local",
        RemoteWrite = "remote_write",
        On = "on",
        RemoteApply = "remote_apply",
    }
}

impl Durability {
    /// The statement that sets it for a session, or with `SET LOCAL` for a transaction.
    pub(crate) fn sql(self, set: &str) -> String {
        format!("{set} synchronous_commit TO {}", self.as_str())
    }
}
