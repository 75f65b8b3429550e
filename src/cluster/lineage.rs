//! Whether a standby's log is the primary's, which decides what the standby may serve.
//!
//! A standby's log is known to be on a certain timeline or a newer one. If that is the primary's timeline, all is
//! well. If the primary is on a newer one, it depends. Log that was replayed before the old timeline ended is common
//! to both. Log beyond that is lost, unless the standby has gone over to the new timeline.

use std::sync::Arc;
use std::time::Instant;

use super::member::{Feeding, Followed, MOMENT, Member};
use super::topology::Topology;
use crate::consistency::WriteLog;
use crate::election;
use crate::health::Apart;
use crate::node::{Facts, Place, Receiver};
use crate::position::{Forks, Lsn, Position, Survival};
use crate::wire::ServerRole;

/// From where a standby gets log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Feed {
    Nothing,
    /// It has a receiver, and this role may see no more of it.
    Hidden,
    Of(u32),
}

/// What is known of a standby's log.
#[derive(Clone, Copy, Debug)]
struct Line {
    /// It is on this timeline or on a newer one.
    timeline: u32,
    /// It is on no newer one.
    exact: bool,
    replayed: Option<Lsn>,
    received: Option<Lsn>,
    feed: Feed,
    /// It reported this after this process knew the primary's timeline. Since an earlier report it may have gone
    /// further.
    fresh: bool,
    /// It has replayed log beyond the mark of this timeline's primary, and does not show the mark.
    lacks: u32,
}

impl Line {
    /// `known` is the newest timeline that the standby has reported.
    fn of(facts: &Facts, known: u32, fresh: bool) -> Option<Self> {
        let Place::Standby {
            replayed,
            received,
            receiver,
            receives,
            lacks,
            ..
        } = &facts.place
        else {
            return None;
        };
        // There is no timeline before 1.
        let timeline = facts.timeline.max(known).max(1);
        let seen = receiver.as_ref().map(|receiver| receiver.timeline);
        Some(Self {
            timeline,
            exact: seen.is_some_and(|seen| seen <= timeline),
            replayed: *replayed,
            received: received.map(|(flushed, _)| flushed),
            feed: match (receiver.as_ref().filter(|it| is_fed(it)), receives) {
                (Some(receiver), _) => Feed::Of(receiver.timeline),
                (None, _) if receiver.is_some() => Feed::Nothing,
                (None, Some(false)) => Feed::Nothing,
                (None, _) => Feed::Hidden,
            },
            fresh,
            lacks: *lacks,
        })
    }
}

/// The server has told a receiver that waits that its timeline is over.
fn is_fed(receiver: &Receiver) -> bool {
    receiver.status != "waiting"
}

/// How a standby's log relates to the primary's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lineage {
    Trusted,
    Diverged(Position),
    Doubtful,
    /// Its log is the primary's up to where it is, and it gets no more of it.
    Unfed,
}

impl Lineage {
    fn feeding(self) -> Feeding {
        match self {
            Self::Trusted => Feeding::Current,
            Self::Doubtful => Feeding::Doubtful,
            Self::Unfed => Feeding::Unfed,
            Self::Diverged(_) => Feeding::Never,
        }
    }
}

fn verdict(line: &Line, newest: u32, forks: &Forks) -> Lineage {
    let place = |lsn| Position::new(line.timeline, lsn);
    if line.lacks != 0 && line.lacks >= newest {
        return Lineage::Diverged(place(line.replayed.unwrap_or(Lsn(0))));
    }
    if line.timeline >= newest {
        return Lineage::Trusted;
    }
    let known = line.fresh && forks.current() >= newest;
    let Some(replayed) = line.replayed.filter(|_| known) else {
        return Lineage::Doubtful;
    };
    let standing = forks.standing(place(replayed));
    if standing == Survival::Lost && line.exact {
        return Lineage::Diverged(place(replayed));
    }
    // It will soon replay what it has received.
    let has = line
        .received
        .map(|received| forks.standing(place(received)));
    let common = |standing| matches!(standing, Survival::Kept | Survival::Ahead);
    if common(standing) && has.is_none_or(common) {
        // A standby that follows the primary has more than that at once: the end of the primary's recovery.
        Lineage::Unfed
    } else {
        Lineage::Doubtful
    }
}

/// Judges standbys by what the pool knows of the primary's log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Judge<'k> {
    pub(super) write_log: &'k WriteLog,
}

