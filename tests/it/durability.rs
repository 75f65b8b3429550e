//! How far writes get: PostgreSQL's levels, waiting for replicas, commits that nobody confirmed.

use std::sync::Arc;
use std::time::Duration;

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use diesel_replicated::connection::{Replicas, Stage};
use diesel_replicated::status::NodeKind;
use diesel_replicated::testing::StopMode;
use diesel_replicated::{Consistency, Durability, Error, ReplicatedConnection};

use crate::support::{
    blocking, builder, builder_for, count, current_setting, database, eventually, insert,
    own_cluster, run, users,
};

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(100);

/// Writes a row; what `synchronous_commit` is where that runs.
async fn level_of_a_write(conn: &mut ReplicatedConnection, name: &str) -> String {
    diesel::insert_into(users::table)
        .values(users::name.eq(name.to_owned()))
        .returning(current_setting("synchronous_commit"))
        .get_result(conn)
        .await
        .unwrap()
}

#[tokio::test]
async fn each_level_reaches_the_server_and_stays_with_its_owner() {
    let database = database().await;
    let local = builder(&database).durability(Durability::Local).max_size(1);
    let pool = local.build().await.unwrap();
    let mut conn = pool.get().await.unwrap();
    assert_eq!(
        level_of_a_write(&mut conn, "a").await,
        "local",
        "the pool's"
    );
    conn.set_durability(Durability::RemoteApply);
    assert_eq!(level_of_a_write(&mut conn, "b").await, "remote_apply");
    let inside = conn
        .build_transaction()
        .durability(Durability::Off)
        .run(async |conn| QueryResult::Ok(level_of_a_write(conn, "c").await))
        .await
        .unwrap();
    assert_eq!(inside, "off");
    assert_eq!(level_of_a_write(&mut conn, "d").await, "remote_apply");
    // No state of the session's: its reads go to replicas, as soon as those have what it wrote.
    eventually("a replica serves it", || async {
        let mut shared = &conn;
        let seen: i64 = users::table.count().get_result(&mut shared).await.unwrap();
        assert_eq!(seen, 7);
        conn.last_route().unwrap().kind == NodeKind::Replica
    })
    .await;
    drop(conn);
    let mut conn = pool.get().await.unwrap();
    assert_eq!(
        level_of_a_write(&mut conn, "e").await,
        "local",
        "the next user's"
    );
}

#[tokio::test]
async fn replicas_are_waited_for_and_named() {
    let local = own_cluster().await;
    let pool = builder_for(&local, "app").build().await.unwrap();
    let mut conn = pool.get().await.unwrap();
    let nothing = conn.wait_for_replicas(Replicas::All, Stage::Applied, LONG);
    assert!(nothing.await.unwrap().is_met, "nothing was written");
    for round in 0..10 {
        insert(&format!("n{round}"))
            .execute(&mut conn)
            .await
            .unwrap();
        let all = conn.wait_for_replicas(Replicas::All, Stage::Applied, LONG);
        assert!(all.await.unwrap().is_met);
        // Whoever reads, wherever, sees it.
        for _ in 0..4 {
            let mut other = pool.get().await.unwrap();
            let mut any = other.with_consistency(Consistency::Eventual);
            assert_eq!(count(&mut any).await, 4 + round);
        }
    }
    let paused = Arc::clone(&local);
    blocking(move || paused.replicas()[0].pause_replay().unwrap()).await;
    insert("late").execute(&mut conn).await.unwrap();
    let all = conn.wait_for_replicas(Replicas::All, Stage::Applied, SHORT);
    let all = all.await.unwrap();
    assert!(!all.is_met);
    assert_eq!(all.missing, ["replica-1"]);
    for (replicas, stage) in [
        (Replicas::Count(1), Stage::Applied),
        (Replicas::All, Stage::Flushed),
        (Replicas::Majority, Stage::Received),
    ] {
        let answer = conn.wait_for_replicas(replicas, stage, LONG).await.unwrap();
        assert!(answer.is_met, "{replicas:?} {stage:?}: {answer:?}");
    }
    let majority = conn.wait_for_replicas(Replicas::Majority, Stage::Applied, SHORT);
    assert!(!majority.await.unwrap().is_met, "one of two is no majority");
    let three = conn.wait_for_replicas(Replicas::Count(3), Stage::Applied, SHORT);
    assert!(matches!(
        three.await,
        Err(Error::TooFewReplicas { wanted: 3, have: 2 })
    ));
    let gone = Arc::clone(&local);
    blocking(move || gone.replicas()[0].stop(StopMode::Fast).unwrap()).await;
    insert("later").execute(&mut conn).await.unwrap();
    let flushed = conn.wait_for_replicas(Replicas::All, Stage::Flushed, SHORT);
    assert_eq!(flushed.await.unwrap().missing, ["replica-1"]);
}

#[tokio::test]
async fn a_commit_that_no_standby_has_confirmed_is_said_to_be_one() {
    let local = own_cluster().await;
    let alone = Arc::clone(&local);
    let pool = builder_for(&local, "app").build().await.unwrap();
    let mut conn = pool.get().await.unwrap();
    insert("confirmed").execute(&mut conn).await.unwrap();
    assert!(!conn.last_commit_is_unconfirmed());
    blocking(move || {
        let primary = alone.primary();
        let names = "ALTER SYSTEM SET synchronous_standby_names = '*'";
        primary.sql("postgres", names).unwrap();
        primary.sql("postgres", "SELECT pg_reload_conf()").unwrap();
        let stop = |node: &diesel_replicated::testing::LocalNode| node.stop(StopMode::Fast);
        alone.replicas().iter().try_for_each(stop).unwrap();
    })
    .await;
    let waiting = tokio::spawn(async move {
        let result = insert("alone").execute(&mut conn).await;
        (conn, result)
    });
    let cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    eventually("its wait is cancelled", || async {
        let local = Arc::clone(&local);
        let cancelled = blocking(move || local.primary().sql("postgres", cancel).unwrap()).await;
        !cancelled.is_empty()
    })
    .await;
    eventually("the primary has said so", || {
        std::future::ready(pool.status().synchronous_standbys == 1)
    })
    .await;
    let state = pool.status();
    assert!(
        !state.remote_apply_covers_replicas,
        "one of two would do, and nobody knows which"
    );
    let (mut conn, result) = waiting.await.unwrap();
    assert_eq!(result, Ok(1), "PostgreSQL calls it a success");
    assert!(conn.last_commit_is_unconfirmed());
    run(&mut conn, "SET synchronous_commit TO local")
        .await
        .unwrap();
    insert("local").execute(&mut conn).await.unwrap();
    assert!(!conn.last_commit_is_unconfirmed());
}
