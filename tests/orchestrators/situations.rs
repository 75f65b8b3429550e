//! What happens to a cluster in production, each on a cluster of its own.
//!
//! Sources, beside the documentation of Patroni and `pg_auto_failover`: patroni#1379, #626 (its store is away), #2263 (an agent that does not answer), #3491 (a
//! replica that is still in archive recovery), #2180; postgresql-operator#1358; vip-manager#216 (an agent killed, its server
//! goes on as a primary).

use std::thread::sleep;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;

use crate::cluster::{Cluster, Orchestrator};
use crate::patroni::Patroni;
use crate::pg_auto_failover::AutoFailover;

/// Longer than a leader that says nothing is waited for: the leader's key lives for 20 s (`ttl`), and so does `pg_auto_failover`'s
/// patience (`node_considered_unhealthy_timeout`).
const BEYOND_TTL: Duration = Duration::from_secs(40);

pub fn switchover(cluster: &mut Cluster<impl Orchestrator>) {
    cluster.switchover();
    cluster.wait_whole(3);
}

/// Its agent starts it again, or another is promoted.
pub fn the_leaders_server_is_killed(cluster: &mut Cluster<impl Orchestrator>) {
    let leader = cluster.leader();
    cluster.signal_server(leader, Signal::KILL);
    sleep(Duration::from_secs(5));
    cluster.wait_whole(3);
}

/// It comes back after another was promoted, and is rewound.
pub fn the_leader_is_killed_with_its_agent_and_comes_back(
    cluster: &mut Cluster<impl Orchestrator>,
) {
    let leader = cluster.leader();
    cluster.kill_agent(leader);
    cluster.signal_server(leader, Signal::KILL);
    cluster.wait_other_leader(leader);
    cluster.start_agent(leader);
    cluster.wait_whole(3);
}

/// Its server goes on as a primary, beside the next one: two that take writes.
pub fn the_leaders_agent_is_killed_and_its_server_goes_on(cluster: &mut Cluster<Patroni>) {
    let leader = cluster.leader();
    cluster.kill_agent(leader);
    cluster.wait_other_leader(leader);
    sleep(Duration::from_secs(3));
    cluster.start_agent(leader);
    cluster.wait_whole(3);
}

/// The same, of an agent that goes on as if nothing had been.
pub fn the_leaders_agent_freezes(cluster: &mut Cluster<Patroni>) {
    let leader = cluster.leader();
    cluster.signal_agent(leader, Signal::STOP);
    sleep(BEYOND_TTL);
    cluster.signal_agent(leader, Signal::CONT);
    cluster.wait_other_leader(leader);
    cluster.wait_whole(3);
}

/// Sockets stay open, and nobody answers.
pub fn the_leader_freezes_with_its_agent(cluster: &mut Cluster<impl Orchestrator>) {
    let leader = cluster.leader();
    cluster.signal_agent(leader, Signal::STOP);
    cluster.signal_server(leader, Signal::STOP);
    sleep(BEYOND_TTL);
    cluster.signal_server(leader, Signal::CONT);
    cluster.signal_agent(leader, Signal::CONT);
    cluster.wait_other_leader(leader);
    cluster.wait_whole(3);
}

/// patroni#1371: what is connected goes on, and nobody new is let in. Patroni sees nothing of it, nor should the pool.
pub fn the_leaders_postmaster_freezes(cluster: &mut Cluster<Patroni>) {
    let leader = cluster.leader();
    cluster.freeze_postmaster(leader);
    sleep(Duration::from_secs(20));
    cluster.signal_server(leader, Signal::CONT);
    cluster.wait_whole(3);
}

/// The leader demotes itself, and there is none until the store is back.
pub fn the_store_freezes(cluster: &mut Cluster<Patroni>) {
    freeze_store(cluster);
    cluster.leader();
    cluster.wait_whole(3);
}

/// Its data is thrown away and copied anew.
pub fn a_replica_is_reinitialised(cluster: &mut Cluster<Patroni>) {
    let replica = (cluster.leader() + 1) % 3;
    cluster.order(replica, "POST", "/reinitialize", &json!({ "force": true }));
    sleep(Duration::from_secs(2));
    cluster.wait_whole(3);
}

pub fn all_are_restarted(cluster: &mut Cluster<Patroni>) {
    let leader = cluster.leader();
    for place in [(leader + 1) % 3, (leader + 2) % 3, leader] {
        cluster.order(place, "POST", "/restart", &json!({}));
    }
    cluster.wait_whole(3);
}

/// The pool hears of both from Patroni.
pub fn a_member_joins_and_another_leaves(cluster: &mut Cluster<Patroni>) {
    cluster.add_member();
    cluster.wait_whole(4);
    let replica = (cluster.leader() + 1) % 3;
    cluster.remove_member(replica);
    // Patroni forgets it when its key has ended.
    cluster.wait_whole(3);
}

/// Patroni does nothing by itself: an operator does all, and the pool follows.
pub fn in_pause_an_operator_restarts_and_switches_over(cluster: &mut Cluster<Patroni>) {
    let leader = cluster.leader();
    cluster.order(leader, "PATCH", "/config", &json!({ "pause": true }));
    sleep(Duration::from_secs(6));
    cluster.order(leader, "POST", "/restart", &json!({}));
    cluster.wait_whole(3);
    cluster.switchover();
    let next = cluster.wait_other_leader(leader);
    cluster.order(next, "PATCH", "/config", &json!({ "pause": null }));
    cluster.wait_whole(3);
}

fn freeze_store(cluster: &Cluster<impl Orchestrator>) {
    cluster.signal_store(Signal::STOP);
    sleep(BEYOND_TTL);
    cluster.signal_store(Signal::CONT);
}

/// The leader goes on while it hears of its standbys. Nobody is promoted.
pub fn the_monitor_freezes(cluster: &mut Cluster<AutoFailover>) {
    let leader = cluster.leader();
    freeze_store(cluster);
    cluster.wait_whole(3);
    assert_eq!(cluster.leader(), leader, "another leads");
}

/// Its server stops, and starts again.
pub fn a_replica_is_in_maintenance_and_comes_back(cluster: &mut Cluster<AutoFailover>) {
    let replica = (cluster.leader() + 1) % 3;
    cluster.order(replica, &["enable", "maintenance"]);
    maintain(cluster, replica);
}

/// Another is promoted first.
pub fn the_leader_is_in_maintenance_and_comes_back(cluster: &mut Cluster<AutoFailover>) {
    let leader = cluster.leader();
    cluster.order(leader, &["enable", "maintenance", "--allow-failover"]);
    cluster.wait_other_leader(leader);
    maintain(cluster, leader);
}

/// Leaves a member in maintenance for a while.
fn maintain(cluster: &Cluster<AutoFailover>, place: usize) {
    cluster.wait_state(place, "maintenance");
    sleep(Duration::from_secs(10));
    cluster.order(place, &["disable", "maintenance"]);
    cluster.wait_whole(3);
}
