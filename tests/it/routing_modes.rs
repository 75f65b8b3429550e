//! Which statements may move: none and told, those that are marked, a share of the connections, all.

use std::time::Duration;

use diesel::prelude::*;
use diesel::sql_query;
use diesel_async::{AsyncConnection, RunQueryDsl};
use diesel_replicated::config::{ConsistencyConfig, WriteScope};
use diesel_replicated::status::{KeptOnPrimary, NodeKind, RouteReason};
use diesel_replicated::{
    Builder, Consistency, ReplicatedConnection, ReplicatedPool, Route, Routing,
};

use crate::support::{
    all_up, builder, builder_for, count, database, eventually, insert, on, own_cluster, run, who,
};

async fn build(builder: Builder) -> ReplicatedPool {
    let pool = builder.build().await.unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    pool
}

fn route(conn: &ReplicatedConnection) -> Route {
    conn.last_route().unwrap()
}

fn is_held_back(conn: &ReplicatedConnection) -> bool {
    let route = route(conn);
    assert_eq!(
        route.held_back.is_some(),
        route.reason == RouteReason::HeldBack
    );
    route.held_back.is_some()
}

#[tokio::test]
async fn observing_runs_everything_on_the_primary_and_tells_what_would_move() {
    let pool = build(builder(&database().await).routing(Routing::Observe)).await;
    let mut conn = pool.get().await.unwrap();
    assert_eq!(who(&mut conn).await, "primary");
    let held_back = route(&conn).held_back.unwrap();
    assert_eq!(held_back.reason, RouteReason::PlainSelect);
    assert!(held_back.replica.unwrap().starts_with("replica"));
    // What asks for a replica, too.
    assert_eq!(who(&mut conn.replica()).await, "primary");
    assert_eq!(route(&conn).held_back.unwrap().reason, RouteReason::Forced);
    assert_eq!(who(&mut conn.replica_allowed()).await, "primary");
    assert!(is_held_back(&conn));
    let seen = conn.snapshot(async |conn| Ok::<_, diesel::result::Error>(who(conn).await));
    assert_eq!(seen.await.unwrap(), "primary");
    // What would not move is as always.
    insert("Barbara").execute(&mut conn).await.unwrap();
    assert_eq!(route(&conn).reason, RouteReason::Write);
    conn.transaction(async |conn| {
        assert_eq!(who(conn).await, "primary");
        assert_eq!(route(conn).reason, RouteReason::InTransaction);
        Ok::<_, diesel::result::Error>(())
    })
    .await
    .unwrap();
    run(&mut conn, "SET statement_timeout = '7s'")
        .await
        .unwrap();
    assert_eq!(who(&mut conn).await, "primary");
    assert!(is_held_back(&conn), "a setting does not pin");
    let routing = pool.status().routing;
    assert_eq!((routing.mode, routing.on_replicas), (Routing::Observe, 0));
    assert!(routing.could_move >= 4, "{routing:?}");
}

