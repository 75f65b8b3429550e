//! How long a failure lasts for who uses the pool, and what watching for it costs.
//!
//! Each round has a cluster of its own, a primary and two replicas, and breaks it. Where the pool can be
//! compared, a bare connection that does nothing but try again stands beside it in the same run.
//! Medians of the rounds are reported, with the least and the most. `BENCH_ROUNDS` sets the number of
//! rounds. Nothing fails for being slow.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a program of measurements, which fails by panicking"
)]

#[path = "../common/mod.rs"]
mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use diesel::{QueryResult, sql_query};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use diesel_replicated::config::PromotionConfig;
use diesel_replicated::testing::LocalCluster;
use diesel_replicated::{NodeConfig, ReplicatedPool};

use common::{all_up, fill, processor_time};

const ROUNDS: usize = 7;
const SCHEMA: &str = "CREATE TABLE items (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY)";
const WRITE: &str = "INSERT INTO items DEFAULT VALUES";

fn cluster() -> Arc<LocalCluster> {
    let cluster = LocalCluster::start().unwrap();
    fill(&cluster, SCHEMA);
    Arc::new(cluster)
}

async fn pool(cluster: &LocalCluster, promotion: PromotionConfig) -> ReplicatedPool {
    let node = |node: &diesel_replicated::testing::LocalNode| {
        NodeConfig::new(node.url("bench")).name(node.name().to_owned())
    };
    let builder = ReplicatedPool::builder().primary(node(cluster.primary()));
    let replicas = cluster.replicas().iter();
    let builder = replicas.fold(builder, |builder, replica| builder.replica(node(replica)));
    let builder = builder.failover_wait(Duration::from_secs(30));
    let pool = builder.promotion(promotion).build().await.unwrap();
    all_up(&pool).await;
    pool
}

async fn blocking<T: Send + 'static>(
    cluster: &Arc<LocalCluster>,
    work: impl FnOnce(&LocalCluster) -> T + Send + 'static,
) -> T {
    let cluster = Arc::clone(cluster);
    tokio::task::spawn_blocking(move || work(&cluster))
        .await
        .unwrap()
}

/// Writes until that succeeds; when it did.
async fn first_write(pool: ReplicatedPool) -> Instant {
    loop {
        let mut conn = pool.get().await.unwrap();
        if conn.batch_execute(WRITE).await.is_ok() {
            return Instant::now();
        }
    }
}

/// The same over bare connections to one server, as often as that can be.
async fn first_bare_write(url: String) -> Instant {
    loop {
        let tried = async {
            let mut conn = AsyncPgConnection::establish(&url).await.ok()?;
            while conn.batch_execute(WRITE).await.is_err() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Some(())
        };
        if tried.await.is_some() {
            return Instant::now();
        }
    }
}

/// From the end of the primary to the first write, where the pool promotes by itself.
async fn automatic() -> f64 {
    let cluster = tokio::task::spawn_blocking(cluster).await.unwrap();
    let promotion = PromotionConfig::automatic().after(Duration::ZERO);
    let pool = pool(&cluster, promotion).await;
    first_write(pool.clone()).await;
    let killed = blocking(&cluster, |cluster| {
        let now = Instant::now();
        cluster.primary().kill().unwrap();
        now
    });
    let killed = killed.await;
    (first_write(pool).await - killed).as_secs_f64() * 1e3
}

/// From when another's promotion has a bare connection write, to when the pool does.
async fn outside() -> f64 {
    let cluster = tokio::task::spawn_blocking(cluster).await.unwrap();
    let pool = pool(&cluster, PromotionConfig::default()).await;
    first_write(pool.clone()).await;
    blocking(&cluster, |cluster| cluster.primary().kill().unwrap()).await;
    let url = cluster.replicas()[0].url("bench");
    let ours = tokio::spawn(first_write(pool));
    let bare = tokio::spawn(first_bare_write(url));
    blocking(&cluster, |cluster| cluster.replicas()[0].promote().unwrap()).await;
    let (ours, bare) = (ours.await.unwrap(), bare.await.unwrap());
    if ours > bare {
        (ours - bare).as_secs_f64() * 1e3
    } else {
        -(bare - ours).as_secs_f64() * 1e3
    }
}

