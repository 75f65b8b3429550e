//! Latency and throughput of whole operations, this pool's beside those of other ways to connect.
//!
//! All contenders take turns within one run, in small batches and in changing order, so that
//! whatever else the machine does meets all of them alike. Ratios are taken within each round, and
//! the median of the rounds is reported with the quartiles around it. In round brackets is what the
//! faster quarter of the rounds says: what others do to the machine only ever makes it slower.
//! `BENCH_ROUNDS` sets the number of rounds, `BENCH_TLS=1` has all of them speak TLS by one configuration of rustls.
//! Nothing fails for being slow: the targets are printed with what was measured.
//!
//! Every contender gets its connection anew for each operation, but for the one that holds it.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a program of measurements, which fails by panicking"
)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::pg::Pg;
use diesel::prelude::*;
use diesel_async::pooled_connection::bb8::Pool;
use diesel_async::pooled_connection::{
    AsyncDieselConnectionManager, ManagerConfig, RecyclingMethod,
};
use diesel_async::{AsyncConnection, AsyncConnectionCore, AsyncPgConnection, RunQueryDsl};
use diesel_replicated::testing::LocalCluster;
use diesel_replicated::{ReplicatedConnection, ReplicatedPool};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

#[path = "../common/mod.rs"]
mod common;
mod rounds;
mod tls;

use tls::Tls;

use common::{fill, items, processor_time, quartiles, vacuum};
use rounds::{Rounds, Turn, micros};

/// How many rows [`common::SCHEMA`] makes, for keys to read.
const ROWS: usize = 1000;

/// How many operations a task of a contender performs in one turn.
const BATCH: usize = 24;

/// How many tasks a contender has in the measurement of throughput.
const TASKS: usize = 8;

const ROUNDS: usize = 400;

/// The longest that one table may take, whatever the number of rounds.
const PATIENCE: Duration = Duration::from_secs(13);

const TABLES: [(&str, Operation, usize); 4] = [
    ("get, read one row by key", Operation::Read, 1),
    ("get, write one row", Operation::Write, 1),
    ("get, transaction of one write", Operation::Transaction, 1),
    ("get, read one row by key; 8 tasks", Operation::Read, TASKS),
];

#[derive(Clone, Copy)]
enum Operation {
    Read,
    Write,
    Transaction,
}

impl Operation {
    /// How many of the contenders can do it.
    fn contenders(self) -> usize {
        match self {
            Self::Read => NAMES.len(),
            Self::Write | Self::Transaction => NO_PING_ON_REPLICA,
        }
    }

    async fn on_plain(self, conn: &mut AsyncPgConnection, key: i32) {
        match self {
            Self::Read => read(conn, key).await,
            Self::Write => write(conn).await.unwrap(),
            Self::Transaction => conn
                .transaction(async |conn| write(conn).await)
                .await
                .unwrap(),
        }
    }

    async fn on_ours(self, conn: &mut ReplicatedConnection, key: i32) {
        match self {
            Self::Read => read(conn, key).await,
            Self::Write => write(conn).await.unwrap(),
            Self::Transaction => conn
                .transaction(async |conn| write(conn).await)
                .await
                .unwrap(),
        }
    }
}

async fn read<C: AsyncConnectionCore<Backend = Pg>>(conn: &mut C, key: i32) {
    let row: (i32, String) = items::table.find(key).get_result(conn).await.unwrap();
    black_box(row);
}

async fn write<C: AsyncConnection<Backend = Pg>>(conn: &mut C) -> QueryResult<()> {
    let row = items::name.eq("written");
    let insert = diesel::insert_into(items::table).values(row);
    insert.execute(conn).await.map(drop)
}

/// The contenders, by their place among them.
const NAMES: [&str; 6] = [
    "connection held, no pool",
    "bb8 of diesel-async",
    "bb8 of diesel-async, no ping",
    "this pool",
    "this pool, forced to primary",
    "bb8, no ping, on a replica",
];
const PING: usize = 1;
const NO_PING: usize = 2;
const OURS: usize = 3;
const OURS_ON_PRIMARY: usize = 4;
/// Only reads, to tell the cost of this pool from that of a standby.
const NO_PING_ON_REPLICA: usize = 5;

/// A way to get at a connection for one operation.
#[derive(Clone)]
enum Contender {
    /// Each task has one and keeps it.
    Held(Arc<[Mutex<AsyncPgConnection>]>),
    Bb8(Pool<AsyncPgConnection>),
    Ours(ReplicatedPool),
    OursOnPrimary(ReplicatedPool),
}

