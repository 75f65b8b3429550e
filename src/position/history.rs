//! When the primary was at which position. Acknowledged writes and the age of data are measured by it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::{Lsn, Position};

/// How many samples are kept. Older ones are thinned out, never all dropped.
const KEPT: usize = 1024;

/// The primary's answer to one question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    /// All writes of this pool up to this sequence number were acknowledged before the question.
    pub(crate) upto: u64,
    /// When it was asked. The answer covers all that was acknowledged to anyone by then.
    pub(crate) asked: Instant,
    /// When it first answered so. What it says was there by then, and perhaps not much earlier.
    pub(crate) reached: Instant,
    pub(crate) timeline: u32,
    /// The log up to here was on the primary's disk. Standbys receive no more.
    pub(crate) flushed: Lsn,
    /// The log up to here was written.
    pub(crate) inserted: Lsn,
}

impl Sample {
    /// A position that covers every write acknowledged before the question.
    ///
    /// Only the server knows what a commit waited for. A function, a trigger or a setting may have turned
    /// `synchronous_commit` off; then an acknowledged write is not on the disk yet. So this is the written position,
    /// not the flushed one. If nothing else is under way, both are the same.
    /// way, a commit that waits has flushed all there is, and the two are the same.
    pub(crate) fn position(&self) -> Position {
        Position::new(self.timeline, self.inserted)
    }

    /// Up to where all was on the primary's disk.
    #[cfg(feature = "promotion")]
    pub(crate) fn durable(&self) -> Position {
        Position::new(self.timeline, self.flushed)
    }
}

/// Samples of one primary, oldest first.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    samples: VecDeque<Sample>,
}

impl History {
    pub(crate) fn push(&mut self, sample: Sample) {
        if let Some(last) = self.samples.back_mut() {
            // What is late, or of an older timeline, is of no use any more.
            if sample.upto < last.upto || sample.timeline < last.timeline {
                return;
            }
            // An idle primary: one entry, which grows.
            let unmoved = (last.timeline, last.flushed, last.inserted)
                == (sample.timeline, sample.flushed, sample.inserted);
            if unmoved {
                last.upto = sample.upto;
                last.asked = last.asked.max(sample.asked);
                return;
            }
        }
        self.samples.push_back(sample);
        if self.samples.len() > KEPT {
            self.thin_out();
        }
    }

    /// Drops every second one of the older half: a position found later is then greater, and a
    /// replica counts as older than it is, which errs on the safe side. The last one of a timeline
    /// stays: what it covers, nothing later does.
    fn thin_out(&mut self) {
        let half = self.samples.len() / 2;
        let next = self.samples.iter().skip(1).map(|sample| sample.timeline);
        let next: Vec<u32> = next.collect();
        let mut place = 0;
        self.samples.retain(|sample| {
            place += 1;
            let last = next.get(place - 1).is_some_and(|it| *it != sample.timeline);
            last || place > half || place % 2 == 0
        });
    }

    pub(crate) fn latest(&self) -> Option<&Sample> {
        self.samples.back()
    }

    /// The earliest sample that covers the write with this sequence number, of the timeline of that write: what
    /// the primary of another one says of itself covers nothing. `0` stands for any.
    pub(crate) fn covering(&self, seq: u64, timeline: u32) -> Option<&Sample> {
        let place = self.samples.partition_point(|sample| sample.upto < seq);
        let later = self.samples.iter().skip(place);
        let mut known = later.skip_while(|sample| sample.timeline < timeline);
        known
            .next()
            .filter(|sample| timeline == 0 || sample.timeline == timeline)
    }

    /// The last sample on this timeline.
    pub(crate) fn last_on(&self, timeline: u32) -> Option<&Sample> {
        let mut samples = self.samples.iter().rev();
        samples.find(|sample| sample.timeline == timeline)
    }

    /// The latest sample that was asked for at or after `moment`.
    pub(crate) fn asked_since(&self, moment: Instant) -> Option<&Sample> {
        self.latest().filter(|sample| sample.asked >= moment)
    }

    /// When the primary was known to have reached a position.
    pub(crate) fn reached(&self, position: Position) -> Option<Instant> {
        let has = |sample: &&Sample| {
            sample.timeline == position.timeline && sample.inserted >= position.lsn
        };
        self.samples.iter().find(has).map(|sample| sample.reached)
    }

    /// A position that covers all that the primary had at `moment`. `None` if it was not asked since.
    pub(crate) fn since(&self, moment: Instant) -> Option<Position> {
        let place = self.samples.partition_point(|sample| sample.asked < moment);
        self.samples.get(place).map(Sample::position)
    }

