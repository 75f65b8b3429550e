//! Many wait for few connections: in which order they are served, what is left of those who stop waiting, and what becomes of a
//! connection that is always wanted. And reads that leave a slow replica, and return.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use diesel::result::Error as DieselError;
use diesel_async::RunQueryDsl;
use diesel_replicated::testing::LocalCluster;
use diesel_replicated::{ErrorExt, NodeConfig, Outcome, ReplicatedConnection, ReplicatedPool};
use parking_lot::Mutex;
use tokio::task::JoinSet;

use crate::support::{
    Number, Shared, all_up, blocking, builder_for, cluster, database, eventually, on, own_cluster,
    process, run,
};

/// A pool with so many connections, all to the primary.
async fn small_pool(size: u32) -> ReplicatedPool {
    let database = database().await;
    let primary = cluster().primary();
    let pool = ReplicatedPool::builder()
        .primary(NodeConfig::new(primary.url(&database)).name("primary"))
        .max_size(size)
        .build()
        .await
        .unwrap();
    eventually("it is up", || async { all_up(&pool) }).await;
    pool
}

async fn one(pool: &ReplicatedPool) -> Result<(), DieselError> {
    let mut conn = pool.get().await?;
    run(&mut conn, "SELECT 1").await
}

/// How many connections are in use.
fn in_use(pool: &ReplicatedPool) -> u32 {
    let status = pool.status();
    let node = status.node("primary").unwrap();
    node.connections - node.idle_connections
}

/// sqlx #453, asyncpg #1247, rails #6416, `HikariCP` #2192, mongo-ruby-driver #3028: whoever gives a connection back and asks
/// anew gets it before those who wait.
#[tokio::test]
async fn whoever_asks_anew_comes_after_all_who_wait() {
    const TASKS: u32 = 40;
    // With more connections those that are served at the same time end in any order.
    let pool = small_pool(1).await;
    let mut holder = pool.get().await.unwrap();
    run(&mut holder, "SELECT 1").await.unwrap();
    let served = Arc::new(Mutex::new(Vec::new()));
    let asked = Arc::new(AtomicU32::new(0));
    let task = |_| {
        let (pool, served, asked) = (pool.clone(), Arc::clone(&served), Arc::clone(&asked));
        async move {
            for _ in 0..5 {
                // On one thread nobody comes between this and the place in the line.
                let number = asked.fetch_add(1, Ordering::Relaxed);
                let mut conn = pool.get().await.unwrap();
                run(&mut conn, "SELECT 1").await.unwrap();
                served.lock().push(number);
            }
        }
    };
    let tasks: JoinSet<()> = (0..TASKS).map(task).collect();
    let all = || async { AtomicU32::load(&asked, Ordering::Relaxed) == TASKS };
    eventually("all wait", all).await;
    drop(holder);
    tasks.join_all().await;
    let in_turn: Vec<u32> = (0..5 * TASKS).collect();
    assert_eq!(*served.lock(), in_turn);
}

/// node-mysql2 #4498: a limit that begins anew is none.
#[tokio::test]
async fn who_has_waited_for_too_long_is_told_though_connections_come_and_go() {
    let database = database().await;
    let primary = cluster().primary();
    let pool = ReplicatedPool::builder()
        .primary(NodeConfig::new(primary.url(&database)).name("primary"))
        .max_size(1)
        .connection_timeout(Duration::from_millis(300))
        .build()
        .await
        .unwrap();
    let mut holder = pool.get().await.unwrap();
    run(&mut holder, "SELECT 1").await.unwrap();
    let waiting: JoinSet<_> = (0..200)
        .map(|_| {
            let pool = pool.clone();
            async move { one(&pool).await }
        })
        .collect();
    for told in waiting.join_all().await {
        let error = told.unwrap_err();
        assert_eq!(error.outcome(), Outcome::NotRun, "{error}");
    }
    drop(holder);
    one(&pool).await.unwrap();
}

