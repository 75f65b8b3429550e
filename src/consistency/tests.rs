//! What sessions need, in all orders of what happens to their writes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::{InVain, Left, NewTimeline, Reports, SessionHistory, WriteLog};
use crate::config::{Consistency, ConsistencyConfig, WriteScope};
use crate::node::{MissingRight, Place};
use crate::position::{Lsn, Position, Sample};
use crate::route::RouteReason;
use crate::wire::Wire;

const PRIMARY: Place = Place::Primary {
    flushed: None,
    inserted: None,
    synchronous_standbys: 0,
};

const RYW: Consistency = Consistency::ReadYourWrites;

fn of(scope: WriteScope) -> ConsistencyConfig {
    ConsistencyConfig::default().write_scope(scope)
}

/// The primary is asked, and is at `lsn`.
fn sampled(write_log: &WriteLog, timeline: u32, lsn: u64) {
    let sample = Sample {
        upto: write_log.drawn(),
        asked: Instant::now(),
        reached: Instant::now(),
        timeline,
        flushed: Lsn(lsn),
        inserted: Lsn(lsn),
    };
    let history = NewTimeline::History((1..timeline).map(|old| (old, Lsn(100))).collect());
    write_log.publish((7, 0), sample, Some(history));
}

fn replica(timeline: u32, lsn: u64) -> Arc<Reports> {
    let reports = Reports::new();
    let question = reports.asks();
    let place = Position::new(timeline, Lsn(lsn));
    let now = (question, Instant::now());
    reports.showed(place, &PRIMARY, now, &Arc::new(Wire::default()));
    reports
}

fn may_read(
    history: &SessionHistory,
    level: Consistency,
    write_log: &WriteLog,
    on: &Arc<Reports>,
) -> bool {
    let requirement = history.requirement(level, &of(WriteScope::Session), write_log);
    requirement.only_primary().is_none() && requirement.is_met_by(on, write_log)
}

#[test]
fn a_write_is_read_where_it_has_been_replayed() {
    let write_log = WriteLog::default();
    sampled(&write_log, 1, 10);
    let history = SessionHistory::default();
    assert!(
        may_read(&history, RYW, &write_log, &replica(1, 0)),
        "nothing written"
    );
    history.write_starts();
    assert!(
        !may_read(&history, RYW, &write_log, &replica(1, 99)),
        "under way"
    );
    history.write_acknowledged(write_log.draw(1), false, &write_log);
    assert!(
        !may_read(&history, RYW, &write_log, &replica(1, 99)),
        "nobody was asked since"
    );
    sampled(&write_log, 1, 20);
    assert!(!may_read(&history, RYW, &write_log, &replica(1, 19)));
    assert!(may_read(&history, RYW, &write_log, &replica(1, 20)));
    // What was learnt once stays, however far the primary goes on.
    sampled(&write_log, 1, 500);
    assert!(may_read(&history, RYW, &write_log, &replica(1, 20)));
    assert!(may_read(
        &history,
        Consistency::Eventual,
        &write_log,
        &replica(1, 0)
    ));
}

#[test]
fn a_write_left_behind_is_in_doubt_until_its_connection_has_answered() {
    let write_log = WriteLog::default();
    let wire = Arc::new(Wire::default());
    let history = SessionHistory::default();
    history.write_starts();
    history.write_left(Left::write(&wire, 1, false));
    sampled(&write_log, 1, 10);
    // It may not have reached the socket yet, though nothing is owed there.
    assert!(!may_read(&history, RYW, &write_log, &replica(1, 99)));
    history.answered_over(&wire);
    assert!(
        !may_read(&history, RYW, &write_log, &replica(1, 99)),
        "its sequence number is new"
    );
    sampled(&write_log, 1, 30);
    assert!(!may_read(&history, RYW, &write_log, &replica(1, 29)));
    assert!(may_read(&history, RYW, &write_log, &replica(1, 30)));
}

#[test]
fn a_causal_session_needs_what_it_saw() {
    let write_log = WriteLog::default();
    sampled(&write_log, 1, 10);
    let history = SessionHistory::default();
    let seen = replica(1, 50);
    history.saw_on(&seen, true);
    let causal = Consistency::Causal;
    assert!(
        may_read(&history, causal, &write_log, &seen),
        "the same node shows it"
    );
    assert!(
        may_read(&history, RYW, &write_log, &replica(1, 10)),
        "not its own"
    );
    assert!(
        !may_read(&history, causal, &write_log, &replica(1, 99)),
        "what it saw is not known"
    );
}

