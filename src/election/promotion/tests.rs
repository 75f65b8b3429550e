//! What has to hold before a replica is promoted, case by case and for whatever the nodes say.

use proptest::prelude::*;

use super::*;

const NEWEST: u32 = 3;

fn follows(name: &str, has: u64) -> Voter {
    Voter {
        name: name.to_owned(),
        priority: 1,
        vote: Ok(()),
        answer: Some(Answer {
            cluster: 7,
            timeline: NEWEST,
            role: Role::Follows {
                has: Lsn(has),
                hears: None,
                diverged: false,
            },
        }),
    }
}

fn gone(name: &str) -> Voter {
    Voter {
        vote: Err("does not answer".to_owned()),
        answer: None,
        ..follows(name, 0)
    }
}

/// The primary is gone; the replicas have so much of the log.
fn cluster(has: &[u64]) -> Vec<Voter> {
    let replica = |(place, has): (usize, &u64)| follows(&format!("r{}", place + 1), *has);
    let replicas = has.iter().enumerate().map(replica);
    std::iter::once(gone("p")).chain(replicas).collect()
}

fn known(written: u64) -> Known {
    Known {
        cluster: Some(7),
        newest: NEWEST,
        primary: Some(0),
        written: Some(Position::new(NEWEST, Lsn(written))),
        confirming: Some(0),
    }
}

const TERMS: Terms = Terms {
    target: None,
    witness_age: Duration::from_secs(10),
    max_loss_bytes: 100,
    forced: false,
    yielding: None,
};

fn refusals(voters: &[Voter], known: &Known, terms: &Terms) -> Vec<Refusal> {
    candidate(voters, known, terms).unwrap_err()
}

fn answer(voter: &mut Voter) -> &mut Answer {
    voter.answer.as_mut().unwrap()
}

#[test]
fn the_replica_with_the_most_log_is_chosen_and_of_equals_the_preferred_one() {
    assert_eq!(candidate(&cluster(&[500, 501]), &known(501), &TERMS), Ok(2));
    assert_eq!(candidate(&cluster(&[500, 500]), &known(500), &TERMS), Ok(1));
    let mut preferred = cluster(&[500, 500]);
    preferred[2].priority = 5;
    assert_eq!(candidate(&preferred, &known(500), &TERMS), Ok(2));
    preferred[1].priority = 0;
    preferred[2].priority = 0;
    let none = refusals(&preferred, &known(500), &TERMS);
    assert_eq!(none, [Refusal::NoCandidate { timeline: NEWEST }]);
}

#[test]
fn whoever_takes_writes_is_not_replaced_even_by_force() {
    let mut alive = cluster(&[500, 500]);
    alive[0].answer = Some(Answer {
        cluster: 7,
        timeline: NEWEST,
        role: Role::TakesWrites,
    });
    for forced in [false, true] {
        let terms = Terms { forced, ..TERMS };
        let refused = refusals(&alive, &known(500), &terms);
        assert!(refused.contains(&Refusal::PrimaryAlive {
            node: "p".to_owned()
        }));
    }
    // One that was overtaken, or is of another cluster, counts for nothing.
    answer(&mut alive[0]).timeline = NEWEST - 1;
    assert_eq!(candidate(&alive, &known(500), &TERMS), Ok(1));
    answer(&mut alive[0]).timeline = NEWEST;
    answer(&mut alive[0]).cluster = 8;
    assert_eq!(candidate(&alive, &known(500), &TERMS), Ok(1));
    answer(&mut alive[0]).cluster = 7;
    answer(&mut alive[0]).timeline = NEWEST + 1;
    assert!(matches!(
        refusals(&alive, &known(500), &TERMS)[..],
        [Refusal::Overtaken { timeline: 4, .. }]
    ));
}

#[test]
fn a_primary_that_gives_way_is_replaced_and_no_other() {
    let mut alive = cluster(&[500, 500]);
    let rules = Answer {
        cluster: 7,
        timeline: NEWEST,
        role: Role::TakesWrites,
    };
    alive[0].answer = Some(rules);
    let terms = Terms {
        yielding: Some(0),
        ..TERMS
    };
    assert_eq!(candidate(&alive, &known(500), &terms), Ok(1));
    alive[2].answer = Some(rules);
    assert!(candidate(&alive, &known(500), &terms).is_err());
}

