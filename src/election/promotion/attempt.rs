//! An attempt at a promotion, step by step. It says what to do next, and does nothing itself.
//!
//! `cluster::promotion` drives it with real servers, and the simulation with simulated ones.

use std::time::Duration;

use super::{Answer, Known, Premise, Role, Terms, Voter, candidate, premise};
use crate::error::PromotionRefusal as Refusal;
use crate::position::Position;

/// The answer of a node that has agreed with another process.
pub(crate) const ANOTHER_PROMOTES: &str = "another process is promoting";

/// What to do next, and the method to call with the result. `C` is a reading of a server's clock.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Next<C> {
    /// Connect to all nodes at once: [`Attempt::opened`], for each of them.
    Open,
    /// Have the node agree, by its lock: [`Attempt::locked`].
    Lock(usize),
    /// Ask it where it is: [`Attempt::told`].
    Ask(usize),
    /// Ask these for their clocks and where they are, all at once: [`Attempt::confirmed`], for each of them.
    Confirm(Vec<usize>),
    /// Decide with what is known of the primary's log by now: [`Attempt::decide`].
    Decide,
    /// Send the order: [`Attempt::ordered`].
    Promote(Order<C>),
    /// Take the order back, and wait until it is void: [`Attempt::recalled`]. The locks keep everybody else from
    /// acting until then.
    /// [`Attempt::recalled`].
    Recall(usize),
    /// Ask it, a moment later, whether it takes writes: [`Attempt::watched`].
    Watch(usize),
    /// Close the connections, and the locks with them.
    End(End),
}

/// The order to be promoted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Order<C> {
    pub(crate) place: usize,
    /// The node's clock before it was asked for its position the last time.
    pub(crate) clock: C,
    pub(crate) rests_on: Premise,
}

/// What became of an order.
#[derive(Clone, Debug)]
pub(crate) enum Ordered {
    /// The server has begun.
    Begun,
    /// It did not hold any more, and nothing was done.
    Outdated,
    Failed(String),
    /// No answer came in time.
    Silent,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum End {
    Promoted {
        place: usize,
        timeline: u32,
    },
    /// Nothing was done.
    Refused(Vec<Refusal>),
    /// The node does not take writes, or it is not known whether it will.
    Failed {
        place: usize,
        cause: String,
    },
}

/// An attempt under way.
#[derive(Clone, Debug)]
pub(crate) struct Attempt<C> {
    terms: Terms,
    voters: Vec<Voter>,
    clocks: Vec<Option<C>>,
    /// The nodes whose answers are awaited.
    waiting: Vec<usize>,
    /// What was known before anybody was asked. What was learnt since may be newer than some answers, and must not
    /// explain them away.
    /// and must not explain away what they say.
    known: Known,
}

impl<C: Copy> Attempt<C> {
    /// Begins with [`Next::Open`].
    pub(crate) fn new(
        nodes: impl Iterator<Item = (String, u32)>,
        known: Known,
        terms: Terms,
    ) -> Self {
        let voter = |(name, priority): (String, u32)| Voter {
            name,
            priority,
            vote: Err("it does not answer".to_owned()),
            answer: None,
        };
        let voters: Vec<Voter> = nodes.map(voter).collect();
        Self {
            terms,
            clocks: vec![None; voters.len()],
            waiting: (0..voters.len()).collect(),
            voters,
            known,
        }
    }

    /// The nodes whose answers are awaited.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> &[usize] {
        &self.waiting
    }

    #[cfg(test)]
    pub(crate) fn voters(&mut self) -> &mut Vec<Voter> {
        &mut self.voters
    }

    #[cfg(test)]
    pub(crate) fn newest(&self) -> u32 {
        self.known.newest
    }

    /// Whether the node could be connected to. Returns what follows when all were tried.
    pub(crate) fn opened(&mut self, place: usize, opened: Result<(), String>) -> Option<Next<C>> {
        self.waiting.retain(|it| *it != place);
        // Until it has agreed it has not.
        self.voters[place].vote = opened.and(Err(NOT_ASKED.to_owned()));
        self.waiting.is_empty().then(|| self.next_after(None))
    }

