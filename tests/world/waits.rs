//! Every wait has an end, and whoever leaves one leaves nothing behind.

use std::time::Duration;

use diesel::QueryResult;
use diesel_async::{AsyncConnection, RunQueryDsl};
use diesel_replicated::config::{ConsistencyConfig, HealthConfig, PromotionConfig};
use diesel_replicated::connection::{Replicas, Stage};
use diesel_replicated::{Consistency, ReplicatedConnection, RetryPolicy};

use crate::support::{
    all_up, always, builder_for, count, eventually, insert, on, own_cluster, run,
};

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
        .after(ever)
        .witness_age(ever)
        .timeout(ever);
    let builder = builder_for(&local, "app")
        .write_quorum(true)
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

/// isoos/postgresql-dart #380, F3-Nation/f3-nation #911: requests time out, and the server works on. More statements
/// were at work than the pool has connections.
#[tokio::test]
async fn a_statement_that_nobody_waits_for_is_cancelled_and_keeps_its_place_until_then() {
    let local = own_cluster().await;
    let pool = builder_for(&local, "app")
        .max_size(2)
        .build()
        .await
        .unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    let at_work = || {
        on(&local, |local| {
            let sql = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%pg_sleep(%' \
                AND pid <> pg_backend_pid()";
            let nodes = std::iter::once(local.primary()).chain(local.replicas());
            let counts = nodes.map(|node| {
                node.sql("app", sql).unwrap()[0][0]
                    .as_ref()
                    .unwrap()
                    .parse::<usize>()
            });
            counts.map(Result::unwrap).max().unwrap()
        })
    };
    for sql in [
        "SELECT pg_sleep(600)",
        "UPDATE users SET visits = 1 WHERE pg_sleep(600) IS NULL",
    ] {
        for round in 0..4 {
            let requests = (0..8).map(|_| {
                tokio::time::timeout(Duration::from_millis(150), async {
                    let mut conn = pool.get().await.unwrap();
                    run(&mut conn, sql).await
                })
            });
            futures_util::future::join_all(requests).await;
            let seen = at_work().await;
            assert!(seen <= 2, "{sql}, round {round}: {seen} at work");
        }
        eventually("nobody is at work", || async { at_work().await == 0 }).await;
        // And there is room for whoever comes.
        let mut conn = pool.get().await.unwrap();
        assert_eq!(count(&mut conn.primary()).await, 3);
    }
}

/// pgdogdev/pgdog #1494, gpustack #6105: whoever waits for a connection of a server that is not the primary any more
/// waits in vain, as others hold on to those that they have.
#[tokio::test]
async fn who_waits_for_a_connection_goes_on_when_another_node_takes_over() {
    let local = own_cluster().await;
    let builder = builder_for(&local, "app").max_size(1);
    let builder = builder.connection_timeout(Duration::MAX);
    let builder = builder.failover_wait(Duration::from_secs(30));
    let pool = builder.build().await.unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    let mut holding = pool.get().await.unwrap();
    run(&mut holding, "BEGIN").await.unwrap();
    insert("lost").execute(&mut holding).await.unwrap();
    let waiting = tokio::spawn({
        let pool = pool.clone();
        async move {
            let mut conn = pool.get().await.unwrap();
            insert("waits").execute(&mut conn).await.unwrap();
            conn.last_route().unwrap().node
        }
    });
    tokio::task::yield_now().await;
    on(&local, |local| local.replicas()[0].promote().unwrap()).await;
    let limit = Duration::from_secs(60);
    let served = tokio::time::timeout(limit, waiting)
        .await
        .expect("it does not wait for ever");
    assert_eq!(served.unwrap(), "replica-1");
    drop(holding);
}

/// The same of a reader whose replica dies.
#[tokio::test]
async fn who_waits_for_a_replicas_connection_reads_elsewhere_when_it_dies() {
    let local = own_cluster().await;
    let builder = builder_for(&local, "app").max_size(1);
    let builder = builder.connection_timeout(Duration::MAX);
    let pool = builder.build().await.unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    pool.remove_replica("replica-2").await.unwrap();
    let mut holding = pool.get().await.unwrap();
    assert_eq!(count(&mut holding.replica()).await, 3);
    let waiting = tokio::spawn({
        let pool = pool.clone();
        async move {
            let mut conn = pool.get().await.unwrap();
            count(&mut conn).await
        }
    });
    tokio::task::yield_now().await;
    on(&local, |local| local.replicas()[0].kill().unwrap()).await;
    let limit = Duration::from_secs(60);
    let served = tokio::time::timeout(limit, waiting)
        .await
        .expect("it does not wait for ever");
    assert_eq!(served.unwrap(), 3);
    drop(holding);
}

/// Limits of a role are for the application's statements.
#[tokio::test]
async fn a_roles_limits_do_not_reach_who_watches_the_servers() {
    let local = own_cluster().await;
    on(&local, |local| {
        let limits = "ALTER DATABASE app SET idle_session_timeout = '200ms';
            ALTER DATABASE app SET default_transaction_isolation = 'serializable';
            ALTER DATABASE app SET default_transaction_deferrable = on;
            ALTER DATABASE app SET default_transaction_read_only = off";
        local.primary().sql("postgres", limits).unwrap();
        local.wait_caught_up().unwrap();
    })
    .await;
    let pool = builder_for(&local, "app").build().await.unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    let watchers = || {
        on(&local, |local| {
            let sql = "SELECT pid FROM pg_stat_activity WHERE query LIKE '%pg_current_wal_insert_lsn%' \
                AND pid <> pg_backend_pid() AND backend_type = 'client backend' ORDER BY pid";
            local.primary().sql("app", sql).unwrap()
        })
    };
    // Whatever it asks just now.
    let connected = || {
        on(&local, |local| {
            let sql = "SELECT pid FROM pg_stat_activity ORDER BY pid";
            local.primary().sql("app", sql).unwrap()
        })
    };
    eventually("somebody watches", || async {
        !watchers().await.is_empty()
    })
    .await;
    let before = watchers().await;
    // Several times as long as a session may be idle.
    always(
        "the same one watches",
        Duration::from_millis(1200),
        || async {
            let after = connected().await;
            before.iter().any(|pid| after.contains(pid))
        },
    )
    .await;
    for node in pool.status().nodes {
        assert_eq!(node.monitor_error, None, "{}", node.name);
    }
    let mut conn = pool.get().await.unwrap();
    insert("one").execute(&mut conn).await.unwrap();
    assert_eq!(count(&mut conn).await, 4);
}

/// Test suites make a database, connect to it by its URL, and drop it.
#[tokio::test]
async fn a_database_can_be_dropped_soon_after_its_last_connection_has_gone() {
    let database = crate::support::database().await;
    let cluster = crate::support::cluster();
    let url = cluster.primary().url(&database);
    for _ in 0..2 {
        let mut conn = ReplicatedConnection::establish(&url).await.unwrap();
        assert_eq!(count(&mut conn).await, 3);
    }
    eventually("nobody is connected", || async {
        let drop = format!("DROP DATABASE \"{database}\"");
        crate::support::blocking(move || {
            crate::support::cluster()
                .primary()
                .sql("postgres", &drop)
                .is_ok()
        })
        .await
    })
    .await;
}

/// sequelize #7179, `PostgREST` #3673: what replicas cancel again and again, no replica is going to finish.
#[tokio::test]
async fn a_read_only_transaction_that_replicas_cancel_is_done_on_the_primary() {
    let database = crate::support::database().await;
    let name = database.clone();
    crate::support::blocking(move || {
        let conflicts = "CREATE FUNCTION conflicts() RETURNS integer STABLE LANGUAGE plpgsql AS $$ BEGIN
            IF current_setting('transaction_read_only') = 'on' AND pg_is_in_recovery() THEN
              RAISE EXCEPTION 'canceling statement due to conflict with recovery' USING ERRCODE = '40001';
            END IF; RETURN 1; END $$";
        let cluster = crate::support::cluster();
        cluster.primary().sql(&name, conflicts).unwrap();
        cluster.wait_caught_up().unwrap();
    })
    .await;
    let builder = crate::support::builder(&database).read_only_transactions_on_replicas(true);
    let pool = builder.build().await.unwrap();
    for attempts in [2, 5] {
        let mut conn = pool.get().await.unwrap();
        let policy = RetryPolicy::default()
            .attempts(attempts)
            .delay(Duration::from_millis(1));
        let mut transaction = conn.build_transaction().read_only();
        let done = transaction.retry(policy, async |conn| run(conn, "SELECT conflicts()").await);
        done.await.unwrap();
        assert_eq!(conn.last_route().unwrap().node, "primary");
        // Others begin on replicas as before.
        let mut transaction = conn.build_transaction().read_only();
        transaction
            .run(async |conn| run(conn, "SELECT 1").await)
            .await
            .unwrap();
        assert_ne!(conn.last_route().unwrap().node, "primary");
    }
}
