//! Gentle and bounded: few connections are opened at once, none end together, and one limit covers all.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use diesel::prelude::*;
use diesel::result::Error as DieselError;
use diesel_async::{AsyncConnection, RunQueryDsl, SimpleAsyncConnection};
use diesel_replicated::config::HealthConfig;
use diesel_replicated::{Builder, ErrorExt, NodeConfig, Outcome, ReplicatedPool};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{Shared, count, eventually, insert, on, own_cluster, run, users};

/// A network that counts: how many connections were opened, and how many at the same time.
#[derive(Clone, Default)]
struct Counted {
    all: Shared,
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl Counted {
    fn most(&self) -> usize {
        AtomicUsize::load(&self.most, Ordering::Acquire)
    }

    /// Listens before the server at this port. A connection takes a while to be opened. `None` closes each at once.
    async fn before(&self, server: Option<u16>) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let counted = self.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                counted.all.add(1);
                if let Some(server) = server {
                    let counted = counted.clone();
                    tokio::spawn(async move { counted.pass(client, server).await });
                }
            }
        });
        port
    }

    async fn pass(&self, mut client: TcpStream, server: u16) {
        let now = self.now.fetch_add(1, Ordering::AcqRel) + 1;
        self.most.fetch_max(now, Ordering::AcqRel);
        tokio::time::sleep(Duration::from_millis(30)).await;
        self.now.fetch_sub(1, Ordering::AcqRel);
        if let Ok(mut server) = TcpStream::connect(("127.0.0.1", server)).await {
            let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        }
        let _ = client.shutdown().await;
    }
}

fn at(port: u16) -> String {
    format!("postgres://postgres@127.0.0.1:{port}/app?sslmode=disable")
}

fn quick() -> HealthConfig {
    HealthConfig::default().interval(Duration::from_millis(200))
}

// golang 57248, HikariCP 776, mongodb's maxConnecting: 500 tasks on a pool of 20, at the start and after an outage. Two
// connections for statements are opened at once, one for the monitor, and one for a health check.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_tasks_open_two_connections_at_once() {
    let local = own_cluster().await;
    let counted = Counted::default();
    let port = counted.before(Some(local.primary().port())).await;
    let pool = ReplicatedPool::builder()
        .primary(NodeConfig::new(at(port)).name("primary"))
        .max_size(20)
        .failover_wait(Duration::from_secs(60))
        .connection_timeout(Duration::from_secs(60))
        .health(quick())
        .build()
        .await
        .unwrap();
    for outage in [false, true] {
        if outage {
            on(&local, |local| local.primary().kill().unwrap()).await;
        }
        let tasks: Vec<_> = (0..500)
            .map(|task| {
                let pool = pool.clone();
                tokio::spawn(async move {
                    let mut conn = pool.get().await.unwrap();
                    let name = format!("{task}-{outage}");
                    match insert(&name).execute(&mut conn).await {
                        Ok(_) => {}
                        // What was under way when the server was killed.
                        Err(error) => assert!(outage, "{error}"),
                    }
                })
            })
            .collect();
        if outage {
            on(&local, |local| local.primary().start().unwrap()).await;
        }
        for task in tasks {
            task.await.unwrap();
        }
    }
    assert!(counted.most() <= 4, "{} at once", counted.most());
    assert!(counted.all.get() <= 120, "{} in all", counted.all.get());
}

// postgres 1179: a server that accepts and closes was met by 12 500 attempts a second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_closes_at_once_is_not_run_down() {
    let counted = Counted::default();
    let port = counted.before(None).await;
    let pool = ReplicatedPool::builder()
        .primary(NodeConfig::new(at(port)))
        .max_size(20)
        .failover_wait(Duration::from_secs(2))
        .health(quick())
        .build_unchecked()
        .unwrap();
    let tasks: Vec<_> = (0..100)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move {
                let mut conn = pool.get().await.unwrap();
                assert!(insert("x").execute(&mut conn).await.is_err());
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert!(counted.all.get() < 100, "{} attempts", counted.all.get());
}

