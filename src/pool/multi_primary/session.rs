//! A session over several groups, here or, through its token, elsewhere.

use std::fmt;
use std::sync::Arc;

use crate::connection::{ReplicatedConnection, token_of};
use crate::consistency::SessionHistory;
use crate::error::Error;
use crate::groups::{Groups, GroupsHistory, checked_key};
use crate::token::SessionToken;

/// A session over several groups: what one of its connections writes in one group, the others read in any.
#[derive(Clone)]
pub struct MultiPrimarySession {
    groups: Arc<Groups>,
    history: Arc<GroupsHistory>,
}

impl MultiPrimarySession {
    pub(super) fn new(groups: &Arc<Groups>) -> Self {
        let of = groups.members.iter().map(|_| Arc::default());
        let history = Arc::new(GroupsHistory::new(of));
        Self {
            groups: Arc::clone(groups),
            history,
        }
    }

    pub(super) fn resumed(groups: &Arc<Groups>, token: &str) -> Self {
        let parts: Vec<&str> = token.split('.').collect();
        let told = |name: &str| {
            let mut pairs = parts.chunks_exact(2);
            let token = pairs.find(|pair| pair[0] == name)?[1];
            let token: SessionToken = token.parse().ok()?;
            let resumed =
                || SessionHistory::resumed(token.cluster(), token.written(), token.seen());
            (!token.is_empty()).then(resumed)
        };
        let members = groups.members.iter();
        let of = members.map(|group| Arc::new(told(&group.name).unwrap_or_default()));
        Self {
            groups: Arc::clone(groups),
            history: Arc::new(GroupsHistory::new(of)),
        }
    }

    /// As [`MultiPrimaryPool::for_key`](super::MultiPrimaryPool::for_key), within this session.
    ///
    /// # Errors
    ///
    /// The key is none, or [`Error::Closed`].
    #[expect(
        clippy::unused_async,
        reason = "as in other pools, so that one can be swapped for the other"
    )]
    pub async fn for_key(&self, key: impl AsRef<str>) -> Result<ReplicatedConnection, Error> {
        self.connection(Some(checked_key(key.as_ref())?.into()))
    }

    /// As [`MultiPrimaryPool::get`](super::MultiPrimaryPool::get), within this session.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`].
    #[expect(
        clippy::unused_async,
        reason = "as in other pools, so that one can be swapped for the other"
    )]
    pub async fn get(&self) -> Result<ReplicatedConnection, Error> {
        self.connection(None)
    }

    fn connection(&self, key: Option<Box<str>>) -> Result<ReplicatedConnection, Error> {
        let (groups, history) = (Arc::clone(&self.groups), Arc::clone(&self.history));
        ReplicatedConnection::keyed(groups, key, history)
    }

    /// The token of what the session has written and seen until now in each group: names of groups and their
    /// [`SessionToken`]s, with dots between. It needs no escaping in URLs, cookies and headers. It waits as
    /// [`Session::token`](crate::Session::token).
    pub async fn token(&self) -> String {
        let mut parts = Vec::new();
        for (at, group) in self.groups.members.iter().enumerate() {
            let token = token_of(&group.cluster, &self.history.of[at]).await;
            let token = self.history.seen_elsewhere(&self.groups, at, &token);
            if !token.is_empty() {
                parts.push(format!("{}.{token}", group.name));
            }
        }
        parts.join(".")
    }
}

impl fmt::Debug for MultiPrimarySession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MultiPrimarySession")
            .field("history", &self.history)
            .finish_non_exhaustive()
    }
}
