//! Takes a connection that is at hand. Most statements find one, so what has to wait is kept out of their futures.

use std::sync::Arc;

use super::ReplicatedConnection;
use super::execution::Execution;
use super::proof::Proof;
use super::reading::{Chosen, Found, Served};
use crate::error::Error;
use crate::node::Lease;
use crate::route::RouteReason;
use crate::routing::Decision;

impl ReplicatedConnection {
    /// A connection for the next attempt, if one is at hand that needs no question.
    pub(super) fn served_at_once(
        &self,
        execution: &mut Execution,
    ) -> Result<Option<Served>, Error> {
        let served = match execution.decision {
            Decision::Primary(reason) => {
                let lease = match self.transaction_lease()? {
                    None if execution.fallback => None,
                    None => self.primary_at_once(execution.purpose())?,
                    open => open,
                };
                lease.map(|lease| Served::by_primary(lease, reason))
            }
            Decision::Replica { reason, .. } => {
                let lease = self.reads_at_once(execution, reason);
                lease.map(|lease| Served::by_replica(lease, reason))
            }
            Decision::TransactionReplica => {
                let reason = RouteReason::ReadOnlyTransaction;
                let lease = self.transaction_lease()?;
                lease.map(|lease| Served::by_replica(lease, reason))
            }
            Decision::HeldBack(_) => None,
        };
        Ok(served)
    }

    /// A free connection of a replica that is known to show what the read must see.
    fn reads_at_once(&self, execution: &mut Execution, reason: RouteReason) -> Option<Arc<Lease>> {
        if execution.requirement.covers_others() {
            self.refresh(&mut execution.requirement);
        }
        let topology = self.cluster.topology();
        let asked = topology.is_settled() || topology.trusted_replicas().next().is_some();
        let reading = execution.reading(reason);
        match asked.then(|| self.replica_at_once(&topology, &reading))? {
            Found::Chosen(Chosen::Replica(lease)) => {
                match self.proof_at_once(&lease, reading.requirement)? {
                    Proof::Shown => Some(lease),
                    Proof::ToShow(_) | Proof::Behind => None,
                }
            }
            Found::Chosen(Chosen::Unmet | Chosen::Primary { .. }) | Found::Busy(_) => None,
        }
    }
}
