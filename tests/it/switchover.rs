//! A primary that lives gives way, and a process that is cut off with one stops writing.

use std::sync::Arc;
use std::time::Duration;

use diesel::QueryResult;
use diesel_async::{AsyncConnection, RunQueryDsl};
use diesel_replicated::config::HealthConfig;
use diesel_replicated::error::PromotionRefusal;
use diesel_replicated::testing::LocalCluster;
use diesel_replicated::{Error, NodeConfig, ReplicatedConnection, ReplicatedPool};

use tokio_util::sync::CancellationToken;

use crate::support::{all_up, blocking, builder_for, eventually, insert, own_cluster, run};

/// Longer than any switchover of a test takes on a busy machine.
const PATIENT: Duration = Duration::from_secs(60);

async fn start() -> (Arc<LocalCluster>, ReplicatedPool) {
    let local = own_cluster().await;
    let builder = builder_for(&local, "app").failover_wait(PATIENT);
    let pool = builder.build().await.unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    (local, pool)
}

/// Writes one name after the other until it is told to stop; how many were written.
async fn work(pool: ReplicatedPool, worker: u32, stop: CancellationToken) -> QueryResult<usize> {
    let mut written = 0;
    let mut conn = pool.get().await.unwrap();
    while !stop.is_cancelled() {
        let name = format!("w{worker}-{written}");
        written += match worker % 3 {
            // A connection for each, one for all, and a transaction.
            0 => {
                insert(&name)
                    .execute(&mut pool.get().await.unwrap())
                    .await?
            }
            1 => insert(&name).execute(&mut conn).await?,
            _ => {
                let both = async |conn: &mut ReplicatedConnection| {
                    let one = insert(&name).execute(conn).await?;
                    let other = insert(&format!("{name}-too")).execute(conn).await?;
                    Ok::<_, diesel::result::Error>(one + other)
                };
                conn.transaction(both).await?
            }
        };
    }
    Ok(written)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switchover_under_load_is_an_error_for_nobody() {
    let (local, pool) = start().await;
    let stop = CancellationToken::new();
    let workers = (0..6).map(|worker| tokio::spawn(work(pool.clone(), worker, stop.clone())));
    let workers: Vec<_> = workers.collect();
    let count = |node: &'static str| {
        let local = Arc::clone(&local);
        blocking(move || {
            let rows = local
                .node(node)
                .unwrap()
                .sql("app", "SELECT count(*) FROM users");
            rows.unwrap()[0][0]
                .clone()
                .unwrap()
                .parse::<usize>()
                .unwrap()
        })
    };
    eventually("there is load", || async { count("primary").await > 200 }).await;
    let promoted = pool.switchover("replica-2").await.unwrap();
    assert_eq!(
        (promoted.node.as_str(), promoted.timeline),
        ("replica-2", 2)
    );
    let before = count("replica-2").await;
    eventually("the load goes on", || async {
        count("replica-2").await > before + 200
    })
    .await;
    stop.cancel();
    let mut written = 3;
    for worker in futures_util::future::join_all(workers).await {
        written += worker.unwrap().unwrap();
    }
    assert_eq!(count("replica-2").await, written);
    assert_eq!(pool.status().primary.as_deref(), Some("replica-2"));
    // Whoever knows nothing of it can write nothing to the old one.
    let stranger = Arc::clone(&local);
    let refused = blocking(move || stranger.primary().sql("app", "DELETE FROM users")).await;
    assert!(refused.unwrap_err().to_string().contains("read-only"));
}