#[tokio::test]
async fn observing_tells_whether_a_replica_had_what_was_to_be_seen() {
    let local = own_cluster().await;
    let hasty = ConsistencyConfig::default().write_scope(WriteScope::Session);
    let pool = builder_for(&local, "app")
        .routing(Routing::Observe)
        .consistency(hasty);
    let pool = build(pool).await;
    on(&local, |local| {
        local
            .replicas()
            .iter()
            .for_each(|it| it.pause_replay().unwrap())
    })
    .await;
    let (mut writer, mut reader) = (pool.get().await.unwrap(), pool.get().await.unwrap());
    insert("Barbara").execute(&mut writer).await.unwrap();
    assert_eq!(count(&mut writer).await, 4);
    let held_back = route(&writer).held_back.unwrap();
    assert_eq!(
        (held_back.replica, held_back.reason),
        (None, RouteReason::OwnWrite)
    );
    assert_eq!(route(&writer).waited, Duration::ZERO);
    assert_eq!(count(&mut reader).await, 4, "as the primary has it");
    assert!(route(&reader).held_back.unwrap().replica.is_some());
    let before = pool.status().routing;
    assert_eq!((before.could_move, before.could_not_yet), (1, 1));
    on(&local, |local| {
        local
            .replicas()
            .iter()
            .for_each(|it| it.resume_replay().unwrap())
    })
    .await;
    eventually("the write has arrived", || async {
        pool.get()
            .await
            .unwrap()
            .transaction(async |_| QueryResult::Ok(()))
            .await
            .unwrap();
        let mut conn = pool.get_with(&writer.session_token().await).await.unwrap();
        count(&mut conn).await;
        route(&conn).held_back.unwrap().replica.is_some()
    })
    .await;
    // Nothing is waited for a node that is not there.
    on(&local, |local| {
        for replica in local.replicas() {
            replica
                .stop(diesel_replicated::testing::StopMode::Immediate)
                .unwrap();
        }
    })
    .await;
    eventually("no replica is there", || async {
        let mut conn = pool.get().await.unwrap();
        assert_eq!(count(&mut conn).await, 4);
        route(&conn).held_back.unwrap().reason == RouteReason::NoUsableReplica
    })
    .await;
}

#[tokio::test]
async fn opting_in_moves_what_is_marked_and_nothing_else() {
    // What is read after the write may wait for a replica that has it.
    let patient = ConsistencyConfig::default().wait(Duration::from_secs(20));
    let pool = builder(&database().await)
        .consistency(patient)
        .routing(Routing::OptIn)
        .read_only_transactions_on_replicas(true);
    let pool = build(pool).await;
    let mut conn = pool.get().await.unwrap();
    assert_eq!(who(&mut conn).await, "primary");
    assert!(is_held_back(&conn));
    {
        let mut marked = conn.replica_allowed();
        assert_ne!(who(&mut *marked).await, "primary");
        assert_eq!(route(&marked).reason, RouteReason::PlainSelect);
        // A mark makes nothing safe that is not.
        insert("Barbara").execute(&mut *marked).await.unwrap();
        assert_eq!(route(&marked).kind, NodeKind::Primary);
        // Levels go on inside.
        let mut strong = marked.with_consistency(Consistency::Strong);
        assert_eq!(who(&mut *strong).await, "primary");
        assert_eq!(route(&strong).reason, RouteReason::Strong);
    }
    assert_eq!(who(&mut conn).await, "primary");
    assert!(is_held_back(&conn));
    assert_ne!(who(&mut conn.replica()).await, "primary");
    let seen = conn.snapshot(async |conn| Ok::<_, diesel::result::Error>(who(conn).await));
    assert_ne!(
        seen.await.unwrap(),
        "primary",
        "a snapshot is marked by its name"
    );
    // The pool's own setting is no mark.
    let mut begin = conn.build_transaction().read_only();
    let seen = begin.run(async |conn| Ok::<_, diesel::result::Error>(who(conn).await));
    assert_eq!(seen.await.unwrap(), "primary");
}

#[tokio::test]
async fn a_share_of_the_connections_moves_each_as_a_whole() {
    let pool = build(builder(&database().await)).await;
    assert_eq!(pool.status().routing.mode, Routing::default());
    for (share, few, many) in [(0.0, 0, 0), (0.5, 20, 80), (1.0, 100, 100)] {
        pool.set_routing(Routing::Automatic { share }).unwrap();
        let mut moved = 0;
        for _ in 0..100 {
            let mut conn = pool.get().await.unwrap();
            let first = who(&mut conn).await != "primary";
            assert_eq!(who(&mut conn).await != "primary", first);
            assert_eq!(is_held_back(&conn), !first);
            moved += i32::from(first);
        }
        // Twenty of a hundred at a half is once in 10⁹ runs.
        assert!((few..=many).contains(&moved), "{share}: {moved}");
    }
    let error = pool
        .set_routing(Routing::Automatic { share: 1.5 })
        .unwrap_err();
    assert!(error.to_string().contains("1.5"), "{error}");
    assert_eq!(pool.status().routing.mode, Routing::default());
}

