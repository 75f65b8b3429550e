//! What one connection holds and has done, as far as later statements depend on it.

use std::sync::Arc;

use super::route::Way;
use crate::classify::{TransactionControl, Verdict};
use crate::node::{Busy, Lease};
use crate::route::NodeKind;
use crate::routing::{Decision, SessionView, TransactionView, decide};
use crate::statement::OidMap;

/// The state of a session.
#[derive(Debug, Default)]
pub(super) struct Session {
    /// The primary's connection, once taken.
    pub(super) primary: Option<Arc<Lease>>,
    /// The replica's connection that the last read used.
    pub(super) replica: Option<Arc<Lease>>,
    pub(super) transaction: Option<Transaction>,
    /// Statements that are waiting for the primary's connection.
    pub(super) awaiting_primary: usize,
    pub(super) forced: Option<NodeKind>,
    pub(super) pinned: bool,
    pub(super) wrote: bool,
    /// The open transaction, or one that has just ended, has changed the catalog.
    pub(super) changed_catalog: bool,
    /// Types as this session sees them, where that may differ from what others see.
    pub(super) own_types: Option<Arc<OidMap>>,
    pub(super) last_route: Option<Way>,
}

/// An open transaction.
#[derive(Clone, Debug)]
pub(super) struct Transaction {
    /// The replica's connection that it is open on; without one, that of the primary.
    pub(super) replica: Option<Arc<Lease>>,
    /// The server has answered its BEGIN. Until then an idle connection does not mean that it has
    /// ended: BEGIN may still be on its way.
    pub(super) begun: bool,
    /// A replica that is to be removed waits for the transactions on it.
    pub(super) _busy: Option<Arc<Busy>>,
}

impl Session {
    /// Decides where a statement goes, and remembers what it will have done. This comes before
    /// the statement is sent: a statement that is started later must not read past it.
    pub(super) fn decide(
        &mut self,
        verdict: Verdict,
        read_only_transactions_on_replicas: bool,
    ) -> Decision {
        self.notice_transaction_end();
        let decision = decide(
            verdict,
            SessionView {
                transaction: self.transaction_view(),
                forced: self.forced,
                pinned: self.pinned,
                wrote: self.wrote,
                read_only_transactions_on_replicas,
            },
        );
        if let Decision::Primary(_) = decision {
            let may_write = matches!(
                verdict.control,
                Some(TransactionControl::Begin {
                    read_only: false,
                    ..
                })
            );
            self.wrote |= verdict.writes || may_write;
            self.pinned |= verdict.session_state;
        }
        if verdict.session_state || verdict.sets_for_the_transaction() {
            // A changed `search_path` changes what a type's name means.
            self.own_types.get_or_insert_default();
        }
        decision
    }

    /// The open transaction, also one that was begun in a way that was not seen.
    fn transaction_view(&mut self) -> Option<TransactionView> {
        if self.transaction.is_none() {
            let primary = self.primary.as_ref();
            let unseen =
                primary.is_some_and(|lease| lease.is_usable() && lease.wire.in_transaction());
            self.transaction = unseen.then_some(Transaction {
                replica: None,
                begun: true,
                _busy: None,
            });
        }
        self.transaction
            .as_ref()
            .map(|transaction| match transaction.replica {
                Some(_) => TransactionView::OnReplica,
                None => TransactionView::OnPrimary,
            })
    }

    /// The connection that the transaction is open on.
    pub(super) fn transaction_lease(&self) -> Option<&Arc<Lease>> {
        let transaction = self.transaction.as_ref()?;
        transaction.replica.as_ref().or(self.primary.as_ref())
    }

    /// The server says when a transaction has ended: after COMMIT or ROLLBACK.
    pub(super) fn notice_transaction_end(&mut self) {
        let begun = self.transaction.as_ref().is_some_and(|open| open.begun);
        let idle = self
            .transaction_lease()
            .is_some_and(|lease| lease.is_usable() && lease.wire.is_idle());
        if begun && idle {
            self.transaction_ended();
        }
    }

    pub(super) fn transaction_ended(&mut self) {
        self.transaction = None;
        if !self.pinned {
            self.own_types = None;
        }
    }
}
