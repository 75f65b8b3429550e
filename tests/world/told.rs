//! What is told, and what is not worth a word.

use std::time::Duration;

use diesel_async::RunQueryDsl;
use diesel_replicated::config::HealthConfig;
use diesel_replicated::status::{Degradation, Degraded, NodeHealth};
use diesel_replicated::testing::LocalCluster;
use diesel_replicated::{Builder, Event, NodeConfig, ReplicatedPool};
use futures_util::StreamExt;

use crate::history::Log;
use crate::support::{all_up, count, eventually, insert, on, own_cluster};

/// A deploy is no incident: nothing is warned of that nobody has to look at.
#[tokio::test]
async fn a_healthy_start_warns_of_nothing() {
    let log = Log::listen();
    let local = own_cluster().await;
    let named = |node: &diesel_replicated::testing::LocalNode| {
        NodeConfig::new(node.url("app")).name(format!("told-{}", node.name()))
    };
    let primary = ReplicatedPool::builder().primary(named(local.primary()));
    let builder = local
        .replicas()
        .iter()
        .fold(primary, |builder, replica| builder.replica(named(replica)));
    let pool = builder
        .failover_wait(Duration::from_secs(30))
        .build()
        .await
        .unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    let mut conn = pool.get().await.unwrap();
    assert_eq!(count(&mut conn).await, 3);
    assert_eq!(log.of("", "told-"), Vec::<String>::new());
    // What happens later is told.
    on(&local, |local| {
        local.wait_caught_up().unwrap();
        local.primary().kill().unwrap();
        local.replicas()[0].promote().unwrap();
    })
    .await;
    eventually("the change is told", || async {
        let told = log.of("primary_changed", "told-replica-1");
        told.len() == 1 && told[0].contains("WARN")
    })
    .await;
}

fn builder_named(local: &LocalCluster, tag: &str, database: &str) -> Builder {
    let named = |node: &diesel_replicated::testing::LocalNode| {
        NodeConfig::new(node.url(database)).name(format!("{tag}-{}", node.name()))
    };
    let builder = ReplicatedPool::builder().primary(named(local.primary()));
    let replicas = local.replicas().iter();
    replicas.fold(builder, |builder, replica| builder.replica(named(replica)))
}

// patroni #3468, bcgov/platform-services #405: the synchronous standby is gone, commits hang, and nothing says why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_that_wait_for_a_synchronous_standby_are_told() {
    let log = Log::listen();
    let local = own_cluster().await;
    let health = HealthConfig::default().interval(Duration::from_millis(200));
    let pool = builder_named(&local, "sync", "app").health(health);
    let pool = pool.build().await.unwrap();
    let mut events = pool.subscribe();
    eventually("all are up", || async { all_up(&pool) }).await;
    assert_eq!(pool.status().degraded, Vec::new());
    let configure = |names: &'static str| {
        on(&local, move |local| {
            let set = format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'");
            local.primary().sql("postgres", &set).unwrap();
            local
                .primary()
                .sql("postgres", "SELECT pg_reload_conf()")
                .unwrap();
        })
    };
    configure("gone").await;
    eventually("it is known", || async {
        pool.status().synchronous_standbys == 1
    })
    .await;
    let writer = tokio::spawn({
        let pool = pool.clone();
        async move {
            let mut conn = pool.get().await.unwrap();
            insert("waits").execute(&mut conn).await
        }
    });
    let waits = |degraded: &[Degraded]| {
        let mut all = degraded.iter();
        all.any(|it| {
            it.reason == Degradation::CommitsWait && it.node.as_deref() == Some("sync-primary")
        })
    };
    eventually("the status says so", || async {
        waits(&pool.status().degraded)
    })
    .await;
    let checked = pool.check(Duration::from_secs(10)).await.unwrap();
    assert!(waits(&checked.degraded));
    eventually("it is warned of", || async {
        log.of("degraded", "commits_wait").len() == 1
    })
    .await;
    configure("").await;
    assert_eq!(writer.await.unwrap().unwrap(), 1);
    eventually("it is over", || async { !waits(&pool.status().degraded) }).await;
    eventually("that is told", || async {
        log.all("degradation_over", "commits_wait").len() == 1
    })
    .await;
    pool.close(Duration::from_secs(5)).await;
    let mut told = Vec::new();
    while let Some(event) = events.next().await {
        match event {
            Event::Degraded { what, .. } => told.push((what.reason, true)),
            Event::DegradationOver { what, .. } => told.push((what.reason, false)),
            _ => {}
        }
    }
    let expected = [
        (Degradation::CommitsWait, true),
        (Degradation::CommitsWait, false),
    ];
    assert_eq!(told, expected);
}

