//! Histories of many sessions over several groups while keys move and groups fail, checked against what was promised.
//!
//! Each write of a key counts it up and is told the new count. So two that wrote beside each other are told the same one,
//! and a write that was lost leaves a gap at the end. `GROUPS_OPERATIONS` sets how many operations there are.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Text};
use diesel_async::{AsyncConnection, RunQueryDsl};
use diesel_replicated::testing::LocalGroups;
use diesel_replicated::{Consistency, ErrorExt, MultiPrimaryPool, Outcome, ReplicatedConnection};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use crate::support::{groups, pool};

const KEYS: usize = 8;
const SESSIONS: usize = 3;

/// One operation on one key, and when it began and ended.
#[derive(Clone, Debug)]
struct Op {
    kind: Kind,
    session: u64,
    began: Instant,
    ended: Instant,
    /// The count that it was told; `None` if nobody knows what became of it.
    count: Option<i64>,
    /// Where it ran.
    at: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Write,
    Read,
    Strong,
}

#[derive(Default)]
struct Record {
    ops: Mutex<BTreeMap<usize, Vec<Op>>>,
    failed: AtomicU64,
    moves: AtomicU64,
    faults: AtomicU64,
    failovers: AtomicU64,
    far: AtomicU64,
    near: AtomicU64,
    errors: Mutex<BTreeMap<String, u64>>,
}

impl Record {
    fn tell(&self, what: &str) {
        let count = |counter: &AtomicU64| AtomicU64::load(counter, Ordering::Relaxed);
        let ops = self.ops.lock().unwrap();
        let unknown = ops.values().flatten().filter(|op| op.count.is_none());
        println!(
            "{what}: {} operations, {} near and {} far reads, {} moves, {} faults, {} failovers, {} failed, {} in doubt",
            ops.values().map(Vec::len).sum::<usize>(),
            count(&self.near),
            count(&self.far),
            count(&self.moves),
            count(&self.faults),
            count(&self.failovers),
            count(&self.failed),
            unknown.count(),
        );
        for (error, count) in &*self.errors.lock().unwrap() {
            println!("{count} times: {error}");
        }
    }
}

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = BigInt)]
    count: i64,
}

fn name(key: usize) -> String {
    format!("key-{key}")
}

async fn count_up(conn: &mut ReplicatedConnection, key: usize) -> QueryResult<i64> {
    let sql = "UPDATE counters SET count = count + 1 WHERE key = $1 RETURNING count";
    let row: Count = sql_query(sql)
        .bind::<Text, _>(name(key))
        .get_result(conn)
        .await?;
    Ok(row.count)
}

async fn read(conn: &mut ReplicatedConnection, key: usize) -> QueryResult<i64> {
    let sql = "SELECT count FROM counters WHERE key = $1";
    let row: Count = sql_query(sql)
        .bind::<Text, _>(name(key))
        .get_result(conn)
        .await?;
    Ok(row.count)
}

/// Reads and then writes what it has read, with an isolation level that forbids to lose anything.
async fn count_up_in_steps(conn: &mut ReplicatedConnection, key: usize) -> QueryResult<i64> {
    let transaction = conn.transaction(async |conn| {
        let now = read(conn, key).await?;
        let sql = "UPDATE counters SET count = $2 WHERE key = $1 AND count = $2 - 1";
        let set = sql_query(sql).bind::<Text, _>(name(key));
        match set.bind::<BigInt, _>(now + 1).execute(conn).await? {
            1 => Ok(now + 1),
            _ => Err(diesel::result::Error::RollbackTransaction),
        }
    });
    transaction.await
}

/// Whether writers choose where they write.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Writers {
    AtHome,
    Anywhere,
}

