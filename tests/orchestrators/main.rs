//! This crate under those who promote servers in production: Patroni with etcd, and `pg_auto_failover` with its monitor.
//! `scripts/orchestrators` runs it.
//!
//! Each test breaks a cluster of its own in one way, under the load of three clients: a pool of this crate, a bare connection
//! that tries again, and, under Patroni, plain pools behind HAProxy with Patroni's health checks. Each says what this crate
//! must do, and adds to `target/orchestrators.md` how long each client was without writes and without reads.
#![allow(
    clippy::allow_attributes,
    clippy::panic,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::large_futures,
    missing_debug_implementations,
    unreachable_pub,
    reason = "a program of tests, which fail by panicking"
)]

mod balancer;
mod cluster;
mod load;
mod patroni;
mod pg_auto_failover;
mod process;
mod report;
mod situations;
#[path = "../connect/unprivileged.rs"]
mod unprivileged;

use std::time::{Duration, Instant};

use diesel_replicated::status::NodeHealth;

use crate::cluster::{Cluster, Orchestrator};
use crate::load::Load;

/// How long all is well before and after.
const CALM: Duration = Duration::from_secs(3);

/// How long the pool may take to know that all is well again.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs one situation under a version of an orchestrator.
fn run<O: Orchestrator>(version: &str, situation: &str, act: fn(&mut Cluster<O>)) {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let log = tracing_subscriber::fmt().with_env_filter(filter);
    let _ = log.with_ansi(false).try_init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let mut cluster = Cluster::<O>::start(version);
    let leader = cluster.leader();
    cluster
        .sql(leader, "postgres", "CREATE DATABASE app")
        .unwrap();
    cluster.sql(leader, "app", load::TABLES).unwrap();
    let balancer = O::balancer(&cluster.members, &cluster.folder);
    let mut load = runtime.block_on(Load::start(&cluster, balancer.as_ref()));
    std::thread::sleep(CALM);
    act(&mut cluster);
    let whole = Instant::now();
    while !is_well(&load, &cluster) {
        let status = load.pool.status();
        assert!(whole.elapsed() < PATIENCE, "not well: {status:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    let late = whole.elapsed();
    std::thread::sleep(CALM);
    runtime.block_on(load.stop());
    report::tell(version, situation, &load, late);
    report::judge(&load, &cluster);
}

/// Whether the pool knows that all members are up, and who leads.
fn is_well(load: &Load, cluster: &Cluster<impl Orchestrator>) -> bool {
    let status = load.pool.status();
    let leader = &cluster.members[cluster.leader()].name;
    let up = status
        .nodes
        .iter()
        .filter(|node| node.health == NodeHealth::Up);
    up.count() == 3 && status.nodes.len() == 3 && status.primary.as_deref() == Some(leader)
}

/// The tests of these situations, under a version of an orchestrator.
macro_rules! tests {
    ($orchestrator:ty, $version:ident: $($situation:ident),+ $(,)?) => {
        $(
            #[test]
            #[ignore = "`scripts/orchestrators` gets what it needs, and runs it"]
            fn $situation() {
                let act = crate::situations::$situation;
                crate::run::<$orchestrator>(stringify!($version), stringify!($situation), act);
            }
        )+
    };
}

/// The situations, on one version of Patroni: the short form, and the rest.
macro_rules! patroni {
    ($version:ident) => {
        mod $version {
            mod short {
                tests! {
                    crate::patroni::Patroni, $version:
                    switchover, the_leader_is_killed_with_its_agent_and_comes_back, the_store_freezes,
                }
            }
            mod long {
                tests! {
                    crate::patroni::Patroni, $version:
                    the_leaders_server_is_killed, the_leaders_agent_is_killed_and_its_server_goes_on, the_leaders_agent_freezes,
                    the_leader_freezes_with_its_agent, the_leaders_postmaster_freezes, a_replica_is_reinitialised,
                    all_are_restarted, a_member_joins_and_another_leaves, in_pause_an_operator_restarts_and_switches_over,
                }
            }
        }
    };
}

patroni!(patroni_3);
patroni!(patroni_4);

mod autofailover {
    tests! {
        crate::pg_auto_failover::AutoFailover, autofailover:
        switchover, the_leaders_server_is_killed, the_leader_is_killed_with_its_agent_and_comes_back,
        the_leader_freezes_with_its_agent, the_monitor_freezes, a_replica_is_in_maintenance_and_comes_back,
        the_leader_is_in_maintenance_and_comes_back,
    }
}
