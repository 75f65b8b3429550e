//! What running some code may do, and so what a call may do.

/// What running some code may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent properties")]
pub(super) struct Does {
    /// It tells of the server that is asked.
    pub(super) of_server: bool,
    /// It may write, or fails on a standby.
    pub(super) volatile: bool,
    /// It is not known to leave nothing in the session.
    pub(super) leaves: bool,
    /// No command undoes that.
    pub(super) indelible: bool,
    /// It takes an advisory lock until the transaction ends.
    pub(super) locks: bool,
}

impl Does {
    /// Code that writes at most.
    pub(super) const VOLATILE: Self = Self {
        of_server: false,
        volatile: true,
        leaves: false,
        indelible: false,
        locks: false,
    };

    /// Code that asks about the server.
    pub(super) const OF_SERVER: Self = Self {
        of_server: true,
        ..Self::NOTHING
    };

    pub(super) const NOTHING: Self = Self {
        volatile: false,
        ..Self::VOLATILE
    };

    /// Adds what other code does. Whether that is news.
    pub(super) fn add(&mut self, other: Self) -> bool {
        let before = *self;
        self.of_server |= other.of_server;
        self.volatile |= other.volatile;
        self.leaves |= other.leaves;
        self.indelible |= other.indelible;
        self.locks |= other.locks;
        *self != before
    }
}

/// What a call may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing that a standby could not do as well.
    Harmless,
    /// It tells of the server that is asked.
    Server,
    /// It is a user's that was declared volatile, and its body does nothing of the kind.
    Declared,
    /// It may write, or fails on a standby.
    Volatile,
    /// It takes an advisory lock until the transaction ends.
    Lock,
    /// It changes settings of the session, and writes nothing.
    Setting,
    /// It takes or releases what the session holds.
    SessionLock,
    /// It takes something that only the end of the session gives back.
    Indelible,
    /// It runs code of the user's, which may write, and does this.
    Code(Does),
    /// Nothing is known of it.
    Unknown,
}
