//! What it costs that every session of a pool sees what any of them has written.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use diesel_replicated::ReplicatedPool;
use diesel_replicated::status::NodeKind;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::{PATIENCE, quartiles, read, write};

const TASKS: usize = 8;

/// How many statements a task performs in one turn.
const BATCH: usize = 100;

/// What came of one turn.
#[derive(Default)]
struct Turn {
    /// Statements for each second.
    rate: f64,
    /// Of reads, in microseconds.
    latencies: Vec<f64>,
    reads: usize,
    on_replicas: usize,
}

/// So many of a hundred statements write, each on a connection of its own.
async fn turn(pool: &ReplicatedPool, writes: usize) -> Turn {
    let started = Instant::now();
    let latencies = Arc::new(Mutex::new(Vec::new()));
    let on_replicas = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let (pool, latencies) = (pool.clone(), Arc::clone(&latencies));
        let on_replicas = Arc::clone(&on_replicas);
        tasks.spawn(async move {
            let mut own = Vec::with_capacity(BATCH);
            for step in 0..BATCH {
                let mut conn = pool.get().await.unwrap();
                // Spread over the turn, and each task at other times.
                if (step * writes + task * 13) % 100 < writes {
                    write(&mut conn).await;
                    continue;
                }
                let begun = Instant::now();
                let key = i32::try_from(1 + (step * 37 + task * 11) % 1000).unwrap();
                read(&mut conn, key).await;
                own.push(begun.elapsed().as_secs_f64() * 1e6);
                let replica = conn.last_route().unwrap().kind == NodeKind::Replica;
                on_replicas.fetch_add(usize::from(replica), Ordering::Relaxed);
            }
            latencies.lock().await.extend(own);
        });
    }
    tasks.join_all().await;
    let latencies = std::mem::take(&mut *latencies.lock().await);
    Turn {
        rate: (TASKS * BATCH) as f64 / started.elapsed().as_secs_f64(),
        reads: latencies.len(),
        latencies,
        on_replicas: on_replicas.load(Ordering::Relaxed),
    }
}

/// The scope of the session beside that of the pool; a read that fails ends the measurement.
pub(crate) async fn compare(session: &ReplicatedPool, pool: &ReplicatedPool, count: usize) {
    println!(
        "{TASKS} tasks, each statement on a connection of its own: scope of the pool / of the session"
    );
    println!("  writes   throughput            median read   replicas serve");
    for (writes, target) in [(1, 0.95), (5, 0.9), (20, 0.75)] {
        let started = Instant::now();
        let (mut rates, mut reads, mut served) = (Vec::new(), Vec::new(), (0, 0));
        turn(session, writes).await;
        turn(pool, writes).await;
        while rates.len() < count && started.elapsed() < PATIENCE.min(Duration::from_secs(12)) {
            let (one, other) = if rates.len() % 2 == 0 {
                let one = turn(session, writes).await;
                (one, turn(pool, writes).await)
            } else {
                let other = turn(pool, writes).await;
                (turn(session, writes).await, other)
            };
            rates.push(other.rate / one.rate);
            reads.push(quartiles(other.latencies)[1] / quartiles(one.latencies)[1]);
            served = (served.0 + other.on_replicas, served.1 + other.reads);
        }
        let [low, rate, high] = quartiles(rates);
        println!(
            "  {writes:>4} %   {rate:.2} [{low:.2}-{high:.2}] (>= {target})   {:>11.2}   {:>9.1} %",
            quartiles(reads)[1],
            100.0 * served.0 as f64 / served.1 as f64
        );
    }
    println!();
}
