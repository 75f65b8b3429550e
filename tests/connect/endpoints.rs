//! One name over several servers: reader endpoints, balancers, names with several addresses.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use diesel_replicated::config::{ConsistencyConfig, HealthConfig};
use diesel_replicated::connection::{Replicas, Stage};
use diesel_replicated::status::{Degradation, RouteReason};
use diesel_replicated::testing::LocalCluster;
use diesel_replicated::{Builder, Consistency, NodeConfig, ReplicatedConnection, ReplicatedPool};

use crate::balancer::balancer;
use crate::support::{blocking, count, eventually, fill, insert, on, own_cluster, users};

pub(crate) fn at(port: u16) -> String {
    format!("postgres://postgres@127.0.0.1:{port}/app")
}

/// A pool over the primary, `rw`, and a name over other servers, `ro`, which is known to lead to several.
async fn endpoint(
    local: &LocalCluster,
    ports: &[u16],
    consistency: ConsistencyConfig,
) -> ReplicatedPool {
    endpoint_with(local, ports, |builder| builder.consistency(consistency)).await
}

async fn endpoint_with(
    local: &LocalCluster,
    ports: &[u16],
    change: impl FnOnce(Builder) -> Builder,
) -> ReplicatedPool {
    let (port, _to) = balancer(ports).await;
    let builder = ReplicatedPool::builder()
        .primary(NodeConfig::new(local.primary().url("app")).name("rw"))
        .replica(NodeConfig::new(at(port)).name("ro"))
        .health(HealthConfig::default().interval(Duration::from_millis(200)))
        .max_size(20);
    let pool = change(builder).build().await.unwrap();
    is_found_to_lead_to_several(&pool).await;
    pool
}

/// Opens connections until one has led to another server than those before.
pub(crate) async fn is_found_to_lead_to_several(pool: &ReplicatedPool) {
    let held = std::sync::Mutex::new(Vec::new());
    eventually("it is known to lead to several", async || {
        if held.lock().unwrap().len() == 16 {
            held.lock().unwrap().clear();
        }
        let mut conn = pool.get().await.unwrap();
        conn.set_consistency(Consistency::Eventual);
        count(&mut conn).await;
        held.lock().unwrap().push(conn);
        // What leads elsewhere is found by those who care.
        let mut strict = pool.get().await.unwrap();
        count(&mut strict).await;
        let told = pool.status().degraded;
        told.iter()
            .any(|what| what.reason == Degradation::SeveralServers)
    })
    .await;
}

pub(crate) async fn pause(local: &Arc<LocalCluster>, replica: usize) {
    on(local, move |local| {
        local.wait_caught_up().unwrap();
        local.replicas()[replica].pause_replay().unwrap();
    })
    .await;
}

/// Reads over several connections at once, and asserts that each sees as many rows. Returns how many were served by
/// which node.
async fn all_see(pool: &ReplicatedPool, rows: i64, served: &mut BTreeMap<String, u32>) {
    let mut held: Vec<ReplicatedConnection> = Vec::new();
    for _ in 0..6 {
        let mut conn = pool.get().await.unwrap();
        assert_eq!(count(&mut conn).await, rows, "{:?}", conn.last_route());
        *served.entry(conn.last_route().unwrap().node).or_default() += 1;
        held.push(conn);
    }
}

// CloudNativePG's and Aurora's reader endpoints, HAProxy; pgdog 912, 1156, multigres 21: the position is asked on the very
// connection. 134 of 200 own reads were stale, 121 of 181 causal ones, 100 of 133 strong ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_endpoint_serves_what_a_session_must_see() {
    for level in [
        Consistency::ReadYourWrites,
        Consistency::Causal,
        Consistency::Strong,
    ] {
        let local = own_cluster().await;
        let ports = [0, 1].map(|n| local.replicas()[n].port());
        let consistency = ConsistencyConfig::from(level)
            .strong_reads_on_replicas(true)
            .wait(Duration::from_millis(50));
        let pool = endpoint(&local, &ports, consistency).await;
        pause(&local, 1).await;
        let mut writer = pool.get().await.unwrap();
        let mut rows = count(&mut writer.primary()).await;
        let mut served = BTreeMap::new();
        for number in 0..20 {
            insert(&format!("user {number}"))
                .execute(&mut writer)
                .await
                .unwrap();
            rows += 1;
            all_see(&pool, rows, &mut served).await;
        }
        assert!(served.contains_key("ro"), "{level}: {served:?}");
        assert_eq!(pool.status().node("ro").unwrap().servers.len(), 2);
        // What one of the servers has says nothing of the other.
        let wait = Duration::from_millis(20);
        let applied = writer
            .wait_for_replicas(Replicas::All, Stage::Applied, wait)
            .await;
        assert!(!applied.unwrap().is_met);
    }
}