#[tokio::test]
async fn a_switchover_that_cannot_be_done_leaves_all_as_it_was() {
    let (local, pool) = start().await;
    let unknown = pool.switchover("nobody").await;
    assert!(matches!(unknown, Err(Error::UnknownNode { .. })));
    let itself = pool.switchover("primary").await;
    assert!(matches!(
        itself,
        Err(Error::PromotionRefused { reasons })
            if matches!(reasons[..], [PromotionRefusal::NotPromotable { .. }])
    ));
    // A transaction that does not end.
    let quick = builder_for(&local, "app").failover_wait(Duration::from_millis(600));
    let quick = quick.build().await.unwrap();
    let mut conn = quick.get().await.unwrap();
    run(&mut conn, "BEGIN; INSERT INTO users (name) VALUES ('open')")
        .await
        .unwrap();
    let late = quick.switchover("replica-1").await;
    assert!(
        matches!(late, Err(Error::PromotionFailed { .. })),
        "{late:?}"
    );
    run(&mut conn, "COMMIT").await.unwrap();
    insert("after")
        .execute(&mut quick.get().await.unwrap())
        .await
        .unwrap();
    insert("too")
        .execute(&mut pool.get().await.unwrap())
        .await
        .unwrap();
    assert_eq!(quick.status().timeline, 1);
}

#[tokio::test]
async fn who_is_cut_off_with_the_primary_stops_writing() {
    let local = own_cluster().await;
    let proxied = |node: &diesel_replicated::testing::LocalNode| {
        NodeConfig::new(node.proxied_url("app").unwrap()).name(node.name().to_owned())
    };
    let builder = local.replicas().iter().fold(
        ReplicatedPool::builder().primary(proxied(local.primary())),
        |builder, replica| builder.replica(proxied(replica)),
    );
    let often = HealthConfig::default().interval(Duration::from_millis(100));
    let pool = builder
        .write_quorum(true)
        .health(often)
        .failover_wait(Duration::ZERO)
        .build()
        .await
        .unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    let mut conn = pool.get().await.unwrap();
    insert("whole").execute(&mut conn).await.unwrap();
    local.replicas()[0].proxy().unwrap().cut();
    eventually("one is gone", || async { !all_up(&pool) }).await;
    insert("two of three").execute(&mut conn).await.unwrap();
    run(&mut conn, "BEGIN").await.unwrap();
    local.replicas()[1].proxy().unwrap().cut();
    eventually("the majority is gone", || async {
        !pool.status().takes_writes
    })
    .await;
    let lost = insert("alone").execute(&mut conn).await;
    assert!(
        lost.is_err(),
        "the transaction has ended with the connection"
    );
    let mut other = pool.get().await.unwrap();
    let refused = insert("alone").execute(&mut other).await.unwrap_err();
    assert!(refused.to_string().contains("`write_quorum`"), "{refused}");
    local.replicas()[0].proxy().unwrap().heal();
    eventually("the majority is back", || async {
        pool.status().takes_writes
    })
    .await;
    insert("together").execute(&mut other).await.unwrap();
}

/// mariadb-operator #1852, openark/orchestrator #1482: the old primary was left read only, for hours.
#[tokio::test]
async fn a_switchover_to_a_replica_that_freezes_ends_and_leaves_all_as_it_was() {
    let local = own_cluster().await;
    let patient = HealthConfig::default().timeout(Duration::from_secs(2));
    let builder = builder_for(&local, "app").health(patient);
    let builder = builder.failover_wait(Duration::from_secs(8));
    let pool = builder.build().await.unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    // A transaction that the switchover has to wait for, so that it is in its middle.
    let mut open = pool.get().await.unwrap();
    run(&mut open, "BEGIN; INSERT INTO users (name) VALUES ('open')")
        .await
        .unwrap();
    let switching = tokio::spawn({
        let pool = pool.clone();
        async move { pool.switchover("replica-1").await }
    });
    eventually("new writes are held back", || async {
        let mut waiting = pool.get().await.unwrap();
        tokio::time::timeout(
            Duration::from_millis(50),
            insert("held").execute(&mut waiting),
        )
        .await
        .is_err()
    })
    .await;
    let frozen = Arc::clone(&local);
    blocking(move || frozen.replicas()[0].freeze()).await;
    run(&mut open, "COMMIT").await.unwrap();
    let failed = switching.await.unwrap();
    assert!(
        matches!(failed, Err(Error::PromotionFailed { .. })),
        "{failed:?}"
    );
    let mut conn = pool.get().await.unwrap();
    insert("after").execute(&mut conn).await.unwrap();
    assert_eq!(conn.last_route().unwrap().node, "primary");
    let thawed = Arc::clone(&local);
    blocking(move || {
        thawed.replicas()[0].thaw();
        // Nor is it fenced for whoever knows nothing of this pool.
        thawed.primary().sql("app", "DELETE FROM users").unwrap();
    })
    .await;
}

