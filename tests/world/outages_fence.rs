//! A primary that takes no writes yet, since somebody has `default_transaction_read_only` on there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel_async::{AsyncConnection, RunQueryDsl};
use diesel_replicated::status::NodeKind;
use diesel_replicated::testing::{LocalCluster, LocalNode};
use diesel_replicated::{
    Consistency, Error, ErrorExt, NodeConfig, Outcome, ReplicatedPool, RetryPolicy,
};

use crate::support::{
    all_up, always, builder_for, count, eventually, insert, on, own_cluster, run,
};

fn fence(node: &LocalNode, on: bool) {
    let set = if on {
        "ALTER SYSTEM SET default_transaction_read_only = on"
    } else {
        "ALTER SYSTEM RESET default_transaction_read_only"
    };
    node.sql("app", set).unwrap();
    node.sql("app", "SELECT pg_reload_conf()").unwrap();
    let wanted = if on { "\"on\"" } else { "\"off\"" };
    let shows = || {
        format!(
            "{:?}",
            node.sql("app", "SHOW default_transaction_read_only")
                .unwrap()
        )
    };
    while !shows().contains(wanted) {
        std::thread::sleep(Duration::from_millis(5));
    }
    // Each server process hears of it by a signal of its own.
    std::thread::sleep(Duration::from_millis(100));
}

fn rows(node: &LocalNode) -> String {
    let rows = node.sql("app", "SELECT count(*) FROM users").unwrap();
    format!("{rows:?}")
}

fn alone(local: &LocalCluster) -> diesel_replicated::Builder {
    ReplicatedPool::builder().primary(NodeConfig::new(local.primary().url("app")).name("primary"))
}

/// Statements of each kind begin under a fence; none writes there, and all are done when it is lifted.
async fn waits(local: &Arc<LocalCluster>, pool: &ReplicatedPool, fenced: usize) {
    let node = move |local: &LocalCluster| local.nodes().nth(fenced).map(rows).unwrap();
    let before = on(local, node).await;
    let mut tasks = Vec::new();
    let begun = Instant::now();
    for way in 0..6 {
        let pool = pool.clone();
        tasks.push(tokio::spawn(async move {
            let mut conn = pool.get().await.unwrap();
            let name = format!("waits {begun:?} {way}");
            match way {
                0 => insert(&name).execute(&mut conn).await.map(|_| ()),
                1 => conn
                    .transaction(async |conn| insert(&name).execute(conn).await)
                    .await
                    .map(|_| ()),
                2 => conn
                    .build_transaction()
                    .read_write()
                    .run(async |conn| insert(&name).execute(conn).await)
                    .await
                    .map(|_| ()),
                3 => conn
                    .retry_transaction(RetryPolicy::default(), async |conn| {
                        insert(&name).execute(conn).await
                    })
                    .await
                    .map(|_| ()),
                4 => {
                    let sql = format!("INSERT INTO users (name) VALUES ('{name}')");
                    run(&mut conn, &sql).await
                }
                _ => {
                    run(&mut conn, "CREATE TEMP TABLE IF NOT EXISTS own (id int)").await?;
                    insert(&name).execute(&mut conn).await.map(|_| ())
                }
            }
        }));
    }
    always("the fence holds", Duration::from_millis(700), || async {
        on(local, node).await == before
    })
    .await;
    on(local, move |local| {
        fence(local.nodes().nth(fenced).unwrap(), false)
    })
    .await;
    let lifted = Instant::now();
    for (way, task) in tasks.into_iter().enumerate() {
        let done = task.await.unwrap();
        assert!(done.is_ok(), "way {way}: {done:?}");
    }
    assert!(
        lifted.elapsed() < Duration::from_secs(5),
        "they go on at once"
    );
    let after = on(local, node).await;
    assert_ne!(after, before);
}

