//! Promotions by the pool itself: when, by whom, of which replica, and when not.

use std::sync::Arc;
use std::time::Duration;

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use diesel_replicated::config::PromotionConfig;
use diesel_replicated::error::PromotionRefusal;
use diesel_replicated::testing::LocalCluster;
use diesel_replicated::{Error, ErrorExt, Event, NodeConfig, Outcome, ReplicatedPool};
use futures_util::StreamExt;

use crate::support::{
    all_up, blocking, builder_for, eventually, on, own_cluster, own_cluster_of, run, users,
};

/// Longer than any promotion of a test takes on a busy machine.
const PATIENT: Duration = Duration::from_secs(30);

async fn pool(local: &LocalCluster, promotion: PromotionConfig) -> ReplicatedPool {
    let builder = builder_for(local, "app").failover_wait(PATIENT);
    let pool = builder.promotion(promotion).build().await.unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    pool
}

/// Writes this name. What was sent to a server that was just killed is in doubt, and written again.
async fn write(pool: &ReplicatedPool, name: &str) {
    let sql = format!("INSERT INTO users (name) VALUES ('{name}') ON CONFLICT DO NOTHING");
    loop {
        let mut conn = pool.get().await.unwrap();
        match run(&mut conn, &sql).await {
            Err(error) if error.outcome() == Outcome::Unknown => {}
            written => return written.unwrap(),
        }
    }
}

/// How many of these names there are.
async fn found(pool: &ReplicatedPool, names: &[&str]) -> i64 {
    let mut conn = pool.get().await.unwrap();
    let query = users::table.filter(users::name.eq_any(names)).count();
    query.get_result(&mut *conn.primary()).await.unwrap()
}

fn reasons(result: Result<diesel_replicated::status::Promoted, Error>) -> Vec<PromotionRefusal> {
    match result.unwrap_err() {
        Error::PromotionRefused { reasons } => reasons,
        // Whoever looks for a reason finds none.
        _ => Vec::new(),
    }
}

