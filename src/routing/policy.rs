//! Which of several usable nodes serves a read.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A node that could serve the read.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Candidate<'a> {
    /// The node's name.
    pub name: &'a str,
    /// Its weight, above 0 unless every candidate's weight is 0. While one of the candidates is slow
    /// or has just come back, weights are in thousandths, and its own is less.
    pub weight: u32,
    /// Statements that this pool is running on it now, and those that wait for a connection to it.
    pub in_flight: usize,
    /// How long reads of this pool take on it: a running mean, of its last ten seconds. `None` while too little is known.
    pub latency: Option<Duration>,
    /// Its zone.
    pub zone: Option<&'a str>,
    /// Its tags.
    pub tags: &'a BTreeMap<String, String>,
    /// How many of the preferred zones come before its own. Candidates of one choice are alike in it.
    pub(crate) distance: usize,
    /// It is meant for when nothing else can serve.
    pub(crate) is_last: bool,
    pub(crate) figures: &'a dyn Figures,
}

impl Candidate<'_> {
    /// How long its server takes to answer a small question, on average over the last ones. `None` while that is not known.
    #[must_use]
    pub fn round_trip(&self) -> Option<Duration> {
        self.figures.round_trip()
    }

    /// How old its data is at the most, as [`NodeStatus::lag`](crate::status::NodeStatus::lag) tells. `None` for the primary,
    /// and if it is not known.
    #[must_use]
    pub fn lag(&self) -> Option<Duration> {
        self.figures.lag()
    }
}

/// What is known of a candidate, and looked up only if a policy asks.
pub(crate) trait Figures: fmt::Debug {
    fn round_trip(&self) -> Option<Duration>;
    fn lag(&self) -> Option<Duration>;
}