/// sqlx #83, bb8 #67, hibernate-reactive #4133, boostorg/mysql #509, clickhouse-go #1759: who stops waiting at the moment at
/// which he is served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_stops_waiting_takes_no_connection_along() {
    let pool = small_pool(2).await;
    for round in 0..20u64 {
        let mut holders = Vec::new();
        for _ in 0..2 {
            let mut holder = pool.get().await.unwrap();
            run(&mut holder, "SELECT 1").await.unwrap();
            holders.push(holder);
        }
        let stay = Shared::default();
        let mut leaving = Vec::new();
        let mut staying = JoinSet::new();
        for place in 0..60 {
            let (pool, stay) = (pool.clone(), stay.clone());
            let waits = async move {
                let served = one(&pool).await;
                stay.add(1);
                served
            };
            if place % 3 == 0 {
                staying.spawn(waits);
            } else {
                leaving.push(tokio::spawn(waits));
            }
        }
        tokio::task::yield_now().await;
        drop(holders);
        for (place, task) in leaving.iter().enumerate() {
            task.abort();
            if (place as u64 + round) % 5 == 0 {
                tokio::task::yield_now().await;
            }
        }
        for served in staying.join_all().await {
            served.unwrap();
        }
    }
    eventually("all connections are back", || async { in_use(&pool) == 0 }).await;
    assert_eq!(pool.status().node("primary").unwrap().in_flight, 0);
    // Both can be had at once.
    let (first, second) = (pool.get().await.unwrap(), pool.get().await.unwrap());
    for mut conn in [&first, &second] {
        let read = diesel::sql_query("SELECT 1 AS number");
        let read: Number = read.get_result(&mut conn).await.unwrap();
        assert_eq!(read.number, 1);
    }
}

/// asyncpg #1247, bb8 #122: with many more tasks than connections one of them waits for ever, or too long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_ten_thousand_who_wait_each_is_served() {
    let pool = small_pool(20).await;
    let tasks: JoinSet<_> = (0..10_000)
        .map(|_| {
            let pool = pool.clone();
            async move { one(&pool).await }
        })
        .collect();
    for served in tasks.join_all().await {
        served.unwrap();
    }
    eventually("all connections are back", || async { in_use(&pool) == 0 }).await;
}

/// rails #58851, npgsql PR 2068, mobc #98: under load connections go from one to the next, and outlive what was said.
#[tokio::test]
async fn no_connection_outlives_its_time_because_others_wait_for_it() {
    let primary = cluster().primary();
    let pool = ReplicatedPool::builder()
        .primary(NodeConfig::new(primary.url(&database().await)).name("primary"))
        .max_size(1)
        .max_lifetime(Duration::from_millis(300))
        .build()
        .await
        .unwrap();
    let seen = Arc::new(Mutex::new(BTreeSet::new()));
    let busy: JoinSet<()> = (0..8)
        .map(|_| {
            let (pool, seen) = (pool.clone(), Arc::clone(&seen));
            async move {
                loop {
                    let mut conn = pool.get().await.unwrap();
                    let process = process(&mut conn).await.unwrap();
                    seen.lock().insert(process);
                }
            }
        })
        .collect();
    let renewed = || async { seen.lock().len() >= 5 };
    eventually("its connection was replaced again and again", renewed).await;
    drop(busy);
}

/// drizzle-duckdb PR 118, `mysql_async` #45: a connection that breaks comes back to nobody, and those who wait for it wait on.
#[tokio::test]
async fn those_who_wait_for_a_connection_that_breaks_get_another() {
    let pool = small_pool(1).await;
    let mut holder = pool.get().await.unwrap();
    run(&mut holder, "BEGIN").await.unwrap();
    let broken = process(&mut holder).await.unwrap();
    let asked = Shared::default();
    let waiting: JoinSet<Result<(), DieselError>> = (0..5)
        .map(|_| {
            let (pool, asked) = (pool.clone(), asked.clone());
            async move {
                // On one thread nobody comes between this and the place in the line.
                asked.add(1);
                one(&pool).await
            }
        })
        .collect();
    let all_wait = || async { asked.get() == 5 };
    eventually("all wait", all_wait).await;
    let end = format!("SELECT pg_terminate_backend({broken})");
    blocking(move || cluster().primary().sql("postgres", &end).unwrap()).await;
    run(&mut holder, "COMMIT").await.unwrap_err();
    drop(holder);
    // They would be told after the 30 seconds of `connection_timeout`.
    for served in waiting.join_all().await {
        served.unwrap();
    }
}

