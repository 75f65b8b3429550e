//! What is known of the homes of keys. It may be outdated: the databases decide.

use quick_cache::sync::Cache;

use crate::error::GroupsError;

/// Where a key is written.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Home {
    /// The name of the group.
    pub group: String,
    /// How many homes the key has had, this one included.
    pub generation: i64,
    /// Whether writes may go there. While a key moves they wait.
    pub settled: bool,
}

/// A text as a key: it has to fit into an index, and into SQL.
pub(crate) fn checked_key(key: &str) -> Result<&str, GroupsError> {
    match key.len() <= 1000 && !key.contains('\0') {
        true => Ok(key),
        false => Err(GroupsError::Key),
    }
}

/// So many keys are remembered.
const CAPACITY: usize = 100_000;

/// The homes that were heard of.
#[derive(Debug)]
pub(crate) struct Homes {
    known: Cache<Box<str>, (usize, i64)>,
}

impl Homes {
    pub(crate) fn new() -> Self {
        Self {
            known: Cache::new(CAPACITY),
        }
    }

    /// The group of the key's home and its generation, as last heard.
    pub(crate) fn get(&self, key: &str) -> Option<(usize, i64)> {
        self.known.get(key)
    }

    /// Takes note of a home. What is older than what is known says nothing.
    pub(crate) fn learn(&self, key: &str, group: usize, generation: i64) {
        let newer = self.get(key).is_none_or(|(_, known)| known < generation);
        if newer {
            self.known.insert(key.into(), (group, generation));
        }
    }

    /// Forgets all.
    pub(crate) fn clear(&self) {
        self.known.clear();
    }
}
