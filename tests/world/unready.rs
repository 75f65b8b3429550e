//! Nothing can be served, or less than one would think: who asks is told so, why, and in good time.

use std::time::{Duration, Instant};

use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel_async::RunQueryDsl;
use diesel_replicated::{Error, ErrorExt, NodeConfig, Outcome, ReplicatedPool};

use crate::support::{
    all_up, builder_for, cluster, count, database, eventually, insert, on, own_cluster,
};

fn kind(error: &DieselError) -> Option<&DatabaseErrorKind> {
    match error {
        DieselError::DatabaseError(kind, _) => Some(kind),
        _ => None,
    }
}

// psycopg #481, HikariCP #2254 and #1841, r2d2 #79: a pool that hands out a connection to nothing has its user find
// out only with the first statement, or after a long wait; crates.io's own tests want `get` to fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checked_connection_is_not_handed_out_while_all_servers_are_down() {
    let local = own_cluster().await;
    let builder = builder_for(&local, "app").connection_timeout(Duration::from_millis(500));
    let pool = builder.build().await.unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    count(&mut pool.get_checked().await.unwrap()).await;
    on(&local, |local| {
        local.nodes().for_each(|node| node.kill().unwrap());
    })
    .await;
    eventually("all are down", || async {
        let state = pool.status();
        !state.takes_reads && !state.takes_writes
    })
    .await;
    let started = Instant::now();
    let refused = pool.get_checked().await.unwrap_err();
    assert!(
        matches!(refused, Error::NotReady { reads: false, .. }),
        "{refused}"
    );
    assert!(refused.to_string().contains("refused"), "{refused}");
    // The shorter limit wins, also for who has a connection: `failover_wait` is 15 s.
    let mut conn = pool.get().await.unwrap();
    let read = diesel::select(diesel::dsl::sql::<diesel::sql_types::Integer>("1"));
    let error = read.get_result::<i32>(&mut conn).await.unwrap_err();
    assert!(
        matches!(kind(&error), Some(DatabaseErrorKind::ClosedConnection)),
        "{error:?}"
    );
    let error = insert("never").execute(&mut conn).await.unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(10));
    // It was any primary that was waited for, not one address; and for how long.
    let said = error.to_string();
    assert!(
        said.contains("no node is known to be the primary"),
        "{said}"
    );
    assert!(said.contains("after 5"), "{said}");
    assert!(
        said.contains("`replica-2`") && said.contains("refused"),
        "{said}"
    );
    assert!(
        matches!(kind(&error), Some(DatabaseErrorKind::ClosedConnection)),
        "{error:?}"
    );
    assert_eq!(error.outcome(), Outcome::NotRun);
    // One replica is enough to read.
    on(&local, |local| local.replicas()[0].start().unwrap()).await;
    eventually("it serves again", || async {
        pool.get_checked().await.is_ok()
    })
    .await;
}

// firecrawl #4567, gonka #1602: a readiness probe takes no longer than those need that something is sent to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_waits_for_no_node_of_another_cluster() {
    let name = database().await;
    let stranger = own_cluster().await;
    let foreign = NodeConfig::new(stranger.replicas()[0].url("app")).name("foreign");
    let builder = builder_for(cluster(), &name).replica(foreign);
    let pool = builder.build().await.unwrap();
    eventually("it is found to be foreign", || async {
        let state = pool.status();
        state
            .node("foreign")
            .unwrap()
            .standing
            .contains("another cluster")
    })
    .await;
    // A minute would be the limit; the test's own is shorter.
    let checking = pool.check(Duration::from_secs(60));
    let state = tokio::time::timeout(Duration::from_secs(20), checking).await;
    let state = state.expect("it waits for the foreign node").unwrap();
    let foreign = state.node("foreign").unwrap();
    assert!(!foreign.serves_reads && !foreign.serves_writes);
    let primary = state.node("primary").unwrap();
    assert!(primary.serves_reads && primary.serves_writes);
    let replica = state.node("replica-1").unwrap();
    assert!(replica.serves_reads && !replica.serves_writes);
}

// r2d2 #34 and #79: a pool that is built while nothing listens says so, with the cause.
#[tokio::test]
async fn a_pool_of_nothing_says_what_it_tried() {
    let pool = ReplicatedPool::builder()
        .primary("postgres://app@127.0.0.1:1/app")
        .replica("postgres://app@127.0.0.1:2/app");
    let error = pool.build().await.unwrap_err().to_string();
    assert!(
        error.contains("no node is known to be the primary"),
        "{error}"
    );
    assert!(error.contains("refused"), "{error}");
}

// One server that accepts connections and answers nothing (frozen, or behind a firewall that drops packets) held up
// each start for `connect_timeout`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_replica_does_not_hold_up_the_start() {
    let local = own_cluster().await;
    on(&local, |local| local.replicas()[1].freeze()).await;
    let builder = builder_for(&local, "app").connect_timeout(Duration::from_secs(60));
    let started = Instant::now();
    let pool = builder.build().await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(30));
    let mut conn = pool.get().await.unwrap();
    insert("early").execute(&mut conn).await.unwrap();
    assert_eq!(count(&mut conn).await, 4);
    let frozen = pool.status().node("replica-2").unwrap().clone();
    assert!(!frozen.serves_reads);
    assert!(frozen.cause.unwrap().contains("no answer yet"));
    on(&local, |local| local.replicas()[1].thaw()).await;
    eventually("it serves", || async { all_up(&pool) }).await;
}
