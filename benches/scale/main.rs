//! What many replicas, tasks, sessions, texts and processes make of the pool.
//!
//! `SCALE=replicas,faults,weights,waiting,sessions,texts,clients` chooses what is measured; by default all is, in about nine
//! minutes. `SCALE_TEXTS` sets the number of different texts, `SCALE_CLIENTS` that of client processes. Nothing fails for
//! being slow: the targets are printed with what was measured.
//!
//! A replica here has a true limit: so many connections, each with reads that sleep on the server for a fixed time. Sleeping
//! takes no processor, so four replicas fit on a small machine.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a program of measurements, which fails by panicking"
)]

mod clients;
#[path = "../common/mod.rs"]
mod common;
mod faults;
mod load;
mod memory;
mod replicas;
mod waiting;

use std::time::Duration;

use diesel_replicated::config::Policy;
use diesel_replicated::testing::{LocalCluster, LocalNode};
use diesel_replicated::{Builder, NodeConfig, ReplicatedPool};

use common::{all_up, fill};

/// Each server looks up how long its reads take. It is a function that sleeps, so the pool is told that it only reads.
const SCHEMA: &str = "
    CREATE TABLE service (server text PRIMARY KEY, seconds float8 NOT NULL);
    INSERT INTO service SELECT 'replica-' || n, 0.02 FROM generate_series(1, 4) n;
    CREATE FUNCTION served() RETURNS integer LANGUAGE plpgsql STABLE AS $$ BEGIN
        PERFORM pg_sleep(seconds) FROM service WHERE server = current_setting('cluster_name');
        RETURN 1;
    END $$;
";

/// How long a read takes on a replica, and how many connections each has.
const SERVICE: Duration = Duration::from_millis(20);
const CONNECTIONS: u32 = 4;

const POLICIES: [Policy; 4] = [
    Policy::WeightedRandom,
    Policy::RoundRobin,
    Policy::LeastInFlight,
    Policy::LatencyAware,
];

fn cluster() -> LocalCluster {
    let builder = LocalCluster::builder().replicas(4);
    let cluster = builder.setting("max_connections", "300").start().unwrap();
    fill(&cluster, SCHEMA);
    cluster
}

fn node(node: &LocalNode) -> NodeConfig {
    NodeConfig::new(node.url("bench")).name(node.name().to_owned())
}

/// A pool over the primary and so many replicas.
fn builder(cluster: &LocalCluster, replicas: usize) -> Builder {
    let builder = ReplicatedPool::builder().primary(node(cluster.primary()));
    let some = cluster.replicas().iter().take(replicas);
    some.fold(builder, |builder, replica| builder.replica(node(replica)))
        .max_size(CONNECTIONS)
        .allow_function("served")
}

async fn built(builder: Builder) -> ReplicatedPool {
    let pool = builder.build().await.unwrap();
    all_up(&pool).await;
    pool
}

fn number(name: &str, default: usize) -> usize {
    let value = std::env::var(name).ok();
    value
        .and_then(|value| value.parse().ok())
        .unwrap_or(default)
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some("--client") {
        let arguments: Vec<String> = arguments.collect();
        clients::client(&arguments);
        return;
    }
    let chosen = std::env::var("SCALE").unwrap_or_default();
    let wanted = |what: &str| chosen.is_empty() || chosen.split(',').any(|it| it == what);
    let cluster = cluster();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    if wanted("replicas") {
        runtime.block_on(replicas::throughput(&cluster));
    }
    if wanted("weights") {
        runtime.block_on(replicas::weights(&cluster));
    }
    if wanted("faults") {
        runtime.block_on(faults::slow(&cluster));
        runtime.block_on(faults::frozen(&cluster));
        runtime.block_on(faults::added_and_drained(&cluster));
    }
    if wanted("waiting") {
        runtime.block_on(waiting::in_turn(&cluster));
        runtime.block_on(waiting::many(&cluster));
    }
    if wanted("sessions") {
        runtime.block_on(memory::sessions(&cluster));
    }
    if wanted("texts") {
        runtime.block_on(memory::texts(&cluster));
        runtime.block_on(memory::kept_texts(&cluster));
    }
    if wanted("clients") {
        clients::many(&cluster);
    }
}
