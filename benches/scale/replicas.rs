//! More replicas serve more reads, each its share.

use std::time::Duration;

use diesel_replicated::testing::LocalCluster;

use super::load::{SERVED, measure};
use super::{CONNECTIONS, POLICIES, SERVICE, builder, built};

/// Tasks for each replica: as many again as it has connections wait.
const TASKS: usize = 2 * CONNECTIONS as usize;

/// Reads a second from 1 to 4 replicas.
pub(crate) async fn throughput(cluster: &LocalCluster) {
    println!(
        "\nReads a second of N replicas, each with {CONNECTIONS} connections and reads of {SERVICE:?}; at least 0.95 x N"
    );
    for policy in POLICIES {
        let mut one = 0.0;
        let mut line = format!("  {:<16}", policy.to_string());
        for replicas in 1..=4 {
            let pool = built(builder(cluster, replicas).policy(policy)).await;
            let time = Duration::from_secs(3);
            let load = (replicas * TASKS, SERVED);
            let reads = measure(&pool, load, Duration::from_secs(1), time).await;
            let rate = reads.reads.len() as f64 / time.as_secs_f64();
            if replicas == 1 {
                one = rate;
                line += &format!("  N=1: {rate:.0}/s");
            } else {
                line += &format!("  N={replicas}: {:.2}", rate / one);
            }
            assert_eq!(reads.failed, 0);
        }
        println!("{line}");
    }
}

/// The share of each replica, by its weight, while all are alike and none is full.
pub(crate) async fn weights(cluster: &LocalCluster) {
    const WEIGHTS: [u32; 4] = [3, 2, 2, 1];
    println!("\nShares by weights 3, 2, 2, 1, as parts of what they should be; within 3 %");
    for policy in POLICIES {
        let pool = built(builder(cluster, 4).max_size(10).policy(policy)).await;
        for (place, weight) in WEIGHTS.iter().enumerate() {
            let name = format!("replica-{}", place + 1);
            pool.set_weight(&name, i64::from(*weight)).await.unwrap();
        }
        let warm = Duration::from_secs(1);
        let reads = measure(&pool, (8, "SELECT 1"), warm, Duration::from_secs(8)).await;
        let shares = reads.shares();
        let total: u32 = WEIGHTS.iter().sum();
        let mut line = format!("  {:<16}", policy.to_string());
        for (place, weight) in WEIGHTS.iter().enumerate() {
            let share = shares.get(&*format!("replica-{}", place + 1));
            let wanted = f64::from(*weight) / f64::from(total);
            line += &format!("  {:.3}", share.unwrap_or(&0.0) / wanted);
        }
        println!("{line}   of {} reads", reads.reads.len());
    }
}