#[test]
fn what_a_failover_has_lost_is_said_and_not_compared() {
    let write_log = WriteLog::default();
    sampled(&write_log, 1, 90);
    let (kept, lost) = (
        Some(Position::new(1, Lsn(100))),
        Some(Position::new(1, Lsn(101))),
    );
    sampled(&write_log, 2, 150);
    let history = SessionHistory::resumed(7, lost, None);
    let requirement = history.requirement(RYW, &of(WriteScope::Session), &write_log);
    assert_eq!(requirement.only_primary(), Some(RouteReason::LostWrite));
    assert_eq!(history.lost(&write_log), lost);
    // What it had written and seen before, is to be seen wherever it goes on.
    assert_eq!(
        history.positions(&write_log).written,
        Some(Position::new(2, Lsn(100)))
    );
    let saw = SessionHistory::resumed(7, None, lost);
    assert!(!may_read(
        &saw,
        Consistency::Causal,
        &write_log,
        &replica(2, 99)
    ));
    assert!(may_read(
        &saw,
        Consistency::Causal,
        &write_log,
        &replica(2, 100)
    ));
    let history = SessionHistory::resumed(7, kept, None);
    assert!(may_read(&history, RYW, &write_log, &replica(2, 120)));
    // Another cluster's positions mean nothing here.
    let history = SessionHistory::resumed(8, lost, lost);
    assert!(may_read(&history, RYW, &write_log, &replica(1, 0)));
}

/// A session whose write was acknowledged by the primary of this timeline.
fn wrote_on(timeline: u32, write_log: &WriteLog) -> SessionHistory {
    let history = SessionHistory::default();
    history.write_starts();
    history.write_acknowledged(write_log.draw(timeline), false, write_log);
    history
}

#[test]
fn the_next_primary_covers_nothing_that_the_one_before_acknowledged() {
    let write_log = WriteLog::default();
    sampled(&write_log, 1, 90);
    let (known, unknown) = (wrote_on(1, &write_log), SessionHistory::default());
    sampled(&write_log, 1, 95);
    unknown.write_starts();
    unknown.write_acknowledged(write_log.draw(1), false, &write_log);
    assert!(!known.awaits_end_before(1, &write_log) && known.awaits_end_before(2, &write_log));
    assert_eq!(known.reason_on(1, &write_log), None);
    sampled(&write_log, 2, 150);
    assert!(!known.awaits_end_before(2, &write_log) && !unknown.awaits_end_before(2, &write_log));
    // It was told before the fork, and is kept.
    assert!(may_read(&known, RYW, &write_log, &replica(2, 100)));
    assert_eq!(
        (known.lost(&write_log), known.reason_on(2, &write_log)),
        (None, None)
    );
    // Of the other nobody can tell.
    let requirement = unknown.requirement(RYW, &of(WriteScope::Session), &write_log);
    assert_eq!(requirement.only_primary(), Some(RouteReason::LostWrite));
    assert_eq!(
        unknown.reason_on(2, &write_log),
        Some(RouteReason::LostWrite)
    );
    assert_eq!(unknown.lost(&write_log).map(|lost| lost.timeline), Some(1));
    // What it goes on with has all that survived.
    let written = unknown.positions(&write_log).written;
    assert_eq!(written, Some(Position::new(2, Lsn(150))));
    // A stranger has lost nothing, though he reads what the whole pool wrote.
    let stranger = SessionHistory::default();
    let requirement = stranger.requirement(RYW, &of(WriteScope::Pool), &write_log);
    assert_eq!(requirement.only_primary(), None);
    assert!(requirement.is_met_by(&replica(2, 150), &write_log));
    assert_eq!(stranger.lost(&write_log), None);
}

#[test]
fn a_loss_is_told_though_the_session_writes_on() {
    let write_log = WriteLog::default();
    sampled(&write_log, 1, 90);
    let history = wrote_on(1, &write_log);
    sampled(&write_log, 2, 150);
    history.write_starts();
    history.write_acknowledged(write_log.draw(2), false, &write_log);
    assert!(history.lost(&write_log).is_some());
    // And with what was acknowledged by the former primary after the other had been met.
    let late = wrote_on(1, &write_log);
    assert!(late.lost(&write_log).is_some());
    // What the new one acknowledges, its word covers.
    let fine = wrote_on(2, &write_log);
    sampled(&write_log, 2, 170);
    assert_eq!(fine.lost(&write_log), None);
    assert!(may_read(&fine, RYW, &write_log, &replica(2, 170)));
}