/// What one task does with a connection, and what it makes of the answers.
async fn operate(
    conn: &mut ReplicatedConnection,
    key: usize,
    (number, local): (u64, &str),
    record: &Record,
    random: &mut StdRng,
) -> bool {
    let began = Instant::now();
    let (kind, result) = match random.random_range(0..100) {
        0..30 => (Kind::Write, count_up(conn, key).await),
        30..45 => (Kind::Write, count_up_in_steps(conn, key).await),
        45..55 => {
            let strong = &mut conn.with_consistency(Consistency::Strong);
            (Kind::Strong, read(strong, key).await)
        }
        _ => (Kind::Read, read(conn, key).await),
    };
    let ended = Instant::now();
    let route = conn.last_route();
    if kind == Kind::Read && result.is_ok() {
        let near = route
            .as_ref()
            .is_some_and(|it| it.group.as_deref() == Some(local));
        let counter = if near { &record.near } else { &record.far };
        counter.fetch_add(1, Ordering::Relaxed);
    }
    let count = match &result {
        Ok(count) => Some(*count),
        Err(error) if error.outcome() == Outcome::Unknown && kind == Kind::Write => None,
        Err(error) => {
            record.failed.fetch_add(1, Ordering::Relaxed);
            let mut errors = record.errors.lock().unwrap();
            *errors.entry(error.to_string()).or_default() += 1;
            return false;
        }
    };
    let at = route.map_or_else(String::new, |it| format!("{it} in {:?}", it.group));
    let session = number;
    let op = Op {
        kind,
        session,
        began,
        ended,
        count,
        at,
    };
    record.ops.lock().unwrap().entry(key).or_default().push(op);
    result.is_ok()
}

async fn work(
    pool: MultiPrimaryPool,
    record: Arc<Record>,
    count: u64,
    seed: u64,
    writers: Writers,
) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut done = 0;
    let mut session = pool.session();
    let mut number = seed * 1_000_000;
    while done < count {
        if random.random_bool(0.05) {
            // Another process goes on with it, as far as its token tells.
            session = match random.random_bool(0.5) {
                true => pool.resume(&session.token().await),
                false => {
                    number += 1;
                    pool.session()
                }
            };
        }
        let key = random.random_range(0..KEYS);
        let mut conn = match writers {
            Writers::AtHome => session.for_key(name(key)).await.unwrap(),
            Writers::Anywhere => {
                let groups = pool.groups();
                let group = groups.choose(&mut random).unwrap();
                pool.group(group).unwrap().get().await.unwrap()
            }
        };
        for _ in 0..random.random_range(1..5) {
            done += 1;
            let who = (number, pool.local());
            if !operate(&mut conn, key, who, &record, &mut random).await {
                break;
            }
        }
    }
}

async fn move_keys(
    pools: Vec<MultiPrimaryPool>,
    record: Arc<Record>,
    over: Arc<AtomicBool>,
    seed: u64,
) {
    let mut random = StdRng::seed_from_u64(seed);
    while !is_over(&over) {
        let pool = pools.choose(&mut random).unwrap();
        let groups = pool.groups();
        let to = groups.choose(&mut random).unwrap();
        let key = name(random.random_range(0..KEYS));
        match pool.move_home([key], to).await {
            Ok(moved) => {
                record
                    .moves
                    .fetch_add(moved.len() as u64, Ordering::Relaxed);
            }
            Err(error) => {
                let mut errors = record.errors.lock().unwrap();
                *errors.entry(format!("move: {error}")).or_default() += 1;
            }
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(1..60))).await;
    }
}

fn is_over(over: &AtomicBool) -> bool {
    AtomicBool::load(over, Ordering::Relaxed)
}

/// Cuts cables, restarts and kills servers, and has standbys take over.
fn disturb(
    groups: &LocalGroups,
    (failovers, over): (bool, &AtomicBool),
    record: &Record,
    seed: u64,
) {
    let mut random = StdRng::seed_from_u64(seed);
    let names: Vec<&str> = groups.names().collect();
    let pause = |random: &mut StdRng, most: u64| {
        std::thread::sleep(Duration::from_millis(random.random_range(1..most)));
    };
    while !is_over(over) {
        pause(&mut random, 300);
        let at = *names.choose(&mut random).unwrap();
        let primary = groups.primary_of(at).unwrap();
        match random.random_range(0..10) {
            0..5 if failovers => {
                groups.fail_over(at).unwrap();
                pause(&mut random, 500);
                groups.rejoin(at).unwrap();
                record.failovers.fetch_add(1, Ordering::Relaxed);
            }
            0 => primary.restart().unwrap(),
            1 => {
                primary.kill().unwrap();
                pause(&mut random, 300);
                primary.start().unwrap();
            }
            2..4 => {
                let mut nodes = groups.group(at).unwrap().nodes();
                let replica = nodes.find(|node| node.name() != primary.name()).unwrap();
                replica.pause_replay().unwrap();
                pause(&mut random, 200);
                replica.resume_replay().unwrap();
            }
            _ => {
                let others: Vec<_> = names.iter().filter(|name| **name != at).collect();
                let to = others.choose(&mut random).unwrap();
                let cable = groups.cable(at, to).unwrap();
                cable.cut();
                pause(&mut random, 500);
                cable.heal();
            }
        }
        record.faults.fetch_add(1, Ordering::Relaxed);
    }
}

