//! Decides which kind of node a statement goes to.

use crate::classify::{Leaves, TransactionControl, Verdict};
use crate::route::{NodeKind, RouteReason};

/// An open transaction of the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TransactionView {
    OnPrimary,
    /// Declared read only, in a pool that lets such transactions run on replicas.
    OnReplica,
}

/// What a decision depends on, beside the statement.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SessionView {
    pub(crate) transaction: Option<TransactionView>,
    pub(crate) forced: Option<NodeKind>,
    /// The session has left state on its primary connection.
    pub(crate) pinned: bool,
    /// The session holds a connection of the primary's.
    pub(crate) holds_primary: bool,
    /// Why no replica can have what the session must see, if so.
    pub(crate) only_primary: Option<RouteReason>,
    pub(crate) read_only_transactions_on_replicas: bool,
    pub(crate) held_back: HeldBack,
}

/// What the pool's routing keeps on the primary, of what could move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum HeldBack {
    #[default]
    Nothing,
    /// What nobody has marked.
    Unmarked,
    Everything,
}

/// Where the statement goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    Primary(RouteReason),
    /// The primary, though a replica could serve it for this reason.
    HeldBack(RouteReason),
    /// A replica; whether another node may take over if it cannot serve.
    Replica {
        reason: RouteReason,
        may_move: bool,
    },
    /// The replica on which the transaction is open, and no other.
    TransactionReplica,
}

/// Decides. A statement goes to a replica only if it is known to be safe there, and may move.
pub(crate) fn decide(verdict: Verdict, session: SessionView) -> Decision {
    let decision = decide_freely(verdict, session);
    let Decision::Replica { reason, .. } = decision else {
        return decision;
    };
    match session.held_back {
        HeldBack::Nothing => decision,
        HeldBack::Unmarked if reason == RouteReason::Forced => decision,
        // What a replica would refuse is refused in every mode.
        HeldBack::Everything
            if reason == RouteReason::Forced && verdict.reason != RouteReason::PlainSelect =>
        {
            decision
        }
        // A setting goes where the session is.
        _ if reason == RouteReason::SessionState => Decision::Primary(reason),
        HeldBack::Unmarked | HeldBack::Everything => Decision::HeldBack(reason),
    }
}

fn decide_freely(verdict: Verdict, session: SessionView) -> Decision {
    match session.transaction {
        Some(TransactionView::OnPrimary) => return Decision::Primary(RouteReason::InTransaction),
        Some(TransactionView::OnReplica) => return Decision::TransactionReplica,
        None => {}
    }
    match session.forced {
        Some(NodeKind::Primary) => return Decision::Primary(RouteReason::Forced),
        Some(NodeKind::Replica) => {
            // When a transaction begins, nothing has run in it.
            let begins = begins_read_only(verdict);
            return Decision::Replica {
                reason: RouteReason::Forced,
                may_move: begins || verdict.reason == RouteReason::PlainSelect,
            };
        }
        None => {}
    }
    if session.pinned {
        return Decision::Primary(RouteReason::SessionState);
    }
    if verdict.reason == RouteReason::PlainSelect {
        return match session.only_primary {
            Some(reason) => Decision::Primary(reason),
            None => Decision::Replica {
                reason: RouteReason::PlainSelect,
                may_move: true,
            },
        };
    }
    if verdict.leaves == Leaves::Settings && verdict.control.is_none() {
        // Every node accepts a setting. The session takes it along.
        return if session.holds_primary {
            Decision::Primary(verdict.reason)
        } else {
            Decision::Replica {
                reason: verdict.reason,
                may_move: true,
            }
        };
    }
    if begins_read_only(verdict)
        && session.read_only_transactions_on_replicas
        && session.only_primary.is_none()
    {
        return Decision::Replica {
            reason: RouteReason::ReadOnlyTransaction,
            may_move: true,
        };
    }
    Decision::Primary(verdict.reason)
}

