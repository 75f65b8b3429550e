//! What one connection holds and has done, as far as later statements depend on it.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use super::doubts::Doubts;
use super::replication::Wanted;
use super::session_settings::{Ending, SessionSettings, Setting, starts_with};
use super::tagged::Tagged;
use crate::classify::{Cause, Classifier, Leaves, TransactionControl, Verdict};
use crate::config::{Consistency, Durability};
use crate::consistency::{SessionHistory, ShownUpTo};
use crate::groups::Place;
use crate::node::{Busy, Lease, Node};
use crate::position::Position;
use crate::route::{self, NodeKind, Route, RouteReason};
use crate::routing::{Decision, HeldBack, SessionView, TransactionView, decide};
use crate::statement::OidMap;

/// The state of a session.
#[derive(Debug)]
pub(super) struct SessionState {
    /// The primary's connection, once taken.
    pub(super) primary: Option<Arc<Lease>>,
    /// The replica's connection that the last read used.
    pub(super) replica: Option<Arc<Lease>>,
    pub(super) transaction: Option<Transaction>,
    /// How many statements wait for the primary's connection.
    pub(super) awaiting_primary: usize,
    pub(super) forced: Option<NodeKind>,
    /// Replicas with a tag are meant.
    pub(super) tagged: Option<Arc<Tagged>>,
    /// Reads may move to replicas, also where only those may that are marked.
    pub(super) replica_allowed: bool,
    /// When its statements have to be at their end.
    pub(super) deadline: Option<Instant>,
    /// Whether the next BEGIN may go to a replica if it is read only. If not set, the pool decides.
    pub(super) begins_on_replicas: Option<bool>,
    pub(super) pinned: bool,
    /// It is pinned only until it is known what these have left.
    pub(super) doubts: Option<Doubts>,
    /// What has pinned it, by name.
    pub(super) pinned_by: Option<Cause>,
    /// The node whose connection the session was pinned to, and why that connection is gone.
    pub(super) lost: Option<(String, String)>,
    /// The settings that it has made and that any connection can make.
    pub(super) settings: SessionSettings,
    /// The settings before the open transaction, if that has changed them.
    pub(super) settings_before: Option<SessionSettings>,
    pub(super) ending: Ending,
    /// What the session has written and seen. Other connections may share it.
    pub(super) history: Arc<SessionHistory>,
    /// What reads must see, if not what the pool says.
    pub(super) consistency: Option<Consistency>,
    pub(super) durability: Wanted,
    /// The open transaction, or one that has just ended, has changed the catalog.
    pub(super) changed_catalog: bool,
    /// Types as this session sees them, if others may see them differently.
    pub(super) own_types: Option<Arc<OidMap>>,
    /// Something ran that was neither a plain read nor a setting.
    pub(super) worked: bool,
    /// Reads must see the log up to here, whatever else they need: what other groups have written is in it.
    pub(super) shows: Option<Position>,
    pub(super) last_route: Option<LastRoute>,
}

/// How the statements of a connection are to run, until a scope ends.
#[derive(Debug)]
pub(super) struct ScopeState {
    forced: Option<NodeKind>,
    tagged: Option<Arc<Tagged>>,
    replica_allowed: bool,
    deadline: Option<Instant>,
    begins_on_replicas: Option<bool>,
    consistency: Option<Consistency>,
    durability: Option<Durability>,
}

/// An open transaction.
#[derive(Clone, Debug)]
pub(super) struct Transaction {
    /// The replica's connection that it is open on. Without one it is open on the primary.
    pub(super) replica: Option<Arc<Lease>>,
    /// The server has answered its BEGIN. Until then an idle connection does not mean that the transaction has ended.
    pub(super) begun: bool,
    /// It was declared read only, and nothing but plain reads ran in it since, so its COMMIT is no write. Anything else
    /// may have made it one that writes, as `SET TRANSACTION READ WRITE` does, or may write all the same.
    pub(super) read_only: bool,
    /// The pool's routing has kept it on the primary.
    pub(super) held_back: bool,
    /// A drain or a switchover waits for it.
    pub(super) _busy: Option<Arc<Busy>>,
}

