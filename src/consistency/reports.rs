//! What one server last reported of itself, and who waits to hear more.
//!
//! There is one cell for each server. Its monitor alone writes it, or the manager while the server is down and has
//! no monitor; everybody reads it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, oneshot, watch};

use crate::node::{Facts, MissingRight, Place};
use crate::position::{Lsn, Position};
use crate::wire::Wire;

/// Who does not wait does not ask again so soon: a replica takes about as long to replay a commit, and an answer
/// costs much less.
const GENTLY: Duration = Duration::from_millis(1);

/// How much of the average round trip the last answer makes.
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
    /// What it said of itself; `None` until it has.
    pub(crate) facts: Option<Arc<Facts>>,
    /// When it was asked for that.
    pub(crate) asked: Instant,
    /// How long answers take, averaged over the last ones.
    pub(crate) round_trip: Option<Duration>,
    /// When it last answered anything.
    pub(crate) answered: Instant,
    /// What this role may not ask.
    pub(crate) limits: Arc<[MissingRight]>,
    /// Why it cannot be asked at all.
    pub(crate) error: Option<Arc<str>>,
    /// How long a commit has waited there for a synchronous standby, if one does.
    pub(crate) commits_wait: Option<Duration>,
    shown: Option<Shown>,
}

/// What a server showed when it was asked, as far as it may tell and as that belongs to the pool's cluster.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    /// Everything up to here.
    pub(crate) position: Position,
    /// A standby has received this on disk, and this at all.
    received: Option<(Lsn, Lsn)>,
    /// The transactions that a standby shows, as `pg_snapshot`; the primary may show fewer.
    snapshot: Option<Arc<str>>,
    /// The number of the question that this answers, and when it was put.
    question: u64,
    asked: Instant,
    /// The connection that the answer came over. While it lives the server has not been
    /// restarted, which may take it back.
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
            error: None,
            commits_wait: None,
            shown: None,
        }
    }
}

impl Shown {
    /// Whether a standby showed it, which may be more than the primary shows yet.
    pub(crate) fn by_standby(&self) -> bool {
        self.snapshot.is_some()
    }

    /// Whether the connection that it was told over still lives.
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
    /// It is to be asked once, though nobody waits.
    nudged: AtomicBool,
    wanted: Notify,
    questions: Mutex<Vec<Question>>,
    /// A connection to the run of the server before which it has shown nothing that the primary
    /// does not.
    vouched: Mutex<Option<Arc<Wire>>>,
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
        })
    }

    /// The whole of it.
    pub(crate) fn last(&self) -> LastReport {
        self.last.borrow().clone()
    }

    /// What the server last said of itself.
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

    /// Up to where the node has everything, as it last said.
    pub(crate) fn position(&self) -> Option<Position> {
        self.current(|shown| shown.position)
    }

    /// Up to where the node has everything at this stage, as it last said.
    pub(crate) fn at(&self, stage: Stage) -> Option<Position> {
        self.current(|shown| {
            let applied = shown.position;
            let lsn = match (stage, shown.received) {
                (Stage::Received, Some((_, written))) => written,
                (Stage::Flushed, Some((flushed, _))) => flushed,
                (Stage::Applied, _) | (_, None) => applied.lsn,
            };
            // After a restart a standby says of what it receives where it has begun anew.
            Position::new(applied.timeline, lsn.max(applied.lsn))
        })
    }

    /// What a standby last showed. `None` for a primary, and for who cannot be asked any more.
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

    /// Puts a question besides the usual one. For the monitor to answer.
    fn put(&self, question: Question) {
        self.questions().push(question);
        self.nudge();
    }

    /// Questions that were put besides the usual one. For the monitor alone.
    pub(crate) fn take_questions(&self) -> Vec<Question> {
        std::mem::take(&mut self.questions())
    }

    fn questions(&self) -> MutexGuard<'_, Vec<Question>> {
        self.questions.lock()
    }

    /// Whether what is known was asked for at or after `moment`.
    ///
    /// A server that was restarted may show less than before. A connection that was open when the
    /// node was asked, over one that still is, is to the same run of the server.
    pub(crate) fn asked_since(&self, moment: Instant) -> bool {
        self.current(|shown| shown.asked >= moment)
            .unwrap_or_default()
    }

    /// A read has seen what the node shows; `same_run` if the server is known not to have been
    /// restarted since.
    pub(crate) fn sighted(self: &Arc<Self>, same_run: bool) -> ReadMark {
        ReadMark {
            // Put after whatever has happened until now.
            question: self.asked.load(Ordering::Acquire) + 1,
            wire: self.wire().filter(|_| same_run),
            reports: Arc::clone(self),
        }
    }

    /// The node is about to be asked. For the monitor alone.
    pub(crate) fn asks(&self) -> u64 {
        self.asked.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// The server has answered something. For its monitor alone, as all that writes.
    pub(crate) fn answered(&self) {
        self.write(|_| ());
    }

    /// The server has said this of itself, and took so long.
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

    /// This role may not ask for these.
    pub(crate) fn limit(&self, limits: &Arc<[MissingRight]>) {
        self.last
            .send_modify(|last| last.limits = Arc::clone(limits));
    }

    /// It could be asked, or could not for this cause. Whether it could not before.
    pub(crate) fn failed(&self, cause: Option<&str>) -> bool {
        let mut before = false;
        self.last.send_modify(|last| {
            before = last.error.is_some();
            last.error = cause.map(Arc::from);
        });
        before
    }

    /// For so long a commit has waited there for a synchronous standby.
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

    /// Whether anybody waits for news.
    pub(crate) fn is_wanted(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > 0
    }

    /// Waits until somebody wants news. For the monitor alone.
    pub(crate) async fn wanted(&self) {
        loop {
            let wanted = self.wanted.notified();
            if self.is_wanted() || self.nudged.swap(false, Ordering::AcqRel) {
                return;
            }
            wanted.await;
        }
    }

    /// Has the node asked once.
    pub(crate) fn nudge(&self) {
        self.nudged.store(true, Ordering::Release);
        self.wanted.notify_one();
    }

    /// Has the node asked once, unless it is being asked, or was so a moment ago: for those who would like to
    /// know, and do not wait.
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

    /// Has the node asked, again and again, for as long as the guard lives.
    pub(crate) fn want(self: &Arc<Self>) -> Wanting {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        self.wanted.notify_one();
        Wanting(Arc::clone(self))
    }
}

