//! Sessions that go on elsewhere: tokens between connections and pools, forged ones, failover.

use std::sync::Arc;
use std::time::Duration;

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use diesel_replicated::config::{ConsistencyConfig, WriteScope};
use diesel_replicated::status::{NodeKind, RouteReason};
use diesel_replicated::testing::{LocalCluster, LocalNode, StopMode};
use diesel_replicated::{Consistency, ReplicatedConnection, ReplicatedPool, SessionToken};

use crate::support::{
    all_up, blocking, builder, builder_for, cluster, count, database, eventually, insert,
    own_cluster, pool, run, users, who,
};

/// The token as it would come back from a browser.
fn travelled(token: &SessionToken) -> SessionToken {
    token.to_string().parse().unwrap()
}

/// The token of a connection that wrote, once the primary has told its position.
async fn settled(conn: &ReplicatedConnection) -> SessionToken {
    eventually("the primary has told its position", || async {
        let token = conn.session_token().await;
        token.written().is_some_and(|written| written.timeline == 1)
    })
    .await;
    conn.session_token().await
}

#[tokio::test]
async fn a_session_reads_its_writes_in_another_pool() {
    let local = own_cluster().await;
    let (here, there) = (
        builder_for(&local, "app").build().await.unwrap(),
        builder_for(&local, "app").build().await.unwrap(),
    );
    let paused = Arc::clone(&local);
    blocking(move || {
        paused
            .replicas()
            .iter()
            .for_each(|node| node.pause_replay().unwrap())
    })
    .await;
    let mut writer = here.get().await.unwrap();
    assert!(writer.session_token().await.is_empty());
    insert("Ann").execute(&mut writer).await.unwrap();
    let token = travelled(&settled(&writer).await);
    assert!(token.written().is_some());
    let mut reader = there.get_with(&token).await.unwrap();
    assert_eq!(count(&mut reader).await, 4);
    assert_eq!(reader.last_route().unwrap().reason, RouteReason::OwnWrite);
    let mut stranger = there.get().await.unwrap();
    assert_eq!(count(&mut stranger).await, 3);
    // Nothing was written since: the token is the same, and promises no more.
    assert_eq!(reader.session_token().await, token);
    assert!(!reader.session_token().await.advances(&token));
    let resumed = Arc::clone(&local);
    blocking(move || {
        resumed
            .replicas()
            .iter()
            .for_each(|node| node.resume_replay().unwrap())
    })
    .await;
    while reader.last_route().unwrap().kind != NodeKind::Replica {
        assert_eq!(count(&mut reader).await, 4);
    }
}

#[tokio::test]
async fn connections_of_one_session_read_each_others_writes() {
    let pool = pool().await;
    let session = pool.session();
    let mut first = session.get().await.unwrap();
    for round in 0..10 {
        insert(&format!("n{round}"))
            .execute(&mut first)
            .await
            .unwrap();
        let mut second = session.get().await.unwrap();
        assert_eq!(count(&mut second).await, 4 + round);
    }
    // Without any change to what runs within.
    let token = session
        .scope(async {
            let mut conn = pool.get().await.unwrap();
            insert("ambient").execute(&mut conn).await.unwrap();
            drop(conn);
            let mut conn = pool.get().await.unwrap();
            assert_eq!(count(&mut conn).await, 14);
            session.token().await
        })
        .await;
    let mut conn = pool.get_with(&travelled(&token)).await.unwrap();
    assert_eq!(count(&mut conn).await, 14);
    let other = builder(&database().await).build().await.unwrap();
    session
        .scope(async {
            // Another pool is not of this session.
            let conn = other.get().await.unwrap();
            assert!(conn.session_token().await.is_empty());
        })
        .await;
}

#[tokio::test]
async fn a_token_that_cannot_know_its_position_yet_is_as_good() {
    // No wait at all: the primary has not told its position when the token is made.
    let hasty = ConsistencyConfig::from(Consistency::ReadYourWrites).wait(Duration::ZERO);
    let pool = builder(&database().await)
        .consistency(hasty)
        .build()
        .await
        .unwrap();
    for round in 0..20 {
        let mut conn = pool.get().await.unwrap();
        insert(&format!("n{round}"))
            .execute(&mut conn)
            .await
            .unwrap();
        let token = travelled(&conn.session_token().await);
        let mut reader = pool.get_with(&token).await.unwrap();
        assert_eq!(count(&mut reader).await, 4 + round);
    }
}

#[tokio::test]
async fn strangers_tokens_cost_one_read_of_the_primary_at_the_most() {
    let of_sessions = ConsistencyConfig::default().write_scope(WriteScope::Session);
    let builder = builder(&database().await).consistency(of_sessions);
    let pool = builder.build().await.unwrap();
    let mut conn = pool.get().await.unwrap();
    insert("Ann").execute(&mut conn).await.unwrap();
    let own = settled(&conn).await;
    let cluster_of = |text: &str| text.parse::<SessionToken>().unwrap();
    // Of another cluster: as if there were none.
    let foreign = cluster_of("AWj7rAnFSZ1xAsiw0ZvrAgLIsNOb6wI");
    assert_ne!(foreign.cluster(), own.cluster());
    let mut conn = pool.get_with(&foreign).await.unwrap();
    assert_ne!(who(&mut conn).await, "primary");
    assert_eq!(conn.last_route().unwrap().waited, Duration::ZERO);
    // Of this one, at a place that it will not reach in years, or on a timeline it may never have.
    for (timeline, lsn) in [(1, u64::MAX), (77, 5), (u64::from(u32::MAX) - 1, u64::MAX)] {
        let forged = forged(&own, timeline, lsn);
        for _ in 0..3 {
            let mut conn = pool.get_with(&forged).await.unwrap();
            assert!(count(&mut conn).await >= 3);
            let route = conn.last_route().unwrap();
            assert_eq!(route.reason, RouteReason::OwnWrite, "{forged:?}");
        }
    }
}

