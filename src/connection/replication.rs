//! How far the commits of a connection must get: before they are acknowledged, and after.

use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::QueryResult;
use diesel_async::SimpleAsyncConnection;

use super::ReplicatedConnection;
use crate::classify::TransactionControl;
use crate::cluster::{Member, Topology};
use crate::config::Durability;
use crate::consistency::Stage;
use crate::deadline;
use crate::error::{Error, Outcome};
use crate::node::Lease;
use crate::position::Position;
use crate::wire::{Pooling, Wire};

/// How many replicas must have a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Replicas {
    /// This many of them, whichever.
    Count(usize),
    /// More than half of them.
    Majority,
    /// Every one, also those that are down.
    All,
}

/// Which replicas have a write.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Replication {
    /// The names of those that have it.
    pub confirmed: Vec<String>,
    /// The names of those that did not confirm in time.
    pub missing: Vec<String>,
    /// Whether as many have it as were asked for.
    pub is_met: bool,
}

/// How far commits must get, and which server connection was told so.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    pub(super) level: Option<Durability>,
    told: Option<(Arc<Wire>, Durability)>,
}

impl ReplicatedConnection {
    /// See [`wait_for_replicas`](Self::wait_for_replicas).
    pub(super) async fn replicated(
        &self,
        replicas: Replicas,
        stage: Stage,
        timeout: Duration,
    ) -> Result<Replication, Error> {
        let deadline = deadline::after(Instant::now(), timeout);
        let topology = self.cluster.topology();
        let wanted = required(replicas, &topology)?;
        let history = Arc::clone(&self.session().history);
        let write_log = &self.cluster.write_log;
        let _asked: Vec<_> = topology
            .members
            .iter()
            .map(|member| member.reports.want())
            .collect();
        let mut answer = None;
        let look = || {
            let known = history.positions(write_log);
            if let Some(position) = history.lost(write_log) {
                return Some(Err(Error::WriteLost { position }));
            }
            answer = known
                .unknown
                .is_none()
                .then(|| self.replication(known.written, stage, wanted));
            answer.clone().filter(|answer| answer.is_met).map(Ok)
        };
        match self.cluster.with_news(deadline, look).await {
            Some(done) => done,
            None => answer.ok_or(Error::PositionUnknown { waited: timeout }),
        }
    }

    fn replication(&self, written: Option<Position>, stage: Stage, wanted: usize) -> Replication {
        let topology = self.cluster.topology();
        let has = |member: &&Member| {
            written.is_none_or(|written| {
                let place = member.reports.at(stage);
                let covers = |place| {
                    self.cluster
                        .write_log
                        .with(|view| view.forks.covers(place, written))
                };
                // What one of several servers has, the others may lack.
                !member.leads_to_several() && place.is_some_and(covers)
            })
        };
        let (confirmed, missing): (Vec<&Member>, Vec<&Member>) = topology.replicas().partition(has);
        let names = |members: Vec<&Member>| -> Vec<String> {
            members
                .iter()
                .map(|member| member.node.name.clone())
                .collect()
        };
        Replication {
            is_met: confirmed.len() >= wanted,
            confirmed: names(confirmed),
            missing: names(missing),
        }
    }

    /// Tells the server how far commits must get, if it does not know yet.
    pub(super) async fn tell_durability(
        &self,
        lease: &Arc<Lease>,
        control: Option<TransactionControl>,
    ) -> QueryResult<()> {
        match self.untold(lease) {
            None => Ok(()),
            Some(level) => Box::pin(self.tell_level(lease, level, control)).await,
        }
    }

    async fn tell_level(
        &self,
        lease: &Arc<Lease>,
        level: Durability,
        control: Option<TransactionControl>,
    ) -> QueryResult<()> {
        if lease.wire.pooling().shares_servers() {
            return self.tell_durability_locally(lease, level, control).await;
        }
        // The transaction's end would undo it.
        if lease.wire.in_transaction() {
            return Ok(());
        }
        lease.note_settings(std::iter::once("synchronous_commit"));
        tell(lease, &level.sql("SET")).await?;
        self.session().durability.told = Some((Arc::clone(&lease.wire), level));
        Ok(())
    }

    /// The same where a pooler gives the server to others after each transaction: each transaction is told at its end.
    async fn tell_durability_locally(
        &self,
        lease: &Arc<Lease>,
        level: Durability,
        control: Option<TransactionControl>,
    ) -> QueryResult<()> {
        // An error reaches the caller a moment before the server tells what became of the transaction.
        lease.wire.answered().await;
        match (control, lease.wire.transaction_status()) {
            (Some(TransactionControl::End), b'T') => tell(lease, &level.sql("SET LOCAL")).await,
            (Some(TransactionControl::Begin { .. }), _) | (_, b'T' | b'E') => Ok(()),
            _ => Err(Error::PooledTransactions {
                node: lease.node().name.clone(),
                mode_is_known: lease.wire.pooling() == Pooling::Transaction,
            }
            .into()),
        }
    }

    fn untold(&self, lease: &Lease) -> Option<Durability> {
        let session = self.session();
        let level = session.durability.level?;
        let told = session.durability.told.as_ref();
        let known =
            told.is_some_and(|(wire, told)| Arc::ptr_eq(wire, &lease.wire) && *told == level);
        (!known).then_some(level)
    }
}

async fn tell(lease: &Arc<Lease>, setting: &str) -> QueryResult<()> {
    let using = lease.enter();
    let told = lease.pg().batch_execute(setting).await;
    using.finish();
    told.map_err(|error| match lease.diagnose(&error).lost {
        Some(cause) => Error::ConnectionLost {
            node: lease.node().name.clone(),
            cause,
            outcome: Outcome::NotRun,
        }
        .into(),
        None => error,
    })
}

fn required(replicas: Replicas, topology: &Topology) -> Result<usize, Error> {
    let have = topology.replicas().count();
    let wanted = match replicas {
        Replicas::Count(count) => count,
        Replicas::Majority => have / 2 + 1,
        Replicas::All => have,
    };
    if wanted > have {
        return Err(Error::TooFewReplicas { wanted, have });
    }
    Ok(wanted)
}
