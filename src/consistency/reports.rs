//! The cell with the last report of one server, and who waits for the next one.
//!
//! Each server has one cell. Its monitor writes it. After a health check by a new connection the manager writes what
//! that learned: the facts while the server is down, and that the server has answered. Everybody reads it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, oneshot, watch};

use crate::node::{Facts, MissingRight, Place};
use crate::position::{Lsn, Position};
use crate::wire::Wire;

/// How long a reader that does not wait asks nobody again. A replica takes about as long to replay a commit.
const GENTLY: Duration = Duration::from_millis(1);

/// The share of the last answer in the average round trip.
const LAST_SHARE: f64 = 0.3;

/// How far a write has got on a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// Received, and written to the replica's operating system. Where this role may not see that
    /// (it takes `pg_monitor`), as [`Flushed`](Self::Flushed).
    Received,
    /// On the replica's disk.
    Flushed,
    /// Applied: reads there see it.
    Applied,
}

/// What one server last reported.
#[derive(Clone, Debug)]
pub(crate) struct LastReport {
    /// What the server reported; `None` until it has.
    pub(crate) facts: Option<Arc<Facts>>,
    /// When it was asked for that.
    pub(crate) asked: Instant,
    /// How long answers take, on average over the last ones.
    pub(crate) round_trip: Option<Duration>,
    /// When it last answered anything.
    pub(crate) answered: Instant,
    /// The rights that this role lacks.
    pub(crate) limits: Arc<[MissingRight]>,
    /// It does not tell how far it has replayed.
    mute: bool,
    /// Why the server cannot be asked.
    pub(crate) error: Option<Arc<str>>,
    /// How long a commit has waited there for a synchronous standby, if one does.
    pub(crate) commits_wait: Option<Duration>,
    shown: Option<Shown>,
}

/// What a server showed when it was asked, if it may tell and belongs to the pool's cluster.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    /// It showed everything up to here.
    pub(crate) position: Position,
    /// How much a standby has received: flushed, and written.
    received: Option<(Lsn, Lsn)>,
    /// The transactions that a standby shows, as `pg_snapshot`. The primary may show fewer.
    snapshot: Option<Arc<str>>,
    /// The number of the question that this answers.
    question: u64,
    asked: Instant,
    /// The connection that the answer came over. While it lives the server was not restarted. A restarted server may
    /// show less.
    wire: Arc<Wire>,
}

impl Default for LastReport {
    fn default() -> Self {
        Self {
            facts: None,
            asked: Instant::now(),
            round_trip: None,
            answered: Instant::now(),
            limits: Arc::default(),
            mute: false,
            error: None,
            commits_wait: None,
            shown: None,
        }
    }
}

impl Shown {
    /// Whether a standby showed it. That may be more than the primary shows yet.
    pub(crate) fn by_standby(&self) -> bool {
        self.snapshot.is_some()
    }

    /// Whether the connection of the answer still lives.
    fn is_current(&self) -> bool {
        !self.wire.is_closed()
    }
}

/// The cell of one server.
#[derive(Debug)]
pub(crate) struct Reports {
    last: watch::Sender<LastReport>,
    asked: AtomicU64,
    waiting: AtomicUsize,
    /// The server is to be asked once, though nobody waits.
    nudged: AtomicBool,
    wanted: Notify,
    questions: Mutex<Vec<Question>>,
    /// A connection to a run of the server. All that earlier runs have shown, the primary shows.
    vouched: Mutex<Option<Arc<Wire>>>,
    /// How the last wait there ended that ended without what it waited for.
    in_vain: Mutex<Option<InVain>>,
}

/// Until when nobody waits on a server that was waited for in vain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InVain {
    /// It reports this position, if it was not so far in time.
    position: Option<Position>,
    /// At the latest.
    end: Instant,
}

impl InVain {
    /// The server was not so far in time.
    pub(crate) fn until(position: Position, limit: Duration) -> Self {
        Self {
            position: Some(position),
            ..Self::anything(limit)
        }
    }

