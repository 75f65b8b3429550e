//! How far a commit must have got before it is acknowledged: PostgreSQL's `synchronous_commit`.

use std::fmt;

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

impl Durability {
    /// What [`parse`](Self::parse) reads, for errors.
    pub(crate) const EXPECTED: &'static str =
        "`off`, `local`, `remote_write`, `on` or `remote_apply`";

    /// The value of `synchronous_commit`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Local => "local",
            Self::RemoteWrite => "remote_write",
            Self::On => "on",
            Self::RemoteApply => "remote_apply",
        }
    }

    /// The level called `text` in a URL or the environment.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let all = [
            Self::Off,
            Self::Local,
            Self::RemoteWrite,
            Self::On,
            Self::RemoteApply,
        ];
        all.into_iter().find(|level| level.as_str() == text)
    }

    /// The statement that sets it for a session, or with `SET LOCAL` for a transaction.
    pub(crate) fn sql(self, set: &str) -> String {
        format!("{set} synchronous_commit TO {}", self.as_str())
    }
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
