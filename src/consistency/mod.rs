//! What one session has written and seen, and so what its reads require.
//!
//! A session may be several connections, at once or one after the other, in one process or in many: what belongs
//! together shares a [`SessionHistory`].
//!
//! - A write that was acknowledged gets a sequence number from the [`WriteLog`]. A write whose outcome is not known counts
//!   as on its way ([`Left`]), and its session reads on the primary.
//! - What the primary says of its position *after* a write was acknowledged covers the write.
//! - A position counts together with its timeline. What lies beyond the end of a timeline is lost, is reported, and
//!   compares with nothing. A sequence number belongs to the timeline of the primary that acknowledged the write.
//! - A server that was restarted may show less than before. A position counts only for connections to the same run of the
//!   server.

mod left;
mod reports;
mod requirement;
#[cfg(test)]
mod tests;
mod write_log;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use left::Fate;
pub(crate) use left::Left;
use parking_lot::{MappedMutexGuard, Mutex, MutexGuard};
pub use reports::Stage;
pub(crate) use reports::{InVain, ReadMark, Reports, StandbySnapshot};
pub(crate) use requirement::ReadRequirement;
use write_log::Covering;
pub(crate) use write_log::{NewTimeline, WriteLog, WriteSeq};

use crate::config::{Consistency, ConsistencyConfig, WriteScope};
use crate::position::{Lsn, Position, Survival};
use crate::route::RouteReason;
use crate::wire::Wire;

/// Used when the primary does not report its timeline.
pub(crate) const UNTOLD: u32 = u32::MAX;

/// What one session has written and seen.
#[derive(Debug, Default)]
pub(crate) struct SessionHistory {
    /// Whether anything was ever noted. Most sessions only read, and need not look further.
    touched: AtomicBool,
    /// Large, so it is made when it is first asked for.
    state: Mutex<Option<Box<State>>>,
}

#[derive(Debug, Default)]
struct State {
    /// Writes that were sent and are not answered yet.
    in_flight: u32,
    /// Writes whose answers nobody waits for.
    left: Vec<Left>,
    /// A connection broke under a write, on this timeline. Nobody knows whether it will be committed.
    in_doubt: Option<u32>,
    /// The last acknowledged write whose position is not known yet.
    seq: Option<WriteSeq>,
    /// A write was acknowledged on this timeline, and has no sequence number yet. Any later sequence number also
    /// covers it.
    draws: Option<u32>,
    written: Option<Position>,
    seen: Option<Position>,
    /// When the last write was acknowledged, and when what was seen last was seen. `None` also for a position that a
    /// token tells.
    wrote_at: Option<Instant>,
    saw_at: Option<Instant>,
    /// When the session came with a token.
    resumed_at: Option<Instant>,
    /// A sequence number that covers reads from nodes that are gone.
    sought: Option<WriteSeq>,
    seeks: bool,
    /// The session has stopped waiting to hear where this timeline began.
    untold: u32,
    /// Nodes that this session read from. Each node's next report bounds what the session saw there.
    reads: Vec<ReadMark>,
    /// What standbys have shown to the session. The primary may not show it yet.
    shown_by_standbys: Option<ShownUpTo>,
    /// The cluster that the positions belong to, until that was compared.
    cluster: Option<u64>,
    /// The last write's wait for a synchronous standby was cancelled.
    unconfirmed: bool,
    /// A write up to here did not survive a failover.
    lost: Option<Position>,
    /// The era of the write log that all of this belongs to.
    era: u64,
}

/// What standbys or subscribers have shown, and the primary perhaps does not show yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShownUpTo {
    /// Everything that is visible where the log was replayed up to here.
    UpTo(Position),
    /// The node is gone. It may have shown everything up to now.
    Anything,
}

impl ShownUpTo {
    /// Both.
    pub(crate) fn and(self, other: Option<Self>) -> Self {
        match (self, other) {
            (Self::UpTo(one), Some(Self::UpTo(other))) => Self::UpTo(one.max(other)),
            (Self::Anything, _) | (_, Some(Self::Anything)) => Self::Anything,
            (one, None) => one,
        }
    }
}

