//! What a statement leaves on its connection beyond its transaction.

/// What a statement leaves on its connection. The greater is the harder to move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Leaves {
    /// Nothing that a later statement could notice.
    #[default]
    Nothing,
    /// Settings that the text itself tells, so that any connection can be given them.
    Settings,
    /// Nobody knows before the catalog is loaded again.
    Unsure,
    /// Nobody knows: it runs code that may do anything.
    Unknown,
    /// What only this connection can have: temporary tables, locks, `LISTEN`, prepared statements.
    State,
}

impl Leaves {
    /// Whether the rest of the session has to stay on the connection.
    pub(crate) fn pins(self) -> bool {
        self >= Self::Unsure
    }
}
