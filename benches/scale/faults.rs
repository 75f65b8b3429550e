//! The same while a replica is slow, frozen, added, drained.

use std::time::{Duration, Instant};

use diesel_replicated::testing::LocalCluster;

use super::load::{Readers, SERVED, measure};
use super::{CONNECTIONS, POLICIES, SERVICE, builder, built, node};

const SLOW: &str = "replica-4";

/// Half of what four replicas take at once, and twice as much.
const LOADS: [(&str, usize); 2] = [
    ("half full", 2 * CONNECTIONS as usize),
    ("full, as many wait", 8 * CONNECTIONS as usize),
];

fn sleeps(cluster: &LocalCluster, name: &str, time: Duration) {
    let seconds = time.as_secs_f64();
    let update = format!("UPDATE service SET seconds = {seconds} WHERE server = '{name}'");
    cluster.primary().sql("bench", &update).unwrap();
    cluster.wait_caught_up().unwrap();
}

/// One of four takes ten times as long.
pub(crate) async fn slow(cluster: &LocalCluster) {
    println!(
        "\nOne of four is ten times as slow, from the seventh second on: milliseconds; the 99th percentile at most 1.5 x the others'"
    );
    println!(
        "  {:<16}  {:<18}  {:>7} {:>7}  {:>7} {:>7}  {:>6}  {:>8}  {:>9}",
        "", "", "p50", "p99", "others", "p99", "ratio", "its part", "reads/s"
    );
    for policy in POLICIES {
        for (load, tasks) in LOADS {
            sleeps(cluster, SLOW, SERVICE);
            let pool = built(builder(cluster, 4).policy(policy)).await;
            let second = Duration::from_secs(1);
            measure(&pool, (tasks, SERVED), Duration::ZERO, second).await;
            sleeps(cluster, SLOW, 10 * SERVICE);
            let time = 5 * second;
            // Until it is known, reads go there.
            let reads = measure(&pool, (tasks, SERVED), 6 * second, time).await;
            let others = reads.without(SLOW);
            let part = reads.shares().get(SLOW).copied().unwrap_or(0.0) * 100.0;
            println!(
                "  {:<16}  {load:<18}  {:>7.1} {:>7.1}  {:>7.1} {:>7.1}  {:>6.2}  {part:>6.2} %  {:>9.0}",
                policy.to_string(),
                reads.percentile(50),
                reads.percentile(99),
                others.percentile(50),
                others.percentile(99),
                reads.percentile(99) / others.percentile(99),
                reads.reads.len() as f64 / time.as_secs_f64(),
            );
            assert_eq!(reads.failed, 0);
        }
    }
    sleeps(cluster, SLOW, SERVICE);
}

/// One of four answers nothing any more.
pub(crate) async fn frozen(cluster: &LocalCluster) {
    println!(
        "\nOne of four is frozen: reads in each half second after it, as parts of three quarters of those before; the longest read"
    );
    let replica = cluster.node(SLOW).unwrap();
    for policy in POLICIES {
        let pool = built(builder(cluster, 4).policy(policy)).await;
        let readers = Readers::start(&pool, LOADS[1].1, SERVED);
        let second = Duration::from_secs(1);
        tokio::time::sleep(2 * second).await;
        let at = Instant::now();
        replica.freeze();
        tokio::time::sleep(4 * second).await;
        let end = Instant::now();
        replica.thaw();
        let reads = readers.stop().await;
        let before = reads.within(at.checked_sub(second).unwrap(), at);
        let before = before.reads.len() as f64 * 0.75;
        let mut line = format!("  {:<16}", policy.to_string());
        for half in 0..8 {
            let (from, to) = (at + half * second / 2, at + (half + 1) * second / 2);
            let part = reads.within(from, to).reads.len() as f64 * 2.0 / before;
            line += &format!(" {part:.2}");
        }
        let longest = reads.within(at, end + 10 * second);
        let longest = longest.reads.iter().map(|read| read.took).max();
        println!(
            "{line}   {:.1} s, {} failed",
            longest.unwrap_or_default().as_secs_f64(),
            reads.failed
        );
        // It has to follow again.
        cluster.wait_caught_up().unwrap();
    }
}

/// One more, and one less.
pub(crate) async fn added_and_drained(cluster: &LocalCluster) {
    println!("\nA fourth replica is added, then drained: reads a second before, with it, after it");
    for policy in POLICIES {
        let pool = built(builder(cluster, 3).policy(policy)).await;
        let readers = Readers::start(&pool, LOADS[1].1, SERVED);
        let second = Duration::from_secs(1);
        tokio::time::sleep(2 * second).await;
        let added = Instant::now();
        let replica = node(cluster.node(SLOW).unwrap());
        pool.add_replica(replica).await.unwrap();
        tokio::time::sleep(3 * second).await;
        let drained = Instant::now();
        pool.drain_replica(SLOW).await.unwrap();
        let empty = Instant::now();
        tokio::time::sleep(2 * second).await;
        let end = Instant::now();
        let reads = readers.stop().await;
        let rate = |from: Instant, to: Instant| {
            reads.within(from, to).reads.len() as f64 / (to - from).as_secs_f64()
        };
        let three = rate(added.checked_sub(second).unwrap(), added);
        let four = rate(added + second, drained);
        let again = rate(empty + second / 2, end);
        println!(
            "  {:<16}  {three:.0}, {four:.0} ({:.2}), {again:.0} ({:.2}); drained in {:.0} ms; {} failed",
            policy.to_string(),
            four / three * 0.75,
            again / three,
            (empty - drained).as_secs_f64() * 1e3,
            reads.failed
        );
    }
}
