//! Tests without any server.

use super::setup::literal;
use super::*;
use crate::position::{Lsn, Position};

fn at(lsn: u64) -> Position {
    Position::new(1, Lsn(lsn))
}

fn sighting(worker: i32, timeline: u32, applied: u64, here: u64) -> Sighting {
    Sighting {
        worker,
        timeline,
        applied: Lsn(applied),
        here: at(here),
    }
}

#[test]
fn a_group_is_whole_if_it_follows_all_that_were_not_given_up() {
    use super::membership::is_whole;
    use Follows::{GaveUp, NotYet, Yes};

    let whole = |all: [[Follows; 3]; 3]| {
        let all = all.map(|follows| follows.to_vec());
        [0, 1, 2].map(|group| is_whole(&all, group))
    };
    let same = [Yes; 3];
    assert_eq!(whole([same, same, same]), [true; 3]);
    // The third is given up, is back, and is taken back.
    let gave_up = [Yes, Yes, GaveUp];
    assert_eq!(whole([gave_up, gave_up, same]), [true, true, false]);
    assert_eq!(whole([gave_up, same, same]), [true, true, false]);
    let copies = [NotYet, Yes, Yes];
    assert_eq!(whole([gave_up, gave_up, copies]), [true, true, false]);
    assert_eq!(whole([same, same, copies]), [true, true, false]);
    // Another one has dropped what it was subscribed to of the third while the first still has it disabled.
    assert_eq!(
        whole([gave_up, [Yes, Yes, NotYet], copies]),
        [true, true, false]
    );
}

#[test]
fn what_is_applied_is_told_by_the_first_place_that_has_it() {
    let applied = Applied::new(2);
    assert_eq!(applied.shows(1, at(10)), None);
    applied.saw(1, sighting(7, 1, 10, 100));
    applied.saw(1, sighting(7, 1, 10, 150));
    applied.saw(1, sighting(7, 1, 20, 200));
    assert_eq!(applied.shows(1, at(5)), Some(at(100)));
    assert_eq!(applied.shows(1, at(10)), Some(at(100)));
    assert_eq!(applied.shows(1, at(11)), Some(at(200)));
    assert_eq!(applied.shows(1, at(21)), None);
}

#[test]
fn after_a_failover_of_the_writer_the_old_worker_says_nothing() {
    let applied = Applied::new(2);
    applied.saw(1, sighting(7, 1, 30, 100));
    // The worker is still connected to the primary that was replaced.
    applied.saw(1, sighting(7, 2, 40, 110));
    assert_eq!(applied.shows(1, at(30)), None);
    // Or it is connected to the new one already, which only that can tell.
    applied.vouches(1, 7);
    assert!(applied.saw(1, sighting(7, 2, 24, 115)));
    assert_eq!(applied.shows(1, at(24)), Some(at(115)));
    applied.saw(1, sighting(8, 2, 25, 120));
    assert_eq!(applied.shows(1, at(25)), Some(at(120)));
    assert_eq!(applied.shows(1, at(30)), None);
}

#[test]
fn homes_only_become_newer() {
    let homes = Homes::new();
    homes.learn("ada", 1, 3);
    homes.learn("ada", 0, 2);
    assert_eq!(homes.get("ada"), Some((1, 3)));
}

#[test]
fn literals_hold_whatever_they_are_given() {
    assert_eq!(literal(r"o'brien\"), r"E'o''brien\\'");
}

#[test]
fn refusals_are_read() {
    let elsewhere = Refusal::Elsewhere {
        group: "a b".to_owned(),
        generation: 4,
        settled: false,
    };
    assert_eq!(Refusal::read(Some("4 f a b")), elsewhere);
    assert_eq!(Refusal::read(None), Refusal::Unknown);
}
