//! How the nodes and the pool are, for whoever records metrics, and how long writes have paused.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::lag::lag;
use super::member::Member;
use super::topology::Topology;
use crate::consistency::WriteLog;
use crate::election::Standing;
use crate::metrics::{self, NodeState, PoolState};
use crate::node::Node;
use crate::route::NodeKind;

/// What is told to the recorder.
#[derive(Debug, Default)]
pub(super) struct Gauges {
    /// The pool's routing keeps all reads on the primary.
    observes: Arc<AtomicBool>,
    /// The last node that took writes.
    primary: RefCell<Option<Arc<Node>>>,
    /// Since when none does.
    pause: Cell<Option<Instant>>,
}

impl Gauges {
    pub(super) fn new(observes: Arc<AtomicBool>) -> Self {
        Self {
            observes,
            ..Self::default()
        }
    }

    /// Another topology was published. Tells a pause of writes at its end.
    pub(super) fn follow(&self, topology: &Topology) {
        let mut primary = self.primary.borrow_mut();
        let takes_writes = topology.lets_writes_pass();
        let now = topology.primary().filter(|_| takes_writes);
        match (&*primary, now) {
            (None, Some(now)) => *primary = Some(Arc::clone(&now.node)),
            (Some(_), None) if self.pause.get().is_none() => self.pause.set(Some(Instant::now())),
            (Some(before), Some(now)) => {
                let by_another = !Arc::ptr_eq(before, &now.node);
                let pause = self.pause.take().map(|since| since.elapsed());
                if by_another || pause.is_some() {
                    metrics::writes_go_on(pause.unwrap_or(Duration::ZERO), by_another);
                    *primary = Some(Arc::clone(&now.node));
                }
            }
            _ => {}
        }
    }

    /// Tells how all are now.
    pub(super) fn tell(
        &self,
        topology: &Topology,
        write_log: &WriteLog,
        (learned, degradations): (usize, usize),
    ) {
        self.follow(topology);
        if !metrics::is_recording() {
            return;
        }
        for member in &topology.members {
            member.node.meter.is(state(member, topology, write_log));
        }
        let name = topology.members.first().map(|member| &*member.node.name);
        let observes = self.observes.load(Ordering::Relaxed);
        let state = PoolState {
            takes_writes: topology.lets_writes_pass(),
            takes_reads: topology.takes_reads_if(observes),
            learned,
            degradations,
        };
        metrics::pool(name.unwrap_or_default(), state);
    }
}

fn state(member: &Member, topology: &Topology, write_log: &WriteLog) -> NodeState {
    let pool = &member.node.pool;
    let connections = pool.state();
    let (lag_bytes, lag) = match member.kind() {
        Some(NodeKind::Replica) => lag(member, write_log),
        _ => (None, None),
    };
    NodeState {
        up: member.is_up(),
        is_replica: member.kind() == Some(NodeKind::Replica),
        serves_reads: topology.serves_reads(member),
        serves_writes: topology.lets_writes_pass() && member.kind() == Some(NodeKind::Primary),
        no_reads: member.no_reads() && member.kind() != Some(NodeKind::Primary),
        stray_primary: member.is_up() && takes_writes_beside_the_primary(member.standing),
        lag_bytes,
        lag,
        connections: connections.connections,
        idle: connections.idle_connections,
        max_size: pool.max_size(),
        fallback: pool.fallback_limit - pool.fallback.available_permits().min(pool.fallback_limit),
        fallback_limit: pool.fallback_limit,
    }
}

/// Whether a server that is no primary takes writes, and the pool keeps away from it.
fn takes_writes_beside_the_primary(standing: Standing) -> bool {
    matches!(standing, Standing::Superseded { .. } | Standing::Rival)
}
