//! Lists that transactions append to and read, judged by a checker that is not ours: `adya`, after Jepsen's Elle.
//!
//! Whoever reads a list sees the order of all appends before, so that the checker can tell which transaction must
//! have come before which, and whether any order of all of them explains what each has seen.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use adya::{History, Opts, Report, Valid, Workload};
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Array, BigInt};
use diesel_async::RunQueryDsl;
use diesel_replicated::config::{ConsistencyConfig, WriteScope};
use diesel_replicated::status::NodeKind;
use diesel_replicated::testing::{LocalCluster, LocalNode};
use diesel_replicated::{Consistency, ErrorExt, Outcome, ReplicatedConnection, ReplicatedPool};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::faults;

const SESSIONS: u64 = 6;

/// So many keys are in use at a time; after [`ROTATE`] transactions of a session they are others.
const KEYS: i64 = 5;
const ROTATE: i64 = 30;

/// One step of a transaction, and what it has read.
#[derive(Clone, Debug)]
enum Step {
    Append(i64, i64),
    Read(i64, Option<Vec<i64>>),
}

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = Array<BigInt>)]
    items: Vec<i64>,
}

impl Step {
    async fn run(&mut self, conn: &mut ReplicatedConnection) -> QueryResult<()> {
        match self {
            Self::Append(key, value) => {
                let append = "INSERT INTO lists VALUES ($1, ARRAY[$2]) \
                    ON CONFLICT (id) DO UPDATE SET items = lists.items || $2";
                let append = sql_query(append).bind::<BigInt, _>(*key);
                append
                    .bind::<BigInt, _>(*value)
                    .execute(conn)
                    .await
                    .map(drop)
            }
            Self::Read(key, seen) => {
                let read =
                    sql_query("SELECT items FROM lists WHERE id = $1").bind::<BigInt, _>(*key);
                let row: Option<Row> = read.get_result(conn).await.optional()?;
                *seen = Some(row.map(|row| row.items).unwrap_or_default());
                Ok(())
            }
        }
    }
}

/// What all sessions did, in the order in which they began and ended it.
#[derive(Clone, Default)]
struct Record {
    lines: Arc<Mutex<String>>,
    process: Arc<AtomicI64>,
    value: Arc<AtomicI64>,
    on_replicas: Arc<AtomicI64>,
    unknown: Arc<AtomicI64>,
}

impl Record {
    fn note(&self, kind: &str, process: i64, steps: &[Step]) {
        let value = steps.iter().map(|step| match step {
            Step::Append(key, value) => format!("[\"append\",{key},{value}]"),
            Step::Read(key, None) => format!("[\"r\",{key},null]"),
            Step::Read(key, Some(seen)) => format!("[\"r\",{key},{seen:?}]"),
        });
        let value = value.collect::<Vec<_>>().join(",");
        let mut lines = self.lines.lock().unwrap();
        writeln!(
            lines,
            "{{\"type\":\"{kind}\",\"process\":{process},\"value\":[{value}]}}"
        )
        .unwrap();
    }
}

/// One session after another of one task: each goes on until its keys are used up, or until it does not know what
/// became of a transaction.
async fn work(pool: ReplicatedPool, record: Record, count: i64, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let begin = async || {
        let process = record.process.fetch_add(1, Ordering::Relaxed);
        (process, pool.get().await.unwrap())
    };
    let (mut process, mut conn) = begin().await;
    for number in 0..count {
        let mut steps = plan(&mut random, &record, number / ROTATE * KEYS);
        if number % ROTATE == 0 {
            // While so much is written, a session that has read on the primary needs what replicas hardly have.
            (process, conn) = begin().await;
            steps = vec![Step::Read(number / ROTATE * KEYS, None)];
        }
        record.note("invoke", process, &steps);
        let done = perform(&mut conn, &mut steps).await;
        let only_reads = steps.iter().all(|step| matches!(step, Step::Read(..)));
        let kind = match done.as_ref().map_err(ErrorExt::outcome) {
            Ok(()) => "ok",
            Err(Outcome::Unknown) if !only_reads => "info",
            Err(_) => "fail",
        };
        record.note(kind, process, &steps);
        if let (Ok(()), [Step::Read(..)]) = (&done, &steps[..]) {
            let on_replica = conn.last_route().unwrap().kind == NodeKind::Replica;
            record
                .on_replicas
                .fetch_add(i64::from(on_replica), Ordering::Relaxed);
        }
        if kind == "info" {
            record.unknown.fetch_add(1, Ordering::Relaxed);
            (process, conn) = begin().await;
        }
    }
}

fn plan(random: &mut StdRng, record: &Record, first: i64) -> Vec<Step> {
    let steps = if random.random_bool(0.5) {
        1
    } else {
        random.random_range(2..5)
    };
    let step = |_| {
        let key = first + random.random_range(0..KEYS);
        if random.random_bool(0.4) {
            Step::Append(key, 1 + record.value.fetch_add(1, Ordering::Relaxed))
        } else {
            Step::Read(key, None)
        }
    };
    (0..steps).map(step).collect()
}

