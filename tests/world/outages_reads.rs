//! Reads while no node takes writes: of what other sessions have written, nobody has more than the standbys.

use std::sync::Arc;
use std::time::Duration;

use diesel::QueryResult;
use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use diesel_replicated::config::HealthConfig;
use diesel_replicated::status::{NodeHealth, NodeKind};
use diesel_replicated::testing::LocalCluster;
use diesel_replicated::{
    Builder, Consistency, ErrorExt, NodeConfig, Outcome, PositionSource, ReplicatedConnection,
    ReplicatedPool,
};
use tokio::task::JoinSet;

use crate::support::{
    Shared, all_up, blocking, builder_for, eventually, fill, insert, on, own_cluster,
    own_cluster_of, run, users,
};

/// A pool on a cluster of its own, with the default consistency.
async fn start(wait: Duration) -> (Arc<LocalCluster>, ReplicatedPool) {
    let local = own_cluster().await;
    let quick = HealthConfig::default()
        .interval(Duration::from_millis(100))
        .timeout(Duration::from_millis(500));
    let builder = builder_for(&local, "app").health(quick);
    let pool = builder.failover_wait(wait).build().await.unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    (local, pool)
}

/// Commits wait for one of the standbys, so that nothing acknowledged may be missing.
async fn confirmed_by_one(local: &Arc<LocalCluster>) {
    on(local, |local| {
        let primary = local.primary();
        let setting = "ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (*)'";
        primary.sql("app", setting).unwrap();
        primary.reload().unwrap();
    })
    .await;
    let quorum = "SELECT 1 FROM pg_stat_replication HAVING bool_and(sync_state = 'quorum')";
    eventually("commits wait for one", async || {
        on(local, move |local| {
            !local.primary().sql("app", quorum).unwrap().is_empty()
        })
        .await
    })
    .await;
}

/// How many users a session sees that has done nothing before.
async fn seen(pool: &ReplicatedPool) -> QueryResult<i64> {
    let mut conn = pool.get().await?;
    all(&mut conn).await
}

async fn all(conn: &mut ReplicatedConnection) -> QueryResult<i64> {
    users::table.count().get_result(conn).await
}

/// From now on no standby receives anything.
async fn detach_all(local: &Arc<LocalCluster>) {
    on(local, |local| {
        for replica in local.replicas() {
            replica.detach().unwrap();
        }
    })
    .await;
}

/// A write that the primary is at when it goes away: nobody knows where it is.
async fn begin_a_write(local: &Arc<LocalCluster>, pool: &ReplicatedPool) {
    let mut conn = pool.get().await.unwrap();
    tokio::spawn(async move {
        run(
            &mut conn,
            "UPDATE users SET visits = 1 WHERE pg_sleep(600) IS NOT NULL",
        )
        .await
    });
    is_at_it(local).await;
}

async fn is_at_it(local: &Arc<LocalCluster>) {
    let begun =
        "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'UPDATE users%' AND state = 'active'";
    eventually("the write has begun", async || {
        on(local, move |local| {
            !local.primary().sql("app", begun).unwrap().is_empty()
        })
        .await
    })
    .await;
}

async fn is_down(pool: &ReplicatedPool, name: &str) {
    eventually("the pool sees it", async || {
        let mut nodes = pool.status().nodes.into_iter();
        nodes.any(|node| node.name == name && node.health == NodeHealth::Down)
    })
    .await;
}

// rethinkdb 4492, timescale/docs 2751: reads end with the primary. MongoDB's "maxStalenessSeconds": "if there is no primary,
// the client uses the secondary with the most recent write for the comparison".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_of_what_others_wrote_go_on_after_the_primary_has_died_under_load() {
    let (local, pool) = start(Duration::from_secs(60)).await;
    confirmed_by_one(&local).await;
    let acknowledged = Shared::default();
    let stop = Shared::default();
    let mut writers = JoinSet::new();
    for writer in 0..4 {
        let (pool, stop, acknowledged) = (pool.clone(), stop.clone(), acknowledged.clone());
        writers.spawn(async move {
            for number in 0.. {
                let mut conn = pool.get().await.unwrap();
                let name = format!("{writer}-{number}");
                if stop.get() > 0 || insert(&name).execute(&mut conn).await.is_err() {
                    return;
                }
                acknowledged.add(1);
            }
        });
    }
    eventually("there is load", async || acknowledged.get() > 200).await;
    on(&local, |local| local.primary().kill().unwrap()).await;
    let mut readers = JoinSet::new();
    for _ in 0..4 {
        let (pool, acknowledged) = (pool.clone(), acknowledged.clone());
        readers.spawn(async move {
            for _ in 0..50 {
                let before = 3 + i64::from(acknowledged.get());
                let mut conn = pool.get().await.unwrap();
                let seen = all(&mut conn).await.unwrap();
                assert!(seen >= before, "{seen} of {before}");
                assert_eq!(conn.last_route().unwrap().kind, NodeKind::Replica);
            }
        });
    }
    let all_done = async {
        while let Some(done) = readers.join_next().await {
            done.unwrap();
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(30), all_done).await;
    assert!(in_time.is_ok(), "reads wait for the next primary");
    assert!(!pool.status().takes_writes);
    stop.add(1);
    writers.abort_all();
}

