//! What the reads of one connection must see, and what it has lost.

use std::sync::Arc;
use std::time::Instant;

use super::ReplicatedConnection;
use super::session_state::SessionState;
use crate::cluster::{Cluster, Topology};
use crate::config::{Consistency, WriteScope};
use crate::consistency::{Left, Positions, Reports, SessionHistory, UNTOLD};
use crate::deadline;
use crate::node::Lease;
use crate::position::Position;
use crate::route::RouteReason;
use crate::token::SessionToken;

impl ReplicatedConnection {
    pub(super) fn level_of(&self, session: &SessionState) -> Consistency {
        session
            .consistency
            .unwrap_or(self.cluster.consistency().level)
    }

    /// The timeline of the primary at the other end; 0 if it is not known.
    ///
    /// A server that takes writes changes its timeline only by a restart. So this holds while the connection lives.
    pub(super) fn timeline_of(&self, lease: &Lease) -> u32 {
        let topology = self.cluster.topology();
        let member = topology.member(lease.node());
        member.map_or(0, |member| member.timeline)
    }

    /// The application borrows the connection itself. The pool does not see what it writes there. So all that the
    /// primary has may be the session's.
    pub(super) fn lends(&self, lease: &Lease) {
        lease.note_lent();
        let timeline = self.timeline_of(lease);
        let lent = || Left::lent(&lease.wire, timeline);
        self.session().history.lends(lent());
        if self.cluster.consistency().write_scope == WriteScope::Pool {
            self.cluster.write_log.leave(lent());
        }
    }

    /// Comes before the primary serves. If the primary is on a newer timeline than the session's writes, waits until
    /// it is known where the older one ended. Returns the reason if a write is lost, or may be.
    pub(super) async fn learns_of_loss(&self, lease: &Lease) -> Option<RouteReason> {
        let (history, level) = {
            let session = self.session();
            (Arc::clone(&session.history), self.level_of(&session))
        };
        if level == Consistency::Eventual || !history.is_touched() {
            return None;
        }
        let write_log = &self.cluster.write_log;
        let timeline = self.timeline_of(lease);
        let is_told = timeline != 0 || !history.awaits_timeline();
        if is_told && !history.awaits_end_before(timeline, write_log) {
            return history.reason_on(timeline, write_log);
        }
        Box::pin(self.hears_of_the_end(lease, &history)).await
    }

    /// The same where it has to be waited for.
    async fn hears_of_the_end(
        &self,
        lease: &Lease,
        history: &SessionHistory,
    ) -> Option<RouteReason> {
        let write_log = &self.cluster.write_log;
        let mut timeline = self.timeline_of(lease);
        if timeline == 0 && history.awaits_timeline() {
            // A new pool may know only that the primary takes writes.
            let told = |topology: &Topology| {
                let member = topology.member(lease.node());
                member
                    .is_none_or(|member| member.timeline != 0)
                    .then_some(())
            };
            let deadline = deadline::after(Instant::now(), self.cluster.config.health.timeout);
            let _ = self.cluster.with_changes(deadline, told).await;
            timeline = self.timeline_of(lease);
            if timeline == 0 {
                history.gives_up_on(UNTOLD);
                return Some(RouteReason::UnclearWrite);
            }
        }
        if history.awaits_end_before(timeline, write_log) {
            let topology = self.cluster.topology();
            let asked = topology.member(lease.node());
            let _asked = asked.map(|member| member.reports.want());
            let deadline = deadline::after(Instant::now(), self.cluster.config.health.timeout);
            let look = || (!history.awaits_end_before(timeline, write_log)).then_some(());
            if self.cluster.with_news(deadline, look).await.is_none() {
                history.gives_up_on(timeline);
            }
        }
        history.reason_on(timeline, write_log)
    }
}

/// The token of a session. Asks for positions that are not known yet, and waits as long as a read would.
pub(crate) async fn token_of(cluster: &Arc<Cluster>, history: &SessionHistory) -> SessionToken {
    let write_log = &cluster.write_log;
    let deadline = deadline::after(Instant::now(), cluster.consistency().wait);
    let mut known = history.positions(write_log);
    let topology = cluster.topology();
    let primary = topology.primary().map(|member| &member.reports);
    let open = |known: &Positions| known.unknown.is_some() || known.unseen;
    let asked = known.reads.iter().chain(primary.filter(|_| open(&known)));
    let _asked: Vec<_> = asked.map(Reports::want).collect();
    let look = || {
        known = history.positions(write_log);
        (!open(&known) && known.reads.is_empty()).then_some(())
    };
    let _ = cluster.with_news(deadline, look).await;
    let unknown = known.unknown.map(Position::somewhere);
    let written = unknown.or(known.written);
    let seen = if known.reads.is_empty() && !known.unseen {
        known.seen
    } else {
        Some(Position::somewhere(0))
    };
    SessionToken::new(known.cluster.unwrap_or_default(), written, seen)
}
