//! Nodes that are given another URL, size or configuration while the pool runs.

use std::time::Duration;

use diesel_async::RunQueryDsl;
use diesel_replicated::config::HealthConfig;
use diesel_replicated::status::NodeHealth;
use diesel_replicated::testing::LocalCluster;
use diesel_replicated::{Consistency, Error, NodeConfig, ReplicatedPool};

use crate::credentials::guarded;
use crate::support::{Shared, builder_for, count, eventually, insert, on, own_cluster, run};

fn url(local: &LocalCluster, name: &str, password: &str) -> String {
    let url = local.node(name).unwrap().url("app");
    url.replace("postgres@", &format!("app:{password}@"))
}

/// Tasks that write and read, until they are told to stop; how often they did.
fn load(pool: &ReplicatedPool) -> (Shared, Shared, Vec<tokio::task::JoinHandle<()>>) {
    let (over, done) = (Shared::default(), Shared::default());
    let tasks = (0..4)
        .map(|task| {
            let (pool, over, done) = (pool.clone(), over.clone(), done.clone());
            tokio::spawn(async move {
                for number in 0.. {
                    if over.get() > 0 {
                        return;
                    }
                    let mut conn = pool.get().await.unwrap();
                    let unique = format!("{task}-{number}-{:?}", std::time::Instant::now());
                    insert(&unique).execute(&mut conn).await.unwrap();
                    assert!(count(&mut conn).await > 0);
                    done.add(1);
                }
            })
        })
        .collect();
    (over, done, tasks)
}

// HikariCP's MXBean, PgBouncer's RELOAD, F6: another password for each node, the primary as well, under load; no statement fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_given_another_password() {
    let local = guarded().await;
    let pool = ReplicatedPool::builder()
        .primary(NodeConfig::new(url(&local, "primary", "one")).name("primary"))
        .replica(NodeConfig::new(url(&local, "replica-1", "one")).name("replica-1"))
        .health(HealthConfig::default().interval(Duration::from_millis(200)))
        .build()
        .await
        .unwrap();
    let (over, done, tasks) = load(&pool);
    let more = async |what| {
        let before = done.get();
        eventually(what, async || done.get() > before + 20).await;
    };
    more("it works").await;
    // A wrong one changes nothing.
    let wrong = pool
        .set_url("primary", url(&local, "primary", "wrong"))
        .await
        .unwrap_err();
    assert!(
        matches!(&wrong, Error::Connect(error) if error.message.contains("password authentication")),
        "{wrong}"
    );
    on(&local, |local| {
        local
            .primary()
            .sql("app", "ALTER ROLE app PASSWORD 'two'")
            .unwrap();
        local.wait_caught_up().unwrap();
    })
    .await;
    for name in ["primary", "replica-1"] {
        pool.set_url(name, url(&local, name, "two")).await.unwrap();
        more("statements go on").await;
    }
    over.add(1);
    for task in tasks {
        task.await.unwrap();
    }
    let status = pool.status();
    assert!(
        status
            .nodes
            .iter()
            .all(|node| node.health == NodeHealth::Up),
        "{status:?}"
    );
    assert_eq!(status.nodes.len(), 2);
    assert!(!format!("{status:?} {pool:?}").contains("two"));
}

// Another size, under load, down and up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_given_another_size() {
    let local = own_cluster().await;
    let pool = builder_for(&local, "app")
        .max_size(4)
        .build()
        .await
        .unwrap();
    let (over, done, tasks) = load(&pool);
    for size in [2, 8] {
        pool.set_max_size("primary", size).await.unwrap();
        pool.set_max_size("replica-1", size).await.unwrap();
        let before = done.get();
        eventually("statements go on", async || done.get() > before + 20).await;
        assert_eq!(pool.status().node("primary").unwrap().max_size, size);
    }
    over.add(1);
    for task in tasks {
        task.await.unwrap();
    }
    assert!(pool.set_max_size("primary", 0).await.is_err());
    assert!(matches!(
        pool.set_max_size("nobody", 1).await,
        Err(Error::UnknownNode { .. })
    ));
}