    /// How old the data of a standby is, at the most, that has replayed up to `replayed` on the
    /// current timeline. `None` if that is not known.
    ///
    /// The standby's clock plays no part, nor does how long ago the primary wrote: what counts
    /// is when the primary was at this position last.
    pub(crate) fn age(&self, replayed: Position, now: Instant) -> Option<Duration> {
        let passed = |sample: &&Sample| {
            sample.timeline == replayed.timeline && sample.inserted <= replayed.lsn
        };
        let newest = self.samples.iter().rev().find(passed)?;
        Some(now.saturating_duration_since(newest.asked))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample(upto: u64, asked: Instant, lsn: u64) -> Sample {
        Sample {
            upto,
            asked,
            reached: asked,
            timeline: 1,
            flushed: Lsn(lsn.saturating_sub(8)),
            inserted: Lsn(lsn),
        }
    }

    fn at(lsn: u64) -> Position {
        Position::new(1, Lsn(lsn))
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn an_idle_primary_does_not_make_its_replicas_old() {
        let start = Instant::now();
        let mut history = History::default();
        for second in 0..100 {
            history.push(sample(7, start + SECOND * second, 500));
        }
        let now = start + SECOND * 100;
        assert_eq!(history.age(at(500), now), Some(SECOND));
        assert_eq!(history.reached(at(500)), Some(start));
        assert_eq!(history.reached(at(501)), None);
        // Even one that no sample shows anything new of.
        assert_eq!(history.age(at(499), now), None);
    }

    #[test]
    fn paused_replay_grows_old_by_the_clock_of_the_observer() {
        let start = Instant::now();
        let mut history = History::default();
        for second in 0..10 {
            history.push(sample(0, start + SECOND * second, u64::from(second) * 100));
        }
        let now = start + SECOND * 9;
        assert_eq!(history.age(at(300), now), Some(SECOND * 6));
        assert_eq!(history.age(at(399), now), Some(SECOND * 6));
        assert_eq!(history.age(at(900), now), Some(Duration::ZERO));
        // The primary cannot be asked any more: everybody grows older.
        assert_eq!(history.age(at(900), now + SECOND * 5), Some(SECOND * 5));
    }

    #[test]
    fn a_stopped_receiver_is_old_only_where_the_primary_went_on() {
        let start = Instant::now();
        let mut history = History::default();
        for second in 0..20 {
            // Nothing is written in the first ten seconds.
            let written = u64::from(u32::saturating_sub(second, 10)) * 100;
            history.push(sample(0, start + SECOND * second, 500 + written));
        }
        let now = start + SECOND * 19;
        assert_eq!(history.age(at(500), now), Some(SECOND * 9));
        assert_eq!(history.age(at(1400), now), Some(Duration::ZERO));
    }

    #[test]
    fn a_jump_of_the_clock_never_makes_data_younger() {
        let start = Instant::now();
        let mut history = History::default();
        history.push(sample(0, start, 500));
        // Ahead, as after a suspension: old, until the primary has been asked again.
        let late = start + SECOND * 10_000;
        assert_eq!(history.age(at(500), late), Some(SECOND * 10_000));
        history.push(sample(0, late, 500));
        assert_eq!(history.age(at(500), late), Some(Duration::ZERO));
        // Back: what was asked for later does not count as of before.
        assert_eq!(history.age(at(499), start), None);
    }

    #[test]
    fn another_timeline_is_not_known() {
        let start = Instant::now();
        let mut history = History::default();
        history.push(sample(0, start, 100));
        assert_eq!(history.age(Position::new(2, Lsn(500)), start), None);
        // Late answers of a former primary are dropped.
        history.push(Sample {
            timeline: 2,
            ..sample(1, start, 200)
        });
        history.push(sample(2, start, 900));
        assert_eq!(history.latest().unwrap().timeline, 2);
    }

    #[test]
    fn what_waits_for_no_disk_makes_a_standby_old_that_lacks_it() {
        let start = Instant::now();
        let mut history = History::default();
        history.push(sample(0, start, 500));
        // Acknowledged, seen on the primary, and not flushed: no standby can have it.
        for second in 1..=3 {
            history.push(Sample {
                flushed: Lsn(500),
                ..sample(1, start + SECOND * second, 600)
            });
        }
        let now = start + SECOND * 3;
        assert_eq!(history.age(at(500), now), Some(SECOND * 3));
        assert_eq!(history.covering(1, 1).unwrap().position(), at(600));
    }

    #[test]
    fn the_last_of_a_timeline_is_never_thinned_out() {
        let start = Instant::now();
        let mut history = History::default();
        for number in 0..11 {
            history.push(sample(number, start, number * 10));
        }
        for number in 11..20_000 {
            let later = sample(number, start, number * 10);
            history.push(Sample {
                timeline: 2,
                ..later
            });
        }
        assert_eq!(history.covering(10, 1).unwrap().position(), at(100));
        assert_eq!(history.last_on(1).unwrap().upto, 10);
        assert_eq!(history.covering(11, 0).unwrap().timeline, 2);
        assert!(history.covering(11, 1).is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn thinning_errs_on_the_safe_side(
            steps in proptest::collection::vec((0..3u64, 1..50u64), 1..3000),
            asked in proptest::collection::vec(any::<proptest::sample::Index>(), 50),
        ) {
            let start = Instant::now();
            let mut history = History::default();
            let (mut upto, mut lsn) = (0, 0);
            let mut all = Vec::new();
            for (place, (seqs, bytes)) in steps.iter().enumerate() {
                upto += seqs;
                lsn += bytes;
                let asked = start + Duration::from_millis(place as u64);
                all.push(sample(upto, asked, lsn));
                history.push(sample(upto, asked, lsn));
            }
            prop_assert!(history.samples.len() <= KEPT);
            prop_assert!(history.covering(upto + 1, 0).is_none());
            let now = start + Duration::from_secs(9);
            for place in asked {
                let seq = place.index(usize::try_from(upto).unwrap() + 1) as u64;
                let exact = all.iter().find(|sample| sample.upto >= seq).unwrap();
                prop_assert!(history.covering(seq, 1).unwrap().inserted >= exact.inserted);
                let replayed = place.index(usize::try_from(lsn).unwrap()) as u64;
                let exact = all.iter().rev().find(|sample| sample.inserted.0 <= replayed);
                if let Some(age) = history.age(at(replayed), now) {
                    prop_assert!(age >= now - exact.unwrap().asked);
                }
            }
        }
    }
}
