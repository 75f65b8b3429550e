//! What one read requires of the node that serves it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::write_log::Covering;
use super::{ReadMark, Reports, WriteLog, WriteSeq};
use crate::config::WriteScope;
use crate::position::Position;
use crate::route::RouteReason;

/// What one read requires. By default only that the node's log is the primary's.
#[derive(Clone, Debug, Default)]
pub(crate) struct ReadRequirement {
    /// Any usable replica will do.
    anything: bool,
    /// Only the primary can serve, for this reason.
    primary: Option<RouteReason>,
    /// Why the primary serves if no replica can.
    otherwise: Option<RouteReason>,
    /// What the node must show. Most reads need nothing of it, and this is part of each statement's future.
    needs: Option<Box<Needs>>,
}

/// What a node must show.
#[derive(Clone, Debug, Default)]
struct Needs {
    /// The node must have everything up to these positions.
    positions: [Option<Position>; 2],
    /// A write of the session whose position is not known yet.
    seq: Option<WriteSeq>,
    /// Writes of any session up to this sequence number.
    others: Option<u64>,
    /// Some of these this session has seen.
    sought: bool,
    /// Where these are, once that is known.
    theirs: Option<Position>,
    /// Everything that the primary has at this moment.
    since: Option<Instant>,
    /// Nothing older than this.
    age: Option<Duration>,
    /// What these nodes had shown before they were asked this question.
    reads: Vec<ReadMark>,
    /// What replicas that tell no position are assumed to show.
    assumed: Option<Assumed>,
    /// Since when the read has waited on a server that did not catch up in time, and for how long.
    waited: Option<(Instant, Duration)>,
}

/// How far behind a replica is taken to be that tells no position, and what it must show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Assumed {
    lag: Duration,
    /// Everything up to this moment, if anything.
    must_show: Option<Instant>,
}

impl ReadRequirement {
    pub(crate) fn primary(reason: RouteReason) -> Self {
        Self {
            primary: Some(reason),
            ..Self::default()
        }
    }

    /// A requirement that any usable replica meets.
    pub(crate) fn anything() -> Self {
        Self {
            anything: true,
            ..Self::default()
        }
    }

    /// Whether even a replica can serve it whose WAL may not be the primary's.
    pub(crate) fn accepts_untrusted(&self) -> bool {
        self.anything
    }

    pub(super) fn unless(reason: RouteReason) -> Self {
        Self {
            otherwise: Some(reason),
            ..Self::default()
        }
    }

    fn of(reason: RouteReason, needs: Needs) -> Self {
        Self {
            needs: Some(Box::new(needs)),
            ..Self::unless(reason)
        }
    }

    fn needs(&mut self) -> &mut Needs {
        self.needs.get_or_insert_default()
    }

    pub(super) fn no_older_than(age: Duration) -> Self {
        let needs = Needs {
            age: Some(age),
            ..Needs::default()
        };
        Self::of(RouteReason::TooOld, needs)
    }

    /// What counts as the session's writes, but for its own.
    pub(super) fn of_writes(scope: WriteScope, write_log: &WriteLog) -> Self {
        let mut requirement = Self::unless(RouteReason::OwnWrite);
        if scope == WriteScope::Pool {
            requirement.awaits_all(write_log.of_all());
        }
        requirement
    }

    /// Everything that was acknowledged to anyone until now.
    pub(super) fn of_now() -> Self {
        let needs = Needs {
            since: Some(Instant::now()),
            ..Needs::default()
        };
        Self::of(RouteReason::Strong, needs)
    }

    pub(super) fn covers(&mut self, position: Position) {
        self.needs().covers(position);
    }

    pub(super) fn awaits(&mut self, seq: WriteSeq) {
        self.needs().seq = Some(seq);
    }

    /// Adds all writes up to this sequence number, if there are any.
    pub(super) fn awaits_all(&mut self, number: u64) {
        if number > 0 {
            let needs = self.needs();
            needs.others = needs.others.max(Some(number));
        }
    }

    /// The same for what this session has seen on nodes that are gone.
    pub(super) fn seeks(&mut self, number: u64) {
        self.needs().sought = true;
        self.awaits_all(number);
    }

    pub(super) fn follows(&mut self, reads: Vec<ReadMark>) {
        self.needs().reads = reads;
    }