#[test]
fn a_replica_that_hears_of_the_primary_speaks_for_its_life() {
    let mut heard = cluster(&[500, 500]);
    let hears = |voter: &mut Voter, ago: Option<u64>| {
        answer(voter).role = Role::Follows {
            has: Lsn(500),
            hears: Some(Heard {
                from: Some(0),
                ago: ago.map(Duration::from_secs),
            }),
            diverged: false,
        };
    };
    hears(&mut heard[2], Some(9));
    assert!(matches!(
        refusals(&heard, &known(500), &TERMS)[..],
        [Refusal::PrimaryHeard { .. }]
    ));
    hears(&mut heard[2], None);
    assert!(candidate(&heard, &known(500), &TERMS).is_err());
    hears(&mut heard[2], Some(10));
    assert_eq!(candidate(&heard, &known(500), &TERMS), Ok(1));
    hears(&mut heard[2], Some(1));
    let forced = Terms {
        forced: true,
        ..TERMS
    };
    assert_eq!(candidate(&heard, &known(500), &forced), Ok(1));
}

#[test]
fn who_passes_on_is_no_witness_and_who_may_have_been_promoted_is() {
    let mut voters = cluster(&[500, 500, 500, 500]);
    answer(&mut voters[2]).role = Role::Follows {
        has: Lsn(500),
        hears: Some(Heard {
            from: Some(1),
            ago: Some(Duration::from_secs(1)),
        }),
        diverged: false,
    };
    assert_eq!(candidate(&voters, &known(500), &TERMS), Ok(1));
    // It was promoted, and is heard of by this replica alone. Who is the primary is not known then.
    voters[1] = gone("r1");
    let known = Known {
        primary: None,
        ..known(500)
    };
    assert!(matches!(
        &refusals(&voters, &known, &TERMS)[..],
        [Refusal::PrimaryHeard { by, .. }] if by == "r2"
    ));
    // On an older timeline it hears of one that was overtaken.
    answer(&mut voters[2]).timeline = NEWEST - 1;
    assert_eq!(candidate(&voters, &known, &TERMS), Ok(3));
}

#[test]
fn a_majority_of_all_configured_nodes_has_to_agree() {
    let mut voters = cluster(&[500, 500]);
    voters[1].vote = Err("another process holds the lock".to_owned());
    assert!(matches!(
        &refusals(&voters, &known(500), &TERMS)[0],
        Refusal::NoMajority { agree: 1, needed: 2, others } if others.len() == 2
    ));
    // Of two nodes the one that is left is no majority.
    assert!(candidate(&cluster(&[500]), &known(500), &TERMS).is_err());
}

#[test]
fn what_may_be_lost_is_bounded() {
    assert_eq!(candidate(&cluster(&[500, 400]), &known(600), &TERMS), Ok(1));
    assert!(matches!(
        refusals(&cluster(&[500, 400]), &known(601), &TERMS)[..],
        [Refusal::WouldLose {
            bytes: 101,
            allowed: 100,
            ..
        }]
    ));
    let mut excluded = cluster(&[500, 601]);
    excluded[2].priority = 0;
    assert!(matches!(
        refusals(&excluded, &known(500), &TERMS)[..],
        [Refusal::Behind { bytes: 101, .. }]
    ));
    // What the primary wrote on a timeline that has ended says nothing of this one.
    let mut old = known(9999);
    old.written = Some(Position::new(NEWEST - 1, Lsn(9999)));
    assert_eq!(candidate(&cluster(&[500, 400]), &old, &TERMS), Ok(1));
}

#[test]
fn with_synchronous_replication_no_confirmer_may_be_missing() {
    let synchronous = Known {
        confirming: Some(1),
        ..known(500)
    };
    let mut voters = cluster(&[500, 500, 500]);
    assert_eq!(candidate(&voters, &synchronous, &TERMS), Ok(1));
    voters[3] = gone("r3");
    voters.push(follows("r4", 500));
    assert!(matches!(
        &refusals(&voters, &synchronous, &TERMS)[..],
        [Refusal::SynchronousMissing { nodes, confirming: Some(1) }] if nodes == &["r3"]
    ));
    let two = Known {
        confirming: Some(2),
        ..synchronous
    };
    assert_eq!(candidate(&voters, &two, &TERMS), Ok(1));
}