/// Whether it begins a transaction that every replica accepts, and does nothing else.
fn begins_read_only(verdict: Verdict) -> bool {
    let read_only_transaction = matches!(
        verdict.control,
        Some(TransactionControl::Begin {
            read_only: true,
            // Refused by every standby.
            serializable: false,
        })
    );
    // Together with other statements it means something else.
    read_only_transaction
        && verdict.reason == RouteReason::TransactionControl
        && !verdict.writes
        && verdict.leaves == Leaves::Nothing
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const READ: Verdict = Verdict {
        reason: RouteReason::PlainSelect,
        writes: false,
        leaves: Leaves::Nothing,
        indelible: false,
        locks: false,
        control: None,
        ddl: false,
        idempotent: true,
        cause: None,
    };

    fn begin(read_only: bool, serializable: bool) -> Verdict {
        Verdict {
            reason: RouteReason::TransactionControl,
            control: Some(TransactionControl::Begin {
                read_only,
                serializable,
            }),
            idempotent: false,
            ..READ
        }
    }

    fn session() -> impl Strategy<Value = SessionView> {
        let transaction = prop_oneof![
            3 => Just(None),
            1 => Just(Some(TransactionView::OnPrimary)),
            1 => Just(Some(TransactionView::OnReplica)),
        ];
        let forced = prop_oneof![
            3 => Just(None),
            1 => Just(Some(NodeKind::Primary)),
            1 => Just(Some(NodeKind::Replica)),
        ];
        (transaction, forced, any::<[bool; 4]>()).prop_map(|(transaction, forced, flags)| {
            SessionView {
                transaction,
                forced,
                pinned: flags[0],
                only_primary: flags[1].then_some(RouteReason::OwnWrite),
                read_only_transactions_on_replicas: flags[2],
                holds_primary: flags[3],
                held_back: HeldBack::Nothing,
            }
        })
    }

    proptest! {
        #[test]
        fn what_is_held_back_differs_in_nothing_but_the_node(session in session(), write in any::<bool>()) {
            let verdict = if write { Verdict { reason: RouteReason::Write, writes: true, ..READ } } else { READ };
            let held = |held_back| decide(verdict, SessionView { held_back, ..session });
            let free = held(HeldBack::Nothing);
            match free {
                Decision::Replica { reason, .. } => {
                    let marked = reason == RouteReason::Forced;
                    prop_assert_eq!(held(HeldBack::Unmarked) == free, marked);
                    // A write that asks for a replica fails there, and is not let through.
                    let everything = if write { free } else { Decision::HeldBack(reason) };
                    prop_assert_eq!(held(HeldBack::Everything), everything);
                }
                _ => {
                    // A transaction ends where it was begun.
                    prop_assert_eq!(held(HeldBack::Everything), free);
                    prop_assert_eq!(held(HeldBack::Unmarked), free);
                }
            }
        }

        #[test]
        fn only_a_plain_select_reaches_a_replica_unforced(session in session(), write in any::<bool>()) {
            let reason = if write { RouteReason::Write } else { RouteReason::UnknownStatement };
            let verdict = Verdict { reason, writes: true, idempotent: false, ..READ };
            let decision = decide(verdict, session);
            if session.forced.is_none() && session.transaction.is_none() {
                prop_assert!(matches!(decision, Decision::Primary(_)), "{decision:?}");
            }
            let moves = matches!(decision, Decision::Replica { may_move: true, .. });
            prop_assert!(!moves, "a write never moves");
        }

        #[test]
        fn an_open_transaction_never_leaves_its_node(session in session()) {
            let decision = decide(READ, session);
            match session.transaction {
                Some(TransactionView::OnPrimary) => {
                    prop_assert_eq!(decision, Decision::Primary(RouteReason::InTransaction));
                }
                Some(TransactionView::OnReplica) => prop_assert_eq!(decision, Decision::TransactionReplica),
                None => {}
            }
        }
    }

    #[test]
    fn reads_stay_on_the_primary_after_a_write_or_with_state() {
        let wrote = SessionView {
            only_primary: Some(RouteReason::OwnWrite),
            ..SessionView::default()
        };
        assert_eq!(
            decide(READ, wrote),
            Decision::Primary(RouteReason::OwnWrite)
        );
        let pinned = SessionView {
            pinned: true,
            ..SessionView::default()
        };
        assert_eq!(
            decide(READ, pinned),
            Decision::Primary(RouteReason::SessionState)
        );
    }

    #[test]
    fn settings_go_where_the_session_is() {
        let setting = Verdict {
            reason: RouteReason::SessionState,
            leaves: Leaves::Settings,
            idempotent: false,
            ..READ
        };
        let view = |holds_primary, pinned| SessionView {
            holds_primary,
            pinned,
            ..SessionView::default()
        };
        let reason = RouteReason::SessionState;
        let anywhere = Decision::Replica {
            reason,
            may_move: true,
        };
        assert_eq!(decide(setting, view(false, false)), anywhere);
        for there in [view(true, false), view(true, true), view(false, true)] {
            assert_eq!(decide(setting, there), Decision::Primary(reason));
        }
    }

    #[test]
    fn read_only_transactions_move_only_where_the_pool_opted_in() {
        let opted = SessionView {
            read_only_transactions_on_replicas: true,
            ..SessionView::default()
        };
        let on_replica =
            |verdict, session| matches!(decide(verdict, session), Decision::Replica { .. });
        assert!(on_replica(begin(true, false), opted));
        assert!(!on_replica(begin(true, true), opted));
        assert!(!on_replica(begin(false, false), opted));
        assert!(!on_replica(begin(true, false), SessionView::default()));
    }
}