    /// It cannot wait for what was wanted of it, nor for anything else.
    pub(crate) fn anything(limit: Duration) -> Self {
        Self {
            position: None,
            end: Instant::now() + limit,
        }
    }
}

impl Reports {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            last: watch::Sender::new(LastReport::default()),
            asked: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            nudged: AtomicBool::new(false),
            wanted: Notify::new(),
            questions: Mutex::default(),
            vouched: Mutex::default(),
            in_vain: Mutex::default(),
        })
    }

    /// All of the last report.
    pub(crate) fn last(&self) -> LastReport {
        self.last.borrow().clone()
    }

    /// What the server last reported.
    pub(crate) fn facts(&self) -> Option<Arc<Facts>> {
        self.last.borrow().facts.clone()
    }

    pub(crate) fn round_trip(&self) -> Option<Duration> {
        self.last.borrow().round_trip
    }

    /// Whether the server has answered anything after `moment`.
    pub(crate) fn answered_since(&self, moment: Instant) -> bool {
        self.last.borrow().answered > moment
    }

    /// Whether the server has answered anything within this time.
    pub(crate) fn answered_within(&self, time: Duration) -> bool {
        self.last.borrow().answered.elapsed() <= time
    }

    /// Whether the server does not tell its position.
    pub(crate) fn is_mute(&self) -> bool {
        self.last.borrow().mute
    }

    /// The position that the server last reported.
    pub(crate) fn position(&self) -> Option<Position> {
        self.current(|shown| shown.position)
    }

    /// The position at this stage that the server last reported.
    pub(crate) fn at(&self, stage: Stage) -> Option<Position> {
        self.current(|shown| {
            let applied = shown.position;
            let lsn = match (stage, shown.received) {
                (Stage::Received, Some((_, written))) => written,
                (Stage::Flushed, Some((flushed, _))) => flushed,
                (Stage::Applied, _) | (_, None) => applied.lsn,
            };
            // A restarted standby reports what it has received since.
            Position::new(applied.timeline, lsn.max(applied.lsn))
        })
    }

    /// What a standby last showed. `None` for a primary, and for a standby that cannot be asked any more.
    pub(crate) fn snapshot(self: &Arc<Self>) -> Option<StandbySnapshot> {
        self.current(|shown| {
            Some(StandbySnapshot {
                position: shown.position,
                snapshot: shown.snapshot.clone()?,
                reports: Arc::clone(self),
                wire: Arc::clone(&shown.wire),
            })
        })?
    }

    fn current<T>(&self, of: impl FnOnce(&Shown) -> T) -> Option<T> {
        let last = self.last.borrow();
        last.shown
            .as_ref()
            .filter(|shown| shown.is_current())
            .map(of)
    }

    /// Adds a question for the monitor.
    fn put(&self, question: Question) {
        self.questions().push(question);
        self.nudge();
    }

    /// Takes the added questions. For the monitor alone.
    pub(crate) fn take_questions(&self) -> Vec<Question> {
        std::mem::take(&mut self.questions())
    }

    fn questions(&self) -> MutexGuard<'_, Vec<Question>> {
        self.questions.lock()
    }

    /// Whether the server was asked for its position at or after `moment`.
    ///
    /// A restarted server may show less than before. If a connection was open when the server was asked, and is open
    /// now, it is to the same run of the server.
    pub(crate) fn asked_since(&self, moment: Instant) -> bool {
        self.current(|shown| shown.asked >= moment)
            .unwrap_or_default()
    }

    /// Marks that a read has seen what the server shows. `same_run`: the server was not restarted since.
    pub(crate) fn sighted(self: &Arc<Self>, same_run: bool) -> ReadMark {
        ReadMark {
            // This question comes after all that has happened until now.
            question: self.asked.load(Ordering::Acquire) + 1,
            wire: self.wire().filter(|_| same_run),
            reports: Arc::clone(self),
        }
    }

    /// The monitor is about to ask. Returns the number of the question.
    pub(crate) fn asks(&self) -> u64 {
        self.asked.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// The server has answered something.
    pub(crate) fn answered(&self) {
        self.write(|_| ());
    }

    /// The server has reported this, and took so long.
    pub(crate) fn said(&self, facts: Facts, took: Duration) {
        let now = Instant::now();
        self.write(|last| {
            let before = last.round_trip.unwrap_or(took);
            last.round_trip = Some(before.mul_f64(1.0 - LAST_SHARE) + took.mul_f64(LAST_SHARE));
            last.facts = Some(Arc::new(facts));
            last.asked = now.checked_sub(took).unwrap_or(now);
        });
    }

    /// By its answer to that question it showed everything up to `position`.
    pub(crate) fn showed(
        &self,
        position: Position,
        place: &Place,
        (question, asked): (u64, Instant),
        wire: &Arc<Wire>,
    ) {
        let (received, snapshot) = match place {
            Place::Primary { .. } => (None, None),
            Place::Standby {
                received, snapshot, ..
            } => (*received, snapshot.clone()),
        };
        self.write(|last| {
            last.shown = Some(Shown {
                position,
                received,
                snapshot,
                question,
                asked,
                wire: Arc::clone(wire),
            });
        });
    }

    /// This role lacks these rights.
    pub(crate) fn limit(&self, limits: &Arc<[MissingRight]>) {
        self.last.send_modify(|last| {
            last.mute = limits.iter().any(|limit| limit.hides_replay);
            last.limits = Arc::clone(limits);
        });
    }

    /// Notes why the server cannot be asked, or that it can. Returns whether it could not before.
    pub(crate) fn failed(&self, cause: Option<&str>) -> bool {
        let mut before = false;
        self.last.send_modify(|last| {
            before = last.error.is_some();
            last.error = cause.map(Arc::from);
        });
        before
    }

    /// A commit has waited there so long for a synchronous standby.
    pub(crate) fn commits_wait(&self, wait: Option<Duration>) {
        self.last.send_modify(|last| last.commits_wait = wait);
    }

    fn write(&self, change: impl FnOnce(&mut LastReport)) {
        self.last.send_modify(|last| {
            last.answered = Instant::now();
            change(last);
        });
    }

    fn wire(&self) -> Option<Arc<Wire>> {
        let last = self.last.borrow();
        last.shown.as_ref().map(|shown| Arc::clone(&shown.wire))
    }

    /// A wait on the server itself has ended without what it waited for.
    pub(crate) fn waited_in_vain(&self, in_vain: InVain) {
        *self.in_vain.lock() = Some(in_vain);
    }

    /// Whether a wait on the server itself may succeed, as far as is known.
    pub(crate) fn is_worth_a_wait(&self) -> bool {
        let mut in_vain = self.in_vain.lock();
        let Some(InVain { position, end }) = *in_vain else {
            return true;
        };
        let has = |position: Position| {
            let reported = self.position();
            reported.is_some_and(|reported| !position.is_after(reported))
        };
        let over = Instant::now() >= end || position.is_some_and(has);
        if over {
            *in_vain = None;
        }
        over
    }

    /// Whether anybody waits for a report.
    pub(crate) fn is_wanted(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > 0
    }

    /// Waits until somebody wants a report. For the monitor alone.
    pub(crate) async fn wanted(&self) {
        loop {
            let wanted = self.wanted.notified();
            if self.is_wanted() || self.nudged.swap(false, Ordering::AcqRel) {
                return;
            }
            wanted.await;
        }
    }

    /// Asks the server once.
    pub(crate) fn nudge(&self) {
        self.nudged.store(true, Ordering::Release);
        self.wanted.notify_one();
    }

    /// Asks the server once, unless it is being asked or was just asked. For those who do not wait.
    pub(crate) fn nudge_gently(&self) {
        let resting = {
            let last = self.last.borrow();
            let asked = self.asked.load(Ordering::Acquire);
            match &last.shown {
                Some(shown) => shown.question >= asked && shown.asked.elapsed() >= GENTLY,
                None => asked == 0,
            }
        };
        if resting {
            self.nudge();
        }
    }

    /// Asks the server again and again while the guard lives.
    pub(crate) fn want(self: &Arc<Self>) -> Wanting {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        self.wanted.notify_one();
        Wanting(Arc::clone(self))
    }
}

