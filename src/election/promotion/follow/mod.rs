//! What each standby must follow while the primary of a promotion rules. Nothing here asks anyone.
//!
//! Whoever acts on it may be one of several, and may have been held up: it asks both servers, decides, and acts at
//! once. What it does twice is the same as what it does once.

use std::fmt;
use std::time::Duration;

use crate::position::{Forks, Lsn, Position, Survival};

/// How long a standby has to follow after it was told. Its receiver tries again after
/// `wal_retrieve_retry_interval`, 5 seconds by default.
const PATIENCE: Duration = Duration::from_secs(15);

/// How long the point at which the new timeline began may stay unknown. Then the servers themselves compare.
const UNKNOWN: Duration = Duration::from_secs(2);

/// The node that is to be followed.
#[derive(Clone, Debug)]
pub(crate) struct Ruler<'f> {
    pub(crate) name: String,
    /// By its own word, just now, it takes writes, and belongs to this cluster.
    pub(crate) rules: bool,
    /// Its timeline, by its own word.
    pub(crate) timeline: u32,
    /// The newest timeline that any node was seen on.
    pub(crate) newest: u32,
    /// How long ago this process first heard of that.
    pub(crate) since: Duration,
    /// Where timelines parted.
    pub(crate) forks: &'f Forks,
}

/// Whom a standby's `primary_conninfo` leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Leads {
    Nowhere,
    /// To the standby itself.
    Itself,
    /// To the node that is to be followed.
    ToTheRuler,
    /// To a node that took writes when it was last heard, and was replaced.
    ToTheReplaced,
    /// To another standby.
    ToStandby(String),
    /// To a node of which is not known what it is.
    ToUnheard(String),
    /// To several, of which the server takes one.
    ToSeveral {
        /// It takes the one that takes writes.
        finds: bool,
    },
    /// To somebody else, at this address.
    Elsewhere(String),
    /// It is written in a way that is not understood.
    Unreadable,
    /// The role may not read it. What mends that.
    Hidden(String),
}

/// What a standby's startup process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Replay {
    /// It has replayed every whole record that was received.
    Done,
    /// It replays, or that is not known.
    Busy,
    /// Somebody has paused or delayed it.
    Held,
}

/// The slot on the new primary that a standby asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) name: String,
    pub(crate) state: SlotState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SlotState {
    Missing,
    Free,
    /// Another standby streams from it.
    InUse,
    /// The log that it should keep was removed.
    Lost,
    /// It is a slot for logical replication.
    Logical,
}

/// A standby, by its own word.
#[derive(Clone, Debug)]
pub(crate) struct Standby {
    /// Its log is on this timeline.
    pub(crate) timeline: u32,
    /// And on no newer one, for sure.
    pub(crate) exact: bool,
    pub(crate) replayed: Option<Lsn>,
    pub(crate) received: Option<Lsn>,
    pub(crate) replay: Replay,
    /// The timeline that it receives, if it receives anything.
    pub(crate) streams: Option<u32>,
    pub(crate) leads: Leads,
    /// Its `recovery_target_timeline`.
    pub(crate) target_timeline: String,
    pub(crate) slot: Option<Slot>,
    /// The statements that give the role the rights that it lacks.
    pub(crate) grants: Option<String>,
    /// How long it has not followed, or has not since it was told, as far as this process has seen.
    pub(crate) waits: Duration,
}

/// What to do about a standby.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing: it follows.
    Nothing,
    /// Nothing yet.
    Wait(Wait),
    /// Make its slot on the ruler, and decide again.
    MakeSlot(String),
    /// Have its `primary_conninfo` lead to the ruler.
    Repoint,
    /// Leave it: an operator has to do something.
    Leave(Left),
}

/// Why nothing is done yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// No server says now that it is the primary that everybody is to follow.
    NoRuler,
    /// It follows another standby, and goes where that goes.
    Cascades(String),
    /// It has not replayed all that it has received, so it is not known whether it can follow.
    Replays,
    /// Where the new timeline began is not known yet.
    NoFork,
    /// It was told.
    Told,
    /// It follows somebody who is no node of this pool.
    Elsewhere,
}

