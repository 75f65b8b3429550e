//! Nodes that die, refuse and cancel.

use std::sync::Arc;
use std::time::Duration;

use diesel::prelude::*;
use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel::sql_query;
use diesel_async::{AsyncConnection, RunQueryDsl};
use diesel_replicated::status::{NodeHealth, RouteReason};
use diesel_replicated::testing::{LocalCluster, LocalNode};
use diesel_replicated::{ErrorExt, Outcome, ReplicatedPool};
use futures_util::StreamExt;

use crate::support::{
    Number, Shared, all_up, blocking, builder_for, count, eventually, fill, insert, own_cluster,
    own_cluster_of, run, users, who,
};

async fn start() -> (Arc<LocalCluster>, ReplicatedPool) {
    let local = own_cluster().await;
    let pool = builder_for(&local, "app").build().await.unwrap();
    (local, pool)
}

async fn on(
    local: &Arc<LocalCluster>,
    name: &'static str,
    verb: impl FnOnce(&LocalNode) + Send + 'static,
) {
    let local = Arc::clone(local);
    blocking(move || verb(local.node(name).unwrap())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_a_replica_under_load_loses_no_read() {
    let (local, pool) = start().await;
    let (stop, served) = (Shared::default(), Shared::default());
    let readers: Vec<_> = (0..8)
        .map(|_| {
            let (pool, stop, served) = (pool.clone(), stop.clone(), served.clone());
            tokio::spawn(async move {
                while stop.get() == 0 {
                    let mut conn = pool.get().await.unwrap();
                    for _ in 0..5 {
                        let names: Vec<String> = users::table
                            .select(users::name)
                            .load(&mut conn)
                            .await
                            .unwrap();
                        assert_eq!(names.len(), 3);
                        served.add(1);
                    }
                }
            })
        })
        .collect();
    let more = |than: u32| {
        let served = served.clone();
        move || std::future::ready(served.get() > than)
    };
    eventually("reads are served", more(200)).await;
    for _ in 0..3 {
        on(&local, "replica-1", |replica| replica.kill().unwrap()).await;
        eventually("reads go on", more(served.get() + 200)).await;
        eventually("the loss is known", || async {
            pool.status().node("replica-1").unwrap().health == NodeHealth::Down
        })
        .await;
        on(&local, "replica-1", |replica| replica.start().unwrap()).await;
        eventually("the replica is back", || async { all_up(&pool) }).await;
    }
    stop.add(1);
    for reader in readers {
        reader.await.unwrap();
    }
}

#[tokio::test]
async fn a_dead_connection_is_noticed_before_anyone_uses_it() {
    let (local, pool) = start().await;
    let mut conn = pool.get().await.unwrap();
    let server = who(&mut conn).await;
    drop(conn);
    let mut conn = pool.get().await.unwrap();
    insert("Before").execute(&mut conn).await.unwrap();
    drop(conn);
    let terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                     WHERE datname = 'app' AND pid <> pg_backend_pid()";
    on(&local, "primary", move |node| {
        drop(node.sql("postgres", terminate).unwrap())
    })
    .await;
    let local_server: &'static str = if server == "replica-1" {
        "replica-1"
    } else {
        "replica-2"
    };
    on(&local, local_server, move |node| {
        drop(node.sql("postgres", terminate).unwrap())
    })
    .await;
    // No statement sees any of it.
    for n in 0..10 {
        let mut conn = pool.get().await.unwrap();
        assert!(count(&mut conn).await >= 3);
        insert(&format!("After {n}"))
            .execute(&mut conn)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn losing_all_replicas_takes_no_more_of_the_primary_than_allowed() {
    let local = own_cluster().await;
    let pool = builder_for(&local, "app")
        .max_size(4)
        .fallback_share(0.5)
        .build()
        .await
        .unwrap();
    for replica in ["replica-1", "replica-2"] {
        on(&local, replica, |replica| replica.kill().unwrap()).await;
    }
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut conn = pool.get().await.unwrap();
        assert_eq!(who(&mut conn).await, "primary");
        let reason = conn.last_route().unwrap().reason;
        assert!(
            [RouteReason::NoUsableReplica, RouteReason::ReplicaFailed].contains(&reason),
            "{reason:?}"
        );
        held.push(conn);
    }
    let mut third = pool.get().await.unwrap();
    let refused = users::table
        .count()
        .get_result::<i64>(&mut third)
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("fallback_share"), "{refused}");
    assert_eq!(refused.outcome(), Outcome::NotRun);
    insert("Writes go on").execute(&mut third).await.unwrap();
    assert_eq!(count(&mut third).await, 4, "its own connection may read");
    drop(held);
    let mut fourth = pool.get().await.unwrap();
    assert_eq!(count(&mut fourth).await, 4);
    let forced = users::table
        .count()
        .get_result::<i64>(&mut *fourth.replica())
        .await
        .unwrap_err();
    assert!(forced.to_string().contains("no replica"), "{forced}");
}

#[tokio::test]
async fn a_write_whose_connection_breaks_is_in_doubt_and_not_repeated() {
    let (local, pool) = start().await;
    let mut conn = pool.get().await.unwrap();
    run(&mut conn, "CREATE TABLE log (at int)").await.unwrap();
    let writing = tokio::spawn(async move {
        let slow = sql_query("INSERT INTO log SELECT 1 FROM pg_sleep(30)");
        slow.execute(&mut conn).await
    });
    let running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'INSERT INTO log%' AND state = 'active'";
    eventually("the write runs", || async {
        let local = Arc::clone(&local);
        blocking(move || {
            local.primary().sql("postgres", running).unwrap()[0][0].as_deref() == Some("1")
        })
        .await
    })
    .await;
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'INSERT INTO log%'";
    on(&local, "primary", move |node| {
        drop(node.sql("postgres", end).unwrap())
    })
    .await;
    let error = writing.await.unwrap().unwrap_err();
    assert!(
        matches!(
            error,
            DieselError::DatabaseError(DatabaseErrorKind::ClosedConnection, _)
        ),
        "{error:?}"
    );
    assert_eq!(error.outcome(), Outcome::Unknown);
    let mut conn = pool.get().await.unwrap();
    let rows: Number = sql_query("SELECT count(*)::int AS number FROM log")
        .get_result(&mut conn.primary())
        .await
        .unwrap();
    assert_eq!(rows.number, 0);
}

#[tokio::test]
async fn a_lost_transaction_says_so_and_nothing_more_of_it_runs() {
    let (local, pool) = start().await;
    let mut conn = pool.get().await.unwrap();
    let terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                     WHERE datname = 'app' AND state LIKE 'idle in transaction%'";
    let result = conn
        .transaction(async |conn| {
            insert("Lost").execute(conn).await?;
            on(&local, "primary", move |node| {
                drop(node.sql("postgres", terminate).unwrap())
            })
            .await;
            eventually("the loss is known", || async {
                pool.status().node("primary").unwrap().connections > 0
            })
            .await;
            let error = insert("Never").execute(conn).await.unwrap_err();
            assert!(error.to_string().contains("transaction"), "{error}");
            assert_eq!(error.outcome(), Outcome::NotRun);
            assert!(insert("Never either").execute(conn).await.is_err());
            QueryResult::<()>::Err(error)
        })
        .await;
    assert!(result.is_err());
    // The connection is good for the next transaction.
    conn.transaction(async |conn| insert("Kept").execute(conn).await)
        .await
        .unwrap();
    assert_eq!(count(&mut conn).await, 4);

    // A transaction whose COMMIT cannot be sent has not committed.
    let result = conn
        .transaction(async |conn| {
            insert("Lost too").execute(conn).await?;
            on(&local, "primary", move |node| drop(node.sql("postgres", terminate).unwrap())).await;
            let gone = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'app' AND state LIKE 'idle in%'";
            eventually("the backend is gone", || async {
                let local = Arc::clone(&local);
                blocking(move || local.primary().sql("postgres", gone).unwrap()[0][0].as_deref() == Some("0")).await
            })
            .await;
            QueryResult::Ok(())
        })
        .await;
    assert!(result.is_err());
    assert_eq!(count(&mut conn).await, 4);
}

#[tokio::test]
async fn a_read_cancelled_by_recovery_runs_again_elsewhere() {
    let local = blocking(|| {
        let local = LocalCluster::builder()
            .setting("max_standby_streaming_delay", "50ms")
            .setting("hot_standby_feedback", "off")
            .start()
            .unwrap();
        fill(&local, "app");
        Arc::new(local)
    })
    .await;
    let pool = builder_for(&local, "app").build().await.unwrap();
    let mut conn = pool.get().await.unwrap();
    let first = who(&mut conn).await;
    let reading = tokio::spawn(async move {
        let slow =
            sql_query("SELECT (SELECT count(*) FROM users)::int AS number FROM pg_sleep(0.7)");
        let number: QueryResult<Number> = slow.get_result(&mut conn).await;
        (
            number.map(|number| number.number),
            conn.last_route().unwrap(),
        )
    });
    let running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(0.7)%' AND wait_event = 'PgSleep'";
    let node: &'static str = if first == "replica-1" {
        "replica-1"
    } else {
        "replica-2"
    };
    eventually("the read runs", || async {
        let local = Arc::clone(&local);
        blocking(move || {
            local.node(node).unwrap().sql("postgres", running).unwrap()[0][0].as_deref()
                == Some("1")
        })
        .await
    })
    .await;
    on(&local, "primary", |primary| {
        drop(
            primary
                .sql("app", "ALTER TABLE users ADD COLUMN extra int")
                .unwrap(),
        )
    })
    .await;
    let (number, route) = reading.await.unwrap();
    assert_eq!(number.unwrap(), 3);
    assert_ne!(route.node, first, "{route}");
    assert_eq!(
        pool.status().node(&first).unwrap().health,
        NodeHealth::Up,
        "a conflict is no failure"
    );
}

