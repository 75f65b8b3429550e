//! What one connection holds and has done, as far as later statements depend on it.

use std::sync::Arc;

use super::route::Way;
use crate::classify::{TransactionControl, Verdict};
use crate::node::Lease;
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
    pub(super) forced: Option<NodeKind>,
    pub(super) pinned: bool,
    pub(super) wrote: bool,
    /// Types as this session sees them, where that may differ from what others see.
    pub(super) own_types: Option<Arc<OidMap>>,
    pub(super) last_route: Option<Way>,
}

/// An open transaction.
#[derive(Clone, Debug)]
pub(super) enum Transaction {
    OnPrimary(Arc<Lease>),
    OnReplica(Arc<Lease>),
}

impl Transaction {
    /// The connection that it is open on.
    pub(super) fn lease(&self) -> &Arc<Lease> {
        match self {
            Self::OnPrimary(lease) | Self::OnReplica(lease) => lease,
        }
    }
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
    fn transaction_view(&self) -> Option<TransactionView> {
        match &self.transaction {
            Some(Transaction::OnReplica(_)) => Some(TransactionView::OnReplica),
            Some(Transaction::OnPrimary(_)) => Some(TransactionView::OnPrimary),
            None => {
                let primary = self.primary.as_ref();
                let open = primary.is_some_and(|lease| lease.wire.in_transaction());
                open.then_some(TransactionView::OnPrimary)
            }
        }
    }

    /// The server says when a transaction has ended: after COMMIT, ROLLBACK, or a failed BEGIN.
    fn notice_transaction_end(&mut self) {
        let ended = self
            .transaction
            .as_ref()
            .map(Transaction::lease)
            .is_some_and(|lease| lease.is_usable() && lease.wire.is_idle());
        if ended {
            self.transaction = None;
            if !self.pinned {
                self.own_types = None;
            }
        }
    }
}
