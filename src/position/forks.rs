//! Where timelines parted, and what became of a position on an older one.

use super::{Lsn, Position};

/// Where one timeline ended, as later timelines record it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fork {
    /// The timeline that ended.
    timeline: u32,
    /// Everything up to here is in the successor's history.
    at_least: Lsn,
    /// Nothing beyond here is.
    at_most: Lsn,
}

/// What became of a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Survival {
    /// It belongs to the history of the current timeline.
    Kept,
    /// It lies beyond a fork: what was written there did not survive the failover.
    Lost,
    /// It is not known whether it was kept or lost.
    Unclear,
    /// It is of a timeline that nobody here has heard of yet.
    Ahead,
}

/// The history of the newest timeline that is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Forks {
    current: u32,
    /// Sorted by timeline.
    forks: Vec<Fork>,
}

impl Forks {
    /// The newest timeline that is known; 0 while none is.
    pub(crate) fn current(&self) -> u32 {
        self.current
    }

    /// The server's own history of timelines: each with the position at which it ended.
    pub(crate) fn learn_history(&mut self, current: u32, ended: &[(u32, Lsn)]) {
        if current < self.current {
            return;
        }
        self.current = current;
        self.forks = ended
            .iter()
            .map(|&(timeline, lsn)| Fork {
                timeline,
                at_least: lsn,
                at_most: lsn,
            })
            .collect();
        self.forks.sort_by_key(|fork| fork.timeline);
    }

    /// A new timeline whose beginning the server does not report. It lies between `replayed`, where the node was
    /// before, and `begun`, where it is now.
    pub(crate) fn learn_bounds(&mut self, current: u32, replayed: Lsn, begun: Lsn) {
        if current <= self.current {
            return;
        }
        // It may have replayed what belongs to a timeline in between, of which nobody here has heard.
        let replayed = if current == self.current + 1 {
            replayed
        } else {
            Lsn(0)
        };
        if self.current != 0 {
            for timeline in self.current..current {
                self.forks.push(Fork {
                    timeline,
                    at_least: replayed,
                    at_most: begun,
                });
            }
        }
        self.current = current;
    }

    /// What became of `position`.
    pub(crate) fn standing(&self, position: Position) -> Survival {
        if position.timeline > self.current {
            return Survival::Ahead;
        }
        // A position survives only if it lies before every fork from its timeline on.
        let mut standing = Survival::Kept;
        for fork in &self.forks {
            if fork.timeline < position.timeline {
                continue;
            }
            if position.lsn > fork.at_most {
                return Survival::Lost;
            }
            if position.lsn > fork.at_least {
                standing = Survival::Unclear;
            }
        }
        let known = |timeline| self.forks.iter().any(|fork| fork.timeline == timeline);
        if standing == Survival::Kept && !(position.timeline..self.current).all(known) {
            return Survival::Unclear;
        }
        standing
    }

    /// The last position of an ended timeline that may be part of its successors, if that is known.
    pub(crate) fn end_of(&self, timeline: u32) -> Option<Lsn> {
        let mut forks = self.forks.iter();
        let fork = forks.find(|fork| fork.timeline == timeline)?;
        Some(fork.at_most)
    }

    /// The position that covers all that was kept before a lost position.
    pub(crate) fn kept_of(&self, lost: Position) -> Position {
        let beyond = |fork: &&Fork| fork.timeline >= lost.timeline && lost.lsn > fork.at_most;
        let fork = self.forks.iter().find(beyond);
        Position::new(self.current, fork.map_or(lost.lsn, |fork| fork.at_most))
    }

