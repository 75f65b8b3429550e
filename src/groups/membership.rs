//! Which groups have all that there is: they apply what the others write, and are not given up.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::Groups;

/// How a group stands to what another one writes, by its subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Follows {
    /// It applies it, or nobody knows yet.
    Yes,
    /// It has no subscription, or its tables are still being copied.
    NotYet,
    /// The subscription is disabled: the other group was given up.
    GaveUp,
}

/// How the groups stand to each other.
#[derive(Debug)]
pub(crate) struct Membership {
    /// Of each group to each other one.
    follows: Mutex<Vec<Vec<Follows>>>,
    /// What follows from that, for reads. It is written under the lock.
    whole: Box<[AtomicBool]>,
}

impl Membership {
    /// Nothing is known yet, of so many groups.
    pub(crate) fn new(groups: usize) -> Self {
        Self {
            follows: Mutex::new(vec![vec![Follows::Yes; groups]; groups]),
            whole: (0..groups).map(|_| AtomicBool::new(true)).collect(),
        }
    }
}

impl Groups {
    /// Takes note of what the primary of a group says of its subscriptions.
    pub(crate) fn note_follows(&self, group: usize, follows: Vec<Follows>) {
        let mut all = self.membership.follows.lock();
        if all[group] == follows {
            return;
        }
        all[group] = follows;
        for (at, known) in self.membership.whole.iter().enumerate() {
            let (whole, group) = (is_whole(&all, at), &self.members[at].name);
            if known.swap(whole, Ordering::AcqRel) != whole {
                // What was believed of its keys may be what it alone believes.
                self.homes.clear();
                match whole {
                    true => tracing::info!(target: "diesel_replicated", group, "group_whole"),
                    false => tracing::warn!(target: "diesel_replicated", group, "group_not_whole"),
                }
            }
        }
    }

    /// Whether near reads may run in a group. One that was given up has rows that nobody else has, and one that is being
    /// taken back lacks some.
    pub(crate) fn is_whole(&self, group: usize) -> bool {
        self.membership.whole[group].load(Ordering::Acquire)
    }
}

pub(super) fn is_whole(all: &[Vec<Follows>], group: usize) -> bool {
    let given_up = |of: usize| all.iter().any(|follows| follows[of] == Follows::GaveUp);
    let lacks = |of: usize| all[group][of] == Follows::NotYet && !given_up(of);
    !given_up(group) && !(0..all.len()).any(lacks)
}