    /// The nodes are asked to agree one after the other, always in the same order. So two processes that begin at the
    /// same time do not each get a part.
    fn next_after(&mut self, place: Option<usize>) -> Next<C> {
        let first = place.map_or(0, |place| place + 1);
        let unasked = |voter: &Voter| voter.vote.as_ref().err().is_some_and(|it| it == NOT_ASKED);
        let next = (first..self.voters.len()).find(|it| unasked(&self.voters[*it]));
        if let Some(next) = next {
            return Next::Lock(next);
        }
        // The first to agree may have crashed since, and its lock with it. And all answers must be of one moment.
        let agreed = |place: &usize| self.voters[*place].vote.is_ok();
        self.waiting = (0..self.voters.len()).filter(agreed).collect();
        match self.waiting.is_empty() {
            true => Next::Decide,
            false => Next::Confirm(self.waiting.clone()),
        }
    }

    /// Whether the node agrees. It is asked for its position in any case. Once it has agreed, no other process
    /// changes that.
    pub(crate) fn locked(&mut self, place: usize, taken: Result<bool, String>) -> Next<C> {
        let vote = match taken {
            Ok(true) => Ok(()),
            Ok(false) => Err(ANOTHER_PROMOTES.to_owned()),
            Err(cause) => {
                self.voters[place].vote = Err(cause);
                return self.next_after(Some(place));
            }
        };
        self.voters[place].vote = vote;
        Next::Ask(place)
    }

    /// Where the node is. It may not know itself.
    pub(crate) fn told(&mut self, place: usize, told: Result<Option<Answer>, String>) -> Next<C> {
        match told {
            Ok(answer) => self.voters[place].answer = answer,
            Err(cause) => self.voters[place].vote = Err(cause),
        }
        self.next_after(Some(place))
    }

    /// The node still agrees, and is there now; or it could not be asked. Returns what follows when all were asked.
    pub(crate) fn confirmed(
        &mut self,
        place: usize,
        confirmed: Option<(C, Option<Answer>)>,
    ) -> Option<Next<C>> {
        self.waiting.retain(|it| *it != place);
        match confirmed {
            Some((clock, answer)) => {
                self.clocks[place] = Some(clock);
                self.voters[place].answer = answer;
            }
            None => self.voters[place].vote = Err("its agreement was lost".to_owned()),
        }
        self.waiting.is_empty().then_some(Next::Decide)
    }

    /// Decides whom to promote. The primary is known to have `written` so far, and so many standbys confirm a commit,
    /// if that is known.
    pub(crate) fn decide(
        &mut self,
        written: Option<Position>,
        confirming: Option<usize>,
    ) -> Next<C> {
        self.known.written = written;
        self.known.confirming = confirming;
        let known = &self.known;
        let place = match candidate(&self.voters, known, &self.terms) {
            Ok(place) => place,
            Err(reasons) => return Next::End(End::Refused(reasons)),
        };
        match self.clocks[place] {
            Some(clock) => Next::Promote(Order {
                place,
                clock,
                rests_on: premise(&self.voters, place, known, &self.terms),
            }),
            None => failed(place, "it did not tell its time"),
        }
    }

    /// The result of the order. Once the node has begun, the order cannot be taken back.
    pub(crate) fn ordered(&self, place: usize, ordered: Ordered) -> Next<C> {
        match ordered {
            Ordered::Begun => Next::Watch(place),
            Ordered::Outdated => {
                let node = self.voters[place].name.clone();
                Next::End(End::Refused(vec![Refusal::Outdated { node }]))
            }
            Ordered::Failed(cause) => failed(place, cause),
            Ordered::Silent => Next::Recall(place),
        }
    }

    /// The order is void.
    pub(crate) fn recalled(&self, place: usize) -> Next<C> {
        failed(place, "no answer to `pg_promote`")
    }

    /// What the node reports, so long after it has begun. It has until `limit` to take writes, and may not answer at
    /// once.
    pub(crate) fn watched(
        &self,
        place: usize,
        told: Result<Option<Answer>, String>,
        (elapsed, limit): (Duration, Duration),
    ) -> Next<C> {
        match told {
            Ok(Some(answer))
                if answer.role == Role::TakesWrites && answer.timeline > self.known.newest =>
            {
                Next::End(End::Promoted {
                    place,
                    timeline: answer.timeline,
                })
            }
            Ok(_) if elapsed < limit => Next::Watch(place),
            Ok(_) => failed(place, format!("it does not take writes after {limit:?}")),
            Err(cause) => failed(place, cause),
        }
    }
}

const NOT_ASKED: &str = "it was not asked";

fn failed<C>(place: usize, cause: impl Into<String>) -> Next<C> {
    let cause = cause.into();
    Next::End(End::Failed { place, cause })
}