/// What was promised and not kept.
fn broken(record: &Record, finals: &BTreeMap<usize, i64>) -> Vec<String> {
    let mut broken = Vec::new();
    for (key, ops) in &*record.ops.lock().unwrap() {
        let of_key = lost(ops, finals[key]).into_iter();
        let of_key = of_key.chain(out_of_order(ops)).chain(back_in_time(ops));
        broken.extend(of_key.map(|what| format!("key {key}: {what}")));
    }
    broken
}

/// Writes beside each other, and writes that are not there at the end.
fn lost(ops: &[Op], last: i64) -> Vec<String> {
    let writes: Vec<&Op> = ops.iter().filter(|op| op.kind == Kind::Write).collect();
    let mut counts: Vec<i64> = writes.iter().filter_map(|op| op.count).collect();
    counts.sort_unstable();
    let mut lost = Vec::new();
    if counts.windows(2).any(|pair| pair[0] == pair[1]) {
        lost.push("two writes beside each other".to_owned());
    }
    let (least, most) = (counts.len(), writes.len());
    if !(least..=most).contains(&usize::try_from(last).unwrap()) {
        lost.push(format!("{least} to {most} writes, and the count is {last}"));
    }
    lost
}

/// Writes and strong reads that begin after another has ended, and see less.
fn out_of_order(ops: &[Op]) -> Vec<String> {
    let strong = || ops.iter().filter(|op| op.kind != Kind::Read);
    let mut by_end: Vec<_> = strong()
        .filter_map(|op| Some((op.ended, op.count?)))
        .collect();
    by_end.sort_unstable();
    let mut high = i64::MIN;
    for (_, count) in &mut by_end {
        high = high.max(*count);
        *count = high;
    }
    let mut wrong = Vec::new();
    for op in strong() {
        let before = by_end.partition_point(|(ended, _)| *ended < op.began);
        let before = before.checked_sub(1).map(|at| by_end[at].1);
        if let Some((must, count)) = before.zip(op.count) {
            if count < must || count == must && op.kind == Kind::Write {
                wrong.push(format!("{:?} saw {count} after {must}", op.kind));
            }
        }
    }
    wrong
}

/// Sessions that see less than they have seen or written.
fn back_in_time(ops: &[Op]) -> Vec<String> {
    let mut seen: BTreeMap<u64, (i64, &Op)> = BTreeMap::new();
    let mut wrong = Vec::new();
    for op in ops {
        let Some(count) = op.count else { continue };
        let before = seen.entry(op.session).or_insert((i64::MIN, op));
        if count < before.0 {
            wrong.push(format!(
                "session {} saw {count} ({}) after {} ({})",
                op.session, op.at, before.0, before.1.at
            ));
        } else {
            *before = (count, op);
        }
    }
    wrong
}

/// Two pools near each group; all keys have a home.
async fn pools(groups: &LocalGroups, names: &[&str]) -> Vec<MultiPrimaryPool> {
    let mut pools = Vec::new();
    for name in names.iter().chain(names) {
        pools.push(pool(groups, name).await);
    }
    for key in 0..KEYS {
        let home = names[key % names.len()];
        pools[0].place(name(key), home).await.unwrap();
        let mut conn = pools[0].for_key(name(key)).await.unwrap();
        let insert = sql_query("INSERT INTO counters VALUES ($1, 0)");
        let insert = insert.bind::<Text, _>(name(key)).execute(&mut conn);
        insert.await.unwrap();
    }
    groups.wait_applied().unwrap();
    pools
}