impl SessionHistory {
    /// A session that goes on from elsewhere, on the cluster with this identifier.
    pub(crate) fn resumed(cluster: u64, written: Option<Position>, seen: Option<Position>) -> Self {
        let state = State {
            draws: written
                .filter(|written| written.is_somewhere())
                .map(Position::home),
            seeks: seen.is_some_and(Position::is_somewhere),
            written: written.filter(|written| !written.is_somewhere()),
            seen: seen.filter(|seen| !seen.is_somewhere()),
            shown_by_standbys: seen.map(|seen| match seen.is_somewhere() {
                true => ShownUpTo::Anything,
                false => ShownUpTo::UpTo(seen),
            }),
            // It is 0 if the token's maker did not know the cluster yet; then the positions are unknown, too.
            cluster: Some(cluster).filter(|cluster| *cluster != 0),
            resumed_at: Some(Instant::now()),
            saw_at: seen
                .filter(|seen| seen.is_somewhere())
                .map(|_| Instant::now()),
            ..State::default()
        };
        Self {
            touched: AtomicBool::new(true),
            state: Mutex::new(Some(Box::new(state))),
        }
    }

    /// A write is about to be sent.
    pub(crate) fn write_starts(&self) {
        self.state().in_flight += 1;
    }

    /// A write was answered, and then `seq` was taken. It is `unconfirmed` if a synchronous standby had not confirmed
    /// it.
    pub(crate) fn write_acknowledged(
        &self,
        seq: WriteSeq,
        unconfirmed: bool,
        write_log: &WriteLog,
    ) {
        let mut state = self.state();
        state.unconfirmed = unconfirmed;
        state.in_flight = state.in_flight.saturating_sub(1);
        state.holds(seq, write_log);
    }

    /// Nobody waits for a write's answer any more.
    pub(crate) fn write_left(&self, write: Left) {
        let mut state = self.state();
        state.in_flight = state.in_flight.saturating_sub(1);
        state.left.push(write);
    }

    /// The application has borrowed the connection to the primary.
    pub(crate) fn lends(&self, connection: Left) {
        let left = &mut self.state().left;
        if !left.iter().any(|other| other.is_as(&connection)) {
            left.push(connection);
        }
    }

    /// A later request on this connection was answered, so all earlier ones were, too.
    pub(crate) fn answered_over(&self, wire: &Arc<Wire>) {
        if !self.is_touched() {
            return;
        }
        let left = &mut self.state().left;
        left.iter_mut().for_each(|left| left.answered_over(wire));
    }

    /// A write was not sent after all.
    pub(crate) fn write_never_sent(&self) {
        let mut state = self.state();
        state.in_flight = state.in_flight.saturating_sub(1);
    }

    /// What a read of this session requires that begins now.
    pub(crate) fn requirement(
        &self,
        level: Consistency,
        config: &ConsistencyConfig,
        write_log: &WriteLog,
    ) -> ReadRequirement {
        let (scope, assumed) = (config.write_scope, config.assumed_lag);
        let (requirement, must_show) = match level {
            Consistency::Eventual => return ReadRequirement::anything(),
            Consistency::BoundedStaleness(bound) => (ReadRequirement::no_older_than(bound), None),
            // Nothing that is assumed is strong.
            Consistency::Strong => return ReadRequirement::of_now(),
            Consistency::ReadYourWrites | Consistency::Causal if !self.is_touched() => {
                match scope {
                    WriteScope::Session => (ReadRequirement::default(), None),
                    WriteScope::Pool => {
                        let mut requirement = ReadRequirement::of_writes(scope, write_log);
                        requirement.refresh(write_log);
                        (requirement, assumed.and_then(|_| write_log.written_at()))
                    }
                }
            }
            Consistency::ReadYourWrites | Consistency::Causal => {
                let mut state = self.state();
                let requirement = state.requirement(level, scope, write_log);
                let must_show = assumed.and_then(|_| state.must_show(level, scope, write_log));
                (requirement, must_show)
            }
        };
        match assumed {
            Some(lag) => requirement.assuming(lag, must_show),
            None => requirement,
        }
    }

