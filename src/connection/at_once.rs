//! Takes a connection that is at hand. Most statements find one, so what has to wait is kept out of their futures.

use super::ReplicatedConnection;
use super::execution::Execution;
use super::proof::Proof;
use super::reading::{Chosen, Found, Served};
use crate::error::Error;
use crate::route::RouteReason;
use crate::routing::Decision;

/// What is there for a statement without a wait.
pub(super) enum AtOnce {
    Served(Served),
    /// A read has to go on from here: a node is chosen once.
    Found(Found),
    Nothing,
}

impl ReplicatedConnection {
    /// A connection for the next attempt, if one is at hand that needs no question.
    pub(super) fn served_at_once(&self, execution: &mut Execution) -> Result<AtOnce, Error> {
        let served = match execution.decision {
            Decision::Primary(reason) => {
                let lease = match self.transaction_lease()? {
                    None if execution.fallback => None,
                    None => self.primary_at_once(execution.purpose())?,
                    open => open,
                };
                lease.map(|lease| Served::by_primary(lease, reason))
            }
            Decision::Replica { reason, .. } => return Ok(self.reads_at_once(execution, reason)),
            Decision::TransactionReplica => {
                let reason = RouteReason::ReadOnlyTransaction;
                let lease = self.transaction_lease()?;
                lease.map(|lease| Served::by_replica(lease, reason))
            }
            Decision::HeldBack(_) => None,
        };
        Ok(served.map_or(AtOnce::Nothing, AtOnce::Served))
    }

    /// A free connection of a replica that is known to show what the read must see.
    fn reads_at_once(&self, execution: &mut Execution, reason: RouteReason) -> AtOnce {
        if execution.requirement.covers_others() {
            self.refresh(&mut execution.requirement);
        }
        let topology = self.cluster.topology();
        let tagged = self.tagged_for(execution.decision);
        let reading = execution.reading(reason, execution.started, tagged.as_deref());
        if !reading.knows_enough(&topology) {
            return AtOnce::Nothing;
        }
        let found = self.replica_at_once(&topology, &reading);
        let lease = match found {
            Found::Chosen(Chosen::Replica(lease)) => lease,
            Found::Chosen(Chosen::Unmet) => {
                let primary = self.held_meanwhile(&topology, &reading);
                return primary.map_or(AtOnce::Found(found), AtOnce::Served);
            }
            _ => return AtOnce::Found(found),
        };
        match self.proof_at_once(&topology, &lease, reading.requirement) {
            Ok(Proof::Shown) => AtOnce::Served(Served::by_replica(lease, reason)),
            _ => AtOnce::Found(Found::Chosen(Chosen::Replica(lease))),
        }
    }
}
