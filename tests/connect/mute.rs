//! Servers that do not tell their position: Aurora refuses the functions for that to everybody.
//!
//! Reports: `distribute_reads` 46, pghero 168, integrations-core 6399, nagios-plugins 542, canvas-lms 1636, Materialize 19880.

use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel_async::RunQueryDsl;
use diesel_replicated::config::{ConsistencyConfig, HealthConfig, WriteScope};
use diesel_replicated::status::{NodeHealth, RouteReason};
use diesel_replicated::testing::{LocalCluster, StopMode};
use diesel_replicated::{
    Builder, Consistency, NodeConfig, PositionSource, ReplicatedConnection, ReplicatedPool,
};

use crate::balancer::balancer;
use crate::endpoints::{at, is_found_to_lead_to_several, pause};
use crate::support::{blocking, builder_for, count, eventually, fill, insert};

const OF_READERS: [&str; 2] = ["pg_last_wal_replay_lsn", "pg_last_wal_receive_lsn"];
const OF_WRITERS: [&str; 2] = ["pg_current_wal_insert_lsn", "pg_current_wal_flush_lsn"];

/// A cluster whose servers have these functions in the database of the application, and refuse them to everybody. They can be
/// called by another name.
async fn refusing(functions: &'static [&'static str]) -> Arc<LocalCluster> {
    refusing_where(functions, "true").await
}

/// The same where this holds.
async fn refusing_where(
    functions: &'static [&'static str],
    condition: &'static str,
) -> Arc<LocalCluster> {
    let start = move || {
        let local = LocalCluster::builder()
            .setting("allow_system_table_mods", "on")
            .start()
            .unwrap();
        fill(&local, "app");
        for function in functions {
            let refuse = format!(
                "ALTER FUNCTION pg_catalog.{function}() RENAME TO {function}_of_old; \
                 CREATE FUNCTION pg_catalog.{function}() RETURNS pg_lsn LANGUAGE plpgsql AS $$ BEGIN \
                 IF {condition} THEN \
                 RAISE feature_not_supported USING MESSAGE = 'Function {function}() is currently not supported for Aurora'; \
                 END IF; RETURN pg_catalog.{function}_of_old(); END $$"
            );
            local.primary().sql("app", &refuse).unwrap();
        }
        local.wait_caught_up().unwrap();
        Arc::new(local)
    };
    blocking(start).await
}

fn quick() -> HealthConfig {
    HealthConfig::default().interval(Duration::from_millis(200))
}

async fn pool_of(local: &LocalCluster, change: impl FnOnce(Builder) -> Builder) -> ReplicatedPool {
    let builder = builder_for(local, "app").health(quick());
    change(builder).build().await.unwrap()
}

/// A pool over the primary, `rw`, and a name over several servers, `ro`.
async fn endpoint(
    local: &LocalCluster,
    port: u16,
    change: impl FnOnce(Builder) -> Builder,
) -> ReplicatedPool {
    let builder = ReplicatedPool::builder()
        .primary(NodeConfig::new(local.primary().url("app")).name("rw"))
        .replica(NodeConfig::new(at(port)).name("ro"))
        .health(quick())
        .max_size(20);
    change(builder).build().await.unwrap()
}

/// Waits until the pool knows that its replicas do not tell.
async fn are_known_to_refuse(pool: &ReplicatedPool) {
    eventually("replicas are known not to tell", async || {
        let status = pool.status();
        let refuses = |name: &str| {
            let limited = &status.node(name).unwrap().limited;
            limited
                .iter()
                .any(|limit| limit.right.contains("pg_last_wal_replay_lsn"))
        };
        refuses("replica-1") && refuses("replica-2")
    })
    .await;
}

/// As [`eventually`], with a condition that uses connections.
async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn write(conn: &mut ReplicatedConnection, number: i64) -> Instant {
    insert(&format!("user {number}"))
        .execute(conn)
        .await
        .unwrap();
    Instant::now()
}

