//! Tables of who rules, and laws that hold whatever the nodes say.

use proptest::prelude::*;

use super::*;

/// A node that answered, undeclared, of cluster 7.
fn node(role: ServerRole, timeline: u32) -> Sight {
    Sight {
        declared: DeclaredRole::Unknown,
        role: Some(role),
        asked: true,
        reachable: true,
        cluster: Some(7),
        timeline,
        twin: false,
        elsewhere: false,
    }
}

fn primary(timeline: u32) -> Sight {
    node(ServerRole::Primary, timeline)
}

fn standby(timeline: u32) -> Sight {
    node(ServerRole::Standby, timeline)
}

fn down(sight: Sight) -> Sight {
    Sight {
        reachable: false,
        ..sight
    }
}

const SILENT: Sight = Sight {
    declared: DeclaredRole::Unknown,
    role: None,
    asked: false,
    reachable: true,
    cluster: None,
    timeline: 0,
    twin: false,
    elsewhere: false,
};

fn first(sights: &[Sight]) -> Elected {
    elect(sights, Past::default())
}

#[test]
fn the_first_primary_is_known_when_every_node_was_asked() {
    let early = first(&[primary(1), SILENT]);
    assert_eq!(early.past.primary, None);
    assert_eq!(early.standings[0], Standing::Candidate);
    let failed = down(Sight {
        asked: true,
        ..SILENT
    });
    assert_eq!(first(&[primary(1), failed]).past.primary, Some(0));
    // What is declared is believed until its server answers.
    let declared = Sight {
        declared: DeclaredRole::Primary,
        ..SILENT
    };
    assert_eq!(first(&[declared, standby(1)]).past.primary, Some(0));
    let declared = Sight {
        declared: DeclaredRole::Primary,
        ..standby(2)
    };
    let elected = first(&[declared, primary(2)]);
    assert_eq!(elected.standings, [Standing::Replica, Standing::Primary]);
}

#[test]
fn a_first_primary_may_hide_its_timeline_where_nobody_was_ever_promoted() {
    let unheard = [primary(0), SILENT, SILENT];
    let waits = first(&unheard);
    assert_eq!(waits.past.primary, None, "others may take writes, too");
    let all = [primary(0), standby(1), standby(1)];
    let elected = elect(&all, waits.past);
    assert_eq!(elected.past.primary, Some(0));
    // Another one that hides it may have been promoted, or come back. It never rules here, whoever of them is cut off.
    let mut past = elected.past;
    for sights in [
        [primary(0), primary(0), standby(1)],
        [down(primary(0)), primary(0), standby(1)],
        [primary(0), down(primary(0)), standby(1)],
        [down(primary(0)), primary(0), down(standby(1))],
    ] {
        past = elect(&sights, past).past;
        assert_eq!(past.primary, Some(0));
    }
    // Of two that are there from the beginning none rules.
    let both = first(&[primary(0), primary(0), standby(1)]);
    assert_eq!(both.past.primary, None);
    let promoted = [primary(0), standby(2), standby(1)];
    assert_eq!(elect(&promoted, waits.past).past.primary, None);
}

#[test]
fn the_newer_timeline_rules_and_the_older_one_never_again() {
    let before = first(&[primary(1), standby(1), standby(1)]).past;
    // Promoted, and its timeline is not known yet: the old one stays.
    let unclear = elect(&[primary(1), primary(0), standby(1)], before);
    assert_eq!(unclear.past.primary, Some(0));
    let after = elect(&[primary(1), primary(2), standby(1)], unclear.past);
    assert_eq!(
        after.standings,
        [
            Standing::Superseded { newest: 2 },
            Standing::Primary,
            Standing::Replica
        ]
    );
    // The new one dies; the old one is still there and still takes writes.
    let alone = elect(&[primary(1), down(primary(2)), standby(1)], after.past);
    assert_eq!(alone.past.primary, Some(1));
    let gone = elect(
        &[primary(1), standby(1)],
        Past {
            primary: None,
            ..alone.past
        },
    );
    assert_eq!(gone.past.primary, None);
    // As a standby it is welcome.
    let back = elect(&[standby(2), primary(2), standby(2)], alone.past);
    assert_eq!(back.standings[0], Standing::Replica);
}

#[test]
fn a_node_without_a_known_timeline_never_wins_by_being_declared() {
    let declared = |timeline| Sight {
        declared: DeclaredRole::Primary,
        ..primary(timeline)
    };
    let untold = |sight: Sight| Sight {
        cluster: None,
        ..sight
    };
    let before = first(&[declared(0), standby(1)]).past;
    for nodes in [
        [declared(0), primary(2)],
        [untold(declared(0)), untold(primary(2))],
        [untold(declared(1)), untold(primary(2))],
    ] {
        for past in [Past::default(), before] {
            assert_eq!(elect(&nodes, past).past.primary, Some(1));
        }
    }
    // Of two that do not tell, none is taken that was not there before.
    let silent = [untold(declared(0)), untold(primary(0))];
    assert_eq!(elect(&silent, Past::default()).past.primary, None);
    assert_eq!(elect(&silent, before).past.primary, Some(0));
    // The cluster has gone on, perhaps without it.
    let gone_on = [declared(0), standby(3)];
    assert_eq!(first(&gone_on).past.primary, None);
    // Alone, and nobody was ever promoted.
    let alone = [untold(declared(0)), untold(standby(0))];
    assert_eq!(first(&alone).past.primary, Some(0));
}

