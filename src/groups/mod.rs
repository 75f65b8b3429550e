//! Groups of one primary each: where each key is written, and what each group has applied of the others.
//!
//! A key is written in one group at a time, its home. The databases decide that, not the pools: each write asks its own
//! database, in its own transaction, whether the key is at home there ([`setup`]). What a pool knows of homes ([`Homes`])
//! only saves questions.

mod applied;
mod homes;
mod membership;
mod presence;
mod refusal;
mod session;
mod setup;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) use applied::{Applied, Sighting};
pub use homes::Home;
pub(crate) use homes::{Homes, checked_key};
pub(crate) use membership::{Follows, Membership};
pub(crate) use presence::Presence;
pub(crate) use refusal::{Refusal, SQLSTATE};
pub(crate) use session::{GroupsHistory, Place};
pub(crate) use setup::check;
pub use setup::setup_sql;

use crate::cluster::{Cluster, Member};

/// All groups, as one process sees them.
pub(crate) struct Groups {
    pub(crate) members: Box<[Group]>,
    /// The position of the one whose nodes are near.
    pub(crate) local: usize,
    pub(crate) homes: Homes,
    pub(crate) membership: Membership,
    /// How long a statement waits for another group.
    pub(crate) wait: Duration,
}

/// One group: a primary and its replicas.
pub(crate) struct Group {
    pub(crate) name: String,
    pub(crate) cluster: Arc<Cluster>,
    /// The names of its subscriptions to the others; its own place says nothing.
    pub(crate) subscriptions: Box<[String]>,
    /// What it has applied of the others.
    pub(crate) applied: Arc<Applied>,
    pub(crate) presence: Presence,
}

impl Groups {
    /// The position of the group of this name.
    pub(crate) fn find(&self, name: &str) -> Option<usize> {
        self.members.iter().position(|group| group.name == name)
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.members
            .iter()
            .map(|group| group.name.clone())
            .collect()
    }

    /// Whether a group takes writes, as far as is known, or may soon again. A failover within it takes less time than
    /// statements wait. Who waits from its beginning is still served after it counts as away.
    pub(crate) fn is_there(&self, group: usize) -> bool {
        let member = &self.members[group];
        let topology = member.cluster.topology();
        let up = topology.primary().is_some_and(Member::is_up);
        let away = member.presence.note(up, Instant::now());
        away.is_none_or(|away| away < self.wait.mul_f32(0.8))
    }
}

impl fmt::Debug for Groups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Groups")
            .field("names", &self.names())
            .field("local", &self.local)
            .finish_non_exhaustive()
    }
}
