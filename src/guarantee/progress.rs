//! How far one node is, as it last said, and who waits to hear more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::sync::{Notify, watch};

use crate::position::Position;
use crate::wire::Wire;

/// What is known of a node's place.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    /// Everything up to here was shown by the node when it was asked.
    pub(crate) position: Option<Position>,
    /// The number of the question that this answers.
    pub(crate) question: u64,
    /// The connection that the answer came over. While it lives the server has not been
    /// restarted, which may take it back.
    wire: Option<Arc<Wire>>,
}

/// How far one node is.
#[derive(Debug)]
pub(crate) struct Progress {
    known: watch::Sender<Known>,
    asked: AtomicU64,
    waiting: AtomicUsize,
    wanted: Notify,
}

impl Progress {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            known: watch::Sender::new(Known::default()),
            asked: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            wanted: Notify::new(),
        })
    }

    /// Up to where the node has everything, as it last said.
    pub(crate) fn position(&self) -> Option<Position> {
        let known = self.known.borrow();
        let alive = known.wire.as_ref().is_some_and(|wire| !wire.is_closed());
        known.position.filter(|_| alive)
    }

    /// The position that an answer to question `number`, or a later one, told.
    pub(crate) fn answered(&self, number: u64) -> Option<Position> {
        let known = self.known.borrow();
        known.position.filter(|_| known.question >= number)
    }

    /// The number of the next question: it is put after whatever has happened until now.
    pub(crate) fn next_question(&self) -> u64 {
        self.asked.load(Ordering::Acquire) + 1
    }

    /// The node is about to be asked. For the watcher alone.
    pub(crate) fn asks(&self) -> u64 {
        self.asked.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// The node has answered. For the watcher alone.
    pub(crate) fn publish(&self, question: u64, position: Position, wire: &Arc<Wire>) {
        self.known.send_modify(|known| {
            *known = Known {
                position: Some(position),
                question,
                wire: Some(Arc::clone(wire)),
            };
        });
    }

    /// Whether anybody waits for news.
    pub(crate) fn is_wanted(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > 0
    }

    /// Waits until somebody wants news.
    pub(crate) async fn wanted(&self) {
        let wanted = self.wanted.notified();
        if !self.is_wanted() {
            wanted.await;
        }
    }

    /// Has the node asked, again and again, for as long as the guard lives.
    pub(crate) fn want(self: &Arc<Self>) -> Wanting {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        self.wanted.notify_one();
        Wanting(Arc::clone(self))
    }
}

/// Somebody waits for news of a node.
#[derive(Debug)]
pub(crate) struct Wanting(Arc<Progress>);

impl Drop for Wanting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}
