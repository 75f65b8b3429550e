//! Histories of many sessions on a real cluster with faults, checked against what was promised.
//!
//! `HISTORY_OPERATIONS` sets how many operations each history has, `HISTORY_SEED` where the random
//! decisions begin. See tests/README.md.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    unreachable_pub,
    reason = "a program of tests, which fail by panicking"
)]

mod append;
mod check;
mod faults;
mod workload;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use diesel_replicated::Consistency;
use diesel_replicated::testing::{LocalCluster, LocalNode};

use check::{Broken, History, Kind};
use workload::Plan;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap())
}

/// Runs sessions over two pools here and one in another process, with faults; the history of all.
fn history(level: Consistency, strong_on_replicas: bool, failovers: bool) -> History {
    let seed = number("HISTORY_SEED").unwrap_or_else(rand::random::<u64>) % 1_000_000;
    let operations = number("HISTORY_OPERATIONS").unwrap_or(20_000);
    let standbys = if failovers { "ANY 1 (*)" } else { "" };
    // With failovers every acknowledged write is on one replica at the least.
    let cluster = LocalCluster::builder().setting("synchronous_standby_names", standbys);
    let cluster = Arc::new(cluster.start().unwrap());
    cluster.create_database("history").unwrap();
    let schema = format!(
        "CREATE TABLE kv (key int PRIMARY KEY, version bigint NOT NULL);
         INSERT INTO kv SELECT n, 0 FROM generate_series(0, {}) n",
        check::KEYS - 1
    );
    cluster.primary().sql("history", &schema).unwrap();
    cluster.wait_caught_up().unwrap();
    let mailbox = tempfile::tempdir().unwrap();
    let plan = |process: u64| Plan {
        urls: cluster
            .nodes()
            .map(|node: &LocalNode| node.url("history"))
            .collect(),
        level,
        strong_on_replicas,
        operations: operations / 3,
        seed: seed + process,
        mailbox: mailbox.path().to_owned(),
        first: 1 + process * 1_000_000_000,
    };
    let over = Arc::new(AtomicBool::new(false));
    let faults = std::thread::spawn({
        let (cluster, over) = (Arc::clone(&cluster), Arc::clone(&over));
        move || faults::disturb(&cluster, &over, seed, failovers)
    });
    let started = Instant::now();
    let other = std::thread::spawn({
        let plan = plan(0);
        move || plan.in_another_process()
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let (first, second) = (runtime.spawn(plan(1).run()), runtime.spawn(plan(2).run()));
    let mut history = runtime.block_on(first).unwrap();
    history.extend(runtime.block_on(second).unwrap());
    history.extend(other.join().unwrap());
    over.store(true, Ordering::Relaxed);
    let faults = faults.join().unwrap();
    report(&history, level, faults, started.elapsed(), seed);
    history
}

fn report(
    history: &History,
    level: Consistency,
    (faults, failovers): (u32, u32),
    took: Duration,
    seed: u64,
) {
    let all = || history.values().flat_map(|session| &session.operations);
    let count = |wanted: fn(&Kind) -> bool| all().filter(|one| wanted(&one.kind)).count();
    println!(
        "{level}: {} operations of {} sessions ({} handed over), {} writes, {} reads on replicas, {} on \
         the primary, {faults} faults, {failovers} failovers, {took:.1?}, seed {seed}",
        all().count(),
        history.len(),
        history
            .values()
            .filter(|session| session.parent.is_some())
            .count(),
        count(|kind| matches!(kind, Kind::Write(_))),
        count(|kind| matches!(kind, Kind::Read(_, true))),
        count(|kind| matches!(kind, Kind::Read(_, false))),
    );
}

fn read_on_replicas(history: &History) -> bool {
    let mut all = history.values().flat_map(|session| &session.operations);
    all.any(|one| matches!(one.kind, Kind::Read(_, true)))
}

/// Not a test by itself: what runs in the other processes.
#[test]
fn another_process() {
    if let Some(plan) = Plan::from_environment() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let history = runtime.block_on(async { tokio::spawn(plan.run()).await.unwrap() });
        workload::say(&history);
    }
}

#[test]
fn sessions_read_their_writes() {
    let history = history(Consistency::ReadYourWrites, false, false);
    let broken = check::sessions(&history);
    let own = [Broken::ReadYourWrites, Broken::MonotonicWrites];
    let kept = broken.iter().all(|(broken, _)| !own.contains(broken));
    assert!(kept, "{broken:?}");
    assert!(read_on_replicas(&history));
}

#[test]
fn causal_sessions_keep_all_four_guarantees() {
    let history = history(Consistency::Causal, false, false);
    assert_eq!(check::sessions(&history), []);
    assert!(read_on_replicas(&history));
}

#[test]
fn strong_reads_are_linearizable() {
    let history = history(Consistency::Strong, false, false);
    assert_eq!(check::linearizable(&history), []);
    assert_eq!(check::sessions(&history), []);
}

#[test]
fn strong_reads_on_replicas_are_linearizable() {
    let history = history(Consistency::Strong, true, false);
    assert_eq!(check::linearizable(&history), []);
    assert!(read_on_replicas(&history));
}

#[test]
fn failovers_break_no_promise() {
    let history = history(Consistency::Causal, false, true);
    assert_eq!(check::sessions(&history), []);
    assert!(read_on_replicas(&history));
}

/// The checker sees what there is to see.
#[test]
fn without_consistency_promises_are_broken() {
    let history = history(Consistency::Eventual, false, false);
    let broken = check::sessions(&history);
    for promise in [Broken::ReadYourWrites, Broken::MonotonicReads] {
        assert!(
            broken.iter().any(|(broken, _)| *broken == promise),
            "{promise:?}"
        );
    }
    let stale = |(broken, _): &(Broken, u64)| *broken == Broken::Stale;
    assert!(check::linearizable(&history).iter().any(stale));
}
