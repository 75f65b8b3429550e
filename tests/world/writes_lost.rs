//! An acknowledged write that a failover has lost, or may have lost, is told before anything is read.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use diesel::QueryResult;
use diesel_async::{AsyncConnection, RunQueryDsl};
use diesel_replicated::config::HealthConfig;
use diesel_replicated::status::RouteReason;
use diesel_replicated::testing::{LocalCluster, LocalNode, StopMode};
use diesel_replicated::{NodeConfig, ReplicatedConnection, ReplicatedPool};

use crate::support::{all_up, builder_for, count, eventually, insert, on, own_cluster};
use crate::writes::insert_for_id;

async fn pool(local: &LocalCluster) -> ReplicatedPool {
    // Who stands still is not taken for dead.
    let patient = HealthConfig::default().timeout(Duration::from_secs(20));
    let builder = builder_for(local, "app").health(patient);
    let builder = builder.failover_wait(Duration::from_secs(20));
    let builder = builder.fallback_share(1.0);
    builder.build().await.unwrap()
}

async fn up(pool: &ReplicatedPool) {
    eventually("all are up", || async { all_up(pool) }).await;
}

/// The replicas are away while the primary goes on.
async fn part(local: &Arc<LocalCluster>) {
    on(local, |local| {
        let stop = |node: &LocalNode| node.stop(StopMode::Fast).unwrap();
        local.replicas().iter().for_each(stop);
    })
    .await;
}

/// What tells pools where the primary is stands still, as it may in the moment before its death.
async fn silence(local: &Arc<LocalCluster>, pools: &[&ReplicatedPool]) {
    for pool in pools {
        // What lies in the pool was asked the same when it was opened.
        let mut held = Vec::new();
        for _ in 0..6 {
            let mut conn = pool.get().await.unwrap();
            count(&mut conn.primary()).await;
            held.push(conn);
        }
    }
    on(local, |local| {
        let sql = "SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid() \
            AND query LIKE '%pg_current_wal_insert_lsn%'";
        let rows = local.primary().sql("postgres", sql).unwrap();
        assert!(!rows.is_empty());
        for row in rows {
            let pid = row[0].as_deref().unwrap();
            let stopped = Command::new("kill").args(["-STOP", pid]).status();
            assert!(stopped.unwrap().success());
        }
    })
    .await;
}

/// The primary dies.
async fn kill(local: &Arc<LocalCluster>) {
    on(local, |local| local.primary().kill().unwrap()).await;
}

/// A replica takes its place that lacks what it wrote last.
async fn fail_over(local: &Arc<LocalCluster>) {
    on(local, |local| {
        local.replicas()[0].start().unwrap();
        local.replicas()[0].promote().unwrap();
    })
    .await;
}

async fn sees_its_loss(conn: &mut ReplicatedConnection, what: &str) {
    let seen = count(conn).await;
    let route = conn.last_route().unwrap();
    assert_eq!(seen, 3, "{what}: {route:?}");
    assert_eq!(route.reason, RouteReason::LostWrite, "{what}");
    assert_eq!(conn.lost_write().unwrap().timeline, 1, "{what}");
}

// microsoft/CCF #3952 (sessions across elections), yugabyte/yugabyte-db #824, superfly/litefs #282.
#[tokio::test]
async fn a_write_whose_place_nobody_learnt_before_the_primary_died() {
    let local = own_cluster().await;
    let (here, there) = (pool(&local).await, pool(&local).await);
    up(&here).await;
    up(&there).await;
    part(&local).await;
    silence(&local, &[&here, &there]).await;
    let mut writers = Vec::new();
    for number in 0..6 {
        let mut conn = here.get().await.unwrap();
        let name = format!("lost {number}");
        match number % 3 {
            0 => drop(insert(&name).execute(&mut conn).await.unwrap()),
            1 => drop(insert_for_id(&mut conn, &name).await),
            _ => {
                let inserting = conn.transaction(async |conn| insert(&name).execute(conn).await);
                inserting.await.unwrap();
            }
        }
        writers.push(conn);
    }
    let token = writers[0].session_token().await.to_string();
    kill(&local).await;
    fail_over(&local).await;
    for (number, conn) in writers.iter_mut().enumerate() {
        sees_its_loss(conn, &format!("writer {number}")).await;
    }
    // Whoever resumes the session is told as well, here, in another process, and in one that starts now.
    let late = pool(&local).await;
    for (what, pool) in [("here", here), ("there", there), ("late", late)] {
        let token = token.parse().unwrap();
        let mut conn = pool.get_with(&token).await.unwrap();
        sees_its_loss(&mut conn, what).await;
        let next = conn.session_token().await;
        assert_eq!(next.written().unwrap().timeline, 2);
        let mut conn = pool.get_with(&next).await.unwrap();
        assert_eq!((count(&mut conn).await, conn.lost_write()), (3, None));
    }
}

