//! What each standby must follow, by cases and by properties.

use proptest::prelude::*;

use super::*;

/// The second timeline began at 100.
fn forks() -> Forks {
    let mut forks = Forks::default();
    forks.learn_history(2, &[(1, Lsn(100))]);
    forks
}

fn ruler(forks: &Forks) -> Ruler<'_> {
    Ruler {
        name: "new".to_owned(),
        rules: true,
        timeline: 2,
        newest: 2,
        since: Duration::ZERO,
        forks,
    }
}

/// It followed the primary that was replaced, and has all that the new one has.
fn standby() -> Standby {
    Standby {
        timeline: 1,
        exact: true,
        replayed: Some(Lsn(100)),
        received: Some(Lsn(100)),
        replay: Replay::Done,
        streams: None,
        leads: Leads::ToTheReplaced,
        target_timeline: "latest".to_owned(),
        slot: None,
        grants: None,
        waits: Duration::ZERO,
    }
}

fn leading(leads: Leads) -> Standby {
    Standby { leads, ..standby() }
}

fn with_slot(state: SlotState) -> Standby {
    let name = "s2".to_owned();
    Standby {
        slot: Some(Slot { name, state }),
        ..standby()
    }
}

fn of(standby: &Standby) -> Step {
    next(standby, &ruler(&forks()))
}

#[test]
fn who_followed_the_replaced_primary_follows_the_new_one() {
    assert_eq!(of(&standby()), Step::Repoint);
    // It still receives from the old one, which lives.
    let fed = Standby {
        streams: Some(1),
        ..standby()
    };
    assert_eq!(of(&fed), Step::Repoint);
    let done = Standby {
        streams: Some(2),
        ..fed
    };
    assert_eq!(of(&done), Step::Nothing);
    // cloudnative-pg #11252: what a node was told when it was a standby itself goes along with copies of it.
    assert_eq!(of(&leading(Leads::Itself)), Step::Repoint);
}

// repmgr #130, #531: a standby behind another standby was attached to the primary though nobody had asked for it.
#[test]
fn who_follows_another_standby_stays() {
    let leads = Leads::ToStandby("s1".to_owned());
    let stays = Step::Wait(Wait::Cascades("s1".to_owned()));
    assert_eq!(of(&leading(leads)), stays);
    let unheard = leading(Leads::ToUnheard("s1".to_owned()));
    assert_eq!(of(&unheard), Step::Leave(Left::ToUnheard("s1".to_owned())));
}

// repmgr #386: "STANDBY FOLLOW successful", of a standby that was ahead. ubicloud #5526: it stood there for ever.
#[test]
fn who_is_ahead_is_left() {
    let at = Position::new(1, Lsn(101));
    let ahead = Standby {
        replayed: Some(Lsn(101)),
        received: Some(Lsn(101)),
        ..standby()
    };
    let left = Step::Leave(Left::Diverged { at, replayed: true });
    assert_eq!(of(&ahead), left);
    // Also if somebody else has told it to follow.
    let told = Standby {
        leads: Leads::ToTheRuler,
        ..ahead.clone()
    };
    assert_eq!(of(&told), left);
    // It may be on the new timeline.
    let vague = Standby {
        exact: false,
        ..ahead
    };
    assert_eq!(of(&vague), Step::Repoint);
}

// repmgr #604: refused under load, for a part of a record that nobody ever replays.
#[test]
fn half_a_record_beyond_the_fork_is_none() {
    let half = |replay| Standby {
        received: Some(Lsn(130)),
        replay,
        ..standby()
    };
    assert_eq!(of(&half(Replay::Done)), Step::Repoint);
    assert_eq!(of(&half(Replay::Busy)), Step::Wait(Wait::Replays));
    let at = Position::new(1, Lsn(130));
    let left = Left::Diverged {
        at,
        replayed: false,
    };
    assert_eq!(of(&half(Replay::Held)), Step::Leave(left));
}

// yandex/pgconsul #174, repmgr #520: somebody acted on what was decided before.
#[test]
fn nothing_is_done_for_a_primary_that_was_overtaken() {
    let forks = forks();
    let wait = Step::Wait(Wait::NoRuler);
    for wrong in [
        Ruler {
            newest: 3,
            ..ruler(&forks)
        },
        Ruler {
            rules: false,
            ..ruler(&forks)
        },
        Ruler {
            timeline: 1,
            newest: 1,
            ..ruler(&forks)
        },
    ] {
        let standby = Standby {
            timeline: 2,
            ..standby()
        };
        assert_eq!(next(&standby, &wrong), wait, "{wrong:?}");
    }
}

// repmgr #128, #452: the slot was missing on the new primary. zwrm #560, pg_auto_failover #283: slots of those that
// never came filled its disk.
#[test]
fn the_slot_is_made_first_and_only_for_who_comes() {
    let make = Step::MakeSlot("s2".to_owned());
    assert_eq!(of(&with_slot(SlotState::Missing)), make);
    assert_eq!(of(&with_slot(SlotState::Free)), Step::Repoint);
    for state in [SlotState::InUse, SlotState::Lost, SlotState::Logical] {
        let step = of(&with_slot(state));
        assert!(matches!(step, Step::Leave(Left::Slot { .. })), "{step:?}");
    }
    let told = Standby {
        leads: Leads::ToTheRuler,
        ..with_slot(SlotState::Missing)
    };
    assert_eq!(of(&told), make);
    for never in [
        Standby {
            target_timeline: "current".to_owned(),
            ..with_slot(SlotState::Missing)
        },
        Standby {
            grants: Some("GRANT".to_owned()),
            ..with_slot(SlotState::Missing)
        },
        Standby {
            replayed: Some(Lsn(500)),
            ..with_slot(SlotState::Missing)
        },
        Standby {
            leads: Leads::Nowhere,
            ..with_slot(SlotState::Missing)
        },
    ] {
        let step = of(&never);
        assert!(matches!(step, Step::Leave(_)), "{step:?}");
    }
}