/// Another session writes a row.
async fn writes(pool: &ReplicatedPool, name: &str) {
    let mut conn = pool.get().await.unwrap();
    insert(name).execute(&mut conn).await.unwrap();
}

async fn has(local: &Arc<LocalCluster>, replica: usize, name: &'static str) {
    let row = format!("SELECT FROM users WHERE name = '{name}'");
    eventually("the replica has it", async || {
        let row = row.clone();
        on(local, move |local| {
            !local.replicas()[replica]
                .sql("app", &row)
                .unwrap()
                .is_empty()
        })
        .await
    })
    .await;
}

async fn waits_in_vain(pool: &ReplicatedPool) {
    let error = seen(pool).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("no node is known to be the primary"),
        "{error}"
    );
    assert_eq!(error.outcome(), Outcome::NotRun);
}

// pgconsul 200, cloudnative-pg 11367: a standby counts with what it has received, not with what it has replayed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_replica_that_has_most_serves_and_must_have_replayed_it() {
    let (local, pool) = start(Duration::from_secs(1)).await;
    on(&local, |local| local.replicas()[0].pause_replay().unwrap()).await;
    writes(&pool, "Barbara").await;
    has(&local, 1, "Barbara").await;
    begin_a_write(&local, &pool).await;
    on(&local, |local| local.primary().kill().unwrap()).await;
    for _ in 0..20 {
        let mut conn = pool.get().await.unwrap();
        assert_eq!(all(&mut conn).await, Ok(4));
        assert_eq!(conn.last_route().unwrap().node, "replica-2");
    }
    // One has it in its log alone, and of the other one nobody knows what it has.
    on(&local, |local| local.replicas()[1].kill().unwrap()).await;
    is_down(&pool, "replica-2").await;
    waits_in_vain(&pool).await;
    on(&local, |local| local.replicas()[1].start().unwrap()).await;
    eventually("it serves again", async || seen(&pool).await == Ok(4)).await;
    on(&local, |local| local.replicas()[0].resume_replay().unwrap()).await;
    has(&local, 0, "Barbara").await;
    eventually("both serve", async || {
        let mut conn = pool.get().await.unwrap();
        all(&mut conn).await == Ok(4) && conn.last_route().unwrap().node == "replica-1"
    })
    .await;
}

// patroni 1126: reads of replicas during a failover. A session never reads past its own write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_know_what_became_of_an_own_write_waits() {
    let (local, pool) = start(Duration::from_secs(1)).await;
    let session = pool.session();
    let mut conn = session.get().await.unwrap();
    let writing = tokio::spawn(async move {
        run(
            &mut conn,
            "UPDATE users SET visits = 1 WHERE pg_sleep(600) IS NOT NULL",
        )
        .await
    });
    is_at_it(&local).await;
    on(&local, |local| local.primary().kill().unwrap()).await;
    let error = writing.await.unwrap().unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown);
    assert_eq!(seen(&pool).await, Ok(3));
    let mut own = session.get().await.unwrap();
    assert!(all(&mut own).await.is_err());
    on(&local, |local| local.replicas()[1].promote().unwrap()).await;
    // It waits for the next primary no longer than it may.
    while all(&mut own).await != Ok(3) {}
}

