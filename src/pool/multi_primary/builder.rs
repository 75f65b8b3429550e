//! Builds a pool over several groups.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::{MultiPrimaryPool, watch};
use crate::error::{Error, GroupsError};
use crate::groups::{Applied, Group, Groups, Homes, Membership, Presence};
use crate::pool::Builder;

/// The longest wait for another group.
const LONGEST: Duration = Duration::from_secs(3600);

/// Builds a [`MultiPrimaryPool`].
#[must_use]
pub struct MultiPrimaryBuilder {
    groups: Vec<(String, Builder)>,
    local: Option<String>,
    subscriptions: BTreeMap<(String, String), String>,
    wait: Duration,
}

impl Default for MultiPrimaryBuilder {
    fn default() -> Self {
        Self {
            groups: Vec::new(),
            local: None,
            subscriptions: BTreeMap::new(),
            wait: Duration::from_secs(5),
        }
    }
}

impl MultiPrimaryBuilder {
    /// Adds a group: its name and what its own pool is built from. The name is the one that
    /// [`setup_sql`](crate::multi_primary::setup_sql) was given, of ASCII letters, digits, `_` and `-`.
    pub fn group(mut self, name: impl Into<String>, pool: impl Into<Builder>) -> Self {
        self.groups.push((name.into(), pool.into()));
        self
    }

    /// Names the group whose nodes are near. Defaults to the first.
    pub fn local(mut self, name: impl Into<String>) -> Self {
        self.local = Some(name.into());
        self
    }

    /// Names the subscription by which the group `at` gets what the group `from` writes. Defaults to `from_` and the name
    /// of the other group.
    pub fn subscription(
        mut self,
        at: impl Into<String>,
        from: impl Into<String>,
        name: impl Into<String>,
    ) -> Self {
        let direction = (at.into(), from.into());
        self.subscriptions.insert(direction, name.into());
        self
    }

    /// How long a statement waits for another group: for a key that moves, or until what its session must see is applied.
    /// Defaults to 5 seconds; an hour is the most.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait.min(LONGEST);
        self
    }

    /// Builds the pool. The local group must be reachable; the others may join later.
    ///
    /// # Errors
    ///
    /// A name is not valid or is given twice, or the local group's pool cannot be built.
    pub async fn build(self) -> Result<MultiPrimaryPool, Error> {
        let names: Vec<_> = self.groups.iter().map(|(name, _)| name.clone()).collect();
        for (at, name) in names.iter().enumerate() {
            if !is_name(name) || names[..at].contains(name) {
                let name = name.clone();
                return Err(GroupsError::GroupName { name }.into());
            }
        }
        let named = self.local.clone().or_else(|| names.first().cloned());
        let named = named.unwrap_or_default();
        let local = names.iter().position(|name| *name == named);
        let local = local.ok_or(GroupsError::UnknownGroup {
            name: named,
            known: names.clone(),
        })?;
        for (at, from) in self.subscriptions.keys() {
            for name in [at, from] {
                if !names.contains(name) {
                    let (name, known) = (name.clone(), names);
                    return Err(GroupsError::UnknownGroup { name, known }.into());
                }
            }
        }
        let (mut members, mut pools) = (Vec::new(), Vec::new());
        for (at, (name, builder)) in self.groups.into_iter().enumerate() {
            let pool = match at == local {
                true => builder.build().await?,
                false => builder.build_unchecked()?,
            };
            let subscription = |from: &String| {
                let named = self.subscriptions.get(&(name.clone(), from.clone()));
                named.cloned().unwrap_or_else(|| format!("from_{from}"))
            };
            members.push(Group {
                subscriptions: names.iter().map(subscription).collect(),
                applied: Arc::new(Applied::new(names.len())),
                presence: Presence::default(),
                cluster: Arc::clone(&pool.cluster),
                name,
            });
            pools.push(pool);
        }
        let groups = Arc::new(Groups {
            members: members.into(),
            local,
            homes: Homes::new(),
            membership: Membership::new(names.len()),
            wait: self.wait,
        });
        watch::first_look(&groups).await;
        watch::start(&groups);
        let pools = pools.into();
        Ok(MultiPrimaryPool { groups, pools })
    }
}

/// Names stand in tokens and in SQL.
fn is_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    !name.is_empty() && name.len() <= 40 && name.chars().all(fits)
}

impl fmt::Debug for MultiPrimaryBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MultiPrimaryBuilder")
            .field("groups", &self.groups)
            .field("local", &self.local)
            .finish_non_exhaustive()
    }
}
