//! A process that reaches fewer than a majority of the nodes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use diesel_replicated::config::HealthConfig;
use diesel_replicated::testing::{LocalCluster, LocalNode};
use diesel_replicated::{
    Builder, Consistency, Error, ErrorExt, NodeConfig, Outcome, ReplicatedConnection,
    ReplicatedPool,
};

use crate::support::{all_up, eventually, insert, on, own_cluster, own_cluster_of, run, users};

fn proxied(node: &LocalNode) -> NodeConfig {
    NodeConfig::new(node.proxied_url("app").unwrap()).name(node.name().to_owned())
}

/// A pool on all nodes, through proxies, which asks for a majority.
fn builder(local: &LocalCluster) -> Builder {
    let primary = ReplicatedPool::builder().primary(proxied(local.primary()));
    let replicas = local.replicas().iter();
    replicas
        .fold(primary, |builder, replica| {
            builder.replica(proxied(replica))
        })
        .write_quorum(true)
}

/// Whether something listens where the node's proxy is.
fn answers(node: &LocalNode) -> bool {
    let port = node.proxy().unwrap().port();
    std::net::TcpStream::connect((std::net::Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// The highest id that a plain read sees.
async fn newest(conn: &mut ReplicatedConnection) -> QueryResult<Option<i32>> {
    users::table
        .select(diesel::dsl::max(users::id))
        .get_result(conn)
        .await
}

// Whoever was not asked yet is not gone.
#[tokio::test]
async fn a_pool_is_built_while_the_replicas_answer_slowly() {
    let local = own_cluster().await;
    for replica in local.replicas() {
        replica.proxy().unwrap().delay(Duration::from_millis(60));
    }
    for round in 0..8 {
        // The monitors are asked often, and nobody waits: what fails, fails.
        let often = HealthConfig::default()
            .interval(Duration::from_millis(20))
            .timeout(Duration::from_secs(5));
        let pool = builder(&local)
            .health(often)
            .failover_wait(Duration::ZERO)
            .build()
            .await
            .unwrap();
        let mut conn = pool.get().await.unwrap();
        insert(&format!("round {round}"))
            .execute(&mut conn)
            .await
            .unwrap();
        drop(conn);
        pool.close(Duration::from_secs(5)).await;
    }
}

#[tokio::test]
async fn a_node_that_is_added_closes_nothing_before_it_was_asked() {
    let local = own_cluster().await;
    let pool = ReplicatedPool::builder()
        .primary(proxied(local.primary()))
        .write_quorum(true)
        .health(HealthConfig::default().interval(Duration::from_millis(20)))
        .failover_wait(Duration::ZERO)
        .build()
        .await
        .unwrap();
    let replica = &local.replicas()[0];
    let node = proxied(replica);
    replica.proxy().unwrap().delay(Duration::from_millis(300));
    pool.add_replica(node).await.unwrap();
    let mut conn = pool.get().await.unwrap();
    let begun = Instant::now();
    // Two of two have to answer from now on, and one was not asked yet.
    while begun.elapsed() < Duration::from_millis(200) {
        insert(&format!("{:?}", begun.elapsed()))
            .execute(&mut conn)
            .await
            .unwrap();
    }
    replica.proxy().unwrap().heal();
    eventually("it is up", || async { all_up(&pool) }).await;
    insert("both").execute(&mut conn).await.unwrap();
}

#[tokio::test]
async fn a_pool_is_not_built_where_most_nodes_cannot_be_reached() {
    let local = own_cluster().await;
    for replica in local.replicas() {
        let _ = proxied(replica);
        replica.proxy().unwrap().cut();
    }
    eventually("they are cut off", || async {
        local.replicas().iter().all(|node| !answers(node))
    })
    .await;
    let refused = builder(&local).build().await;
    assert!(
        matches!(
            &refused,
            Err(Error::NoQuorum {
                answer: 1,
                needed: 2,
                ..
            })
        ),
        "{refused:?}"
    );
    local.replicas()[0].proxy().unwrap().heal();
    eventually("one is back", || async { answers(&local.replicas()[0]) }).await;
    let pool = builder(&local).build().await.unwrap();
    let mut conn = pool.get().await.unwrap();
    insert("two of three").execute(&mut conn).await.unwrap();
}

/// Cuts this process off with the primary and `with` of the replicas, has another promoted, and reads.
async fn reads_beside_a_new_primary(local: Arc<LocalCluster>, with: usize, level: Consistency) {
    let pool = builder(&local)
        .consistency(level)
        .failover_wait(Duration::ZERO)
        .build()
        .await
        .unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    let mut conn = pool.get().await.unwrap();
    assert_eq!(newest(&mut conn).await.unwrap(), Some(3));
    for replica in &local.replicas()[with..] {
        replica.proxy().unwrap().black_hole();
    }
    on(&local, move |local| {
        let promoted = &local.replicas()[with];
        promoted.promote().unwrap();
        promoted
            .sql("app", "INSERT INTO users (name) VALUES ('new')")
            .unwrap();
    })
    .await;
    let written = Instant::now();
    let bound = match level {
        Consistency::BoundedStaleness(bound) => bound,
        _ => Duration::ZERO,
    };
    let mut refused = 0;
    // On a busy machine one wait may take as long as all of that.
    while written.elapsed() < bound + Duration::from_secs(5)
        || refused == 0 && written.elapsed() < Duration::from_secs(60)
    {
        let begun = written.elapsed();
        match newest(&mut conn).await {
            Ok(seen) => assert!(
                seen > Some(3) || begun < bound,
                "stale after {begun:?}: {seen:?}, {:?}",
                conn.last_route()
            ),
            Err(error) => {
                assert_eq!(error.outcome(), Outcome::NotRun, "{error}");
                assert!(error.to_string().contains("`write_quorum`"), "{error}");
                refused += 1;
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(refused > 0);
    // Whoever asks for less is served.
    let mut eventual = conn.with_consistency(Consistency::Eventual);
    let served: Option<i32> = users::table
        .select(diesel::dsl::max(users::id))
        .get_result(&mut eventual)
        .await
        .unwrap();
    assert_eq!(served, Some(3));
    drop(eventual);
    for replica in &local.replicas()[with..] {
        replica.proxy().unwrap().heal();
    }
    eventually("it is read on the new primary", || async {
        let mut conn = pool.get().await.unwrap();
        matches!(newest(&mut conn).await, Ok(Some(id)) if id > 3)
    })
    .await;
}

// patroni/patroni #3194, yugabyte/yugabyte-db #16, deventlab/d-engine #381: reads on a primary that is cut
// off with its clients.
#[tokio::test]
async fn a_strong_read_beside_a_cut_off_primary_is_refused() {
    reads_beside_a_new_primary(own_cluster().await, 0, Consistency::Strong).await;
}

#[tokio::test]
async fn a_bounded_read_beside_a_cut_off_primary_is_refused() {
    let level = Consistency::BoundedStaleness(Duration::from_secs(1));
    reads_beside_a_new_primary(own_cluster_of(4).await, 1, level).await;
}

#[tokio::test]
async fn a_transaction_of_a_strong_session_begins_only_beside_a_majority() {
    let local = own_cluster().await;
    let pool = builder(&local)
        .consistency(Consistency::Strong)
        .failover_wait(Duration::from_millis(100))
        .build()
        .await
        .unwrap();
    let mut conn = pool.get().await.unwrap();
    run(&mut conn, "BEGIN").await.unwrap();
    assert_eq!(newest(&mut conn).await.unwrap(), Some(3));
    for replica in local.replicas() {
        replica.proxy().unwrap().black_hole();
    }
    // What has begun goes on: it is its beginning that it sees.
    assert_eq!(newest(&mut conn).await.unwrap(), Some(3));
    run(&mut conn, "ROLLBACK").await.unwrap();
    let refused = run(&mut conn, "BEGIN").await.unwrap_err();
    assert_eq!(refused.outcome(), Outcome::NotRun, "{refused}");
    for replica in local.replicas() {
        replica.proxy().unwrap().heal();
    }
    eventually("it begins", || async {
        let mut conn = pool.get().await.unwrap();
        run(&mut conn, "BEGIN").await.is_ok()
    })
    .await;
}