/// Why a standby is left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// It has log from beyond the point at which the new timeline began.
    Diverged {
        at: Position,
        replayed: bool,
    },
    /// Its `recovery_target_timeline` is another.
    NotLatest(String),
    FollowsNobody,
    ToUnheard(String),
    ToSeveral,
    Elsewhere(String),
    Unreadable,
    /// What mends it.
    Rights(String),
    Slot {
        name: String,
        ruler: String,
        why: SlotState,
    },
    /// It was told, and does not follow.
    Silent {
        ruler: String,
    },
}

/// What to do about this standby now.
pub(crate) fn next(standby: &Standby, ruler: &Ruler<'_>) -> Step {
    // A newer promotion has decided otherwise, perhaps.
    let outdated = ruler.timeline < ruler.newest || ruler.timeline < standby.timeline;
    if !ruler.rules || outdated {
        return Step::Wait(Wait::NoRuler);
    }
    if standby.streams.is_some_and(|its| its >= ruler.timeline) {
        return Step::Nothing;
    }
    match &standby.leads {
        Leads::Hidden(grants) => return Step::Leave(Left::Rights(grants.clone())),
        Leads::ToStandby(name) => return Step::Wait(Wait::Cascades(name.clone())),
        _ => {}
    }
    if let Some(step) = ahead(standby, ruler) {
        return step;
    }
    if standby.target_timeline != "latest" {
        return Step::Leave(Left::NotLatest(standby.target_timeline.clone()));
    }
    let left = match &standby.leads {
        Leads::ToTheRuler | Leads::ToSeveral { finds: true } => return awaited(standby, ruler),
        Leads::ToTheReplaced | Leads::Itself => return repoint(standby, ruler),
        Leads::Nowhere => Left::FollowsNobody,
        Leads::ToUnheard(name) => Left::ToUnheard(name.clone()),
        Leads::ToSeveral { finds: false } => Left::ToSeveral,
        // A name may be about to move.
        Leads::Elsewhere(_) if standby.waits < PATIENCE => return Step::Wait(Wait::Elsewhere),
        Leads::Elsewhere(address) => Left::Elsewhere(address.clone()),
        Leads::Unreadable | Leads::Hidden(_) | Leads::ToStandby(_) => Left::Unreadable,
    };
    Step::Leave(left)
}

/// Whether it has log that the new timeline does not have.
fn ahead(standby: &Standby, ruler: &Ruler<'_>) -> Option<Step> {
    let place = |lsn| Position::new(standby.timeline, lsn);
    let fate = |lsn: Option<Lsn>| lsn.map(|lsn| ruler.forks.standing(place(lsn)));
    let left = |lsn: Option<Lsn>, replayed| {
        let at = place(lsn.unwrap_or(Lsn(0)));
        Some(Step::Leave(Left::Diverged { at, replayed }))
    };
    if standby.timeline >= ruler.timeline {
        return None;
    }
    if ruler.forks.current() < ruler.timeline {
        // Then the standby compares itself, before it goes over to another timeline.
        return (ruler.since < UNKNOWN).then_some(Step::Wait(Wait::NoFork));
    }
    if standby.exact && fate(standby.replayed) == Some(Survival::Lost) {
        return left(standby.replayed, true);
    }
    // The primary may have died in the middle of a record. What there is of that is never replayed.
    let beyond = fate(standby.received) == Some(Survival::Lost) && standby.exact;
    match standby.replay {
        Replay::Done => None,
        Replay::Held if beyond => left(standby.received, false),
        Replay::Busy if beyond => Some(Step::Wait(Wait::Replays)),
        Replay::Busy | Replay::Held => None,
    }
}

/// It leads to the ruler, and does not follow yet.
fn awaited(standby: &Standby, ruler: &Ruler<'_>) -> Step {
    if let Some(slot) = &standby.slot {
        match slot.state {
            SlotState::Missing => return Step::MakeSlot(slot.name.clone()),
            SlotState::Lost | SlotState::Logical => return slot_left(slot, ruler),
            // It is perhaps this one's own.
            SlotState::Free | SlotState::InUse => {}
        }
    }
    if standby.waits < PATIENCE {
        return Step::Wait(Wait::Told);
    }
    let ruler = ruler.name.clone();
    Step::Leave(Left::Silent { ruler })
}

