//! All ways in turn, again and again, so that whatever else the machine does meets all of them alike; and what comes
//! of it: medians and ratios.

use std::fs;
use std::time::{Duration, Instant};

use diesel_replicated::testing::LocalCluster;

use crate::processor;
use crate::proxies::Proxy;
use crate::ways::{Flavour, Way, Work};
use crate::worker::{Turn, Worker};

/// What is measured in one table.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    pub(crate) work: Work,
    pub(crate) tasks: usize,
    pub(crate) flavour: Flavour,
}

/// How long it takes.
#[derive(Clone, Copy)]
pub(crate) struct Times {
    /// One turn of one task, and one of several; with requests twice as long.
    pub(crate) turns: [Duration; 2],
    /// All rounds of one case.
    pub(crate) case: Duration,
}

/// What one way did in all its turns.
pub(crate) struct Row {
    pub(crate) way: Way,
    /// Microseconds, of all operations: the median, and what 99 of 100 do not exceed.
    pub(crate) latency: [f64; 2],
    /// Operations in a second: the median of the rounds.
    pub(crate) throughput: f64,
    /// How much more time, or operations, than [`Way::BASE`] in the same round: the quartiles over the rounds.
    pub(crate) ratio: [f64; 3],
    /// Microseconds of processor time for one operation: of the application, the proxy and the servers.
    pub(crate) processor: [f64; 3],
    pub(crate) operations: u64,
    pub(crate) unseen: u64,
}

impl Row {
    /// How many of a hundred requests did not see what they had written.
    pub(crate) fn unseen_share(&self) -> f64 {
        100.0 * self.unseen as f64 / self.operations.max(1) as f64
    }
}

pub(crate) struct Table {
    pub(crate) case: Case,
    pub(crate) rows: Vec<Row>,
    pub(crate) rounds: usize,
}

impl Table {
    pub(crate) fn row(&self, way: Way) -> Option<&Row> {
        self.rows.iter().find(|row| row.way == way)
    }
}

/// A way with its application, and the proxy that this goes through.
pub(crate) struct Contender<'a> {
    pub(crate) way: Way,
    pub(crate) worker: Worker,
    pub(crate) proxy: Option<&'a Proxy>,
}

/// One turn, with what others used of the processors meanwhile.
struct Observed {
    turn: Turn,
    proxy: Duration,
    servers: Duration,
}

impl Observed {
    fn throughput(&self) -> f64 {
        self.turn.ended as f64 / self.turn.counted.as_secs_f64()
    }
}

/// Measures one case.
pub(crate) fn measure(
    case: Case,
    contenders: &mut [Contender<'_>],
    cluster: &LocalCluster,
    times: Times,
) -> Table {
    let servers = servers(cluster);
    let time = times.turns[usize::from(case.tasks > 1)];
    let time = match case.work {
        Work::Read => time,
        Work::Request => time * 2,
    };
    for contender in &mut *contenders {
        // Opens connections and prepares statements.
        let warm_up = time.max(Duration::from_millis(100));
        contender.worker.turn(case.work, case.tasks, warm_up);
    }
    let mut rounds: Vec<Vec<Observed>> = Vec::new();
    let started = Instant::now();
    while rounds.is_empty() || started.elapsed() < times.case {
        // Each goes first as often as last, and after one neighbour as often as the other.
        let mut order: Vec<usize> = (0..contenders.len()).collect();
        order.rotate_left(rounds.len() % contenders.len());
        if (rounds.len() / contenders.len()) % 2 == 1 {
            order.reverse();
        }
        let mut round: Vec<(usize, Observed)> = Vec::new();
        for place in order {
            let observed = observe(case, &mut contenders[place], &servers, time);
            round.push((place, observed));
        }
        round.sort_by_key(|(place, _)| *place);
        rounds.push(round.into_iter().map(|(_, observed)| observed).collect());
    }
    let base = contenders
        .iter()
        .position(|contender| contender.way == Way::BASE);
    let base = base.unwrap();
    let row = |(place, contender): (usize, &Contender<'_>)| {
        row(contender.way, case, &rounds, place, base)
    };
    Table {
        case,
        rows: contenders.iter().enumerate().map(row).collect(),
        rounds: rounds.len(),
    }
}

fn observe(case: Case, contender: &mut Contender<'_>, servers: &[u32], time: Duration) -> Observed {
    // Asking about so many processes takes longer than a short turn, which has its own table.
    let servers = if case.tasks > 1 { servers } else { &[] };
    let of_servers = || -> Duration {
        let used = servers.iter().map(|pid| processor::of_family(*pid));
        used.sum()
    };
    let of_proxy = |proxy: Option<&Proxy>| proxy.map(Proxy::processor).unwrap_or_default();
    let before = (of_proxy(contender.proxy), of_servers());
    let turn = contender.worker.turn(case.work, case.tasks, time);
    let after = (of_proxy(contender.proxy), of_servers());
    Observed {
        turn,
        proxy: after.0.saturating_sub(before.0),
        servers: after.1.saturating_sub(before.1),
    }
}

fn row(way: Way, case: Case, rounds: &[Vec<Observed>], place: usize, base: usize) -> Row {
    let turns = || rounds.iter().map(move |round| &round[place]);
    let all: Vec<f64> = turns()
        .flat_map(|it| it.turn.latencies.iter().copied())
        .collect();
    let value = |observed: &Observed| {
        if case.tasks > 1 {
            observed.throughput()
        } else {
            share(&observed.turn.latencies, 0.5)
        }
    };
    let ratios: Vec<f64> = rounds
        .iter()
        .map(|round| value(&round[place]) / value(&round[base]))
        .filter(|ratio| ratio.is_finite())
        .collect();
    let operations: u64 = turns().map(|it| it.turn.operations).sum();
    let each = |of: fn(&Observed) -> Duration| {
        let sum: Duration = turns().map(of).sum();
        sum.as_secs_f64() * 1e6 / operations.max(1) as f64
    };
    let throughputs: Vec<f64> = turns().map(Observed::throughput).collect();
    Row {
        way,
        latency: [0.5, 0.99].map(|at| share(&all, at)),
        throughput: share(&throughputs, 0.5),
        ratio: [0.25, 0.5, 0.75].map(|at| share(&ratios, at)),
        processor: [
            each(|it| it.turn.processor),
            each(|it| it.proxy),
            each(|it| it.servers),
        ],
        operations,
        unseen: turns().map(|it| it.turn.unseen).sum(),
    }
}

/// The value that this share of the values does not exceed.
fn share(values: &[f64], at: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a place among the values"
    )]
    let place = (values.len().saturating_sub(1) as f64 * at).round() as usize;
    values.get(place).copied().unwrap_or(f64::NAN)
}

/// The first process of each server.
fn servers(cluster: &LocalCluster) -> Vec<u32> {
    let pid = |folder: &std::path::Path| {
        let text = fs::read_to_string(folder.join("postmaster.pid")).unwrap();
        text.lines().next().unwrap().trim().parse().unwrap()
    };
    cluster.nodes().map(|node| pid(node.data_dir())).collect()
}