#[test]
fn a_write_left_on_a_primary_that_is_over_may_be_lost() {
    let write_log = WriteLog::default();
    sampled(&write_log, 1, 90);
    let broken = Arc::new(Wire::broken());
    for (answering, told) in [(true, true), (false, false)] {
        let history = SessionHistory::default();
        history.write_starts();
        history.write_left(Left::write(&broken, 1, answering));
        sampled(&write_log, 2, 150);
        // Whoever was told that the outcome is unknown needs no other word.
        assert_eq!(history.lost(&write_log).is_some(), told);
        assert!(!may_read(&history, RYW, &write_log, &replica(2, 999)));
    }
}

#[test]
fn a_token_without_a_place_tells_of_its_loss_by_its_timeline() {
    let write_log = WriteLog::default();
    let somewhere = |timeline| Some(Position::somewhere(timeline));
    let early = SessionHistory::resumed(7, somewhere(1), None);
    assert!(!may_read(&early, RYW, &write_log, &replica(1, 999)));
    assert_eq!(early.positions(&write_log).unknown, Some(1));
    sampled(&write_log, 2, 150);
    for lost in [early, SessionHistory::resumed(7, somewhere(1), None)] {
        assert!(lost.lost(&write_log).is_some());
    }
    // Of this timeline, or, as tokens once were, of an unknown one: what is asked next covers it.
    for timeline in [2, 0] {
        let fine = SessionHistory::resumed(7, somewhere(timeline), None);
        assert!(!may_read(&fine, RYW, &write_log, &replica(2, 150)));
        sampled(&write_log, 2, 150);
        assert!(may_read(&fine, RYW, &write_log, &replica(2, 150)));
        assert_eq!(fine.lost(&write_log), None);
    }
}

#[test]
fn what_is_not_known_to_be_kept_is_told() {
    let write_log = WriteLog::default();
    sampled(&write_log, 1, 90);
    let bounds = NewTimeline::Bounds { replayed: Lsn(100) };
    let sample = Sample {
        upto: write_log.drawn(),
        asked: Instant::now(),
        reached: Instant::now(),
        timeline: 2,
        flushed: Lsn(150),
        inserted: Lsn(150),
    };
    write_log.publish((7, 0), sample, Some(bounds));
    let at = |lsn| Some(Position::new(1, Lsn(lsn)));
    let lost = |lsn| SessionHistory::resumed(7, at(lsn), None).lost(&write_log);
    assert_eq!([lost(100), lost(101), lost(151)], [None, at(101), at(151)]);
    // How timelines ended before this process began, nobody has told it.
    let write_log = WriteLog::default();
    let bounds = NewTimeline::Bounds { replayed: Lsn(0) };
    write_log.publish((7, 0), sample, Some(bounds));
    let history = SessionHistory::resumed(7, at(5), None);
    let requirement = history.requirement(RYW, &of(WriteScope::Session), &write_log);
    assert_eq!(requirement.only_primary(), Some(RouteReason::UnclearWrite));
    assert_eq!(history.lost(&write_log), None);
}

#[test]
fn the_pool_sees_what_was_left_on_its_way() {
    let write_log = WriteLog::default();
    sampled(&write_log, 1, 10);
    let pool = |on: &Arc<Reports>| {
        let stranger = SessionHistory::default();
        let mut requirement = stranger.requirement(RYW, &of(WriteScope::Pool), &write_log);
        sampled(&write_log, 1, 20);
        requirement.refresh(&write_log);
        requirement.is_met_by(on, &write_log)
    };
    assert!(pool(&replica(1, 0)), "nothing was written");
    let wire = Arc::new(Wire::default());
    write_log.leave(Left::write(&wire, 1, false));
    write_log.leave(Left::write(&wire, 1, false));
    for _ in 0..2 {
        // It may be done at any moment.
        assert!(!pool(&replica(1, 19)));
        assert!(pool(&replica(1, 20)));
    }
    write_log.answered_over(&wire);
    assert!(!pool(&replica(1, 19)));
    let drawn = write_log.drawn();
    assert_eq!(write_log.of_all(), drawn, "it is over");
}

