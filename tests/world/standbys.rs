//! Standbys on their way to a new primary, and what keeps them from it.

use std::sync::Arc;
use std::time::Duration;

use diesel_replicated::config::PromotionConfig;
use diesel_replicated::status::{Following, FollowingState, NodeHealth};
use diesel_replicated::testing::{LocalCluster, LocalClusterBuilder, LocalNode};
use diesel_replicated::{NodeConfig, ReplicatedPool};

use crate::support::{all_up, blocking, eventually, fill, on};

/// Longer than any promotion of a test takes on a busy machine.
const PATIENT: Duration = Duration::from_secs(60);

async fn cluster(builder: LocalClusterBuilder) -> Arc<LocalCluster> {
    blocking(move || {
        let local = builder.start().unwrap();
        fill(&local, "app");
        Arc::new(local)
    })
    .await
}

/// A pool over these nodes whose standbys follow, once all are up.
async fn pool_by(local: &LocalCluster, node: impl Fn(&LocalNode) -> NodeConfig) -> ReplicatedPool {
    let builder = ReplicatedPool::builder().primary(node(local.primary()));
    let replicas = local.replicas().iter();
    let builder = replicas.fold(builder, |builder, replica| builder.replica(node(replica)));
    let pool = builder
        .failover_wait(PATIENT)
        .promotion(PromotionConfig::default().standbys_follow(true))
        .build()
        .await
        .unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    pool
}

async fn pool_of(local: &LocalCluster, role: &str) -> ReplicatedPool {
    pool_by(local, |node| {
        let url = node.url("app").replace("postgres@", &format!("{role}@"));
        NodeConfig::new(url).name(node.name().to_owned())
    })
    .await
}

fn value(node: &LocalNode, sql: &str) -> Option<String> {
    let rows = node.sql("postgres", sql).ok()?;
    rows.into_iter().next()?.into_iter().next()?
}

async fn asked(local: &Arc<LocalCluster>, name: &str, sql: &str) -> Option<String> {
    let (name, sql) = (name.to_owned(), sql.to_owned());
    on(local, move |local| value(local.node(&name).unwrap(), &sql)).await
}

async fn run(local: &Arc<LocalCluster>, name: &str, sql: &str) {
    let (name, sql) = (name.to_owned(), sql.to_owned());
    let sql =
        move |local: &LocalCluster| drop(local.node(&name).unwrap().sql("postgres", &sql).unwrap());
    on(local, sql).await;
}

async fn eventually_receives(local: &Arc<LocalCluster>, name: &str, timeline: u32) {
    let sql = format!(
        "SELECT status || received_tli FROM pg_stat_wal_receiver WHERE received_tli = {timeline}"
    );
    let expected = Some(format!("streaming{timeline}"));
    eventually(
        &format!("`{name}` receives timeline {timeline}"),
        || async { asked(local, name, &sql).await == expected },
    )
    .await;
}

fn of(pool: &ReplicatedPool, name: &str) -> Option<Following> {
    let following = pool.status().promotion.following;
    following.into_iter().find(|it| it.node == name)
}

/// The cause for which a standby was left.
async fn left(pool: &ReplicatedPool, name: &str, because: &str) -> String {
    eventually(&format!("`{name}` is left: {because}"), || async {
        of(pool, name).is_some_and(|it| {
            it.state == FollowingState::Left
                && it.cause.is_some_and(|cause| cause.contains(because))
        })
    })
    .await;
    let status = pool.status();
    let cause = status.node(name).unwrap().cause.clone().unwrap();
    assert!(cause.contains(because), "{cause}");
    let degraded = status.degraded.iter();
    assert!(
        degraded
            .into_iter()
            .any(|it| it.node.as_deref() == Some(name))
    );
    cause
}

async fn kill(local: &Arc<LocalCluster>, name: &'static str) {
    on(local, move |local| {
        local.node(name).unwrap().kill().unwrap()
    })
    .await;
}

const CONNINFO: &str = "SHOW primary_conninfo";

/// The command by which a node becomes a standby of this one, as [`LocalCluster::rewind`] runs it.
fn command(local: &LocalCluster, primary: &str) -> String {
    let port = local.node(primary).unwrap().port();
    let source = format!("host=127.0.0.1 port={port} user=postgres dbname=postgres");
    format!(
        "pg_rewind --target-pgdata=DATA_DIRECTORY --source-server='{source}' --write-recovery-conf"
    )
}