/// What a read has seen on a node: what that showed before it was asked a certain question.
#[derive(Clone, Debug)]
pub(crate) struct ReadMark {
    reports: Arc<Reports>,
    question: u64,
    /// The connection over which the node is asked. Another one may be to another run of the
    /// server, which may show less.
    wire: Option<Arc<Wire>>,
}

impl ReadMark {
    pub(crate) fn reports(&self) -> &Arc<Reports> {
        &self.reports
    }

    pub(crate) fn is_on(&self, reports: &Arc<Reports>) -> bool {
        Arc::ptr_eq(&self.reports, reports)
    }

    /// What the node showed, once it has been asked.
    pub(crate) fn shown(&self) -> Option<Shown> {
        let last = self.reports.last.borrow();
        let shown = last.shown.as_ref()?;
        let same = self
            .wire
            .as_ref()
            .is_some_and(|wire| Arc::ptr_eq(wire, &shown.wire));
        (same && shown.question >= self.question).then(|| shown.clone())
    }

    /// Whether it will never be known.
    pub(crate) fn is_lost(&self) -> bool {
        let open = self.wire.as_ref().is_some_and(|wire| !wire.is_closed());
        !open && self.shown().is_none()
    }
}

/// Somebody waits for news of a node.
#[derive(Debug)]
pub(crate) struct Wanting(Arc<Reports>);

impl Drop for Wanting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What a standby showed when it was last asked, and the connection over which it said so.
///
/// A commit is sent to standbys before the primary itself shows it: by a moment, or for as long as it waits for a
/// synchronous standby.
#[derive(Clone, Debug)]
pub(crate) struct StandbySnapshot {
    pub(crate) position: Position,
    /// As `pg_snapshot`. That of a standby lacks the transactions that are still under way; only
    /// that none begins at or after its `xmax` is known from it.
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

    /// Whether all that earlier runs of the server have shown is known to be shown by the primary.
    pub(crate) fn is_vouched_for(&self) -> bool {
        self.vouched()
            .as_ref()
            .is_some_and(|run| Arc::ptr_eq(run, &self.wire))
    }

    /// The primary shows all that earlier runs of the server have shown.
    pub(crate) fn vouch(&self) {
        *self.vouched() = Some(Arc::clone(&self.wire));
    }

    fn vouched(&self) -> MutexGuard<'_, Option<Arc<Wire>>> {
        self.reports.vouched.lock()
    }
}

/// Which of these transactions are over?
#[derive(Debug)]
pub(crate) struct Question {
    pub(crate) transactions: Vec<i64>,
    pub(crate) answer: oneshot::Sender<(Vec<i64>, Arc<Wire>)>,
}
