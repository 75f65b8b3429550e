//! Writes whose answers nobody waits for any more, and what becomes of them.
//!
//! A row was taken and the rest dropped, a future was dropped, the bare connection was lent out: the
//! write goes on, and whoever must see it has to know of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::wire::Wire;

/// For how long a write counts whose connection broke before its answer: for as long the server may
/// still be at it. Its own session never forgets it.
const DOUBT: Duration = Duration::from_secs(60);

/// A write that nobody waits for any more.
#[derive(Debug)]
pub(crate) struct Left {
    wire: Arc<Wire>,
    what: What,
    /// That of the primary which it was sent to; 0 if it is not known.
    timeline: u32,
    /// When its connection was found closed.
    closed: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// It may still be on its way to the socket, and that nothing is owed on the connection says
    /// nothing.
    Sent,
    /// It had reached the server.
    Answering,
    /// Whatever the application writes on a connection that was lent to it.
    Lent,
}

/// What has become of a write that was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is not over.
    UnderWay,
    /// The server has answered, or it never got it.
    Over,
    /// The connection broke before that.
    InDoubt,
}

impl Left {
    /// `answering` if its answer had begun to come.
    pub(crate) fn write(wire: &Arc<Wire>, timeline: u32, answering: bool) -> Self {
        let what = if answering {
            What::Answering
        } else {
            What::Sent
        };
        Self {
            wire: Arc::clone(wire),
            what,
            timeline,
            closed: None,
        }
    }

    /// Whatever is written over a connection that was lent out, until that is closed.
    pub(crate) fn lent(wire: &Arc<Wire>, timeline: u32) -> Self {
        Self {
            what: What::Lent,
            ..Self::write(wire, timeline, false)
        }
    }

    pub(super) fn timeline(&self) -> u32 {
        self.timeline
    }

    /// Rows of it had been handed out.
    pub(super) fn was_answering(&self) -> bool {
        self.what == What::Answering
    }

    /// Whether it says the same as another.
    pub(super) fn is_as(&self, other: &Self) -> bool {
        self.what == other.what && Arc::ptr_eq(&self.wire, &other.wire)
    }

    /// Something that was sent later over this connection was answered, so that everything before
    /// it has been.
    pub(super) fn answered_over(&mut self, wire: &Arc<Wire>) {
        if self.what == What::Sent && Arc::ptr_eq(&self.wire, wire) {
            self.what = What::Answering;
        }
    }

    pub(super) fn fate(&self) -> Fate {
        let (answered, closed) = (self.wire.is_answered(), self.wire.is_closed());
        match self.what {
            What::Lent if closed => Fate::Over,
            What::Lent => Fate::UnderWay,
            What::Sent | What::Answering if closed && !answered => Fate::InDoubt,
            What::Sent if closed => Fate::Over,
            What::Answering if answered => Fate::Over,
            What::Sent | What::Answering => Fate::UnderWay,
        }
    }

    /// Whether it is over for everybody but its own session.
    pub(super) fn is_past(&mut self) -> bool {
        match self.fate() {
            Fate::UnderWay => false,
            Fate::Over => true,
            Fate::InDoubt => {
                let since = *self.closed.get_or_insert_with(Instant::now);
                since.elapsed() > DOUBT
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_that_may_not_have_reached_the_socket_is_not_over_for_want_of_debts() {
        let wire = Arc::new(Wire::default());
        let mut left = Left::write(&wire, 1, false);
        assert_eq!(left.fate(), Fate::UnderWay);
        left.answered_over(&Arc::new(Wire::default()));
        assert_eq!(left.fate(), Fate::UnderWay);
        left.answered_over(&wire);
        assert_eq!(left.fate(), Fate::Over);
        assert!(left.is_past());
    }

    #[test]
    fn what_is_lent_is_over_with_its_connection() {
        let wire = Arc::new(Wire::default());
        let mut left = Left::lent(&wire, 1);
        left.answered_over(&wire);
        assert!(!left.is_past());
        assert!(left.is_as(&Left::lent(&wire, 1)));
        assert!(!left.is_as(&Left::write(&wire, 1, false)));
    }
}
