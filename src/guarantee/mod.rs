//! What one session has written and seen, and so what its reads need.
//!
//! A session may be several connections, at once or one after the other, in one process or in many:
//! what belongs together shares a [`Guarantee`].

mod board;
mod need;
mod progress;
#[cfg(test)]
mod tests;
mod witness;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(crate) use board::{Board, NewTimeline};
pub(crate) use need::Need;
pub use progress::Stage;
pub(crate) use progress::{Progress, Received, Sighting};
pub(crate) use witness::Witness;

use crate::config::{Consistency, WriteScope};
use crate::position::{Position, Standing};
use crate::route::RouteReason;
use crate::wire::Wire;

/// The number of an acknowledged write, counted through the whole pool.
pub(crate) type Ticket = u64;

/// What one session has written and seen.
#[derive(Debug, Default)]
pub(crate) struct Guarantee {
    /// Anything was ever noted. Most sessions only read, and need not look further.
    touched: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Writes that have been sent and are not answered yet.
    in_flight: u32,
    /// Connections on which a write was left behind without waiting for its answer.
    left: Vec<Left>,
    /// A connection broke under a write: whether and when it will be committed is not known.
    in_doubt: bool,
    /// The last acknowledged write whose position has not been learnt yet.
    ticket: Option<Ticket>,
    /// A write was acknowledged for which no ticket has been drawn yet: one that is drawn when
    /// somebody needs it covers it, too.
    draws: bool,
    /// The session writes with `synchronous_commit = off`.
    asynchronous: bool,
    written: Option<Position>,
    seen: Option<Position>,
    /// What was seen on these nodes is what they showed before they were asked this question.
    reads: Vec<Sighting>,
    /// What standbys have shown to the session; the primary may not show it yet.
    ahead: Option<Ahead>,
    /// The cluster that the positions belong to, as long as that has not been compared.
    cluster: Option<u64>,
    /// The last write's wait for a synchronous standby was cancelled.
    unconfirmed: bool,
    /// What was written there did not survive a failover.
    lost: Option<Position>,
}

/// What was seen on standbys, and perhaps not yet on the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ahead {
    /// All that is visible where the log has been replayed up to here.
    UpTo(Position),
    /// The node that showed it is gone: anything until now.
    Anything,
}

/// A write that nobody waits for any more.
#[derive(Debug)]
struct Left {
    wire: Arc<Wire>,
    /// It had reached the server. Otherwise it may still be on its way to the socket, and that
    /// nothing is owed on the connection says nothing.
    answering: bool,
}

impl Guarantee {
    /// What a session begins with that goes on from elsewhere, on the cluster of this identifier.
    pub(crate) fn resumed(cluster: u64, written: Option<Position>, seen: Option<Position>) -> Self {
        let state = Mutex::new(State {
            draws: written.is_some_and(Position::is_somewhere)
                || seen.is_some_and(Position::is_somewhere),
            written: written.filter(|written| !written.is_somewhere()),
            seen: seen.filter(|seen| !seen.is_somewhere()),
            ahead: seen.map(|seen| match seen.is_somewhere() {
                true => Ahead::Anything,
                false => Ahead::UpTo(seen),
            }),
            // 0 if its maker did not know it yet; the places in it then are unknown, too.
            cluster: Some(cluster).filter(|cluster| *cluster != 0),
            ..State::default()
        });
        Self {
            touched: AtomicBool::new(true),
            state,
        }
    }

    /// A write is about to be sent.
    pub(crate) fn write_starts(&self) {
        self.state().in_flight += 1;
    }

    /// A write was answered, after which `ticket` was drawn, if one was; `unconfirmed` if a
    /// synchronous standby had not confirmed it.
    pub(crate) fn write_acknowledged(&self, ticket: Option<Ticket>, unconfirmed: bool) {
        let mut state = self.state();
        state.unconfirmed = unconfirmed;
        state.in_flight = state.in_flight.saturating_sub(1);
        match ticket {
            Some(ticket) => state.ticket = state.ticket.max(Some(ticket)),
            None => state.draws = true,
        }
    }

    /// A write's answer is not waited for any more; `answering` if it had begun to come.
    pub(crate) fn write_left(&self, wire: &Arc<Wire>, answering: bool) {
        let mut state = self.state();
        state.in_flight = state.in_flight.saturating_sub(1);
        state.left.push(Left {
            wire: Arc::clone(wire),
            answering,
        });
    }

