//! What a pool says of its nodes, and what it tells as it happens.

use std::sync::Arc;
use std::time::Duration;

use diesel_async::RunQueryDsl;
use diesel_replicated::status::{NodeHealth, NodeKind};
use diesel_replicated::testing::LocalCluster;
use diesel_replicated::{Error, Event, ReplicatedPool};
use futures_util::{FutureExt, StreamExt};

use crate::support::{
    all_up, blocking, builder_for, eventually, fill, insert, on, own_cluster, pool,
};

const LIMIT: Duration = Duration::from_secs(10);

#[tokio::test]
async fn the_status_tells_the_tree_the_places_and_the_lag() {
    let local = blocking(|| {
        let chained = LocalCluster::builder().replicas(1).cascading_from(0);
        let local = chained.start().unwrap();
        fill(&local, "app");
        Arc::new(local)
    })
    .await;
    let pool = builder_for(&local, "app").build().await.unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    let status = pool.check(LIMIT).await.unwrap();
    assert!(status.takes_writes && status.takes_reads);
    assert_eq!(status.primary.as_deref(), Some("primary"));
    assert_eq!(status.timeline, 1);
    let of = |name: &str| status.node(name).unwrap().clone();
    assert_eq!(of("primary").upstream, None);
    assert_eq!(of("replica-1").upstream.as_deref(), Some("primary"));
    assert_eq!(of("replica-2").upstream.as_deref(), Some("replica-1"));
    assert_eq!(of("replica-2").kind, Some(NodeKind::Replica));
    let receiving = ["primary", "replica-1", "replica-2"].map(|name| of(name).receiving);
    assert_eq!(receiving, [None, Some(true), Some(true)]);
    assert!(of("primary").round_trip.unwrap() > Duration::ZERO);
    let major = local.major_version().to_string();
    assert!(of("primary").version.unwrap().starts_with(&major));

    // How old something is that is older than the pool, the pool cannot tell.
    eventually("the replica shows what the pool has seen", || async {
        let status = pool.check(LIMIT).await.unwrap();
        status.node("replica-2").unwrap().lag.is_some()
    })
    .await;
    on(&local, |local| local.replicas()[1].pause_replay().unwrap()).await;
    let mut conn = pool.get().await.unwrap();
    insert("Ann").execute(&mut conn).await.unwrap();
    eventually("the lag shows", || async {
        let status = pool.check(LIMIT).await.unwrap();
        let (near, far) = (
            status.node("replica-1").unwrap(),
            status.node("replica-2").unwrap(),
        );
        let lag = far.lag_bytes.unwrap();
        let behind = far.position.unwrap().lsn < near.position.unwrap().lsn;
        far.replay_paused && lag > 0 && near.lag_bytes == Some(0) && behind && far.lag > near.lag
    })
    .await;
    let json = serde_json::to_value(pool.status()).unwrap();
    assert_eq!(json["nodes"][2]["upstream"], "replica-1");
    assert_eq!(json["nodes"][2]["health"], "up");
    assert!(json["nodes"][2]["lag"].as_f64().unwrap() > 0.0);
    assert_eq!(json["nodes"][0]["position"]["timeline"], 1);
    on(&local, |local| local.replicas()[1].resume_replay().unwrap()).await;
}

#[tokio::test]
async fn what_happens_is_told() {
    let local = own_cluster().await;
    let pool = builder_for(&local, "app").build().await.unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    let mut events = pool.subscribe();
    on(&local, |local| {
        local.primary().kill().unwrap();
        local.replicas()[0].promote().unwrap();
    })
    .await;
    let mut told = Vec::new();
    loop {
        let event = tokio::time::timeout(LIMIT, events.next())
            .await
            .unwrap()
            .unwrap();
        told.push(event.clone());
        match event {
            Event::PrimaryChanged {
                from, to, timeline, ..
            } => {
                assert_eq!(
                    (from.as_deref(), to.as_deref()),
                    (Some("primary"), Some("replica-1"))
                );
                assert_eq!(timeline, Some(2));
                break;
            }
            Event::NodeChanged {
                node, to, cause, ..
            } => {
                let bad = matches!(to, NodeHealth::Suspect | NodeHealth::Down);
                assert!(node == "primary" && bad && cause.is_some(), "{told:?}");
            }
            _ => {}
        }
    }
    let down = |event: &Event| matches!(event, Event::NodeChanged { .. });
    assert!(told.iter().any(down), "{told:?}");
    eventually("the other replica needs to follow", || async {
        pool.status().node("replica-2").unwrap().receiving == Some(false)
    })
    .await;
    let history = pool.status().node("primary").unwrap().transitions.clone();
    let (first, last) = (&history[0], &history[history.len() - 1]);
    let (unknown, up) = (NodeHealth::Unknown, NodeHealth::Up);
    assert_eq!((first.from, first.to), (unknown, up));
    assert_eq!(last.to, NodeHealth::Down);
    pool.close(Duration::ZERO).await;
    while events.next().await.is_some() {}
}

#[tokio::test]
async fn a_check_says_what_is_impossible() {
    let local = own_cluster().await;
    let pool = builder_for(&local, "app").build().await.unwrap();
    on(&local, |local| local.primary().kill().unwrap()).await;
    eventually("nothing can be written", || async {
        let checked = pool.check(LIMIT).await;
        matches!(checked, Err(Error::NotReady { reads: true, nodes }) if nodes.len() == 3)
    })
    .await;
    on(&local, |local| {
        local
            .replicas()
            .iter()
            .for_each(|node| node.kill().unwrap())
    })
    .await;
    eventually("nothing can be read", || async {
        matches!(
            pool.check(LIMIT).await,
            Err(Error::NotReady { reads: false, .. })
        )
    })
    .await;
}

#[tokio::test]
async fn nobody_has_to_listen_and_who_is_slow_is_told_so() {
    let pool: ReplicatedPool = pool().await;
    drop(pool.subscribe());
    let mut slow = pool.subscribe();
    for round in 0..300i64 {
        pool.set_weight("replica-1", round % 7).await.unwrap();
    }
    // A weight is no event.
    assert!(slow.next().now_or_never().is_none());
}
