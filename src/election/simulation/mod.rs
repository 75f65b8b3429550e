//! A simulation of elections and promotions: servers, a network and processes with a virtual clock.
//!
//! The pure rules of `election` decide; everything around them is played here, in one thread and by a
//! seed. Servers behave as PostgreSQL does (logs that fork, timelines numbered by whoever promotes, locks
//! that end with their connection, a control file that is behind), processes as `cluster` does, and
//! an outside agent re-points and rebuilds standbys. Servers and processes crash and freeze, links are
//! cut one way or both, or slow; then all is well again.
//!
//! What holds in every run:
//!
//! - who decides to promote has a majority, whose locks no other has; no server told it of a primary or of a
//!   newer timeline, and no replica that it asked had lately heard of the primary that it would replace;
//! - no server is promoted by an order that is older than who gave it waits, nor after it has heard of the primary
//!   again, however late the order comes;
//! - a process writes to one server at a time, which no timeline that it knows of has overtaken, and at
//!   most for four seconds to one that was replaced by a server which it reaches;
//! - with synchronous replication the last primary has every write that was acknowledged before who
//!   promoted asked the first server; with as many confirming as there are standbys, all that were ever;
//! - a switchover loses no write that was acknowledged before it, with asynchronous replication either;
//! - when the faults are over all processes agree on one primary on the newest timeline, and write.
//!
//! What is not promised happens, too, and is counted ([`ledger::Counts`]):
//!
//! - *beside*: a primary that was silent for long enough to be replaced comes back, standbys that
//!   nobody re-pointed confirm what it writes, and a process which does not reach the new one writes there;
//! - *twins*: who was promoted vanishes before anybody has followed, and the next majority knows nothing
//!   of it: two timelines of one number. Who sees both stops; who sees one after the other changes sides,
//!   and what was acknowledged on one of them may be lost (*unaware*);
//! - *lapsed*: a lock ends with its server's crash, before what it was taken for has been decided.
//!
//! `SIMULATION_RUNS` and `SIMULATION_SEED` say how many runs, and which; a failure tells its seed:
//! `SIMULATION_SEED=… SIMULATION_RUNS=1 cargo test --lib simulation`.

mod attempt;
mod chance;
mod checks;
mod event;
mod ledger;
mod network;
mod outside;
mod process;
mod server;
mod serving;
mod streaming;
mod switchover;
mod task;
mod world;

use crate::config::DeclaredRole;
use chance::Chance;
use event::Event;
use ledger::Counts;
use world::World;

/// Virtual time.
type Millis = u64;

const CLUSTER: u64 = 7;
/// `HealthConfig::interval` and `HealthConfig::timeout`.
const INTERVAL: Millis = 1_000;
const TIMEOUT: Millis = 1_000;
/// As `cluster::promotion` has it: so long after it was given an order is void.
const VALID: Millis = 2 * TIMEOUT;
/// After so long a server ends the connection of a process that is not heard.
const KEEPALIVE: Millis = 4_400;
/// The system has so long to recover when the faults are over.
const RECOVERY: Millis = 120_000;

/// Rules that can be switched off, to see that they matter.
#[derive(Clone, Copy, Debug)]
struct Rules {
    majority: bool,
    witness: bool,
    confirmers: bool,
    generations: bool,
    premise: bool,
    claims: bool,
}

const ALL: Rules = Rules {
    majority: true,
    witness: true,
    confirmers: true,
    generations: true,
    premise: true,
    claims: true,
};

/// What one run is made of.
#[derive(Clone, Debug)]
struct Plan {
    rules: Rules,
    servers: usize,
    processes: usize,
    declared: Vec<DeclaredRole>,
    priorities: Vec<u32>,
    /// So many standbys confirm a commit.
    confirming: usize,
    max_loss: u64,
    witness_age: Millis,
    after: Millis,
    write_quorum: bool,
    cascading: bool,
    faults: u64,
    switchovers: u64,
    faults_until: Millis,
}

impl Plan {
    fn new(chance: &mut Chance, rules: Rules) -> Self {
        let servers = [3, 3, 3, 4, 5][chance.place(5)];
        let knows = chance.percent(50);
        let declared = |place| match (knows, place) {
            (true, 0) => DeclaredRole::Primary,
            (true, _) => DeclaredRole::Replica,
            _ => DeclaredRole::Unknown,
        };
        let confirming = chance.place(3);
        Self {
            rules,
            servers,
            processes: [2, 2, 3, 3, 4, 6][chance.place(6)],
            declared: (0..servers).map(declared).collect(),
            priorities: (0..servers)
                .map(|_| [1, 1, 1, 1, 5, 0][chance.place(6)])
                .collect(),
            confirming,
            max_loss: if confirming > 0 {
                0
            } else {
                [0, 3, 1_000][chance.place(3)]
            },
            witness_age: chance.within(3_000, 10_000),
            after: 500,
            write_quorum: chance.percent(50),
            cascading: chance.percent(30),
            faults: chance.within(0, 10),
            switchovers: [0, 0, 1, 2, 4][chance.place(5)],
            faults_until: chance.within(15_000, 40_000),
        }
    }

    fn is_declared(&self, place: usize) -> bool {
        self.declared[place] == DeclaredRole::Primary
    }
}