    /// Something that was sent later over this connection was answered, so that everything before
    /// it has been.
    pub(crate) fn answered_over(&self, wire: &Arc<Wire>) {
        if !self.is_touched() {
            return;
        }
        for left in &mut self.state().left {
            left.answering |= Arc::ptr_eq(&left.wire, wire);
        }
    }

    /// A write was never sent.
    pub(crate) fn write_never_sent(&self) {
        let mut state = self.state();
        state.in_flight = state.in_flight.saturating_sub(1);
    }

    /// The session has turned `synchronous_commit` off, or may have.
    pub(crate) fn writes_asynchronously(&self) {
        self.state().asynchronous = true;
    }

    /// What a read of this session needs that begins now.
    pub(crate) fn need(&self, level: Consistency, scope: WriteScope, board: &Board) -> Need {
        match level {
            Consistency::Eventual => return Need::default(),
            Consistency::BoundedStaleness(bound) => return Need::no_older_than(bound),
            Consistency::Strong => return Need::of_now(),
            Consistency::ReadYourWrites | Consistency::Causal => {}
        }
        if scope == WriteScope::Session && !self.is_touched() {
            return Need::default();
        }
        let mut state = self.state();
        if let Some(reason) = state.settle(board) {
            return Need::primary(reason);
        }
        let mut need = Need::unless(RouteReason::OwnWrite);
        let others = match scope {
            WriteScope::Pool => Some(board.drawn()).filter(|drawn| *drawn > 0),
            WriteScope::Session => None,
        };
        if let Some(ticket) = state.ticket.max(others) {
            need.awaits(ticket, state.asynchronous);
        }
        if let Some(written) = state.written {
            need.covers(written);
        }
        if level == Consistency::Causal {
            if let Some(seen) = state.seen {
                need.covers(seen);
            }
            need.follows(state.reads.clone());
        }
        need.refresh(board);
        need
    }

    /// What was written and seen as far as that is known now, and what is still to be learnt.
    pub(crate) fn positions(&self, board: &Board) -> Positions {
        let mut state = self.state();
        let unknown = state.settle(board).is_some() && state.lost.is_none();
        Positions {
            cluster: board.with(|view| view.cluster),
            written: state.written,
            seen: state.seen,
            unknown: unknown || state.ticket.is_some(),
            reads: state
                .reads
                .iter()
                .map(|read| Arc::clone(read.progress()))
                .collect(),
        }
    }

    /// A read has seen what a node shows, over this connection.
    pub(crate) fn saw_on(&self, progress: &Arc<Progress>, over: &Wire) {
        // One that is closed may have been to an earlier run of the server.
        let sighting = progress.sighted(!over.is_closed());
        let mut state = self.state();
        // The later one covers the earlier, unless the server may have been restarted in between.
        state
            .reads
            .retain(|read| !read.is_on(progress) || read.is_lost());
        state.reads.push(sighting);
    }

    pub(crate) fn last_is_unconfirmed(&self) -> bool {
        self.state().unconfirmed
    }

    /// Whether no standby has shown anything to the session that the primary may not show.
    pub(crate) fn saw_nothing_but(&self, primary: &Arc<Progress>) -> bool {
        if !self.is_touched() {
            return true;
        }
        let state = self.state();
        state.ahead.is_none() && state.reads.iter().all(|read| read.is_on(primary))
    }

    /// What the primary must show before the session reads there.
    pub(crate) fn ahead(&self, board: &Board) -> Option<Ahead> {
        let mut state = self.state();
        state.forget_dead();
        state.learn(board);
        state.fence(board);
        state.ahead
    }

    /// The primary shows this; it will not take it back.
    pub(crate) fn is_shown_by_primary(&self, what: Ahead) {
        let mut state = self.state();
        state.ahead = state.ahead.filter(|ahead| *ahead != what);
    }

    /// What the session wrote and what did not survive a failover, if that has happened.
    pub(crate) fn lost(&self) -> Option<Position> {
        self.state().lost
    }