/// The line that tells the same, and what it says of it.
fn line_of(event: &Event) -> (&'static str, String) {
    match event {
        Event::NodeChanged { node, to, .. } if *to == NodeHealth::Orphaned => {
            ("replica_orphaned", node.clone())
        }
        Event::NodeChanged { node, to, .. } if *to == NodeHealth::Down => {
            ("node_down", node.clone())
        }
        Event::NodeChanged { node, from, to, .. }
            if *to == NodeHealth::Up && matches!(from, NodeHealth::Unknown | NodeHealth::Down) =>
        {
            ("node_up", node.clone())
        }
        Event::NodeChanged { node, .. } => ("node_changed", node.clone()),
        Event::PrimaryChanged { to, .. } => ("primary_changed", to.clone().unwrap_or_default()),
        Event::StandingChanged { node, .. } => ("standing_changed", node.clone()),
        Event::ReplicationChanged { node, .. } => ("replication_changed", node.clone()),
        Event::Promoted { node, .. } => ("promoted", node.clone()),
        Event::PromotionRefused { .. } => ("promotion_refused", String::new()),
        Event::PromotionFailed { node, .. } => ("promotion_failed", node.clone()),
        Event::ClusterReplaced { .. } => ("cluster_replaced", String::new()),
        Event::Degraded { what, .. } => match what.reason {
            Degradation::NodeUnused => ("standing_changed", what.node.clone().unwrap()),
            Degradation::CommitsWait | Degradation::TimelineUntold => {
                ("degraded", what.node.clone().unwrap())
            }
            reason => (reason.as_str(), String::new()),
        },
        Event::DegradationOver { .. } => ("degradation_over", String::new()),
        other => ("which line?", format!("{other:?}")),
    }
}

/// Who reads the log knows what a program knows that listens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_event_is_a_line_of_the_log_too() {
    let log = Log::listen();
    let local = own_cluster().await;
    let pool = builder_named(&local, "line", "app").build().await.unwrap();
    let mut events = pool.subscribe();
    eventually("all are up", || async { all_up(&pool) }).await;
    let refused = pool.promote("line-replica-1").await.unwrap_err();
    assert!(
        matches!(refused, diesel_replicated::Error::PromotionRefused { .. }),
        "{refused}"
    );
    pool.drain_replica("line-replica-2").await.unwrap();
    on(&local, |local| local.replicas()[0].pause_replay().unwrap()).await;
    eventually("the pause is seen", || async {
        pool.status().node("line-replica-1").unwrap().replay_paused
    })
    .await;
    on(&local, |local| {
        local.replicas()[0].resume_replay().unwrap();
        local.wait_caught_up().unwrap();
        local.primary().kill().unwrap();
    })
    .await;
    pool.force_promote("line-replica-1").await.unwrap();
    on(&local, |local| local.primary().start().unwrap()).await;
    eventually("the old primary is overtaken", || async {
        let state = pool.status();
        let old = state.node("line-primary").unwrap();
        old.kind.is_none()
            && state
                .degraded
                .iter()
                .any(|it| it.reason == Degradation::NodeUnused)
    })
    .await;
    pool.close(Duration::from_secs(5)).await;
    let mut seen = 0;
    while let Some(event) = events.next().await {
        seen += 1;
        let (line, of) = line_of(&event);
        assert!(!log.all(line, &of).is_empty(), "{event:?}");
    }
    assert!(seen > 8, "{seen}");
}

// The names of a database that was dropped, or of a role, come back in each error: once is enough.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_database_is_told_in_a_few_lines() {
    let log = Log::listen();
    let local = own_cluster().await;
    on(&local, |local| local.create_database("dropped").unwrap()).await;
    let pool = builder_named(&local, "drop", "dropped")
        .build()
        .await
        .unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    let mut conn = pool.get().await.unwrap();
    crate::support::run(&mut conn, "SELECT 1").await.unwrap();
    on(&local, |local| {
        local
            .primary()
            .sql("postgres", "DROP DATABASE dropped WITH (FORCE)")
            .unwrap();
    })
    .await;
    let started = std::time::Instant::now();
    while started.elapsed() < Duration::from_secs(10) {
        let mut conn = pool.get().await.unwrap();
        let _ = crate::support::run(&mut conn, "SELECT 1").await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let lines = log.all("", "drop-");
    println!("{}", lines.join("\n"));
    assert!(lines.len() <= 40, "{} lines", lines.len());
}

/// A job that runs for a second makes a pool for one read. What it asks of a server to know where that is, is bounded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_lived_pool_asks_each_node_for_little() {
    let local = crate::support::blocking(|| {
        let builder = LocalCluster::builder().setting("log_statement", "all");
        let local = builder.start().unwrap();
        crate::support::fill(&local, "app");
        std::sync::Arc::new(local)
    })
    .await;
    let asked = |node: &diesel_replicated::testing::LocalNode| {
        let of_app =
            |line: &&str| line.contains(" LOG:  execute ") || line.contains(" LOG:  statement: ");
        node.log().lines().filter(of_app).count()
    };
    let before: Vec<usize> = local.nodes().map(asked).collect();
    let pool = builder_named(&local, "short", "app").build().await.unwrap();
    let mut conn = pool.get().await.unwrap();
    assert_eq!(count(&mut conn).await, 3);
    drop(conn);
    pool.close(Duration::from_secs(5)).await;
    let mut all: Vec<usize> = local
        .nodes()
        .map(asked)
        .zip(before)
        .map(|(now, then)| now - then)
        .collect();
    all.sort_unstable();
    // Two connections to each node, and the primary's has loaded the catalog.
    assert!(all[2] <= 26 && all[1] <= 18, "{all:?}");
}