// pgx 1437, HikariCP 2099, pgdog 962: connections that were opened together do not end together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_opened_together_does_not_end_together() {
    let local = own_cluster().await;
    let lifetime = Duration::from_secs(4);
    let pool = ReplicatedPool::builder()
        .primary(NodeConfig::new(at(local.primary().port())))
        .max_size(8)
        .max_lifetime(lifetime)
        .build()
        .await
        .unwrap();
    let mut first: Option<Vec<i32>> = None;
    let mut ended: Vec<Instant> = Vec::new();
    let begun = Instant::now();
    while ended.len() < 8 {
        assert!(begun.elapsed() < lifetime * 4, "{} have ended", ended.len());
        let mut held = Vec::new();
        let mut pids = Vec::new();
        for _ in 0..8 {
            let mut conn = pool.get().await.unwrap();
            run(&mut conn, "BEGIN").await.unwrap();
            let pid = diesel::dsl::sql::<diesel::sql_types::Integer>("pg_backend_pid()");
            pids.push(
                diesel::select(pid)
                    .get_result::<i32>(&mut conn)
                    .await
                    .unwrap(),
            );
            run(&mut conn, "COMMIT").await.unwrap();
            held.push(conn);
        }
        drop(held);
        match &mut first {
            None => first = Some(pids),
            Some(first) => first.retain(|pid| {
                let lives = pids.contains(pid);
                if !lives {
                    ended.push(Instant::now());
                }
                lives
            }),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let spread = ended[7] - ended[0];
    assert!(spread > Duration::from_millis(60), "all within {spread:?}");
}

async fn one(
    change: impl FnOnce(Builder) -> Builder,
) -> (
    Arc<diesel_replicated::testing::LocalCluster>,
    ReplicatedPool,
) {
    let local = own_cluster().await;
    let builder = ReplicatedPool::builder()
        .primary(NodeConfig::new(at(local.primary().port())).name("primary"));
    let pool = change(builder.health(quick())).build().await.unwrap();
    (local, pool)
}

fn is_late(error: &DieselError) -> bool {
    error.to_string().contains("not at its end within")
}

const SOON: Duration = Duration::from_millis(300);

// MongoDB's CSOT, anticapture 2053, node-postgres 2704, sqlx 3808: one limit for choosing, waiting, connecting, failing over and
// running; and whether it may have run is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_limit_covers_all_that_a_statement_waits_for() {
    let (local, pool) = one(|builder| builder.max_size(1)).await;
    // For a connection.
    let mut first = pool.get().await.unwrap();
    run(&mut first, "BEGIN").await.unwrap();
    let mut second = pool.get().await.unwrap();
    let error = insert("late")
        .execute(&mut second.with_deadline(SOON))
        .await
        .unwrap_err();
    assert!(
        is_late(&error) && error.outcome() == Outcome::NotRun,
        "{error}"
    );
    run(&mut first, "COMMIT").await.unwrap();
    drop(first);
    insert("in time")
        .execute(&mut second.with_deadline(Duration::from_secs(30)))
        .await
        .unwrap();
    // For its own end: reads, which leave nothing behind, and a write.
    for (sql, outcome) in [
        ("SELECT pg_sleep(60)", Outcome::NotRun),
        ("SELECT count(*) FROM users, pg_sleep(60)", Outcome::NotRun),
        (
            "INSERT INTO users (name) SELECT 'slow' FROM pg_sleep(60)",
            Outcome::Unknown,
        ),
    ] {
        let error = diesel::sql_query(sql)
            .execute(&mut second.with_deadline(SOON))
            .await
            .unwrap_err();
        assert!(is_late(&error), "{sql}: {error}");
        assert_eq!(error.outcome(), outcome, "{sql}");
    }
    let node = Arc::clone(&local);
    eventually("the server has stopped", async || {
        let look = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)%' AND state = 'active' AND pid <> pg_backend_pid()";
        on(&node, move |local| local.primary().sql("app", look).unwrap()[0][0].as_deref() == Some("0")).await
    })
    .await;
    // For a primary.
    on(&local, |local| {
        local
            .primary()
            .stop(diesel_replicated::testing::StopMode::Fast)
            .unwrap()
    })
    .await;
    let error = insert("late")
        .execute(&mut second.with_deadline(SOON))
        .await
        .unwrap_err();
    assert!(error.outcome() == Outcome::NotRun, "{error}");
}

