//! What consistency costs: writes with their positions followed beside writes without, and reads
//! after writes.
//!
//! Contenders take turns within one run, in small batches, so that whatever else the machine does
//! meets all of them alike. Ratios are taken within each round; the median of the rounds is reported
//! with the quartiles around it, and in round brackets what the faster quarter of the rounds says.
//! `BENCH_ROUNDS` sets the number of rounds. Nothing fails for being slow.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a program of measurements, which fails by panicking"
)]

#[path = "../common/mod.rs"]
mod common;
mod mixed;
mod waits;

use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use diesel_replicated::config::{ConsistencyConfig, WriteScope};
use diesel_replicated::status::NodeKind;
use diesel_replicated::testing::LocalCluster;
use diesel_replicated::{Builder, Consistency, ReplicatedConnection, ReplicatedPool};
use tokio::task::JoinSet;

use common::{fill, items, quartiles};

/// How many writes a task performs in one turn.
const BATCH: usize = 32;
const ROUNDS: usize = 300;

/// The longest that one table may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// The levels whose writes are compared; the first follows no positions.
const LEVELS: [(&str, Consistency, WriteScope); 4] = [
    (
        "eventual: no positions",
        Consistency::Eventual,
        WriteScope::Session,
    ),
    (
        "read your writes",
        Consistency::ReadYourWrites,
        WriteScope::Session,
    ),
    (
        "read your writes, of the pool",
        Consistency::ReadYourWrites,
        WriteScope::Pool,
    ),
    ("causal", Consistency::Causal, WriteScope::Session),
];

async fn pools(cluster: &LocalCluster) -> Vec<ReplicatedPool> {
    let mut pools = Vec::new();
    for (_, level, scope) in LEVELS {
        let consistency = ConsistencyConfig::from(level).write_scope(scope);
        let pool = builder(cluster).consistency(consistency).build();
        pools.push(pool.await.unwrap());
    }
    pools
}

fn builder(cluster: &LocalCluster) -> Builder {
    let builder = ReplicatedPool::builder().primary(cluster.primary().url("bench"));
    cluster.replicas().iter().fold(builder, |builder, replica| {
        builder.replica(replica.url("bench"))
    })
}

async fn write(conn: &mut ReplicatedConnection) {
    let row = items::name.eq("written");
    let insert = diesel::insert_into(items::table).values(row);
    insert.execute(conn).await.unwrap();
}

async fn read(conn: &mut ReplicatedConnection, key: i32) -> (i32, String) {
    items::table.find(key).get_result(conn).await.unwrap()
}

/// How long a write takes, in microseconds, with so many sessions at once.
async fn turn(pool: &ReplicatedPool, sessions: usize) -> f64 {
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..sessions {
        let pool = pool.clone();
        tasks.spawn(async move {
            for _ in 0..BATCH {
                write(&mut pool.get().await.unwrap()).await;
            }
        });
    }
    tasks.join_all().await;
    started.elapsed().as_secs_f64() * 1e6 / (BATCH * sessions) as f64
}

async fn compare_writes(pools: &[ReplicatedPool], sessions: usize, count: usize) {
    let mut rounds: Vec<Vec<f64>> = Vec::new();
    let started = Instant::now();
    for pool in pools {
        turn(pool, sessions).await;
    }
    while rounds.len() < count && started.elapsed() < PATIENCE {
        // Each goes first as often as last.
        let mut round = vec![0.0; pools.len()];
        for step in 0..pools.len() {
            let place = (step + rounds.len()) % pools.len();
            round[place] = turn(&pools[place], sessions).await;
        }
        rounds.push(round);
    }
    println!(
        "get, write one row; {sessions} sessions ({} rounds)",
        rounds.len()
    );
    for (place, (name, ..)) in LEVELS.iter().enumerate() {
        let time = quartiles(rounds.iter().map(|round| round[place]).collect());
        let base = quartiles(rounds.iter().map(|round| round[0]).collect());
        let [low, ratio, high] =
            quartiles(rounds.iter().map(|round| round[place] / round[0]).collect());
        println!(
            "  {name:<30} {:>7.1} us ({:>6.1})   {ratio:.3} [{low:.2}-{high:.2}] ({:.3})",
            time[1],
            time[0],
            time[0] / base[0]
        );
    }
    println!("  target: at most 1.03\n");
}

