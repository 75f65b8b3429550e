//! From the usable nodes to the one that a read tries first.

use super::{Candidate, LoadBalancingPolicy};

/// The index of the chosen candidate. Those of weight 0 are chosen only among themselves.
pub(crate) fn select(
    candidates: &[Candidate<'_>],
    policy: &dyn LoadBalancingPolicy,
    random: &mut dyn FnMut() -> u64,
) -> Option<usize> {
    match candidates {
        [] => None,
        [_] => Some(0),
        _ if candidates.iter().all(|c| c.weight > 0)
            || candidates.iter().all(|c| c.weight == 0) =>
        {
            let picked = policy.pick(candidates, random);
            Some(picked.min(candidates.len() - 1))
        }
        _ => {
            let (places, weighty): (Vec<usize>, Vec<Candidate<'_>>) = candidates
                .iter()
                .enumerate()
                .filter(|(_, candidate)| candidate.weight > 0)
                .map(|(place, candidate)| (place, *candidate))
                .unzip();
            let picked = policy.pick(&weighty, random).min(weighty.len() - 1);
            places.get(picked).copied()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::routing::WeightedRandom;

    static NO_TAGS: BTreeMap<String, String> = BTreeMap::new();

    fn pick(weights: &[u32], random: u64) -> Option<usize> {
        let candidates: Vec<_> = weights
            .iter()
            .map(|weight| Candidate {
                name: "node",
                weight: *weight,
                in_flight: 0,
                latency: None,
                tags: &NO_TAGS,
            })
            .collect();
        select(&candidates, &WeightedRandom, &mut || random)
    }

    #[test]
    fn weight_zero_is_only_for_when_nothing_else_is_there() {
        for random in 0..100 {
            assert_eq!(pick(&[0, 1, 0], random), Some(1));
            assert!(pick(&[0, 3, 0, 1], random).is_some_and(|place| place == 1 || place == 3));
        }
        let among_zeros: std::collections::BTreeSet<_> =
            (0..10).filter_map(|random| pick(&[0, 0], random)).collect();
        assert_eq!(among_zeros.len(), 2);
        assert_eq!(pick(&[], 7), None);
    }
}