/// Of a session that has neither written nor seen anything.
impl Default for SessionState {
    fn default() -> Self {
        Self::new(Arc::default())
    }
}

impl SessionState {
    pub(super) fn new(history: Arc<SessionHistory>) -> Self {
        Self {
            primary: None,
            replica: None,
            transaction: None,
            awaiting_primary: 0,
            forced: None,
            tagged: None,
            replica_allowed: false,
            deadline: None,
            begins_on_replicas: None,
            pinned: false,
            doubts: None,
            pinned_by: None,
            lost: None,
            settings: SessionSettings::default(),
            settings_before: None,
            ending: Ending::default(),
            history,
            consistency: None,
            durability: Wanted::default(),
            changed_catalog: false,
            own_types: None,
            worked: false,
            shows: None,
            last_route: None,
        }
    }

    /// Reads must see this from now on.
    pub(super) fn must_show(&mut self, place: Place) {
        let later = |shows: Position| place.position.map_or(shows, |place| place.max(shows));
        self.shows = self.shows.map(later).or(place.position);
        let Some(elsewhere) = place.elsewhere else {
            return;
        };
        self.history.was_shown_elsewhere(elsewhere);
        if elsewhere == ShownUpTo::Anything && self.forced.is_none() {
            self.forced = Some(NodeKind::Primary);
        }
    }

    /// The rest of the session stays on the primary's connection.
    pub(super) fn pin(&mut self) {
        self.pinned = true;
        self.doubts = None;
    }

    /// Nobody knows yet whether this statement leaves something on the primary's connection. Until then the session stays
    /// there.
    fn doubt(&mut self, sql: &str) {
        if self.pinned && self.doubts.is_none() {
            return;
        }
        self.pinned = true;
        if !self.doubts.get_or_insert_default().keep(sql) {
            self.pin();
        }
    }

    /// Frees the session if the catalog tells by now that its statements have left nothing.
    pub(super) fn settle_doubts(&mut self, classifier: &Classifier) {
        // What an open transaction has changed, nobody else sees.
        if self.doubts.is_none() || self.changed_catalog || self.transaction.is_some() {
            return;
        }
        let settled = self.doubts.as_ref().and_then(|it| it.settle(classifier));
        if let Some((pinned, by)) = settled {
            self.doubts = None;
            self.pinned = pinned;
            self.pinned_by = by.or(self.pinned_by);
        }
    }

    /// Has the settings that another connection of the session has made.
    pub(super) fn follow(&mut self, settings: &SessionSettings) {
        self.settings.follow(settings);
        if !self.settings.keep_names() && self.own_types.is_none() {
            self.own_types = Some(Arc::default());
        }
    }

    pub(super) fn is_in_transaction(&mut self) -> bool {
        self.notice_transaction_end();
        self.transaction_view().is_some()
    }

    /// How its statements are to run, until a scope ends.
    pub(super) fn scope(&mut self) -> ScopeState {
        ScopeState {
            forced: self.forced,
            tagged: self.tagged.clone(),
            replica_allowed: self.replica_allowed,
            deadline: self.deadline,
            begins_on_replicas: self.begins_on_replicas.take(),
            consistency: self.consistency,
            durability: self.durability.level,
        }
    }

    /// Its statements run as those of another connection.
    pub(super) fn within_scope(&mut self, scope: ScopeState) {
        self.forced = scope.forced;
        self.tagged = scope.tagged;
        self.replica_allowed = scope.replica_allowed;
        self.deadline = scope.deadline;
        self.begins_on_replicas = scope.begins_on_replicas;
        self.consistency = scope.consistency;
        self.durability.level = scope.durability;
    }

    /// Others see a change of the catalog when it is committed. This session sees it at once. Returns whether anybody
    /// sees another catalog from now on.
    pub(super) fn note_catalog_change(&mut self, verdict: Verdict) -> bool {
        self.notice_transaction_end();
        let committed = self.transaction.is_none() && std::mem::take(&mut self.changed_catalog);
        self.changed_catalog |= verdict.ddl && self.transaction.is_some();
        verdict.ddl || committed
    }