// ubicloud #5526, repmgr #386 and #604: a standby beyond the fork was told to follow, and stood still for ever. And
// repmgr #850, #434: nobody said what the old primary needs. stolon #644: without a checkpoint `pg_rewind` does nothing.
#[tokio::test]
async fn a_standby_with_more_log_is_left_and_the_command_that_is_told_mends_it() {
    let local = cluster(LocalCluster::builder().setting("wal_log_hints", "on")).await;
    let pool = pool_of(&local, "postgres").await;
    let before = asked(&local, "replica-2", CONNINFO).await;
    on(&local, |local| {
        local.replicas()[0].detach().unwrap();
        let more = "INSERT INTO users (name) SELECT 'more' || i FROM generate_series(1, 100) AS i";
        local.primary().sql("app", more).unwrap();
        let has = "SELECT count(*) FROM users WHERE name LIKE 'more%'";
        while local.replicas()[1].sql("app", has).unwrap()[0][0].as_deref() != Some("100") {}
        local.primary().kill().unwrap();
    })
    .await;
    pool.force_promote("replica-1").await.unwrap();
    let command = command(&local, "replica-1");
    let cause = left(&pool, "replica-2", &command).await;
    assert!(cause.contains("the new primary does not have"), "{cause}");
    assert_eq!(asked(&local, "replica-2", CONNINFO).await, before);
    on(&local, |local| {
        let nodes = local.replicas();
        local.rewind(&nodes[1], &nodes[0]).unwrap();
    })
    .await;
    eventually_receives(&local, "replica-2", 2).await;
    // The old primary comes back on its old timeline.
    on(&local, |local| local.primary().start().unwrap()).await;
    eventually("it says what it needs", || async {
        let status = pool.status();
        let cause = status.node("primary").unwrap().cause.as_deref();
        cause.is_some_and(|cause| cause.contains(&command))
    })
    .await;
    on(&local, |local| {
        let (old, new) = (local.primary(), &local.replicas()[0]);
        local.rewind(old, new).unwrap();
    })
    .await;
    eventually_receives(&local, "primary", 2).await;
    eventually("all are up", || async { all_up(&pool) }).await;
    assert_eq!(pool.status().node("primary").unwrap().cause, None);
}

// repmgr #62 and #253: the password was gone, or not escaped, and the standby could not log in. repmgr #324 wrote it
// into its log.
#[tokio::test]
async fn all_else_of_a_conninfo_is_kept_and_its_password_is_shown_nowhere() {
    let local = cluster(
        LocalCluster::builder()
            .rule("host replication rep 127.0.0.1/32 scram-sha-256")
            .setting("log_statement", "all")
            .setting("log_min_duration_statement", "0"),
    )
    .await;
    let pool = pool_of(&local, "postgres").await;
    let role = r"CREATE ROLE rep LOGIN REPLICATION PASSWORD E'it''s \\ ge heim'";
    run(&local, "primary", role).await;
    on(&local, |local| local.wait_caught_up().unwrap()).await;
    let port = local.primary().port();
    let conninfo = format!(
        r"user=rep password = 'it\'s \\ ge heim' host='127.0.0.1' port={port}  application_name='my standby' sslmode=prefer"
    );
    let literal = conninfo.replace('\\', r"\\").replace('\'', "''");
    let set = format!("ALTER SYSTEM SET primary_conninfo = E'{literal}'");
    run(&local, "replica-2", &set).await;
    run(&local, "replica-2", "SELECT pg_reload_conf()").await;
    let user =
        "SELECT usename || ' ' || application_name FROM pg_stat_replication WHERE usename = 'rep'";
    let expected = Some("rep my standby".to_owned());
    eventually("it has logged in", || async {
        asked(&local, "primary", user).await == expected
    })
    .await;
    let earlier = on(&local, |local| local.replicas()[1].log().len()).await;
    kill(&local, "primary").await;
    pool.promote("replica-1").await.unwrap();
    eventually_receives(&local, "replica-2", 2).await;
    assert_eq!(asked(&local, "replica-1", user).await, expected);
    let new = local.replicas()[0].port().to_string();
    let kept = conninfo
        .replace(&port.to_string(), &new)
        .replace("host='127.0.0.1'", "host=127.0.0.1");
    assert_eq!(asked(&local, "replica-2", CONNINFO).await, Some(kept));
    let log = on(&local, |local| local.replicas()[1].log()).await;
    assert!(log[earlier..].contains("pg_reload_conf"), "{log}");
    // The server itself tells each change, whoever makes it.
    let own = "parameter \"primary_conninfo\" changed to";
    let lines = log[earlier..].lines();
    let shown: Vec<&str> = lines
        .filter(|line| line.contains("heim") && !line.contains(own))
        .collect();
    assert_eq!(shown, Vec::<&str>::new());
    let status = serde_json::to_string(&pool.status()).unwrap();
    assert!(!status.contains("heim") && !format!("{:?}", pool.status()).contains("heim"));
}