// A write was sent, its deadline ended, and it was said not to have run: 40 of 1,500 were there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_late_and_said_not_to_have_run_is_not_there() {
    let (_local, pool) = one(|builder| builder.max_size(4)).await;
    let mut not_run = Vec::new();
    for number in 0..300_u64 {
        let name = format!("late {number}");
        let mut conn = pool.get().await.unwrap();
        let limit = Duration::from_micros(200 + number * 40);
        let late = insert(&name).execute(&mut conn.with_deadline(limit)).await;
        match late {
            Err(error) if error.outcome() == Outcome::NotRun => not_run.push(name),
            _ => {}
        }
    }
    // Whatever was still under way is over.
    let mut conn = pool.get().await.unwrap();
    conn.transaction(async |conn| run(conn, "LOCK TABLE users IN ACCESS EXCLUSIVE MODE").await)
        .await
        .unwrap();
    let there = users::table.filter(users::name.eq_any(not_run));
    let there: Vec<String> = there
        .select(users::name)
        .load(&mut conn.primary())
        .await
        .unwrap();
    assert!(there.is_empty(), "{there:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_is_late_is_rolled_back() {
    let (_local, pool) = one(|builder| {
        builder
            .max_size(2)
            .statement_deadline(Duration::from_secs(20))
    })
    .await;
    let mut conn = pool.get().await.unwrap();
    let before = count(&mut conn).await;
    let started = Instant::now();
    let late = conn
        .transaction(async |conn| {
            insert("of a late transaction").execute(conn).await?;
            conn.with_deadline(SOON)
                .batch_execute("SELECT pg_sleep(60)")
                .await?;
            Ok::<_, DieselError>(())
        })
        .await
        .unwrap_err();
    assert!(is_late(&late), "{late}");
    assert!(started.elapsed() < Duration::from_secs(15));
    assert_eq!(count(&mut conn).await, before);
    insert("next").execute(&mut conn).await.unwrap();
    // A scope within a scope has no more time than the outer one.
    let mut outer = conn.with_deadline(SOON);
    let mut inner = outer.with_deadline(Duration::from_secs(60));
    assert!(is_late(
        &inner
            .batch_execute("SELECT pg_sleep(60)")
            .await
            .unwrap_err()
    ));
    drop(inner);
    drop(outer);
    // Outside of it there is time again.
    assert_eq!(count(&mut conn).await, before + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pool_has_a_limit_for_each_statement() {
    let (_local, pool) = one(|builder| builder.statement_deadline(SOON)).await;
    let mut conn = pool.get().await.unwrap();
    for _ in 0..3 {
        assert!(is_late(
            &conn.batch_execute("SELECT pg_sleep(60)").await.unwrap_err()
        ));
    }
    assert_eq!(
        count(&mut conn.with_deadline(Duration::from_secs(30))).await,
        3
    );
}

/// A peer that reads and says nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_covers_a_silent_server() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                while client.read(&mut [0; 64]).await.is_ok_and(|count| count > 0) {}
            });
        }
    });
    let pool = ReplicatedPool::builder()
        .primary(NodeConfig::new(at(port)))
        .build_unchecked()
        .unwrap();
    let mut conn = pool.get().await.unwrap();
    let error = insert("x")
        .execute(&mut conn.with_deadline(SOON))
        .await
        .unwrap_err();
    assert!(
        is_late(&error) && error.outcome() == Outcome::NotRun,
        "{error}"
    );
}
