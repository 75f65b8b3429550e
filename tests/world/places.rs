//! Nodes in several places: reads stay near while they can, go on zone by zone when they cannot, and come back.
//!
//! Distances are those of proxies that hold back what passes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use diesel_async::RunQueryDsl;
use diesel_replicated::config::{HealthConfig, Policy};
use diesel_replicated::policy::{Candidate, LoadBalancingPolicy};
use diesel_replicated::status::{Degradation, NodeHealth, NodeKind};
use diesel_replicated::testing::{LocalCluster, LocalNode, StopMode};
use diesel_replicated::{
    Builder, Consistency, NodeConfig, ReplicatedConnection, ReplicatedPool, Route,
};
use parking_lot::Mutex;

use crate::support::{all_up, always, count, eventually, insert, on, own_cluster, own_cluster_of};

/// Where each node is.
const ZONES: [(&str, &str); 5] = [
    ("primary", "b"),
    ("replica-1", "a"),
    ("replica-2", "a"),
    ("replica-3", "b"),
    ("replica-4", "c"),
];

/// A pool over these nodes, each behind a proxy and in its zone.
fn builder<'a>(nodes: impl IntoIterator<Item = &'a LocalNode>) -> Builder {
    let zones = BTreeMap::from(ZONES);
    let often = HealthConfig::default().interval(Duration::from_millis(100));
    let builder = ReplicatedPool::builder().health(often);
    nodes.into_iter().fold(builder, |builder, node| {
        let url = node.proxied_url("app").unwrap();
        let config = NodeConfig::new(url).name(node.name());
        builder.node(config.zone(zones[node.name()]))
    })
}

async fn built(builder: Builder) -> ReplicatedPool {
    let pool = builder.build().await.unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    pool
}

/// Where a read goes on a connection that is taken for it alone.
async fn read(pool: &ReplicatedPool) -> Route {
    let mut conn = pool.get().await.unwrap();
    count(&mut conn).await;
    conn.last_route().unwrap()
}

/// How many of so many reads went to each node.
async fn reads(pool: &ReplicatedPool, times: u32) -> BTreeMap<String, u32> {
    let mut nodes = BTreeMap::new();
    for _ in 0..times {
        *nodes.entry(read(pool).await.node).or_default() += 1;
    }
    nodes
}

async fn zone_of(conn: &mut ReplicatedConnection) -> Option<String> {
    count(conn).await;
    conn.last_route().unwrap().zone
}

fn health(pool: &ReplicatedPool, node: &str) -> NodeHealth {
    pool.status().node(node).unwrap().health
}

// seaweedfs #2441: "prefer this data centre" read the other one, too. scylladb #9077: a warmer cache far away won over the near
// node. gocql #1557: a filter that never breaks out, or none at all. yugabyte-db #12462, java-driver PR 1896: no order among the
// zones to fall back to.
#[tokio::test]
async fn reads_stay_near_while_they_can_and_go_on_zone_by_zone() {
    let local = own_cluster_of(4).await;
    let pool = built(builder(local.nodes()).prefer_zones(["a", "b"])).await;
    let near = reads(&pool, 60).await;
    assert_eq!(Vec::from_iter(near.keys()), ["replica-1", "replica-2"]);
    let route = read(&pool).await;
    assert_eq!((route.zone.as_deref(), route.far), (Some("a"), false));
    assert!(pool.status().routing.far.is_empty());

    let mut kept = pool.get().await.unwrap();
    assert_eq!(zone_of(&mut kept).await.as_deref(), Some("a"));
    for (gone, next) in [
        (["replica-1", "replica-2"].as_slice(), "replica-3"),
        (&["replica-3"], "replica-4"),
    ] {
        for name in gone {
            on(&local, |local| local.node(name).unwrap().kill().unwrap()).await;
        }
        for _ in 0..20 {
            assert_eq!(read(&pool).await.node, next);
        }
    }
    // One that is kept has moved as well.
    assert_eq!(zone_of(&mut kept).await.as_deref(), Some("c"));
    assert!(read(&pool).await.far);
    let far = pool.status().routing.far;
    let far: Vec<_> = far
        .iter()
        .map(|it| (it.zone.as_deref(), it.statements))
        .collect();
    assert_eq!(far, [(Some("b"), 20), (Some("c"), 22)]);

    // What went far must not stay there.
    on(&local, |local| local.replicas()[0].start().unwrap()).await;
    eventually("the near one is back", || async {
        read(&pool).await.node == "replica-1"
    })
    .await;
    assert_eq!(zone_of(&mut kept).await.as_deref(), Some("a"));
    assert_eq!(
        reads(&pool, 20).await,
        [("replica-1".to_owned(), 20)].into()
    );
}