#[test]
fn a_standby_tells_that_the_cluster_went_on_elsewhere() {
    let before = first(&[primary(1), standby(1)]).past;
    let after = elect(&[primary(1), standby(2)], before);
    assert_eq!(after.past.primary, None);
    assert_eq!(after.standings[0], Standing::Superseded { newest: 2 });
}

#[test]
fn of_two_on_one_timeline_none_rules_unless_it_is_declared() {
    let before = first(&[primary(1), standby(1)]).past;
    let split = elect(&[primary(1), primary(1)], before);
    assert_eq!(split.past.primary, None);
    assert_eq!(split.standings, [Standing::Rival; 2]);
    let healed = elect(&[down(primary(1)), primary(1)], split.past);
    assert_eq!(healed.past.primary, Some(1));
    let declared = Sight {
        declared: DeclaredRole::Primary,
        ..primary(1)
    };
    let kept = elect(&[primary(1), declared], before);
    assert_eq!(kept.standings, [Standing::Rival, Standing::Primary]);
}

#[test]
fn another_cluster_counts_for_nothing() {
    let foreign = Sight {
        cluster: Some(8),
        ..primary(9)
    };
    let elected = first(&[primary(1), foreign, standby(1)]);
    assert_eq!(elected.past.primary, Some(0));
    assert_eq!(elected.standings[1], Standing::Foreign);
    assert_eq!(elected.past.newest, 1);
    // Of two clusters with one node each it cannot be told which is meant.
    let split = first(&[primary(1), foreign]);
    assert_eq!((split.past.primary, split.past.cluster), (None, None));
    let declared = Sight {
        declared: DeclaredRole::Primary,
        ..primary(1)
    };
    assert_eq!(first(&[declared, foreign]).past.primary, Some(0));
}

#[test]
fn a_primary_that_is_down_stays_until_another_is_found() {
    let before = first(&[primary(3), standby(3)]).past;
    let down = elect(&[down(primary(3)), standby(3)], before);
    assert_eq!(down.past.primary, Some(0));
    let rebuilt = elect(&[standby(3), standby(3)], down.past);
    assert_eq!(rebuilt.past.primary, None);
}

fn sights() -> impl Strategy<Value = Vec<Sight>> {
    let declared = prop_oneof![
        3 => Just(DeclaredRole::Unknown),
        1 => Just(DeclaredRole::Replica)
    ];
    let role = prop_oneof![
        Just(None),
        Just(Some(ServerRole::Primary)),
        Just(Some(ServerRole::Standby))
    ];
    let cluster = prop_oneof![1 => Just(None), 8 => Just(Some(7)), 1 => Just(Some(8))];
    let sight = (
        declared,
        role,
        any::<bool>(),
        any::<bool>(),
        cluster,
        0..4u32,
        (proptest::bool::weighted(0.1), proptest::bool::weighted(0.1)),
    )
        .prop_map(
            |(declared, role, asked, reachable, cluster, timeline, (twin, elsewhere))| Sight {
                declared,
                role,
                asked: asked || role.is_some(),
                reachable,
                cluster,
                timeline,
                twin,
                elsewhere,
            },
        );
    proptest::collection::vec(sight, 4)
}

proptest! {
    #[test]
    fn whoever_rules_is_on_the_newest_timeline_and_alone(
        views in proptest::collection::vec(sights(), 1..12),
    ) {
        let mut past = Past::default();
        let mut newest = 0;
        for view in views {
            let elected = elect(&view, past);
            let replaced = past.cluster.is_some() && elected.past.cluster != past.cluster;
            let told = view.iter().filter(|it| !it.twin).map(|it| it.cluster);
            prop_assert!(!replaced || told.clone().all(|its| its == elected.past.cluster));
            prop_assert!(replaced || elected.past.newest >= newest, "what was overtaken stays so");
            newest = elected.past.newest;
            let rulers = elected.standings.iter().filter(|it| **it == Standing::Primary);
            prop_assert_eq!(rulers.count(), usize::from(elected.past.primary.is_some()));
            if let Some(place) = elected.past.primary {
                let ruler = view[place];
                prop_assert!(ruler.timeline == newest || ruler.timeline == 0);
                prop_assert!(ruler.role != Some(ServerRole::Standby));
                prop_assert!(!ruler.twin && !ruler.elsewhere);
                prop_assert!(ruler.cluster.is_none() || ruler.cluster == elected.past.cluster
                    || elected.past.cluster.is_none());
                let rivals = view.iter().enumerate().filter(|(other, it)| {
                    *other != place && it.reachable && it.role == Some(ServerRole::Primary)
                        && it.timeline == newest && it.cluster == ruler.cluster && !it.twin
                });
                prop_assert!(!ruler.reachable || newest == 0 || rivals.count() == 0);
            }
            past = elected.past;
        }
    }
}