/// A standby whose set of rights is not complete.
async fn role(local: &Arc<LocalCluster>, grants: &str) {
    let role = format!(
        "CREATE ROLE app LOGIN; GRANT pg_monitor TO app; GRANT EXECUTE ON FUNCTION pg_promote TO app; {grants}"
    );
    run(local, "primary", &role).await;
    let grants = "GRANT ALL ON ALL TABLES IN SCHEMA public TO app";
    on(local, move |local| {
        local.primary().sql("app", grants).unwrap();
        local.wait_caught_up().unwrap();
    })
    .await;
}

const RIGHTS: &str = "GRANT ALTER SYSTEM, SET ON PARAMETER primary_conninfo TO app; \
    GRANT EXECUTE ON FUNCTION pg_reload_conf() TO app;";

#[tokio::test]
async fn a_standby_that_the_role_may_not_tell_is_left_and_that_is_known_before() {
    let local = cluster(LocalCluster::builder()).await;
    role(&local, "").await;
    let pool = pool_of(&local, "app").await;
    let grant = "GRANT ALTER SYSTEM ON PARAMETER primary_conninfo TO app";
    let cause = left(&pool, "replica-2", grant).await;
    assert!(cause.contains("pg_reload_conf"), "{cause}");
    let before = asked(&local, "replica-2", CONNINFO).await;
    kill(&local, "primary").await;
    pool.promote("replica-1").await.unwrap();
    left(&pool, "replica-2", "this role may not tell it").await;
    assert_eq!(asked(&local, "replica-2", CONNINFO).await, before);
    // What a superuser does, is seen.
    on(&local, |local| {
        local.replicas()[1].follow(&local.replicas()[0]).unwrap()
    })
    .await;
    eventually_receives(&local, "replica-2", 2).await;
    eventually("it follows", || async {
        of(&pool, "replica-2").is_some_and(|it| it.state == FollowingState::Follows)
    })
    .await;
}

// repmgr #128 and #452: the slot did not exist on the new primary. A role without `REPLICATION` cannot make it.
#[tokio::test]
async fn with_the_rights_that_the_documentation_names_it_is_told_but_for_its_slot() {
    let local = cluster(LocalCluster::builder()).await;
    role(&local, RIGHTS).await;
    let slot = "SELECT pg_create_physical_replication_slot('s2', true)";
    run(&local, "primary", slot).await;
    run(
        &local,
        "replica-2",
        "ALTER SYSTEM SET primary_slot_name = 's2'",
    )
    .await;
    run(&local, "replica-2", "SELECT pg_reload_conf()").await;
    let active = "SELECT active FROM pg_replication_slots WHERE slot_name = 's2'";
    eventually("it uses the slot", || async {
        asked(&local, "primary", active).await.as_deref() == Some("t")
    })
    .await;
    let pool = pool_of(&local, "app").await;
    let before = asked(&local, "replica-2", CONNINFO).await;
    kill(&local, "primary").await;
    pool.promote("replica-1").await.unwrap();
    left(
        &pool,
        "replica-2",
        "pg_create_physical_replication_slot('s2', true)",
    )
    .await;
    assert_eq!(asked(&local, "replica-2", CONNINFO).await, before);
    run(&local, "replica-1", slot).await;
    eventually_receives(&local, "replica-2", 2).await;
    assert_eq!(
        asked(&local, "replica-1", active).await.as_deref(),
        Some("t")
    );
}

#[tokio::test]
async fn the_slot_of_a_standby_is_made_on_the_new_primary() {
    let local = cluster(LocalCluster::builder()).await;
    let slot = "SELECT pg_create_physical_replication_slot('s2', true)";
    run(&local, "primary", slot).await;
    run(
        &local,
        "replica-2",
        "ALTER SYSTEM SET primary_slot_name = 's2'",
    )
    .await;
    run(&local, "replica-2", "SELECT pg_reload_conf()").await;
    let pool = pool_of(&local, "postgres").await;
    kill(&local, "primary").await;
    pool.promote("replica-1").await.unwrap();
    eventually_receives(&local, "replica-2", 2).await;
    let slots = "SELECT string_agg(slot_name || active, ',') FROM pg_replication_slots";
    assert_eq!(
        asked(&local, "replica-1", slots).await.as_deref(),
        Some("s2true")
    );
}

// CrunchyData/crunchy-containers #225.
#[tokio::test]
async fn a_standby_that_goes_to_no_other_timeline_is_left() {
    let local = cluster(LocalCluster::builder()).await;
    on(&local, |local| {
        let current = "ALTER SYSTEM SET recovery_target_timeline = 'current'";
        local.replicas()[1].sql("postgres", current).unwrap();
        local.replicas()[1].restart().unwrap();
        local.wait_caught_up().unwrap();
    })
    .await;
    let pool = pool_of(&local, "postgres").await;
    kill(&local, "primary").await;
    pool.promote("replica-1").await.unwrap();
    left(&pool, "replica-2", "recovery_target_timeline").await;
}

