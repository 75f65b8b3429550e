//! One fault after the other under load: readers, writers, and transactions that are done again.
//!
//! Commits wait for a standby, so that whatever was acknowledged has to be there in the end; names are
//! unique, so that what runs twice is refused. How long nobody could write is told with `--nocapture`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use diesel_replicated::config::PromotionConfig;
use diesel_replicated::testing::{LocalCluster, LocalClusterBuilder, StopMode};
use diesel_replicated::{
    ErrorExt, NodeConfig, Outcome, ReplicatedConnection, ReplicatedPool, RetryPolicy,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::support::{all_up, blocking, eventually, fill, insert, users};

/// Longer than any fault of a test lasts on a busy machine.
const PATIENT: Duration = Duration::from_secs(60);

/// What the load has met.
#[derive(Default)]
struct Ledger {
    numbers: AtomicU64,
    acknowledged: std::sync::Mutex<Vec<(String, Instant)>>,
    reads: AtomicU64,
    failed_reads: AtomicU64,
}

impl Ledger {
    fn acknowledged(&self) -> Vec<(String, Instant)> {
        self.acknowledged.lock().unwrap().clone()
    }
}

struct Trial {
    local: Arc<LocalCluster>,
    pool: ReplicatedPool,
    ledger: Arc<Ledger>,
    stop: CancellationToken,
    workers: JoinSet<()>,
}

async fn write(pool: &ReplicatedPool, ledger: &Ledger, in_transaction: bool) {
    let name = format!("n{}", ledger.numbers.fetch_add(1, Ordering::Relaxed));
    let mut conn = pool.get().await.unwrap();
    let result = if in_transaction {
        let policy = RetryPolicy::default().attempts(u32::MAX).limit(PATIENT);
        let work = async |conn: &mut ReplicatedConnection| insert(&name).execute(conn).await;
        conn.retry_transaction(policy, work).await
    } else {
        insert(&name).execute(&mut conn).await
    };
    match result {
        Ok(_) => {
            let entry = (name, Instant::now());
            ledger.acknowledged.lock().unwrap().push(entry);
        }
        // The server refuses what it has already: then it ran twice.
        Err(error) => assert_ne!(error.outcome(), Outcome::Failed, "{name}: {error}"),
    }
}

async fn read(pool: &ReplicatedPool, ledger: &Ledger) {
    let mut conn = pool.get().await.unwrap();
    let read = users::table.count().get_result::<i64>(&mut conn).await;
    let counter = if read.is_ok() {
        &ledger.reads
    } else {
        &ledger.failed_reads
    };
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Trial {
    /// A cluster under load, reached through proxies.
    async fn begin(cluster: LocalClusterBuilder, promotion: PromotionConfig) -> Self {
        let local = blocking(move || {
            let local = cluster.start().unwrap();
            fill(&local, "app");
            let confirm = "ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (*)'";
            local.primary().sql("postgres", confirm).unwrap();
            local
                .primary()
                .sql("postgres", "SELECT pg_reload_conf()")
                .unwrap();
            Arc::new(local)
        })
        .await;
        let node = |node: &diesel_replicated::testing::LocalNode| {
            NodeConfig::new(node.proxied_url("app").unwrap()).name(node.name().to_owned())
        };
        let builder = ReplicatedPool::builder().primary(node(local.primary()));
        let replicas = local.replicas().iter();
        let builder = replicas.fold(builder, |builder, replica| builder.replica(node(replica)));
        let builder = builder
            .failover_wait(PATIENT)
            .fallback_share(1.0)
            .max_size(20);
        let pool = builder.promotion(promotion).build().await.unwrap();
        eventually("all are up", || async { all_up(&pool) }).await;
        let mut trial = Self {
            local,
            pool,
            ledger: Arc::default(),
            stop: CancellationToken::new(),
            workers: JoinSet::new(),
        };
        for worker in 0..6 {
            let (pool, ledger) = (trial.pool.clone(), Arc::clone(&trial.ledger));
            let stop = trial.stop.clone();
            trial.workers.spawn(async move {
                while !stop.is_cancelled() {
                    match worker % 3 {
                        0 => read(&pool, &ledger).await,
                        other => write(&pool, &ledger, other == 1).await,
                    }
                }
            });
        }
        trial.goes_on(Instant::now()).await;
        trial
    }

    async fn on(&self, verb: impl FnOnce(&LocalCluster) + Send + 'static) {
        let local = Arc::clone(&self.local);
        blocking(move || verb(&local)).await;
    }

    /// Waits until writes are acknowledged and reads are answered that began after `since`.
    async fn goes_on(&self, since: Instant) {
        let reads = AtomicU64::load(&self.ledger.reads, Ordering::Relaxed);
        eventually("the load goes on", || async {
            let later = |(_, at): &(String, Instant)| *at > since;
            let written = self.ledger.acknowledged().into_iter().filter(later).count();
            let read = AtomicU64::load(&self.ledger.reads, Ordering::Relaxed) - reads;
            written > 20 && read > 20
        })
        .await;
    }

    /// Ends the load, and looks for all that was acknowledged. Returns how many reads failed.
    async fn end(mut self, what: &str) -> u64 {
        self.goes_on(Instant::now()).await;
        self.stop.cancel();
        while let Some(worker) = self.workers.join_next().await {
            worker.unwrap();
        }
        let mut conn = self.pool.get().await.unwrap();
        let names = users::table.select(users::name);
        let names: Vec<String> = names.load(&mut conn.primary()).await.unwrap();
        let names: std::collections::HashSet<_> = names.into_iter().collect();
        let acknowledged = self.ledger.acknowledged();
        let lost = acknowledged
            .iter()
            .filter(|(name, _)| !names.contains(name));
        assert_eq!(lost.count(), 0, "{what}");
        let mut times: Vec<_> = acknowledged.iter().map(|(_, at)| *at).collect();
        times.sort_unstable();
        let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
        let gap = gaps.max().unwrap_or_default();
        let failed = AtomicU64::load(&self.ledger.failed_reads, Ordering::Relaxed);
        tell(&format!(
            "{what}: {} writes, the longest pause {gap:?}, {failed} reads failed",
            times.len()
        ));
        failed
    }
}

#[expect(clippy::print_stdout, reason = "figures for who asks for them")]
fn tell(line: &str) {
    println!("{line}");
}

fn automatic() -> PromotionConfig {
    PromotionConfig::automatic().after(Duration::ZERO)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_primary_ends_in_every_way_and_is_replaced() {
    type Fault = fn(&LocalCluster);
    let faults: [(&str, Fault); 3] = [
        ("kill -9", |local| local.primary().kill().unwrap()),
        ("fast stop", |local| {
            local.primary().stop(StopMode::Fast).unwrap()
        }),
        ("immediate stop", |local| {
            local.primary().stop(StopMode::Immediate).unwrap()
        }),
    ];
    for (what, fault) in faults {
        let trial = Trial::begin(LocalCluster::builder(), automatic()).await;
        trial.on(fault).await;
        eventually("another rules", || async {
            let status = trial.pool.status();
            status.takes_writes && status.timeline == 2
        })
        .await;
        trial.end(what).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_primary_is_away_for_a_while() {
    let trial = Trial::begin(LocalCluster::builder(), PromotionConfig::default()).await;
    for round in 0..4 {
        trial
            .on(move |local| {
                let primary = local.primary();
                match round {
                    0 => primary.restart().unwrap(),
                    1 => {
                        primary.kill().unwrap();
                        primary.start().unwrap();
                    }
                    2 => {
                        primary.proxy().unwrap().cut();
                        primary.proxy().unwrap().heal();
                    }
                    _ => {
                        primary.freeze();
                        std::thread::sleep(Duration::from_millis(300));
                        primary.thaw();
                    }
                }
            })
            .await;
        trial.goes_on(Instant::now()).await;
    }
    assert_eq!(trial.end("restart, crash, cut link, short freeze").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_black_hole_swallows_the_primary_for_a_while() {
    let trial = Trial::begin(LocalCluster::builder(), PromotionConfig::default()).await;
    trial
        .on(|local| local.primary().proxy().unwrap().black_hole())
        .await;
    eventually("it is known to be gone", || async {
        !trial.pool.status().takes_writes
    })
    .await;
    trial
        .on(|local| local.primary().proxy().unwrap().heal())
        .await;
    assert_eq!(trial.end("black hole").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_come_and_go() {
    let cluster = LocalCluster::builder().replicas(2).cascading_from(0);
    let trial = Trial::begin(cluster, PromotionConfig::default()).await;
    for round in 0..5 {
        trial
            .on(move |local| {
                let upstream = &local.replicas()[0];
                match round {
                    0 => {
                        upstream.kill().unwrap();
                        upstream.start().unwrap();
                    }
                    1 => {
                        upstream.pause_replay().unwrap();
                        upstream.resume_replay().unwrap();
                    }
                    2 => {
                        upstream.freeze();
                        std::thread::sleep(Duration::from_millis(300));
                        upstream.thaw();
                    }
                    3 => {
                        local.replicas()[2].stop(StopMode::Immediate).unwrap();
                        local.replicas()[2].start().unwrap();
                    }
                    _ => local
                        .rebuild(&local.replicas()[1], local.primary())
                        .unwrap(),
                }
            })
            .await;
        trial.goes_on(Instant::now()).await;
    }
    assert_eq!(
        trial.end("replicas, one of them another's upstream").await,
        0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_whole_cluster_is_restarted() {
    let trial = Trial::begin(LocalCluster::builder(), PromotionConfig::default()).await;
    trial
        .on(|local| {
            local.nodes().for_each(|node| node.kill().unwrap());
            local.nodes().for_each(|node| node.start().unwrap());
        })
        .await;
    trial.end("all at once").await;
}
