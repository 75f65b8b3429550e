//! Standbys that follow whoever was promoted, so that the next failover can come.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use diesel_replicated::config::PromotionConfig;
use diesel_replicated::status::{Degradation, FollowingState, NodeKind};
use diesel_replicated::testing::{LocalCluster, LocalNode};
use diesel_replicated::{ErrorExt, Event, Outcome, ReplicatedPool};
use futures_util::StreamExt;
use tokio_util::sync::CancellationToken;

use crate::support::{
    all_up, always, blocking, builder_for, eventually, fill, insert, on, own_cluster, users,
};

/// Longer than any promotion of a test takes on a busy machine.
const PATIENT: Duration = Duration::from_secs(60);

async fn pool(local: &LocalCluster, promotion: PromotionConfig) -> ReplicatedPool {
    let builder = builder_for(local, "app")
        .failover_wait(PATIENT)
        .fallback_share(1.0);
    let pool = builder.promotion(promotion).build().await.unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    pool
}

fn following() -> PromotionConfig {
    PromotionConfig::default().standbys_follow(true)
}

fn value(node: &LocalNode, sql: &str) -> Option<String> {
    let rows = node.sql("app", sql).ok()?;
    rows.into_iter().next()?.into_iter().next()?
}

/// By its own word.
fn receives(node: &LocalNode, timeline: u32) -> bool {
    let sql = format!(
        "SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming' AND received_tli = {timeline}"
    );
    value(node, &sql).as_deref() == Some("1")
}

async fn eventually_receives(local: &Arc<LocalCluster>, name: &str, timeline: u32) {
    eventually(
        &format!("`{name}` receives timeline {timeline}"),
        || async {
            let name = name.to_owned();
            on(local, move |local| {
                receives(local.node(&name).unwrap(), timeline)
            })
            .await
        },
    )
    .await;
}

/// What is in doubt may be there or not. What was acknowledged has to be there, and the table takes no name twice.
#[derive(Default)]
struct Written {
    acknowledged: Mutex<BTreeSet<String>>,
}