// repmgr #195, #659: a standby that was away during the failover went on looking for the dead one.
#[tokio::test]
async fn a_standby_that_was_down_is_told_when_it_comes_back() {
    let local = cluster(LocalCluster::builder().replicas(3)).await;
    let pool = pool_of(&local, "postgres").await;
    kill(&local, "replica-2").await;
    kill(&local, "primary").await;
    pool.force_promote("replica-1").await.unwrap();
    eventually_receives(&local, "replica-3", 2).await;
    on(&local, |local| {
        local.node("replica-2").unwrap().start().unwrap()
    })
    .await;
    eventually_receives(&local, "replica-2", 2).await;
    // Even by a process that has seen nothing of all that.
    kill(&local, "replica-3").await;
    pool.close(Duration::ZERO).await;
    run_conninfo(&local).await;
    let builder = crate::support::builder_for(&local, "app");
    let later = builder
        .failover_wait(PATIENT)
        .promotion(PromotionConfig::default().standbys_follow(true))
        .build()
        .await
        .unwrap();
    on(&local, |local| {
        local.node("replica-3").unwrap().start().unwrap()
    })
    .await;
    eventually_receives(&local, "replica-3", 2).await;
    drop(later);
}

/// Somebody has restored an old configuration: `replica-3` leads to the dead primary again.
async fn run_conninfo(local: &Arc<LocalCluster>) {
    on(local, |local| {
        let auto = local
            .node("replica-3")
            .unwrap()
            .data_dir()
            .join("postgresql.auto.conf");
        std::fs::write(auto, "").unwrap();
    })
    .await;
}

// repmgr #130, #132, #531: a standby behind another one was attached to the primary, or lost.
#[tokio::test]
async fn a_standby_behind_another_stays_there() {
    // The third follows the second.
    let local = cluster(LocalCluster::builder().cascading_from(1)).await;
    let pool = pool_of(&local, "postgres").await;
    let before = asked(&local, "replica-3", CONNINFO).await;
    kill(&local, "primary").await;
    pool.promote("replica-1").await.unwrap();
    eventually_receives(&local, "replica-2", 2).await;
    eventually_receives(&local, "replica-3", 2).await;
    assert_eq!(asked(&local, "replica-3", CONNINFO).await, before);
    eventually("all but the dead one are up", || async {
        let status = pool.status();
        let up = |name| status.node(name).unwrap().health == NodeHealth::Up;
        ["replica-1", "replica-2", "replica-3"].into_iter().all(up)
    })
    .await;
    // Now its upstream becomes the primary.
    kill(&local, "replica-1").await;
    pool.force_promote("replica-2").await.unwrap();
    eventually_receives(&local, "replica-3", 3).await;
    assert_eq!(asked(&local, "replica-3", CONNINFO).await, before);
}

// repmgr #605: the standbys reach the servers at other addresses than whoever tells them.
#[tokio::test]
async fn a_standby_is_given_the_address_at_which_standbys_reach_the_primary() {
    let local = cluster(LocalCluster::builder()).await;
    let pool = pool_by(&local, |node| {
        let address = format!("127.0.0.1:{}", node.port());
        let url = node.proxied_url("app").unwrap();
        NodeConfig::new(url)
            .name(node.name())
            .replication_address(address)
    })
    .await;
    kill(&local, "primary").await;
    pool.promote("replica-1").await.unwrap();
    eventually_receives(&local, "replica-2", 2).await;
    let port = local.replicas()[0].port();
    let conninfo = asked(&local, "replica-2", CONNINFO).await.unwrap();
    assert!(conninfo.contains(&format!("port={port}")), "{conninfo}");
}

// repmgr #444 and #783: success was reported of a standby that never came.
#[tokio::test]
async fn a_standby_that_was_told_and_does_not_come_is_told_of() {
    let local = cluster(LocalCluster::builder()).await;
    let pool = pool_of(&local, "postgres").await;
    // The one that is promoted lets no standby in.
    on(&local, |local| {
        let hba = local.replicas()[0].data_dir().join("pg_hba.conf");
        let usual = std::fs::read_to_string(&hba).unwrap();
        std::fs::write(&hba, format!("host replication all all reject\n{usual}")).unwrap();
        local.replicas()[0].reload().unwrap();
        local.primary().kill().unwrap();
    })
    .await;
    pool.promote("replica-1").await.unwrap();
    eventually("it is told", || async {
        of(&pool, "replica-2").is_some_and(|it| it.state == FollowingState::Told)
    })
    .await;
    let cause = left(
        &pool,
        "replica-2",
        "was told to follow `replica-1` and does not",
    )
    .await;
    assert!(cause.contains("pg_hba.conf"), "{cause}");
}
