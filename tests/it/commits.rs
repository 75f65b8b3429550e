//! What became of a COMMIT whose connection broke.

use std::sync::Arc;
use std::time::Duration;

use diesel::prelude::*;
use diesel_async::{AsyncConnection, RunQueryDsl};
use diesel_replicated::config::{COMMIT_MARKER_SQL, CommitResolution};
use diesel_replicated::testing::{LocalCluster, StopMode};
use diesel_replicated::{ErrorExt, NodeConfig, Outcome, ReplicatedConnection, ReplicatedPool};

use crate::support::{all_up, eventually, insert, on, own_cluster, run, users};

/// A pool that reaches the primary through a proxy, and others by themselves.
async fn start(way: CommitResolution) -> (Arc<LocalCluster>, ReplicatedPool) {
    let local = own_cluster().await;
    on(&local, |local| {
        let marker = COMMIT_MARKER_SQL;
        local.primary().sql("app", marker).unwrap();
        // A commit that takes its time: the trigger runs when it is sent.
        let slow = "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN PERFORM pg_sleep(1); RETURN NEW; END';
             CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON users DEFERRABLE INITIALLY DEFERRED
             FOR EACH ROW WHEN (NEW.name LIKE 'slow%') EXECUTE FUNCTION slow();";
        local.primary().sql("app", slow).unwrap();
        local.wait_caught_up().unwrap();
    })
    .await;
    let proxied = local.primary().proxied_url("app").unwrap();
    let builder = ReplicatedPool::builder().primary(NodeConfig::new(proxied).name("primary"));
    let builder = local.replicas().iter().fold(builder, |builder, replica| {
        builder.replica(NodeConfig::new(replica.url("app")).name(replica.name()))
    });
    let builder = builder.failover_wait(Duration::from_secs(30));
    let pool = builder.commit_resolution(way).build().await.unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    (local, pool)
}

async fn is_committing(local: &Arc<LocalCluster>) {
    eventually("it is being committed", || async {
        let busy = "SELECT 1 FROM pg_stat_activity WHERE query = 'COMMIT' AND state = 'active'";
        let rows = on(local, move |local| {
            local.primary().sql("app", busy).unwrap()
        });
        !rows.await.is_empty()
    })
    .await;
}

/// Begins to commit this name, and returns when the server is at it.
async fn committing(
    local: &Arc<LocalCluster>,
    pool: &ReplicatedPool,
    name: &'static str,
) -> tokio::task::JoinHandle<QueryResult<usize>> {
    let mut conn = pool.get().await.unwrap();
    let committing = tokio::spawn(async move {
        let work = async |conn: &mut ReplicatedConnection| insert(name).execute(conn).await;
        conn.transaction(work).await
    });
    is_committing(local).await;
    committing
}

async fn is_there(pool: &ReplicatedPool, name: &str) -> bool {
    let mut conn = pool.get().await.unwrap();
    let found = users::table.filter(users::name.eq(name)).count();
    found.get_result::<i64>(&mut conn.primary()).await.unwrap() == 1
}

#[tokio::test]
async fn on_the_same_timeline_both_ways_tell() {
    for way in [CommitResolution::TransactionId, CommitResolution::Marker] {
        let (local, pool) = start(way).await;
        // The link breaks; the server goes on to commit.
        let slow = committing(&local, &pool, "slow but committed").await;
        local.primary().proxy().unwrap().cut();
        local.primary().proxy().unwrap().heal();
        assert_eq!(slow.await.unwrap(), Ok(1), "{way}");
        assert!(is_there(&pool, "slow but committed").await);
        // The backend is ended before it has committed.
        let ended = committing(&local, &pool, "slow and ended").await;
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE query = 'COMMIT' AND state = 'active'";
        on(&local, move |local| {
            local.primary().sql("app", end).unwrap()
        })
        .await;
        let error = ended.await.unwrap().unwrap_err();
        assert_eq!(error.outcome(), Outcome::NotRun, "{way}: {error}");
        assert!(!is_there(&pool, "slow and ended").await);
        // The server crashes and recovers.
        let crashed = committing(&local, &pool, "slow and crashed").await;
        on(&local, |local| local.primary().kill().unwrap()).await;
        on(&local, |local| local.primary().start().unwrap()).await;
        let error = crashed.await.unwrap().unwrap_err();
        assert_eq!(error.outcome(), Outcome::NotRun, "{way}: {error}");
        assert!(!is_there(&pool, "slow and crashed").await);
    }
}

