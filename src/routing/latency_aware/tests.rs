//! Closed loops: so many tasks read, each reads anew when its read has ended.

use proptest::prelude::*;

use super::*;
use crate::routing::{LeastInFlight, RoundRobin, WeightedRandom};

#[derive(Clone, Copy)]
struct Node {
    weight: u32,
    /// Reads that end in a unit of time, for each that runs. 0 is frozen.
    rate: f64,
    latency: Option<Duration>,
    in_flight: usize,
    picked: u64,
}

fn node(weight: u32, rate: f64, latency: u64) -> Node {
    Node {
        weight,
        rate,
        latency: (latency > 0).then(|| Duration::from_micros(latency)),
        in_flight: 0,
        picked: 0,
    }
}

/// `SplitMix64`: the tests replay.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    #[expect(clippy::cast_precision_loss, reason = "a number from 0 to 1")]
    fn part(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn pick(policy: &dyn LoadBalancingPolicy, nodes: &[Node], random: &mut Random) -> usize {
    let candidate = |node: &Node| Candidate {
        in_flight: node.in_flight,
        latency: node.latency,
        ..Candidate::of(node.weight)
    };
    let candidates: Vec<_> = nodes.iter().map(candidate).collect();
    policy.pick(&candidates, &mut || random.next())
}

/// Lets `tasks` read so many times. Ends early if all tasks hang.
fn run(policy: &dyn LoadBalancingPolicy, nodes: &mut [Node], tasks: usize, reads: u64) {
    let mut random = Random(7);
    let mut left = reads;
    let mut free = tasks;
    loop {
        while free > 0 {
            let place = pick(policy, nodes, &mut random);
            nodes[place].in_flight += 1;
            nodes[place].picked += 1;
            free -= 1;
        }
        #[expect(clippy::cast_precision_loss, reason = "few tasks")]
        let speed = |node: &Node| node.in_flight as f64 * node.rate;
        let total: f64 = nodes.iter().map(speed).sum();
        if left == 0 || total <= 0.0 {
            return;
        }
        left -= 1;
        let mut at = random.part() * total;
        for node in &mut *nodes {
            at -= speed(node);
            if at <= 0.0 && node.in_flight > 0 && node.rate > 0.0 {
                node.in_flight -= 1;
                free += 1;
                break;
            }
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "few reads")]
fn shares(nodes: &[Node]) -> Vec<f64> {
    let all: u64 = nodes.iter().map(|node| node.picked).sum();
    let share = |node: &Node| node.picked as f64 / all as f64;
    nodes.iter().map(share).collect()
}

/// <https://github.com/envoyproxy/envoy/issues/31378>: by least requests the light one gets nothing while little runs.
#[test]
fn weights_are_right_while_all_are_alike() {
    let weights: [&[u32]; 5] = [&[1, 1], &[3, 1], &[1, 1, 1, 1], &[4, 3, 2, 1], &[6, 1, 1]];
    for weights in weights {
        for tasks in [1, 4, 16, 64] {
            // A little faster or slower, as measurements are.
            let latency = |place: usize| 4_000 + 900 * place as u64;
            let of = |(place, weight): (usize, &u32)| node(*weight, 1.0, latency(place));
            let starting: Vec<_> = weights.iter().enumerate().map(of).collect();
            let total: u32 = weights.iter().sum();
            let mut nodes = starting;
            run(&LatencyAware, &mut nodes, tasks, 100_000);
            for (share, weight) in shares(&nodes).iter().zip(weights) {
                let off = share * f64::from(total) / f64::from(*weight) - 1.0;
                assert!(
                    off.abs() < 0.03,
                    "{weights:?}, {tasks} tasks: {weight} is off by {off}"
                );
            }
        }
        // By what is in flight shares are right while one statement runs, and rough else: a light node runs whole
        // statements, too.
        let alone = |(place, weight): (usize, &u32)| node(*weight, 1.0, 4_000 + place as u64);
        let mut nodes: Vec<_> = weights.iter().enumerate().map(alone).collect();
        run(&LeastInFlight, &mut nodes, 1, 20_000);
        let total: u32 = weights.iter().sum();
        for (share, weight) in shares(&nodes).iter().zip(weights) {
            let off = share * f64::from(total) / f64::from(*weight) - 1.0;
            assert!(off.abs() < 0.05, "{weights:?}: {weight} is off by {off}");
        }
    }
}

#[test]
fn a_slow_node_gets_no_reads_and_the_others_their_shares() {
    let mut nodes = [
        node(1, 0.1, 50_000),
        node(1, 1.0, 5_000),
        node(2, 1.0, 5_000),
    ];
    run(&LatencyAware, &mut nodes, 16, 100_000);
    let shares = shares(&nodes);
    assert_eq!(nodes[0].picked, 0);
    assert!((shares[2] / shares[1] - 2.0).abs() < 0.06, "{shares:?}");
}

#[test]
fn the_distance_between_two_zones_makes_no_slow_node() {
    let mut nodes = [node(1, 1.0, 200), node(1, 1.0, 4_900)];
    run(&LatencyAware, &mut nodes, 4, 100_000);
    assert!((shares(&nodes)[0] - 0.5).abs() < 0.02);
}

/// <https://github.com/grpc/grpc-java/issues/12237>, <https://github.com/envoyproxy/envoy/issues/39737>: one of several
/// hangs, and all tasks come to hang there.
#[test]
fn a_node_that_hangs_holds_few_reads() {
    let stuck = |policy: &dyn LoadBalancingPolicy, nodes: usize, tasks| {
        let mut nodes: Vec<_> = (0..nodes).map(|_| node(1, 1.0, 5_000)).collect();
        nodes[0].rate = 0.0;
        run(policy, &mut nodes, tasks, 20_000);
        nodes[0].in_flight
    };
    assert!(stuck(&LatencyAware, 4, 64) <= 38);
    assert!(stuck(&LatencyAware, 4, 16) <= 13);
    assert!(stuck(&LatencyAware, 2, 200) <= 160);
    assert_eq!(stuck(&WeightedRandom, 4, 64), 64);
    assert_eq!(stuck(&RoundRobin::default(), 4, 64), 64);
}

/// The black hole of <https://github.com/Netflix/astyanax/issues/17>: a node that fails at once has nothing in flight, and those that work have. A failure counts as a
/// long read, see `node::pace`.
#[test]
fn a_node_that_fails_at_once_attracts_nobody() {
    let mut nodes = [node(1, 1000.0, 700_000), node(1, 1.0, 5_000)];
    run(&LatencyAware, &mut nodes, 64, 10_000);
    assert_eq!(nodes[0].picked, 0);
}

/// Also <https://github.com/haproxy/haproxy/issues/1393>. A node that has just come has nothing in flight. It gets its share, which grows, and no more.
#[test]
fn a_new_node_is_not_flooded() {
    let mut nodes = [node(1000, 1.0, 5_000), node(100, 1.0, 0)];
    nodes[0].in_flight = 32;
    let mut random = Random(1);
    let mut picked = 0;
    for _ in 0..10_000 {
        picked += pick(&LatencyAware, &nodes, &mut random);
    }
    assert!((800..1020).contains(&picked), "{picked}");
}

/// <https://github.com/llm-d/llm-d/issues/1950>, <https://github.com/vllm-project/router/pull/215>: however wrong the
/// counts are, each node that is fit gets reads, and there always is one.
#[test]
fn with_one_fast_node_that_is_crowded_it_still_serves() {
    let nodes = [
        Node {
            in_flight: 500,
            ..node(1, 1.0, 1_000)
        },
        node(1, 1.0, 500_000),
    ];
    let mut random = Random(1);
    assert!((0..100).all(|_| pick(&LatencyAware, &nodes, &mut random) == 0));
}

proptest! {
    #[test]
    fn nobody_is_chosen_who_is_slow_or_crowded_and_somebody_always_is(
        nodes in prop::collection::vec((0u32..=10_000, 0usize..1000, 0u64..1_000_000), 1..20),
        random in any::<u64>(),
    ) {
        let of = |(weight, in_flight, latency)| Node { in_flight, ..node(weight, 1.0, latency) };
        let nodes: Vec<_> = nodes.into_iter().map(of).collect();
        for policy in [&LatencyAware as &dyn LoadBalancingPolicy, &LeastInFlight] {
            let place = pick(policy, &nodes, &mut Random(random));
            prop_assert!(place < nodes.len());
        }
        let chosen = nodes[pick(&LatencyAware, &nodes, &mut Random(random))];
        let best = nodes.iter().filter_map(|it| it.latency).min();
        if let (Some(latency), Some(best)) = (chosen.latency, best) {
            prop_assert!(latency <= best * FACTOR || latency <= best + MARGIN);
        }
    }
}
