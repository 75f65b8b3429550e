//! Reads to the nearest nodes, by what their round trips are measured to take.

use std::time::Duration;

use smallvec::SmallVec;

use super::policy::{Candidate, LoadBalancingPolicy, lighter_of_two};

/// Up to this many nodes a choice takes no memory of its own.
const FEW: usize = 8;

/// Among the candidates whose round trip is at most `window` longer than the nearest one's: of two drawn by weight the one
/// with fewer statements in flight for its weight.
///
/// A round trip is what a small question of the monitor takes, on average over the last ones
/// ([`NodeStatus::round_trip`](crate::status::NodeStatus::round_trip)). A candidate of which it is not known counts as far while
/// another's is known.
///
/// The window keeps reads from running together to one node because it is a little faster. With zones
/// ([`Config::prefer_zones`](crate::Config::prefer_zones)) the candidates are of one zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Nearest {
    /// How much longer than to the nearest the round trip may be.
    pub window: Duration,
}

impl Nearest {
    /// With this window.
    #[must_use]
    pub const fn new(window: Duration) -> Self {
        Self { window }
    }

    /// Who is further away is far. `None` if it is not known how far anybody is.
    fn limit(self, round_trips: impl Iterator<Item = Option<Duration>>) -> Option<Duration> {
        let nearest = round_trips.flatten().min()?;
        Some(nearest.saturating_add(self.window))
    }
}

impl LoadBalancingPolicy for Nearest {
    fn pick(&self, candidates: &[Candidate<'_>], random: &mut dyn FnMut() -> u64) -> usize {
        let mut round_trips = SmallVec::<[Option<Duration>; FEW]>::new();
        round_trips.extend(candidates.iter().map(Candidate::round_trip));
        let limit = self.limit(round_trips.iter().copied());
        let is_near = |place: usize| {
            limit.is_none() || round_trips[place].is_some_and(|it| Some(it) <= limit)
        };
        let mut places = SmallVec::<[usize; FEW]>::new();
        places.extend((0..candidates.len()).filter(|place| is_near(*place)));
        let mut near = SmallVec::<[Candidate<'_>; FEW]>::new();
        near.extend(places.iter().map(|place| candidates[*place]));
        let picked = lighter_of_two(&near, random);
        places.get(picked).copied().unwrap_or_default()
    }

    fn stands_in(&self, other: &Candidate<'_>, candidates: &[Candidate<'_>]) -> bool {
        let limit = self.limit(candidates.iter().map(Candidate::round_trip));
        limit.is_none_or(|limit| other.round_trip().is_some_and(|it| it <= limit))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::routing::policy::Figures;

    /// A round trip in milliseconds, if it is known.
    #[derive(Clone, Copy, Debug)]
    struct Away(Option<u64>);

    impl Figures for Away {
        fn round_trip(&self) -> Option<Duration> {
            self.0.map(Duration::from_millis)
        }

        fn lag(&self) -> Option<Duration> {
            None
        }
    }

    fn picked(window: u64, nodes: &[(Option<u64>, usize)], random: u64) -> usize {
        let away: Vec<Away> = nodes.iter().map(|(away, _)| Away(*away)).collect();
        let candidates: Vec<_> = std::iter::zip(nodes, &away)
            .map(|((_, in_flight), away)| Candidate {
                in_flight: *in_flight,
                figures: away,
                ..Candidate::of(1)
            })
            .collect();
        let mut random = random;
        let window = Duration::from_millis(window);
        Nearest::new(window).pick(&candidates, &mut || {
            random = random.wrapping_add(0x9E37_79B9_7F4A_7C15);
            random
        })
    }

    #[test]
    fn of_two_that_are_near_the_idle_one_is_read() {
        let nodes = [(Some(1), 9), (Some(3), 0), (Some(80), 0)];
        for random in 0..100 {
            assert_eq!(picked(15, &nodes, random), 1);
        }
    }

    proptest! {
        #[test]
        fn nobody_is_read_who_is_further_away_than_the_window(
            window in 0u64..50,
            nodes in prop::collection::vec((prop::option::of(0u64..200), 0usize..10), 1..10),
            random in any::<u64>(),
        ) {
            let place = picked(window, &nodes, random);
            let nearest = nodes.iter().filter_map(|(away, _)| *away).min();
            match nearest {
                None => prop_assert!(place < nodes.len()),
                Some(nearest) => {
                    let away = nodes[place].0;
                    prop_assert!(away.is_some_and(|away| away <= nearest + window), "{away:?}");
                }
            }
        }
    }
}