/// What a read has seen on a server: what the server showed before it was asked this question.
#[derive(Clone, Debug)]
pub(crate) struct ReadMark {
    reports: Arc<Reports>,
    question: u64,
    /// The connection over which the server is asked. Another one may be to another run of the server, which may show
    /// less.
    wire: Option<Arc<Wire>>,
}

impl ReadMark {
    pub(crate) fn reports(&self) -> &Arc<Reports> {
        &self.reports
    }

    pub(crate) fn is_on(&self, reports: &Arc<Reports>) -> bool {
        Arc::ptr_eq(&self.reports, reports)
    }

    /// What the server showed, once it was asked.
    pub(crate) fn shown(&self) -> Option<Shown> {
        let last = self.reports.last.borrow();
        let shown = last.shown.as_ref()?;
        let same = self
            .wire
            .as_ref()
            .is_some_and(|wire| Arc::ptr_eq(wire, &shown.wire));
        (same && shown.question >= self.question).then(|| shown.clone())
    }

    /// Whether that will never be known.
    pub(crate) fn is_lost(&self) -> bool {
        let open = self.wire.as_ref().is_some_and(|wire| !wire.is_closed());
        !open && self.shown().is_none()
    }
}

/// Somebody waits for reports of a server.
#[derive(Debug)]
pub(crate) struct Wanting(Arc<Reports>);

