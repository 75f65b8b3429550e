//! What would fail in the middle of an outage is told before there is one.

use std::sync::Arc;
use std::time::SystemTime;

use diesel_replicated::config::{CommitResolution, PromotionConfig};
use diesel_replicated::testing::LocalCluster;
use diesel_replicated::{Builder, NodeConfig, ReplicatedPool};

use crate::history::Log;
use crate::support::{all_up, eventually, on, own_cluster, run};

/// A pool of nodes whose names are this test's own, as the user `login`.
fn builder(local: &LocalCluster, login: &str, tag: &str, nodes: usize) -> Builder {
    let named = |node: &diesel_replicated::testing::LocalNode| {
        let url = node.url("app").replace("postgres@", &format!("{login}@"));
        NodeConfig::new(url).name(format!("{tag}-{}", node.name()))
    };
    let replicas = local.replicas().iter().take(nodes - 1);
    let builder = ReplicatedPool::builder().primary(named(local.primary()));
    replicas.fold(builder, |builder, replica| builder.replica(named(replica)))
}

async fn plain(local: &Arc<LocalCluster>) {
    on(local, |local| {
        local
            .primary()
            .sql("app", "CREATE ROLE plain LOGIN")
            .unwrap();
        local.wait_caught_up().unwrap();
    })
    .await;
}

// repmgr #536, pg_auto_failover #25 and #94: a right is missing, and that comes out when the primary is dead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_may_not_promote_is_told_the_grant_at_the_start() {
    let log = Log::listen();
    let local = own_cluster().await;
    plain(&local).await;
    let automatic = PromotionConfig::automatic();
    let pool = builder(&local, "plain", "grant", 3).promotion(automatic);
    let pool = pool.build().await.unwrap();
    let grant = "GRANT EXECUTE ON FUNCTION pg_catalog.pg_promote(boolean, integer) TO plain";
    eventually("the right is found missing", || async {
        let told = pool.status().promotion;
        told.automatic
            && told
                .hindrances
                .iter()
                .filter(|it| it.contains(grant))
                .count()
                == 3
    })
    .await;
    eventually("it is warned of once for each node", || async {
        log.of("promotion_unable", "grant-").len() == 3
    })
    .await;
    on(&local, move |local| {
        local.primary().sql("postgres", grant).unwrap()
    })
    .await;
    eventually("it is able", || async {
        pool.status().promotion.hindrances.is_empty()
    })
    .await;
    assert_eq!(log.of("promotion_unable", "grant-").len(), 3);
}

// repmgr #477 and #573: with too few nodes nobody is left to agree, and that comes out when one is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_are_told_to_be_too_few_for_a_promotion() {
    let local = own_cluster().await;
    let automatic = PromotionConfig::automatic();
    let pool = builder(&local, "postgres", "two", 2).promotion(automatic);
    let pool = pool.build().await.unwrap();
    eventually("it is told", || async {
        let told = pool.status().promotion.hindrances;
        told.len() == 1 && told[0].contains("add another node")
    })
    .await;
    // What is refused when it comes to that is kept for who asks later.
    on(&local, |local| local.primary().kill().unwrap()).await;
    eventually("a promotion was refused", || async {
        let refused = pool.status().promotion.last_refusal;
        refused.is_some_and(|it| it.reason.contains("2 have to") && it.at <= SystemTime::now())
    })
    .await;
    // Nothing is said where nobody wanted one.
    let none = ReplicatedPool::builder().replica(local.replicas()[0].url("app"));
    let none = none
        .primary(local.primary().url("app"))
        .start_read_only(true);
    let none = none.build().await.unwrap().status().promotion;
    assert!(!none.automatic && none.hindrances.is_empty() && none.last_refusal.is_none());
}

/// Else it is found out with the first COMMIT.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn markers_without_their_table_are_warned_of_at_the_start() {
    let log = Log::listen();
    let local = own_cluster().await;
    let pool = builder(&local, "postgres", "marker", 3);
    let pool = pool.commit_resolution(CommitResolution::Marker);
    let _pool = pool.build().await.unwrap();
    eventually("it is told, with what creates it", || async {
        let told = log.of("commit_marker_missing", "marker-primary");
        told.len() == 1 && told[0].contains("CREATE TABLE")
    })
    .await;
}

// asyncpg #204, sourcegraph #6607, check_pgactivity #336: nobody knows whose connections these are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_called_by_the_program_and_watchers_apart() {
    let local = own_cluster().await;
    let pool = builder(&local, "postgres", "named", 3)
        .build()
        .await
        .unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    let mut conn = pool.get().await.unwrap();
    run(&mut conn.primary(), "SELECT 1").await.unwrap();
    let names = on(&local, |local| {
        let sql = "SELECT DISTINCT application_name FROM pg_stat_activity \
            WHERE datname = 'app' AND pid <> pg_backend_pid() ORDER BY 1";
        local.primary().sql("app", sql).unwrap()
    })
    .await;
    let names: Vec<_> = names.into_iter().filter_map(|mut row| row.pop()?).collect();
    let own = std::env::current_exe().unwrap();
    let own = own.file_stem().unwrap().to_string_lossy().into_owned();
    assert_eq!(names, [own.clone(), format!("{own} (watching)")]);
}

/// Whoever reads the log of a start finds what the pool is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_line_says_what_was_started() {
    let log = Log::listen();
    let local = own_cluster().await;
    let pool = builder(&local, "postgres", "line", 3).max_size(7);
    let _pool = pool.build().await.unwrap();
    let told = log.all("pool_started", "line-primary");
    assert_eq!(told.len(), 1, "{told:?}");
    for part in [
        "primary=\"line-primary\"",
        "`line-replica-2`",
        "read_your_writes",
        "line-replica-1: 7",
        "promotion=false",
    ] {
        assert!(told[0].contains(part), "{part}: {told:?}");
    }
}