// Envoy sends what a zone is too busy for to other zones; a peak of one place is then a peak of all.
#[tokio::test]
async fn a_busy_near_node_sends_nobody_far() {
    let local = own_cluster_of(4).await;
    let nodes = [local.primary(), &local.replicas()[0], &local.replicas()[2]];
    let pool = built(builder(nodes).prefer_zones(["a"]).max_size(1)).await;
    let mut holder = pool.get().await.unwrap();
    assert_eq!(zone_of(&mut holder).await.as_deref(), Some("a"));
    let waiting: Vec<_> = (0..5)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move { read(&pool).await })
        })
        .collect();
    let pending = || async { waiting.iter().all(|task| !task.is_finished()) };
    always("they wait", Duration::from_millis(100), pending).await;
    drop(holder);
    for task in waiting {
        assert_eq!(task.await.unwrap().node, "replica-1");
    }
}

// MongoDB specifications PR 811: who cannot serve counts for nothing. Here: what is near and lacks what must be seen.
#[tokio::test]
async fn what_only_a_far_node_shows_is_read_there() {
    let local = own_cluster_of(4).await;
    let pool = built(builder(local.nodes()).prefer_zones(["a", "b"])).await;
    on(&local, |local| {
        for replica in &local.replicas()[..2] {
            replica.pause_replay().unwrap();
        }
    })
    .await;
    let session = pool.session();
    let mut writer = session.get().await.unwrap();
    insert("new").execute(&mut writer).await.unwrap();
    drop(writer);
    let shown = || async {
        let mut reader = session.get().await.unwrap();
        let (rows, route) = (count(&mut reader).await, reader.last_route().unwrap());
        assert_ne!(route.zone.as_deref(), Some("a"), "{rows} rows");
        route.node == "replica-3"
    };
    eventually("the next zone has it", shown).await;
    // Who needs less stays near.
    let mut conn = pool.get().await.unwrap();
    let near = zone_of(&mut conn.with_consistency(Consistency::Eventual)).await;
    assert_eq!(near.as_deref(), Some("a"));
    drop(conn);
    on(&local, |local| {
        for replica in &local.replicas()[..2] {
            replica.resume_replay().unwrap();
        }
    })
    .await;
    let near = || async {
        let mut reader = session.get().await.unwrap();
        zone_of(&mut reader).await.as_deref() == Some("a")
    };
    eventually("it is read near again", near).await;
}

// moped #289: always the one with the least round trip, so all run there. mongo-php-driver #522: any node at all.
// mongodb-core PR 331: sorted the wrong way round.
#[tokio::test]
async fn nearest_is_a_window_and_not_a_single_node() {
    let local = own_cluster_of(4).await;
    for replica in &local.replicas()[2..] {
        replica.proxied_url("app").unwrap();
        replica.proxy().unwrap().delay(Duration::from_millis(60));
    }
    let window = Duration::from_millis(40);
    let pool = built(builder(local.nodes()).policy(Policy::Nearest { window })).await;
    let measured = || async {
        let status = pool.status();
        let took = |node: &str| status.node(node).unwrap().round_trip;
        let far = |node: &str| took(node).is_some_and(|it| it > Duration::from_millis(110));
        let near = |node: &str| took(node).is_some_and(|it| it < Duration::from_millis(30));
        far("replica-3") && far("replica-4") && near("replica-1") && near("replica-2")
    };
    eventually("round trips are measured", measured).await;
    let near = reads(&pool, 100).await;
    assert_eq!(Vec::from_iter(near.keys()), ["replica-1", "replica-2"]);
    // Without the near ones the window begins at the next, and not at those that cannot serve.
    for name in ["replica-1", "replica-2"] {
        pool.drain_replica(name).await.unwrap();
    }
    let far = reads(&pool, 20).await;
    assert_eq!(Vec::from_iter(far.keys()), ["replica-3", "replica-4"]);
}

