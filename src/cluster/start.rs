//! Starts a cluster from settings, and waits until it can serve.

use std::sync::Arc;
use std::time::Instant;

use diesel_async::SimpleAsyncConnection;
use tokio::runtime::Handle;

use super::handle::{Cluster, Options};
use super::member::Member;
use super::topology::{Gate, Topology};
use crate::config::{Policy, Settings};
use crate::error::Error;
use crate::node::ConnectHooks;
use crate::routing::{
    LatencyAware, LeastInFlight, LoadBalancingPolicy, Nearest, RoundRobin, WeightedRandom,
};

/// The options of a cluster that is made from settings alone.
pub(crate) fn options(settings: Settings, runtime: Handle) -> Options {
    let policy: Arc<dyn LoadBalancingPolicy> = match settings.shared.policy {
        Policy::LatencyAware => Arc::new(LatencyAware),
        Policy::Nearest { window } => Arc::new(Nearest::new(window)),
        Policy::LeastInFlight => Arc::new(LeastInFlight),
        Policy::RoundRobin => Arc::new(RoundRobin::default()),
        Policy::WeightedRandom => Arc::new(WeightedRandom),
    };
    let sql: Arc<[String]> = settings.shared.setup_sql.clone().into();
    Options {
        hooks: ConnectHooks {
            sets_up: !settings.shared.setup_sql.is_empty(),
            tls: None,
            credentials: None,
            positions: None,
            setup: Arc::new(move |connection| {
                let sql = Arc::clone(&sql);
                Box::pin(async move {
                    for statement in &*sql {
                        connection.batch_execute(statement).await?;
                    }
                    Ok(())
                })
            }),
        },
        settings,
        policy,
        runtime,
    }
}

/// Waits until every node has answered or failed to. Checks that one can be written to.
pub(crate) async fn started(cluster: &Cluster, start_read_only: bool) -> Result<(), Error> {
    let started = Instant::now();
    let topology = cluster.settled().await;
    if cluster.is_over() {
        return Err(Error::Runtime {
            message: "it has ended".to_owned(),
        });
    }
    let rivals = topology.rivals();
    if rivals.len() > 1 && topology.primary().is_none() {
        return Err(Error::TwoPrimaries { nodes: rivals });
    }
    let primary_is_up = topology.primary().is_some_and(Member::is_up);
    let a_replica_is_up = topology.usable_replicas().next().is_some();
    let may_be_written_to = matches!(topology.gate, Gate::Open | Gate::Held);
    if (primary_is_up && may_be_written_to) || (start_read_only && a_replica_is_up) {
        tell(cluster, &topology);
        return Ok(());
    }
    if let Gate::NoQuorum { answer, needed } = topology.gate {
        return Err(Error::NoQuorum {
            answer,
            needed,
            nodes: topology.describe(),
        });
    }
    Err(Error::NoPrimary {
        waited: started.elapsed(),
        nodes: topology.describe(),
    })
}

/// Writes one line into the log.
fn tell(cluster: &Cluster, topology: &Topology) {
    let nodes = topology.describe().join("; ");
    let primary = topology.primary().map(|member| member.node.name.as_str());
    let consistency = cluster.consistency().level.to_string();
    let promotion = cluster.promotion().automatic;
    let sizes = topology.members.iter().map(|member| {
        let node = &member.node;
        format!("{}: {}", node.name, node.pool.max_size())
    });
    let connections = sizes.collect::<Vec<_>>().join(", ");
    tracing::info!(
        target: "diesel_replicated", nodes, primary, consistency, promotion, connections, "pool_started"
    );
}