    /// Whether a standby that has replayed up to `replayed` shows everything up to `wanted`. `false` if that is not
    /// known for sure.
    pub(crate) fn covers(&self, replayed: Position, wanted: Position) -> bool {
        if replayed.lsn < wanted.lsn {
            return false;
        }
        if replayed.timeline == wanted.timeline {
            return true;
        }
        // A standby on a newer timeline shows `wanted` only if that was kept. A standby on an older timeline with a
        // greater LSN has other data. Of a timeline that no primary has told of, nobody knows where it began.
        let told = replayed.timeline <= self.current;
        told && replayed.timeline > wanted.timeline && self.standing(wanted) == Survival::Kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(timeline: u32, lsn: u64) -> Position {
        Position::new(timeline, Lsn(lsn))
    }

    fn exact() -> Forks {
        let mut forks = Forks::default();
        forks.learn_history(3, &[(1, Lsn(100)), (2, Lsn(200))]);
        forks
    }

    #[test]
    fn what_lies_beyond_a_fork_is_lost() {
        let forks = exact();
        assert_eq!(forks.standing(at(1, 100)), Survival::Kept);
        assert_eq!(forks.standing(at(1, 101)), Survival::Lost);
        assert_eq!(forks.standing(at(2, 200)), Survival::Kept);
        assert_eq!(forks.standing(at(2, 201)), Survival::Lost);
        assert_eq!(forks.standing(at(3, 900)), Survival::Kept);
        assert_eq!(forks.standing(at(4, 1)), Survival::Ahead);
    }

    #[test]
    fn of_what_is_lost_all_before_the_fork_is_kept() {
        let forks = exact();
        assert_eq!(forks.kept_of(at(1, 300)), at(3, 100));
        assert_eq!(forks.kept_of(at(2, 300)), at(3, 200));
        assert!(forks.covers(at(3, 100), forks.kept_of(at(1, 300))));
    }

    #[test]
    fn without_the_servers_history_there_is_a_stretch_of_doubt() {
        let mut forks = Forks::default();
        forks.learn_bounds(1, Lsn(0), Lsn(10));
        forks.learn_bounds(2, Lsn(90), Lsn(110));
        assert_eq!(forks.standing(at(1, 90)), Survival::Kept);
        assert_eq!(forks.standing(at(1, 91)), Survival::Unclear);
        assert_eq!(forks.standing(at(1, 111)), Survival::Lost);
        // An older view changes nothing.
        forks.learn_bounds(1, Lsn(0), Lsn(0));
        assert_eq!(forks.current(), 2);
        // The server's own word settles it.
        forks.learn_history(2, &[(1, Lsn(100))]);
        assert_eq!(forks.standing(at(1, 100)), Survival::Kept);
        assert_eq!(forks.standing(at(1, 101)), Survival::Lost);
    }

    #[test]
    fn a_timeline_that_was_passed_over_leaves_all_in_doubt() {
        let mut forks = Forks::default();
        forks.learn_bounds(1, Lsn(0), Lsn(10));
        // The second began at 50, and the standby that begins the third was on it.
        forks.learn_bounds(3, Lsn(90), Lsn(110));
        assert_eq!(forks.standing(at(1, 80)), Survival::Unclear);
        assert_eq!(forks.standing(at(1, 111)), Survival::Lost);
        assert_eq!(forks.standing(at(3, 120)), Survival::Kept);
    }

    #[test]
    fn the_history_from_before_this_process_is_unclear() {
        let mut forks = Forks::default();
        forks.learn_bounds(3, Lsn(0), Lsn(500));
        assert_eq!(forks.standing(at(2, 5)), Survival::Unclear);
        assert_eq!(forks.standing(at(3, 5)), Survival::Kept);
    }

    #[test]
    fn positions_of_two_timelines_are_never_compared_as_numbers() {
        let forks = exact();
        // Stuck on the old timeline, and numerically ahead.
        assert!(!forks.covers(at(2, 300), at(3, 250)));
        assert!(forks.covers(at(3, 250), at(3, 250)));
        assert!(forks.covers(at(3, 250), at(2, 200)));
        assert!(!forks.covers(at(3, 250), at(2, 201)), "lost, not covered");
        assert!(!forks.covers(at(3, 199), at(2, 200)), "not there yet");
        assert!(!Forks::default().covers(at(2, 9), at(1, 5)), "not known");
        assert!(!forks.covers(at(4, 300), at(3, 250)), "nobody told of it");
    }
}