// ray #39169, orca PR 18877: a health check that is meant for one place takes whoever is on another continent for ill.
#[tokio::test]
async fn who_is_far_is_not_slow() {
    let local = own_cluster_of(4).await;
    let far = &local.replicas()[2];
    far.proxied_url("app").unwrap();
    far.proxy().unwrap().delay(Duration::from_millis(60));
    let strict = HealthConfig::default()
        .interval(Duration::from_millis(50))
        .slow_factor(2.0)
        .slow_floor(Duration::from_millis(20));
    let nodes = [
        &local.replicas()[0],
        &local.replicas()[1],
        far,
        local.primary(),
    ];
    let zones = |node: &LocalNode| {
        if node.name() == "replica-3" {
            "far"
        } else {
            "near"
        }
    };
    let pool = nodes
        .into_iter()
        .fold(ReplicatedPool::builder(), |builder, node| {
            let url = node.proxied_url("app").unwrap();
            let node = NodeConfig::new(url).name(node.name()).zone(zones(node));
            builder.node(node)
        })
        .prefer_zones(["near"])
        .health(strict);
    let pool = built(pool).await;
    let measured = || async {
        let took = pool.status().node("replica-3").unwrap().round_trip;
        took.is_some_and(|it| it > Duration::from_millis(110))
    };
    eventually("its round trip is measured", measured).await;
    always("it is up", Duration::from_millis(600), || async {
        health(&pool, "replica-3") == NodeHealth::Up
    })
    .await;
}

// yugabyte-db #11231: a zone that is written wrongly is ignored with a line in a log, and reads go everywhere.
// csharp-driver PR 88: a local data centre that is guessed may be the wrong one; here nothing is guessed.
#[tokio::test]
async fn a_zone_that_no_node_is_in_is_told() {
    let local = own_cluster_of(4).await;
    let pool = built(builder(local.nodes()).prefer_zones(["eu-wset"])).await;
    let status = pool.status();
    let told = status
        .degraded
        .iter()
        .find(|it| it.reason == Degradation::NoPreferredZone);
    let detail = &told.unwrap().detail;
    assert!(
        detail.contains("eu-wset") && detail.contains("a, b, c"),
        "{detail}"
    );
    // It serves all the same.
    assert_eq!(read(&pool).await.kind, NodeKind::Replica);
    pool.close(Duration::from_secs(5)).await;

    let pool = built(builder(local.nodes()).prefer_zones(["nowhere", "c"])).await;
    assert_eq!(
        reads(&pool, 10).await,
        [("replica-4".to_owned(), 10)].into()
    );
    assert_eq!(pool.status().degraded, []);
}

// A failover may carry the writes over the ocean, and nothing fails; so it must be told.
#[tokio::test]
async fn a_primary_that_has_moved_away_is_told() {
    let local = own_cluster_of(4).await;
    let pool = built(builder(local.nodes()).prefer_zones(["b"])).await;
    assert!(!pool.status().primary_is_far);
    on(&local, |local| {
        local.primary().stop(StopMode::Immediate).unwrap();
        local.replicas()[3].promote().unwrap();
    })
    .await;
    let mut conn = pool.get().await.unwrap();
    insert("far away").execute(&mut conn).await.unwrap();
    let route = conn.last_route().unwrap();
    assert_eq!(
        (route.node.as_str(), route.zone.as_deref()),
        ("replica-4", Some("c"))
    );
    assert!(route.far);
    let status = pool.status();
    assert!(status.primary_is_far);
    let node = status.node("replica-4").unwrap();
    assert_eq!((node.zone.as_deref(), node.distance), (Some("c"), 1));
    // A write has no choice, so it is no read that went far.
    assert!(health(&pool, "primary") == NodeHealth::Down || status.routing.far.is_empty());
}

