//! Reads by weight, but not where they take clearly longer than elsewhere.

use std::time::Duration;

use super::policy::{Candidate, LoadBalancingPolicy, drawn, share, weighted};

/// A node is slow if its reads take more than so many times as long as those of the fastest,
const FACTOR: u32 = 3;

/// and this much longer. Between two zones of one region there is less, and a busy machine makes no slow node of it.
const MARGIN: Duration = Duration::from_millis(5);

/// A node is crowded if it has more than so many reads, and one and a half times its part of all.
const FEW: u64 = 4;

/// Each candidate in proportion to its weight, without those that are slow or crowded. The default.
///
/// A candidate is slow if reads take three times as long there as on the fastest one, and 5 ms longer. It is looked at again
/// after ten seconds. It is crowded if it has one and a half times its part of the statements that run or wait, and more
/// than four: so one that answers nothing any more gets few reads before anybody knows why. While the others are in use,
/// reads wait for them, but no longer than a read takes on a slow one.
///
/// Candidates that are alike get their shares exactly as from [`WeightedRandom`](super::WeightedRandom): who is a little
/// faster than the others is not preferred, so nobody runs there together.
#[derive(Clone, Copy, Debug, Default)]
pub struct LatencyAware;

impl LoadBalancingPolicy for LatencyAware {
    fn pick(&self, candidates: &[Candidate<'_>], random: &mut dyn FnMut() -> u64) -> usize {
        let slow = slow(candidates);
        let quick = |candidate: &Candidate<'_>| candidate.latency.is_none_or(|it| it <= slow);
        if candidates.iter().all(|it| quick(it) && excess(it) == 0) {
            // The usual case, and a read's time goes on here.
            return weighted(candidates, random());
        }
        let sum = |of: fn(&Candidate<'_>) -> u64| -> u64 {
            let quick = candidates.iter().filter(|it| quick(it));
            quick.map(of).sum()
        };
        let (running, weights) = (sum(|it| it.in_flight as u64), sum(share));
        let fit = |candidate: &Candidate<'_>| {
            quick(candidate) && !is_crowded(candidate, running, weights)
        };
        drawn(candidates, fit, random())
    }

    /// A slow one has free connections because nobody wants it. To wait for a fast one takes less.
    fn stands_in(&self, other: &Candidate<'_>, candidates: &[Candidate<'_>]) -> bool {
        other.latency.is_none_or(|it| it <= slow(candidates))
    }
}

/// Nodes are slow whose reads take longer.
fn slow(candidates: &[Candidate<'_>]) -> Duration {
    let best = candidates.iter().filter_map(|it| it.latency).min();
    best.map_or(Duration::MAX, |best| {
        best.saturating_mul(FACTOR).max(best.saturating_add(MARGIN))
    })
}

fn excess(candidate: &Candidate<'_>) -> u64 {
    (candidate.in_flight as u64).saturating_sub(FEW)
}

/// Whether it has clearly more to do than its part of what is `running`, by its share of the `weights`. Not all can be.
fn is_crowded(candidate: &Candidate<'_>, running: u64, weights: u64) -> bool {
    2 * u128::from(excess(candidate)) * u128::from(weights)
        > 3 * u128::from(running) * u128::from(share(candidate))
}

#[cfg(test)]
mod tests;
