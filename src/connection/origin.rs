//! What a connection was when a pool over this one first lent it out, and how it becomes that again.

use std::sync::atomic::AtomicBool;

use diesel::connection::CacheSize;
use diesel_async::AnsiTransactionManager;

use super::ReplicatedConnection;
use super::session_settings::SessionSettings;
use super::session_state::SessionState;

/// What a connection was when a pool over this one first lent it out.
#[derive(Debug)]
pub(super) enum Origin {
    /// It was not lent out yet.
    Open,
    /// It had these settings, and nothing else that a user could notice.
    Known(SessionSettings),
    /// It had something that cannot be made again.
    Unknown,
}

impl ReplicatedConnection {
    /// Forgets what was done on this connection, and gives the server connections back. An open
    /// transaction stays: tests keep one open between checkouts on purpose. (Any other makes the
    /// connection broken.)
    pub(super) fn renew(&mut self) {
        let session = self.session.get_mut();
        session.notice_transaction_end();
        if session.transaction.is_none() {
            let settings = match &self.origin {
                Origin::Known(settings) => settings.clone(),
                Origin::Open | Origin::Unknown => SessionSettings::default(),
            };
            *session = SessionState {
                settings,
                ..SessionState::default()
            };
            self.transaction = AnsiTransactionManager::default();
            self.must_roll_back = AtomicBool::new(false);
            self.cache_size = CacheSize::Unbounded;
            self.lot = rand::random();
        }
    }

    /// Whether no pool over this one has lent it out yet.
    pub(super) fn is_new(&self) -> bool {
        matches!(self.origin, Origin::Open)
    }

    /// Every user of the connection is to have what was set until now. A pool over this one checks a connection
    /// before it lends it out, and its hooks have run before that.
    pub(super) fn settle_origin(&mut self) {
        let session = self.session.get_mut();
        if matches!(self.origin, Origin::Open) {
            self.origin = if session.pinned || session.transaction.is_some() {
                Origin::Unknown
            } else {
                Origin::Known(session.settings.clone())
            };
        }
    }

    /// Whether a pool over this one must make the connection anew for the next user. Call it after the first use.
    pub(super) fn has_lost_its_origin(&mut self) -> bool {
        let session = self.session.get_mut();
        if matches!(self.origin, Origin::Open) {
            // It was lent out unchecked: nobody can tell its hooks from its user.
            let touched = session.pinned || !session.settings.is_empty();
            self.origin = if touched {
                Origin::Unknown
            } else {
                Origin::Known(SessionSettings::default())
            };
        }
        matches!(self.origin, Origin::Unknown)
    }
}