/// Reads that fail when a replica is killed under load, and how many there were in all.
async fn dead_replica() -> (u64, u64) {
    let cluster = tokio::task::spawn_blocking(cluster).await.unwrap();
    let pool = pool(&cluster, PromotionConfig::default()).await;
    let counts = Arc::new((AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false)));
    let readers = (0..8).map(|_| {
        let (pool, counts) = (pool.clone(), Arc::clone(&counts));
        tokio::spawn(async move {
            while !AtomicBool::load(&counts.2, Ordering::Relaxed) {
                let mut conn = pool.get().await.unwrap();
                let read: QueryResult<usize> = sql_query("SELECT 1").execute(&mut conn).await;
                counts
                    .0
                    .fetch_add(u64::from(read.is_err()), Ordering::Relaxed);
                counts.1.fetch_add(1, Ordering::Relaxed);
            }
        })
    });
    let readers: Vec<_> = readers.collect();
    tokio::time::sleep(Duration::from_millis(300)).await;
    blocking(&cluster, |cluster| cluster.replicas()[0].kill().unwrap()).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    counts.2.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.await.unwrap();
    }
    (counts.0.load_ordered(), counts.1.load_ordered())
}

/// Diesel has methods of this name for everything.
trait LoadOrdered {
    fn load_ordered(&self) -> u64;
}

impl LoadOrdered for AtomicU64 {
    fn load_ordered(&self) -> u64 {
        Self::load(self, Ordering::Relaxed)
    }
}

/// Microseconds of processor time for each node and second, of a pool that nobody uses.
async fn watching() -> f64 {
    const SECONDS: u32 = 5;
    let cluster = tokio::task::spawn_blocking(cluster).await.unwrap();
    let _pool = pool(&cluster, PromotionConfig::default()).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = processor_time();
    tokio::time::sleep(Duration::from_secs(SECONDS.into())).await;
    (processor_time() - before).as_secs_f64() * 1e6 / f64::from(SECONDS) / 3.0
}

/// How long reads take while the topology changes a thousand times a second, beside reads of the same
/// pool while it does not.
async fn changing() -> f64 {
    let cluster = tokio::task::spawn_blocking(cluster).await.unwrap();
    let pool = pool(&cluster, PromotionConfig::default()).await;
    let mut conn = pool.get().await.unwrap();
    let mut ratios = Vec::new();
    for _ in 0..20 {
        let mut times = [Duration::ZERO; 2];
        for (time, change) in times.iter_mut().zip([false, true]) {
            let changer = change.then(|| {
                let pool = pool.clone();
                tokio::spawn(async move {
                    for weight in 0u32.. {
                        pool.set_weight("replica-1", i64::from(1 + weight % 2))
                            .await
                            .unwrap();
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                })
            });
            let started = Instant::now();
            for _ in 0..1000 {
                sql_query("SELECT 1").execute(&mut conn).await.unwrap();
            }
            *time = started.elapsed();
            if let Some(changer) = changer {
                changer.abort();
            }
        }
        ratios.push(times[1].as_secs_f64() / times[0].as_secs_f64());
    }
    median(&mut ratios)
}

fn median(figures: &mut [f64]) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn report(what: &str, figures: &mut [f64], unit: &str) {
    let middle = median(figures);
    let (least, most) = (figures[0], figures[figures.len() - 1]);
    println!("{what:<62} {middle:>8.1} {unit}   ({least:.1} to {most:.1})");
}

#[tokio::main]
async fn main() {
    let rounds = std::env::var("BENCH_ROUNDS").ok();
    let rounds = rounds
        .and_then(|rounds| rounds.parse().ok())
        .unwrap_or(ROUNDS);
    let (mut own, mut others, mut failed, mut reads) = (Vec::new(), Vec::new(), 0, 0);
    for _ in 0..rounds {
        own.push(automatic().await);
        others.push(outside().await);
        let (errors, all) = dead_replica().await;
        failed += errors;
        reads += all;
    }
    report(
        "kill -9 of the primary to a write, promoted by the pool",
        &mut own,
        "ms",
    );
    report(
        "a bare connection's first write after another's promotion, to ours",
        &mut others,
        "ms",
    );
    println!("reads that failed when a replica was killed: {failed} of {reads}");
    report(
        "processor time of watching, for a node and second",
        &mut [watching().await],
        "us",
    );
    report(
        "reads while the topology changes 1000 times a second, beside none",
        &mut [changing().await],
        "x",
    );
}