// postgres-operator 3311, charts 140: behind the name is a server that is none of this cluster.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_server_behind_a_reader_endpoint_serves_nothing() {
    let local = own_cluster().await;
    let other = own_cluster().await;
    let ports = [local.replicas()[0].port(), other.replicas()[0].port()];
    let (port, leads) = balancer(&ports[..1]).await;
    let pool = ReplicatedPool::builder()
        .primary(NodeConfig::new(local.primary().url("app")).name("rw"))
        .replica(NodeConfig::new(at(port)).name("ro"))
        .health(HealthConfig::default().interval(Duration::from_millis(200)))
        .max_size(20)
        .build()
        .await
        .unwrap();
    let mut writer = pool.get().await.unwrap();
    let mut rows = count(&mut writer.primary()).await;
    on(&other, |other| {
        other
            .primary()
            .sql("app", "INSERT INTO users (name) VALUES ('foreign')")
            .unwrap();
        other.wait_caught_up().unwrap();
    })
    .await;
    *leads.lock().unwrap() = ports.to_vec();
    let mut served = BTreeMap::new();
    for number in 0..15 {
        let mut held = Vec::new();
        for _ in 0..4 {
            let mut conn = pool.get().await.unwrap();
            conn.set_consistency(Consistency::Eventual);
            let foreign = users::table.filter(users::name.eq("foreign")).count();
            assert_eq!(foreign.get_result::<i64>(&mut conn).await, Ok(0));
            held.push(conn);
        }
        drop(held);
        insert(&format!("user {number}"))
            .execute(&mut writer)
            .await
            .unwrap();
        rows += 1;
        all_see(&pool, rows, &mut served).await;
    }
}

// No older than asked for, by each server itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_endpoint_serves_nothing_that_is_too_old() {
    let local = own_cluster().await;
    let ports = [0, 1].map(|n| local.replicas()[n].port());
    let age = Duration::from_millis(1500);
    let level = ConsistencyConfig::from(Consistency::BoundedStaleness(age));
    let pool = endpoint(&local, &ports, level).await;
    pause(&local, 1).await;
    let mut writer = pool.get().await.unwrap();
    let before = count(&mut writer.primary()).await;
    insert("new").execute(&mut writer).await.unwrap();
    tokio::time::sleep(age).await;
    let mut served = BTreeMap::new();
    for _ in 0..10 {
        all_see(&pool, before + 1, &mut served).await;
    }
    assert!(served.contains_key("ro"), "{served:?}");
}

// A read-only transaction and a snapshot over a reader endpoint.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_transaction_over_a_reader_endpoint_sees_what_was_written() {
    let local = own_cluster().await;
    let ports = [0, 1].map(|n| local.replicas()[n].port());
    let pool = endpoint_with(&local, &ports, |builder| {
        builder.read_only_transactions_on_replicas(true)
    })
    .await;
    pause(&local, 1).await;
    let mut writer = pool.get().await.unwrap();
    let mut rows = count(&mut writer.primary()).await;
    let mut on_replica = 0;
    for number in 0..15 {
        insert(&format!("user {number}"))
            .execute(&mut writer)
            .await
            .unwrap();
        rows += 1;
        let mut held = Vec::new();
        for _ in 0..4 {
            let mut conn = pool.get().await.unwrap();
            let seen = conn
                .build_transaction()
                .read_only()
                .run(async |conn| Ok::<_, diesel::result::Error>(count(conn).await))
                .await
                .unwrap();
            assert_eq!(seen, rows, "{:?}", conn.last_route());
            on_replica += u32::from(conn.last_route().unwrap().node == "ro");
            held.push(conn);
        }
    }
    assert!(on_replica > 0);
}

// After a failover each server is trusted anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_with_a_reader_endpoint() {
    let local = own_cluster().await;
    let ports = [0, 1].map(|n| local.replicas()[n].port());
    let (ro, _to) = balancer(&ports).await;
    let (rw, leads) = balancer(&[local.primary().port()]).await;
    let pool = ReplicatedPool::builder()
        .primary(NodeConfig::new(at(rw)).name("rw"))
        .replica(NodeConfig::new(at(ro)).name("ro"))
        .health(HealthConfig::default().interval(Duration::from_millis(200)))
        .max_size(20)
        .build()
        .await
        .unwrap();
    let mut writer = pool.get().await.unwrap();
    insert("before").execute(&mut writer).await.unwrap();
    drop(writer);
    let rows = on(&local, |local| {
        local.wait_caught_up().unwrap();
        let rows = local
            .primary()
            .sql("app", "SELECT count(*) FROM users")
            .unwrap();
        local.primary().kill().unwrap();
        local.replicas()[0].promote().unwrap();
        local.replicas()[1].follow(&local.replicas()[0]).unwrap();
        rows
    })
    .await;
    *leads.lock().unwrap() = vec![ports[0]];
    let mut rows: i64 = rows[0][0].as_deref().unwrap().parse().unwrap();
    for number in 0..20 {
        let mut writer = pool.get().await.unwrap();
        insert(&format!("after {number}"))
            .execute(&mut writer)
            .await
            .unwrap();
        rows += 1;
        let mut served = BTreeMap::new();
        all_see(&pool, rows, &mut served).await;
    }
}