/// sqlx #620, boostorg/mysql #509, vitess #17675, bb8 #67: whoever is told that a connection may be opened does nothing more,
/// and those who wait are not told.
#[tokio::test]
async fn who_is_polled_by_nobody_takes_no_place_from_others_who_wait() {
    let pool = small_pool(2).await;
    let (mut first, mut second) = (pool.get().await.unwrap(), pool.get().await.unwrap());
    run(&mut first, "SELECT 1").await.unwrap();
    run(&mut second, "SELECT 1").await.unwrap();
    let mut unpolled = pin!(one(&pool));
    // Long enough for him, and then for the other, to look for more than what comes back.
    let a_while = Duration::from_millis(50);
    tokio::time::timeout(a_while, &mut unpolled)
        .await
        .unwrap_err();
    let waiting = tokio::spawn({
        let pool = pool.clone();
        async move { one(&pool).await }
    });
    tokio::time::sleep(a_while).await;
    // The one that nobody polls gets this connection, and keeps it.
    drop(first);
    // And this one is closed.
    let dropped = run(&mut second, "SELECT pg_sleep(60)");
    tokio::time::timeout(a_while, dropped).await.unwrap_err();
    drop(second);
    waiting.await.unwrap().unwrap();
    unpolled.await.unwrap();
}

/// A service of each replica that takes as long as a table says.
const SERVICE: &str = "
    CREATE TABLE service (server text, seconds float8);
    INSERT INTO service VALUES ('replica-1', 0), ('replica-2', 0);
    CREATE FUNCTION served(more float8 DEFAULT 0) RETURNS integer LANGUAGE plpgsql STABLE AS $$ BEGIN
        PERFORM pg_sleep(seconds + more) FROM service WHERE server = current_setting('cluster_name');
        RETURN 1;
    END $$";

const SLOW: &str = "UPDATE service SET seconds = 0.1 WHERE server = 'replica-2'";

async fn change(local: &Arc<LocalCluster>, sql: &'static str) {
    on(local, move |local| {
        local.primary().sql("app", sql).unwrap();
        local.wait_caught_up().unwrap();
    })
    .await;
}

async fn of_service(local: &Arc<LocalCluster>) -> ReplicatedPool {
    change(local, SERVICE).await;
    let pool = builder_for(local, "app").allow_function("served");
    let pool = pool.build().await.unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    pool
}

async fn is_served(conn: &mut ReplicatedConnection, sql: &str) -> Result<(), DieselError> {
    let read: Number = diesel::sql_query(sql).get_result(conn).await?;
    assert_eq!(read.number, 1);
    Ok(())
}

/// Of so many reads in a row, how many went to the second replica.
async fn there(pool: &ReplicatedPool) -> u32 {
    let mut there = 0;
    for _ in 0..20 {
        let mut conn = pool.get().await.unwrap();
        is_served(&mut conn, "SELECT served() AS number")
            .await
            .unwrap();
        there += u32::from(conn.last_route().unwrap().node == "replica-2");
    }
    there
}

async fn both_serve(pool: &ReplicatedPool) {
    eventually("both serve", || async {
        (4..=16).contains(&there(pool).await)
    })
    .await;
}