/// What may happen to a session and around it.
#[derive(Clone, Copy, Debug)]
enum Step {
    Write,
    WriteQuietly,
    Ask(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        Just(Step::Write),
        Just(Step::WriteQuietly),
        (0..20u64).prop_map(Step::Ask),
    ];
    proptest::collection::vec(step, 1..60)
}

proptest! {
    /// Each write puts the primary one byte further. Whatever is asked when, a replica that may be
    /// read from has the last write.
    #[test]
    fn whoever_may_be_read_from_has_every_write(steps in steps(), replayed in 0..80u64) {
        let write_log = WriteLog::default();
        let history = SessionHistory::default();
        let (mut primary, mut written) = (0, 0);
        sampled(&write_log, 1, primary);
        for step in steps {
            match step {
                Step::Write | Step::WriteQuietly => {
                    history.write_starts();
                    primary += 1;
                    written = primary;
                    let seq = match step {
                        Step::Write => write_log.draw(1),
                        _ => write_log.draw_quietly(1),
                    };
                    history.write_acknowledged(seq, false, &write_log);
                }
                Step::Ask(others) => {
                    primary += others;
                    sampled(&write_log, 1, primary);
                }
            }
            if may_read(&history, RYW, &write_log, &replica(1, replayed)) {
                prop_assert!(replayed >= written);
            }
        }
        // And a replica that has all may be read from, as soon as the primary has been asked.
        let _ = may_read(&history, RYW, &write_log, &replica(1, primary));
        sampled(&write_log, 1, primary);
        prop_assert!(may_read(&history, RYW, &write_log, &replica(1, primary)));
    }
}

/// A replica that does not tell its position.
fn mute() -> Arc<Reports> {
    let reports = Reports::new();
    let right = MissingRight {
        right: "EXECUTE ON FUNCTION pg_catalog.pg_last_wal_replay_lsn()".to_owned(),
        costs: "",
        grant: String::new(),
        hides_replay: true,
    };
    reports.limit(&Arc::from([right]));
    reports
}

/// Whether it may be read from a replica that tells no position, with this lag assumed.
fn may_assume(
    history: &SessionHistory,
    level: Consistency,
    scope: WriteScope,
    lag: impl Into<Option<Duration>>,
    write_log: &WriteLog,
) -> bool {
    let config = of(scope).assumed_lag(lag);
    let requirement = history.requirement(level, &config, write_log);
    requirement.only_primary().is_none() && requirement.is_met_by(&mute(), write_log)
}

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn a_replica_that_tells_no_position_serves_what_is_as_old_as_it_may_be() {
    use Consistency::{BoundedStaleness, Causal, Strong};
    use WriteScope::{Pool, Session};
    let write_log = WriteLog::default();
    let (writer, reader) = (SessionHistory::default(), SessionHistory::default());
    let may = |history, level, scope, lag| may_assume(history, level, scope, lag, &write_log);
    assert!(may(&writer, RYW, Pool, HOUR), "nothing was written");
    writer.write_starts();
    assert!(!may(&writer, RYW, Session, Duration::ZERO), "under way");
    writer.write_acknowledged(write_log.draw(1), false, &write_log);
    // The primary tells no position either.
    assert!(!may(&writer, RYW, Session, HOUR));
    assert!(may(&writer, RYW, Session, Duration::ZERO));
    assert!(!may_assume(&writer, RYW, Session, None, &write_log));
    assert!(!may(&reader, RYW, Pool, HOUR));
    assert!(may(&reader, RYW, Session, HOUR), "others wrote");
    // The primary tells positions.
    sampled(&write_log, 1, 20);
    assert!(!may(&writer, RYW, Session, HOUR));
    assert!(may(&writer, RYW, Session, Duration::ZERO));
    // What was seen counts at `Causal` alone.
    reader.saw_on(&mute(), true);
    assert!(may(&reader, RYW, Session, HOUR));
    assert!(!may(&reader, Causal, Session, HOUR));
    assert!(may(&reader, Causal, Session, Duration::ZERO));
    // That a session looks for a position is no write of the pool.
    let idle = WriteLog::default();
    let _ = may_assume(&reader, Causal, Pool, HOUR, &idle);
    assert!(may_assume(
        &SessionHistory::default(),
        RYW,
        Pool,
        HOUR,
        &idle
    ));
    assert!(!may(&reader, Strong, Session, HOUR));
    assert!(may(&reader, BoundedStaleness(HOUR), Session, HOUR));
    assert!(!may(&reader, BoundedStaleness(HOUR), Session, HOUR * 2));
}

