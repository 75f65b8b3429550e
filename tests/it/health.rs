//! Replicas that can be reached and yet should not serve: slow, far behind, being emptied.

use std::time::Duration;

use diesel_async::RunQueryDsl;
use diesel_replicated::config::HealthConfig;
use diesel_replicated::status::NodeHealth;
use diesel_replicated::testing::LocalNode;
use diesel_replicated::{Consistency, Error, NodeConfig, ReplicatedPool};

use crate::support::{all_up, always, builder_for, eventually, insert, on, own_cluster, pool, who};

/// Looks often, so that tests need not wait long.
fn attentive() -> HealthConfig {
    HealthConfig::default()
        .interval(Duration::from_millis(50))
        .slow_start(Duration::from_millis(200))
}

fn health(pool: &ReplicatedPool, node: &str) -> NodeHealth {
    pool.status().node(node).unwrap().health
}

/// Which nodes serve reads, each on a connection of its own.
async fn servers(pool: &ReplicatedPool, reads: u32) -> Vec<String> {
    let mut servers = Vec::new();
    for _ in 0..reads {
        servers.push(who(&mut pool.get().await.unwrap()).await);
    }
    servers
}

#[tokio::test]
async fn a_replica_that_is_too_far_behind_serves_again_when_it_has_caught_up() {
    let local = own_cluster().await;
    let builder = builder_for(&local, "app").consistency(Consistency::Eventual);
    let pool = builder.health(attentive().max_lag_bytes(1)).build().await;
    let pool = pool.unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    on(&local, |local| local.replicas()[1].pause_replay().unwrap()).await;
    let mut conn = pool.get().await.unwrap();
    insert("Ann").execute(&mut conn).await.unwrap();
    drop(conn);
    eventually("the lag is noticed", || async {
        health(&pool, "replica-2") == NodeHealth::Lagging
    })
    .await;
    let status = pool.status();
    let cause = status.node("replica-2").unwrap().cause.clone();
    assert!(cause.unwrap().contains("`max_lag_bytes`"));
    always("it serves nothing", Duration::from_millis(500), || async {
        !servers(&pool, 10).await.contains(&"replica-2".to_owned())
    })
    .await;
    on(&local, |local| local.replicas()[1].resume_replay().unwrap()).await;
    eventually("it serves again", || async {
        servers(&pool, 20).await.contains(&"replica-2".to_owned())
    })
    .await;
    assert_eq!(health(&pool, "replica-2"), NodeHealth::Up);
}

#[tokio::test]
async fn a_slow_replica_loses_its_reads_and_gets_them_back() {
    let local = own_cluster().await;
    let node = |node: &LocalNode| {
        NodeConfig::new(node.proxied_url("app").unwrap()).name(node.name().to_owned())
    };
    let mut builder = ReplicatedPool::builder().primary(node(local.primary()));
    for replica in local.replicas() {
        builder = builder.replica(node(replica));
    }
    let builder = builder.consistency(Consistency::Eventual);
    let health_config = attentive()
        .timeout(Duration::from_secs(20))
        .slow_factor(3.0)
        .slow_start(Duration::ZERO);
    let pool = builder.health(health_config).build().await.unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    // Slow, and yet quick enough for a connection to be opened in time.
    let slow = Duration::from_millis(250);
    local.replicas()[1].proxy().unwrap().delay(slow);
    eventually("it is slow", || async {
        health(&pool, "replica-2") == NodeHealth::Slow
    })
    .await;
    let status = pool.status();
    let cause = status.node("replica-2").unwrap().cause.clone().unwrap();
    assert!(cause.contains("its peers"), "{cause}");
    local.replicas()[1].proxy().unwrap().heal();
    eventually("it is quick again", || async {
        health(&pool, "replica-2") == NodeHealth::Up
    })
    .await;
    eventually("it serves again", || async {
        servers(&pool, 20).await.contains(&"replica-2".to_owned())
    })
    .await;
}

#[tokio::test]
async fn a_drained_replica_serves_nobody_until_it_is_taken_back() {
    let pool = pool().await;
    eventually("all are up", || async { all_up(&pool) }).await;
    pool.drain_replica("replica-1").await.unwrap();
    assert_eq!(health(&pool, "replica-1"), NodeHealth::Draining);
    let all = servers(&pool, 50).await;
    assert!(all.iter().all(|server| server == "replica-2"), "{all:?}");
    pool.undrain_replica("replica-1").await.unwrap();
    eventually("it serves again", || async {
        servers(&pool, 20).await.contains(&"replica-1".to_owned())
    })
    .await;
    let refused = pool.drain_replica("primary").await;
    assert!(matches!(refused, Err(Error::IsPrimary { .. })));
    let unknown = pool.drain_replica("nobody").await;
    assert!(matches!(unknown, Err(Error::UnknownNode { .. })));
}
