//! How far one node is, as it last said, and who waits to hear more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, watch};

use super::standby_snapshot::{Question, StandbySnapshot};
use crate::position::{Lsn, Position};
use crate::wire::Wire;

/// How long nobody asks again who does not wait: about as long as a replica takes to replay a commit, and many
/// times the time that an answer costs.
const GENTLY: Duration = Duration::from_millis(1);

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

/// What is known of a node's place.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    /// Everything up to here was shown by the node when it was asked.
    pub(crate) position: Option<Position>,
    /// A standby has received this on disk, and this at all.
    received: Option<Received>,
    /// The transactions that a standby shows, as `pg_snapshot`; the primary may show fewer.
    snapshot: Option<Arc<str>>,
    /// The number of the question that this answers, and when it was put.
    question: u64,
    at: Option<Instant>,
    /// The connection that the answer came over. While it lives the server has not been
    /// restarted, which may take it back.
    wire: Option<Arc<Wire>>,
}

impl Known {
    /// Whether the connection that it was told over still lives.
    fn is_current(&self) -> bool {
        self.wire.as_ref().is_some_and(|wire| !wire.is_closed())
    }
}

/// What a node shows.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    pub(crate) position: Position,
    /// The node was a standby, which may show what the primary does not show yet.
    pub(crate) by_standby: bool,
}

/// How far the log has come to a standby.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Received {
    pub(crate) written: Lsn,
    pub(crate) flushed: Lsn,
}

/// How far one node is.
#[derive(Debug)]
pub(crate) struct ReplicaPosition {
    known: watch::Sender<Known>,
    asked: AtomicU64,
    waiting: AtomicUsize,
    /// It is to be asked once, though nobody waits.
    nudged: AtomicBool,
    wanted: Notify,
    questions: Mutex<Vec<Question>>,
    /// A connection to the run of the server before which it has shown nothing that the primary
    /// does not.
    pub(super) vouched: Mutex<Option<Arc<Wire>>>,
}

impl ReplicaPosition {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            known: watch::Sender::new(Known::default()),
            asked: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            nudged: AtomicBool::new(false),
            wanted: Notify::new(),
            questions: Mutex::default(),
            vouched: Mutex::default(),
        })
    }

    /// Up to where the node has everything, as it last said.
    pub(crate) fn position(&self) -> Option<Position> {
        let known = self.known.borrow();
        known.position.filter(|_| known.is_current())
    }

    /// Up to where the node has everything at this stage, as it last said.
    pub(crate) fn at(&self, stage: Stage) -> Option<Position> {
        let applied = self.position()?;
        let received = self.known.borrow().received;
        let lsn = match (stage, received) {
            (Stage::Received, Some(received)) => received.written,
            (Stage::Flushed, Some(received)) => received.flushed,
            (Stage::Applied, _) | (_, None) => applied.lsn,
        };
        // After a restart a standby says of what it receives where it has begun anew.
        Some(Position::new(applied.timeline, lsn.max(applied.lsn)))
    }

    /// What a standby last showed. `None` for a primary, and for who cannot be asked any more.
    pub(crate) fn witness(self: &Arc<Self>) -> Option<StandbySnapshot> {
        let known = self.known.borrow();
        let wire = known.wire.clone().filter(|wire| !wire.is_closed())?;
        Some(StandbySnapshot {
            position: known.position?,
            snapshot: known.snapshot.clone()?,
            progress: Arc::clone(self),
            wire,
        })
    }

    /// Puts a question besides the usual one. For the monitor to answer.
    pub(super) fn put(&self, question: Question) {
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
        let known = self.known.borrow();
        known.is_current() && known.at.is_some_and(|at| at >= moment)
    }

    /// A read has seen what the node shows; `same_run` if the server is known not to have been
    /// restarted since.
    pub(crate) fn sighted(self: &Arc<Self>, same_run: bool) -> ReadMark {
        ReadMark {
            // Put after whatever has happened until now.
            question: self.asked.load(Ordering::Acquire) + 1,
            wire: self.known.borrow().wire.clone().filter(|_| same_run),
            progress: Arc::clone(self),
        }
    }

    /// The node is about to be asked. For the monitor alone.
    pub(crate) fn asks(&self) -> u64 {
        self.asked.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// The node has answered. For the monitor alone.
    pub(crate) fn publish(
        &self,
        (question, at): (u64, Instant),
        position: Position,
        (received, snapshot): (Option<Received>, Option<Arc<str>>),
        wire: &Arc<Wire>,
    ) {
        self.known.send_modify(|known| {
            *known = Known {
                position: Some(position),
                received,
                snapshot,
                question,
                at: Some(at),
                wire: Some(Arc::clone(wire)),
            };
        });
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
            let known = self.known.borrow();
            let answered = known.question >= self.asked.load(Ordering::Acquire);
            answered && known.at.is_none_or(|at| at.elapsed() >= GENTLY)
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
    progress: Arc<ReplicaPosition>,
    question: u64,
    /// The connection over which the node is asked. Another one may be to another run of the
    /// server, which may show less.
    wire: Option<Arc<Wire>>,
}

impl ReadMark {
    pub(crate) fn progress(&self) -> &Arc<ReplicaPosition> {
        &self.progress
    }

    pub(crate) fn is_on(&self, progress: &Arc<ReplicaPosition>) -> bool {
        Arc::ptr_eq(&self.progress, progress)
    }

    /// What the node showed, once it has been asked.
    pub(crate) fn shown(&self) -> Option<Shown> {
        let known = self.progress.known.borrow();
        let same = match (&self.wire, &known.wire) {
            (Some(then), Some(now)) => Arc::ptr_eq(then, now),
            _ => false,
        };
        let position = known
            .position
            .filter(|_| same && known.question >= self.question)?;
        Some(Shown {
            position,
            by_standby: known.snapshot.is_some(),
        })
    }

    /// Whether it will never be known.
    pub(crate) fn is_lost(&self) -> bool {
        let open = self.wire.as_ref().is_some_and(|wire| !wire.is_closed());
        !open && self.shown().is_none()
    }
}

/// Somebody waits for news of a node.
#[derive(Debug)]
pub(crate) struct Wanting(Arc<ReplicaPosition>);

impl Drop for Wanting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}
