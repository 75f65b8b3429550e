//! What happened, and whether it may: the invariants, and what they do not promise, counted.

use std::collections::BTreeMap;

use super::Millis;
use super::attempt::VALID;
use super::event::Order;
use super::process::Who;
use super::server::Server;
use super::world::World;
use crate::election::promotion::{Premise, Role, needed};
use crate::error::PromotionRefusal;

/// For so long at the most does a process write to a primary that was replaced by one which it reaches.
const FRESH: Millis = 4_000;

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

/// A promotion, by its number; 0 is the beginning.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Promotion {
    pub(super) parent: usize,
    pub(super) timeline: u32,
    /// When its process began to ask the servers.
    pub(super) asked: Millis,
    /// The newest timeline that the process knew of.
    pub(super) newest: u32,
    /// In the place of a primary that gave way.
    pub(super) yielded: bool,
    /// When it takes writes.
    pub(super) opened: Millis,
}

/// Sums over many runs.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    pub(super) runs: u64,
    pub(super) events: u64,
    pub(super) attempts: u64,
    pub(super) promotions: u64,
    pub(super) refusals: BTreeMap<&'static str, u64>,
    pub(super) acknowledged: u64,
    /// Lost though synchronous: acknowledged by a primary that was being replaced or had been.
    pub(super) beside: u64,
    /// Lost though synchronous: who promoted did not know of the timeline.
    pub(super) unaware: u64,
    /// Lost though synchronous: an operator had to choose between two of one timeline.
    pub(super) chosen: u64,
    /// Lost with asynchronous replication.
    pub(super) asynchronous: u64,
    /// A server's lock was lost before the decision that counted on it.
    pub(super) lapsed: u64,
    /// Two processes acted at a time.
    pub(super) overlapping: u64,
    /// Promotions to a timeline of a number that another had.
    pub(super) twins: u64,
    /// Processes that wrote to two servers on one timeline.
    pub(super) changed_sides: u64,
    pub(super) rebuilt: u64,
    /// Switchovers that were asked for, and that were made.
    pub(super) switchovers: u64,
    pub(super) switched: u64,
    /// The longest that it took to recover after the faults.
    pub(super) recovery: Millis,
}

impl Counts {
    pub(super) fn add(&mut self, other: &Self) {
        self.runs += other.runs;
        self.events += other.events;
        self.attempts += other.attempts;
        self.promotions += other.promotions;
        for (reason, times) in &other.refusals {
            *self.refusals.entry(reason).or_default() += times;
        }
        self.acknowledged += other.acknowledged;
        self.beside += other.beside;
        self.unaware += other.unaware;
        self.chosen += other.chosen;
        self.asynchronous += other.asynchronous;
        self.lapsed += other.lapsed;
        self.overlapping += other.overlapping;
        self.twins += other.twins;
        self.changed_sides += other.changed_sides;
        self.rebuilt += other.rebuilt;
        self.switchovers += other.switchovers;
        self.switched += other.switched;
        self.recovery = self.recovery.max(other.recovery);
    }
}

#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub(super) counts: Counts,
    pub(super) kept: Vec<Kept>,
    pub(super) promotions: Vec<Promotion>,
    /// The first that did not hold.
    pub(super) violation: Option<String>,
    used: BTreeMap<(usize, u32, u32), usize>,
    numbers: u64,
}

impl Ledger {
    pub(super) fn new() -> Self {
        Self {
            promotions: vec![Promotion {
                timeline: 1,
                ..Promotion::default()
            }],
            ..Self::default()
        }
    }