/// The new primary gives the numbers of lost transactions to others.
#[tokio::test]
async fn after_a_failover_only_the_marker_tells() {
    for way in [CommitResolution::TransactionId, CommitResolution::Marker] {
        let (local, pool) = start(way).await;
        let lost = committing(&local, &pool, "slow and lost").await;
        on(&local, |local| {
            local.primary().kill().unwrap();
            local.replicas()[0].promote().unwrap();
            for number in 0..10 {
                let others = format!("INSERT INTO users (name) VALUES ('other {number}')");
                local.replicas()[0].sql("app", &others).unwrap();
            }
        })
        .await;
        let error = lost.await.unwrap().unwrap_err();
        let expected = match way {
            CommitResolution::Marker => Outcome::NotRun,
            _ => Outcome::Unknown,
        };
        assert_eq!(error.outcome(), expected, "{way}: {error}");
        assert!(!is_there(&pool, "slow and lost").await);
    }
}

/// The commit reaches the replicas, and its answer does not reach the client.
#[tokio::test]
async fn a_commit_that_survives_a_failover_is_found() {
    let (local, pool) = start(CommitResolution::Marker).await;
    let slow = committing(&local, &pool, "slow and survived").await;
    local.primary().proxy().unwrap().cut();
    let done = "SELECT 1 FROM users WHERE name = 'slow and survived'";
    eventually("the replica has it", || async {
        let rows = on(&local, move |local| {
            local.replicas()[0].sql("app", done).unwrap()
        });
        !rows.await.is_empty()
    })
    .await;
    on(&local, |local| {
        local.primary().stop(StopMode::Immediate).unwrap();
        local.replicas()[0].promote().unwrap();
    })
    .await;
    assert_eq!(slow.await.unwrap(), Ok(1));
    assert!(is_there(&pool, "slow and survived").await);
}

#[tokio::test]
async fn a_missing_table_is_said_and_nothing_is_committed() {
    let (_local, pool) = start(CommitResolution::Marker).await;
    let mut conn = pool.get().await.unwrap();
    run(&mut conn, "DROP TABLE diesel_replicated_commits")
        .await
        .unwrap();
    let work = async |conn: &mut ReplicatedConnection| insert("unmarked").execute(conn).await;
    let error = conn.transaction(work).await.unwrap_err();
    assert!(error.to_string().contains("COMMIT_MARKER_SQL"), "{error}");
    assert_eq!(error.outcome(), Outcome::NotRun);
    assert!(!is_there(&pool, "unmarked").await);
    // What writes nothing needs no marker, and the session goes on.
    let read = async |conn: &mut ReplicatedConnection| users::table.count().get_result(conn).await;
    assert_eq!(conn.transaction(read).await, Ok(3i64));
    run(&mut conn, COMMIT_MARKER_SQL).await.unwrap();
    conn.transaction(work).await.unwrap();
    assert!(is_there(&pool, "unmarked").await);
}

/// What a trigger leaves that nobody knows pins the session; the connection that had it is gone.
#[tokio::test]
async fn a_session_that_was_pinned_learns_it_as_well() {
    for way in [CommitResolution::TransactionId, CommitResolution::Marker] {
        let (local, pool) = start(way).await;
        let mut conn = pool.get().await.unwrap();
        run(&mut conn, "LISTEN news").await.unwrap();
        let committing = tokio::spawn(async move {
            let work = async |conn: &mut ReplicatedConnection| insert("slow").execute(conn).await;
            let done = conn.transaction(work).await;
            (done, insert("next").execute(&mut conn).await)
        });
        is_committing(&local).await;
        local.primary().proxy().unwrap().cut();
        local.primary().proxy().unwrap().heal();
        let (done, next) = committing.await.unwrap();
        assert_eq!(done, Ok(1), "{way}");
        let lost = next.unwrap_err().to_string();
        assert!(lost.contains("this session's state"), "{lost}");
        assert!(is_there(&pool, "slow").await);
    }
}