#[test]
fn a_token_is_as_old_as_its_position_is_known_to_be() {
    let write_log = WriteLog::default();
    sampled(&write_log, 1, 20);
    let of_token = |lsn| SessionHistory::resumed(7, Some(Position::new(1, Lsn(lsn))), None);
    let may = |history: &SessionHistory, lag| {
        may_assume(history, RYW, WriteScope::Session, lag, &write_log)
    };
    std::thread::sleep(Duration::from_millis(2));
    let (known, unknown) = (of_token(20), of_token(21));
    assert!(may(&known, Duration::from_millis(2)));
    assert!(!may(&known, HOUR));
    // One that is not known is as old as its arrival.
    assert!(!may(&unknown, HOUR) && may(&unknown, Duration::ZERO));
}

// A token whose position nobody knew, of a session that has only read: what it saw is as old as its arrival.
#[test]
fn what_a_token_saw_somewhere_is_not_read_too_early() {
    let write_log = WriteLog::default();
    sampled(&write_log, 1, 20);
    let saw = SessionHistory::resumed(7, None, Some(Position::somewhere(1)));
    let may = |lag| {
        may_assume(
            &saw,
            Consistency::Causal,
            WriteScope::Session,
            lag,
            &write_log,
        )
    };
    assert!(!may(HOUR) && may(Duration::ZERO));
    sampled(&write_log, 1, 30);
    assert!(!may(HOUR) && may(Duration::ZERO));
}

#[test]
fn what_one_session_has_seen_binds_no_other() {
    let write_log = WriteLog::default();
    sampled(&write_log, 1, 10);
    // What it saw on a node that has gone: only the primary knows where that is.
    write_log.seek(0);
    sampled(&write_log, 1, 20);
    let stranger = SessionHistory::default();
    let meets = |lsn| {
        let requirement = stranger.requirement(RYW, &of(WriteScope::Pool), &write_log);
        requirement.is_met_by(&replica(1, lsn), &write_log)
    };
    assert!(meets(0));
    write_log.draw(1);
    sampled(&write_log, 1, 30);
    assert!(!meets(29) && meets(30), "a write through the pool");
}

#[test]
fn nothing_that_is_assumed_is_strong() {
    let write_log = WriteLog::default();
    let config = of(WriteScope::Session).assumed_lag(Duration::ZERO);
    let history = SessionHistory::default();
    let mut strong = history.requirement(Consistency::Strong, &config, &write_log);
    assert!(!strong.is_met_by(&mute(), &write_log));
    // The position of then is known.
    sampled(&write_log, 1, 20);
    strong.refresh(&write_log);
    assert!(!strong.is_met_by(&mute(), &write_log));
    assert!(strong.is_met_by(&replica(1, 20), &write_log));
}

#[test]
fn a_server_that_was_waited_for_in_vain_is_left_alone_until_it_is_there() {
    let (behind, there) = (replica(1, 100), replica(1, 200));
    let wanted = Position::new(1, Lsn(200));
    assert!(behind.is_worth_a_wait());
    for (reports, worth) in [(&behind, false), (&there, true)] {
        reports.waited_in_vain(InVain::until(wanted, HOUR));
        assert_eq!(reports.is_worth_a_wait(), worth, "{worth}");
    }
    // A server that cannot wait does not come to it by going on.
    there.waited_in_vain(InVain::anything(HOUR));
    assert!(!there.is_worth_a_wait());
    there.waited_in_vain(InVain::anything(Duration::ZERO));
    assert!(there.is_worth_a_wait());
}

#[test]
fn only_a_position_is_waited_for() {
    let write_log = WriteLog::default();
    let config = of(WriteScope::Session);
    let history = SessionHistory::default();
    let of_level = |level| {
        let mut requirement = history.requirement(level, &config, &write_log);
        requirement.refresh(&write_log);
        requirement.to_wait_for(1, &write_log)
    };
    sampled(&write_log, 1, 100);
    assert_eq!(of_level(RYW), None, "nothing was written");
    let old = Consistency::BoundedStaleness(HOUR);
    assert_eq!(of_level(old), None, "an age is no position");
    history.write_starts();
    history.write_acknowledged(write_log.draw(1), false, &write_log);
    assert_eq!(of_level(RYW), None, "the primary has not told where");
    sampled(&write_log, 1, 200);
    assert_eq!(of_level(RYW), Some(Position::new(1, Lsn(200))));
}