// A transaction on the old connections goes on to its end, and another cluster is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_goes_on_while_its_node_is_replaced() {
    let local = own_cluster().await;
    let other = own_cluster().await;
    let pool = builder_for(&local, "app").build().await.unwrap();
    let foreign = pool
        .set_url("primary", other.primary().url("app"))
        .await
        .unwrap_err();
    assert!(matches!(foreign, Error::AnotherCluster { .. }), "{foreign}");
    let mut conn = pool.get().await.unwrap();
    run(&mut conn, "BEGIN").await.unwrap();
    insert("in a transaction").execute(&mut conn).await.unwrap();
    let replacing = tokio::spawn({
        let (pool, url) = (pool.clone(), local.primary().proxied_url("app").unwrap());
        async move {
            pool.replace_node("primary", NodeConfig::new(url).weight(0))
                .await
        }
    });
    // Others go over the new connections meanwhile.
    let mut others = pool.get().await.unwrap();
    eventually("the new node serves", async || {
        let mut others = pool.get().await.unwrap();
        insert(&format!("{:?}", std::time::Instant::now()))
            .execute(&mut others)
            .await
            .unwrap();
        pool.status().node("primary").unwrap().in_flight == 0
    })
    .await;
    assert!(!replacing.is_finished());
    insert("still in it").execute(&mut conn).await.unwrap();
    run(&mut conn, "COMMIT").await.unwrap();
    drop(conn);
    replacing.await.unwrap().unwrap();
    assert!(count(&mut others).await >= 5);
    // A replica's name may be led to the other replica's server: two names of one server are one.
    pool.set_url("replica-1", local.replicas()[1].url("app"))
        .await
        .unwrap();
    let mut conn = pool.get().await.unwrap();
    insert("after").execute(&mut conn).await.unwrap();
    assert!(count(&mut conn).await > 5);
}

// PgBouncer's and PgDog's RELOAD: limits of lag, and what reads must see.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_of_lag_and_the_level_change_while_the_pool_runs() {
    let local = own_cluster().await;
    let pool = builder_for(&local, "app")
        .consistency(Consistency::Eventual)
        .health(HealthConfig::default().interval(Duration::from_millis(100)))
        .build()
        .await
        .unwrap();
    on(&local, |local| {
        local.wait_caught_up().unwrap();
        for replica in local.replicas() {
            replica.pause_replay().unwrap();
        }
    })
    .await;
    let mut conn = pool.get().await.unwrap();
    insert("new").execute(&mut conn).await.unwrap();
    let by_replica = async || {
        let mut conn = pool.get().await.unwrap();
        count(&mut conn).await;
        conn.last_route().unwrap().node.starts_with("replica")
    };
    eventually("what is old is served", by_replica).await;
    // The primary alone has what was written.
    pool.set_consistency(Consistency::ReadYourWrites);
    assert_eq!(count(&mut pool.get().await.unwrap()).await, 4);
    assert_eq!(
        pool.get().await.unwrap().consistency(),
        Consistency::ReadYourWrites
    );
    pool.set_consistency(Consistency::Eventual);
    eventually("what is old is served again", by_replica).await;
    pool.set_max_lag(Duration::from_millis(200), None)
        .await
        .unwrap();
    eventually("they lag", async || {
        let status = pool.status();
        ["replica-1", "replica-2"]
            .iter()
            .all(|name| status.node(name).unwrap().health == NodeHealth::Lagging)
    })
    .await;
    assert!(!by_replica().await);
    pool.set_max_lag(None, None).await.unwrap();
    eventually("they do not any more", by_replica).await;
    assert!(pool.set_max_lag(Duration::ZERO, None).await.is_err());
}