// CrunchyData/crunchy-containers #225: standbys without `recovery_target_timeline = latest` stayed behind.
#[test]
fn who_goes_to_no_other_timeline_is_left() {
    let current = Standby {
        target_timeline: "current".to_owned(),
        ..standby()
    };
    let left = Left::NotLatest("current".to_owned());
    assert_eq!(of(&current), Step::Leave(left));
}

#[test]
fn what_is_not_understood_is_left() {
    for (leads, left) in [
        (Leads::Nowhere, Left::FollowsNobody),
        (Leads::ToSeveral { finds: false }, Left::ToSeveral),
        (Leads::Unreadable, Left::Unreadable),
        (
            Leads::Elsewhere("vip:1".to_owned()),
            Left::Elsewhere("vip:1".to_owned()),
        ),
        (
            Leads::Hidden("GRANT".to_owned()),
            Left::Rights("GRANT".to_owned()),
        ),
    ] {
        let standby = Standby {
            waits: PATIENCE,
            ..leading(leads)
        };
        assert_eq!(of(&standby), Step::Leave(left));
    }
    let moving = leading(Leads::Elsewhere("vip:1".to_owned()));
    assert_eq!(of(&moving), Step::Wait(Wait::Elsewhere));
    // It finds the primary by itself.
    let finds = leading(Leads::ToSeveral { finds: true });
    assert_eq!(of(&finds), Step::Wait(Wait::Told));
}

// repmgr #444, #783: a standby was reported as attached that was not.
#[test]
fn who_was_told_and_does_not_follow_is_told_of() {
    let told = |waits| Standby {
        waits,
        ..leading(Leads::ToTheRuler)
    };
    assert_eq!(of(&told(Duration::ZERO)), Step::Wait(Wait::Told));
    let step = of(&told(PATIENCE));
    assert!(matches!(step, Step::Leave(Left::Silent { .. })), "{step:?}");
}

#[test]
fn where_the_fork_is_not_known_it_is_waited_for_and_then_the_servers_compare() {
    let unknown = Forks::default();
    let early = ruler(&unknown);
    assert_eq!(next(&standby(), &early), Step::Wait(Wait::NoFork));
    let late = Ruler {
        since: UNKNOWN,
        ..ruler(&unknown)
    };
    assert_eq!(next(&standby(), &late), Step::Repoint);
}

fn any_standby() -> impl Strategy<Value = Standby> {
    let leads = proptest::sample::select(vec![
        Leads::Nowhere,
        Leads::Itself,
        Leads::ToTheRuler,
        Leads::ToTheReplaced,
        Leads::ToStandby("s".to_owned()),
        Leads::ToUnheard("s".to_owned()),
        Leads::ToSeveral { finds: true },
        Leads::ToSeveral { finds: false },
        Leads::Elsewhere("s".to_owned()),
        Leads::Unreadable,
        Leads::Hidden("GRANT".to_owned()),
    ]);
    let replay = proptest::sample::select(vec![Replay::Done, Replay::Busy, Replay::Held]);
    let slot = proptest::option::of(proptest::sample::select(vec![
        SlotState::Missing,
        SlotState::Free,
        SlotState::InUse,
        SlotState::Lost,
        SlotState::Logical,
    ]));
    let log = (1..4_u32, any::<bool>(), 0..200_u64, 0..50_u64);
    let rest = (
        proptest::option::of(1..4_u32),
        any::<bool>(),
        proptest::option::of(Just("GRANT".to_owned())),
        0..40_u64,
    );
    (leads, replay, slot, log, rest).prop_map(
        |(
            leads,
            replay,
            slot,
            (timeline, exact, replayed, more),
            (streams, latest, grants, waits),
        )| Standby {
            timeline,
            exact,
            replayed: Some(Lsn(replayed)),
            received: Some(Lsn(replayed + more)),
            replay,
            streams,
            leads,
            target_timeline: if latest { "latest" } else { "current" }.to_owned(),
            slot: slot.map(|state| Slot {
                name: "s2".to_owned(),
                state,
            }),
            grants,
            waits: Duration::from_secs(waits),
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_standby_is_told_only_what_it_can_do(
        standby in any_standby(),
        rules in any::<bool>(),
        timeline in 1..4_u32,
        newest in 1..4_u32,
    ) {
        let forks = forks();
        let ruler = Ruler { rules, timeline, newest, ..ruler(&forks) };
        let step = next(&standby, &ruler);
        if matches!(step, Step::Repoint | Step::MakeSlot(_)) {
            prop_assert!(rules && timeline >= newest && timeline >= standby.timeline);
            prop_assert!(standby.streams.is_none_or(|its| its < timeline));
            prop_assert_eq!(&standby.target_timeline, "latest");
            let beyond = standby.exact && standby.timeline == 1 && standby.replayed > Some(Lsn(100));
            prop_assert!(!(beyond && timeline == 2));
        }
        if step == Step::Repoint {
            prop_assert!(matches!(standby.leads, Leads::ToTheReplaced | Leads::Itself));
            prop_assert!(standby.grants.is_none());
            let ready = standby.slot.as_ref().is_none_or(|slot| slot.state == SlotState::Free);
            prop_assert!(ready);
            // Then it leads there, and whoever decides again does not tell it again.
            let told = Standby { leads: Leads::ToTheRuler, ..standby };
            prop_assert_ne!(next(&told, &ruler), Step::Repoint);
        }
    }
}