    /// Decides where a statement goes, and remembers what it will have done. This comes before the statement is sent:
    /// a statement that starts later must not read past it.
    pub(super) fn decide(
        &mut self,
        verdict: Verdict,
        only_primary: Option<RouteReason>,
        read_only_transactions_on_replicas: bool,
        (keeps_names, held_back): (bool, HeldBack),
        sql: &str,
    ) -> Decision {
        self.notice_transaction_end();
        let begins_on_replicas = self.begins_on_replicas.take();
        let marked = self.replica_allowed || begins_on_replicas == Some(true);
        let decision = decide(
            verdict,
            SessionView {
                transaction: self.transaction_view(),
                forced: self.forced,
                pinned: self.pinned,
                holds_primary: self.primary.is_some(),
                only_primary,
                read_only_transactions_on_replicas: begins_on_replicas
                    .unwrap_or(read_only_transactions_on_replicas),
                held_back: match held_back {
                    HeldBack::Unmarked if marked => HeldBack::Nothing,
                    held_back => held_back,
                },
            },
        );
        if let Some(open) = &mut self.transaction {
            open.read_only &= only_reads(verdict);
        }
        if let Decision::Primary(_) | Decision::HeldBack(_) = decision {
            if verdict.leaves == Leaves::Unsure {
                self.doubt(sql);
            } else if verdict.leaves.pins() {
                self.pin();
                self.pinned_by = verdict.cause.or(self.pinned_by);
            }
        }
        if !keeps_names {
            // A changed `search_path` changes what a type's name means.
            self.own_types = Some(Arc::default());
        }
        decision
    }

    /// Whether this statement commits a write of the session, if the server accepts it.
    pub(super) fn commits(&self, verdict: Verdict, only_rolls_back: bool) -> bool {
        match (verdict.control, &self.transaction) {
            (Some(TransactionControl::End), Some(open)) if !verdict.writes => {
                !open.read_only && !only_rolls_back
            }
            // A write in a transaction is committed with it, unless the text ends the transaction, too.
            (None, Some(_)) => false,
            _ => verdict.writes,
        }
    }

    /// The open transaction, also one that was begun unseen.
    fn transaction_view(&mut self) -> Option<TransactionView> {
        if self.transaction.is_none() {
            let primary = self.primary.as_ref();
            let unseen =
                primary.is_some_and(|lease| lease.is_usable() && lease.wire.in_transaction());
            self.transaction = unseen.then_some(Transaction {
                replica: None,
                begun: true,
                read_only: false,
                held_back: false,
                _busy: primary.map(|lease| Arc::new(lease.node().busy())),
            });
        }
        self.transaction
            .as_ref()
            .map(|transaction| match transaction.replica {
                Some(_) => TransactionView::OnReplica,
                None => TransactionView::OnPrimary,
            })
    }

    /// Connections that nobody else uses now forget what was prepared before `generation`. Others prepare anew until
    /// they are free.
    pub(super) fn forget_before(&mut self, generation: u64) {
        for lease in [&mut self.primary, &mut self.replica].into_iter().flatten() {
            if lease.remembers() < generation {
                if let Some(connection) = Arc::get_mut(lease).and_then(Lease::connection_mut) {
                    connection.forget_before(generation);
                }
            }
        }
    }

    /// What the session holds and does not need, if no statement is on its way.
    pub(super) fn give_back(&mut self) -> [Option<Arc<Lease>>; 2] {
        self.notice_transaction_end();
        if self.transaction.is_some() || self.pinned {
            return [None, None];
        }
        [self.primary.take(), self.replica.take()]
    }

    /// The connection that the transaction is open on.
    pub(super) fn transaction_lease(&self) -> Option<&Arc<Lease>> {
        let transaction = self.transaction.as_ref()?;
        transaction.replica.as_ref().or(self.primary.as_ref())
    }

    /// The server tells when a transaction has ended: after COMMIT or ROLLBACK.
    pub(super) fn notice_transaction_end(&mut self) {
        let begun = self.transaction.as_ref().is_some_and(|open| open.begun);
        let idle = self
            .transaction_lease()
            .is_some_and(|lease| lease.is_usable() && lease.wire.is_idle());
        if begun && idle {
            self.transaction_ended();
        }
    }