/// One run: its counts, and what did not hold.
fn run(seed: u64, rules: Rules, traced: bool) -> (Counts, Option<String>, Vec<String>) {
    let mut chance = Chance::new(seed);
    let plan = Plan::new(&mut chance, rules);
    let until = plan.faults_until;
    let synchronous = plan.confirming > 0;
    let mut world = World::new(plan, chance, traced);
    for _ in 0..world.plan.faults {
        let at = world.chance.within(3_000, until - 1_000);
        world.at(at, Event::Fault);
    }
    let mut at = world.chance.within(3_000, until - 1_000);
    for _ in 0..world.plan.switchovers {
        world.at(at, Event::Switchover);
        // Two operators may ask two processes at once.
        at = match world.chance.percent(50) {
            true => at + world.chance.within(0, 2_000),
            false => world.chance.within(3_000, until - 1_000),
        };
    }
    world.after(2_000, Event::Agent);
    world.run(until);
    world.ledger.counts.recovery = world.recover(until);
    let newest = world.servers.iter().filter(|server| server.rules());
    if let Some(last) = newest.max_by_key(|server| server.timeline()).cloned() {
        let operated = world.operated;
        if world.ledger.violation.is_none() {
            let all = world.plan.confirming + 1 == world.plan.servers;
            world.ledger.audit(&last, synchronous, operated, all);
        }
    }
    world.ledger.counts.runs = 1;
    let trace = world.trace.take().unwrap_or_default();
    (world.ledger.counts, world.ledger.violation, trace)
}

impl World {
    /// Waits until all agree and write; how long that took.
    fn recover(&mut self, from: Millis) -> Millis {
        let mut until = from;
        while self.ledger.violation.is_none() {
            until += 1_000;
            self.run(until);
            if self.has_recovered(from) {
                break;
            }
            if until > from + RECOVERY {
                let views = self.processes.iter().map(|it| (it.past, it.takes_writes()));
                let views: Vec<_> = views.collect();
                self.ledger
                    .violated(format!("it does not recover: {views:?}"));
            }
        }
        until - from
    }

    fn has_recovered(&self, from: Millis) -> bool {
        let newest = self.servers.iter().map(|server| server.timeline()).max();
        let rules = |place: usize| {
            let server = &self.servers[place];
            server.rules() && Some(server.timeline()) == newest
        };
        let mut primaries = (0..self.servers.len()).filter(|place| rules(*place));
        let (Some(primary), None) = (primaries.next(), primaries.next()) else {
            return false;
        };
        let agrees = |place: usize| {
            let process = &self.processes[place];
            let wrote = process.wrote.is_some_and(|wrote| wrote > from);
            process.past.primary == Some(primary) && process.takes_writes() && wrote
        };
        (0..self.processes.len()).all(agrees)
    }
}

fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Many runs, each with a seed of its own; the first run's is `seed` itself.
fn run_many(seed: u64, runs: u64, rules: Rules) -> (Counts, Option<(u64, String)>) {
    let mut counts = Counts::default();
    let mut seeds = Chance::new(seed);
    let mut next = seed;
    for _ in 0..runs {
        let (some, violation, _) = run(next, rules, false);
        counts.add(&some);
        if let Some(what) = violation {
            return (counts, Some((next, what)));
        }
        next = seeds.next();
    }
    (counts, None)
}

#[test]
fn whatever_fails_the_invariants_hold_and_the_cluster_recovers() {
    let seed = from_env("SIMULATION_SEED", 20_260_101);
    let runs = from_env("SIMULATION_RUNS", 2_000);
    let begun = std::time::Instant::now();
    let (counts, violation) = run_many(seed, runs, ALL);
    println!("{counts:#?} in {:?}", begun.elapsed());
    if let Some((seed, what)) = violation {
        let (_, _, trace) = run(seed, ALL, true);
        let last = trace.len().saturating_sub(80);
        println!("{}", trace[last..].join("\n"));
        panic!("{what}\nSIMULATION_SEED={seed} SIMULATION_RUNS=1 cargo test --lib simulation");
    }
}

/// The invariants would be broken without the rules that keep them, and the simulation sees it.
#[test]
fn without_a_rule_an_invariant_breaks() {
    let without = [
        (
            "a majority",
            Rules {
                majority: false,
                ..ALL
            },
        ),
        (
            "witnesses",
            Rules {
                witness: false,
                ..ALL
            },
        ),
        (
            "confirmers",
            Rules {
                confirmers: false,
                ..ALL
            },
        ),
        (
            "generations",
            Rules {
                generations: false,
                ..ALL
            },
        ),
        (
            "a claim on the primary",
            Rules {
                claims: false,
                ..ALL
            },
        ),
        (
            "a premise in the order",
            Rules {
                premise: false,
                ..ALL
            },
        ),
    ];
    for (rule, rules) in without {
        let (counts, violation) = run_many(1, 3_000, rules);
        println!("without {rule}, after {} runs: {violation:?}", counts.runs);
        assert!(violation.is_some(), "without {rule} all is well");
    }
}

#[test]
fn a_seed_repeats_its_run() {
    let once = |seed| run(seed, ALL, true).2;
    assert_eq!(once(5), once(5));
    assert_ne!(once(5), once(6));
}