fn by_replica(conn: &ReplicatedConnection) -> bool {
    conn.last_route().unwrap().node != "primary"
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_refuse_to_tell_a_position_serve_the_rest() {
    let local = refusing(&OF_READERS).await;
    const WAIT: Duration = Duration::from_secs(10);
    let wait = ConsistencyConfig::default().wait(WAIT);
    let pool = pool_of(&local, |builder| builder.consistency(wait)).await;
    are_known_to_refuse(&pool).await;
    eventually("what needs no position is served", async || {
        let mut conn = pool.get().await.unwrap();
        count(&mut conn).await;
        by_replica(&conn)
    })
    .await;
    let mut conn = pool.get().await.unwrap();
    for number in 0..10 {
        let before = count(&mut conn.primary()).await;
        write(&mut conn, number).await;
        assert_eq!(count(&mut conn).await, before + 1);
        let route = conn.last_route().unwrap();
        assert_eq!(
            (route.node.as_str(), route.reason),
            ("primary", RouteReason::OwnWrite)
        );
        // No wait brings what is not told.
        assert!(route.waited < WAIT / 10);
    }
    let status = pool.status();
    for node in &status.nodes {
        assert_eq!(node.monitor_error, None);
        assert_eq!(node.health, NodeHealth::Up, "{node:?}");
    }
    let refused = &status.node("replica-1").unwrap().limited;
    let hopeless = |grant: &str| grant.contains("nothing mends it");
    assert!(
        refused.iter().any(|limit| hopeless(&limit.grant)),
        "{refused:?}"
    );
}

// An assumption counts from the acknowledgement, for the writer and for the pool, whether the writer tells positions or not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn own_writes_are_read_on_the_primary_for_as_long_as_replicas_may_be_behind() {
    const LAG: Duration = Duration::from_millis(300);
    const NOBODY_TELLS: [&str; 4] = [OF_READERS[0], OF_READERS[1], OF_WRITERS[0], OF_WRITERS[1]];
    for functions in [&OF_READERS as &[&str], &NOBODY_TELLS] {
        let local = refusing(functions).await;
        let assumed = ConsistencyConfig::default().assumed_lag(LAG);
        let pool = pool_of(&local, |builder| builder.consistency(assumed)).await;
        are_known_to_refuse(&pool).await;
        let (mut writer, mut other) = (pool.get().await.unwrap(), pool.get().await.unwrap());
        let rows = count(&mut writer.primary()).await;
        for number in 1..=3 {
            let written = write(&mut writer, number).await;
            let mut served = 0;
            until("a replica serves again", async || {
                for conn in [&mut writer, &mut other] {
                    assert_eq!(count(conn).await, rows + number);
                    if by_replica(conn) {
                        assert!(written.elapsed() >= LAG);
                        served += 1;
                    }
                }
                served > 1
            })
            .await;
        }
        // A bound that is not below the assumption, and nothing that is stronger.
        for (level, serves) in [
            (Consistency::BoundedStaleness(LAG), true),
            (Consistency::BoundedStaleness(LAG / 2), false),
            (Consistency::Strong, false),
        ] {
            other.set_consistency(level);
            count(&mut other).await;
            assert_eq!(by_replica(&other), serves, "{level}");
        }
        // What a session has seen it sees again, wherever it reads.
        let mut causal = pool.get().await.unwrap();
        causal.set_consistency(Consistency::Causal);
        count(&mut causal.primary()).await;
        let seen = Instant::now();
        until("a replica serves", async || {
            let began = Instant::now();
            count(&mut causal).await;
            let served = by_replica(&causal);
            assert!(!served || began.duration_since(seen) >= LAG / 2);
            tokio::time::sleep(LAG).await;
            served
        })
        .await;
    }
}

// The reader endpoint of Aurora leads to all readers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_endpoint_over_servers_that_refuse_serves_by_assumption() {
    let local = refusing(&OF_READERS).await;
    let ports = [0, 1].map(|n| local.replicas()[n].port());
    let (port, _to) = balancer(&ports).await;
    let assumed = ConsistencyConfig::default().write_scope(WriteScope::Session);
    let pool = endpoint(&local, port, |builder| {
        builder.consistency(assumed.assumed_lag(Duration::from_millis(100)))
    })
    .await;
    is_found_to_lead_to_several(&pool).await;
    let mut writer = pool.get().await.unwrap();
    let rows = count(&mut writer.primary()).await;
    write(&mut writer, 1).await;
    until("it serves", async || {
        assert_eq!(count(&mut writer).await, rows + 1);
        writer.last_route().unwrap().node == "ro"
    })
    .await;
}

