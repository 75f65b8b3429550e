//! Replicas that are beyond a fork, follow nobody, or may not say where they are.

use std::io::Write;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use diesel_replicated::config::{ConsistencyConfig, HealthConfig, WriteScope};
use diesel_replicated::status::{NodeHealth, NodeKind, NodeStatus};
use diesel_replicated::testing::{LocalCluster, LocalNode};
use diesel_replicated::{Builder, Consistency, NodeConfig, ReplicatedPool};

use crate::support::{all_up, always, eventually, insert, on, own_cluster, run, users};

const LIMIT: Duration = Duration::from_secs(10);
const PATIENT: Duration = Duration::from_secs(30);

/// A role of an application, which has no privileges but on its tables.
const PLAIN: &str = "CREATE ROLE plain LOGIN; GRANT ALL ON users TO plain; \
    GRANT ALL ON SEQUENCE users_id_seq TO plain";

/// A pool for a role, its nodes named with `prefix`, so that what is logged of them can be found.
fn builder(local: &LocalCluster, role: &str, prefix: &str) -> Builder {
    let node = |node: &LocalNode| {
        let url = node.url("app").replace("postgres@", &format!("{role}@"));
        NodeConfig::new(url).name(format!("{prefix}{}", node.name()))
    };
    let builder = ReplicatedPool::builder().primary(node(local.primary()));
    let builder = local
        .replicas()
        .iter()
        .fold(builder, |builder, it| builder.replica(node(it)));
    builder.failover_wait(PATIENT).fallback_share(1.0)
}

async fn cluster(sql: &'static str) -> Arc<LocalCluster> {
    let local = own_cluster().await;
    on(&local, move |local| {
        local.primary().sql("app", PLAIN).unwrap();
        if !sql.is_empty() {
            local.primary().sql("app", sql).unwrap();
        }
        local.wait_caught_up().unwrap();
    })
    .await;
    local
}

async fn started(builder: Builder) -> ReplicatedPool {
    let pool = builder.build().await.unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    pool
}

fn node(pool: &ReplicatedPool, name: &str) -> NodeStatus {
    pool.status().node(name).unwrap().clone()
}

fn both(local: &LocalCluster) -> (&LocalNode, &LocalNode) {
    (&local.replicas()[0], &local.replicas()[1])
}

/// The first replica is promoted, the other follows nobody; the primary is gone.
fn fail_over(local: &LocalCluster) {
    local.primary().kill().unwrap();
    local.replicas()[0].promote().unwrap();
}

async fn ruled_by(pool: &ReplicatedPool, name: &str) {
    eventually("the pool follows", || async {
        pool.status().primary.as_deref() == Some(name)
    })
    .await;
}

/// How many rows of this name a session of its own sees, and who answered.
async fn seen(pool: &ReplicatedPool, name: &str) -> (i64, String) {
    let mut conn = pool.get().await.unwrap();
    let rows = users::table.filter(users::name.eq(name.to_owned())).count();
    let rows: i64 = rows.get_result(&mut conn).await.unwrap();
    (rows, conn.last_route().unwrap().node.clone())
}

async fn written(pool: &ReplicatedPool, name: &str) {
    let mut conn = pool.get().await.unwrap();
    insert(name).execute(&mut conn).await.unwrap();
}

/// What is logged at info and above in this program.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub(crate) fn listen() -> &'static Self {
        static LOG: OnceLock<Log> = OnceLock::new();
        LOG.get_or_init(|| {
            let log = Self::default();
            let writer = log.clone();
            let _ = tracing_subscriber::fmt()
                .with_max_level(tracing::Level::INFO)
                .with_ansi(false)
                .with_writer(move || writer.clone())
                .try_init();
            log
        })
    }

    /// What was warned of.
    pub(crate) fn of(&self, event: &str, node: &str) -> Vec<String> {
        let mut told = self.all(event, node);
        told.retain(|line| line.contains(" WARN ") || line.contains("ERROR "));
        told
    }

    pub(crate) fn all(&self, event: &str, node: &str) -> Vec<String> {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&bytes);
        let lines = text.lines().filter(|line| line.contains(event));
        let of = lines.filter(|line| line.contains(node));
        of.map(str::to_owned).collect()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        log.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The second replica has what the first, which is promoted, has not: a row, and some segments of log.