/// patroni #2376: who gave the order does not wait for its end.
#[tokio::test]
async fn a_switchover_whose_caller_goes_away_holds_nobody() {
    let (local, pool) = start().await;
    let mut open = pool.get().await.unwrap();
    run(&mut open, "BEGIN; INSERT INTO users (name) VALUES ('open')")
        .await
        .unwrap();
    let limit = Duration::from_millis(100);
    let dropped = tokio::time::timeout(limit, pool.switchover("replica-1")).await;
    assert!(dropped.is_err());
    run(&mut open, "COMMIT").await.unwrap();
    let mut conn = pool.get().await.unwrap();
    insert("after").execute(&mut conn).await.unwrap();
    eventually("it went on to its end", || async {
        pool.status().primary.as_deref() == Some("replica-1")
    })
    .await;
    drop(local);
}

/// Two operators ask two processes at once. Whichever is refused takes no fence away from under the other, which
/// would let writes through that the new primary does not have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_switchovers_at_once_one_is_made_and_nothing_is_lost() {
    let (local, pool) = start().await;
    let builder = builder_for(&local, "app").failover_wait(PATIENT);
    let other = builder.build().await.unwrap();
    eventually("all are up", || async { all_up(&other) }).await;
    let stop = CancellationToken::new();
    let workers = (0..3).map(|worker| tokio::spawn(work(pool.clone(), worker, stop.clone())));
    let workers: Vec<_> = workers.collect();
    let (one, two) = tokio::join!(pool.switchover("replica-1"), other.switchover("replica-2"));
    let made: Vec<_> = [&one, &two].into_iter().flatten().collect();
    assert_eq!(made.len(), 1, "{one:?} {two:?}");
    let primary = made[0].node.clone();
    stop.cancel();
    let mut written = 3;
    for worker in futures_util::future::join_all(workers).await {
        // A connection of the pool that was refused may have been ended by the other one's fence.
        written += worker.unwrap().unwrap_or(0);
    }
    let rows = blocking(move || {
        let rows = local
            .node(&primary)
            .unwrap()
            .sql("app", "SELECT count(*) FROM users");
        rows.unwrap()[0][0]
            .clone()
            .unwrap()
            .parse::<usize>()
            .unwrap()
    })
    .await;
    assert!(rows >= written, "{rows} of {written}");
}

#[tokio::test]
async fn a_primary_that_another_process_replaces_is_not_fenced() {
    let (local, pool) = start().await;
    let mut holder = pool.get().await.unwrap();
    drop(holder);
    // The database in which processes agree.
    let url = local.primary().url("postgres");
    holder = ReplicatedPool::connect(&url)
        .await
        .unwrap()
        .get()
        .await
        .unwrap();
    // `diesel_f` as a number.
    run(&mut holder, "SELECT pg_advisory_lock(7235425822644658022)")
        .await
        .unwrap();
    let refused = pool.switchover("replica-1").await.unwrap_err();
    assert!(refused.to_string().contains("another process"), "{refused}");
    insert("after")
        .execute(&mut pool.get().await.unwrap())
        .await
        .unwrap();
    drop(holder);
    eventually("it can be replaced", || async {
        pool.switchover("replica-1").await.is_ok()
    })
    .await;
}
