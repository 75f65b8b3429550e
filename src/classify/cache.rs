//! Remembers verdicts, within bounds, so that a statement is read once and not each time.

use std::any::TypeId;
use std::hash::{Hash, Hasher};

use quick_cache::sync::Cache;
use quick_cache::{Equivalent, Weighter};

use super::Verdict;

/// How many statements are expected to be remembered.
const STATEMENTS: usize = 4096;

/// The bound on the size of all remembered statements, roughly in bytes.
const WEIGHT: u64 = 4 << 20;

/// Longer texts are not remembered: they seldom come twice.
const LONGEST: usize = 16 << 10;

/// What stands for a statement: the type of the query, where that determines the text, or the
/// text itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QueryKey<'a> {
    /// A query whose type determines its text.
    Static(TypeId),
    /// Any other.
    Text(&'a str),
}

impl<'a> QueryKey<'a> {
    pub(super) fn new(id: Option<TypeId>, sql: &'a str) -> Self {
        id.map_or(Self::Text(sql), Self::Static)
    }

    /// Whether it is remembered at all.
    pub(super) fn is_short(self) -> bool {
        match self {
            Self::Static(_) => true,
            Self::Text(text) => text.len() <= LONGEST,
        }
    }
}

impl Hash for QueryKey<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            Self::Static(id) => id.hash(state),
            Self::Text(text) => text.hash(state),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum OwnedKey {
    Static(TypeId),
    Text(Box<str>),
}

impl OwnedKey {
    pub(super) fn borrow(&self) -> QueryKey<'_> {
        match self {
            Self::Static(id) => QueryKey::Static(*id),
            Self::Text(text) => QueryKey::Text(text),
        }
    }
}

impl From<QueryKey<'_>> for OwnedKey {
    fn from(key: QueryKey<'_>) -> Self {
        match key {
            QueryKey::Static(id) => Self::Static(id),
            QueryKey::Text(text) => Self::Text(text.into()),
        }
    }
}

impl Hash for OwnedKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.borrow().hash(state);
    }
}

impl Equivalent<OwnedKey> for QueryKey<'_> {
    fn equivalent(&self, key: &OwnedKey) -> bool {
        match (self, key) {
            (Self::Static(one), OwnedKey::Static(other)) => one == other,
            (Self::Text(one), OwnedKey::Text(other)) => **one == **other,
            _ => false,
        }
    }
}

#[derive(Clone, Debug)]
struct Weight;

impl Weighter<OwnedKey, Verdict> for Weight {
    fn weight(&self, key: &OwnedKey, _: &Verdict) -> u64 {
        let text = match key {
            OwnedKey::Static(_) => 0,
            OwnedKey::Text(text) => text.len(),
        };
        64 + text as u64
    }
}

/// A bounded memory of verdicts.
#[derive(Debug)]
pub(super) struct Verdicts(Cache<OwnedKey, Verdict, Weight>);

impl Verdicts {
    pub(super) fn new() -> Self {
        Self(Cache::with_weighter(STATEMENTS, WEIGHT, Weight))
    }

    pub(super) fn get(&self, key: QueryKey<'_>) -> Option<Verdict> {
        self.0.get(&key)
    }

    pub(super) fn insert(&self, key: QueryKey<'_>, verdict: Verdict) {
        if key.is_short() {
            self.0.insert(key.into(), verdict);
        }
    }

    pub(super) fn remove(&self, key: QueryKey<'_>) {
        self.0.remove(&key);
    }
}

#[cfg(test)]
impl Verdicts {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}
