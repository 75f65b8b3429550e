//! A pool over several groups of one primary each.

mod builder;
mod check;
mod direction;
mod force;
mod late;
mod moving;
mod session;
mod watch;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::connection::{HomeAt, ReplicatedConnection, home_at};
use crate::error::{Error, GroupsError};
use crate::groups::{Groups, Home};

use super::ReplicatedPool;

pub use builder::MultiPrimaryBuilder;
pub use check::{Finding, GroupStatus};
pub use direction::Direction;
pub use force::{Forced, Survivor};
pub use late::LateWrite;
pub use moving::Moved;
pub use session::MultiPrimarySession;

/// A pool over several groups, each of one primary and its replicas, that replicate to each other logically. See
/// [the guide](crate::guide::several_primaries), also for when not to do this.
///
/// Each key is written in one group at a time, its home; the databases see to that. Reads run in the local group, if it
/// has applied what the session must see of the others.
///
/// Cloning it is cheap, and all clones are the same pool.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use diesel_async::RunQueryDsl;
/// use diesel_replicated::{Builder, MultiPrimaryPool};
///
/// let pool = MultiPrimaryPool::builder()
///     .group("eu", Builder::from_url("postgres://app@eu-1,eu-2/app")?)
///     .group("us", Builder::from_url("postgres://app@us-1,us-2/app")?)
///     .local("eu")
///     .build()
///     .await?;
///
/// pool.place("user:42", "us").await?;
/// let mut conn = pool.for_key("user:42").await?;
/// let touch = diesel::sql_query("UPDATE users SET seen = now() WHERE id = 42");
/// touch.execute(&mut conn).await?; // runs in us
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct MultiPrimaryPool {
    groups: Arc<Groups>,
    pools: Arc<[ReplicatedPool]>,
}

impl MultiPrimaryPool {
    /// Starts to build a pool.
    pub fn builder() -> MultiPrimaryBuilder {
        MultiPrimaryBuilder::default()
    }

    /// Hands out a connection that writes for `key`, where that is at home, and reads where it is near.
    ///
    /// All that it writes has to belong to the key. It is a session of its own.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`]. Whether the key has a home is found out by the first statement that needs it.
    pub async fn for_key(&self, key: impl AsRef<str>) -> Result<ReplicatedConnection, Error> {
        self.session().for_key(key).await
    }

    /// Hands out a connection of the local group that writes nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`].
    pub async fn get(&self) -> Result<ReplicatedConnection, Error> {
        self.session().get().await
    }

    /// Begins a session that several connections share, of whatever keys.
    #[must_use]
    pub fn session(&self) -> MultiPrimarySession {
        MultiPrimarySession::new(&self.groups)
    }

    /// Goes on with the session of a token; see [`MultiPrimarySession::token`]. What is no token promises nothing.
    #[must_use]
    pub fn resume(&self, token: &str) -> MultiPrimarySession {
        MultiPrimarySession::resumed(&self.groups, token)
    }

    /// The pool of one group, as it is without the others. Nothing guards what is written over it: it is for migrations,
    /// and for tables that only this group has.
    #[must_use]
    pub fn group(&self, name: &str) -> Option<&ReplicatedPool> {
        self.groups.find(name).map(|group| &self.pools[group])
    }

    /// The names of the groups, in the order in which they were given.
    #[must_use]
    pub fn groups(&self) -> Vec<String> {
        self.groups.names()
    }

    /// The name of the local group.
    #[must_use]
    pub fn local(&self) -> &str {
        &self.groups.members[self.groups.local].name
    }

    /// Where a key is at home, as the group says that should know. `None` if it has no home.
    ///
    /// # Errors
    ///
    /// That group cannot be asked.
    pub async fn home(&self, key: impl AsRef<str>) -> Result<Option<Home>, Error> {
        let found = home_at(&self.groups, key.as_ref()).await?;
        Ok(found.map(|found: HomeAt| Home {
            group: self.groups.members[found.group].name.clone(),
            generation: found.generation,
            settled: found.settled,
        }))
    }

    /// Closes the pools of all groups; see [`ReplicatedPool::close`].
    pub async fn close(&self, deadline: Duration) -> usize {
        let closing = self.pools.iter().map(|pool| pool.close(deadline));
        futures_util::future::join_all(closing)
            .await
            .into_iter()
            .sum()
    }

    /// The position of the group of this name.
    fn find(&self, name: &str) -> Result<usize, Error> {
        let unknown = || GroupsError::UnknownGroup {
            name: name.to_owned(),
            known: self.groups.names(),
        };
        Ok(self.groups.find(name).ok_or_else(unknown)?)
    }
}

impl fmt::Debug for MultiPrimaryPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MultiPrimaryPool")
            .field("groups", &self.groups)
            .finish_non_exhaustive()
    }
}
