//! A server as PostgreSQL is one: its log and timelines, its role, whom it follows, its locks.

use std::time::Duration;

use super::event::{Facts, Order, Place, Segment, Who};
use super::{Millis, VALID};
use crate::election::promotion::Premise;

/// A standby's connection to whom it follows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stream {
    pub(super) number: u64,
    pub(super) from: usize,
    /// The sender's; after its crash nothing comes any more.
    pub(super) boot: u32,
    /// When something came over it.
    pub(super) heard: Millis,
    /// Something is on its way over it.
    pub(super) shipping: bool,
}

/// A commit that waits for standbys.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pending {
    pub(super) record: u64,
    pub(super) end: usize,
    pub(super) of: Who,
    pub(super) generation: u64,
}

/// A connection over which a process asks for a vote.
#[derive(Clone, Copy, Debug)]
pub(super) struct Session {
    pub(super) attempt: u64,
    pub(super) of: Who,
    /// Since when its process cannot be heard.
    pub(super) silent_since: Option<Millis>,
}

#[derive(Clone, Debug)]
pub(super) struct Server {
    pub(super) up: bool,
    pub(super) since: Millis,
    pub(super) frozen_until: Millis,
    /// It is being copied anew from the primary.
    pub(super) rebuilding: bool,
    pub(super) boot: u32,
    pub(super) primary: bool,
    pub(super) promoting: bool,
    /// The records, each of which is written once in the whole world: two logs with the same record at
    /// a place are the same up to there.
    pub(super) log: Vec<u64>,
    pub(super) history: Vec<Segment>,
    /// The newest timeline of which it has a history file.
    pub(super) heard_of: u32,
    /// The timeline in its control file: that of the last restartpoint.
    pub(super) control: u32,
    pub(super) upstream: usize,
    pub(super) stream: Option<Stream>,
    /// It reaches whom it would follow, and is ahead of the fork.
    pub(super) waiting: bool,
    /// How far each standby has flushed, and when it did, as far as this one has heard.
    pub(super) flushed: Vec<(usize, Millis)>,
    pub(super) pending: Vec<Pending>,
    pub(super) sessions: Vec<Session>,
    pub(super) lock: Option<u64>,
    /// Nobody but who sets it may write there, since when. It outlives a crash.
    pub(super) fenced: Option<Millis>,
    /// Who may do that.
    pub(super) claim: Option<u64>,
}

impl Server {
    pub(super) fn new(place: usize, servers: usize, upstream: usize) -> Self {
        let first = Segment {
            timeline: 1,
            begins: 0,
            promotion: 0,
        };
        Self {
            up: true,
            since: 0,
            frozen_until: 0,
            rebuilding: false,
            boot: 0,
            primary: place == 0,
            promoting: false,
            log: vec![0],
            history: vec![first],
            heard_of: 1,
            control: 1,
            upstream,
            stream: None,
            waiting: false,
            flushed: vec![(0, 0); servers],
            pending: Vec::new(),
            sessions: Vec::new(),
            lock: None,
            fenced: None,
            claim: None,
        }
    }

    pub(super) fn timeline(&self) -> u32 {
        self.history[self.history.len() - 1].timeline
    }

    pub(super) fn promotion(&self) -> usize {
        self.history[self.history.len() - 1].promotion
    }

    pub(super) fn is_frozen(&self, now: Millis) -> bool {
        self.frozen_until > now
    }

    pub(super) fn rules(&self) -> bool {
        self.up && self.primary
    }

    /// Whether this is the number of its connection to whom it follows.
    pub(super) fn streams(&self, number: u64) -> bool {
        self.stream.is_some_and(|stream| stream.number == number)
    }

    /// What it does not lose, and what it does.
    pub(super) fn crash(&mut self) {
        self.up = false;
        self.promoting = false;
        self.frozen_until = 0;
        self.stream = None;
        self.waiting = false;
        self.flushed.fill((0, 0));
        self.pending.clear();
        self.sessions.clear();
        self.lock = None;
        self.claim = None;
    }

    pub(super) fn start(&mut self, now: Millis) {
        self.up = true;
        self.rebuilding = false;
        self.since = now;
        self.boot += 1;
    }

    /// As `node::Order` is judged by the server.
    pub(super) fn is_to_obey(&self, order: &Order, now: Millis) -> bool {
        let heard = |age: Duration| {
            let ago = |stream: Stream| Duration::from_millis(now.saturating_sub(stream.heard));
            self.stream.is_some_and(|stream| ago(stream) < age)
        };
        let holds = match order.rests_on {
            Premise::Lately => true,
            Premise::NotHeard(age) => !heard(age),
            Premise::NoMore(has) => self.log.len() as u64 <= has.0,
        };
        holds && now < order.clock + VALID
    }

    pub(super) fn end_session(&mut self, attempt: u64) {
        self.sessions.retain(|session| session.attempt != attempt);
        for held in [&mut self.lock, &mut self.claim] {
            *held = held.filter(|held| *held != attempt);
        }
    }

    pub(super) fn has_session(&self, attempt: u64) -> bool {
        self.sessions
            .iter()
            .any(|session| session.attempt == attempt)
    }

    /// Whether this log is a part of the other's, up to its end.
    pub(super) fn is_part_of(&self, other: &Self) -> bool {
        other.log.get(self.log.len() - 1) == self.log.last()
    }

    /// Takes over the other's log up to `end`.
    pub(super) fn copy(&mut self, other: &Self, end: usize) {
        if end > self.log.len() {
            self.log.extend_from_slice(&other.log[self.log.len()..end]);
            let begun = other.history.iter().filter(|segment| segment.begins < end);
            self.history = begun.copied().collect();
        }
    }

    pub(super) fn facts(&self, confirming: usize, now: Millis) -> Facts {
        let end = self.log.len() as u64;
        if self.primary {
            return Facts {
                timeline: self.timeline(),
                end,
                place: Place::Primary {
                    confirming,
                    history: self.history.clone(),
                },
            };
        }
        let own = self.timeline();
        let receiver = match self.stream {
            Some(stream) => {
                let silent = Duration::from_millis(now.saturating_sub(stream.heard));
                Some((own, Some(stream.from), silent))
            }
            None => self.waiting.then_some((own, None, Duration::ZERO)),
        };
        let told = receiver.map_or(self.control, |(timeline, ..)| timeline.max(self.control));
        Facts {
            timeline: told,
            end,
            place: Place::Standby { receiver },
        }
    }
}