    /// The positions that are known now, and what is still to be learnt.
    pub(crate) fn positions(&self, write_log: &WriteLog) -> Positions {
        let mut state = self.state();
        let _ = state.settle(write_log);
        let unknown = if state.lost.is_some() {
            state.seq.map(|seq| seq.timeline)
        } else {
            state.unknown()
        };
        let open = state.seq.is_some() || !state.left.is_empty() || state.in_flight > 0;
        Positions {
            cluster: write_log.with(|view| view.cluster),
            only_in_doubt: state.in_doubt.is_some() && !open && state.cluster.is_none(),
            wrote: open
                || state.in_doubt.is_some()
                || state.written.is_some()
                || state.draws.is_some(),
            written: state.written,
            seen: state.seen,
            unknown,
            unseen: state.sought.is_some(),
            reads: state
                .reads
                .iter()
                .map(|read| Arc::clone(read.reports()))
                .collect(),
        }
    }

    /// Whether the session has written on an earlier timeline whose end is not known yet. Such a write may be lost.
    pub(crate) fn awaits_end_before(&self, timeline: u32, write_log: &WriteLog) -> bool {
        if !self.is_touched() {
            return false;
        }
        let mut state = self.state();
        if !state.wrote_before(timeline) || state.untold == timeline {
            return false;
        }
        let _ = state.settle(write_log);
        write_log.timeline() < timeline && state.wrote_before(timeline)
    }

    /// Whether the session has written on some timeline, so that it matters on which one the primary is.
    pub(crate) fn awaits_timeline(&self) -> bool {
        if !self.is_touched() {
            return false;
        }
        let state = self.state();
        state.untold != UNTOLD && state.wrote_before(u32::MAX)
    }

    /// The primary of this timeline did not tell in time where that began. The session does not wait for it again.
    pub(crate) fn gives_up_on(&self, timeline: u32) {
        self.state().untold = timeline;
    }

    /// Why only the primary can serve after a failover: a write of the session is lost, or may be.
    pub(crate) fn reason_on(&self, timeline: u32, write_log: &WriteLog) -> Option<RouteReason> {
        if !self.is_touched() {
            return None;
        }
        let mut state = self.state();
        if state.lost.is_none() && !state.wrote_before(timeline) {
            return None;
        }
        let reason = state.settle(write_log);
        let told = [RouteReason::LostWrite, RouteReason::UnclearWrite];
        let untold = || (state.untold == timeline).then_some(RouteReason::UnclearWrite);
        reason
            .filter(|reason| told.contains(reason))
            .or_else(untold)
    }

    /// A read has seen what a node shows. `is_same`: the connection surely leads to the run of the server that reports.
    pub(crate) fn saw_on(&self, reports: &Arc<Reports>, is_same: bool) {
        let sighting = reports.sighted(is_same);
        let mut state = self.state();
        // The later read covers the earlier, unless the server may have been restarted in between.
        state
            .reads
            .retain(|read| !read.is_on(reports) || read.is_lost());
        state.saw_at = Some(Instant::now());
        state.reads.push(sighting);
    }

    pub(crate) fn last_is_unconfirmed(&self) -> bool {
        self.state().unconfirmed
    }

    /// Whether the session has seen nothing on a standby that the primary may not show.
    pub(crate) fn saw_nothing_but(&self, primary: &Arc<Reports>) -> bool {
        if !self.is_touched() {
            return true;
        }
        let state = self.state();
        state.shown_by_standbys.is_none() && state.reads.iter().all(|read| read.is_on(primary))
    }

    /// What the primary must show before the session reads there.
    pub(crate) fn shown_by_standbys(&self, write_log: &WriteLog) -> Option<ShownUpTo> {
        let mut state = self.state();
        state.renew(write_log);
        state.forget_dead();
        state.learn(write_log);
        state.drop_lost(write_log);
        state.shown_by_standbys
    }

    /// The session may have seen this on a subscriber.
    pub(crate) fn was_shown_elsewhere(&self, what: ShownUpTo) {
        let mut state = self.state();
        state.shown_by_standbys = Some(what.and(state.shown_by_standbys));
    }