    /// `DISCARD ALL`: undoes all that the session has left on servers, and gives the connections back. The server
    /// does not get it: that would drop prepared statements that the cache still knows. Returns `false` in a
    /// transaction, where the server refuses it.
    pub(super) fn discard_all(&mut self) -> bool {
        self.notice_transaction_end();
        if self.transaction_view().is_some() {
            return false;
        }
        let kept = std::mem::take(self);
        *self = Self {
            awaiting_primary: kept.awaiting_primary,
            forced: kept.forced,
            tagged: kept.tagged,
            replica_allowed: kept.replica_allowed,
            history: kept.history,
            consistency: kept.consistency,
            durability: kept.durability,
            last_route: kept.last_route,
            ..Self::default()
        };
        true
    }

    /// Notes the settings that a successful statement has made.
    pub(super) fn note_settings(
        &mut self,
        verdict: Verdict,
        made: Vec<Setting>,
        sql: &str,
        lease: &Lease,
    ) {
        if !made.is_empty() {
            self.settings_made(made, lease);
        }
        let back = verdict.control == Some(TransactionControl::Within)
            && self.settings_before.is_some()
            && starts_with(sql, "rollback");
        if back {
            // After a rollback to a savepoint, some settings are as they were.
            self.pin();
            lease.note_state();
        }
    }

    /// A statement has made these settings on this connection.
    fn settings_made(&mut self, new: Vec<Setting>, lease: &Lease) {
        if self.transaction.is_some() && self.settings_before.is_none() {
            self.settings_before = Some(self.settings.clone());
        }
        let known = lease.settings_version() == self.settings.version;
        self.settings.make(new);
        if known {
            lease.settings_told(self.settings.version);
        }
    }

    /// The open transaction is about to end in this way, if the server agrees.
    pub(super) fn settings_ending(&mut self, ending: Ending) {
        self.ending = ending;
    }

    /// The transaction has ended. Its settings end with it, unless it was committed.
    pub(super) fn settings_after_transaction(&mut self) {
        let ending = std::mem::take(&mut self.ending);
        let Some(before) = self.settings_before.take() else {
            return;
        };
        match ending {
            Ending::Committed => {}
            Ending::RolledBack => self.settings.go_back_to(&before),
            // Only the connection itself knows the settings now.
            Ending::Unknown => self.pin(),
        }
    }

    pub(super) fn transaction_ended(&mut self) {
        self.transaction = None;
        self.settings_after_transaction();
        if !self.pinned && self.settings.keep_names() {
            self.own_types = None;
        }
    }
}

/// The last route, noted for every statement without an allocation.
#[derive(Clone, Debug)]
pub(super) struct LastRoute {
    pub(super) node: Arc<Node>,
    pub(super) kind: NodeKind,
    pub(super) reason: RouteReason,
    pub(super) waited: Duration,
    pub(super) held_back: Option<Box<HeldBackFrom>>,
}

/// What the pool's routing has kept from a replica.
#[derive(Clone, Debug)]
pub(super) struct HeldBackFrom {
    pub(super) replica: Option<Arc<Node>>,
    pub(super) reason: RouteReason,
}

impl LastRoute {
    pub(super) fn route(&self) -> Route {
        Route {
            node: self.node.name.clone(),
            group: None,
            kind: self.kind,
            zone: self.node.zone.as_deref().map(str::to_owned),
            far: self.node.distance > 0,
            reason: self.reason,
            waited: self.waited,
            held_back: self.held_back.as_ref().map(|held_back| route::HeldBack {
                replica: held_back.replica.as_ref().map(|node| node.name.clone()),
                reason: held_back.reason,
            }),
        }
    }
}

/// Whether a read-only transaction is still one after this statement. The end of a transaction leaves it what it was.
fn only_reads(verdict: Verdict) -> bool {
    match verdict.control {
        Some(TransactionControl::Setting) => false,
        Some(_) => !verdict.writes,
        None => {
            let reads = [RouteReason::PlainSelect, RouteReason::ServerState];
            !verdict.writes && reads.contains(&verdict.reason)
        }
    }
}