    /// A replica that tells no position is taken to be behind by `lag` at the most. It must show what was there at
    /// `must_show`.
    pub(super) fn assuming(mut self, lag: Duration, must_show: Option<Instant>) -> Self {
        self.needs().assumed = Some(Assumed { lag, must_show });
        self
    }

    /// The node must show `place` as well.
    pub(crate) fn showing(mut self, place: Position) -> Self {
        self.otherwise = self.otherwise.or(Some(RouteReason::OwnWrite));
        self.needs().covers(place);
        self
    }

    /// Why only the primary can serve, if so.
    pub(crate) fn only_primary(&self) -> Option<RouteReason> {
        self.primary
    }

    /// Why the primary serves if no replica can in time.
    pub(crate) fn otherwise(&self) -> RouteReason {
        let reason = self.primary.or(self.otherwise);
        reason.unwrap_or(RouteReason::NoUsableReplica)
    }

    /// Whether every trusted replica can serve it.
    pub(crate) fn needs_no_position(&self) -> bool {
        let asks_for_nothing = || self.needs.as_ref().is_none_or(|needs| needs.nothing());
        self.primary.is_none() && (self.otherwise.is_none() || asks_for_nothing())
    }

    /// Whether the primary has to be asked before it is known what a replica must have.
    pub(crate) fn wants_primary(&self) -> bool {
        self.needs.as_ref().is_some_and(|needs| needs.primary())
    }

    /// Nodes that have to be asked what they had shown.
    pub(crate) fn wants_answers(&self) -> impl Iterator<Item = &Arc<Reports>> {
        self.reads().map(ReadMark::reports)
    }

    fn reads(&self) -> impl Iterator<Item = &ReadMark> {
        self.needs.iter().flat_map(|needs| &needs.reads)
    }

    /// Whether a node must show what other sessions have written, of which this one has seen nothing.
    pub(crate) fn covers_others(&self) -> bool {
        let covers =
            |needs: &Needs| !needs.sought && (needs.others.is_some() || needs.theirs.is_some());
        self.needs.as_deref().is_some_and(covers)
    }

    /// What other sessions have written lies before `position`, or is nowhere any more.
    pub(crate) fn is_left_with(&mut self, position: Position) {
        let needs = self.needs();
        needs.others = None;
        let before = needs.theirs.filter(|theirs| !theirs.is_after(position));
        needs.theirs = Some(before.unwrap_or(position));
    }

    /// Replaces sequence numbers and times by positions that have become known.
    pub(crate) fn refresh(&mut self, write_log: &WriteLog) {
        let Some(needs) = &mut self.needs else {
            return;
        };
        if needs.refresh(write_log) {
            self.primary = Some(RouteReason::LostWrite);
        }
    }

    /// Whether a node with these reports can serve. Call [`ReadRequirement::refresh`] first.
    pub(crate) fn is_met_by(&self, reports: &Arc<Reports>, write_log: &WriteLog) -> bool {
        if self.needs_no_position() || self.is_assumed_of(reports) {
            return true;
        }
        let unknown = self.primary.is_some() || self.wants_primary();
        // A node shows what it has shown before.
        let elsewhere = |read: &ReadMark| !read.is_on(reports) || read.is_lost();
        if unknown || self.reads().any(elsewhere) {
            return false;
        }
        let mut wanted = self.wanted();
        if self.age().is_none() && self.wanted().next().is_none() {
            return true;
        }
        let Some(replayed) = reports.position() else {
            return false;
        };
        write_log.with(|view| {
            let young = self.age().is_none_or(|age| {
                let known = view.history.age(replayed, Instant::now());
                known.is_some_and(|known| known <= age)
            });
            young && wanted.all(|wanted| view.forks.covers(replayed, wanted))
        })
    }

    /// Whether a server that tells no position is taken to show it by now.
    pub(crate) fn is_assumed_of(&self, reports: &Arc<Reports>) -> bool {
        let Some(Assumed { lag, must_show }) = self.needs.as_ref().and_then(|needs| needs.assumed)
        else {
            return false;
        };
        let there = |moment: Instant| moment.elapsed() >= lag;
        self.primary.is_none()
            && reports.is_mute()
            && self.age().is_none_or(|age| age >= lag)
            && must_show.is_none_or(there)
    }