    fn is_touched(&self) -> bool {
        self.touched.load(Ordering::Acquire)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.touched.store(true, Ordering::Release);
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is known of a session's positions, and what is not.
#[derive(Clone, Debug)]
pub(crate) struct Positions {
    pub(crate) cluster: Option<u64>,
    pub(crate) written: Option<Position>,
    pub(crate) seen: Option<Position>,
    /// There is a write whose position is not known, perhaps until the primary has been asked.
    pub(crate) unknown: bool,
    /// What was seen last will be known when these have been asked.
    pub(crate) reads: Vec<Arc<Progress>>,
}

impl State {
    /// Learns what can be learnt by now. Tells why only the primary can serve, if so.
    fn settle(&mut self, board: &Board) -> Option<RouteReason> {
        self.settle_left(board);
        if let Some(cluster) = self.cluster {
            match board.with(|view| view.cluster) {
                None => return Some(RouteReason::OwnWrite),
                Some(here) => {
                    self.cluster = None;
                    if here != cluster {
                        tracing::debug!(target: "diesel_replicated", cluster, here, "token_ignored");
                        (self.written, self.seen, self.ahead) = (None, None, None);
                    }
                }
            }
        }
        self.forget_dead();
        if std::mem::take(&mut self.draws) {
            self.ticket = Some(board.draw());
        }
        self.learn(board);
        self.fence(board);
        if self.lost.is_some() {
            return Some(RouteReason::LostWrite);
        }
        let unknown = self.in_flight > 0 || !self.left.is_empty() || self.in_doubt;
        unknown.then_some(RouteReason::OwnWrite)
    }

    /// Sees what became of writes that were left.
    fn settle_left(&mut self, board: &Board) {
        let left = self.left.len();
        let mut in_doubt = self.in_doubt;
        self.left.retain(|Left { wire, answering }| {
            let (answered, closed) = (wire.is_answered(), wire.is_closed());
            in_doubt |= closed && !answered;
            !(closed || answered && *answering)
        });
        self.in_doubt = in_doubt;
        if self.left.len() < left {
            self.ticket = Some(board.draw());
        }
    }

    /// What a node showed that cannot be asked any more is covered by where the primary is now: no
    /// standby is ahead of that.
    fn forget_dead(&mut self) {
        let reads = self.reads.len();
        self.reads.retain(|read| !read.is_lost());
        if self.reads.len() < reads {
            self.draws = true;
            self.ahead = Some(Ahead::Anything);
        }
    }

    /// Turns what is to be learnt into positions where nodes have been asked since.
    fn learn(&mut self, board: &Board) {
        let position = self
            .ticket
            .and_then(|ticket| board.covering(ticket, self.asynchronous));
        if let Some(position) = position {
            self.ticket = None;
            self.written = Some(self.written.map_or(position, |known| known.max(position)));
        }
        let (mut seen, mut ahead) = (self.seen, self.ahead);
        self.reads.retain(|read| {
            let Some(shown) = read.shown() else {
                return true;
            };
            let place = shown.position;
            seen = Some(seen.map_or(place, |seen| seen.max(place)));
            ahead = match ahead {
                _ if !shown.by_standby => ahead,
                Some(Ahead::Anything) => Some(Ahead::Anything),
                Some(Ahead::UpTo(before)) => Some(Ahead::UpTo(before.max(place))),
                None => Some(Ahead::UpTo(place)),
            };
            false
        });
        (self.seen, self.ahead) = (seen, ahead);
    }

    /// A position beyond a fork cannot be reached by anyone, and must not be compared. What the
    /// session wrote and saw before the fork, it must still see.
    fn fence(&mut self, board: &Board) {
        let is_lost = |position: &Position| board.standing(*position) == Standing::Lost;
        let kept = |position: Position| match is_lost(&position) {
            true => board.with(|view| view.forks.kept_of(position)),
            false => position,
        };
        if let Some(lost) = self.written.filter(is_lost) {
            tracing::warn!(target: "diesel_replicated", position = %lost, "write_lost");
            self.lost = Some(lost);
        }
        self.written = self.written.map(kept);
        self.seen = self.seen.map(kept);
        // What is kept, the new primary shows.
        self.ahead = self.ahead.filter(|ahead| match ahead {
            Ahead::UpTo(seen) => !is_lost(seen),
            Ahead::Anything => true,
        });
    }
}