async fn work(pool: ReplicatedPool, worker: usize, written: Arc<Written>, stop: CancellationToken) {
    let mut number = 0;
    while !stop.is_cancelled() {
        number += 1;
        let name = format!("{worker}-{number}");
        let mut conn = pool.get().await.unwrap();
        match insert(&name).execute(&mut conn).await {
            Ok(_) => drop(written.acknowledged.lock().unwrap().insert(name)),
            Err(error) => assert_ne!(error.outcome(), Outcome::Failed, "{name}: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Its commits wait for a standby while it is the primary. What is built anew has forgotten that.
fn confirm(node: &LocalNode) {
    let confirm = "ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (*)'";
    node.sql("postgres", confirm).unwrap();
    node.reload().unwrap();
}

/// A plain select is served by a replica again.
async fn eventually_read_on_a_replica(pool: &ReplicatedPool) {
    eventually("replicas serve reads", || async {
        let mut conn = pool.get().await.unwrap();
        let read = users::table.count().get_result::<i64>(&mut conn).await;
        read.is_ok()
            && conn
                .last_route()
                .is_some_and(|route| route.kind == NodeKind::Replica)
    })
    .await;
}

// stormatics/pg_cirrus #65, repmgr #158: automatic failover worked once. Here the primary dies ten times.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_failovers_in_a_row_need_no_operator_and_lose_nothing() {
    let local = blocking(|| {
        let local = LocalCluster::start().unwrap();
        fill(&local, "app");
        // A commit waits until a standby has it. So after a failover none is done before a standby follows.
        local.nodes().for_each(confirm);
        Arc::new(local)
    })
    .await;
    let automatic = PromotionConfig::automatic()
        .after(Duration::ZERO)
        .standbys_follow(true);
    let pool = pool(&local, automatic.clone()).await;
    // Another process, which does the same at the same time.
    let other = self::pool(&local, automatic).await;
    let (written, stop) = (Arc::<Written>::default(), CancellationToken::new());
    let workers: Vec<_> = [&pool, &other, &pool]
        .into_iter()
        .enumerate()
        .map(|(worker, pool)| {
            tokio::spawn(work(
                pool.clone(),
                worker,
                Arc::clone(&written),
                stop.clone(),
            ))
        })
        .collect();
    for timeline in 2..12 {
        let old = pool.status().primary.unwrap();
        let killed = old.clone();
        on(&local, move |local| {
            local.node(&killed).unwrap().kill().unwrap()
        })
        .await;
        eventually("another takes writes", || async {
            let status = pool.status();
            status.takes_writes && status.timeline == timeline
        })
        .await;
        let new = pool.status().primary.unwrap();
        let names = ["primary", "replica-1", "replica-2"];
        let third = names
            .into_iter()
            .find(|it| *it != old && *it != new)
            .unwrap();
        eventually_receives(&local, third, timeline).await;
        eventually_read_on_a_replica(&pool).await;
        let before = written.acknowledged.lock().unwrap().len();
        eventually("writes are acknowledged", || async {
            written.acknowledged.lock().unwrap().len() > before
        })
        .await;
        // The operator's part: the old primary comes back as a standby of the new one.
        let back = old.clone();
        on(&local, move |local| {
            let (old, new) = (local.node(&back).unwrap(), local.node(&new).unwrap());
            local.rebuild(old, new).unwrap();
            confirm(old);
        })
        .await;
        eventually_receives(&local, &old, timeline).await;
        eventually("all are up", || async { all_up(&pool) && all_up(&other) }).await;
    }
    stop.cancel();
    for worker in workers {
        worker.await.unwrap();
    }
    assert_eq!(pool.status().timeline, 11);
    let mut conn = pool.get().await.unwrap();
    let names = users::table.select(users::name);
    let there: Vec<String> = names.load(&mut *conn.primary()).await.unwrap();
    let unique: BTreeSet<&String> = there.iter().collect();
    assert_eq!(unique.len(), there.len());
    let acknowledged = written.acknowledged.lock().unwrap();
    let lost: Vec<_> = acknowledged
        .iter()
        .filter(|name| !unique.contains(name))
        .collect();
    assert!(lost.is_empty(), "{lost:?} of {}", acknowledged.len());
}

#[tokio::test]
async fn without_the_setting_standbys_are_left_alone() {
    let local = own_cluster().await;
    let pool = pool(&local, PromotionConfig::default()).await;
    let conninfo = |local: &LocalCluster| value(&local.replicas()[1], "SHOW primary_conninfo");
    let before = on(&local, conninfo).await;
    on(&local, |local| local.primary().kill().unwrap()).await;
    pool.promote("replica-1").await.unwrap();
    always(
        "it is not told anything",
        Duration::from_secs(2),
        || async {
            on(&local, conninfo).await == before && pool.status().promotion.following.is_empty()
        },
    )
    .await;
}

#[tokio::test]
async fn each_step_is_told() {
    let local = own_cluster().await;
    let pool = pool(&local, following()).await;
    assert_eq!(pool.status().promotion.following, Vec::new());
    let mut events = pool.subscribe();
    on(&local, |local| local.primary().kill().unwrap()).await;
    pool.promote("replica-1").await.unwrap();
    eventually_receives(&local, "replica-2", 2).await;
    eventually("it is told", || async {
        let following = pool.status().promotion.following;
        following.len() == 1 && following[0].state == FollowingState::Follows
    })
    .await;
    let told = &pool.status().promotion.following[0];
    assert_eq!(
        (told.node.as_str(), told.primary.as_str()),
        ("replica-2", "replica-1")
    );
    assert_eq!(told.timeline, 2);
    let told = async {
        let mut names = Vec::new();
        while let Some(event) = events.next().await {
            if let Event::StandbyTold { node, timeline, .. }
            | Event::StandbyFollows { node, timeline, .. } = &event
            {
                assert_eq!((node.as_str(), *timeline), ("replica-2", 2));
                names.push(event.name());
            }
            if names.len() == 2 {
                break;
            }
        }
        names
    };
    let told = tokio::time::timeout(PATIENT, told).await.unwrap();
    assert_eq!(told, ["standby_told", "standby_follows"]);
    eventually("its state is", || async {
        let status = pool.status();
        status.node("replica-2").unwrap().upstream.as_deref() == Some("replica-1")
            && !status
                .degraded
                .iter()
                .any(|it| it.reason == Degradation::StandbyLeft)
    })
    .await;
}

/// The old primary lives, fenced, and its standbys would go on receiving from it.
#[tokio::test]
async fn after_a_switchover_the_others_follow_and_the_old_primary_says_what_it_needs() {
    let local = own_cluster().await;
    let pool = pool(&local, following()).await;
    pool.switchover("replica-1").await.unwrap();
    eventually_receives(&local, "replica-2", 2).await;
    eventually("the old one says so", || async {
        let status = pool.status();
        let cause = status.node("primary").unwrap().cause.clone();
        cause.is_some_and(|cause| cause.contains("pg_rewind"))
    })
    .await;
    eventually_read_on_a_replica(&pool).await;
}