/// The setting `cluster_name` of the second replica: it alone tells its position.
const BUT_ONE: &str = "current_setting('cluster_name') <> 'replica-2'";

// What is assumed of those that do not tell says nothing of a server behind the same name that does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_reader_endpoint_a_server_that_tells_is_asked() {
    const LAG: Duration = Duration::from_millis(300);
    let local = refusing_where(&OF_READERS, BUT_ONE).await;
    let ports = [0, 1].map(|n| local.replicas()[n].port());
    let (port, to) = balancer(&ports[..1]).await;
    let pool = endpoint(&local, port, |builder| {
        builder.consistency(ConsistencyConfig::default().assumed_lag(LAG))
    })
    .await;
    // The one that is asked by the monitor does not tell.
    *to.lock().unwrap() = ports.to_vec();
    is_found_to_lead_to_several(&pool).await;
    pause(&local, 1).await;
    let mut writer = pool.get().await.unwrap();
    let rows = count(&mut writer.primary()).await;
    let written = write(&mut writer, 1).await;
    let mut served = 0;
    until("the one that does not tell serves", async || {
        let mut held = Vec::new();
        for _ in 0..8 {
            let mut conn = pool.get().await.unwrap();
            assert_eq!(count(&mut conn).await, rows + 1, "{:?}", conn.last_route());
            served += i32::from(conn.last_route().unwrap().node == "ro");
            held.push(conn);
        }
        assert!(served == 0 || written.elapsed() >= LAG);
        served > 0
    })
    .await;
}

/// One that takes its time on the primary, and tells nothing on standbys.
#[derive(Debug)]
struct Slow;

impl PositionSource for Slow {
    fn of_primary(&self) -> &str {
        "(SELECT slow_position())"
    }

    fn of_standby(&self) -> &str {
        "NULL::pg_lsn"
    }
}

// An answer tells of the time at which it was given, not of that at which it was asked for: another process's write was
// taken for older than it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_no_older_than_the_answer_that_knows_its_position() {
    const LAG: Duration = Duration::from_millis(1500);
    let local = refusing(&[]).await;
    blocking({
        let local = Arc::clone(&local);
        move || {
            let slow = "CREATE FUNCTION slow_position() RETURNS pg_lsn LANGUAGE plpgsql AS $$ BEGIN \
                PERFORM pg_sleep(0.3); RETURN pg_current_wal_insert_lsn(); END $$";
            local.primary().sql("app", slow).unwrap();
            local.wait_caught_up().unwrap();
        }
    })
    .await;
    let assumed = ConsistencyConfig::default().write_scope(WriteScope::Session);
    // Its tokens tell a position.
    let patient = ConsistencyConfig::default().wait(Duration::from_secs(20));
    let writers = pool_of(&local, |builder| builder.consistency(patient)).await;
    let readers = pool_of(&local, |builder| {
        let assumed = assumed.assumed_lag(LAG);
        builder.consistency(assumed).position_source(Slow)
    })
    .await;
    eventually("it is told that nothing is told", async || {
        let status = readers.status();
        let limited = &status.node("replica-1").unwrap().limited;
        limited
            .iter()
            .any(|limit| limit.right.contains("PositionSource"))
    })
    .await;
    for number in 0..3 {
        let mut writer = writers.get().await.unwrap();
        let written = write(&mut writer, number).await;
        let token = writer.session_token().await;
        until("a replica serves", async || {
            let mut conn = readers.get_with(&token).await.unwrap();
            count(&mut conn).await;
            assert!(!by_replica(&conn) || written.elapsed() >= LAG);
            by_replica(&conn)
        })
        .await;
    }
}

/// Another source of positions, as `aurora_replica_status()` is one.
#[derive(Debug)]
struct Elsewhere;

impl PositionSource for Elsewhere {
    fn of_primary(&self) -> &str {
        "pg_current_wal_insert_lsn_of_old()"
    }

    fn of_standby(&self) -> &str {
        "pg_last_wal_replay_lsn_of_old()"
    }

    fn timeline(&self) -> Option<&str> {
        Some("1")
    }
}