// hapostgres/pg_auto_failover #512, #970: the promoted standby is fenced until the old primary is gone.
#[tokio::test]
async fn a_fenced_primary_is_waited_for() {
    let local = own_cluster().await;
    let pool = builder_for(&local, "app")
        .failover_wait(Duration::from_secs(20))
        .build()
        .await
        .unwrap();
    // Connections that were opened before, and that hear of it late or not before they are used.
    let mut warm = Vec::new();
    for number in 0..6 {
        let mut conn = pool.get().await.unwrap();
        insert(&format!("warm {number}"))
            .execute(&mut conn)
            .await
            .unwrap();
        warm.push(conn);
    }
    drop(warm);
    on(&local, |local| fence(local.primary(), true)).await;
    waits(&local, &pool, 0).await;
    // And once more, before anybody has heard of it.
    on(&local, |local| fence(local.primary(), true)).await;
    waits(&local, &pool, 0).await;
    let mut conn = pool.get().await.unwrap();
    insert("after").execute(&mut conn).await.unwrap();
}

#[tokio::test]
async fn a_standby_that_is_fenced_and_then_promoted_is_waited_for() {
    let local = own_cluster().await;
    let pool = builder_for(&local, "app")
        .failover_wait(Duration::from_secs(20))
        .build()
        .await
        .unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    on(&local, |local| {
        fence(&local.replicas()[0], true);
        local.primary().kill().unwrap();
        local.replicas()[0].promote().unwrap();
    })
    .await;
    waits(&local, &pool, 1).await;
}

#[tokio::test]
async fn a_pool_that_is_built_under_a_fence_serves_reads_and_waits_with_writes() {
    let local = own_cluster().await;
    on(&local, |local| fence(local.primary(), true)).await;
    let pool = alone(&local)
        .failover_wait(Duration::from_secs(20))
        .build()
        .await
        .unwrap();
    let mut conn = pool.get().await.unwrap();
    for level in [Consistency::ReadYourWrites, Consistency::Strong] {
        assert_eq!(count(&mut conn.with_consistency(level)).await, 3);
    }
    let snapshot = conn.snapshot(async |conn| diesel::QueryResult::Ok(count(conn).await));
    assert_eq!(snapshot.await.unwrap(), 3);
    run(&mut conn, "SET application_name = 'reads'")
        .await
        .unwrap();
    assert_eq!(count(&mut conn).await, 3);
    waits(&local, &pool, 0).await;
}

#[tokio::test]
async fn a_fence_that_stays_is_told_with_its_reason() {
    let local = own_cluster().await;
    let wait = Duration::from_millis(300);
    let pool = builder_for(&local, "app")
        .failover_wait(wait)
        .build()
        .await
        .unwrap();
    let mut conn = pool.get().await.unwrap();
    insert("before").execute(&mut conn).await.unwrap();
    on(&local, |local| fence(local.primary(), true)).await;
    for _ in 0..2 {
        let error = insert("never").execute(&mut conn).await.unwrap_err();
        assert_eq!(error.outcome(), Outcome::NotRun, "{error}");
        let text = error.to_string();
        assert!(text.contains("`default_transaction_read_only`"), "{text}");
        let begin = conn
            .build_transaction()
            .read_write()
            .run(async |conn| insert("never").execute(conn).await)
            .await;
        let error = begin.unwrap_err();
        assert_eq!(error.outcome(), Outcome::NotRun, "{error}");
    }
    let check = pool.check(Duration::from_secs(5)).await;
    assert!(
        matches!(&check, Err(Error::NotReady { reads: true, nodes }) if nodes[0].contains("takes no writes yet")),
        "{check:?}"
    );
    assert_eq!(count(&mut conn).await, 4);
    on(&local, |local| fence(local.primary(), false)).await;
    eventually("it takes writes", || async { pool.status().takes_writes }).await;
    insert("after").execute(&mut conn).await.unwrap();
    assert_eq!(pool.status().primary.as_deref(), Some("primary"));
}

/// A pool whose login is a role without privileges beyond the tables.
async fn plain(local: &Arc<LocalCluster>) -> ReplicatedPool {
    on(local, |local| {
        for sql in [
            "CREATE ROLE plain LOGIN",
            "GRANT ALL ON ALL TABLES IN SCHEMA public TO plain",
        ] {
            local.primary().sql("app", sql).unwrap();
        }
        local.wait_caught_up().unwrap();
    })
    .await;
    let node = |node: &LocalNode| {
        NodeConfig::new(format!("postgres://plain@127.0.0.1:{}/app", node.port())).name(node.name())
    };
    ReplicatedPool::builder()
        .primary(node(local.primary()))
        .replica(node(&local.replicas()[0]))
        .max_size(4)
        .build()
        .await
        .unwrap()
}