impl Drop for Wanting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What a standby showed when it was last asked, and over which connection.
///
/// A standby gets a commit before the primary shows it: by a moment, or for as long as the commit waits for a
/// synchronous standby.
#[derive(Clone, Debug)]
pub(crate) struct StandbySnapshot {
    pub(crate) position: Position,
    /// As `pg_snapshot`. A standby's snapshot does not list the transactions that still run. It only tells that none
    /// begins at or after `xmax`.
    pub(crate) snapshot: Arc<str>,
    reports: Arc<Reports>,
    wire: Arc<Wire>,
}

impl StandbySnapshot {
    /// Which of these transactions are over on the standby. `None` if it cannot be asked any more.
    pub(crate) async fn over(&self, transactions: Vec<i64>) -> Option<Vec<i64>> {
        let (answer, answered) = oneshot::channel();
        self.reports.put(Question {
            transactions,
            answer,
        });
        let (over, wire) = answered.await.ok()?;
        // Another connection may be to another run of the server, which may show less.
        Arc::ptr_eq(&wire, &self.wire).then_some(over)
    }

    /// Whether the primary is known to show all that earlier runs of the server have shown.
    pub(crate) fn is_vouched_for(&self) -> bool {
        self.vouched()
            .as_ref()
            .is_some_and(|run| Arc::ptr_eq(run, &self.wire))
    }

    /// Notes that the primary shows all that earlier runs of the server have shown.
    pub(crate) fn vouch(&self) {
        *self.vouched() = Some(Arc::clone(&self.wire));
    }

    fn vouched(&self) -> MutexGuard<'_, Option<Arc<Wire>>> {
        self.reports.vouched.lock()
    }
}

/// Asks which of these transactions are over.
#[derive(Debug)]
pub(crate) struct Question {
    pub(crate) transactions: Vec<i64>,
    pub(crate) answer: oneshot::Sender<(Vec<i64>, Arc<Wire>)>,
}