/// Runs sessions while keys move and groups fail.
async fn run(
    groups: &Arc<LocalGroups>,
    record: &Arc<Record>,
    (seed, operations): (u64, u64),
    (writers, failovers): (Writers, bool),
) {
    let names: Vec<&str> = groups.names().collect();
    let pools = pools(groups, &names).await;
    let over = Arc::new(AtomicBool::new(false));
    let disturbing = std::thread::spawn({
        let (groups, over, record) = (Arc::clone(groups), Arc::clone(&over), Arc::clone(record));
        move || disturb(&groups, (failovers, &over), &record, seed)
    });
    let moving = move_keys(pools.clone(), Arc::clone(record), Arc::clone(&over), seed);
    let moving = tokio::spawn(moving);
    let mut tasks = tokio::task::JoinSet::new();
    let sessions = pools.len() * SESSIONS;
    for number in 0..sessions {
        let pool = pools[number % pools.len()].clone();
        let each = operations / u64::try_from(sessions).unwrap();
        let seed = seed + u64::try_from(number).unwrap();
        tasks.spawn(work(pool, Arc::clone(record), each, seed, writers));
    }
    tasks.join_all().await;
    over.store(true, Ordering::Relaxed);
    moving.await.unwrap();
    disturbing.join().unwrap();
}

/// What was promised and not kept, and whether the groups differ at the end.
fn history(names: &[&str], writers: Writers, failovers: bool) -> (Vec<String>, bool) {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .map(|text| text.parse::<u64>().unwrap())
    };
    let seed = number("GROUPS_SEED").unwrap_or_else(rand::random::<u64>) % 1_000_000;
    let operations = number("GROUPS_OPERATIONS").unwrap_or(6_000);
    let groups = Arc::new(groups(names));
    let runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = { runtime }.worker_threads(2).enable_all().build().unwrap();
    let record = Arc::<Record>::default();
    let how = (writers, failovers);
    runtime.block_on(run(&groups, &record, (seed, operations), how));
    groups.wait_applied().unwrap();
    let rows = |name: &str| {
        let sql = "SELECT 'c', key, count::text, '' FROM counters UNION ALL \
            SELECT 'h', key, home, generation || ' ' || settled FROM diesel_replicated.homes ORDER BY 1, 2";
        let primary = groups.primary_of(name).unwrap();
        primary.sql("app", sql).unwrap()
    };
    let first = rows(names[0]);
    let differs = names.iter().any(|name| rows(name) != first);
    let finals = first.iter().filter(|row| row[0].as_deref() == Some("c"));
    let finals = finals.map(|row| {
        let key = row[1].as_deref().unwrap().trim_start_matches("key-");
        (
            key.parse().unwrap(),
            row[2].as_deref().unwrap().parse().unwrap(),
        )
    });
    let broken = broken(&record, &finals.collect());
    record.tell(&format!("{names:?} (seed {seed})"));
    println!("{} broken, differs: {differs}", broken.len());
    (broken, differs)
}

#[test]
fn nothing_is_lost_and_nothing_diverges_while_keys_move_between_two_groups() {
    let (broken, differs) = history(&["eu", "us"], Writers::AtHome, false);
    assert!(broken.is_empty() && !differs, "{broken:#?} {differs}");
}

#[test]
fn nothing_is_lost_and_nothing_diverges_while_keys_move_between_three_groups() {
    let (broken, differs) = history(&["eu", "us", "ap"], Writers::AtHome, false);
    assert!(broken.is_empty() && !differs, "{broken:#?} {differs}");
}

#[test]
fn nothing_is_lost_and_nothing_diverges_while_standbys_take_over_in_two_groups() {
    let (broken, differs) = history(&["eu", "us"], Writers::AtHome, true);
    assert!(broken.is_empty() && !differs, "{broken:#?} {differs}");
}

/// The checker would say so if two groups wrote for one key.
#[test]
fn writers_that_choose_freely_diverge() {
    let (broken, differs) = history(&["eu", "us"], Writers::Anywhere, false);
    // Mostly the groups differ, too; the last write of each row may happen to be the same.
    assert!(!broken.is_empty(), "{differs}");
}