#[tokio::test]
async fn the_dead_primary_is_replaced_by_itself_and_writes_go_on() {
    let local = own_cluster().await;
    let pool = pool(&local, PromotionConfig::automatic().after(Duration::ZERO)).await;
    write(&pool, "before").await;
    on(&local, |local| local.wait_caught_up().unwrap()).await;
    on(&local, |local| local.primary().kill().unwrap()).await;
    write(&pool, "after").await;
    let status = pool.status();
    assert_eq!(status.timeline, 2);
    assert_ne!(status.primary.as_deref(), Some("primary"));
    assert_eq!(found(&pool, &["before", "after"]).await, 2);
    // The old one comes back, and is not written to.
    on(&local, |local| local.primary().start().unwrap()).await;
    eventually("it is known for what it is", || async {
        pool.status().node("primary").unwrap().kind.is_none()
    })
    .await;
    write(&pool, "later").await;
    assert_eq!(pool.status().timeline, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_processes_one_promotes() {
    let local = own_cluster_of(4).await;
    let mut pools = Vec::new();
    for _ in 0..6 {
        pools.push(pool(&local, PromotionConfig::automatic().after(Duration::ZERO)).await);
    }
    let mut listening: Vec<_> = pools.iter().map(ReplicatedPool::subscribe).collect();
    on(&local, |local| local.primary().kill().unwrap()).await;
    for (place, pool) in pools.iter().enumerate() {
        write(pool, &format!("by {place}")).await;
    }
    let primaries: Vec<_> = pools.iter().map(|pool| pool.status().primary).collect();
    assert!(
        primaries.iter().all(|primary| *primary == primaries[0]),
        "{primaries:?}"
    );
    let mut promoted = 0;
    for (pool, events) in pools.iter().zip(&mut listening) {
        assert_eq!(pool.status().timeline, 2);
        pool.close(Duration::ZERO).await;
        while let Some(event) = events.next().await {
            promoted += u32::from(matches!(event, Event::Promoted { .. }));
        }
    }
    assert_eq!(promoted, 1);
    let writable = local.nodes().filter(|node| {
        node.is_running()
            && node.sql("app", "SELECT pg_is_in_recovery()").unwrap()[0][0].as_deref() == Some("f")
    });
    assert_eq!(writable.count(), 1);
}

#[tokio::test]
async fn a_primary_that_lives_is_not_replaced() {
    let local = own_cluster().await;
    let pool = pool(&local, PromotionConfig::default()).await;
    for forced in [false, true] {
        let refused = reasons(if forced {
            pool.force_promote("replica-1").await
        } else {
            pool.promote("replica-1").await
        });
        let alive = |reason: &PromotionRefusal| matches!(reason, PromotionRefusal::PrimaryAlive { node, .. } if node == "primary");
        assert!(refused.iter().any(alive), "{refused:?}");
    }
    let unknown = pool.promote("nobody").await;
    assert!(matches!(unknown, Err(Error::UnknownNode { .. })));
    write(&pool, "unharmed").await;
    assert_eq!(pool.status().timeline, 1);
}

/// This process cannot reach the primary, and the replicas can.
#[tokio::test]
async fn a_primary_that_others_hear_of_is_not_replaced() {
    let local = own_cluster().await;
    let proxied = local.primary().proxied_url("app").unwrap();
    let mut builder = ReplicatedPool::builder()
        .primary(NodeConfig::new(proxied).name("primary"))
        .promotion(PromotionConfig::automatic().after(Duration::ZERO));
    for replica in local.replicas() {
        builder = builder.replica(NodeConfig::new(replica.url("app")).name(replica.name()));
    }
    let cut_off = builder.build().await.unwrap();
    eventually("all are up", || async { all_up(&cut_off) }).await;
    // Another process, which keeps the primary heard of.
    let other = pool(&local, PromotionConfig::automatic()).await;
    let mut events = cut_off.subscribe();
    local.primary().proxy().unwrap().cut();
    let heard = async {
        while let Some(event) = events.next().await {
            if let Event::PromotionRefused { reasons, .. } = event {
                let heard = |reason: &PromotionRefusal| {
                    matches!(reason, PromotionRefusal::PrimaryHeard { .. })
                };
                return reasons.iter().any(heard);
            }
        }
        false
    };
    assert!(tokio::time::timeout(PATIENT, heard).await.unwrap());
    write(&other, "goes on").await;
    local.primary().proxy().unwrap().heal();
    eventually("it is reached again", || async {
        cut_off.status().takes_writes
    })
    .await;
    assert_eq!(other.status().timeline, 1);
}

#[tokio::test]
async fn without_a_majority_nothing_is_done_but_by_force() {
    let local = own_cluster().await;
    let pool = pool(&local, PromotionConfig::default()).await;
    on(&local, |local| {
        local.primary().kill().unwrap();
        local.replicas()[1].kill().unwrap();
    })
    .await;
    let refused = reasons(pool.promote("replica-1").await);
    assert!(
        refused.iter().any(|reason| matches!(
            reason,
            PromotionRefusal::NoMajority {
                agree: 1,
                needed: 2,
                ..
            }
        )),
        "{refused:?}"
    );
    let promoted = pool.force_promote("replica-1").await.unwrap();
    assert_eq!(
        (promoted.node.as_str(), promoted.timeline),
        ("replica-1", 2)
    );
    write(&pool, "after").await;
}

#[tokio::test]
async fn the_replica_with_less_is_not_promoted() {
    let local = own_cluster().await;
    let strict = PromotionConfig::default().max_loss_bytes(0);
    let pool = pool(&local, strict).await;
    let second = Arc::clone(&local);
    blocking(move || {
        second.replicas()[1]
            .stop(diesel_replicated::testing::StopMode::Fast)
            .unwrap()
    })
    .await;
    write(&pool, "more").await;
    on(&local, |local| {
        let caught_up = "SELECT pg_last_wal_replay_lsn()";
        let wanted = local
            .primary()
            .sql("app", "SELECT pg_current_wal_flush_lsn()")
            .unwrap();
        while local.replicas()[0].sql("app", caught_up).unwrap() != wanted {}
        local.primary().kill().unwrap();
        local.replicas()[1].start().unwrap();
    })
    .await;
    eventually("the second is up", || async {
        pool.status().node("replica-2").unwrap().health == diesel_replicated::status::NodeHealth::Up
    })
    .await;
    let refused = reasons(pool.promote("replica-2").await);
    let behind = |reason: &PromotionRefusal| matches!(reason, PromotionRefusal::Behind { .. });
    assert!(refused.iter().any(behind), "{refused:?}");
    let promoted = pool.promote("replica-1").await.unwrap();
    assert_eq!(promoted.node, "replica-1");
    assert_eq!(found(&pool, &["more"]).await, 1);
}

/// It still accepts connections, and its replicas' receivers say that they are streaming.
#[tokio::test]
async fn a_frozen_primary_is_replaced_when_nobody_has_heard_of_it_for_long_enough() {
    let local = own_cluster().await;
    // Both pools have asked by then, on a busy machine, too.
    let promotion = PromotionConfig::default().witness_age(Duration::from_secs(8));
    let pool = pool(&local, promotion.clone()).await;
    // Who may not see the receivers cannot say that they hear nothing.
    on(&local, |local| {
        let role = "CREATE ROLE plain LOGIN; GRANT EXECUTE ON FUNCTION pg_promote TO plain";
        local.primary().sql("app", role).unwrap();
        local.wait_caught_up().unwrap();
    })
    .await;
    let node = |node: &diesel_replicated::testing::LocalNode| {
        let url = node.url("app").replace("postgres@", "plain@");
        NodeConfig::new(url).name(node.name().to_owned())
    };
    let builder = local.replicas().iter().fold(
        ReplicatedPool::builder().primary(node(local.primary())),
        |builder, replica| builder.replica(node(replica)),
    );
    let plain = builder.promotion(promotion).build().await.unwrap();
    eventually("all are up", || async { all_up(&plain) }).await;
    local.primary().freeze();
    let heard = |refused: &[PromotionRefusal]| {
        let heard =
            |reason: &PromotionRefusal| matches!(reason, PromotionRefusal::PrimaryHeard { .. });
        refused.iter().any(heard)
    };
    assert!(heard(&reasons(pool.promote("replica-1").await)));
    let hidden = reasons(plain.promote("replica-1").await);
    let unseen = |reason: &PromotionRefusal| {
        matches!(reason, PromotionRefusal::PrimaryHeard { ago: None, .. })
    };
    assert!(hidden.iter().any(unseen), "{hidden:?}");
    eventually("nobody has heard of it for long enough", || async {
        pool.promote("replica-1").await.is_ok()
    })
    .await;
    write(&pool, "after").await;
    assert_eq!(pool.status().timeline, 2);
    // It comes back to life, and takes writes on the old timeline that nobody of ours sends.
    local.primary().thaw();
    eventually("it is known for what it is", || async {
        let status = pool.status();
        let old = status.node("primary").unwrap();
        old.health == diesel_replicated::status::NodeHealth::Up && old.kind.is_none()
    })
    .await;
    write(&pool, "later").await;
    assert_eq!(found(&pool, &["after", "later"]).await, 2);
}
