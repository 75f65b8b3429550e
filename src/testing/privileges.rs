//! Running servers as an unprivileged user, because PostgreSQL refuses to run as root.

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use super::error::{ClusterError, io};

/// Whom the servers run as.
#[derive(Clone, Copy, Debug)]
pub(super) struct Privileges(Option<(u32, u32)>);

impl Privileges {
    /// The present user, or for root `postgres` or else `nobody`.
    pub(super) fn choose() -> Result<Self, ClusterError> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Self(None));
        }
        let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let ids = |name: &str| {
            let line = users
                .lines()
                .find(|line| line.split(':').next() == Some(name))?;
            let mut fields = line.split(':').skip(2);
            Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
        };
        let user = ids("postgres").or_else(|| ids("nobody"));
        user.map(|ids| Self(Some(ids))).ok_or(ClusterError::NoUser)
    }

    pub(super) fn apply(self, command: &mut Command) {
        if let Some((user, group)) = self.0 {
            command.uid(user).gid(group);
        }
    }

    pub(super) fn own(self, path: &Path) -> Result<(), ClusterError> {
        if let Some((user, group)) = self.0 {
            let what = || format!("cannot hand {} to the server's user", path.display());
            chown(path, Some(user), Some(group)).map_err(io(what()))?;
        }
        Ok(())
    }
}