impl Contender {
    async fn perform(&self, operation: Operation, task: usize, key: i32) {
        match self {
            Self::Held(held) => operation.on_plain(&mut *held[task].lock().await, key).await,
            Self::Bb8(pool) => {
                operation
                    .on_plain(&mut pool.get().await.unwrap(), key)
                    .await
            }
            Self::Ours(pool) => operation.on_ours(&mut pool.get().await.unwrap(), key).await,
            Self::OursOnPrimary(pool) => {
                let mut conn = pool.get().await.unwrap();
                operation.on_ours(&mut conn.primary(), key).await;
            }
        }
    }

    /// Performs a batch in each of so many tasks.
    async fn turn(&self, operation: Operation, tasks: usize) -> Turn {
        let (started, processor) = (Instant::now(), processor_time());
        let batch = |task| {
            let contender = self.clone();
            async move {
                let mut latencies = Vec::with_capacity(BATCH);
                for number in 0..BATCH {
                    let key = 1 + (task * 131 + number * 37) % ROWS;
                    let started = Instant::now();
                    let key = i32::try_from(key).unwrap();
                    contender.perform(operation, task, key).await;
                    latencies.push(micros(started.elapsed()));
                }
                latencies
            }
        };
        let latencies = if tasks == 1 {
            batch(0).await
        } else {
            let tasks: JoinSet<Vec<f64>> = (0..tasks).map(batch).collect();
            tasks.join_all().await.concat()
        };
        let operations = (tasks * BATCH) as f64;
        Turn {
            latency: quartiles(latencies)[1],
            processor: micros(processor_time() - processor) / operations,
            throughput: operations / started.elapsed().as_secs_f64(),
        }
    }
}

async fn bb8(url: &str, ping: bool, tls: Option<&Tls>) -> Contender {
    let mut config = ManagerConfig::default();
    if let Some(tls) = tls {
        config.custom_setup = tls.setup();
    }
    if !ping {
        config.recycling_method = RecyclingMethod::Fast;
    }
    let manager = AsyncDieselConnectionManager::new_with_config(url, config);
    let pool = Pool::builder().test_on_check_out(ping).build(manager);
    Contender::Bb8(pool.await.unwrap())
}

async fn contenders(cluster: &LocalCluster) -> [Contender; NAMES.len()] {
    let tls = cluster.authority().map(Tls::new);
    let tls = tls.as_ref();
    let url = cluster.primary().url("bench");
    let replica = cluster.replicas()[0].url("bench");
    let mut held = Vec::new();
    for _ in 0..TASKS {
        let connection = match tls {
            Some(tls) => tls.establish(&url).await,
            None => AsyncPgConnection::establish(&url).await,
        };
        held.push(Mutex::new(connection.unwrap()));
    }
    let mode = if tls.is_some() { "require" } else { "disable" };
    let with_mode = |url: String| format!("{url}?sslmode={mode}");
    let builder = ReplicatedPool::builder().primary(with_mode(url.clone()));
    let builder = cluster.replicas().iter().fold(builder, |builder, replica| {
        builder.replica(with_mode(replica.url("bench")))
    });
    let builder = match tls {
        Some(tls) => builder.tls(tls.config()),
        None => builder,
    };
    let ours = builder.build().await.unwrap();
    [
        Contender::Held(held.into()),
        bb8(&url, true, tls).await,
        bb8(&url, false, tls).await,
        Contender::Ours(ours.clone()),
        Contender::OursOnPrimary(ours),
        bb8(&replica, false, tls).await,
    ]
}

async fn compare(cluster: Arc<LocalCluster>, rounds: usize) {
    let contenders = contenders(&cluster).await;
    let mut tables = Vec::new();
    for (title, operation, tasks) in TABLES {
        let table = Rounds::run(&contenders, operation, tasks, rounds).await;
        table.print(title);
        tables.push((title, table));
    }
    println!("targets");
    for (title, table) in tables {
        table.print_targets(title);
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
    let builder = LocalCluster::builder();
    let builder = match std::env::var_os("BENCH_TLS") {
        Some(_) => builder.tls(),
        None => builder,
    };
    let cluster = Arc::new(builder.start().unwrap());
    fill(&cluster, common::SCHEMA);
    vacuum(&cluster, "items");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    // In a task, as the handlers of an application are.
    let comparison = runtime.spawn(compare(Arc::clone(&cluster), rounds.max(1)));
    runtime.block_on(comparison).unwrap();
    drop(runtime);
}
