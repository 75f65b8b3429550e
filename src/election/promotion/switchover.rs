//! A switchover, step by step: what comes before the promotion, and what is undone after it. It does nothing itself.
//!
//! `cluster::promotion` drives it with real servers, and the simulation with simulated ones.

use crate::error::PromotionRefusal as Refusal;
use crate::position::Lsn;

/// What to do next, and the method to call with the result. `T` is the result of a promotion, `E` why it failed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Next<T, E> {
    /// Connect to both, and see that the primary can be fenced: [`Switchover::opened`].
    Open,
    /// Hold back this process's new writes: [`Switchover::held`].
    Hold,
    /// Wait until what runs on the primary has ended: [`Switchover::drained`].
    Drain,
    /// Keep everybody from writing to the primary, and ask it how far it has come by then: [`Switchover::fenced`].
    Fence,
    /// Wait until the replica has all up to there: [`Switchover::caught_up`].
    CatchUp(Lsn),
    /// Promote the replica in the place of the primary, which gives way: [`Switchover::attempted`].
    Promote,
    /// Let everybody write to the primary again: [`Switchover::lifted`].
    Lift,
    /// Let writes go on: [`Switchover::released`].
    Release,
    End(Result<T, E>),
}

/// A switchover under way.
#[derive(Clone, Debug)]
pub(crate) struct Switchover<T, E> {
    held: bool,
    /// The fence may be set, and must not stay.
    fenced: bool,
    /// It was given up for being late, or has ended.
    result: Option<Result<T, E>>,
}

impl<T: Clone, E: Clone> Switchover<T, E> {
    /// Begins with [`Next::Open`].
    pub(crate) const fn new() -> Self {
        Self {
            held: false,
            fenced: false,
            result: None,
        }
    }

    /// Both can be asked.
    pub(crate) fn opened(&mut self, opened: Result<(), E>) -> Next<T, E> {
        match opened {
            Ok(()) => {
                // The promoter may have asked all the same, though nobody waits.
                self.held = true;
                Next::Hold
            }
            Err(cause) => self.gives_up(cause),
        }
    }

    /// New writes wait.
    pub(crate) fn held(&mut self, held: Result<(), E>) -> Next<T, E> {
        self.goes_on(held, Next::Drain)
    }

    /// No statement of this process runs there.
    pub(crate) fn drained(&mut self, drained: Result<(), E>) -> Next<T, E> {
        let next = self.goes_on(drained, Next::Fence);
        self.fenced |= matches!(next, Next::Fence);
        next
    }

    /// Nobody can write to the primary, which has come this far.
    pub(crate) fn fenced(&mut self, written: Result<Option<Lsn>, E>) -> Next<T, E> {
        match written {
            Ok(Some(written)) => Next::CatchUp(written),
            // It does not tell how far it has come. The promotion sees that nothing is lost.
            Ok(None) => Next::Promote,
            Err(cause) => self.gives_up(cause),
        }
    }

    /// The replica has all that was written.
    pub(crate) fn caught_up(&mut self, caught_up: Result<(), E>) -> Next<T, E> {
        self.goes_on(caught_up, Next::Promote)
    }

    /// The result of the promotion; with the reasons, if it was refused and nothing was done.
    ///
    /// A promotion that has begun may yet end well. Then nobody may write to the old primary again: the fence stays.
    pub(crate) fn attempted(
        &mut self,
        result: Result<T, E>,
        refused: Option<&[Refusal]>,
    ) -> Next<T, E> {
        let overtaken = |reason: &Refusal| matches!(reason, Refusal::Overtaken { .. });
        let primary_stays = refused.is_some_and(|reasons| !reasons.iter().any(overtaken));
        self.fenced &= primary_stays;
        self.result = Some(result);
        self.undo()
    }

    /// The fence is gone, or nobody can take it away.
    pub(crate) fn lifted(&mut self) -> Next<T, E> {
        self.fenced = false;
        self.undo()
    }

    /// Writes go on.
    pub(crate) fn released(&mut self) -> Next<T, E> {
        self.held = false;
        self.undo()
    }

    fn goes_on(&mut self, done: Result<(), E>, next: Next<T, E>) -> Next<T, E> {
        match done {
            Ok(()) => next,
            Err(cause) => self.gives_up(cause),
        }
    }

    fn gives_up(&mut self, cause: E) -> Next<T, E> {
        self.result = Some(Err(cause));
        self.undo()
    }

    fn undo(&mut self) -> Next<T, E> {
        match self.result.clone() {
            _ if self.fenced => Next::Lift,
            _ if self.held => Next::Release,
            Some(result) => Next::End(result),
            None => Next::Open,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Machine = Switchover<u32, &'static str>;

    fn up_to_promote() -> Machine {
        let mut machine = Machine::new();
        assert_eq!(machine.opened(Ok(())), Next::Hold);
        assert_eq!(machine.held(Ok(())), Next::Drain);
        assert_eq!(machine.drained(Ok(())), Next::Fence);
        assert_eq!(machine.fenced(Ok(Some(Lsn(7)))), Next::CatchUp(Lsn(7)));
        assert_eq!(machine.caught_up(Ok(())), Next::Promote);
        machine
    }

    #[test]
    fn what_was_done_is_undone_wherever_it_fails() {
        let mut machine = Machine::new();
        assert_eq!(machine.opened(Err("away")), Next::End(Err("away")));
        let mut machine = Machine::new();
        machine.opened(Ok(()));
        machine.held(Ok(()));
        assert_eq!(machine.drained(Err("late")), Next::Release);
        assert_eq!(machine.released(), Next::End(Err("late")));
        let mut machine = Machine::new();
        machine.opened(Ok(()));
        machine.held(Ok(()));
        machine.drained(Ok(()));
        // It may be set, though nobody has confirmed that.
        assert_eq!(machine.fenced(Err("late")), Next::Lift);
        assert_eq!(machine.lifted(), Next::Release);
        assert_eq!(machine.released(), Next::End(Err("late")));
    }

    #[test]
    fn the_fence_stays_unless_nothing_was_done() {
        let mut machine = up_to_promote();
        assert_eq!(machine.attempted(Ok(2), None), Next::Release);
        assert_eq!(machine.released(), Next::End(Ok(2)));
        let mut machine = up_to_promote();
        assert_eq!(machine.attempted(Err("no answer"), None), Next::Release);
        let mut machine = up_to_promote();
        let refused = machine.attempted(Err("refused"), Some(&[]));
        assert_eq!(refused, Next::Lift);
        let mut machine = up_to_promote();
        let node = "other".to_owned();
        let reasons = [Refusal::Overtaken { node, timeline: 3 }];
        let refused = machine.attempted(Err("refused"), Some(&reasons));
        assert_eq!(refused, Next::Release);
    }
}