// A role that may not ask where a server is: what must be seen is read on the primary, and the rest is served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_endpoint_that_may_not_be_asked() {
    let local = own_cluster().await;
    on(&local, |local| {
        let role = "CREATE ROLE app LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO app; \
            GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO app; \
            REVOKE EXECUTE ON FUNCTION pg_control_system(), pg_control_checkpoint(), pg_control_recovery() FROM PUBLIC";
        local.primary().sql("app", role).unwrap();
        local.wait_caught_up().unwrap();
    })
    .await;
    let ports = [0, 1].map(|n| local.replicas()[n].port());
    let (port, _to) = balancer(&ports).await;
    let url = |port| at(port).replace("postgres@", "app@");
    let pool = ReplicatedPool::builder()
        .primary(NodeConfig::new(url(local.primary().port())).name("rw"))
        .replica(NodeConfig::new(url(port)).name("ro"))
        .health(HealthConfig::default().interval(Duration::from_millis(200)))
        .max_size(20)
        .build()
        .await
        .unwrap();
    pause(&local, 1).await;
    let mut writer = pool.get().await.unwrap();
    let mut rows = count(&mut writer.primary()).await;
    let mut served = BTreeMap::new();
    for number in 0..15 {
        insert(&format!("user {number}"))
            .execute(&mut writer)
            .await
            .unwrap();
        rows += 1;
        all_see(&pool, rows, &mut served).await;
    }
    eventually("what may be old is served", async || {
        let mut conn = pool.get().await.unwrap();
        conn.set_consistency(Consistency::Eventual);
        count(&mut conn).await;
        conn.last_route().unwrap().node == "ro"
    })
    .await;
}

/// A cluster with a role `app` that owns nothing and has no grant of `pg_monitor`.
async fn cluster_without_grants(replicas: usize) -> Arc<LocalCluster> {
    let local = blocking(move || {
        let local = LocalCluster::builder().replicas(replicas).start().unwrap();
        fill(&local, "app");
        let role = "CREATE ROLE app LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO app; \
            GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO app";
        local.primary().sql("app", role).unwrap();
        local.wait_caught_up().unwrap();
        local
    });
    Arc::new(local.await)
}

// A role without grants, as CloudNativePG's `app` is: after a failover its standbys tell the new timeline only with their next
// restartpoint, but show what the new primary has done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_endpoint_serves_again_after_a_failover_without_grants() {
    let local = cluster_without_grants(3).await;
    let ports = [0, 1, 2].map(|n| local.replicas()[n].port());
    let (ro, reads) = balancer(&ports[1..]).await;
    let (rw, leads) = balancer(&[local.primary().port()]).await;
    let url = |port| at(port).replace("postgres@", "app@");
    let pool = ReplicatedPool::builder()
        .primary(NodeConfig::new(url(rw)).name("rw"))
        .replica(NodeConfig::new(url(ro)).name("ro"))
        .health(HealthConfig::default().interval(Duration::from_millis(200)))
        .max_size(20)
        .build()
        .await
        .unwrap();
    drop(reads);
    is_found_to_lead_to_several(&pool).await;
    on(&local, |local| {
        local.wait_caught_up().unwrap();
        local.primary().kill().unwrap();
        local.replicas()[0].promote().unwrap();
        local.replicas()[1].follow(&local.replicas()[0]).unwrap();
        local.replicas()[2].follow(&local.replicas()[0]).unwrap();
    })
    .await;
    *leads.lock().unwrap() = vec![ports[0]];
    let mut conn = pool.get().await.unwrap();
    insert("after").execute(&mut conn).await.unwrap();
    eventually("the endpoint serves what a session must see", async || {
        let mut conn = pool.get().await.unwrap();
        let before = count(&mut conn.primary()).await;
        insert(&format!("{:?}", std::time::Instant::now()))
            .execute(&mut conn)
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(count(&mut conn).await, before + 1);
        conn.last_route().unwrap().node == "ro"
    })
    .await;
}