/// Notes what it is told of the candidates.
#[derive(Clone, Debug, Default)]
struct Curious(Arc<Mutex<Vec<Told>>>);

/// Name and zone, round trip, lag.
type Told = (String, Option<Duration>, Option<Duration>);

impl LoadBalancingPolicy for Curious {
    fn pick(&self, candidates: &[Candidate<'_>], _: &mut dyn FnMut() -> u64) -> usize {
        let told = |it: &Candidate<'_>| {
            let place = format!("{} in {}", it.name, it.zone.unwrap_or_default());
            (place, it.round_trip(), it.lag())
        };
        *self.0.lock() = candidates.iter().map(told).collect();
        0
    }
}

#[tokio::test]
async fn a_policy_is_told_round_trip_lag_and_zone() {
    let local = own_cluster_of(4).await;
    let curious = Curious::default();
    let policy = curious.clone();
    let pool = built(
        builder(local.nodes())
            .prefer_zones(["a"])
            .custom_policy(policy),
    )
    .await;
    let mut conn = pool.get().await.unwrap();
    insert("so that there is something to lag behind")
        .execute(&mut conn)
        .await
        .unwrap();
    drop(conn);
    let told = || async {
        read(&pool).await;
        let told = curious.0.lock().clone();
        // With one that can serve there is no choice.
        let names: Vec<_> = told.iter().map(|(name, ..)| name.as_str()).collect();
        names == ["replica-1 in a", "replica-2 in a"]
            && told
                .iter()
                .all(|(_, round_trip, lag)| round_trip.is_some() && lag.is_some())
    };
    eventually("all is told", told).await;
}

/// The primary far, one replica near and one far.
async fn three() -> (Arc<LocalCluster>, ReplicatedPool) {
    let local = own_cluster().await;
    let zones = [
        (local.primary(), "b"),
        (&local.replicas()[0], "a"),
        (&local.replicas()[1], "b"),
    ];
    let builder = zones
        .into_iter()
        .fold(ReplicatedPool::builder(), |builder, (node, zone)| {
            let url = node.proxied_url("app").unwrap();
            builder.node(NodeConfig::new(url).name(node.name()).zone(zone))
        })
        .prefer_zones(["a"]);
    (Arc::clone(&local), built(builder).await)
}

// A server ends an idle connection, or one that holds up others. The node is being checked then, and well.
#[tokio::test]
async fn a_lost_connection_sends_nobody_far() {
    let (local, pool) = three().await;
    let mut kept = pool.get().await.unwrap();
    for _ in 0..5 {
        zone_of(&mut kept).await;
        on(&local, |local| {
            let end = "SELECT pg_terminate_backend(pid, 20000) FROM pg_stat_activity \
                WHERE backend_type = 'client backend' AND query LIKE '%count%users%' AND pid <> pg_backend_pid()";
            local.replicas()[0].sql("app", end).unwrap();
        })
        .await;
        for _ in 0..20 {
            assert_eq!(read(&pool).await.node, "replica-1");
            assert_eq!(zone_of(&mut kept).await.as_deref(), Some("a"));
        }
    }
}

// A node that is slow beside those further away still serves its zone. What has made it slow would come to the next zone, too.
#[tokio::test]
async fn a_slow_near_node_is_told_and_keeps_its_zone() {
    let (local, pool) = three().await;
    local.replicas()[0]
        .proxy()
        .unwrap()
        .delay(Duration::from_millis(100));
    let slow = || async { health(&pool, "replica-1") == NodeHealth::Slow };
    eventually("it is slow", slow).await;
    let mut kept = pool.get().await.unwrap();
    for _ in 0..30 {
        assert_eq!(read(&pool).await.node, "replica-1");
        assert_eq!(zone_of(&mut kept).await.as_deref(), Some("a"));
    }
}

