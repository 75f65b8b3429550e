//! What sessions need, in all orders of what happens to their writes.

use std::sync::Arc;
use std::time::Instant;

use proptest::prelude::*;

use super::{Board, Guarantee, NewTimeline, Progress};
use crate::config::{Consistency, WriteScope};
use crate::position::{Lsn, Position, Sample};
use crate::route::RouteReason;
use crate::wire::Wire;

const RYW: Consistency = Consistency::ReadYourWrites;

/// The primary is asked, and is at `lsn`.
fn sampled(board: &Board, timeline: u32, lsn: u64) {
    let sample = Sample {
        upto: board.drawn(),
        asked: Instant::now(),
        timeline,
        flushed: Lsn(lsn),
        inserted: Lsn(lsn),
        asynchronous: false,
    };
    let history = NewTimeline::History((1..timeline).map(|old| (old, Lsn(100))).collect());
    board.publish((7, 0), sample, Some(history));
}

fn replica(timeline: u32, lsn: u64) -> Arc<Progress> {
    let progress = Progress::new();
    let question = progress.asks();
    let place = Position::new(timeline, Lsn(lsn));
    let now = (question, Instant::now());
    progress.publish(now, place, (None, None), &Arc::new(Wire::default()));
    progress
}

fn may_read(guarantee: &Guarantee, level: Consistency, board: &Board, on: &Arc<Progress>) -> bool {
    let need = guarantee.need(level, WriteScope::Session, board);
    need.only_primary().is_none() && need.is_met_by(on, board)
}

#[test]
fn a_write_is_read_where_it_has_been_replayed() {
    let board = Board::default();
    sampled(&board, 1, 10);
    let guarantee = Guarantee::default();
    assert!(
        may_read(&guarantee, RYW, &board, &replica(1, 0)),
        "nothing written"
    );
    guarantee.write_starts();
    assert!(
        !may_read(&guarantee, RYW, &board, &replica(1, 99)),
        "under way"
    );
    guarantee.write_acknowledged(Some(board.draw()), false);
    assert!(
        !may_read(&guarantee, RYW, &board, &replica(1, 99)),
        "nobody was asked since"
    );
    sampled(&board, 1, 20);
    assert!(!may_read(&guarantee, RYW, &board, &replica(1, 19)));
    assert!(may_read(&guarantee, RYW, &board, &replica(1, 20)));
    // What was learnt once stays, however far the primary goes on.
    sampled(&board, 1, 500);
    assert!(may_read(&guarantee, RYW, &board, &replica(1, 20)));
    assert!(may_read(
        &guarantee,
        Consistency::Eventual,
        &board,
        &replica(1, 0)
    ));
}

#[test]
fn a_write_left_behind_is_in_doubt_until_its_connection_has_answered() {
    let board = Board::default();
    let wire = Arc::new(Wire::default());
    let guarantee = Guarantee::default();
    guarantee.write_starts();
    guarantee.write_left(&wire, false);
    sampled(&board, 1, 10);
    // It may not have reached the socket yet, though nothing is owed there.
    assert!(!may_read(&guarantee, RYW, &board, &replica(1, 99)));
    guarantee.answered_over(&wire);
    assert!(
        !may_read(&guarantee, RYW, &board, &replica(1, 99)),
        "its ticket is new"
    );
    sampled(&board, 1, 30);
    assert!(!may_read(&guarantee, RYW, &board, &replica(1, 29)));
    assert!(may_read(&guarantee, RYW, &board, &replica(1, 30)));
}

#[test]
fn a_causal_session_needs_what_it_saw() {
    let board = Board::default();
    sampled(&board, 1, 10);
    let guarantee = Guarantee::default();
    let seen = replica(1, 50);
    guarantee.saw_on(&seen, &Wire::default());
    let causal = Consistency::Causal;
    assert!(
        may_read(&guarantee, causal, &board, &seen),
        "the same node shows it"
    );
    assert!(
        may_read(&guarantee, RYW, &board, &replica(1, 10)),
        "not its own"
    );
    assert!(
        !may_read(&guarantee, causal, &board, &replica(1, 99)),
        "what it saw is not known"
    );
}

#[test]
fn what_a_failover_has_lost_is_said_and_not_compared() {
    let board = Board::default();
    sampled(&board, 1, 90);
    let (kept, lost) = (
        Some(Position::new(1, Lsn(100))),
        Some(Position::new(1, Lsn(101))),
    );
    sampled(&board, 2, 150);
    let guarantee = Guarantee::resumed(7, lost, None);
    let need = guarantee.need(RYW, WriteScope::Session, &board);
    assert_eq!(need.only_primary(), Some(RouteReason::LostWrite));
    assert_eq!(guarantee.lost(), lost);
    // What it had written and seen before, is to be seen wherever it goes on.
    assert_eq!(
        guarantee.positions(&board).written,
        Some(Position::new(2, Lsn(100)))
    );
    let saw = Guarantee::resumed(7, None, lost);
    assert!(!may_read(
        &saw,
        Consistency::Causal,
        &board,
        &replica(2, 99)
    ));
    assert!(may_read(
        &saw,
        Consistency::Causal,
        &board,
        &replica(2, 100)
    ));
    let guarantee = Guarantee::resumed(7, kept, None);
    assert!(may_read(&guarantee, RYW, &board, &replica(2, 120)));
    // Another cluster's positions mean nothing here.
    let guarantee = Guarantee::resumed(8, lost, lost);
    assert!(may_read(&guarantee, RYW, &board, &replica(1, 0)));
}

/// What may happen to a session and around it.
#[derive(Clone, Copy, Debug)]
enum Step {
    Write,
    WriteWithoutTicket,
    Ask(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        Just(Step::Write),
        Just(Step::WriteWithoutTicket),
        (0..20u64).prop_map(Step::Ask),
    ];
    proptest::collection::vec(step, 1..60)
}

proptest! {
    /// Each write puts the primary one byte further. Whatever is asked when, a replica that may be
    /// read from has the last write.
    #[test]
    fn whoever_may_be_read_from_has_every_write(steps in steps(), replayed in 0..80u64) {
        let board = Board::default();
        let guarantee = Guarantee::default();
        let (mut primary, mut written) = (0, 0);
        sampled(&board, 1, primary);
        for step in steps {
            match step {
                Step::Write | Step::WriteWithoutTicket => {
                    guarantee.write_starts();
                    primary += 1;
                    written = primary;
                    let ticket = matches!(step, Step::Write).then(|| board.draw());
                    guarantee.write_acknowledged(ticket, false);
                }
                Step::Ask(others) => {
                    primary += others;
                    sampled(&board, 1, primary);
                }
            }
            if may_read(&guarantee, RYW, &board, &replica(1, replayed)) {
                prop_assert!(replayed >= written);
            }
        }
        // And a replica that has all may be read from, as soon as the primary has been asked.
        let _ = may_read(&guarantee, RYW, &board, &replica(1, primary));
        sampled(&board, 1, primary);
        prop_assert!(may_read(&guarantee, RYW, &board, &replica(1, primary)));
    }
}
