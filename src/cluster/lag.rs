//! How far a replica is behind the primary, and how each node does beside the others.

use std::time::{Duration, Instant};

use super::member::Member;
use super::topology::Topology;
use crate::consistency::WriteLog;
use crate::health::Measure;
use crate::position::Survival;
use crate::route::NodeKind;

/// How far a replica is behind the primary, in bytes and in time.
pub(crate) fn lag(member: &Member, write_log: &WriteLog) -> (Option<u64>, Option<Duration>) {
    let Some(replayed) = member.reports.position() else {
        return (None, None);
    };
    write_log.with(|view| {
        let latest = view.history.latest();
        let bytes = latest
            .filter(|latest| latest.timeline == replayed.timeline)
            .map(|latest| latest.flushed.0.saturating_sub(replayed.lsn.0));
        // What the primary has lost has no age.
        let kept = view.forks.standing(replayed) == Survival::Kept;
        let age = view.history.age(replayed, Instant::now());
        (bytes, age.filter(|_| kept))
    })
}

/// What the health of `member` is judged by.
pub(super) fn measure(member: &Member, topology: &Topology, write_log: &WriteLog) -> Measure {
    let (lag_bytes, lag) = match member.kind() {
        // While nothing is written, nobody falls behind.
        Some(NodeKind::Replica) if topology.takes_writes() => lag(member, write_log),
        Some(NodeKind::Replica) => (None, None),
        _ => (Some(0), Some(Duration::ZERO)),
    };
    let round_trip = |member: &Member| member.reports.round_trip();
    let others = topology.members.iter();
    // Who is in another zone is further away, and not slow. But nobody is to be slower than those who are further away.
    // Where no zone is preferred, none counts.
    let is_peer = |other: &Member| {
        let (other, node) = (&other.node, &member.node);
        let alike = node.distance == 0 || other.zone == node.zone;
        let as_far = other.distance == node.distance && alike;
        other.name != node.name && (as_far || other.distance > node.distance)
    };
    let others = others.filter(|other| other.is_of_use() && is_peer(other));
    Measure {
        round_trip: round_trip(member),
        peers: median(others.filter_map(round_trip).collect()),
        lag,
        lag_bytes,
        compared: topology.takes_writes(),
    }
}

/// The lower of the two in the middle, if there are two.
fn median(mut times: Vec<Duration>) -> Option<Duration> {
    times.sort_unstable();
    times.get(times.len().checked_sub(1)? / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_one_of_them() {
        let of = |millis: &[u64]| {
            let times = millis.iter().copied().map(Duration::from_millis);
            median(times.collect()).map(|time| time.as_millis())
        };
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[7]), Some(7));
        assert_eq!(of(&[9, 1]), Some(1));
        assert_eq!(of(&[9, 1, 5]), Some(5));
    }
}