const BOTH: [&str; 3] = [OF_READERS[0], OF_READERS[1], OF_WRITERS[0]];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_source_of_positions_is_as_good_as_the_servers_own() {
    let local = refusing(&BOTH).await;
    let wait = ConsistencyConfig::default().wait(Duration::from_millis(500));
    let pool = pool_of(&local, |builder| {
        builder.consistency(wait).position_source(Elsewhere)
    })
    .await;
    pause(&local, 1).await;
    let mut writer = pool.get().await.unwrap();
    let rows = count(&mut writer.primary()).await;
    let mut served = 0;
    for number in 1..=20 {
        write(&mut writer, number).await;
        let mut other = pool.get().await.unwrap();
        for conn in [&mut writer, &mut other] {
            assert_eq!(count(conn).await, rows + number);
            assert_ne!(conn.last_route().unwrap().node, "replica-2");
            served += i32::from(by_replica(conn));
        }
    }
    assert!(served > 0);
    let status = pool.status();
    for node in &status.nodes {
        assert_eq!(node.monitor_error, None);
        assert!(
            !node
                .limited
                .iter()
                .any(|limit| limit.right.contains("lsn()")),
            "{:?}",
            node.limited
        );
    }
    let lag = |name| status.node(name).unwrap().lag_bytes;
    assert!(lag("replica-2") > lag("replica-1"), "{status:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_source_of_positions_is_asked_over_each_connection_to_a_reader_endpoint() {
    let local = refusing(&BOTH).await;
    let ports = [0, 1].map(|n| local.replicas()[n].port());
    let (port, _to) = balancer(&ports).await;
    let pool = endpoint(&local, port, |builder| {
        builder
            .consistency(ConsistencyConfig::default().wait(Duration::from_millis(50)))
            .position_source(Elsewhere)
    })
    .await;
    is_found_to_lead_to_several(&pool).await;
    pause(&local, 1).await;
    let mut writer = pool.get().await.unwrap();
    let rows = count(&mut writer.primary()).await;
    let mut served = 0;
    for number in 1..=15 {
        write(&mut writer, number).await;
        let mut held = Vec::new();
        for _ in 0..6 {
            let mut conn = pool.get().await.unwrap();
            assert_eq!(
                count(&mut conn).await,
                rows + number,
                "{:?}",
                conn.last_route()
            );
            served += i32::from(conn.last_route().unwrap().node == "ro");
            held.push(conn);
        }
    }
    assert!(served > 0);
}

// Its timelines need not be PostgreSQL's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_timelines_of_another_source_are_its_own() {
    let local = refusing(&BOTH).await;
    blocking({
        let local = Arc::clone(&local);
        move || {
            let [first, second] = [0, 1].map(|n| &local.replicas()[n]);
            local.primary().stop(StopMode::Fast).unwrap();
            first.promote().unwrap();
            second.follow(first).unwrap();
        }
    })
    .await;
    let [primary, replica] = [0, 1].map(|n| local.replicas()[n].url("app"));
    let pool = ReplicatedPool::builder()
        .primary(NodeConfig::new(primary).name("primary"))
        .replica(NodeConfig::new(replica).name("replica"))
        .health(quick())
        .position_source(Elsewhere)
        .build()
        .await
        .unwrap();
    let mut conn = pool.get().await.unwrap();
    let rows = count(&mut conn.primary()).await;
    write(&mut conn, 1).await;
    until("the replica serves what was written", async || {
        assert_eq!(count(&mut conn).await, rows + 1);
        by_replica(&conn)
    })
    .await;
}

/// One whose SQL the server does not understand.
#[derive(Debug)]
struct Wrong;

impl PositionSource for Wrong {
    fn of_primary(&self) -> &str {
        "no_such_function()"
    }

    fn of_standby(&self) -> &str {
        "no_such_function()"
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_of_positions_that_fails_is_told_and_nothing_is_read_too_early() {
    let local = refusing(&OF_READERS).await;
    let pool = pool_of(&local, |builder| builder.position_source(Wrong)).await;
    eventually("the cause is told", async || {
        let told = |name: &str| pool.status().node(name).unwrap().monitor_error.clone();
        ["primary", "replica-1", "replica-2"].iter().all(|name| {
            told(name)
                .is_some_and(|cause| cause.contains("PositionSource`: function no_such_function()"))
        })
    })
    .await;
    let mut conn = pool.get().await.unwrap();
    let rows = count(&mut conn.primary()).await;
    for number in 1..=5 {
        write(&mut conn, number).await;
        assert_eq!(count(&mut conn).await, rows + number);
        assert!(!by_replica(&conn));
    }
}