    /// Records that the primary shows this now.
    pub(crate) fn is_shown_by_primary(&self, what: ShownUpTo) {
        let mut state = self.state();
        state.shown_by_standbys = state
            .shown_by_standbys
            .filter(|shown_by_standbys| *shown_by_standbys != what);
    }

    /// The write that did not survive a failover, if there is one.
    pub(crate) fn lost(&self, write_log: &WriteLog) -> Option<Position> {
        if !self.is_touched() {
            return None;
        }
        let mut state = self.state();
        let _ = state.settle(write_log);
        state.lost
    }

    /// Whether anything was ever noted.
    pub(crate) fn is_touched(&self) -> bool {
        self.touched.load(Ordering::Acquire)
    }

    fn state(&self) -> MappedMutexGuard<'_, State> {
        self.touched.store(true, Ordering::Release);
        MutexGuard::map(self.state.lock(), |state| {
            &mut **state.get_or_insert_default()
        })
    }
}

/// What is known of a session's positions, and what is not.
#[derive(Clone, Debug)]
pub(crate) struct Positions {
    pub(crate) cluster: Option<u64>,
    pub(crate) written: Option<Position>,
    pub(crate) seen: Option<Position>,
    /// A write on this timeline has no known position yet.
    pub(crate) unknown: Option<u32>,
    /// The same, and all that is not known is whether a write was committed whose connection broke. That will not be
    /// learnt.
    pub(crate) only_in_doubt: bool,
    /// Whether the session has written anything.
    pub(crate) wrote: bool,
    /// Something that was seen has no known position yet.
    pub(crate) unseen: bool,
    /// When these nodes have been asked, the position of what was seen last is known.
    pub(crate) reads: Vec<Arc<Reports>>,
}

impl State {
    /// Learns what can be learnt by now. Returns why only the primary can serve, if so.
    fn settle(&mut self, write_log: &WriteLog) -> Option<RouteReason> {
        self.renew(write_log);
        self.settle_left(write_log);
        if let Some(cluster) = self.cluster {
            match write_log.with(|view| view.cluster) {
                None => return Some(RouteReason::OwnWrite),
                Some(here) => {
                    self.cluster = None;
                    if here != cluster {
                        tracing::debug!(target: "diesel_replicated", cluster, here, "token_ignored");
                        (self.written, self.seen, self.shown_by_standbys) = (None, None, None);
                    }
                }
            }
        }
        self.forget_dead();
        if let Some(timeline) = self.draws.take() {
            self.holds(write_log.seek(timeline), write_log);
        }
        if std::mem::take(&mut self.seeks) {
            self.sought = Some(write_log.seek(0));
        }
        self.learn(write_log);
        self.drop_lost(write_log);
        if self.lost.is_some() {
            return Some(RouteReason::LostWrite);
        }
        if self.written.is_some_and(|it| is_unclear(it, write_log)) {
            return Some(RouteReason::UnclearWrite);
        }
        let unknown = self.in_flight > 0 || !self.left.is_empty() || self.in_doubt.is_some();
        unknown.then_some(RouteReason::OwnWrite)
    }

    /// What a read requires that must see what the session has written, and at `Causal` what it has seen.
    fn requirement(
        &mut self,
        level: Consistency,
        scope: WriteScope,
        write_log: &WriteLog,
    ) -> ReadRequirement {
        if let Some(reason) = self.settle(write_log) {
            return ReadRequirement::primary(reason);
        }
        let mut requirement = ReadRequirement::of_writes(scope, write_log);
        if let Some(seq) = self.seq {
            requirement.awaits(seq);
        }
        if let Some(written) = self.written {
            requirement.covers(written);
        }
        if level == Consistency::Causal {
            if let Some(sought) = self.sought {
                requirement.seeks(sought.number);
            }
            if let Some(seen) = self.seen {
                requirement.covers(seen);
            }
            requirement.follows(self.reads.clone());
        }
        requirement.refresh(write_log);
        requirement
    }