#[test]
fn who_receives_nothing_may_have_confirmed_on_a_newer_timeline_than_it_tells() {
    let synchronous = Known {
        confirming: Some(1),
        ..known(500)
    };
    let mut voters = cluster(&[500, 500, 700]);
    answer(&mut voters[3]).timeline = NEWEST - 1;
    assert!(matches!(
        &refusals(&voters, &synchronous, &TERMS)[..],
        [Refusal::SynchronousMissing { nodes, .. }] if nodes == &["r3"]
    ));
    // One that receives says of which timeline, and one that is ahead of a fork was found out.
    let receives = Heard {
        from: None,
        ago: Some(TERMS.witness_age),
    };
    for (hears, diverged) in [(Some(receives), false), (None, true)] {
        let has = Lsn(700);
        answer(&mut voters[3]).role = Role::Follows {
            has,
            hears,
            diverged,
        };
        assert_eq!(candidate(&voters, &synchronous, &TERMS), Ok(1));
    }
}

#[test]
fn the_operators_choice_is_held_to_the_same_terms() {
    let pick = |place, forced| Terms {
        target: Some(place),
        forced,
        ..TERMS
    };
    let voters = cluster(&[500, 300]);
    assert_eq!(candidate(&voters, &known(500), &pick(1, false)), Ok(1));
    assert_eq!(refusals(&voters, &known(500), &pick(2, false)).len(), 2);
    assert_eq!(candidate(&voters, &known(500), &pick(2, true)), Ok(2));
    assert!(candidate(&voters, &known(500), &pick(0, true)).is_err());
    let mut diverged = cluster(&[500, 900]);
    answer(&mut diverged[2]).role = Role::Follows {
        has: Lsn(900),
        hears: None,
        diverged: true,
    };
    assert!(candidate(&diverged, &known(500), &pick(2, true)).is_err());
    assert_eq!(candidate(&diverged, &known(500), &TERMS), Ok(1));
}

fn voter() -> impl Strategy<Value = Voter> {
    let role = prop_oneof![
        1 => Just(Role::TakesWrites),
        5 => (0..900u64, proptest::option::weighted(0.2, 0..20u64), proptest::bool::weighted(0.1))
            .prop_map(|(has, hears, diverged)| Role::Follows {
                has: Lsn(has),
                hears: hears.map(|ago| Heard {
                    from: None,
                    ago: Some(Duration::from_secs(ago)),
                }),
                diverged,
            }),
    ];
    let answer = (7..9u64, 2..4u32, role).prop_map(|(cluster, timeline, role)| Answer {
        cluster,
        timeline,
        role,
    });
    let answer = proptest::option::weighted(0.8, answer);
    (answer, any::<bool>(), 0..3u32).prop_map(|(answer, agrees, priority)| Voter {
        vote: if agrees && answer.is_some() {
            Ok(())
        } else {
            Err("no".to_owned())
        },
        priority,
        answer,
        ..follows("n", 0)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, ..ProptestConfig::default() })]

    #[test]
    fn nobody_is_promoted_beside_a_primary_without_a_majority_or_with_too_great_a_loss(
        voters in proptest::collection::vec(voter(), 1..7),
        written in 0..900u64,
        confirming in proptest::option::of(0..3usize),
    ) {
        let known = Known { confirming, ..known(written) };
        let Ok(place) = candidate(&voters, &known, &TERMS) else { return Ok(()); };
        let chosen = &voters[place];
        let ours = |voter: &&Voter| voter.answer.is_some_and(|answer| answer.cluster == 7);
        let own = has(chosen, &known).unwrap();
        prop_assert!(chosen.priority > 0 && chosen.vote.is_ok());
        prop_assert!(voters.iter().filter(|voter| voter.vote.is_ok()).count() * 2 > voters.len());
        prop_assert!(own.0 + TERMS.max_loss_bytes >= written);
        for voter in voters.iter().filter(ours) {
            let answer = voter.answer.unwrap();
            prop_assert!(answer.timeline <= NEWEST);
            prop_assert!(answer.role != Role::TakesWrites || answer.timeline < NEWEST);
            let others = has(voter, &known).unwrap_or(Lsn(0));
            prop_assert!(others.0 <= own.0 + TERMS.max_loss_bytes);
        }
        let unheard = voters.iter().skip(1).filter(|voter| {
            !matches!(voter.answer, Some(Answer { role: Role::Follows { .. }, .. }))
        });
        prop_assert!(confirming == Some(0) || unheard.count() < confirming.unwrap_or(1));
    }
}