fn diverge(local: &LocalCluster, segments: u32) {
    let (one, two) = both(local);
    one.detach().unwrap();
    let primary = local.primary();
    primary
        .sql("app", "INSERT INTO users (name) VALUES ('gone')")
        .unwrap();
    for _ in 0..segments {
        primary
            .sql("app", "CREATE TABLE filler (); DROP TABLE filler")
            .unwrap();
        primary.sql("app", "SELECT pg_switch_wal()").unwrap();
    }
    let place = primary
        .sql("app", "SELECT pg_current_wal_flush_lsn()")
        .unwrap();
    let place = place[0][0].clone().unwrap();
    let has = format!("SELECT pg_last_wal_replay_lsn() >= '{place}'");
    while two.sql("app", &has).unwrap()[0][0].as_deref() != Some("t") {}
    primary.kill().unwrap();
    one.promote().unwrap();
    two.follow(one).unwrap();
}

/// No read sees what the primary lost, from the first one on.
async fn nothing_lost_is_shown(role: &str, segments: u32, built_before: bool) {
    let local = cluster("").await;
    let mut pool = None;
    if built_before {
        pool = Some(started(builder(&local, role, "")).await);
    }
    on(&local, move |local| diverge(local, segments)).await;
    let pool = match pool {
        Some(pool) => pool,
        None => builder(&local, role, "").build().await.unwrap(),
    };
    ruled_by(&pool, "replica-1").await;
    for round in 0..50 {
        assert_eq!(seen(&pool, "gone").await, (0, "replica-1".to_owned()));
        written(&pool, &format!("n{round}")).await;
    }
    eventually("it is known for what it is", || async {
        let it = node(&pool, "replica-2");
        let apart = [NodeHealth::Diverged, NodeHealth::Doubtful];
        apart.contains(&it.health) && it.cause.unwrap().contains("timeline 2")
    })
    .await;
    for _ in 0..50 {
        assert_eq!(seen(&pool, "gone").await, (0, "replica-1".to_owned()));
    }
    // Rebuilt, it serves again.
    on(&local, |local| {
        let (one, two) = both(local);
        local.rebuild(two, one).unwrap();
    })
    .await;
    eventually("it is welcome when it was rebuilt", || async {
        seen(&pool, "n0").await == (1, "replica-2".to_owned())
    })
    .await;
}

// cloudnative-pg #11251: a replica that had received more than the promoted one stayed in the read
// service, reported healthy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_beyond_the_fork_serves_nothing() {
    nothing_lost_is_shown("postgres", 0, true).await;
}