fn repoint(standby: &Standby, ruler: &Ruler<'_>) -> Step {
    if let Some(grants) = &standby.grants {
        return Step::Leave(Left::Rights(grants.clone()));
    }
    // The slot is the last thing: one that nobody streams from keeps all log for ever.
    match &standby.slot {
        Some(slot) => match slot.state {
            SlotState::Missing => Step::MakeSlot(slot.name.clone()),
            SlotState::Free => Step::Repoint,
            SlotState::InUse | SlotState::Lost | SlotState::Logical => slot_left(slot, ruler),
        },
        None => Step::Repoint,
    }
}

fn slot_left(slot: &Slot, ruler: &Ruler<'_>) -> Step {
    Step::Leave(Left::Slot {
        name: slot.name.clone(),
        ruler: ruler.name.clone(),
        why: slot.state,
    })
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRuler => f.write_str("no server says now that it is the newest primary"),
            Self::Cascades(name) => write!(
                f,
                "it follows the standby `{name}`, and goes where that goes"
            ),
            Self::Replays => f.write_str("it has received log that it has not replayed yet"),
            Self::NoFork => f.write_str("where the new timeline began is not known yet"),
            Self::Elsewhere => f.write_str("it follows somebody who is no node of this pool"),
            Self::Told => {
                f.write_str("it leads to the new primary, and does not receive from it yet")
            }
        }
    }
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Diverged { at, replayed: true } => write!(
                f,
                "it has replayed log up to {at} that the new primary does not have"
            ),
            Self::Diverged { at, .. } => write!(
                f,
                "it has received log up to {at} that the new primary does not have, and its replay is paused or delayed"
            ),
            Self::NotLatest(value) => write!(
                f,
                "its `recovery_target_timeline` is `{value}`, so it goes to no other timeline: set it to `latest` and \
                 restart it"
            ),
            Self::FollowsNobody => f.write_str(
                "its `primary_conninfo` is empty: set it, if the standby is to follow somebody",
            ),
            Self::ToUnheard(name) => write!(
                f,
                "it follows `{name}`, which is away and not known to have been replaced as the primary: bring that back, \
                 or set `primary_conninfo`"
            ),
            Self::ToSeveral => f.write_str(
                "its `primary_conninfo` names several hosts: let it name all nodes, with `target_session_attrs=primary`",
            ),
            Self::Elsewhere(address) => write!(
                f,
                "its `primary_conninfo` leads to {address}, which is no node of this pool: if it is one, say so by \
                 `NodeConfig::replication_address`"
            ),
            Self::Unreadable => f.write_str(
                "its `primary_conninfo` names no host, or cannot be read: write one host into it",
            ),
            Self::Rights(grants) => write!(
                f,
                "this role may not tell it: {grants}. A grant that comes now does not reach it: let a superuser set its \
                 `primary_conninfo`"
            ),
            Self::Slot { name, ruler, why } => f.write_str(&of_slot(name, ruler, *why)),
            Self::Silent { ruler } => write!(
                f,
                "it was told to follow `{ruler}` and does not: its log says why (a refused login, a line that is missing \
                 in `pg_hba.conf` there, log that was removed there)"
            ),
        }
    }
}

/// Why a slot keeps a standby from following.
fn of_slot(name: &str, ruler: &str, why: SlotState) -> String {
    match why {
        SlotState::Missing | SlotState::Free => format!(
            "its `primary_slot_name` is `{name}`, and this role cannot make that slot on `{ruler}`: let the role do so \
             (`ALTER ROLE … REPLICATION`), or run `SELECT pg_create_physical_replication_slot('{name}', true)` there"
        ),
        SlotState::InUse => format!(
            "its slot `{name}` on `{ruler}` is used by another standby: give it a `primary_slot_name` of its own"
        ),
        SlotState::Lost => format!(
            "its slot `{name}` on `{ruler}` has lost its log: drop it (`pg_drop_replication_slot`)"
        ),
        SlotState::Logical => format!(
            "its slot `{name}` on `{ruler}` is one for logical replication: give it another `primary_slot_name`"
        ),
    }
}

#[cfg(test)]
mod tests;