// patroni 1894, orchestrator 88: a standby that lagged is promoted, and a name goes over to it. How far
// another server behind that name had come says nothing of the new primary.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_goes_over_to_a_promoted_standby_that_lagged() {
    let local = cluster_without_grants(2).await;
    let [one, two] = [0, 1].map(|n| local.replicas()[n].port());
    let (port, to) = balancer(&[one]).await;
    let url = |port| at(port).replace("postgres@", "app@");
    let pool = ReplicatedPool::builder()
        .primary(NodeConfig::new(url(local.primary().port())).name("rw"))
        .replica(NodeConfig::new(url(port)).name("ro"))
        .health(HealthConfig::default().interval(Duration::from_millis(200)))
        .build()
        .await
        .unwrap();
    on(&local, |local| local.replicas()[1].detach().unwrap()).await;
    let mut conn = pool.get().await.unwrap();
    insert("lost").execute(&mut conn).await.unwrap();
    let rows = count(&mut conn).await;
    let conn = tokio::sync::Mutex::new(conn);
    eventually("the first server shows the write", async || {
        let mut conn = conn.lock().await;
        assert_eq!(count(&mut conn).await, rows);
        conn.last_route().unwrap().node == "ro"
    })
    .await;
    // Its monitor has seen that, too.
    tokio::time::sleep(Duration::from_millis(500)).await;
    *to.lock().unwrap() = vec![two];
    on(&local, |local| {
        // Nobody asks the second server while it is a standby.
        local.replicas()[1].promote().unwrap();
        local.primary().kill().unwrap();
        local.replicas()[0].kill().unwrap();
    })
    .await;
    eventually("the session reads again", async || {
        let mut conn = conn.lock().await;
        let read: Result<i64, _> = users::table.count().get_result(&mut conn).await;
        read.is_ok()
    })
    .await;
    let mut conn = conn.into_inner();
    let route = conn.last_route().unwrap();
    assert_eq!(route.reason, RouteReason::LostWrite, "{route:?}");
    assert!(count(&mut conn).await < rows);
}

// repmgr 439, 821: a standby is promoted by mistake, and a name leads to one that follows it. It is ahead in the log,
// and nobody here has heard where its timeline began.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_leads_to_a_follower_of_a_rogue_primary() {
    let local = Arc::new(
        blocking(|| {
            let local = LocalCluster::builder().replicas(3).start().unwrap();
            fill(&local, "app");
            local.wait_caught_up().unwrap();
            local
        })
        .await,
    );
    let ports = [0, 1, 2].map(|n| local.replicas()[n].port());
    let (port, to) = balancer(&ports[..1]).await;
    let pool = ReplicatedPool::builder()
        .primary(NodeConfig::new(local.primary().url("app")).name("rw"))
        .replica(NodeConfig::new(at(port)).name("ro"))
        .health(HealthConfig::default().interval(Duration::from_millis(200)))
        .failover_wait(Duration::from_millis(20))
        .build()
        .await
        .unwrap();
    on(&local, |local| {
        let (rogue, follower) = (&local.replicas()[1], &local.replicas()[2]);
        // The rogue one has all that its follower has.
        follower.detach().unwrap();
        local.primary().sql("app", "CREATE TABLE ahead ()").unwrap();
        while rogue.sql("app", "SELECT FROM ahead").is_err() {
            std::thread::sleep(Duration::from_millis(10));
        }
        rogue.promote().unwrap();
        follower.follow(rogue).unwrap();
        let much = "CREATE TABLE much AS SELECT repeat('x', 1000) FROM generate_series(1, 5000)";
        rogue.sql("app", much).unwrap();
    })
    .await;
    let mut conn = pool.get().await.unwrap();
    insert("here").execute(&mut conn).await.unwrap();
    let rows = count(&mut conn).await;
    let conn = tokio::sync::Mutex::new(conn);
    *to.lock().unwrap() = vec![ports[2]];
    on(&local, |local| local.replicas()[0].kill().unwrap()).await;
    let read = async || {
        let mut conn = conn.lock().await;
        let read: Result<i64, _> = users::table.count().get_result(&mut conn).await;
        let route = conn.last_route().unwrap();
        if read.is_ok_and(|shown| shown < rows) {
            assert_eq!(route.reason, RouteReason::LostWrite, "{route:?}");
        }
    };
    eventually("the pool has heard of the other timeline", async || {
        read().await;
        let nodes = pool.status().nodes;
        nodes.iter().any(|node| node.timeline == Some(2))
    })
    .await;
    for _ in 0..50 {
        read().await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
