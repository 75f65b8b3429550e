//! Many tasks for few connections: who waits, in which order, and what that takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use diesel::sql_query;
use diesel_async::pooled_connection::AsyncDieselConnectionManager;
use diesel_async::pooled_connection::bb8::Pool;
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use diesel_replicated::ReplicatedPool;
use diesel_replicated::testing::LocalCluster;
use tokio::task::JoinSet;

use super::load::{SERVED, read};
use super::memory::resident;
use super::{SERVICE, builder, built};

const TASKS: usize = 500;
const MANY: usize = 10_000;
const SIZE: u32 = 20;

#[derive(Clone)]
enum Contender {
    Ours(ReplicatedPool),
    Bb8(Pool<AsyncPgConnection>),
}

impl Contender {
    async fn read(&self) {
        match self {
            Self::Ours(pool) => assert!(read(&mut pool.get().await.unwrap(), SERVED).await),
            Self::Bb8(pool) => {
                let mut conn = pool.get().await.unwrap();
                let query = sql_query(SERVED);
                let read: diesel::QueryResult<usize> = query.execute(&mut *conn).await;
                read.unwrap();
            }
        }
    }
}

/// Each wait, and by how many the read was served later than it had asked.
async fn waits(contender: Contender, time: Duration) -> Vec<(Duration, u64)> {
    let numbers = Arc::new((AtomicU64::new(0), AtomicU64::new(0)));
    let started = Instant::now();
    let task = |_| {
        let (contender, numbers) = (contender.clone(), Arc::clone(&numbers));
        async move {
            let mut waits = Vec::new();
            while started.elapsed() < time {
                let asked = (
                    Instant::now(),
                    AtomicU64::fetch_add(&numbers.0, 1, Ordering::Relaxed),
                );
                contender.read().await;
                let served = AtomicU64::fetch_add(&numbers.1, 1, Ordering::Relaxed);
                waits.push((asked.0.elapsed(), served.saturating_sub(asked.1)));
            }
            waits
        }
    };
    let tasks: JoinSet<_> = (0..TASKS).map(task).collect();
    tasks.join_all().await.concat()
}

/// 500 tasks read in a loop over 20 connections.
pub(crate) async fn in_turn(cluster: &LocalCluster) {
    let fair = SERVICE * u32::try_from(TASKS).unwrap() / SIZE;
    println!(
        "\n{TASKS} tasks on a pool of {SIZE}: how long a read takes, {fair:?} if each has its turn; by how many others it was overtaken at the most"
    );
    let url = cluster.replicas()[0].url("bench");
    let manager = AsyncDieselConnectionManager::<AsyncPgConnection>::new(url);
    let bb8 = Pool::builder().max_size(SIZE).build(manager).await.unwrap();
    let ours = built(builder(cluster, 1).max_size(SIZE)).await;
    for (name, contender) in [
        ("bb8 of diesel-async", Contender::Bb8(bb8)),
        ("this pool", Contender::Ours(ours)),
    ] {
        let mut waits = waits(contender, Duration::from_secs(5)).await;
        // The first ones wait for connections to be opened.
        waits.sort_unstable();
        let at = |percent: usize| waits[(waits.len() * percent / 100).min(waits.len() - 1)].0;
        let overtaken = waits.iter().map(|wait| wait.1).max().unwrap();
        println!(
            "  {name:<20}  p50 {:>5.0} ms  p99 {:>5.0} ms  most {:>5.0} ms  overtaken by {overtaken}   ({} reads)",
            at(50).as_secs_f64() * 1e3,
            at(99).as_secs_f64() * 1e3,
            at(100).as_secs_f64() * 1e3,
            waits.len()
        );
    }
}

/// 10,000 tasks wait at once.
pub(crate) async fn many(cluster: &LocalCluster) {
    println!("\n{MANY} tasks wait for {SIZE} connections at once");
    for (what, limit) in [
        ("each is served", Duration::from_secs(60)),
        ("limit of 2 s", Duration::from_secs(2)),
    ] {
        let pool = builder(cluster, 1).max_size(SIZE).connection_timeout(limit);
        let pool = built(pool).await;
        let before = resident();
        let started = Instant::now();
        let task = |_| {
            let pool = pool.clone();
            async move {
                let mut conn = pool.get().await.unwrap();
                let served = read(&mut conn, SERVED).await;
                (served, started.elapsed())
            }
        };
        let tasks: JoinSet<_> = (0..MANY).map(task).collect();
        tokio::time::sleep(Duration::from_millis(800)).await;
        let each = resident().saturating_sub(before) as f64 / MANY as f64;
        let ended = tasks.join_all().await;
        let served = ended.iter().filter(|(served, _)| *served).count();
        let late = ended.iter().filter(|(served, _)| !served);
        let latest = late.map(|(_, at)| at.as_secs_f64()).fold(0.0, f64::max);
        let all = started.elapsed().as_secs_f64();
        // All connections are back.
        assert!(read(&mut pool.get().await.unwrap(), SERVED).await);
        let out = pool.status().connections_out;
        println!(
            "  {what:<16}  {each:>6.0} bytes for each; {served} served, {} told that it took too long (the last after {latest:.1} s), in {all:.1} s; {out} connections out",
            ended.len() - served
        );
    }
}