// A transaction is where it was begun; a session reads its own writes, whatever the mode was when it wrote.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_mode_changes_under_load_and_nobody_reads_less_than_he_wrote() {
    let pool = build(builder(&database().await).max_size(10)).await;
    let tasks: Vec<_> = (0..4)
        .map(|task| {
            let pool = pool.clone();
            tokio::spawn(async move {
                let mut moved = 0;
                for round in 0..60 {
                    let mut conn = pool.get().await.unwrap();
                    let name = format!("{task}-{round}");
                    insert(&name).execute(&mut conn).await.unwrap();
                    let own = format!("SELECT count(*)::int AS id, current_setting('cluster_name') AS name, 0 AS visits FROM users WHERE name = '{name}'");
                    for _ in 0..3 {
                        let row: Row = sql_query(&own).get_result(&mut conn).await.unwrap();
                        assert_eq!(row.id, 1, "{:?}", route(&conn));
                        moved += i32::from(row.name != "primary");
                    }
                    let seen = conn.snapshot(async |conn| {
                        let first: Row = sql_query(&own).get_result(conn).await?;
                        let second: Row = sql_query(&own).get_result(conn).await?;
                        assert_eq!(first.name, second.name);
                        Ok::<_, diesel::result::Error>(first.id)
                    });
                    assert_eq!(seen.await.unwrap(), 1);
                }
                moved
            })
        })
        .collect();
    let half = Routing::Automatic { share: 0.5 };
    let modes = [Routing::Observe, half, Routing::OptIn, Routing::default()];
    let mut changes = modes.into_iter().cycle();
    while !tasks.iter().all(tokio::task::JoinHandle::is_finished) {
        pool.set_routing(changes.next().unwrap()).unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for task in tasks {
        task.await.unwrap();
    }
    let routing = pool.status().routing;
    assert!(
        routing.on_replicas > 0 && routing.could_move > 0,
        "{routing:?}"
    );
}

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = diesel::sql_types::Integer)]
    id: i32,
    #[diesel(sql_type = diesel::sql_types::Text)]
    name: String,
}

#[tokio::test]
async fn what_keeps_reads_on_the_primary_is_named_the_greatest_first() {
    let database = database().await;
    let earlier = build(builder(&database)).await;
    let mut conn = earlier.get().await.unwrap();
    let make = "CREATE FUNCTION secret() RETURNS int VOLATILE LANGUAGE sql AS 'SELECT 1'; \
        CREATE SEQUENCE numbers";
    run(&mut conn.primary(), make).await.unwrap();
    // A pool that has loaded the catalog knows the function.
    let pool = build(builder(&database)).await;
    for (times, sql) in [
        (5, "SELECT public.secret()"),
        (4, "SELECT count(*) FROM pg_stat_activity"),
        (3, "SELECT nextval('numbers')"),
        (2, "SELECT * FROM users FOR SHARE"),
    ] {
        for _ in 0..times {
            let mut conn = pool.get().await.unwrap();
            run(&mut conn, sql).await.unwrap();
        }
    }
    let mut conn = pool.get().await.unwrap();
    // What has left something keeps the reads after it.
    let mut listening = pool.get().await.unwrap();
    run(&mut listening, "LISTEN news").await.unwrap();
    for _ in 0..7 {
        count(&mut listening).await;
    }
    conn.transaction(async |conn| {
        for _ in 0..6 {
            count(conn).await;
        }
        insert("Barbara").execute(conn).await
    })
    .await
    .unwrap();
    let kept = pool.status().routing.kept_on_primary;
    let shown: Vec<(RouteReason, Option<&str>, u64)> = kept
        .iter()
        .filter(|kept| kept.reason != RouteReason::OwnWrite)
        .map(
            |KeptOnPrimary {
                 reason,
                 name,
                 statements,
                 ..
             }| (*reason, name.as_deref(), *statements),
        )
        .collect();
    assert_eq!(
        shown,
        [
            (RouteReason::SessionState, Some("listen"), 8),
            (RouteReason::InTransaction, None, 6),
            (RouteReason::VolatileFunction, Some("public.secret"), 5),
            (RouteReason::ServerState, Some("pg_stat_activity"), 4),
            (RouteReason::VolatileFunction, Some("nextval"), 3),
            (RouteReason::LockingClause, None, 2),
        ]
    );
}