#[tokio::test]
async fn a_node_that_restarts_in_the_middle_of_a_stream_ends_the_stream_with_an_error() {
    let (local, pool) = start().await;
    let mut conn = pool.get().await.unwrap();
    let mut rows = sql_query("SELECT generate_series(1, 20000000) AS number")
        .load_stream::<Number>(&mut conn)
        .await
        .unwrap();
    assert_eq!(rows.next().await.unwrap().unwrap().number, 1);
    let server = conn.last_route().unwrap().node;
    let node: &'static str = if server == "replica-1" {
        "replica-1"
    } else {
        "replica-2"
    };
    on(&local, node, |replica| replica.kill().unwrap()).await;
    let error = loop {
        match rows.next().await {
            Some(Ok(_)) => {}
            Some(Err(error)) => break error,
            None => panic!("the stream ended as if complete"),
        }
    };
    assert!(error.to_string().contains(&server), "{error}");
    assert!(rows.next().await.is_none());
    drop(rows);
    assert_eq!(
        count(&mut conn).await,
        3,
        "the next read is served elsewhere"
    );
    on(&local, node, |replica| replica.start().unwrap()).await;
    eventually("the replica is back", || async { all_up(&pool) }).await;
}

#[tokio::test]
async fn a_black_hole_costs_a_connect_no_more_than_its_timeout() {
    let local = own_cluster_of(1).await;
    let replica = &local.replicas()[0];
    replica.proxy().unwrap().black_hole();
    let pool = ReplicatedPool::builder()
        .primary(local.primary().url("app"))
        .replica(
            diesel_replicated::NodeConfig::new(replica.proxied_url("app").unwrap()).name("hole"),
        )
        // Long enough for the primary on a busy machine.
        .connect_timeout(Duration::from_secs(2))
        .build()
        .await
        .unwrap();
    eventually("it is known why", || async {
        let cause = pool.status().node("hole").unwrap().cause.clone();
        cause.is_some_and(|cause| cause.contains("no answer in time"))
    })
    .await;
    let mut conn = pool.get().await.unwrap();
    assert_eq!(who(&mut conn).await, "primary");
    replica.proxy().unwrap().heal();
    eventually("the replica serves", || async {
        let mut conn = pool.get().await.unwrap();
        who(&mut conn).await == "replica-1"
    })
    .await;
}