/// scylla-rust-driver #536, cassandra-cpp-driver #145, `MongoDB`'s SPEC-1555: a replica that became slow, and one that is well
/// again.
#[tokio::test]
async fn reads_leave_a_replica_that_became_slow_and_come_back() {
    let local = own_cluster().await;
    let pool = of_service(&local).await;
    both_serve(&pool).await;
    change(&local, SLOW).await;
    eventually("reads leave the slow one", || async {
        there(&pool).await == 0
    })
    .await;
    change(&local, "UPDATE service SET seconds = 0").await;
    both_serve(&pool).await;
}

/// cassandra-cpp-driver #502, go-kratos #3834: only answers were measured, and whoever has a limit got none from the slow
/// one.
#[tokio::test]
async fn reads_that_are_given_up_leave_the_slow_replica_too() {
    let local = own_cluster().await;
    let pool = of_service(&local).await;
    for way in 0..3 {
        both_serve(&pool).await;
        change(&local, SLOW).await;
        let limit = Duration::from_millis(50);
        let in_time = async || {
            let mut conn = pool.get().await.unwrap();
            let read = "SELECT served() AS number";
            match way {
                0 => {
                    let mut hurried = conn.with_deadline(limit);
                    let read: Result<Number, _> =
                        diesel::sql_query(read).get_result(&mut hurried).await;
                    read.is_ok()
                }
                1 => {
                    let read = tokio::time::timeout(limit, is_served(&mut conn, read));
                    read.await.is_ok_and(|read| read.is_ok())
                }
                _ => {
                    let set = run(&mut conn, "SET statement_timeout = 50").await;
                    set.is_ok() && is_served(&mut conn, read).await.is_ok()
                }
            }
        };
        eventually(&format!("way {way}: no read fails any more"), || async {
            let mut all = true;
            for _ in 0..20 {
                all &= in_time().await;
            }
            all
        })
        .await;
        change(&local, "UPDATE service SET seconds = 0").await;
    }
}

/// Who keeps a connection reads there, however long that takes, and what that is says nothing of the node.
#[tokio::test]
async fn long_reads_of_one_who_keeps_his_connection_take_no_replica_from_the_others() {
    let local = own_cluster().await;
    let pool = of_service(&local).await;
    let mut reporter = pool.get().await.unwrap();
    is_served(&mut reporter, "SELECT served() AS number")
        .await
        .unwrap();
    for _ in 0..20 {
        is_served(&mut reporter, "SELECT served(0.05) AS number")
            .await
            .unwrap();
    }
    both_serve(&pool).await;
    for _ in 0..20 {
        is_served(&mut reporter, "SELECT served(0.02) AS number")
            .await
            .unwrap();
        both_serve(&pool).await;
    }
}

/// A replica of weight 0 is for when nothing else can serve. That others are busy passes.
#[tokio::test]
async fn a_replica_of_weight_0_does_not_stand_in_for_a_busy_one() {
    let local = own_cluster().await;
    change(&local, SERVICE).await;
    let [first, second] = local.replicas() else {
        panic!("two replicas");
    };
    let pool = ReplicatedPool::builder()
        .primary(NodeConfig::new(local.primary().url("app")).name("primary"))
        .replica(
            NodeConfig::new(first.url("app"))
                .name("replica-1")
                .weight(0),
        )
        .replica(NodeConfig::new(second.url("app")).name("replica-2"))
        .allow_function("served")
        .max_size(2)
        .build()
        .await
        .unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    let mut tasks = JoinSet::new();
    for _ in 0..12 {
        let pool = pool.clone();
        tasks.spawn(async move {
            let mut conn = pool.get().await.unwrap();
            is_served(&mut conn, "SELECT served(0.02) AS number")
                .await
                .unwrap();
            conn.last_route().unwrap().node
        });
    }
    for node in tasks.join_all().await {
        assert_eq!(node, "replica-2");
    }
    on(&local, |local| local.replicas()[1].kill().unwrap()).await;
    eventually("the other serves alone", || async {
        let mut conn = pool.get().await.unwrap();
        let served = is_served(&mut conn, "SELECT served() AS number").await;
        served.is_ok() && conn.last_route().unwrap().node == "replica-1"
    })
    .await;
}