// EnterpriseDB/repmgr #386, hapostgres/pg_auto_failover #726 (positions of two timelines compared).
#[tokio::test]
async fn the_first_read_after_a_failover_knows_of_the_loss() {
    let local = own_cluster().await;
    let pool = pool(&local).await;
    up(&pool).await;
    part(&local).await;
    let mut reading = tokio::task::JoinSet::new();
    let (dead, mut is_dead) = tokio::sync::watch::channel(false);
    for number in 0..9 {
        let mut conn = pool.get().await.unwrap();
        insert(&format!("lost {number}"))
            .execute(&mut conn)
            .await
            .unwrap();
        eventually("the primary has told its position", || async {
            let token = conn.session_token().await;
            token.written().is_some_and(|written| written.timeline == 1)
        })
        .await;
        // The server's connection goes back; the session goes on with another.
        let token = conn.session_token().await;
        drop(conn);
        let mut conn = pool.get_with(&token).await.unwrap();
        let mut is_dead = is_dead.clone();
        reading.spawn(async move {
            // They are on their way when the next primary is elected.
            is_dead.wait_for(|dead| *dead).await.unwrap();
            match number % 3 {
                0 => sees_its_loss(&mut conn, "a read").await,
                1 => {
                    count(&mut conn.primary()).await;
                    assert!(conn.lost_write().is_some(), "on the primary");
                }
                _ => {
                    let looking = conn.transaction(async |conn| QueryResult::Ok(conn.lost_write()));
                    assert!(looking.await.unwrap().is_some(), "in a transaction");
                }
            }
        });
    }
    kill(&local).await;
    dead.send(true).unwrap();
    is_dead.changed().await.unwrap();
    fail_over(&local).await;
    while let Some(read) = reading.join_next().await {
        read.unwrap();
    }
}

// RustCFML/RustCFML #175, aws/aws-advanced-go-wrapper #582 (the first statement meets a connection that is dead).
#[tokio::test]
async fn a_begin_that_died_with_the_primary_begins_on_the_next_one() {
    let local = own_cluster().await;
    let pool = pool(&local).await;
    up(&pool).await;
    let mut conn = pool.get().await.unwrap();
    assert_eq!(count(&mut conn.primary()).await, 3);
    on(&local, |local| {
        local.wait_caught_up().unwrap();
        local.primary().freeze();
    })
    .await;
    let beginning = tokio::spawn(async move {
        conn.transaction(async |conn| {
            insert("kept").execute(conn).await?;
            QueryResult::Ok(())
        })
        .await
        .unwrap();
        count(&mut conn.primary()).await
    });
    // Nobody reads what is sent to it, so nothing tells when it has been: the wire does.
    eventually("BEGIN is under way", || async {
        let status = pool.status();
        let primary = status.primary.as_deref();
        status
            .nodes
            .iter()
            .any(|node| Some(&*node.name) == primary && node.in_flight > 0)
    })
    .await;
    kill(&local).await;
    on(&local, |local| local.replicas()[0].promote().unwrap()).await;
    assert_eq!(beginning.await.unwrap(), 4);
}

#[tokio::test]
async fn what_the_next_primary_has_is_not_told_as_lost() {
    let local = own_cluster().await;
    let pool = pool(&local).await;
    up(&pool).await;
    let mut writers = Vec::new();
    for number in 0..6 {
        let mut conn = pool.get().await.unwrap();
        insert_for_id(&mut conn, &format!("kept {number}")).await;
        writers.push(conn);
    }
    for conn in &writers {
        eventually("the primary has told its position", || async {
            let token = conn.session_token().await;
            token.written().is_some_and(|written| written.timeline == 1)
        })
        .await;
    }
    on(&local, |local| {
        local.wait_caught_up().unwrap();
        local.primary().kill().unwrap();
        local.replicas()[0].promote().unwrap();
    })
    .await;
    for conn in &mut writers {
        assert_eq!(count(conn).await, 9);
        let told = (conn.lost_write(), conn.last_route().unwrap().reason);
        assert_eq!(told.0, None);
        assert_ne!(told.1, RouteReason::LostWrite);
    }
}

/// The same where the role of the application may not read how the timeline came to be: a pool that comes later
/// cannot know whether the write is there, and says so.
#[tokio::test]
async fn a_pool_that_comes_later_and_may_not_ask_does_not_call_a_write_kept() {
    let local = own_cluster().await;
    on(&local, |local| {
        let plain = "CREATE ROLE plain LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO plain;
            GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO plain";
        local.primary().sql("app", plain).unwrap();
        local.wait_caught_up().unwrap();
    })
    .await;
    let plain = async |local: &LocalCluster| {
        let node = |node: &LocalNode| {
            let url = node.url("app");
            let (scheme, rest) = url.split_once("://").unwrap();
            let host = rest.split_once('@').map_or(rest, |(_, host)| host);
            NodeConfig::new(format!("{scheme}://plain@{host}")).name(node.name())
        };
        let builder = ReplicatedPool::builder().primary(node(local.primary()));
        let builder = local
            .replicas()
            .iter()
            .fold(builder, |builder, replica| builder.replica(node(replica)));
        let patient = HealthConfig::default().timeout(Duration::from_secs(5));
        let builder = builder
            .health(patient)
            .failover_wait(Duration::from_secs(20))
            .fallback_share(1.0);
        builder.build().await.unwrap()
    };
    let here = plain(&local).await;
    up(&here).await;
    part(&local).await;
    let mut conn = here.get().await.unwrap();
    insert("lost").execute(&mut conn).await.unwrap();
    eventually("the primary has told its position", || async {
        let token = conn.session_token().await;
        token.written().is_some_and(|written| written.timeline == 1)
    })
    .await;
    let token = conn.session_token().await;
    kill(&local).await;
    fail_over(&local).await;
    for round in 0..3 {
        let late = plain(&local).await;
        let mut conn = late.get_with(&token).await.unwrap();
        let seen = count(&mut conn).await;
        let reason = conn.last_route().unwrap().reason;
        let told = [RouteReason::UnclearWrite, RouteReason::LostWrite];
        assert_eq!(seen, 3, "{round}");
        assert!(told.contains(&reason), "{round}: {reason}");
        count(&mut conn).await;
        let reason = conn.last_route().unwrap().reason;
        assert!(told.contains(&reason), "{round}, again: {reason}");
    }
}
