//! A write on its way: what the session must remember of it, whatever becomes of it.

use std::sync::Arc;

use crate::guarantee::{Board, Guarantee};
use crate::node::Lease;
use crate::wire::Wire;

/// A write that was sent, or is about to be. Dropped, it counts as left behind.
#[derive(Debug)]
pub(super) struct Writing {
    guarantee: Arc<Guarantee>,
    board: Arc<Board>,
    /// Its position is wanted as soon as it is done; otherwise only if somebody asks.
    eager: bool,
    sent_over: Option<Arc<Wire>>,
    /// The server has begun to answer.
    answering: bool,
    over: bool,
}

impl Writing {
    /// Comes before the write is sent: a read that starts later must not miss it.
    pub(super) fn starts(guarantee: &Arc<Guarantee>, board: &Arc<Board>, eager: bool) -> Self {
        guarantee.write_starts();
        Self {
            guarantee: Arc::clone(guarantee),
            board: Arc::clone(board),
            eager,
            sent_over: None,
            answering: false,
            over: false,
        }
    }

    pub(super) fn sent_over(&mut self, lease: &Lease) {
        self.sent_over = Some(Arc::clone(&lease.wire));
    }

    /// Its connection was lost before anything of it was sent.
    pub(super) fn never_sent(mut self) {
        self.sent_over = None;
    }

    /// The first of its rows is there; the commit comes after the last.
    pub(super) fn answering(&mut self) {
        self.answering = true;
    }

    /// It is done, and what it wrote is to be seen from now on.
    pub(super) fn acknowledged(mut self) {
        self.over = true;
        let unconfirmed = self
            .sent_over
            .as_ref()
            .is_some_and(|wire| wire.take_unconfirmed());
        if unconfirmed {
            tracing::warn!(target: "diesel_replicated", "commit_unconfirmed");
        }
        let ticket = self.eager.then(|| self.board.draw());
        self.guarantee.write_acknowledged(ticket, unconfirmed);
    }

    /// The server refused it. A part of a text may have been committed all the same.
    pub(super) fn refused(self) {
        self.acknowledged();
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        match &self.sent_over {
            Some(wire) => self.guarantee.write_left(wire, self.answering),
            None => self.guarantee.write_never_sent(),
        }
    }
}