/// A token of the same cluster whose write is elsewhere.
fn forged(own: &SessionToken, timeline: u64, lsn: u64) -> SessionToken {
    use base64::Engine as _;
    let base64 = base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let mut bytes = base64.decode(own.to_string()).unwrap()[..9].to_vec();
    // Seven bits to a byte, the lowest first.
    for mut number in [timeline + 1, lsn] {
        while number >= 0x80 {
            bytes.push(number.to_le_bytes()[0] | 0x80);
            number >>= 7;
        }
        bytes.push(number.to_le_bytes()[0]);
    }
    bytes.push(0);
    base64.encode(bytes).parse().unwrap()
}

/// A pool that finds out by itself who is who.
async fn finding(local: &Arc<LocalCluster>) -> ReplicatedPool {
    let pool = ReplicatedPool::connect(&local.url("app")).await.unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    pool
}

#[tokio::test]
async fn a_write_that_a_failover_has_lost_is_reported_and_never_waited_for() {
    let local = own_cluster().await;
    let pool = finding(&local).await;
    let mut early = pool.get().await.unwrap();
    insert("kept").execute(&mut early).await.unwrap();
    let kept = settled(&early).await;
    let caught_up = Arc::clone(&local);
    blocking(move || caught_up.wait_caught_up().unwrap()).await;

    // The replicas are away while the primary goes on, and then it dies.
    let away = Arc::clone(&local);
    blocking(move || {
        let stop = |node: &LocalNode| node.stop(StopMode::Fast).unwrap();
        away.replicas().iter().for_each(stop);
    })
    .await;
    let mut late = pool.get().await.unwrap();
    insert("lost").execute(&mut late).await.unwrap();
    let lost = settled(&late).await;
    drop((early, late));
    let failing = Arc::clone(&local);
    blocking(move || {
        failing.primary().kill().unwrap();
        failing
            .replicas()
            .iter()
            .for_each(|node| node.start().unwrap());
        failing.replicas()[0].promote().unwrap();
        failing.replicas()[0]
            .sql(
                "app",
                "INSERT INTO users (name) SELECT 'after ' || n FROM generate_series(1, 1000) n",
            )
            .unwrap();
    })
    .await;
    let promoted = format!("127.0.0.1:{}", local.replicas()[0].port());
    eventually("the new primary is found", || async {
        pool.status().primary.as_ref() == Some(&promoted)
    })
    .await;

    eventually("its history is known", || {
        let asked = pool.get_with(&lost);
        async {
            let mut conn = asked.await.unwrap();
            count(&mut conn).await;
            conn.lost_write().is_some()
        }
    })
    .await;
    let names = users::table
        .select(users::name)
        .filter(users::id.gt(3))
        .order(users::id);
    let mut conn = pool.get_with(&travelled(&lost)).await.unwrap();
    let found: Vec<String> = names.limit(1).load(&mut conn).await.unwrap();
    assert_eq!(found, ["kept"]);
    let route = conn.last_route().unwrap();
    assert_eq!(
        (route.node, route.reason),
        (promoted, RouteReason::LostWrite)
    );
    assert_eq!(conn.lost_write(), lost.written());
    assert_eq!(route.waited, Duration::ZERO);
    // Its next token is free of it, and holds what it had written before.
    let next = conn.session_token().await;
    assert_eq!(next.written().unwrap().timeline, 2);
    let mut conn = pool.get_with(&travelled(&next)).await.unwrap();
    let found: Vec<String> = names.limit(1).load(&mut conn).await.unwrap();
    assert_eq!((found, conn.lost_write()), (vec!["kept".to_owned()], None));

    // What the replicas had received is no loss, also on the one that has not followed.
    let mut conn = pool.get_with(&travelled(&kept)).await.unwrap();
    assert!([4, 1004].contains(&count(&mut conn).await));
    assert_eq!(conn.lost_write(), None);
    run(&mut conn, "SELECT 1").await.unwrap();
}

#[tokio::test]
async fn the_systems_identifier_is_in_the_token() {
    let pool = pool().await;
    let mut conn = pool.get().await.unwrap();
    insert("Ann").execute(&mut conn).await.unwrap();
    let token = settled(&conn).await;
    let sql = "SELECT system_identifier::text FROM pg_control_system()";
    let rows = blocking(move || cluster().primary().sql("postgres", sql).unwrap()).await;
    let cluster = token.cluster().to_string();
    assert_eq!(rows[0][0].as_deref(), Some(cluster.as_str()));
    assert!(token.to_string().len() <= 34, "{token}");
}