    /// Up to when a server must show everything, for one that does not tell positions.
    fn must_show(
        &self,
        level: Consistency,
        scope: WriteScope,
        write_log: &WriteLog,
    ) -> Option<Instant> {
        let at = |noted: Option<Instant>, position: Option<Position>| {
            noted.or_else(|| write_log.reached(position?).or(self.resumed_at))
        };
        let mut moments = [at(self.wrote_at, self.written), None, None];
        if scope == WriteScope::Pool {
            moments[1] = write_log.written_at();
        }
        if level == Consistency::Causal {
            moments[2] = at(self.saw_at, self.seen);
        }
        moments.into_iter().flatten().max()
    }

    /// Looks what became of writes whose answers nobody waits for.
    fn settle_left(&mut self, write_log: &WriteLog) {
        let (mut over, mut in_doubt, mut broken) = (None, self.in_doubt, None);
        self.left.retain(|left| match left.fate() {
            Fate::UnderWay => true,
            Fate::Over => {
                over = over.max(Some(left.timeline()));
                false
            }
            // The application has got rows of it, so it takes the write for done.
            Fate::InDoubt if left.was_answering() => {
                broken = broken.max(Some(left.timeline()));
                in_doubt = in_doubt.max(Some(left.timeline()));
                false
            }
            Fate::InDoubt => {
                in_doubt = in_doubt.max(Some(left.timeline()));
                false
            }
        });
        self.in_doubt = in_doubt;
        for timeline in [over, broken].into_iter().flatten() {
            self.holds(write_log.draw(timeline), write_log);
        }
    }

    /// If another cluster has come in this one's place, forgets all positions: nothing of them can be found there.
    fn renew(&mut self, write_log: &WriteLog) {
        let era = write_log.era();
        if era == self.era {
            return;
        }
        let timeline = self.unknown();
        let written = self.written.map(|written| written.timeline);
        let (lost, in_flight) = (self.written, self.in_flight);
        *self = Self {
            lost: self.lost,
            in_flight,
            era,
            ..Self::default()
        };
        if let Some(timeline) = timeline.max(written) {
            let lost = lost.unwrap_or_else(|| Position::new(timeline, Lsn(0)));
            tracing::warn!(target: "diesel_replicated", position = %lost, certain = false, "write_lost");
            self.lost = Some(lost);
        }
    }

    /// A write with this sequence number was acknowledged.
    fn holds(&mut self, seq: WriteSeq, write_log: &WriteLog) {
        self.renew(write_log);
        self.wrote_at = Some(Instant::now());
        if self.seq.is_some_and(|it| it.timeline != seq.timeline) {
            self.learn(write_log);
        }
        self.seq = match self.seq {
            // The earlier one was acknowledged by another primary, which nobody will ask any more.
            Some(earlier) if earlier.timeline != 0 && earlier.timeline < seq.timeline => {
                self.may_be_lost(earlier.timeline, write_log);
                Some(seq)
            }
            Some(earlier) => Some(WriteSeq {
                number: earlier.number.max(seq.number),
                timeline: earlier.timeline.max(seq.timeline),
            }),
            None => Some(seq),
        };
    }

    /// The timeline of a write whose position is not known, if there is one.
    fn unknown(&self) -> Option<u32> {
        if self.cluster.is_some() {
            // It is not known either whether the positions are of this cluster.
            let written = self.written.map(|written| written.timeline);
            return written.max(self.draws).or(Some(0));
        }
        let left = self.left.iter().map(Left::timeline).max();
        let flying = (self.in_flight > 0).then_some(0);
        let seq = self.seq.map(|seq| seq.timeline);
        seq.max(left).max(self.in_doubt).max(flying)
    }

    /// Whether a write was acknowledged on a timeline before this one.
    fn wrote_before(&self, timeline: u32) -> bool {
        let before = |other: u32| other != 0 && other < timeline;
        self.written.is_some_and(|it| before(it.timeline))
            || self.seq.is_some_and(|it| before(it.timeline))
            || self.draws.is_some_and(before)
            || self.left.iter().any(|left| before(left.timeline()))
    }

