//! Whose connections of a node are meant: everybody's, or those for reads that ask for a tag.

use std::collections::BTreeMap;

use crate::config::TagConfig;

/// The connections that everybody uses, or those for one of the tags of the configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lane(usize);

impl Lane {
    /// The lane of a tag, if the configuration has it.
    pub(crate) fn of(tag: &str, tagged: &BTreeMap<String, TagConfig>) -> Option<Self> {
        let place = tagged.keys().position(|known| known == tag)?;
        Some(Self(place + 1))
    }

    /// Whether it is everybody's.
    pub(crate) fn is_general(self) -> bool {
        self.0 == 0
    }
}
