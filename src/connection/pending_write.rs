//! A write on its way, and what must be remembered of it, whatever becomes of it.

use std::sync::Arc;

use crate::config::{Consistency, ConsistencyConfig, WriteScope};
use crate::consistency::{Left, SessionHistory, WriteLog};
use crate::wire::Wire;

/// A write that was sent, or is about to be. If it is dropped, nobody waits for its answer.
#[derive(Debug)]
pub(super) struct PendingWrite {
    history: Arc<SessionHistory>,
    write_log: Arc<WriteLog>,
    /// Its position is wanted at once. Otherwise the pool asks only if somebody needs it.
    eager: bool,
    /// Every session of the pool must see it.
    shared: bool,
    sent: Option<Sent>,
    /// The server has begun to answer.
    answering: bool,
    over: bool,
}

/// Where a write went.
#[derive(Debug)]
struct Sent {
    wire: Arc<Wire>,
    /// The timeline of the primary that acknowledges it.
    timeline: u32,
}

impl PendingWrite {
    /// Comes before the write is sent: a read that starts later must not miss it.
    pub(super) fn starts(
        history: &Arc<SessionHistory>,
        write_log: &Arc<WriteLog>,
        session: Option<Consistency>,
        config: &ConsistencyConfig,
    ) -> Self {
        history.write_starts();
        let shared = config.write_scope == WriteScope::Pool;
        // If nobody needs more, positions are not worth a question.
        let asks = |level| level != Consistency::Eventual;
        Self {
            history: Arc::clone(history),
            write_log: Arc::clone(write_log),
            eager: shared || asks(config.level) || session.is_some_and(asks),
            shared,
            sent: None,
            answering: false,
            over: false,
        }
    }

    /// It goes over this connection, to a primary of this timeline. A connection stays on its timeline while it
    /// lives.
    pub(super) fn sent_over(&mut self, wire: &Arc<Wire>, timeline: u32) {
        self.sent = Some(Sent {
            wire: Arc::clone(wire),
            timeline,
        });
    }

    /// Its connection was lost before anything of it was sent.
    pub(super) fn never_sent(mut self) {
        self.sent = None;
    }

    /// Its first row was handed out. The commit comes after the last row, but most often at the same time.
    pub(super) fn answering(&mut self) {
        self.answering = true;
        let Some(Sent { wire, timeline }) = &self.sent else {
            return;
        };
        if wire.is_answered() {
            self.is_done();
        } else if self.shared {
            self.write_log.leave(Left::write(wire, *timeline, true));
        }
    }

    /// It is done, and must be seen from now on.
    pub(super) fn acknowledged(mut self) {
        self.is_done();
    }

    /// The server refused it. A part of a text may have been committed all the same.
    pub(super) fn refused(mut self) {
        self.is_done();
    }

    fn is_done(&mut self) {
        if std::mem::replace(&mut self.over, true) {
            return;
        }
        let unconfirmed = self.sent.as_ref();
        let unconfirmed = unconfirmed.is_some_and(|sent| sent.wire.take_unconfirmed());
        if unconfirmed {
            tracing::warn!(target: "diesel_replicated", "commit_unconfirmed");
        }
        let timeline = self.sent.as_ref().map_or(0, |sent| sent.timeline);
        let seq = if self.eager {
            self.write_log.draw(timeline)
        } else {
            self.write_log.draw_quietly(timeline)
        };
        self.history
            .write_acknowledged(seq, unconfirmed, &self.write_log);
    }
}

impl Drop for PendingWrite {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let Some(Sent { wire, timeline }) = &self.sent else {
            self.history.write_never_sent();
            return;
        };
        if self.answering && wire.is_answered() {
            // Nobody wanted the rest of its rows.
            self.is_done();
            return;
        }
        let left = || Left::write(wire, *timeline, self.answering);
        self.history.write_left(left());
        if self.shared {
            self.write_log.leave(left());
        }
    }
}
