//! From the usable nodes to the one that a read tries first.

use super::{Candidate, LoadBalancingPolicy};

/// The index of the chosen candidate. Those that are meant for when nothing else can serve are chosen only among themselves;
/// of the others the policy chooses among those of the nearest zone. There, too, those whose weight is 0 now, as they are
/// doubted or slow, come last. But they come before those of a zone further away: they still serve.
pub(crate) fn select(
    candidates: &[Candidate<'_>],
    policy: &dyn LoadBalancingPolicy,
    random: &mut dyn FnMut() -> u64,
) -> Option<usize> {
    let rank = |it: &Candidate<'_>| (it.is_last, it.distance, it.weight == 0);
    let (first, others) = candidates.split_first()?;
    if others.is_empty() {
        return Some(0);
    }
    if others.iter().all(|it| rank(it) == rank(first)) {
        let picked = policy.pick(candidates, random);
        return Some(picked.min(candidates.len() - 1));
    }
    let best = candidates.iter().map(rank).min()?;
    let (places, fit): (Vec<usize>, Vec<Candidate<'_>>) = candidates
        .iter()
        .enumerate()
        .filter(|(_, it)| rank(it) == best)
        .map(|(place, it)| (place, *it))
        .unzip();
    let picked = match fit.len() {
        1 => 0,
        count => policy.pick(&fit, random).min(count - 1),
    };
    places.get(picked).copied()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::routing::WeightedRandom;

    /// The places that are chosen of candidates with these weights and distances.
    fn picked(candidates: &[(u32, usize)]) -> BTreeSet<usize> {
        let candidates: Vec<_> = candidates
            .iter()
            .map(|(weight, distance)| Candidate {
                distance: *distance,
                ..Candidate::of(*weight)
            })
            .collect();
        let pick = |random| select(&candidates, &WeightedRandom, &mut || random);
        (0..100).filter_map(pick).collect()
    }

    #[test]
    fn weight_zero_is_only_for_when_nothing_else_is_there() {
        assert_eq!(picked(&[(0, 0), (1, 0), (0, 0)]), [1].into());
        assert_eq!(picked(&[(0, 0), (3, 0), (0, 0), (1, 0)]), [1, 3].into());
        assert_eq!(picked(&[(0, 0), (0, 0)]), [0, 1].into());
        assert_eq!(picked(&[]), [].into());
    }

    // Istio and Envoy call it locality fail-over; Cassandra's drivers had clients that went to the next data centre for no reason.
    #[test]
    fn a_far_zone_is_only_for_when_no_near_one_can_serve() {
        assert_eq!(picked(&[(1, 1), (1, 0), (9, 2), (2, 0)]), [1, 3].into());
        assert_eq!(picked(&[(1, 2), (1, 1), (5, 2)]), [1].into());
        // What is near and has no weight is read when nothing else can be.
        assert_eq!(picked(&[(0, 0), (1, 2)]), [1].into());
        assert_eq!(picked(&[(0, 2), (0, 1)]), [1].into());
    }

    #[test]
    fn who_is_doubted_or_slow_comes_before_a_far_zone() {
        let doubted = |distance| Candidate {
            distance,
            is_last: false,
            ..Candidate::of(0)
        };
        let far = Candidate {
            distance: 1,
            ..Candidate::of(1000)
        };
        let near = Candidate::of(1000);
        let place = |candidates: &[Candidate<'_>]| select(candidates, &WeightedRandom, &mut || 7);
        assert_eq!(place(&[far, doubted(0)]), Some(1));
        assert_eq!(place(&[doubted(0), far, near]), Some(2));
        assert_eq!(place(&[doubted(1), far]), Some(1));
    }
}