// Without an order of zones nothing changes: what makes one node slow beside others is found.
#[tokio::test]
async fn zones_without_an_order_hide_no_slow_node() {
    let local = own_cluster_of(4).await;
    let strict = HealthConfig::default()
        .interval(Duration::from_millis(50))
        .slow_floor(Duration::from_millis(20));
    let pool = built(builder(local.nodes()).health(strict)).await;
    local.replicas()[3]
        .proxy()
        .unwrap()
        .delay(Duration::from_millis(150));
    let slow = || async { health(&pool, "replica-4") == NodeHealth::Slow };
    eventually("the only one of its zone is slow", slow).await;
}

// Who holds the primary's connection may not wait for another with it. Where the primary is far, it gives that back.
#[tokio::test]
async fn who_has_written_far_away_reads_near_though_he_has_to_wait() {
    let (_local, pool) = three().await;
    pool.set_max_size("replica-1", 1).await.unwrap();
    let session = pool.session();
    let mut writer = session.get().await.unwrap();
    insert("far").execute(&mut writer).await.unwrap();
    let near = || async {
        let mut other = session.get().await.unwrap();
        zone_of(&mut other).await.as_deref() == Some("a")
    };
    eventually("it is near", near).await;
    let mut holder = pool.get().await.unwrap();
    assert_eq!(zone_of(&mut holder).await.as_deref(), Some("a"));
    let reading = tokio::spawn(async move {
        let seen = writer.snapshot(async |conn| Ok::<_, diesel::result::Error>(count(conn).await));
        seen.await.unwrap();
        writer.last_route().unwrap()
    });
    always("it waits", Duration::from_millis(100), || async {
        !reading.is_finished()
    })
    .await;
    drop(holder);
    assert_eq!(reading.await.unwrap().node, "replica-1");
}

// One that is slow is better than none: a read waits for the others no longer than it would take there.
#[tokio::test]
async fn a_read_that_has_waited_long_takes_a_slow_replica() {
    let local = own_cluster().await;
    let [quick, slow] = [&local.replicas()[0], &local.replicas()[1]];
    slow.proxied_url("app").unwrap();
    let builder = [local.primary(), quick, slow]
        .into_iter()
        .fold(ReplicatedPool::builder(), |builder, node| {
            builder.node(NodeConfig::new(node.proxied_url("app").unwrap()).name(node.name()))
        })
        .max_size(1);
    let pool = built(builder).await;
    slow.proxy().unwrap().delay(Duration::from_millis(40));
    let avoided = || async { !reads(&pool, 20).await.contains_key("replica-2") };
    eventually("the slow one is avoided", avoided).await;
    let mut holder = pool.get().await.unwrap();
    assert_eq!(count(&mut holder).await, 3);
    assert_eq!(holder.last_route().unwrap().node, "replica-1");
    for _ in 0..3 {
        assert_eq!(read(&pool).await.node, "replica-2");
    }
}

// A connection that has gone far returns to a primary that reads are meant for, too.
#[tokio::test]
async fn a_near_primary_that_is_given_reads_gets_those_that_were_far() {
    let local = own_cluster_of(4).await;
    let nodes = [local.primary(), &local.replicas()[3]];
    let pool = built(builder(nodes).prefer_zones(["b"])).await;
    let mut kept = pool.get().await.unwrap();
    assert_eq!(zone_of(&mut kept).await.as_deref(), Some("c"));
    pool.set_weight("primary", 1).await.unwrap();
    assert_eq!(zone_of(&mut kept).await.as_deref(), Some("b"));
    // A view of replicas stays with them, and counts.
    let before = pool.status().routing.far[0].statements;
    assert_eq!(zone_of(&mut kept.replica()).await.as_deref(), Some("c"));
    assert_eq!(pool.status().routing.far[0].statements, before + 1);
}
