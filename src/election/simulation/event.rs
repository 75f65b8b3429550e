//! What can happen: the turns of processes and servers, messages between them, and faults.

use std::time::Duration;

use super::Millis;
use crate::election::promotion::attempt;

pub(super) type Order = attempt::Order<Millis>;

/// One life of a process: after a crash it knows nothing of what it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Who {
    pub(super) process: usize,
    pub(super) life: u32,
}

/// A write of a process's, from the connection that it got.
#[derive(Clone, Copy, Debug)]
pub(super) struct Write {
    pub(super) of: Who,
    pub(super) server: usize,
    pub(super) generation: u64,
}

/// An acknowledged write.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kept {
    pub(super) record: u64,
    /// Its place in the log.
    pub(super) end: usize,
    pub(super) timeline: u32,
    pub(super) promotion: usize,
    /// When enough servers had it.
    pub(super) flushed: Millis,
    pub(super) of: Who,
}

/// What a server says of itself.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) timeline: u32,
    pub(super) end: u64,
    pub(super) place: Place,
}

#[derive(Clone, Debug)]
pub(super) enum Place {
    Primary {
        confirming: usize,
        history: Vec<Segment>,
    },
    Standby {
        /// The timeline, whom it follows if it does, and how long ago it heard of that.
        receiver: Option<(u32, Option<usize>, Duration)>,
    },
}

/// A timeline in a server's history: where it begins, and by which promotion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) timeline: u32,
    /// How many records precede it.
    pub(super) begins: usize,
    /// The number of the promotion in the ledger. Two timelines may have one number, promotions do not.
    pub(super) promotion: usize,
}

#[derive(Clone, Debug)]
pub(super) enum Request {
    Facts {
        number: u64,
    },
    Write {
        write: Write,
    },
    Heartbeat,
    Open {
        attempt: u64,
        step: u32,
    },
    Lock {
        attempt: u64,
        step: u32,
    },
    Ask {
        attempt: u64,
        step: u32,
    },
    Promote {
        attempt: u64,
        step: u32,
        asked: Millis,
        newest: u32,
        order: Order,
    },
    Close {
        attempt: u64,
    },
    /// That nobody else takes the primary's place meanwhile.
    Claim {
        number: u64,
        step: u32,
    },
    Look {
        number: u64,
        step: u32,
    },
    Fence {
        number: u64,
        step: u32,
    },
    Lift {
        number: u64,
        step: u32,
    },
}

#[derive(Clone, Debug)]
pub(super) enum Reply {
    Facts {
        number: u64,
        facts: Facts,
    },
    Refused {
        number: u64,
    },
    Written {
        write: Write,
        kept: Kept,
    },
    Opened {
        attempt: u64,
        step: u32,
    },
    Locked {
        attempt: u64,
        step: u32,
        taken: bool,
    },
    Told {
        attempt: u64,
        step: u32,
        facts: Facts,
        /// What the server's clock showed before.
        at: Millis,
    },
    Promoting {
        attempt: u64,
        step: u32,
    },
    /// The order does not hold any more.
    Outdated {
        attempt: u64,
        step: u32,
    },
    Broken {
        attempt: u64,
        step: u32,
    },
    Claimed {
        number: u64,
        step: u32,
        taken: bool,
    },
    Seen {
        number: u64,
        step: u32,
        facts: Facts,
    },
    /// Nobody writes there any more; its log ends there.
    Fenced {
        number: u64,
        step: u32,
        end: u64,
    },
    Lifted {
        number: u64,
        step: u32,
    },
    /// The connection of a switchover is gone.
    Lost {
        number: u64,
        step: u32,
    },
}

impl Reply {
    pub(super) fn of_attempt(&self) -> (u64, u32) {
        match self {
            Self::Opened { attempt, step }
            | Self::Locked { attempt, step, .. }
            | Self::Told { attempt, step, .. }
            | Self::Promoting { attempt, step }
            | Self::Outdated { attempt, step }
            | Self::Broken { attempt, step } => (*attempt, *step),
            Self::Claimed { number, step, .. }
            | Self::Seen { number, step, .. }
            | Self::Fenced { number, step, .. }
            | Self::Lifted { number, step }
            | Self::Lost { number, step } => (*number, *step),
            _ => (0, 0),
        }
    }
}

#[derive(Clone, Debug)]
pub(super) enum Event {
    // What processes do, and when.
    Poll {
        of: Who,
        server: usize,
    },
    Round {
        of: Who,
    },
    Write {
        of: Who,
    },
    Send {
        write: Write,
    },
    Auto {
        of: Who,
    },
    Limit {
        of: Who,
        number: u64,
        step: u32,
    },
    Step {
        of: Who,
        number: u64,
        step: u32,
    },
    /// The same of switchovers.
    Switch {
        of: Who,
        number: u64,
        step: u32,
    },
    Late {
        of: Who,
        number: u64,
        step: u32,
    },
    // Messages.
    Request {
        of: Who,
        server: usize,
        /// The server's when it was sent: no connection outlives that.
        boot: u32,
        request: Request,
    },
    Reply {
        of: Who,
        server: usize,
        reply: Reply,
    },
    // What servers do.
    Follow {
        server: usize,
    },
    Deliver {
        server: usize,
        stream: u64,
        end: usize,
    },
    Flushed {
        server: usize,
        by: usize,
        stream: u64,
        /// How far, and when.
        has: (usize, Millis),
    },
    Broken {
        server: usize,
        stream: u64,
    },
    Promoted {
        server: usize,
        boot: u32,
        asked: Millis,
        newest: u32,
        /// In the place of a primary that gave way.
        yielded: bool,
    },
    Restartpoint {
        server: usize,
    },
    Keepalive {
        server: usize,
        attempt: u64,
    },
    // What is done to them.
    Fault,
    Switchover,
    Restart {
        server: usize,
    },
    Revive {
        process: usize,
    },
    Agent,
    Rebuilt {
        server: usize,
        from: usize,
    },
}

impl Event {
    /// The server at which it happens.
    pub(super) fn server(&self) -> usize {
        match self {
            Self::Request { server, .. }
            | Self::Follow { server }
            | Self::Deliver { server, .. }
            | Self::Flushed { server, .. }
            | Self::Broken { server, .. }
            | Self::Promoted { server, .. }
            | Self::Restartpoint { server }
            | Self::Keepalive { server, .. }
            | Self::Restart { server }
            | Self::Rebuilt { server, .. }
            | Self::Poll { server, .. }
            | Self::Reply { server, .. } => *server,
            _ => 0,
        }
    }
}

/// What happens, and when; of a moment in the order in which it was put.
pub(super) struct Due {
    pub(super) at: Millis,
    pub(super) order: u64,
    pub(super) event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}