// An operator who observes sees what transactions hold.
#[tokio::test]
async fn observing_tells_what_transactions_keep_on_the_primary() {
    let pool = build(builder(&database().await).routing(Routing::Observe)).await;
    let mut conn = pool.get().await.unwrap();
    run(&mut conn, "CREATE SEQUENCE numbers").await.unwrap();
    conn.transaction(async |conn| {
        for _ in 0..4 {
            count(conn).await;
        }
        for _ in 0..3 {
            run(conn, "SELECT * FROM users FOR UPDATE").await?;
        }
        for _ in 0..2 {
            run(conn, "SELECT nextval('numbers')").await?;
        }
        run(conn, "SET LOCAL statement_timeout = '7s'").await?;
        insert("Barbara").execute(conn).await
    })
    .await
    .unwrap();
    let routing = pool.status().routing;
    let kept = routing.kept_on_primary.iter();
    let kept = kept.map(|kept| (kept.reason, kept.name.as_deref(), kept.statements));
    assert_eq!(
        kept.collect::<Vec<_>>(),
        [
            (RouteReason::InTransaction, None, 4),
            (RouteReason::LockingClause, None, 3),
            (RouteReason::VolatileFunction, Some("nextval"), 2),
        ]
    );
    assert_eq!((routing.could_move, routing.could_not_yet), (0, 0));
}

// Who asks for a replica and writes gets the replica's refusal in every mode: code that passes while observing passes later.
#[tokio::test]
async fn what_a_replica_refuses_is_refused_in_every_mode() {
    let pool = build(builder(&database().await)).await;
    for mode in [Routing::default(), Routing::OptIn, Routing::Observe] {
        pool.set_routing(mode).unwrap();
        for sql in [
            "UPDATE users SET visits = 1",
            "SELECT * FROM users FOR UPDATE",
        ] {
            let mut conn = pool.get().await.unwrap();
            let error = run(&mut conn.replica(), sql).await.unwrap_err();
            assert!(error.to_string().contains("read-only"), "{mode}: {error}");
        }
        let mut conn = pool.get().await.unwrap();
        let mut replica = conn.replica();
        let writing = replica.transaction(async |conn| insert("Barbara").execute(conn).await);
        assert!(writing.await.is_err(), "{mode}");
    }
}

// Frozen or killed primaries: what reads there are is told as it is.
#[tokio::test]
async fn observing_takes_no_reads_without_its_primary_and_says_so() {
    let local = own_cluster().await;
    let pool = builder_for(&local, "app")
        .routing(Routing::Observe)
        .failover_wait(Duration::from_millis(100));
    let pool = build(pool).await;
    assert!(pool.status().takes_reads);
    on(&local, |local| local.primary().kill().unwrap()).await;
    eventually("it is told", || async { !pool.status().takes_reads }).await;
    let mut conn = pool.get().await.unwrap();
    assert!(run(&mut conn, "SELECT 1").await.is_err());
    pool.set_routing(Routing::default()).unwrap();
    assert!(pool.status().takes_reads);
    count(&mut conn).await;
}

#[tokio::test]
async fn a_snapshot_that_is_held_back_is_counted_once() {
    let pool = build(builder(&database().await).routing(Routing::Observe)).await;
    let mut conn = pool.get().await.unwrap();
    conn.snapshot(async |conn| {
        count(conn).await;
        count(conn).await;
        Ok::<_, diesel::result::Error>(())
    })
    .await
    .unwrap();
    let routing = pool.status().routing;
    assert_eq!(routing.could_move + routing.could_not_yet, 1);
    assert_eq!(routing.kept_on_primary, []);
}
