//! What is left of the log while the primary is away: all that standbys have received of it.

use std::time::{Duration, Instant};

use super::member::Member;
use super::topology::Topology;
use crate::consistency::WriteLog;
use crate::election::Standing;
use crate::node::{Facts, Place};
use crate::position::Position;

/// A receiver that has heard nothing for so long has all that was on its way: its sender hangs, or is idle.
const SILENT: Duration = Duration::from_secs(1);

impl Topology {
    /// A position that covers every write that any standby has. `None` while a primary is there, or while it is not
    /// known of each standby what it has, or one may still receive more.
    ///
    /// Whichever standby becomes the primary next has no more than this. Nor was anything else acknowledged, if commits
    /// wait for a standby. A report from before this pool's last write says nothing of that write.
    pub(crate) fn left(&self, write_log: &WriteLog) -> Option<Position> {
        if !self.began() || self.primary_is_up() {
            return None;
        }
        let acknowledged = write_log.acknowledged_at();
        let mut left = None;
        for member in self.servers() {
            match member.standing {
                // Only one of several servers is asked, and another one may have more.
                Standing::Replica if member.has_led_elsewhere() => return None,
                Standing::Replica => {
                    let end = all_of(member, acknowledged)?;
                    left = Some(left.map_or(end, |other: Position| other.max(end)));
                }
                // It is away, or its log is another.
                Standing::Primary
                | Standing::Superseded { .. }
                | Standing::Foreign
                | Standing::Twin => {}
                // It may have more.
                Standing::Unknown | Standing::Candidate | Standing::Rival | Standing::Elsewhere => {
                    return None;
                }
            }
        }
        left
    }
}

/// All that a standby has, if it receives no more.
fn all_of(member: &Member, acknowledged: Option<Instant>) -> Option<Position> {
    let last = member.reports.last();
    let late = acknowledged.is_none_or(|moment| last.asked >= moment);
    let facts = last.facts.filter(|_| late && member.is_up())?;
    // What it heard before the write says nothing.
    let heard = acknowledged.is_none_or(|moment| last.asked >= moment + SILENT);
    end_of(&facts, member.timeline, heard)
}

/// Where the log of a standby ends that receives no more. `timeline` is the newest that it has told. `heard`: silence
/// counts, because it began after all that matters.
fn end_of(facts: &Facts, timeline: u32, heard: bool) -> Option<Position> {
    let Place::Standby {
        replayed,
        received,
        receiver,
        receives,
        ..
    } = &facts.place
    else {
        return None;
    };
    let ended = match receiver {
        Some(receiver) => {
            let silent = receiver.silent_for.is_some_and(|time| time >= SILENT);
            silent && heard || receiver.status == "waiting"
        }
        None => *receives == Some(false),
    };
    // A standby that was restarted tells nothing received before it has replayed all that it had.
    let (_, written) = (*received).filter(|_| ended)?;
    let end = replayed.map_or(written, |replayed| replayed.max(written));
    Some(Position::new(timeline.max(facts.timeline), end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::Receiver;
    use crate::position::Lsn;

    fn standby(
        received: u64,
        replayed: u64,
        receiver: Option<(&str, u64)>,
        receives: Option<bool>,
    ) -> Facts {
        Facts {
            cluster: Some(7),
            timeline: 1,
            run: None,
            database: None,
            version: 150_000,
            fenced: false,
            place: Place::Standby {
                replayed: Some(Lsn(replayed)),
                received: Some((Lsn(received - 8), Lsn(received))),
                snapshot: None,
                paused: false,
                receiver: receiver.map(|(status, silent)| Receiver {
                    timeline: 1,
                    status: status.to_owned(),
                    sender: None,
                    silent_for: Some(Duration::from_millis(silent)),
                }),
                receives,
                lacks: 0,
            },
        }
    }

    #[test]
    fn a_log_ends_when_nothing_is_received_any_more() {
        let end = |lsn| Some(Position::new(2, Lsn(lsn)));
        for (facts, expected) in [
            (standby(100, 90, None, Some(false)), end(100)),
            (standby(100, 90, Some(("waiting", 0)), Some(true)), end(100)),
            (
                standby(100, 90, Some(("streaming", 1000)), Some(true)),
                end(100),
            ),
            // A restarted standby tells what it has received since.
            (standby(50, 90, None, Some(false)), end(90)),
            (standby(100, 90, Some(("streaming", 999)), Some(true)), None),
            // This role may not see whether it receives.
            (standby(100, 90, None, Some(true)), None),
            (standby(100, 90, None, None), None),
        ] {
            assert_eq!(end_of(&facts, 2, true), expected, "{facts:?}");
        }
        let mut primary = standby(100, 90, None, Some(false));
        primary.place = Place::Primary {
            flushed: Some(Lsn(1)),
            inserted: Some(Lsn(1)),
            synchronous_standbys: 0,
        };
        assert_eq!(end_of(&primary, 2, true), None);
        let silent = standby(100, 90, Some(("streaming", 1000)), Some(true));
        assert_eq!(end_of(&silent, 2, false), None);
        let mut restarted = standby(100, 90, None, Some(false));
        if let Place::Standby { received, .. } = &mut restarted.place {
            *received = None;
        }
        assert_eq!(end_of(&restarted, 2, true), None);
    }
}
