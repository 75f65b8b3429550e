//! What happens to the servers while sessions go on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use diesel_replicated::testing::{LocalCluster, LocalNode};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// How many other faults there are between failovers.
const BETWEEN: u32 = 30;

/// Pauses and resumes the replay of one replica or the other, and restarts one now and then; with
/// failovers, kills the primary after some of those. How many of these there were, and of those.
pub fn disturb(
    cluster: &LocalCluster,
    over: &AtomicBool,
    seed: u64,
    with_failovers: bool,
) -> (u32, u32) {
    let mut random = StdRng::seed_from_u64(seed);
    let (mut faults, mut failovers) = (0, 0);
    let mut nodes: Vec<&LocalNode> = cluster.nodes().collect();
    while !over.load(Ordering::Relaxed) {
        if with_failovers && faults >= 5 + failovers * BETWEEN {
            fail_over(cluster, &mut nodes);
            failovers += 1;
        }
        let replica = nodes[random.random_range(1..3)];
        if random.random_bool(0.15) {
            replica.restart().unwrap();
        } else {
            replica.pause_replay().unwrap();
            pause(&mut random);
            replica.resume_replay().unwrap();
        }
        faults += 1;
        pause(&mut random);
    }
    (faults, failovers)
}

fn pause(random: &mut StdRng) {
    std::thread::sleep(Duration::from_millis(random.random_range(1..40)));
}

/// Kills the primary, which is the first; promotes the replica that has all that any has, and lets
/// the others follow that.
fn fail_over(cluster: &LocalCluster, nodes: &mut [&LocalNode]) {
    for replica in &nodes[1..] {
        until(
            replica,
            "SELECT count(*) = 1 FROM pg_stat_wal_receiver WHERE status = 'streaming'",
        );
    }
    nodes[0].kill().unwrap();
    for replica in &nodes[1..] {
        // A record that the primary's death has torn is never replayed: whoever looks for its rest has replayed all else.
        until(
            replica,
            "SELECT pg_last_wal_replay_lsn() >= pg_last_wal_receive_lsn() OR EXISTS (SELECT FROM pg_stat_activity \
                WHERE backend_type = 'startup' AND wait_event = 'RecoveryRetrieveRetryInterval')",
        );
    }
    let place = |node: &LocalNode| {
        let sql = "SELECT pg_last_wal_replay_lsn() - '0/0'::pg_lsn";
        let rows = node.sql("postgres", sql).unwrap();
        rows[0][0].as_ref().unwrap().parse::<u64>().unwrap()
    };
    if place(nodes[2]) > place(nodes[1]) {
        nodes.swap(1, 2);
    }
    nodes[1].promote().unwrap();
    nodes.swap(0, 1);
    nodes[2].follow(nodes[0]).unwrap();
    cluster.rebuild(nodes[1], nodes[0]).unwrap();
}

fn until(node: &LocalNode, condition: &str) {
    while node.sql("postgres", condition).unwrap()[0][0].as_deref() != Some("t") {
        std::thread::sleep(Duration::from_millis(5));
    }
}
