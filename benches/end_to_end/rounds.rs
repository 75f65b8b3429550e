//! What was measured, and what it says: medians, quartiles and ratios.

use std::time::{Duration, Instant};

use super::common::quartiles;
use super::{
    Contender, NAMES, NO_PING, NO_PING_ON_REPLICA, OURS, OURS_ON_PRIMARY, Operation, PATIENCE, PING,
};

/// What one contender did in one round, per operation.
#[derive(Clone, Copy)]
pub(super) struct Turn {
    /// The median, in microseconds.
    pub(super) latency: f64,
    /// Processor time of this process, in microseconds.
    pub(super) processor: f64,
    /// Operations in a second.
    pub(super) throughput: f64,
}

/// The rounds of one operation; each has a turn of every contender.
pub(super) struct Rounds {
    rounds: Vec<Vec<Turn>>,
    contenders: usize,
    by_throughput: bool,
}

impl Rounds {
    pub(super) async fn run(
        contenders: &[Contender; NAMES.len()],
        operation: Operation,
        tasks: usize,
        count: usize,
    ) -> Self {
        let contenders = &contenders[..operation.contenders()];
        for contender in contenders {
            // Opens connections and prepares statements.
            contender.turn(operation, tasks).await;
        }
        let started = Instant::now();
        let mut rounds = Vec::with_capacity(count);
        while rounds.len() < count && started.elapsed() < PATIENCE {
            // Each goes first as often as last, and after one neighbour as often as the other.
            let mut order: Vec<usize> = (0..contenders.len()).collect();
            order.rotate_left(rounds.len() % contenders.len());
            if (rounds.len() / contenders.len()) % 2 == 1 {
                order.reverse();
            }
            let mut round = Vec::with_capacity(contenders.len());
            for place in order {
                let turn = contenders[place].turn(operation, tasks).await;
                round.push((place, turn));
            }
            round.sort_by_key(|(place, _)| *place);
            rounds.push(round.into_iter().map(|(_, turn)| turn).collect());
        }
        Self {
            rounds,
            contenders: contenders.len(),
            by_throughput: tasks > 1,
        }
    }

    fn quartiles(&self, place: usize, of: impl Fn(&Turn) -> f64) -> [f64; 3] {
        quartiles(self.rounds.iter().map(|round| of(&round[place])).collect())
    }

    /// How long an operation takes, to compare contenders by.
    fn time(&self, turn: &Turn) -> f64 {
        if self.by_throughput {
            turn.throughput.recip()
        } else {
            turn.latency
        }
    }

    /// The ratio of what the faster rounds of each took: what is left when the machine is quiet.
    fn quiet_ratio(&self, place: usize, other: usize) -> f64 {
        let quiet = |place| self.quartiles(place, |turn| self.time(turn))[0];
        quiet(place) / quiet(other)
    }

    /// How many times as long one contender takes as another: the quartiles over the rounds.
    fn ratio(&self, place: usize, other: usize) -> [f64; 3] {
        let ratio = |round: &Vec<Turn>| self.time(&round[place]) / self.time(&round[other]);
        quartiles(self.rounds.iter().map(ratio).collect())
    }

    pub(super) fn print(&self, title: &str) {
        println!("{title} ({} rounds)", self.rounds.len());
        println!(
            "  {:<29} {:>17} {:>9} {:>7}   {:<24} {:<17}",
            "", "latency us", "client us", "ops/s", "to no ping (when quiet)", "to this pool"
        );
        for (place, name) in NAMES.iter().enumerate().take(self.contenders) {
            let [quick, latency, _] = self.quartiles(place, |turn| turn.latency);
            let [_, processor, _] = self.quartiles(place, |turn| turn.processor);
            let [_, throughput, _] = self.quartiles(place, |turn| turn.throughput);
            let [low, ratio, high] = self.ratio(place, NO_PING);
            println!(
                "  {name:<29} {latency:>7.1} ({quick:>7.1}) {processor:>9.1} {throughput:>7.0}   \
                 {ratio:.2} [{low:.2}-{high:.2}] ({:.2})   {:.2} ({:.2})",
                self.quiet_ratio(place, NO_PING),
                self.ratio(place, OURS)[1],
                self.quiet_ratio(place, OURS),
            );
        }
        println!();
    }

    pub(super) fn print_targets(&self, title: &str) {
        let target = |place: usize, other: usize, bound: &str, met: fn(f64) -> bool| {
            let (ratio, quiet) = (self.ratio(place, other)[1], self.quiet_ratio(place, other));
            let verdict = |ratio| if met(ratio) { "met" } else { "missed" };
            println!(
                "  {title:<35} {:<29} / {:<29} {bound}: {ratio:.2} {} ({quiet:.2} {})",
                NAMES[place],
                NAMES[other],
                verdict(ratio),
                verdict(quiet),
            );
        };
        target(PING, OURS, ">= 1.30", |ratio| ratio >= 1.3);
        target(OURS, NO_PING, "<= 1.05", |ratio| ratio <= 1.05);
        target(OURS_ON_PRIMARY, NO_PING, "<= 1.05", |ratio| ratio <= 1.05);
        if self.contenders > NO_PING_ON_REPLICA {
            target(OURS, NO_PING_ON_REPLICA, "<= 1.05", |ratio| ratio <= 1.05);
        }
    }
}

pub(super) fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}