    /// A node that cannot be asked any more has shown nothing beyond where the primary is now.
    fn forget_dead(&mut self) {
        let reads = self.reads.len();
        self.reads.retain(|read| !read.is_lost());
        if self.reads.len() < reads {
            self.seeks = true;
            self.shown_by_standbys = Some(ShownUpTo::Anything);
        }
    }

    /// Learns positions from nodes that were asked since.
    fn learn(&mut self, write_log: &WriteLog) {
        if let Some(seq) = self.seq {
            match write_log.covering(seq) {
                Covering::Unknown => {}
                Covering::At(position) => {
                    self.seq = None;
                    self.written = later(self.written, position);
                }
                Covering::Over => {
                    self.seq = None;
                    self.may_be_lost(seq.timeline, write_log);
                }
            }
        }
        if let Some(Covering::At(position)) = self.sought.map(|seq| write_log.covering(seq)) {
            self.sought = None;
            self.seen = later(self.seen, position);
        }
        let (mut seen, mut shown_by_standbys) = (self.seen, self.shown_by_standbys);
        self.reads.retain(|read| {
            let Some(shown) = read.shown() else {
                return true;
            };
            let place = shown.position;
            seen = later(seen, place);
            if shown.by_standby() {
                shown_by_standbys = Some(ShownUpTo::UpTo(place).and(shown_by_standbys));
            }
            false
        });
        (self.seen, self.shown_by_standbys) = (seen, shown_by_standbys);
    }

    /// The timeline of this write has ended before the position was known. The write may be lost, and nobody can
    /// tell. The session is told, as for a loss.
    fn may_be_lost(&mut self, timeline: u32, write_log: &WriteLog) {
        let end = write_log.end_of(timeline);
        tracing::warn!(target: "diesel_replicated", position = %end, certain = false, "write_lost");
        self.lost = Some(end);
        if let Some(latest) = write_log.latest() {
            self.written = later(self.written, latest);
        }
    }

    /// A position beyond a fork no longer exists. It is replaced by the last position that was kept: what the session
    /// wrote and saw before the fork, it must still see.
    fn drop_lost(&mut self, write_log: &WriteLog) {
        let kept = |position: Position| match fate_of(position, write_log) {
            ForkSide::Beyond { .. } => write_log.with(|view| view.forks.kept_of(position)),
            ForkSide::Before | ForkSide::Unknown => position,
        };
        if let Some(lost) = self.written {
            if let ForkSide::Beyond { certain } = fate_of(lost, write_log) {
                tracing::warn!(target: "diesel_replicated", position = %lost, certain, "write_lost");
                self.lost = Some(lost);
            }
        }
        self.written = self.written.map(kept);
        self.seen = self.seen.map(kept);
        // The new primary shows what was kept.
        self.shown_by_standbys =
            self.shown_by_standbys
                .filter(|shown_by_standbys| match shown_by_standbys {
                    ShownUpTo::UpTo(seen) => {
                        !matches!(fate_of(*seen, write_log), ForkSide::Beyond { .. })
                    }
                    ShownUpTo::Anything => true,
                });
    }
}

/// Where a position lies in the history of the newest timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ForkSide {
    /// In it, as far as is known.
    Before,
    /// Beyond the end of its own timeline. If that is not `certain`, only bounds of the end are known.
    Beyond { certain: bool },
    /// Nobody knows where its timeline ended.
    Unknown,
}

fn fate_of(position: Position, write_log: &WriteLog) -> ForkSide {
    match write_log.standing(position) {
        Survival::Kept | Survival::Ahead => ForkSide::Before,
        Survival::Lost => ForkSide::Beyond { certain: true },
        // Nobody will learn more. What is not known to be kept may be lost.
        Survival::Unclear if write_log.knows_end_of(position.timeline) => {
            ForkSide::Beyond { certain: false }
        }
        Survival::Unclear => ForkSide::Unknown,
    }
}

/// Whether it cannot be told if the position is part of the history.
fn is_unclear(position: Position, write_log: &WriteLog) -> bool {
    fate_of(position, write_log) == ForkSide::Unknown
}

fn later(known: Option<Position>, position: Position) -> Option<Position> {
    Some(known.map_or(position, |known| known.max(position)))
}
