//! What happened, and whether it may: the invariants, and what they do not promise, counted.

use std::collections::BTreeMap;

use super::Millis;
use super::event::Kept;
use super::server::Server;
use crate::error::PromotionRefusal;

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
