//! What a process is at: an attempt at a promotion, or a switchover.

use super::Millis;
use crate::election::promotion::attempt::{self, Next};
use crate::election::promotion::switchover::{self, Switchover};
use crate::election::promotion::{Known, Terms, Voter};

#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub(super) number: u64,
    /// A primary that gives way.
    pub(super) yielding: Option<usize>,
    /// What is being done, or is about to be.
    pub(super) next: Next<Millis>,
    pub(super) machine: attempt::Attempt<Millis>,
    /// Counts what is done, so that a late answer or a limit of an earlier step is told.
    pub(super) step: u32,
    /// Nothing that was flushed before this was missed.
    pub(super) asked: Option<Millis>,
    /// When the server has begun.
    pub(super) begun: Millis,
    pub(super) void: Millis,
    /// When the last message arrives at each server: a connection keeps the order.
    pub(super) sent: Vec<Millis>,
}

impl Attempt {
    pub(super) fn new(number: u64, priorities: &[u32], known: Known, terms: Terms) -> Self {
        let nodes = priorities.iter().enumerate();
        let nodes = nodes.map(|(place, priority)| (place.to_string(), *priority));
        Self {
            number,
            yielding: terms.yielding,
            next: Next::Open,
            machine: attempt::Attempt::new(nodes, known, terms),
            step: 0,
            asked: None,
            begun: 0,
            void: 0,
            sent: vec![0; priorities.len()],
        }
    }

    /// Whether it was decided that it may promote.
    pub(super) fn acts(&self) -> bool {
        matches!(
            self.next,
            Next::Promote(_) | Next::Recall(_) | Next::Watch(_)
        )
    }

    pub(super) fn voters(&self) -> Vec<Voter> {
        self.machine.clone().voters().clone()
    }

    pub(super) fn newest(&self) -> u32 {
        self.machine.newest()
    }
}

#[derive(Clone, Debug)]
pub(super) struct Switch {
    pub(super) number: u64,
    /// Counts what is done, so that a late answer or a limit of an earlier step is told.
    pub(super) step: u32,
    pub(super) machine: Switchover<(), String>,
    pub(super) next: switchover::Next<(), String>,
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) deadline: Millis,
    /// Until when it is tried to take the fence away.
    pub(super) lifting: Option<Millis>,
    /// Which of the two have answered.
    pub(super) opened: [bool; 2],
    /// When the last message arrives at each server: a connection keeps the order.
    pub(super) sent: Vec<Millis>,
}

impl Switch {
    pub(super) fn is(&self, number: u64, step: u32) -> bool {
        (self.number, self.step) == (number, step)
    }
}
