//! The primary's positions through time, and the sequence numbers of writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, watch};

use super::Left;
use crate::position::{Forks, History, Lsn, Position, Sample, Survival};
use crate::wire::Wire;

/// The primary's positions through time.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    pub(crate) history: History,
    pub(crate) forks: Forks,
    /// The system identifier of the cluster.
    pub(crate) cluster: Option<u64>,
    /// How many standbys have to confirm a commit. They show it before the primary does. `None` until the primary has
    /// told.
    pub(crate) synchronous_standbys: Option<usize>,
    /// The primary is known to show everything up to here.
    shown: Option<Position>,
}

/// Stands for an acknowledged write until its position is known: a number, counted through the whole pool, and the
/// timeline of the primary that acknowledged the write.
///
/// Only that primary can tell the position. The primary of another timeline does not know what was acknowledged
/// before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WriteSeq {
    pub(crate) number: u64,
    /// 0 if it is not known, or does not matter.
    pub(crate) timeline: u32,
}

/// What is known of the position of such a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Covering {
    /// The primary was not asked since.
    Unknown,
    /// The write is not beyond this position.
    At(Position),
    /// Its timeline has ended, and the primary was not asked before. Nobody knows whether the write is lost.
    Over,
}

/// What monitors write of the primary, and sessions read.
///
/// A write costs one addition here. What the primary says of its position *after* a write was acknowledged covers the
/// write, so one question serves all writes before it.
#[derive(Debug, Default)]
pub(crate) struct WriteLog {
    drawn: AtomicU64,
    /// The last of these numbers that stands for a write through this pool.
    last_write: AtomicU64,
    /// When the last write was acknowledged.
    written_at: Mutex<Option<Instant>>,
    written: Notify,
    /// Writes of all sessions whose answers nobody waits for, if every session must see them.
    left: Mutex<Vec<Left>>,
    /// How many these are, to be read without the lock.
    under_way: AtomicUsize,
    view: watch::Sender<View>,
    news: Notify,
    /// How many times another cluster has come in the place of the one before.
    era: AtomicU64,
}

impl WriteLog {
    /// Takes a sequence number for a write that was just acknowledged. Wakes the primary's monitor.
    pub(crate) fn draw(&self, timeline: u32) -> WriteSeq {
        let seq = self.draw_quietly(timeline);
        self.written.notify_one();
        seq
    }

    /// Takes a sequence number, and wakes nobody.
    pub(crate) fn draw_quietly(&self, timeline: u32) -> WriteSeq {
        // Whoever sees the number sees its time, or a later one.
        *self.written_at.lock() = Some(Instant::now());
        self.next_write(timeline)
    }

    /// Takes a sequence number for what is there by now, but was not written through this pool. It binds nobody but
    /// the session that asks.
    pub(super) fn seek(&self, timeline: u32) -> WriteSeq {
        let seq = self.next(timeline);
        self.written.notify_one();
        seq
    }

    fn next_write(&self, timeline: u32) -> WriteSeq {
        let seq = self.next(timeline);
        self.last_write.fetch_max(seq.number, Ordering::AcqRel);
        seq
    }

    fn next(&self, timeline: u32) -> WriteSeq {
        WriteSeq {
            number: self.drawn.fetch_add(1, Ordering::AcqRel) + 1,
            timeline,
        }
    }

    /// The last sequence number that was taken; 0 before the first.
    pub(crate) fn drawn(&self) -> u64 {
        self.drawn.load(Ordering::Acquire)
    }

    /// When the last write of this pool was acknowledged.
    pub(crate) fn acknowledged_at(&self) -> Option<Instant> {
        *self.written_at.lock()
    }

    /// When the last write of this pool was done, as far as can be told.
    pub(super) fn written_at(&self) -> Option<Instant> {
        match self.under_way.load(Ordering::Acquire) {
            0 => self.acknowledged_at(),
            _ => Some(Instant::now()),
        }
    }

    /// When the primary was known to have reached a position.
    pub(super) fn reached(&self, position: Position) -> Option<Instant> {
        self.view.borrow().history.reached(position)
    }

    /// Nobody waits for this write's answer any more, and every session of the pool must see it.
    pub(crate) fn leave(&self, write: Left) {
        let mut left = self.left();
        self.settle(&mut left);
        if !left.iter().any(|other| other.is_as(&write)) {
            left.push(write);
        }
        self.under_way.store(left.len(), Ordering::Release);
    }

    /// Something that was sent later over this connection was answered.
    pub(crate) fn answered_over(&self, wire: &Arc<Wire>) {
        if self.under_way.load(Ordering::Acquire) > 0 {
            let mut left = self.left();
            left.iter_mut().for_each(|left| left.answered_over(wire));
        }
    }

    /// A sequence number that covers all that was written through the pool until now, also what is on its way.
    pub(crate) fn of_all(&self) -> u64 {
        if self.under_way.load(Ordering::Acquire) > 0 {
            let mut left = self.left();
            self.settle(&mut left);
            if !left.is_empty() {
                self.next_write(0);
                self.written.notify_one();
            }
            self.under_way.store(left.len(), Ordering::Release);
        }
        self.last_write.load(Ordering::Acquire)
    }

