//! An operator's hold of new writes: what runs goes on, what comes waits, reads are served, and no write is lost or doubled.
//!
//! PgBouncer's `PAUSE` is the model; here reads go on.

use std::time::Duration;

use diesel::prelude::*;
use diesel_async::{AsyncConnection, RunQueryDsl, SimpleAsyncConnection};
use diesel_replicated::status::Degradation;
use diesel_replicated::testing::StopMode;
use diesel_replicated::{ErrorExt, Outcome, ReplicatedPool};

use crate::support::{
    all_up, always, builder, builder_for, count, database, eventually, insert, on, own_cluster,
    run, takes_a_write, users,
};

const LONG: Duration = Duration::from_secs(600);

async fn build(builder: diesel_replicated::Builder) -> ReplicatedPool {
    let pool = builder.build().await.unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    pool
}

#[tokio::test]
async fn new_writes_wait_and_the_rest_goes_on() {
    let pool = build(
        builder(&database().await)
            .failover_wait(LONG)
            .connection_timeout(LONG),
    )
    .await;
    let (mut open, mut state) = (pool.get().await.unwrap(), pool.get().await.unwrap());
    open.batch_execute("BEGIN").await.unwrap();
    insert("in a transaction").execute(&mut open).await.unwrap();
    run(&mut state, "CREATE TEMP TABLE own (n int)")
        .await
        .unwrap();
    pool.pause_writes(LONG).await.unwrap();
    // What was begun ends; a session with state goes on.
    insert("in a transaction, too")
        .execute(&mut open)
        .await
        .unwrap();
    open.batch_execute("COMMIT").await.unwrap();
    run(&mut state, "INSERT INTO own VALUES (1)").await.unwrap();
    // Reads are served, by the primary as well.
    let mut reader = pool.get().await.unwrap();
    assert_eq!(count(&mut reader.primary()).await, 5);
    count(&mut reader).await;
    reader
        .snapshot(async |conn| Ok::<_, diesel::result::Error>(count(conn).await))
        .await
        .unwrap();
    assert!(!pool.status().takes_writes);
    eventually("it is told", || async {
        pool.status()
            .degraded
            .iter()
            .any(|what| what.reason == Degradation::Paused)
    })
    .await;
    // New ones wait.
    let writers: Vec<_> = (0..4)
        .map(|number| {
            let pool = pool.clone();
            tokio::spawn(async move {
                let mut conn = pool.get().await.unwrap();
                if number % 2 == 0 {
                    insert(&format!("waits {number}")).execute(&mut conn).await
                } else {
                    conn.transaction(async |conn| {
                        insert(&format!("waits {number}")).execute(conn).await
                    })
                    .await
                }
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(count(&mut reader.primary()).await, 5);
    assert!(writers.iter().all(|writer| !writer.is_finished()));
    pool.resume_writes().await.unwrap();
    for writer in writers {
        writer.await.unwrap().unwrap();
    }
    assert_eq!(count(&mut reader.primary()).await, 9);
    assert!(pool.status().takes_writes);
}

#[tokio::test]
async fn a_pause_ends_by_itself_and_who_waits_too_long_is_told_that_nothing_ran() {
    let pool = build(builder(&database().await).failover_wait(Duration::from_millis(100))).await;
    pool.pause_writes(LONG).await.unwrap();
    let mut conn = pool.get().await.unwrap();
    let error = insert("late").execute(&mut conn).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::NotRun);
    assert!(error.to_string().contains("pause_writes"), "{error}");
    // A second call sets the limit anew.
    pool.pause_writes(Duration::from_millis(50)).await.unwrap();
    eventually("writes go on", || async { takes_a_write(&pool).await }).await;
    let mut conn = pool.get().await.unwrap();
    let late = users::table.filter(users::name.eq("late")).count();
    assert_eq!(
        late.get_result::<i64>(&mut conn.primary()).await.unwrap(),
        0
    );
}

// What the pause is for: the primary is restarted under load, and no statement fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_primary_is_restarted_within_a_pause_and_no_write_fails() {
    let local = own_cluster().await;
    let pool = build(
        builder_for(&local, "app")
            .failover_wait(LONG)
            .connection_timeout(LONG),
    )
    .await;
    let stop = tokio_util::sync::CancellationToken::new();
    let writers: Vec<_> = (0..4)
        .map(|task| {
            let (pool, stop) = (pool.clone(), stop.clone());
            tokio::spawn(async move {
                let mut written = 0;
                while !stop.is_cancelled() {
                    let mut conn = pool.get().await.unwrap();
                    let name = format!("{task}-{written}");
                    conn.transaction(async |conn| insert(&name).execute(conn).await)
                        .await
                        .unwrap();
                    written += 1;
                }
                written
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(200)).await;
    pool.pause_writes(LONG).await.unwrap();
    eventually("what ran is at its end", || async {
        pool.status().node("primary").unwrap().in_flight == 0
    })
    .await;
    on(&local, |local| {
        local.primary().stop(StopMode::Fast).unwrap();
        local.primary().start().unwrap();
    })
    .await;
    pool.resume_writes().await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    stop.cancel();
    let mut written = 0;
    for writer in writers {
        written += writer.await.unwrap();
    }
    let mut conn = pool.get().await.unwrap();
    assert_eq!(count(&mut conn.primary()).await, 3 + written);
}

// pgbouncer's PAUSE, switchover, RESUME: the usual order of planned work. It was refused, for no node took writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switchover_is_made_within_a_pause() {
    let local = own_cluster().await;
    let pool = build(builder_for(&local, "app").connection_timeout(LONG)).await;
    pool.pause_writes(LONG).await.unwrap();
    let not_ready = pool.check(Duration::from_secs(5)).await.unwrap_err();
    let told = not_ready.to_string();
    assert!(told.contains("new writes are paused"), "{told}");
    let done = pool.switchover("replica-1").await.unwrap();
    assert_eq!(done.node, "replica-1");
    assert!(!pool.status().takes_writes);
    pool.resume_writes().await.unwrap();
    let mut conn = pool.get().await.unwrap();
    insert("after both").execute(&mut conn).await.unwrap();
    assert_eq!(conn.last_route().unwrap().node, "replica-1");
}

// While writes were paused, no lag was known, and whoever had set a limit of it lost his replicas.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_with_a_limit_of_lag_serve_through_a_pause() {
    let database = database().await;
    let health = diesel_replicated::config::HealthConfig::default()
        .interval(Duration::from_millis(100))
        .max_lag(Duration::from_secs(30));
    let pool = build(builder(&database).health(health)).await;
    // How far a replica is behind since before the pool was made is not known, and so it does not serve.
    eventually("replicas serve", async || {
        let nodes = pool.status().nodes;
        let mut replicas = nodes.iter().filter(|node| node.name != "primary");
        replicas.all(|node| node.serves_reads && node.lag.is_some())
    })
    .await;
    pool.pause_writes(LONG).await.unwrap();
    always("replicas serve", Duration::from_secs(1), async || {
        let mut conn = pool.get().await.unwrap();
        conn.set_consistency(diesel_replicated::Consistency::Eventual);
        count(&mut conn).await;
        let kind = conn.last_route().unwrap().kind;
        kind == diesel_replicated::status::NodeKind::Replica && pool.status().nodes[1].lag.is_some()
    })
    .await;
    pool.resume_writes().await.unwrap();
}