/// Chooses a node for a read.
///
/// Implementations are shared by all connections of a pool and called for every read that does
/// not stay on the node of the connection's last read, so they should be quick and must not block.
///
/// ```
/// use diesel_replicated::policy::{Candidate, LoadBalancingPolicy};
///
/// /// Reads go to large machines while one is usable.
/// #[derive(Debug)]
/// struct LargeFirst;
///
/// impl LoadBalancingPolicy for LargeFirst {
///     fn pick(&self, candidates: &[Candidate<'_>], random: &mut dyn FnMut() -> u64) -> usize {
///         let large = |c: &Candidate<'_>| c.tags.get("size").is_some_and(|size| size == "large");
///         let start = random() as usize;
///         let order = (0..candidates.len()).map(|i| (start + i) % candidates.len());
///         order.clone().find(|i| large(&candidates[*i])).unwrap_or(start % candidates.len())
///     }
/// }
/// ```
pub trait LoadBalancingPolicy: fmt::Debug + Send + Sync {
    /// The index of the chosen candidate. There is always at least one; an index beyond the last
    /// counts as the last. `random` gives uniformly distributed numbers.
    fn pick(&self, candidates: &[Candidate<'_>], random: &mut dyn FnMut() -> u64) -> usize;

    /// Whether `other` may serve a read for which another one of the `candidates` was picked, because all connections of
    /// that are in use, and one of `other` is free. Else the read waits for the one that was picked, as long as a read takes on
    /// `other`, and takes `other` then. Default: it may.
    fn stands_in(&self, other: &Candidate<'_>, candidates: &[Candidate<'_>]) -> bool {
        let _ = (other, candidates);
        true
    }
}

/// Each candidate in proportion to its weight, however slow it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct WeightedRandom;

impl LoadBalancingPolicy for WeightedRandom {
    fn pick(&self, candidates: &[Candidate<'_>], random: &mut dyn FnMut() -> u64) -> usize {
        weighted(candidates, random())
    }
}

/// Two different candidates drawn by weight; the one with fewer statements in flight for its weight wins.
///
/// Mitzenmacher, *The Power of Two Choices in Randomized Load Balancing* (2001): nearly as even as
/// asking all, without everyone running to the same idle node.
///
/// Between unequal weights shares are rough while few statements run: a light node runs whole ones, too.
#[derive(Clone, Copy, Debug, Default)]
pub struct LeastInFlight;

impl LoadBalancingPolicy for LeastInFlight {
    fn pick(&self, candidates: &[Candidate<'_>], random: &mut dyn FnMut() -> u64) -> usize {
        lighter_of_two(candidates, random)
    }
}

/// Of two drawn by weight, the one with less to do for its weight.
pub(super) fn lighter_of_two(
    candidates: &[Candidate<'_>],
    random: &mut dyn FnMut() -> u64,
) -> usize {
    let one = weighted(candidates, random());
    let Some(first) = candidates.get(one) else {
        return one;
    };
    // The same one twice would be no choice, and all would come to hang on one that hangs.
    let two = drawn(candidates, |it| !std::ptr::eq(it, first), random());
    let Some(second) = candidates.get(two) else {
        return one;
    };
    // The statement to come does not count: while nothing runs, the weights alone decide.
    let load = |it: &Candidate<'_>, other: &Candidate<'_>| it.in_flight as u64 * share(other);
    if load(second, first) < load(first, second) {
        two
    } else {
        one
    }
}

/// Each candidate in turn, by weight: of `n` picks in a row each gets its share.
#[derive(Debug, Default)]
pub struct RoundRobin {
    turn: AtomicU64,
}

impl LoadBalancingPolicy for RoundRobin {
    fn pick(&self, candidates: &[Candidate<'_>], _: &mut dyn FnMut() -> u64) -> usize {
        let total = total(candidates);
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        // A stride that shares no factor with the total visits every slot once per round, and
        // spreads the slots of a heavy node over the round.
        let stride = (total / 2..total).find(|stride| gcd(*stride, total) == 1);
        slot(candidates, (turn % total) * stride.unwrap_or(1) % total)
    }
}

pub(super) fn weighted(candidates: &[Candidate<'_>], random: u64) -> usize {
    slot(candidates, random % total(candidates))
}

/// One of those that are `fit`, in proportion to its weight.
pub(super) fn drawn(
    candidates: &[Candidate<'_>],
    fit: impl Fn(&Candidate<'_>) -> bool,
    random: u64,
) -> usize {
    let among = candidates.iter().enumerate().filter(|(_, it)| fit(it));
    let total = among.clone().map(|(_, it)| share(it)).sum::<u64>().max(1);
    let mut slot = random % total;
    for (index, candidate) in among {
        match slot.checked_sub(share(candidate)) {
            Some(rest) => slot = rest,
            None => return index,
        }
    }
    weighted(candidates, random)
}

/// Every candidate counts at least once, so that weights of 0 among themselves are even.
pub(super) fn share(candidate: &Candidate<'_>) -> u64 {
    u64::from(candidate.weight.max(1))
}

fn total(candidates: &[Candidate<'_>]) -> u64 {
    candidates.iter().map(share).sum::<u64>().max(1)
}

fn slot(candidates: &[Candidate<'_>], mut slot: u64) -> usize {
    for (index, candidate) in candidates.iter().enumerate() {
        match slot.checked_sub(share(candidate)) {
            Some(rest) => slot = rest,
            None => return index,
        }
    }
    candidates.len().saturating_sub(1)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
impl Candidate<'static> {
    /// One of this weight of which nothing else is known.
    pub(super) fn of(weight: u32) -> Self {
        static NO_TAGS: BTreeMap<String, String> = BTreeMap::new();
        Self {
            name: "node",
            weight,
            in_flight: 0,
            latency: None,
            zone: None,
            tags: &NO_TAGS,
            distance: 0,
            is_last: weight == 0,
            figures: &Nothing,
        }
    }
}

/// Nothing is known.
#[cfg(test)]
#[derive(Debug)]
struct Nothing;

#[cfg(test)]
impl Figures for Nothing {
    fn round_trip(&self) -> Option<Duration> {
        None
    }

    fn lag(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn candidates(nodes: &[(u32, usize)]) -> Vec<Candidate<'static>> {
        let candidate = |(weight, in_flight): &(u32, usize)| Candidate {
            in_flight: *in_flight,
            ..Candidate::of(*weight)
        };
        nodes.iter().map(candidate).collect()
    }

    fn counts(policy: &dyn LoadBalancingPolicy, nodes: &[(u32, usize)], picks: u64) -> Vec<u64> {
        let candidates = candidates(nodes);
        let mut counts = vec![0; nodes.len()];
        let mut state = 1u64;
        let mut random = || {
            // SplitMix64: the test replays.
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^ (z >> 31)
        };
        for _ in 0..picks {
            counts[policy.pick(&candidates, &mut random)] += 1;
        }
        counts
    }

    #[test]
    fn random_picks_follow_the_weights() {
        let counts = counts(&WeightedRandom, &[(3, 0), (1, 0)], 40_000);
        assert!((29_000..31_000).contains(&counts[0]), "{counts:?}");
    }

    #[test]
    fn round_robin_is_exact_and_interleaved() {
        let policy = RoundRobin::default();
        assert_eq!(counts(&policy, &[(3, 0), (1, 0), (2, 0)], 60), [30, 10, 20]);
        let candidates = candidates(&[(4, 0), (4, 0)]);
        let picks: Vec<usize> = (0..8)
            .map(|_| policy.pick(&candidates, &mut || 0))
            .collect();
        assert!(
            picks.windows(3).all(|w| w != [0, 0, 0] && w != [1, 1, 1]),
            "{picks:?}"
        );
    }

    #[test]
    fn the_busy_node_is_avoided() {
        let counts = counts(&LeastInFlight, &[(1, 100), (1, 0)], 1000);
        assert!(counts[1] > 700, "{counts:?}");
    }

    proptest! {
        #[test]
        fn every_policy_picks_a_candidate(
            nodes in prop::collection::vec((0u32..=10_000, 0usize..1000), 1..20),
            random in any::<u64>(),
        ) {
            let candidates = candidates(&nodes);
            let round_robin = RoundRobin { turn: AtomicU64::new(random) };
            for policy in [&WeightedRandom as &dyn LoadBalancingPolicy, &LeastInFlight, &round_robin] {
                prop_assert!(policy.pick(&candidates, &mut || random) < nodes.len());
            }
        }
    }
}
