//! What can go wrong with several groups of one primary each.

use std::time::Duration;

impl GroupsError {
    /// A group did not answer as it should.
    pub(crate) fn not_done(error: diesel::result::Error) -> Self {
        let cause = error.to_string();
        Self::NotDone { cause }
    }
}

/// Why a statement over several groups was not run. Nothing of it has run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GroupsError {
    /// The connection has no key, so nobody knows where it may write.
    #[error("this connection writes nothing, because it has no key: take one with `for_key`")]
    NoKey,

    /// No group knows a home of the key.
    #[error("the key has no home in any group: give it one with `place`")]
    NoHome,

    /// A group could not be asked for something, or refused it.
    #[error("a group did not do what it was asked for: {cause}")]
    NotDone {
        /// What it said, or why it could not be reached.
        cause: String,
    },

    /// The group was given up by a forced move, and not taken back yet: the others apply nothing that it writes.
    #[error(
        "group `{name}` was given up: the others apply nothing that it writes; take it back first"
    )]
    GivenUp {
        /// Its name.
        name: String,
    },

    /// A group that was to stop to apply what another one writes still does.
    #[error(
        "group `{name}` has not stopped within {waited:?} to apply what the group that is gone wrote; call again"
    )]
    StillApplies {
        /// Its name.
        name: String,
        /// How long was waited.
        waited: Duration,
    },

    /// What was given as a key is none.
    #[error("a key has at most 1000 bytes, and no NUL")]
    Key,

    /// The key was on its way to another home all the time.
    #[error(
        "the key was on its way to another home, or back, for {waited:?}; group `{group}` was asked last"
    )]
    Moving {
        /// The group that was asked last.
        group: String,
        /// How long the statement waited.
        waited: Duration,
    },

    /// No group that could serve the read has applied what the session has written or seen in others.
    #[error(
        "no group has applied within {waited:?} what this session must see; replication between groups is behind"
    )]
    Behind {
        /// How long the read waited.
        waited: Duration,
    },

    /// A text of several statements begins or ends a transaction, so that nothing guards what comes after.
    #[error(
        "several statements in one text with their own BEGIN or COMMIT cannot be guarded: use `transaction`"
    )]
    OwnTransaction,

    /// What was called is of one group, and this connection is over several.
    #[error(
        "`{what}` is of one group, and this connection is over several: use a connection of `group`"
    )]
    OfOneGroup {
        /// The method.
        what: &'static str,
    },

    /// The session has left something in one group that no other has, and the key is at home elsewhere.
    #[error(
        "this connection has state in another group than the key's home (temporary tables, locks, LISTEN, prepared \
         statements): take a new one"
    )]
    StateElsewhere,

    /// A read-only transaction that runs near was to be given a setting, which might let it write.
    #[error(
        "a read-only transaction over several groups takes no settings: begin one that may write"
    )]
    SetsInReadOnly,

    /// A group has not applied in time what another one has written; nothing was moved.
    #[error(
        "group `{to}` has not applied within {waited:?} what `{from}` has written; nothing was moved"
    )]
    NotReplicating {
        /// The group that writes.
        from: String,
        /// The group that is behind.
        to: String,
        /// How long was waited.
        waited: Duration,
    },

    /// A group was to take over its own keys.
    #[error("group `{name}` cannot take over its own keys")]
    SameGroup {
        /// The name.
        name: String,
    },

    /// The name of a group is given twice, or is no name.
    #[error(
        "`{name}` is no name for another group: names differ, and have 1 to 40 ASCII letters, digits, `_` and `-`"
    )]
    GroupName {
        /// The name.
        name: String,
    },

    /// There is no group of this name.
    #[error("there is no group named `{name}`; there are {}", .known.join(", "))]
    UnknownGroup {
        /// The name.
        name: String,
        /// The names of all groups.
        known: Vec<String>,
    },
}