/// One step is a statement by itself, which may run on a replica; several are a transaction.
async fn perform(conn: &mut ReplicatedConnection, steps: &mut [Step]) -> QueryResult<()> {
    if let [step] = steps {
        return step.run(conn).await;
    }
    let copy = steps.to_vec();
    let mut transaction = conn.build_transaction().serializable();
    let done = transaction.run(async |conn| {
        let mut steps = copy.clone();
        for step in &mut steps {
            step.run(conn).await?;
        }
        QueryResult::Ok(steps)
    });
    done.await.map(|done| steps.clone_from_slice(&done))
}

/// What a level of the pool is under faults: all transactions have an order, and no read has missed what the order
/// of its `process`, or of time (`realtime`), has put before it.
fn judged(level: ConsistencyConfig, order: &str, failovers: bool) -> (Report, Record) {
    let seed = crate::number("HISTORY_SEED").unwrap_or_else(rand::random::<u64>) % 1_000_000;
    let count = crate::number("HISTORY_OPERATIONS").unwrap_or(3_000) / SESSIONS;
    let count = i64::try_from(count).unwrap();
    let standbys = if failovers { "ANY 1 (*)" } else { "" };
    // `serializable` is told for each transaction; statements by themselves must have it as well.
    let cluster = LocalCluster::builder().setting("synchronous_standby_names", standbys);
    let cluster = Arc::new(cluster.start().unwrap());
    cluster.create_database("lists").unwrap();
    let schema = "CREATE TABLE lists (id bigint PRIMARY KEY, items bigint[] NOT NULL);
        ALTER DATABASE lists SET default_transaction_isolation = 'serializable'";
    cluster.primary().sql("lists", schema).unwrap();
    cluster.wait_caught_up().unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let disturbing = std::thread::spawn({
        let (cluster, over) = (Arc::clone(&cluster), Arc::clone(&over));
        move || faults::disturb(&cluster, &over, seed, failovers)
    });
    let record = Record::default();
    let runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = { runtime }.worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let builder = ReplicatedPool::builder().primary(cluster.primary().url("lists"));
        let urls = cluster
            .replicas()
            .iter()
            .map(|node: &LocalNode| node.url("lists"));
        let builder = urls.fold(builder, |builder, url| builder.replica(url));
        let builder = builder
            .consistency(level)
            .failover_wait(Duration::from_secs(30));
        let pool = builder.fallback_share(1.0).build().await.unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        for session in 0..SESSIONS {
            tasks.spawn(work(pool.clone(), record.clone(), count, seed + session));
        }
        tasks.join_all().await;
    });
    over.store(true, Ordering::Relaxed);
    let faults = disturbing.join().unwrap();
    let history = History::from_json(&record.lines.lock().unwrap()).unwrap();
    // A standby takes no part in serializable isolation, so that a read there may come between two transactions
    // that saw nothing of each other, with the order of the clients against one of them (G2). With one such step
    // in a circle it would have missed what it was promised to see.
    let of_order = ["G0", "G1c", "G-single", "G-single-item"];
    let of_order = of_order.iter().filter(|_| !order.is_empty());
    let opts = Opts {
        models: vec!["serializable".to_owned()],
        anomalies: of_order.map(|kind| format!("{kind}-{order}")).collect(),
        ..Opts::default()
    };
    let report = adya::check(&history, Workload::ListAppend, &opts);
    println!(
        "serializable {order} (seed {seed}): {} appends, {} reads on replicas, {} in doubt, {faults:?} faults and failovers: {:?} {:?}",
        record.value.fetch_add(0, Ordering::Relaxed),
        AtomicI64::load(&record.on_replicas, Ordering::Relaxed),
        AtomicI64::load(&record.unknown, Ordering::Relaxed),
        report.valid,
        report.anomaly_types,
    );
    (report, record)
}

fn keeps(level: ConsistencyConfig, order: &str, failovers: bool) {
    let (report, record) = judged(level, order, failovers);
    let anomalies = report.anomalies.values().flatten().take(3);
    let why: Vec<_> = anomalies.map(|anomaly| &anomaly.explanation).collect();
    assert_eq!(
        report.valid,
        Valid::True,
        "{:?} {why:#?}",
        report.anomaly_types
    );
    assert!(AtomicI64::load(&record.on_replicas, Ordering::Relaxed) > 0);
}

/// With what others write to be seen as well, replicas would hardly serve while so much is written.
fn of_sessions(level: Consistency) -> ConsistencyConfig {
    ConsistencyConfig::from(level).write_scope(WriteScope::Session)
}

#[test]
fn plain_reads_on_replicas_keep_transactions_serializable() {
    keeps(of_sessions(Consistency::ReadYourWrites), "", true);
}

#[test]
fn causal_sessions_keep_the_order_of_what_they_do() {
    keeps(of_sessions(Consistency::Causal), "process", false);
}

#[test]
fn strong_reads_keep_the_order_of_time() {
    let mut strong = ConsistencyConfig::from(Consistency::Strong);
    strong.strong_reads_on_replicas = true;
    keeps(strong, "realtime", false);
}

/// The checker would say so if sessions did not see what they wrote.
#[test]
fn eventual_reads_do_not_keep_that_order() {
    let (report, _) = judged(Consistency::Eventual.into(), "process", false);
    assert_eq!(report.valid, Valid::False);
}
