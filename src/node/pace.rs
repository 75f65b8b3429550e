//! How long a node takes to answer the reads of this pool.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What was measured longer ago says nothing. A node that is left alone for being slow is looked at again then.
const FORGOTTEN: u64 = 10_000;

/// With fewer measurements nothing is known: one long read makes no slow node.
const ENOUGH: u64 = 8;

/// In so many milliseconds half of what is known is new, if there is enough of it.
const HALF: u64 = 500;

/// A new measurement counts at least as one of so many, and at the most as one of so many.
const SLOWEST: u64 = 256;
const FASTEST: u64 = 32;

/// What a read counts as that a node has failed and another must serve. Else a node would look fast that fails fast.
const FAILURE: Duration = Duration::from_secs(1);

/// Bits of the logarithm behind its point.
const FRACTION: u32 = 16;

/// A running mean of how long answers take, of their logarithms: one read of ten seconds among those of a millisecond
/// changes it little.
///
/// One word, without a lock: the time of the last measurement in milliseconds (34 bits), how many there were (8 bits), the
/// mean of the logarithms (22 bits). Of two measurements at the same moment one may be lost.
#[derive(Debug)]
pub(crate) struct Pace {
    since: Instant,
    word: AtomicU64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    at: u64,
    count: u64,
    mean: u64,
}

impl Known {
    fn of(word: u64) -> Self {
        Self {
            at: word >> 30,
            count: word >> 22 & 0xFF,
            mean: word & 0x3F_FFFF,
        }
    }

    fn word(self) -> u64 {
        self.at << 30 | self.count << 22 | self.mean
    }

    fn measured(self, log: u64, now: u64) -> Self {
        let gap = now.saturating_sub(self.at);
        if self.count == 0 || gap > FORGOTTEN {
            return Self {
                at: now,
                count: 1,
                mean: log,
            };
        }
        let count = (self.count + 1).min(0xFF);
        // One of so many, by how much time it stands for; the first ones count alike.
        let by_time = (gap + HALF) / gap.max(1);
        let one_of = by_time.clamp(FASTEST, SLOWEST).min(count);
        let mean = if log > self.mean {
            self.mean + (log - self.mean) / one_of
        } else {
            self.mean - (self.mean - log) / one_of
        };
        Self {
            at: now,
            count,
            mean,
        }
    }
}

impl Pace {
    pub(super) fn new(since: Instant) -> Self {
        Self {
            since,
            word: AtomicU64::new(0),
        }
    }

    /// A read took so long, and ended now.
    pub(crate) fn measured(&self, took: Duration, now: Instant) {
        let known = Known::of(self.word.load(Ordering::Relaxed));
        let known = known.measured(logarithm(took), self.millis(now));
        self.word.store(known.word(), Ordering::Relaxed);
    }

    /// Nobody waited for the end of a read, which had taken so long by then. What was given up sooner than a read takes
    /// tells nothing of the node.
    pub(crate) fn at_least(&self, took: Duration, now: Instant) {
        if self.latency(now).is_none_or(|latency| took > latency) {
            self.measured(took, now);
        }
    }

    /// A read failed there, and another node serves it.
    pub(crate) fn failed(&self, now: Instant) {
        self.measured(FAILURE, now);
    }

    /// How long a read takes there, if that is known.
    pub(crate) fn latency(&self, now: Instant) -> Option<Duration> {
        let known = Known::of(self.word.load(Ordering::Relaxed));
        let fresh = self.millis(now).saturating_sub(known.at) <= FORGOTTEN;
        (fresh && known.count >= ENOUGH).then(|| duration(known.mean))
    }

    fn millis(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.since).as_millis();
        u64::try_from(since).unwrap_or(u64::MAX) & 0x3_FFFF_FFFF
    }
}

/// The logarithm to the base of two of the nanoseconds, with straight lines between the powers of two.
fn logarithm(took: Duration) -> u64 {
    let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1);
    let power = nanos.ilog2();
    let above = nanos - (1 << power);
    let fraction = if power >= FRACTION {
        above >> (power - FRACTION)
    } else {
        above << (FRACTION - power)
    };
    u64::from(power) << FRACTION | fraction
}