// A server that hangs keeps its connections open. Its standbys hear nothing from it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_go_on_beside_a_primary_that_hangs() {
    let (local, pool) = start(Duration::from_secs(60)).await;
    writes(&pool, "Barbara").await;
    begin_a_write(&local, &pool).await;
    for replica in 0..2 {
        has(&local, replica, "Barbara").await;
    }
    on(&local, |local| local.primary().freeze()).await;
    is_down(&pool, "primary").await;
    for _ in 0..20 {
        assert_eq!(seen(&pool).await, Ok(4));
    }
    on(&local, |local| local.primary().thaw()).await;
    eventually("it takes writes again", async || pool.status().takes_writes).await;
    writes(&pool, "Edith").await;
    assert_eq!(seen(&pool).await, Ok(5));
}

/// Five reads of sessions that have done nothing before. None sees fewer than `least`; they may fail.
async fn none_misses(pool: &ReplicatedPool, least: i64) {
    for _ in 0..5 {
        if let Ok(seen) = seen(pool).await {
            assert!(seen >= least, "{seen} of {least}");
        }
    }
}

// pgconsul 200: what a standby has is read at the wrong moment. A restarted one answers before it has replayed its own log,
// and tells nothing received until then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_standby_that_still_replays_its_log_is_waited_for() {
    let (local, pool) = start(Duration::from_secs(1)).await;
    confirmed_by_one(&local).await;
    on(&local, |local| {
        local.replicas()[1].detach().unwrap();
        let late = "ALTER SYSTEM SET recovery_min_apply_delay = '8s'";
        local.replicas()[0].sql("app", late).unwrap();
        local.replicas()[0].reload().unwrap();
    })
    .await;
    begin_a_write(&local, &pool).await;
    writes(&pool, "Barbara").await;
    on(&local, |local| {
        local.primary().kill().unwrap();
        local.replicas()[0].restart().unwrap();
    })
    .await;
    none_misses(&pool, 4).await;
    eventually("it has replayed it", async || seen(&pool).await == Ok(4)).await;
}

// The name of a service leads to another standby after an outage.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_leads_to_a_standby_that_has_less_shows_nothing() {
    let local = own_cluster().await;
    let node = |url: String, name: &str| NodeConfig::new(url).name(name);
    let (primary, front) = (local.primary(), &local.replicas()[0]);
    let pool = ReplicatedPool::builder()
        .primary(node(primary.url("app"), "primary"))
        .replica(node(front.proxied_url("app").unwrap(), "reads"))
        .failover_wait(Duration::from_secs(1))
        .build()
        .await
        .unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    confirmed_by_one(&local).await;
    on(&local, |local| local.replicas()[1].detach().unwrap()).await;
    begin_a_write(&local, &pool).await;
    writes(&pool, "Barbara").await;
    on(&local, |local| {
        local.primary().kill().unwrap();
        let other = local.replicas()[1].port();
        local.replicas()[0].proxy().unwrap().lead_to(other);
    })
    .await;
    none_misses(&pool, 4).await;
}

// MongoDB's "afterClusterTime": what a causal session has seen, it sees again or waits for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_causal_session_does_not_go_back_when_the_primary_dies() {
    let (local, pool) = start(Duration::from_secs(1)).await;
    detach_all(&local).await;
    writes(&pool, "Barbara").await;
    let mut conn = pool.get().await.unwrap();
    conn.set_consistency(Consistency::Causal);
    assert_eq!(all(&mut conn.primary()).await, Ok(4));
    on(&local, |local| local.primary().kill().unwrap()).await;
    assert!(all(&mut conn).await.is_err());
    // Whoever has not seen it sees what the standbys have.
    assert_eq!(seen(&pool).await, Ok(3));
    on(&local, |local| local.primary().start().unwrap()).await;
    eventually("it is there again", async || seen(&pool).await == Ok(4)).await;
    while all(&mut conn).await != Ok(4) {}
}

// A connection breaks under a read, and there is no other node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_whose_connection_breaks_goes_on_on_the_only_replica() {
    let local = own_cluster_of(1).await;
    let builder = builder_for(&local, "app").allow_function("pg_sleep");
    let pool = builder
        .failover_wait(Duration::from_secs(60))
        .build()
        .await
        .unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    on(&local, |local| local.primary().kill().unwrap()).await;
    is_down(&pool, "primary").await;
    let mut conn = pool.get().await.unwrap();
    let slow = tokio::spawn(async move { run(&mut conn, "SELECT pg_sleep(2)").await });
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE query = 'SELECT pg_sleep(2)' AND state = 'active'";
    eventually("it is ended", async || {
        on(&local, move |local| {
            !local.replicas()[0].sql("app", end).unwrap().is_empty()
        })
        .await
    })
    .await;
    let done = tokio::time::timeout(Duration::from_secs(30), slow).await;
    done.unwrap().unwrap().unwrap();
}

