//! What one session has written and seen in all groups, and so what its reads require of the one that serves them.
//!
//! A group shows its own writes, and what it has applied of others. Who has read in a group has seen both. So a read in
//! another group requires, beside what was written and seen in the log of each group, all that the first may have applied:
//! no more than the others had written by then.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use super::Groups;
use crate::cluster::Cluster;
use crate::config::Consistency;
use crate::consistency::{SessionHistory, ShownUpTo};
use crate::position::Position;
use crate::token::SessionToken;

/// What a session has written and seen.
#[derive(Debug)]
pub(crate) struct GroupsHistory {
    /// In the log of each group.
    pub(crate) of: Box<[Arc<SessionHistory>]>,
    /// When it last read in each group.
    reads: Mutex<Box<[LastRead]>>,
}

/// The last read in one group.
#[derive(Clone, Debug, Default)]
struct LastRead {
    ended: Option<Instant>,
    /// Where each other group was after that, once known.
    others: Vec<Option<Position>>,
}

/// What a group must show to serve a read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    /// This much of its own log.
    pub(crate) position: Option<Position>,
    /// What others may have shown of it already. A subscriber shows a commit while that still waits for a synchronous
    /// standby, and then its primary does not show it yet.
    pub(crate) elsewhere: Option<ShownUpTo>,
}

/// What a read requires of a group and of what that has applied.
#[derive(Debug, Default)]
struct Needs {
    others: Vec<(usize, Position)>,
    own: Place,
}

impl GroupsHistory {
    /// A session that has done nothing, or what tokens tell of each group.
    pub(crate) fn new(of: impl IntoIterator<Item = Arc<SessionHistory>>) -> Self {
        let of: Box<[_]> = of.into_iter().collect();
        let reads = Mutex::new(vec![LastRead::default(); of.len()].into());
        Self { of, reads }
    }

    /// The session has read in this group.
    pub(crate) fn has_read_in(&self, group: usize) {
        self.reads.lock()[group] = LastRead {
            ended: Some(Instant::now()),
            others: vec![None; self.of.len()],
        };
    }

    /// What `group` must show to serve a read; `None` if it is not known, or if the group has not applied enough of the
    /// others. `home` is the home of the connection's key.
    pub(crate) fn shown_by(
        &self,
        groups: &Groups,
        group: usize,
        level: Consistency,
        home: Option<usize>,
    ) -> Option<Place> {
        let needs = self.needs(groups, group, level, home)?;
        let applied = &groups.members[group].applied;
        let mut place = needs.own;
        for (origin, position) in needs.others {
            let Some(here) = applied.shows(origin, position) else {
                applied.want();
                return None;
            };
            place.position = Some(place.position.map_or(here, |place| place.max(here)));
        }
        Some(place)
    }

    /// Whether it is not known yet what a read in `group` requires, because positions have not been told.
    pub(crate) fn is_unclear(
        &self,
        groups: &Groups,
        group: usize,
        level: Consistency,
        home: Option<usize>,
    ) -> bool {
        self.needs(groups, group, level, home).is_none()
    }

    fn needs(
        &self,
        groups: &Groups,
        group: usize,
        level: Consistency,
        home: Option<usize>,
    ) -> Option<Needs> {
        let mut needs = Needs::default();
        if level == Consistency::Eventual {
            return Some(needs);
        }
        for (origin, history) in self.of.iter().enumerate() {
            if origin == group || !history.is_touched() {
                continue;
            }
            let cluster = &groups.members[origin].cluster;
            let known = history.positions(&cluster.write_log);
            // What it has only seen in a group that stays away, nobody can tell, and reads elsewhere do not wait for it.
            if !known.wrote && !groups.is_there(origin) {
                continue;
            }
            // A write that may have been committed is at the key's home, if it was one of this key: the key could not
            // move while it was under way.
            let at_home = Some(group) == home && known.only_in_doubt;
            if known.unknown.is_some() && !at_home {
                ask(cluster);
                return None;
            }
            needs.others.extend(known.written.map(|it| (origin, it)));
            if sees_no_less(level) && groups.is_there(origin) {
                if known.unseen || !known.reads.is_empty() {
                    known.reads.iter().for_each(|it| it.nudge_gently());
                    ask(cluster);
                    return None;
                }
                needs.others.extend(known.seen.map(|it| (origin, it)));
            }
        }
        if sees_no_less(level) {
            self.follows_reads(groups, group, &mut needs)?;
        }
        Some(needs)
    }

    /// Adds what the session may have seen in other groups of what they had applied.
    fn follows_reads(&self, groups: &Groups, group: usize, needs: &mut Needs) -> Option<()> {
        let mut reads = self.reads.lock();
        for (at, read) in reads.iter_mut().enumerate() {
            let Some(ended) = read.ended.filter(|_| at != group) else {
                continue;
            };
            for (origin, position) in read.others.iter_mut().enumerate() {
                let cluster = &groups.members[origin].cluster;
                if origin == at || !groups.is_there(origin) {
                    continue;
                }
                *position = position.or_else(|| cluster.write_log.asked_since(ended));
                match *position {
                    Some(position) if origin == group => {
                        let own = needs.own.position;
                        needs.own.position = Some(own.map_or(position, |own| own.max(position)));
                        let shown = ShownUpTo::UpTo(position);
                        needs.own.elsewhere = Some(shown.and(needs.own.elsewhere));
                    }
                    Some(position) => needs.others.push((origin, position)),
                    // Its primary will show all that it has written.
                    None if origin == group => {
                        ask(cluster);
                        needs.own.elsewhere = Some(ShownUpTo::Anything);
                    }
                    None => {
                        ask(cluster);
                        return None;
                    }
                }
            }
        }
        Some(())
    }

    /// Adds to the token of one group what the session may have seen of it in others.
    pub(crate) fn seen_elsewhere(
        &self,
        groups: &Groups,
        origin: usize,
        token: &SessionToken,
    ) -> SessionToken {
        let reads = self.reads.lock();
        let write_log = &groups.members[origin].cluster.write_log;
        let mut seen = token.seen();
        for (at, read) in reads.iter().enumerate() {
            let Some(ended) = read.ended.filter(|_| at != origin) else {
                continue;
            };
            let known = read.others[origin].or_else(|| write_log.asked_since(ended));
            let somewhere = || groups.is_there(origin).then(|| Position::somewhere(0));
            let Some(known) = known.or_else(somewhere) else {
                continue;
            };
            seen = Some(match seen {
                Some(seen) if seen.is_somewhere() => seen,
                Some(_) if known.is_somewhere() => known,
                Some(seen) => seen.max(known),
                None => known,
            });
        }
        let cluster = write_log.with(|view| view.cluster);
        let cluster = cluster.unwrap_or_else(|| token.cluster());
        SessionToken::new(cluster, token.written(), seen)
    }
}

/// Whether a read at this level sees nothing older than what the session has seen.
fn sees_no_less(level: Consistency) -> bool {
    !matches!(level, Consistency::Eventual | Consistency::ReadYourWrites)
}

/// Has the primary of a cluster tell its position.
fn ask(cluster: &Cluster) {
    if let Some(primary) = cluster.topology().primary() {
        primary.reports.nudge_gently();
    }
}
