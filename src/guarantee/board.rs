//! What is known of the primary's positions, and the tickets of writes that wait to learn theirs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tokio::sync::{Notify, watch};

use super::Ticket;
use crate::position::{Forks, History, Lsn, Position, Sample, Standing};

/// The primary's positions through time.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    pub(crate) history: History,
    pub(crate) forks: Forks,
    /// The system identifier of the cluster.
    pub(crate) cluster: Option<u64>,
    /// So many standbys have to confirm a commit. They show it before the primary does.
    pub(crate) synchronous_standbys: usize,
    /// The primary was found to show everything up to here.
    shown: Option<Position>,
}

/// The board on which watchers write and sessions read.
///
/// A write costs one addition here. Whatever the primary says of its position *after* a write was
/// acknowledged covers it, so that one question serves all writes before it.
#[derive(Debug, Default)]
pub(crate) struct Board {
    drawn: AtomicU64,
    written: Notify,
    view: watch::Sender<View>,
    news: Notify,
}

impl Board {
    /// Draws a ticket for a write that was just acknowledged.
    pub(crate) fn draw(&self) -> Ticket {
        let ticket = self.drawn.fetch_add(1, Ordering::AcqRel) + 1;
        self.written.notify_one();
        ticket
    }

    /// The last ticket that was drawn; 0 before the first.
    pub(crate) fn drawn(&self) -> Ticket {
        self.drawn.load(Ordering::Acquire)
    }

    /// Waits until a ticket is drawn. For the primary's watcher alone.
    pub(crate) async fn written(&self) {
        self.written.notified().await;
    }

    pub(crate) fn with<T>(&self, read: impl FnOnce(&View) -> T) -> T {
        read(&self.view.borrow())
    }

    /// A position that covers the write with this ticket, if the primary was asked since.
    pub(crate) fn covering(&self, ticket: Ticket, asynchronous: bool) -> Option<Position> {
        let view = self.view.borrow();
        let sample = view.history.covering(ticket)?;
        Some(sample.position(asynchronous))
    }

    /// Where the primary was when it was asked after `moment`.
    pub(crate) fn asked_since(&self, moment: Instant) -> Option<Position> {
        let view = self.view.borrow();
        let sample = view.history.asked_since(moment)?;
        Some(sample.position(true))
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

    pub(crate) fn standing(&self, position: Position) -> Standing {
        self.view.borrow().forks.standing(position)
    }

    /// The primary has answered. `forks` is its history of timelines, where it was asked for.
    pub(crate) fn publish(
        &self,
        (cluster, synchronous_standbys): (u64, usize),
        sample: Sample,
        forks: Option<NewTimeline>,
    ) {
        self.view.send_modify(|view| {
            view.cluster = Some(cluster);
            view.synchronous_standbys = synchronous_standbys;
            match forks {
                Some(NewTimeline::History(ended)) => {
                    view.forks.learn_history(sample.timeline, &ended);
                }
                Some(NewTimeline::Bounds { replayed }) => {
                    view.forks
                        .learn_bounds(sample.timeline, replayed, sample.flushed);
                }
                None => {}
            }
            view.history.push(sample);
        });
        self.tell();
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

/// How the log came to be on a timeline that was not known before.
#[derive(Clone, Debug)]
pub(crate) enum NewTimeline {
    /// The server's own history.
    History(Vec<(u32, Lsn)>),
    /// The server does not tell. As far as this its node had come before it was promoted.
    Bounds { replayed: Lsn },
}