    /// Drops what is over, each with a sequence number that covers it.
    fn settle(&self, left: &mut Vec<Left>) {
        let before = left.len();
        left.retain_mut(|write| !write.is_past());
        if left.len() < before {
            self.draw(0);
        }
    }

    fn left(&self) -> MutexGuard<'_, Vec<Left>> {
        self.left.lock()
    }

    /// Waits until a sequence number after `upto` is taken. For the primary's monitor alone.
    pub(crate) async fn written_after(&self, upto: u64) {
        while self.drawn() <= upto {
            self.written.notified().await;
        }
    }

    pub(crate) fn with<T>(&self, read: impl FnOnce(&View) -> T) -> T {
        read(&self.view.borrow())
    }

    /// What is known of the place of the write with this sequence number.
    pub(crate) fn covering(&self, seq: WriteSeq) -> Covering {
        let view = self.view.borrow();
        match view.history.covering(seq.number, seq.timeline) {
            Some(sample) => Covering::At(sample.position()),
            None if seq.timeline != 0 && view.forks.current() > seq.timeline => Covering::Over,
            None => Covering::Unknown,
        }
    }

    /// Where the primary was when it was asked after `moment`.
    pub(crate) fn asked_since(&self, moment: Instant) -> Option<Position> {
        let view = self.view.borrow();
        let sample = view.history.asked_since(moment)?;
        Some(sample.position())
    }

    /// Whether the primary is known to show everything up to `position`.
    pub(crate) fn is_shown(&self, position: Position) -> bool {
        let view = self.view.borrow();
        view.shown
            .is_some_and(|shown| view.forks.covers(shown, position))
    }

    /// The primary shows everything up to `position`.
    pub(crate) fn shows(&self, position: Position) {
        self.view.send_modify(|view| {
            view.shown = Some(view.shown.map_or(position, |shown| shown.max(position)));
        });
    }

    pub(crate) fn standing(&self, position: Position) -> Survival {
        self.view.borrow().forks.standing(position)
    }

    /// Whether it is known at all where the log of this timeline ended.
    pub(super) fn knows_end_of(&self, timeline: u32) -> bool {
        self.view.borrow().forks.end_of(timeline).is_some()
    }

    /// The newest timeline whose beginning is known; 0 while none is.
    pub(crate) fn timeline(&self) -> u32 {
        self.view.borrow().forks.current()
    }

    /// Where the log of a timeline that is over ended, as far as that is known: nobody knows what was
    /// acknowledged beyond.
    pub(super) fn end_of(&self, timeline: u32) -> Position {
        let view = self.view.borrow();
        let last = view.history.last_on(timeline);
        let last = last.map(|sample| sample.position().lsn);
        let end = view.forks.end_of(timeline);
        Position::new(timeline, last.max(end).unwrap_or_default())
    }

    /// Where the primary was last: what it shows of what was written before, it shows there.
    pub(crate) fn latest(&self) -> Option<Position> {
        let view = self.view.borrow();
        view.history.latest().map(Sample::position)
    }

    /// The primary has answered. `forks` is its history of timelines, where it was asked for.
    pub(crate) fn publish(
        &self,
        (cluster, synchronous_standbys): (impl Into<Option<u64>>, usize),
        sample: Sample,
        forks: Option<NewTimeline>,
    ) {
        self.view.send_modify(|view| {
            view.cluster = cluster.into().or(view.cluster);
            view.synchronous_standbys = Some(synchronous_standbys);
            if let Some(new) = &forks {
                view.learn(new, sample.timeline, sample.flushed);
            }
            view.history.push(sample);
        });
        self.tell();
    }

    /// The primary is on this timeline, and was at `begun` when it was first seen there.
    pub(crate) fn learn(&self, new: &NewTimeline, timeline: u32, begun: Lsn) {
        self.view
            .send_modify(|view| view.learn(new, timeline, begun));
        self.tell();
    }

    /// Another cluster has come in the place of the one before: what was known of positions is nothing there.
    pub(crate) fn begin_anew(&self, cluster: Option<u64>) {
        self.left().clear();
        self.under_way.store(0, Ordering::Release);
        self.view.send_modify(|view| {
            *view = View {
                cluster,
                ..View::default()
            };
        });
        self.era.fetch_add(1, Ordering::AcqRel);
        self.tell();
    }

    /// Which of the clusters it is that have followed each other.
    pub(crate) fn era(&self) -> u64 {
        self.era.load(Ordering::Acquire)
    }

    /// Tells everybody who waits that something is known now that was not before.
    pub(crate) fn tell(&self) {
        self.news.notify_waiters();
    }

    /// What ends with the next news. It counts from now on, not from its first poll.
    pub(crate) fn news(&self) -> tokio::sync::futures::Notified<'_> {
        self.news.notified()
    }
}

impl View {
    fn learn(&mut self, new: &NewTimeline, timeline: u32, begun: Lsn) {
        match new {
            NewTimeline::History(ended) => self.forks.learn_history(timeline, ended),
            NewTimeline::Bounds { replayed } => {
                self.forks.learn_bounds(timeline, *replayed, begun);
            }
        }
    }
}

/// How the log came to be on a timeline that was not known before.
#[derive(Clone, Debug)]
pub(crate) enum NewTimeline {
    /// The server's own history.
    History(Vec<(u32, Lsn)>),
    /// The server does not tell. As far as this its node had come before it was promoted.
    Bounds { replayed: Lsn },
}