async fn sql(local: &Arc<LocalCluster>, sql: &'static str) {
    on(local, move |local| {
        drop(local.primary().sql("postgres", sql).unwrap())
    })
    .await;
}

// pgjdbc/pgjdbc #2334: a primary is not what takes writes, where the role or the database says otherwise.
#[tokio::test]
async fn a_login_that_is_read_only_is_told_so_and_still_reads() {
    for (set, reset, whose) in [
        (
            "ALTER ROLE plain SET default_transaction_read_only = on",
            "ALTER ROLE plain RESET default_transaction_read_only",
            "role",
        ),
        (
            "ALTER DATABASE app SET default_transaction_read_only = on",
            "ALTER DATABASE app RESET default_transaction_read_only",
            "database",
        ),
    ] {
        let local = own_cluster().await;
        drop(plain(&local).await);
        sql(&local, set).await;
        let node = NodeConfig::new(format!(
            "postgres://plain@127.0.0.1:{}/app",
            local.primary().port()
        ));
        let pool = ReplicatedPool::builder()
            .primary(node)
            .max_size(4)
            .build()
            .await
            .unwrap();
        let mut held = Vec::new();
        for _ in 0..4 {
            let begun = Instant::now();
            let mut conn = pool.get().await.unwrap();
            let error = insert("never").execute(&mut conn).await.unwrap_err();
            assert_eq!(error.outcome(), Outcome::NotRun, "{error}");
            let text = error.to_string();
            assert!(
                text.contains("`default_transaction_read_only`") && text.contains(whose),
                "{text}"
            );
            assert!(
                begun.elapsed() < Duration::from_secs(4),
                "nothing to wait for"
            );
            assert_eq!(count(&mut conn).await, 3);
            held.push(conn);
        }
        // The role may insist: that is no fence.
        let written = held[0]
            .build_transaction()
            .read_write()
            .run(async |conn| insert("insists").execute(conn).await)
            .await;
        assert_eq!(written.unwrap(), 1);
        drop(held);
        // Connections that were opened meanwhile are not poisoned.
        sql(&local, reset).await;
        for number in 0..8 {
            let mut conn = pool.get().await.unwrap();
            let name = format!("after {number}");
            if number % 2 == 0 {
                insert(&name).execute(&mut conn).await.unwrap();
            } else {
                let write = conn.transaction(async |conn| insert(&name).execute(conn).await);
                if let Err(error) = write.await {
                    assert_eq!(error.outcome(), Outcome::Failed, "{error}");
                    let again = conn.transaction(async |conn| insert(&name).execute(conn).await);
                    again.await.unwrap();
                }
            }
        }
    }
}

#[tokio::test]
async fn who_asks_for_read_only_gets_the_servers_own_error() {
    let local = own_cluster().await;
    let pool = builder_for(&local, "app")
        .failover_wait(Duration::from_secs(20))
        .build()
        .await
        .unwrap();
    let begun = Instant::now();
    let mut conn = pool.get().await.unwrap();
    let declared = conn
        .build_transaction()
        .read_only()
        .run(async |conn| insert("never").execute(conn).await)
        .await;
    let error = declared.unwrap_err();
    assert_eq!(error.outcome(), Outcome::Failed, "{error}");
    run(&mut conn, "SET default_transaction_read_only = on")
        .await
        .unwrap();
    let error = insert("never").execute(&mut conn).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::Failed, "{error}");
    run(&mut conn, "SET default_transaction_read_only = off")
        .await
        .unwrap();
    insert("own").execute(&mut conn).await.unwrap();
    let raise = "DO $$ BEGIN RAISE EXCEPTION 'mine' USING ERRCODE = '25006'; END $$";
    let error = run(&mut conn, raise).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::Failed, "{error}");
    assert!(error.to_string().contains("mine"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(10), "nobody waited");
    // The next session on that connection has none of it.
    drop(conn);
    let mut conn = pool.get().await.unwrap();
    insert("next").execute(&mut conn).await.unwrap();
    assert_eq!(conn.last_route().unwrap().kind, NodeKind::Primary);
}