/// Writes, lets some time pass, and reads: the connection, and how many microseconds the read took.
async fn read_own(pool: &ReplicatedPool, pause: Duration, key: i32) -> (ReplicatedConnection, f64) {
    let mut conn = pool.get().await.unwrap();
    write(&mut conn).await;
    if !pause.is_zero() {
        tokio::time::sleep(pause).await;
    }
    let started = Instant::now();
    read(&mut conn, key).await;
    let took = started.elapsed().as_secs_f64() * 1e6;
    (conn, took)
}

/// Writes, lets some time pass, reads: how long the read takes, and who serves it.
async fn read_after_write(pool: &ReplicatedPool, pause: Duration, count: usize) {
    let (mut latencies, mut waits, mut by_replicas) = (Vec::new(), Vec::new(), 0);
    let (mut settled, mut primary) = (Vec::new(), Vec::new());
    for round in 0..count {
        let key = i32::try_from(1 + round % 1000).unwrap();
        let (mut conn, took) = read_own(pool, pause, key).await;
        latencies.push(took);
        let route = conn.last_route().unwrap();
        waits.push(route.waited.as_secs_f64() * 1e6);
        by_replicas += usize::from(route.kind == NodeKind::Replica);
        let started = Instant::now();
        read(&mut conn, key).await;
        settled.push(started.elapsed().as_secs_f64() * 1e6);
        let started = Instant::now();
        read(&mut conn.primary(), key).await;
        primary.push(started.elapsed().as_secs_f64() * 1e6);
    }
    let share = 100.0 * by_replicas as f64 / count as f64;
    println!(
        "  {pause:>6.0?}   {:>7.1} us   {:>7.1} us   {:>7.1} us   {:>7.1} us   {share:>5.1} %   0.0 %",
        quartiles(latencies)[1],
        quartiles(waits)[1],
        quartiles(settled)[1],
        quartiles(primary)[1],
    );
}

async fn measure(cluster: Arc<LocalCluster>, rounds: usize) {
    waits::compare(&cluster, rounds).await;
    let pools = pools(&cluster).await;
    for sessions in [1, 8] {
        compare_writes(&pools, sessions, rounds).await;
    }
    mixed::compare(&pools[1], &pools[2], rounds).await;
    println!("a read after a write of its session, by the pause between (read your writes)");
    println!(
        "  {:>6}   {:>10}   {:>10}   {:>10}   {:>10}   {:>7}   with a timer of 2 s",
        "pause", "the read", "it waited", "the next", "on primary", "replicas"
    );
    for others in [Others::Rest, Others::Write, Others::Load] {
        println!("  {}", others.describe());
        let _busy = others.start(&pools[0]);
        for pause in [0, 1, 5, 20] {
            read_after_write(&pools[1], Duration::from_millis(pause), rounds).await;
        }
    }
    println!("  target: replicas serve at least 95 % after 5 ms where the others rest");
}

/// What the rest of the world does meanwhile on the primary.
#[derive(Clone, Copy)]
enum Others {
    Rest,
    Write,
    Load,
}

impl Others {
    fn describe(self) -> &'static str {
        match self {
            Self::Rest => "others rest",
            Self::Write => "others: four that write one row after the other",
            Self::Load => "others: one that loads rows in one long transaction",
        }
    }

    /// They end when what is returned is dropped.
    fn start(self, pool: &ReplicatedPool) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        match self {
            Self::Rest => {}
            Self::Write => {
                for _ in 0..4 {
                    let pool = pool.clone();
                    tasks.spawn(async move {
                        loop {
                            write(&mut pool.get().await.unwrap()).await;
                            tokio::time::sleep(Duration::from_millis(1)).await;
                        }
                    });
                }
            }
            Self::Load => {
                let pool = pool.clone();
                tasks.spawn(async move {
                    let mut conn = pool.get().await.unwrap();
                    let load = "INSERT INTO items (name) \
                        SELECT 'loaded' || pg_sleep(0.001)::text FROM generate_series(1, 1000000)";
                    let _ = diesel::sql_query(load).execute(&mut conn).await;
                });
            }
        }
        tasks
    }
}

fn main() {
    // Anything but `cargo bench` only wants to know whether it works.
    let in_earnest = std::env::args().any(|argument| argument == "--bench");
    let wanted = std::env::var("BENCH_ROUNDS").map(|rounds| rounds.parse().unwrap());
    let rounds = if in_earnest {
        wanted.unwrap_or(ROUNDS)
    } else {
        1
    };
    let cluster = Arc::new(LocalCluster::start().unwrap());
    fill(&cluster, common::SCHEMA);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let measured = runtime.spawn(measure(Arc::clone(&cluster), rounds.max(1)));
    runtime.block_on(measured).unwrap();
    drop(runtime);
}