// A server sends whole pages of its log, so what a standby has received may end within a record.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_ends_within_a_record_is_replayed_to_its_last_whole_one() {
    let (local, pool) = start(Duration::from_secs(60)).await;
    let bulk = Arc::clone(&local);
    let loading = std::thread::spawn(move || {
        let load = "CREATE TABLE bulk AS SELECT repeat(md5(it::text), 3) AS it FROM generate_series(1, 5000000) it";
        let _ = bulk.primary().sql("app", load);
    });
    begin_a_write(&local, &pool).await;
    eventually("the log grows", async || {
        on(&local, |local| {
            let size = "SELECT 1 WHERE pg_current_wal_lsn() - '0/0' > 60 * 1024 * 1024";
            !local.primary().sql("app", size).unwrap().is_empty()
        })
        .await
    })
    .await;
    on(&local, |local| local.primary().freeze()).await;
    is_down(&pool, "primary").await;
    let read = tokio::time::timeout(Duration::from_secs(30), seen(&pool)).await;
    assert_eq!(read.unwrap(), Ok(3));
    on(&local, |local| local.primary().kill().unwrap()).await;
    loading.join().unwrap();
}

// Patroni starts a crashed leader as a standby first, and while its store is away as one of nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_primary_that_is_a_standby_of_nobody_serves_what_it_has() {
    let (local, pool) = start(Duration::from_secs(1)).await;
    detach_all(&local).await;
    begin_a_write(&local, &pool).await;
    writes(&pool, "Barbara").await;
    on(&local, |local| {
        let primary = local.primary();
        primary.kill().unwrap();
        std::fs::write(primary.data_dir().join("standby.signal"), "").unwrap();
        primary.start().unwrap();
    })
    .await;
    eventually("what it has is seen", async || seen(&pool).await == Ok(4)).await;
    for _ in 0..5 {
        assert_eq!(seen(&pool).await, Ok(4));
    }
    assert!(!pool.status().takes_writes);
}

/// PostgreSQL's positions, told by the application.
#[derive(Debug)]
struct Told;

impl PositionSource for Told {
    fn of_primary(&self) -> &str {
        "pg_current_wal_insert_lsn() /* told */"
    }

    fn of_standby(&self) -> &str {
        "pg_last_wal_replay_lsn() /* told */"
    }
}

// Positions of two sources do not compare: a standby whose log seems to end before what it has shown has lost something.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_standby_is_asked_for_a_position_that_the_applications_source_tells() {
    let local = blocking(|| {
        let builder = LocalCluster::builder().setting("log_statement", "all");
        let local = builder.start().unwrap();
        fill(&local, "app");
        Arc::new(local)
    })
    .await;
    let quick = HealthConfig::default().interval(Duration::from_millis(100));
    let build = async |change: fn(Builder) -> Builder| {
        let builder = builder_for(&local, "app").health(quick.clone());
        let pool = change(builder).start_read_only(true).build();
        pool.await.unwrap()
    };
    let times = async |text: &'static str| {
        let counted = on(&local, move |local| {
            let replicas = local.replicas().iter();
            replicas
                .map(|it| it.log().matches(text).count())
                .min()
                .unwrap()
        });
        counted.await
    };
    const END_OF_LOG: &str = "RecoveryRetrieveRetryInterval";
    let pool = build(|builder| builder.position_source(Told)).await;
    eventually("all are up", || async { all_up(&pool) }).await;
    on(&local, |local| local.primary().kill().unwrap()).await;
    is_down(&pool, "primary").await;
    // One that has received nothing since its start does not tell where its log ends.
    detach_all(&local).await;
    on(&local, |local| {
        for replica in local.replicas() {
            replica.restart().unwrap();
        }
    })
    .await;
    let before = times("/* told */").await;
    eventually("the standbys are asked again and again", async || {
        times("/* told */").await > before + 20
    })
    .await;
    assert_eq!(times(END_OF_LOG).await, 0);
    // Without a source they are.
    let _plain = build(|builder| builder).await;
    eventually("the standbys are asked where their log ends", async || {
        times(END_OF_LOG).await > 0
    })
    .await;
}