// autobase #820, cloudnative-pg #4188: beyond the segment of the fork the receiver ends at once ("is not in
// this server's history"), so that nothing is said of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_segments_beyond_the_fork_serves_nothing() {
    nothing_lost_is_shown("postgres", 3, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_segments_beyond_the_fork_serves_nothing_to_a_plain_role() {
    nothing_lost_is_shown("plain", 3, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_beyond_the_fork_serves_nothing_to_a_plain_role() {
    nothing_lost_is_shown("plain", 0, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_beyond_the_fork_serves_nothing_to_a_pool_that_comes_later() {
    nothing_lost_is_shown("postgres", 3, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_beyond_the_fork_serves_nothing_to_a_plain_role_that_comes_later() {
    nothing_lost_is_shown("plain", 0, false).await;
}

// cloudnative-pg #11251: one that is far beyond is told from one that only does not follow, by what the new
// primary has done since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_without_a_receiver_is_proven_to_be_diverged() {
    let local = cluster("").await;
    let pool = started(builder(&local, "plain", "")).await;
    on(&local, |local| diverge(local, 3)).await;
    eventually("it is diverged", || async {
        let it = node(&pool, "replica-2");
        it.health == NodeHealth::Diverged && it.diverged
    })
    .await;
    let mut conn = pool.get().await.unwrap();
    let mut any = conn.with_consistency(Consistency::Eventual);
    let rows = users::table.filter(users::name.eq("gone")).count();
    let rows: i64 = rows.get_result(&mut *any).await.unwrap();
    assert_eq!(rows, 0);
}

// bitnami-docker-postgresql-repmgr #66: "sibling nodes found, but --siblings-follow not specified … will
// remain attached to the current primary".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_nobody_re_points_serves_nothing_but_eventual() {
    let log = Log::listen();
    let local = cluster("").await;
    let pool = started(builder(&local, "postgres", "o-")).await;
    on(&local, fail_over).await;
    ruled_by(&pool, "o-replica-1").await;
    written(&pool, "after").await;
    eventually("it is an orphan", || async {
        node(&pool, "o-replica-2").health == NodeHealth::Orphaned
    })
    .await;
    for _ in 0..50 {
        assert_eq!(seen(&pool, "after").await, (1, "o-replica-1".to_owned()));
    }
    let it = node(&pool, "o-replica-2");
    assert!(it.cause.unwrap().contains("primary_conninfo"));
    assert_eq!(it.receiving, Some(false));
    let status = pool.check(LIMIT).await.unwrap();
    assert_eq!(
        status.node("o-replica-2").unwrap().health,
        NodeHealth::Orphaned
    );
    assert_eq!(log.of("replica_orphaned", "o-replica-2").len(), 1);
    // Who does not mind may read there.
    let mut conn = pool.get().await.unwrap();
    conn.set_consistency(Consistency::Eventual);
    let _: i64 = users::table.count().get_result(&mut conn).await.unwrap();
    assert_eq!(conn.last_route().unwrap().node, "o-replica-2");
    drop(conn);
    // Once it follows it is trusted again.
    on(&local, |local| {
        let (one, two) = both(local);
        two.follow(one).unwrap();
    })
    .await;
    eventually("it serves again", || async {
        seen(&pool, "after").await == (1, "o-replica-2".to_owned())
    })
    .await;
}

async fn a_later_pool_does_not_trust_an_orphan(role: &str, max_lag: Option<Duration>) {
    let local = cluster("").await;
    on(&local, |local| {
        fail_over(local);
        for number in 0..10 {
            let sql = format!("INSERT INTO users (name) VALUES ('n{number}')");
            local.replicas()[0].sql("app", &sql).unwrap();
        }
    })
    .await;
    let health = match max_lag {
        Some(limit) => HealthConfig::default().max_lag(limit),
        None => HealthConfig::default(),
    };
    let pool = builder(&local, role, "").health(health);
    let pool = pool.build().await.unwrap();
    for _ in 0..50 {
        assert_eq!(seen(&pool, "n9").await, (1, "replica-1".to_owned()));
    }
    let apart = [NodeHealth::Orphaned, NodeHealth::Doubtful];
    assert!(apart.contains(&node(&pool, "replica-2").health));
}

// ProxySQL #669, #1469, #3385; ankane/distribute_reads #27: a replica whose lag cannot be told goes on
// serving, whatever the limit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_that_comes_after_the_failover_does_not_trust_an_orphan() {
    a_later_pool_does_not_trust_an_orphan("postgres", None).await;
    a_later_pool_does_not_trust_an_orphan("postgres", Some(Duration::from_secs(5))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_role_that_comes_after_the_failover_does_not_trust_an_orphan() {
    a_later_pool_does_not_trust_an_orphan("plain", None).await;
}

// DataDog integrations-core #13852: "the delay may be stuck to 0" on a replica that is not connected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_of_an_orphan_serves_nothing_but_eventual() {
    let local = cluster("").await;
    on(&local, |local| {
        let (one, two) = both(local);
        // What both follow is over: the new primary is one of them, and the other is fed by the old one.
        two.follow(local.primary()).unwrap();
        one.promote().unwrap();
    })
    .await;
    for role in ["postgres", "plain"] {
        let pool = builder(&local, role, "").build().await.unwrap();
        ruled_by(&pool, "replica-1").await;
        let name = format!("by {role}");
        written(&pool, &name).await;
        eventually("it is not trusted", || async {
            node(&pool, "replica-2").health != NodeHealth::Up
        })
        .await;
        for _ in 0..50 {
            assert_eq!(seen(&pool, &name).await, (1, "replica-1".to_owned()));
        }
    }
}

// A primary that is restarted is away for a moment, and its replicas without a receiver.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_is_trusted_while_its_primary_restarts() {
    let local = cluster("").await;
    let pool = started(builder(&local, "postgres", "").failover_wait(PATIENT)).await;
    on(&local, |local| local.primary().kill().unwrap()).await;
    eventually("they receive nothing", || async {
        ["replica-1", "replica-2"]
            .iter()
            .all(|name| node(&pool, name).receiving == Some(false))
    })
    .await;
    for _ in 0..50 {
        let (rows, by) = seen(&pool, "Ada").await;
        assert!(rows == 1 && by.starts_with("replica"), "{by}");
    }
    on(&local, |local| local.primary().start().unwrap()).await;
    written(&pool, "after").await;
    assert!(
        ["replica-1", "replica-2"]
            .iter()
            .all(|name| node(&pool, name).health == NodeHealth::Up)
    );
}

// The standing limit of roles without `pg_monitor`: the control file tells a standby's timeline only at the
// next restartpoint, minutes after a failover.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_role_reads_its_writes_on_replicas_after_a_failover() {
    let log = Log::listen();
    let local = cluster("").await;
    let lag = HealthConfig::default().max_lag(Duration::from_secs(2));
    let pool = started(builder(&local, "plain", "p-").health(lag)).await;
    on(&local, |local| {
        fail_over(local);
        local.replicas()[1].follow(&local.replicas()[0]).unwrap();
    })
    .await;
    ruled_by(&pool, "p-replica-1").await;
    let mut number = 0;
    eventually("own writes are read on the replica", || {
        number += 1;
        let pool = &pool;
        async move {
            let mut conn = pool.get().await.unwrap();
            let name = format!("n{number}");
            insert(&name).execute(&mut conn).await.unwrap();
            // That one may read on the primary, which it holds.
            drop(conn);
            let mut conn = pool.get().await.unwrap();
            let rows = users::table.filter(users::name.eq(name)).count();
            let rows: i64 = rows.get_result(&mut conn).await.unwrap();
            assert_eq!(rows, 1);
            conn.last_route().unwrap().kind == NodeKind::Replica
        }
    })
    .await;
    let it = node(&pool, "p-replica-2");
    assert_eq!((it.health, it.timeline), (NodeHealth::Up, Some(2)));
    // Longer than the limit: it has not fallen behind.
    always("it is up", Duration::from_secs(4), || async {
        node(&pool, "p-replica-2").health == NodeHealth::Up
    })
    .await;
    // And what it may not ask is told.
    let [limit] = &it.limited[..] else {
        panic!("{:?}", it.limited);
    };
    assert_eq!(limit.grant, "GRANT pg_monitor TO plain");
    let status = pool.check(LIMIT).await.unwrap();
    assert_eq!(status.node("p-replica-2").unwrap().limited, it.limited);
    let told = log.of("right_missing", "p-replica-2");
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("GRANT pg_monitor TO plain"), "{told:?}");
}

/// What hardened servers take from everybody.
const REVOKED: &str = "
    REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC;
    REVOKE EXECUTE ON FUNCTION pg_control_checkpoint() FROM PUBLIC;
    REVOKE EXECUTE ON FUNCTION pg_control_recovery() FROM PUBLIC;
    REVOKE EXECUTE ON FUNCTION pg_control_init() FROM PUBLIC";

// pgwatch2 #196, check_pgactivity #252: a monitoring role that may not call one function knows nothing at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_overtaken_declared_primary_is_not_written_to_where_the_control_file_may_not_be_read() {
    let log = Log::listen();
    let local = cluster(REVOKED).await;
    let pool = started(builder(&local, "plain", "r-")).await;
    written(&pool, "before").await;
    on(&local, |local| {
        local.wait_caught_up().unwrap();
        // The old primary lives on, and would take every write.
        local.replicas()[0].promote().unwrap();
    })
    .await;
    ruled_by(&pool, "r-replica-1").await;
    for round in 0..20 {
        written(&pool, &format!("n{round}")).await;
    }
    let later = builder(&local, "plain", "r-").build().await.unwrap();
    written(&later, "later").await;
    let rows = on(&local, |local| {
        local
            .primary()
            .sql("app", "SELECT count(*) FROM users WHERE name <> 'before'")
            .unwrap()
    })
    .await;
    assert_eq!(rows[0][0].as_deref(), Some("3"));
    let it = node(&pool, "r-replica-2");
    let grant = "GRANT EXECUTE ON FUNCTION pg_catalog.pg_control_system() TO plain";
    assert!(it.limited.iter().any(|limit| limit.grant == grant));
    assert_eq!(it.monitor_error, None);
    assert!(!log.of("right_missing", "r-replica-2").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_is_followed_where_the_control_file_may_not_be_read() {
    let local = cluster(REVOKED).await;
    let pool = started(builder(&local, "plain", "")).await;
    own_writes_are_read_on_replicas(&pool).await;
    on(&local, |local| {
        fail_over(local);
        local.replicas()[1].follow(&local.replicas()[0]).unwrap();
    })
    .await;
    ruled_by(&pool, "replica-1").await;
    written(&pool, "after").await;
    eventually("it serves what was written since", || async {
        seen(&pool, "after").await == (1, "replica-2".to_owned())
    })
    .await;
    eventually("its timeline is known", || async {
        node(&pool, "replica-2").timeline == Some(2)
    })
    .await;
    own_writes_are_read_on_replicas(&pool).await;
}

async fn own_writes_are_read_on_replicas(pool: &ReplicatedPool) {
    eventually("own writes are read on a replica", || async {
        let mut conn = pool.get().await.unwrap();
        let visit = "UPDATE users SET visits = visits + 1";
        run(&mut conn, visit).await.unwrap();
        // That one may read on the primary, which it holds.
        drop(conn);
        let mut conn = pool.get().await.unwrap();
        let _: i64 = users::table.count().get_result(&mut conn).await.unwrap();
        conn.last_route().unwrap().kind == NodeKind::Replica
    })
    .await;
}

// Azure and others revoke `pg_last_wal_replay_lsn`; pgwatch2 #768, postgres_exporter #825.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_whose_position_may_not_be_asked_serves_only_what_asks_for_none() {
    let revoke = "REVOKE EXECUTE ON FUNCTION pg_last_wal_replay_lsn() FROM PUBLIC";
    let local = cluster(revoke).await;
    let pool = started(builder(&local, "plain", "")).await;
    let (rows, by) = seen(&pool, "Ada").await;
    assert!(rows == 1 && by.starts_with("replica"), "{by}");
    let mut conn = pool.get().await.unwrap();
    insert("own").execute(&mut conn).await.unwrap();
    let rows = users::table.filter(users::name.eq("own")).count();
    let rows: i64 = rows.get_result(&mut conn).await.unwrap();
    assert_eq!(rows, 1);
    assert_eq!(conn.last_route().unwrap().kind, NodeKind::Primary);
    let it = node(&pool, "replica-1");
    let right = "EXECUTE ON FUNCTION pg_catalog.pg_last_wal_replay_lsn()";
    assert!(it.limited.iter().any(|limit| limit.right == right));
    assert_eq!((it.position, it.lag), (None, None));
    // A check does not wait for what cannot be told.
    let started = std::time::Instant::now();
    pool.check(PATIENT).await.unwrap();
    assert!(started.elapsed() < LIMIT);
    // Where a limit is set, it is over it.
    let lag = HealthConfig::default().max_lag(Duration::from_secs(60));
    let limited = builder(&local, "plain", "").health(lag);
    let limited = limited.build().await.unwrap();
    eventually("it serves no reads", || async {
        node(&limited, "replica-1").health == NodeHealth::Lagging
    })
    .await;
    let cause = node(&limited, "replica-1").cause.unwrap();
    assert!(cause.contains("not known"), "{cause}");
    // And it is mended by what was told.
    on(&local, |local| {
        let grant = "GRANT EXECUTE ON FUNCTION pg_catalog.pg_last_wal_replay_lsn() TO plain";
        local.primary().sql("app", grant).unwrap();
    })
    .await;
    eventually("it is up again", || async { all_up(&limited) }).await;
}

// dbtune-agent #170: a server without `pg_stat_get_wal_receiver` (Aurora); here nobody may call it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_serves_where_nothing_may_be_asked() {
    let revoke = "DO $$ DECLARE f text; BEGIN FOREACH f IN ARRAY ARRAY['pg_control_system()', \
        'pg_control_checkpoint()', 'pg_control_recovery()', 'pg_last_wal_replay_lsn()', \
        'pg_last_wal_receive_lsn()', 'pg_get_wal_replay_pause_state()', 'pg_current_snapshot()', \
        'pg_stat_get_wal_receiver()', 'pg_current_wal_flush_lsn()', 'pg_current_wal_insert_lsn()', \
        'pg_walfile_name(pg_lsn)', 'pg_postmaster_start_time()'] LOOP \
        EXECUTE 'REVOKE EXECUTE ON FUNCTION ' || f || ' FROM PUBLIC'; END LOOP; END $$";
    let local = cluster(revoke).await;
    // What others wrote is on no replica for all that may be known.
    let of_sessions = ConsistencyConfig::default().write_scope(WriteScope::Session);
    let pool = started(builder(&local, "plain", "").consistency(of_sessions)).await;
    let mut conn = pool.get().await.unwrap();
    insert("own").execute(&mut conn).await.unwrap();
    let rows = users::table.filter(users::name.eq("own")).count();
    let rows: i64 = rows.get_result(&mut conn).await.unwrap();
    assert_eq!(rows, 1);
    run(&mut conn, "SELECT 1").await.unwrap();
    let (rows, by) = seen(&pool, "Ada").await;
    assert!(rows == 1 && by.starts_with("replica"), "{by}");
    assert!(node(&pool, "primary").limited.len() >= 4);
    // Which of two is the primary cannot be told: neither is written to.
    on(&local, |local| local.replicas()[0].promote().unwrap()).await;
    eventually("nothing is written", || async {
        !pool.status().takes_writes
    })
    .await;
}