    /// The position that a server on `timeline` has to show over the connection that serves the read. `None` if that is
    /// not known, or only the primary can serve. Call [`ReadRequirement::refresh`] first.
    pub(crate) fn to_show(&self, timeline: u32, write_log: &WriteLog) -> Option<Position> {
        let unknown =
            self.primary.is_some() || self.wants_primary() || self.reads().next().is_some();
        if unknown || timeline == 0 {
            return None;
        }
        write_log.with(|view| {
            let young = match self.age() {
                Some(age) => Some(view.history.since(Instant::now().checked_sub(age)?)?),
                None => None,
            };
            let wanted = || self.wanted().chain(young);
            let lsn = wanted().map(|wanted| wanted.lsn).max().unwrap_or_default();
            let position = Position::new(timeline, lsn);
            let covers = |wanted| view.forks.covers(position, wanted);
            wanted().all(covers).then_some(position)
        })
    }

    /// The position that a server on `timeline` may be had to wait for. Call [`ReadRequirement::refresh`] first.
    pub(crate) fn to_wait_for(&self, timeline: u32, write_log: &WriteLog) -> Option<Position> {
        // How old a server's log is may change without more of it.
        if self.age().is_some() || self.wanted().next().is_none() {
            return None;
        }
        self.to_show(timeline, write_log)
    }

    /// Whether what it asks for may be a position, once others have answered.
    pub(crate) fn may_become_a_position(&self) -> bool {
        self.age().is_none() && self.primary.is_none()
    }

    /// A server was waited for in vain, beginning at this moment.
    pub(crate) fn waited_since(&mut self, began: Instant) {
        self.needs().waited = Some((began, began.elapsed()));
    }

    /// Since when a server was waited for in vain, and how long that took.
    pub(crate) fn waited(&self) -> Option<(Instant, Duration)> {
        self.needs.as_ref().and_then(|needs| needs.waited)
    }

    /// Whether waiting is in vain: the primary was asked after `moment`, and is not that far itself.
    pub(crate) fn is_beyond_primary(&self, write_log: &WriteLog, moment: Instant) -> bool {
        let Some(primary) = write_log.asked_since(moment) else {
            return false;
        };
        self.wanted().any(|wanted| wanted.is_after(primary))
    }

    /// The node must have everything up to these.
    fn wanted(&self) -> impl Iterator<Item = Position> {
        self.needs.iter().flat_map(|needs| needs.wanted())
    }

    fn age(&self) -> Option<Duration> {
        self.needs.as_ref().and_then(|needs| needs.age)
    }
}

impl Needs {
    fn nothing(&self) -> bool {
        self.wanted().next().is_none()
            && !self.primary()
            && self.age.is_none()
            && self.reads.is_empty()
    }

    fn primary(&self) -> bool {
        self.seq.is_some() || self.others.is_some() || self.since.is_some()
    }

    fn wanted(&self) -> impl Iterator<Item = Position> {
        let own = self.positions.iter().flatten();
        own.copied().chain(self.theirs)
    }

    fn covers(&mut self, position: Position) {
        let [first, second] = &mut self.positions;
        match first {
            None => *first = Some(position),
            Some(first) if first.timeline == position.timeline => *first = first.max(position),
            Some(_) => *second = Some(second.map_or(position, |second| second.max(position))),
        }
    }

    /// Returns whether a write is lost.
    fn refresh(&mut self, write_log: &WriteLog) -> bool {
        let mut lost = false;
        if let Some(seq) = self.seq {
            match write_log.covering(seq) {
                Covering::Unknown => {}
                Covering::At(position) => {
                    self.seq = None;
                    self.covers(position);
                }
                Covering::Over => lost = true,
            }
        }
        if let Some(number) = self.others {
            let seq = WriteSeq {
                number,
                timeline: 0,
            };
            if let Covering::At(position) = write_log.covering(seq) {
                self.others = None;
                match self.sought {
                    true => self.covers(position),
                    false => self.theirs = Some(position),
                }
            }
        }
        if let Some(moment) = self.since {
            if let Some(position) = write_log.asked_since(moment) {
                self.since = None;
                self.covers(position);
            }
        }
        for read in std::mem::take(&mut self.reads) {
            match read.shown() {
                Some(shown) => self.covers(shown.position),
                None => self.reads.push(read),
            }
        }
        lost
    }
}