    /// A number that was not used before.
    pub(super) fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    pub(super) fn violated(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    pub(super) fn refused(&mut self, reasons: &[PromotionRefusal]) {
        for reason in reasons {
            let name = match reason {
                PromotionRefusal::PrimaryAlive { .. } => "primary alive",
                PromotionRefusal::PrimaryHeard { .. } => "primary heard",
                PromotionRefusal::NoMajority { .. } => "no majority",
                PromotionRefusal::Overtaken { .. } => "overtaken",
                PromotionRefusal::NoCandidate { .. } => "no candidate",
                PromotionRefusal::Outdated { .. } => "outdated",
                PromotionRefusal::NotPromotable { .. } => "not promotable",
                PromotionRefusal::Behind { .. } => "behind",
                PromotionRefusal::WouldLose { .. } => "would lose",
                PromotionRefusal::SynchronousMissing { .. } => "synchronous missing",
            };
            *self.counts.refusals.entry(name).or_default() += 1;
        }
    }

    pub(super) fn promoted(&mut self, promotion: Promotion) -> usize {
        let alike = |other: &Promotion| other.timeline == promotion.timeline;
        self.counts.twins += u64::from(self.promotions.iter().any(alike));
        self.counts.promotions += 1;
        self.promotions.push(promotion);
        self.promotions.len() - 1
    }

    pub(super) fn acknowledged(&mut self, kept: Kept) {
        self.counts.acknowledged += 1;
        let key = (kept.of.process, kept.of.life, kept.timeline);
        let used = *self.used.entry(key).or_insert(kept.promotion);
        self.counts.changed_sides += u64::from(used != kept.promotion);
        self.kept.push(kept);
    }

    /// The promotions that led to this one, itself included, the latest first.
    fn chain(&self, mut promotion: usize) -> Vec<usize> {
        let mut chain = vec![promotion];
        while promotion != 0 {
            promotion = self.promotions[promotion].parent;
            chain.push(promotion);
        }
        chain
    }

    /// What of that which was acknowledged `last` does not have, and whether it had to; `all` standbys
    /// confirm, or some.
    pub(super) fn audit(&mut self, last: &Server, synchronous: bool, operated: bool, all: bool) {
        let chain = self.chain(last.promotion());
        for write in std::mem::take(&mut self.kept) {
            if last.log.get(write.end - 1) == Some(&write.record) {
                continue;
            }
            let its = self.chain(write.promotion);
            let parted = chain.iter().rev().find(|it| !its.contains(it));
            let parted = parted.map(|it| self.promotions[*it]);
            let before = |it: &Promotion| write.flushed < it.opened && it.newest >= write.timeline;
            if parted.filter(|it| it.yielded).is_some_and(|it| before(&it)) {
                self.violated(format!("{write:?} was lost by a switchover"));
            }
            if !synchronous {
                self.counts.asynchronous += 1;
                continue;
            }
            match parted {
                Some(it) if it.newest < write.timeline => self.counts.unaware += 1,
                Some(it) if write.flushed >= it.asked && !all => self.counts.beside += 1,
                _ if operated => self.counts.chosen += 1,
                parted => self.violated(format!("{write:?} was lost by {parted:?}")),
            }
        }
    }
}

impl World {
    /// Before a write leaves its process.
    pub(super) fn check_write(&mut self, write: &Write) {
        let process = &self.processes[write.of.process];
        if process.is_confused() {
            self.ledger.violated(format!(
                "p{} has an overtaken primary, or two",
                write.of.process
            ));
        }
        let target = &self.servers[write.server];
        let well_since = |place: usize, server: &Server| {
            let ends = (
                super::network::End::Process(write.of.process),
                super::network::End::Server(place),
            );
            let link = self.network.well_since(ends.0, ends.1);
            let awake = server.frozen_until.max(process.frozen_until);
            link.max(awake).max(server.since).max(process.since)
        };
        let replaced = |(place, server): (usize, &Server)| {
            server.rules()
                && server.timeline() > target.timeline()
                && self.now.saturating_sub(well_since(place, server)) > FRESH
        };
        if target.rules() && self.servers.iter().enumerate().any(replaced) {
            self.ledger.violated(format!(
                "p{} writes to s{}, which was replaced long ago",
                write.of.process, write.server
            ));
        }
    }

    /// Before a server does what it was told.
    pub(super) fn check_order(&mut self, place: usize, order: &Order) {
        let late = self.now.saturating_sub(order.clock);
        let stream = self.servers[place].stream;
        let ago = stream.map(|stream| self.now.saturating_sub(stream.heard));
        let by_primary = |from: usize| {
            let sender = &self.servers[from];
            sender.rules() && sender.timeline() == self.servers[place].timeline()
        };
        let yielded = order.rests_on == Premise::Lately;
        let heard = !yielded
            && stream.is_some_and(|stream| by_primary(stream.from))
            && ago.is_some_and(|ago| ago < self.plan.witness_age);
        if late > VALID || heard {
            self.ledger.violated(format!(
                "s{place} is promoted by an order of {late} ms ago, and has heard {ago:?} ago"
            ));
        }
    }

    /// When a process has decided to promote `place`.
    pub(super) fn check_decision(&mut self, of: Who, place: usize) {
        let process = &self.processes[of.process];
        let Some(attempt) = &process.attempt else {
            return;
        };
        let needed = needed(self.servers.len());
        let votes = |number: u64| {
            let mine = |server: &&Server| server.lock == Some(number);
            self.servers.iter().filter(mine).count()
        };
        let mut wrong = None;
        let (voters, newest) = (attempt.voters(), attempt.newest());
        let believed = voters.iter().filter(|voter| voter.vote.is_ok());
        if believed.count() < needed {
            wrong = Some("without a majority");
        }
        let yielding = attempt.yielding;
        let others = voters.iter().enumerate();
        let others = others.filter(|(place, _)| yielding != Some(*place));
        let answers = others.filter_map(|(_, voter)| voter.answer);
        let rules = |role| role == Role::TakesWrites;
        if answers
            .clone()
            .any(|it| it.timeline > newest || rules(it.role) && it.timeline == newest)
        {
            wrong = Some("beside a primary that told so");
        }
        for (voter, server) in voters.iter().zip(&self.servers) {
            if voter.vote.is_ok() && server.lock != Some(attempt.number) {
                self.ledger.counts.lapsed += 1;
                if server.has_session(attempt.number) {
                    wrong = Some("by a lock that another has");
                }
            }
            let heard = server.stream.is_some_and(|stream| {
                let primary = &self.servers[stream.from];
                let before = attempt.asked.is_some_and(|asked| stream.heard < asked);
                let lately = self.now - stream.heard < self.plan.witness_age;
                primary.rules() && primary.timeline() == newest && before && lately
            });
            if voter.answer.is_some() && heard && yielding.is_none() {
                wrong = Some("beside a primary that a replica hears of");
            }
        }
        let others = self.processes.iter().filter(|other| other.who != of);
        for other in others.filter_map(|other| other.attempt.as_ref()) {
            if other.acts() {
                self.ledger.counts.overlapping += 1;
                if votes(other.number) >= needed && votes(attempt.number) >= needed {
                    wrong = Some("while another has a majority");
                }
            }
        }
        if let Some(wrong) = wrong {
            let who = of.process;
            self.ledger
                .violated(format!("p{who} decides to promote s{place} {wrong}"));
        }
    }
}
