//! What one side's visitors have met.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::super::faults::lock;

/// How many rows are looked after; a demonstration has fewer.
const KEPT: usize = 20_000;

/// What is shown of one side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Figures {
    requests: u64,
    /// Requests that failed, or took too long.
    errors: u64,
    /// Of these, writes that may have been done. Only an error that says so is counted.
    in_doubt: u64,
    /// Reads that did not show what the same visitor had written just before.
    stale_reads: u64,
    /// Rows that the database has confirmed.
    rows: u64,
    /// Of these, rows that a server has taken after another one had replaced it as the primary.
    replaced_writes: u64,
    /// Confirmed rows that the primary does not have.
    lost_rows: u64,
    /// The longest time in which no request of anybody went well, in seconds.
    longest_pause: f64,
    /// The longest time that a request took.
    slowest: f64,
}

impl Figures {
    pub(crate) fn has_rows(&self) -> bool {
        self.rows > 0
    }
}

/// Counts, and can begin anew.
#[derive(Debug, Default)]
pub(crate) struct Tally(Mutex<Counted>);

#[derive(Debug, Default)]
struct Counted {
    figures: Figures,
    confirmed: BTreeSet<i64>,
    /// When a request went well last; nothing while nobody comes.
    last: Option<Instant>,
    /// Grows with each new beginning.
    beginnings: u64,
}

impl Tally {
    /// A pause that still goes on counts as long as it has lasted.
    pub(crate) fn figures(&self) -> Figures {
        let mut counted = lock(&self.0);
        counted.pause();
        counted.figures
    }

    /// Forgets everything.
    pub(crate) fn begin(&self) {
        let mut counted = lock(&self.0);
        *counted = Counted {
            last: counted.last.map(|_| Instant::now()),
            beginnings: counted.beginnings + 1,
            ..Counted::default()
        };
    }

    /// Visitors come from now on, or no longer.
    pub(crate) fn visited(&self, now: bool) {
        let mut counted = lock(&self.0);
        counted.pause();
        counted.last = now.then(Instant::now);
    }

    pub(super) fn answered(&self, took: Duration) {
        let mut counted = lock(&self.0);
        counted.pause();
        counted.last = Some(Instant::now());
        counted.request(took);
    }

    pub(super) fn failed(&self, took: Duration, in_doubt: bool) {
        let mut counted = lock(&self.0);
        counted.figures.errors += 1;
        counted.figures.in_doubt += u64::from(in_doubt);
        counted.request(took);
    }

    pub(super) fn wrote(&self, row: i64, replaced: bool) {
        let mut counted = lock(&self.0);
        counted.figures.rows += 1;
        counted.figures.replaced_writes += u64::from(replaced);
        if counted.confirmed.len() < KEPT {
            counted.confirmed.insert(row);
        }
    }

    /// A visitor has looked for what they had written.
    pub(super) fn looked(&self, saw_it: bool) {
        lock(&self.0).figures.stale_reads += u64::from(!saw_it);
    }

    /// The rows that were confirmed by now, since which beginning.
    pub(super) fn confirmed(&self) -> (u64, Vec<i64>) {
        let counted = lock(&self.0);
        (
            counted.beginnings,
            counted.confirmed.iter().copied().collect(),
        )
    }

    pub(super) fn lost(&self, beginning: u64, rows: u64) {
        let mut counted = lock(&self.0);
        if counted.beginnings == beginning {
            counted.figures.lost_rows = rows;
        }
    }
}

impl Counted {
    fn request(&mut self, took: Duration) {
        self.figures.requests += 1;
        self.figures.slowest = self.figures.slowest.max(took.as_secs_f64());
    }

    fn pause(&mut self) {
        if let Some(last) = self.last {
            let pause = last.elapsed().as_secs_f64();
            self.figures.longest_pause = self.figures.longest_pause.max(pause);
        }
    }
}