impl Judge<'_> {
    /// Judges every standby.
    pub(super) fn judge(&self, topology: &mut Topology) {
        let (newest, began, now) = (topology.timeline(), topology.began(), Instant::now());
        let since = topology.timeline_since();
        let superseded = |member: &Member| {
            matches!(member.standing, election::Standing::Superseded { .. }) && member.is_up()
        };
        let rival = topology.members.iter().any(superseded);
        for member in &mut topology.members {
            let standby = member.standing == election::Standing::Replica
                && member.role == Some(ServerRole::Standby);
            let line = standby.then(|| member.reports.last()).and_then(|last| {
                let fresh = since.is_none_or(|since| last.asked >= since);
                Line::of(last.facts.as_deref()?, member.timeline, fresh)
            });
            let Some(line) = line else {
                member.followed = Followed::default();
                member.judged(None);
                continue;
            };
            let verdict = self.verdict(&line, newest);
            member.followed.note(verdict.feeding(), began, now);
            let waits = line.feed == Feed::Nothing && !rival;
            let apart = apart(verdict, &line, newest, (member.followed, waits), now);
            member.judged(apart);
        }
    }

    fn verdict(&self, line: &Line, newest: u32) -> Lineage {
        self.write_log
            .with(|view| verdict(line, newest, &view.forks))
    }

    /// Whether judging the node anew by these facts would change something.
    pub(super) fn would_change(&self, member: &Member, facts: &Facts, newest: u32) -> bool {
        let Some(line) = Line::of(facts, member.timeline, true) else {
            return false;
        };
        let now = Instant::now();
        let verdict = self.verdict(&line, newest);
        let mut followed = member.followed;
        followed.note(verdict.feeding(), true, now);
        let waits = line.feed == Feed::Nothing;
        let apart = apart(verdict, &line, newest, (followed, waits), now);
        let kind = |apart: Option<&(Apart, Arc<str>)>| apart.map(|(kind, _)| *kind);
        kind(apart.as_ref()) != kind(member.health.apart())
            || followed.unfed.is_some() != member.followed.unfed.is_some()
    }

    /// Whether only a mark can tell of this standby.
    pub(super) fn needs_proof(&self, facts: &Facts, newest: u32) -> bool {
        let Some(line) = Line::of(facts, 0, true).filter(|line| newest != 0 && line.lacks < newest)
        else {
            return false;
        };
        let older = line.timeline < newest
            && (line.feed == Feed::Hidden || self.verdict(&line, newest) == Lineage::Doubtful);
        // It may not tell its timeline, nor perhaps its cluster.
        older || facts.timeline == 0
    }
}

