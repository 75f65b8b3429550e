//! Every wait has an end, and whoever leaves one leaves nothing behind.

use std::time::Duration;

use diesel::QueryResult;
use diesel_async::{AsyncConnection, RunQueryDsl};
use diesel_replicated::{
    Consistency, ConsistencyConfig, HealthConfig, PromotionConfig, Replicas, RetryPolicy, Stage,
};

use crate::support::{all_up, builder_for, count, eventually, insert, on, own_cluster};

/// zesterer/flume #167, kube-rs #1488, rust-libp2p #4555, tokio #3551: whoever wants no limit says `Duration::MAX`.
#[tokio::test]
async fn no_limit_is_too_long() {
    let local = own_cluster().await;
    let ever = Duration::MAX;
    let health = HealthConfig::default()
        .max_lag(ever)
        .slow_factor(f64::MAX)
        .slow_floor(ever)
        .slow_start(ever);
    let consistency = ConsistencyConfig::from(Consistency::Causal).wait(ever);
    let promotion = PromotionConfig::automatic()
        .write_quorum(true)
        .after(ever)
        .witness_age(ever)
        .timeout(ever);
    let builder = builder_for(&local, "app")
        .failover_wait(ever)
        .connection_timeout(ever)
        .connect_timeout(ever)
        .max_lifetime(ever)
        .idle_timeout(ever)
        .health(health)
        .consistency(consistency)
        .promotion(promotion);
    let pool = builder.build().await.unwrap();
    let mut conn = pool.get().await.unwrap();
    insert("one").execute(&mut conn).await.unwrap();
    assert_eq!(count(&mut conn).await, 4);
    conn.wait_for_replicas(Replicas::All, Stage::Applied, ever)
        .await
        .unwrap();
    let bounded = Consistency::BoundedStaleness(ever);
    assert_eq!(count(&mut conn.with_consistency(bounded)).await, 4);
    assert_eq!(
        count(&mut conn.with_consistency(Consistency::Strong)).await,
        4
    );
    let policy = RetryPolicy::default()
        .delay(ever)
        .longest_delay(ever)
        .limit(ever);
    let retried = conn.retry_transaction(policy, async |conn| insert("two").execute(conn).await);
    retried.await.unwrap();
    conn.transaction(async |conn| insert("three").execute(conn).await)
        .await
        .unwrap();
    assert!(pool.check(ever).await.unwrap().takes_writes);
    eventually("rounds go on", || async { all_up(&pool) }).await;
    drop(conn);
    pool.switchover("replica-1").await.unwrap();
}

/// A removal that nobody waits for is done all the same, when what runs on the replica has ended.
#[tokio::test]
async fn a_replica_is_removed_though_nobody_waits_for_it() {
    let local = own_cluster().await;
    let pool = builder_for(&local, "app").build().await.unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    let (end, ends) = tokio::sync::oneshot::channel::<()>();
    let (begun, begins) = tokio::sync::oneshot::channel();
    let reading = tokio::spawn({
        let pool = pool.clone();
        async move {
            let mut conn = pool.get().await.unwrap();
            let reading = conn.snapshot(async |conn| {
                let seen = count(conn).await;
                begun.send(()).unwrap();
                ends.await.unwrap();
                QueryResult::Ok((seen, count(conn).await))
            });
            reading.await.unwrap()
        }
    });
    begins.await.unwrap();
    for name in ["replica-1", "replica-2"] {
        let leaving = pool.remove_replica(name);
        // Left in its middle, wherever that is.
        let _ = tokio::time::timeout(Duration::ZERO, leaving).await;
    }
    end.send(()).unwrap();
    assert_eq!(reading.await.unwrap(), (3, 3));
    on(&local, |local| {
        for replica in local.replicas() {
            let open = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
            let deadline = std::time::Instant::now() + Duration::from_secs(30);
            while !replica.sql("postgres", open).unwrap().is_empty() {
                assert!(std::time::Instant::now() < deadline, "{} keeps connections", replica.name());
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    })
    .await;
}

/// aws-advanced-jdbc-wrapper #2109, multigres #21: replicas lag, and who has written reads on the primary. Nobody
/// fails for that.
#[tokio::test]
async fn sessions_that_read_their_own_writes_wait_for_the_primary_while_replicas_lag() {
    let local = own_cluster().await;
    let pool = builder_for(&local, "app")
        .max_size(4)
        .build()
        .await
        .unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    on(&local, |local| {
        local
            .replicas()
            .iter()
            .for_each(|replica| replica.pause_replay().unwrap());
    })
    .await;
    let pool = &pool;
    let sessions = (0..30).map(|number| async move {
        let mut conn = pool.get().await.unwrap();
        for round in 0..5 {
            insert(&format!("{number}-{round}"))
                .execute(&mut conn)
                .await
                .unwrap();
            assert!(count(&mut conn).await > 3);
        }
    });
    futures_util::future::join_all(sessions).await;
}
