//! What is told, and what is not worth a word.

use std::time::Duration;

use diesel_replicated::{NodeConfig, ReplicatedPool};

use crate::history::Log;
use crate::support::{all_up, count, eventually, on, own_cluster};

/// A deploy is no incident: nothing is warned of that nobody has to look at.
#[tokio::test]
async fn a_healthy_start_warns_of_nothing() {
    let log = Log::listen();
    let local = own_cluster().await;
    let named = |node: &diesel_replicated::testing::LocalNode| {
        NodeConfig::new(node.url("app")).name(format!("told-{}", node.name()))
    };
    let primary = ReplicatedPool::builder().primary(named(local.primary()));
    let builder = local
        .replicas()
        .iter()
        .fold(primary, |builder, replica| builder.replica(named(replica)));
    let pool = builder
        .failover_wait(Duration::from_secs(30))
        .build()
        .await
        .unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    let mut conn = pool.get().await.unwrap();
    assert_eq!(count(&mut conn).await, 3);
    assert_eq!(log.of("", "told-"), Vec::<String>::new());
    // What happens later is told.
    on(&local, |local| {
        local.wait_caught_up().unwrap();
        local.primary().kill().unwrap();
        local.replicas()[0].promote().unwrap();
    })
    .await;
    eventually("the change is told", || async {
        let told = log.of("primary_changed", "told-replica-1");
        told.len() == 1 && told[0].contains("WARN")
    })
    .await;
}