/// What the standby becomes, with the cause. `waits`: it gets no log from anybody, so the pool can wait a moment for
/// it to follow the primary.
fn apart(
    verdict: Lineage,
    line: &Line,
    newest: u32,
    (followed, waits): (Followed, bool),
    now: Instant,
) -> Option<(Apart, Arc<str>)> {
    let timeline = line.timeline;
    let (kind, cause) = match verdict {
        Lineage::Trusted => return None,
        Lineage::Diverged(place) => (
            Apart::Diverged,
            format!(
                "it has replayed log up to {place} that is not in the history of timeline {newest}: what \
                 the primary lost; it can follow nobody, and has to be rebuilt (`pg_rewind`, or a new base \
                 backup)"
            ),
        ),
        Lineage::Doubtful => (
            Apart::Doubtful,
            format!(
                "the primary is on timeline {newest}, and whether this replica's log is of that or of what \
                 timeline {timeline} had beyond its end is not known{}",
                match line.feed {
                    Feed::Hidden =>
                        "; it is known at once to a role that is a member of `pg_monitor`",
                    _ =>
                        "; have it follow the primary (`primary_conninfo`), or rebuild it (`pg_rewind`, or a \
                         new base backup)",
                }
            ),
        ),
        Lineage::Unfed => {
            // A pool that did not see it leave cannot know how long ago that was.
            let since = followed.unfed.filter(|_| followed.current);
            let long = |since| now.saturating_duration_since(since) >= MOMENT;
            if !since.is_none_or(long) {
                let cause = || {
                    format!(
                        "the primary is on timeline {newest}, and this replica may still be given what \
                         timeline {timeline} has beyond its end"
                    )
                };
                return (!waits).then(|| (Apart::Doubtful, cause().into()));
            }
            let fed = match line.feed {
                Feed::Of(timeline) => {
                    format!("follows a node that is still on timeline {timeline}")
                }
                Feed::Hidden => "receives nothing of that".to_owned(),
                Feed::Nothing => "receives nothing".to_owned(),
            };
            (
                Apart::Orphaned,
                format!(
                    "the primary is on timeline {newest}, and this replica {fed}: it shows what was true \
                     before the failover; have it follow the primary (`primary_conninfo`), or rebuild it \
                     (`pg_rewind`, or a new base backup)"
                ),
            )
        }
    };
    Some((kind, cause.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forks() -> Forks {
        let mut forks = Forks::default();
        forks.learn_history(2, &[(1, Lsn(100))]);
        forks
    }

    fn line(replayed: u64, feed: Feed) -> Line {
        Line {
            timeline: 1,
            exact: matches!(feed, Feed::Of(_)),
            replayed: Some(Lsn(replayed)),
            received: Some(Lsn(replayed)),
            feed,
            fresh: true,
            lacks: 0,
        }
    }

    fn of(line: Line) -> Lineage {
        verdict(&line, 2, &forks())
    }

    #[test]
    fn whoever_is_beyond_the_fork_is_diverged_or_in_doubt() {
        let lost = Position::new(1, Lsn(101));
        assert_eq!(of(line(101, Feed::Of(1))), Lineage::Diverged(lost));
        // More than a segment beyond it has no receiver.
        assert_eq!(of(line(101, Feed::Nothing)), Lineage::Doubtful);
        assert_eq!(of(line(101, Feed::Hidden)), Lineage::Doubtful);
        // It says otherwise of what the primary did.
        let lacks = Line {
            lacks: 2,
            ..line(101, Feed::Nothing)
        };
        assert_eq!(of(lacks), Lineage::Diverged(lost));
        // How far it is may not be asked.
        let silent = Line {
            replayed: None,
            ..line(0, Feed::Hidden)
        };
        assert_eq!(of(silent), Lineage::Doubtful);
    }

    #[test]
    fn whoever_is_before_the_fork_has_to_go_on() {
        for feed in [Feed::Nothing, Feed::Of(1), Feed::Hidden] {
            assert_eq!(of(line(100, feed)), Lineage::Unfed);
        }
        // It is about to replay what lies beyond, of whichever timeline.
        let receives = Line {
            received: Some(Lsn(150)),
            ..line(100, Feed::Hidden)
        };
        assert_eq!(of(receives), Lineage::Doubtful);
        // It may have gone on since it was asked.
        let before = Line {
            fresh: false,
            ..line(100, Feed::Nothing)
        };
        assert_eq!(of(before), Lineage::Doubtful);
    }

    #[test]
    fn on_the_primarys_timeline_all_is_well() {
        let current = Line {
            timeline: 2,
            ..line(900, Feed::Nothing)
        };
        assert_eq!(of(current), Lineage::Trusted);
        // Nobody knows of a newer one.
        let first = verdict(&line(900, Feed::Nothing), 1, &Forks::default());
        assert_eq!(first, Lineage::Trusted);
        // The fork is not known yet.
        let early = verdict(&line(1, Feed::Nothing), 2, &Forks::default());
        assert_eq!(early, Lineage::Doubtful);
    }

    #[test]
    fn a_moment_is_given_to_who_was_seen_to_follow() {
        let start = Instant::now();
        let kind = |followed: Followed, now| {
            let line = line(50, Feed::Nothing);
            apart(Lineage::Unfed, &line, 2, (followed, true), now).map(|(kind, _)| kind)
        };
        let fed = |followed: Followed, now| {
            let line = line(50, Feed::Of(1));
            apart(Lineage::Unfed, &line, 2, (followed, false), now).map(|(kind, _)| kind)
        };
        let mut seen = Followed::default();
        seen.note(Feeding::Current, true, start);
        seen.note(Feeding::Unfed, true, start);
        assert_eq!(kind(seen, start), None);
        // Who may still be given more of the old timeline is not waited for.
        assert_eq!(fed(seen, start), Some(Apart::Doubtful));
        assert_eq!(fed(seen, start + MOMENT), Some(Apart::Orphaned));
        assert_eq!(kind(seen, start + MOMENT), Some(Apart::Orphaned));
        let mut fresh = Followed::default();
        fresh.note(Feeding::Unfed, true, start);
        assert_eq!(kind(fresh, start), Some(Apart::Orphaned));
    }
}
