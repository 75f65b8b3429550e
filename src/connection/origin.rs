//! What a connection was when a pool over this one first lent it out, and how it becomes that again.

use std::sync::atomic::AtomicBool;

use diesel::connection::CacheSize;
use diesel_async::AnsiTransactionManager;

use super::ReplicatedConnection;
use super::acquire::cause_of_death;
use super::session_settings::SessionSettings;
use super::session_state::SessionState;
use crate::classify::Verdict;
use crate::route::RouteReason;

/// What a connection was when a pool over this one first lent it out.
#[derive(Debug)]
pub(super) enum Origin {
    /// It was not lent out yet. A `ReplicatedPool` has made it for whoever asked.
    Own,
    /// It was not lent out yet. It was made from a URL, perhaps by a pool over this one, which may keep it for long
    /// before anybody uses it.
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
                Origin::Own | Origin::Open | Origin::Unknown => SessionSettings::default(),
            };
            *session = SessionState {
                settings,
                ..SessionState::default()
            };
            self.transaction = AnsiTransactionManager::default();
            self.must_roll_back = AtomicBool::new(false);
            self.cache_size = CacheSize::Unbounded;
            self.lot = self.cluster.draws.share();
        }
    }

    /// A connection that was made from a URL.
    pub(super) fn of_url(mut self) -> Self {
        self.origin = Origin::Open;
        self
    }

    /// Where the state was that this connection has lost with a server connection, and how.
    pub(super) fn lost_state(&mut self) -> Option<(String, String)> {
        let session = self.session.get_mut();
        let lost = session.lost.clone();
        let lease = match session.pinned {
            true => session.primary.as_ref(),
            false => session.transaction_lease(),
        };
        let dead = lease.filter(|lease| !lease.is_usable());
        lost.or_else(|| dead.map(|lease| (lease.node().name.clone(), cause_of_death(lease))))
    }

    /// Whether no pool over this one has lent it out yet.
    pub(super) fn is_new(&self) -> bool {
        matches!(self.origin, Origin::Own | Origin::Open)
    }

    /// A statement has ended. A connection that nobody has lent out yet keeps no server connection after it: the hooks
    /// of a pool over this one run on all its connections, which would take all there are. It keeps the primary's once
    /// it has done more than a hook that sets up.
    pub(super) fn rests_after(&self, verdict: Verdict) {
        if !matches!(self.origin, Origin::Open) {
            return;
        }
        let mut session = self.session();
        let harmless = verdict.control.is_none()
            && !verdict.writes
            && !verdict.leaves.pins()
            && matches!(
                verdict.reason,
                RouteReason::PlainSelect | RouteReason::SessionState
            );
        session.worked |= !harmless;
        if !session.worked {
            let kept = session.give_back();
            drop(session);
            drop(kept);
        }
    }

    /// Whether a connection that keeps no server connection reads where it has read before.
    pub(super) fn returns_to_its_replica(&self) -> bool {
        matches!(self.origin, Origin::Open)
    }

    /// Every user of the connection is to have what was set until now. A pool over this one checks a connection
    /// before it lends it out, and its hooks have run before that.
    pub(super) fn settle_origin(&mut self) {
        if self.is_new() {
            let session = self.session.get_mut();
            session.settle_doubts(&self.cluster.classifier);
            self.origin = if session.pinned || session.transaction.is_some() {
                Origin::Unknown
            } else {
                Origin::Known(session.settings.clone())
            };
        }
    }

    /// Whether a pool over this one must make the connection anew for the next user. Call it after the first use.
    pub(super) fn has_lost_its_origin(&mut self) -> bool {
        if self.is_new() {
            let session = self.session.get_mut();
            session.settle_doubts(&self.cluster.classifier);
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