fn duration(logarithm: u64) -> Duration {
    let power = logarithm >> FRACTION;
    let fraction = logarithm & ((1 << FRACTION) - 1);
    let whole = 1u64 << power.min(62);
    let above = (u128::from(whole) * u128::from(fraction)) >> FRACTION;
    Duration::from_nanos(whole + u64::try_from(above).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A node and a clock.
    struct Node {
        pace: Pace,
        now: Instant,
    }

    impl Node {
        fn new() -> Self {
            let now = Instant::now();
            Self {
                pace: Pace::new(now),
                now,
            }
        }

        /// So many reads, this far apart.
        fn reads(&mut self, reads: u32, took: Duration, apart: Duration) {
            for _ in 0..reads {
                self.now += apart;
                self.pace.measured(took, self.now);
            }
        }

        fn latency(&self) -> Option<f64> {
            let latency = self.pace.latency(self.now)?;
            Some(latency.as_secs_f64() * 1e3)
        }
    }

    proptest! {
        #[test]
        fn a_time_is_its_logarithm(nanos in 1u64..u64::MAX >> 8) {
            let took = Duration::from_nanos(nanos);
            let back = duration(logarithm(took)).as_secs_f64() / took.as_secs_f64();
            prop_assert!((0.9999..=1.0001).contains(&back), "{took:?}: {back}");
            let known = Known { at: 1 << 33, count: 200, mean: logarithm(took) };
            prop_assert_eq!(Known::of(known.word()), known);
        }
    }

    #[test]
    fn nothing_is_known_before_there_is_enough_or_after_it_is_old() {
        let mut node = Node::new();
        node.reads(7, 5 * MS, MS);
        assert_eq!(node.latency(), None);
        node.reads(1, 5 * MS, MS);
        assert!((4.9..5.1).contains(&node.latency().unwrap()));
        node.now += Duration::from_millis(10_001);
        assert_eq!(node.latency(), None);
    }

    /// <https://github.com/scylladb/scylla-rust-driver/pull/536>, <https://github.com/apache/cassandra-cpp-driver/pull/145>:
    /// a node that is left alone is not measured, so what was measured of it must end.
    #[test]
    fn a_node_that_recovers_is_as_fast_as_it_is_at_once_after_it_was_forgotten() {
        let mut node = Node::new();
        node.reads(500, 50 * MS, MS);
        assert!(node.latency().unwrap() > 45.0);
        node.now += Duration::from_secs(11);
        node.reads(8, 5 * MS, MS);
        assert!(node.latency().unwrap() < 5.1);
    }

    /// <https://github.com/go-kratos/kratos/issues/3834>: users who went away made healthy nodes bad ones.
    #[test]
    fn reads_that_are_given_up_count_only_if_they_took_long() {
        let mut node = Node::new();
        node.reads(100, 5 * MS, MS);
        for _ in 0..1000 {
            node.now += MS;
            node.pace.at_least(MS, node.now);
        }
        assert!((4.9..5.1).contains(&node.latency().unwrap()));
        for _ in 0..500 {
            node.now += MS;
            node.pace.at_least(25 * MS, node.now);
        }
        assert!(node.latency().unwrap() > 15.0);
        // Where nothing else is known, they are all there is.
        let mut idle = Node::new();
        for _ in 0..8 {
            idle.now += MS;
            idle.pace.at_least(25 * MS, idle.now);
        }
        assert!(idle.latency().unwrap() > 20.0);
    }

    #[test]
    fn a_node_that_becomes_slow_is_noticed_soon_at_any_rate() {
        for apart in [MS / 5, MS, 5 * MS, 100 * MS] {
            let mut node = Node::new();
            node.reads(1000, 5 * MS, apart);
            let mut slow = 0;
            while node.latency().unwrap() < 15.0 {
                node.reads(1, 50 * MS, apart);
                slow += 1;
            }
            assert!((10..200).contains(&slow), "every {apart:?}: after {slow}");
        }
    }

    #[test]
    fn one_long_read_makes_no_slow_node() {
        for apart in [MS / 5, MS, 5 * MS, 100 * MS] {
            let mut node = Node::new();
            node.reads(1000, MS, apart);
            node.reads(1, Duration::from_secs(10), apart);
            assert!(
                node.latency().unwrap() < 1.7,
                "every {apart:?}: {:?}",
                node.latency()
            );
        }
    }

    /// <https://github.com/Netflix/astyanax/issues/17>: the time of an error counted as any other, so who failed fast got more and more.
    #[test]
    fn a_node_that_fails_at_once_is_not_fast() {
        let mut node = Node::new();
        node.reads(100, MS, MS);
        for _ in 0..100 {
            node.now += MS;
            node.pace.failed(node.now);
        }
        assert!(node.latency().unwrap() > 10.0);
    }
}
