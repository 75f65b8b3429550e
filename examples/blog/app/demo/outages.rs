//! Four outages that people have had, and the way back from whatever was done to the servers.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use diesel_replicated::testing::{LocalCluster, LocalNode};
use serde::Serialize;

use super::super::error::Error;
use super::faults::{Act, Stage, fault, lock, received};

/// How long a server may take for anything here.
const PATIENCE: Duration = Duration::from_secs(30);

/// What happens to the servers. Each begins with a primary that two replicas follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Outage {
    /// The primary dies and is replaced. Then its server starts again, and takes writes.
    OldPrimary,
    FrozenReplica,
    /// No replica replays any more.
    AllBehind,
    /// The primary dies and is replaced, while the visitors come thick and fast.
    DeadPrimary,
}

impl Outage {
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "old-primary" => Self::OldPrimary,
            "frozen-replica" => Self::FrozenReplica,
            "all-behind" => Self::AllBehind,
            "dead-primary" => Self::DeadPrimary,
            _ => return None,
        })
    }

    pub(super) fn is_under_load(self) -> bool {
        self == Self::DeadPrimary
    }
}

/// The servers as one who acts on them sees them. Everything here blocks; nobody else may act meanwhile.
pub(super) struct Director<'a> {
    pub(super) cluster: &'a LocalCluster,
    pub(super) stage: &'a Mutex<Stage>,
}

impl<'a> Director<'a> {
    /// Returns when it has happened.
    pub(super) fn cause(&self, outage: Outage) -> Result<(), Error> {
        match outage {
            Outage::OldPrimary => {
                let old = self.primary();
                self.fail_over()?;
                old.start().map_err(fault)?;
                // Alone it would wait for ever for somebody to confirm a commit.
                commit_alone(old)
            }
            Outage::FrozenReplica => {
                // The last one has the greatest weight.
                if let Some(replica) = self.replicas().last() {
                    self.act(replica).freeze_now();
                }
                Ok(())
            }
            Outage::AllBehind => self
                .replicas()
                .try_for_each(|replica| replica.pause_replay().map_err(fault)),
            Outage::DeadPrimary => self.fail_over(),
        }
    }

    /// Whatever was done, there is a primary afterwards, and all others follow it and have what it has.
    /// `diverged`: they have what the primary has lost, as far as is known.
    pub(super) fn heal(&self, diverged: &BTreeSet<String>) -> Result<(), Error> {
        for node in self.cluster.nodes() {
            self.act(node).thaw_now();
        }
        let primary = self.primary();
        primary.start().map_err(fault)?;
        commit_alone(primary)?;
        for replica in self.replicas() {
            let act = self.act(replica);
            if act.is_outdated() || diverged.contains(replica.name()) {
                act.rebuild()?;
                continue;
            }
            replica.start().map_err(fault)?;
            if value(replica, "SELECT pg_is_in_recovery()")? == "t" {
                replica.resume_replay().map_err(fault)?;
            } else {
                act.rebuild()?;
            }
        }
        let position = value(primary, "SELECT pg_current_wal_flush_lsn()")?;
        let has_it = format!("SELECT pg_last_wal_replay_lsn() >= '{position}'::pg_lsn");
        self.replicas()
            .try_for_each(|replica| wait_until(replica, &has_it, "t"))
    }

    /// The primary dies, and the replica that has most takes its place. What was confirmed is not lost:
    /// before, commits begin to wait for a replica. The loss that asynchronous replication allows is none
    /// that a pool could prevent.
    fn fail_over(&self) -> Result<(), Error> {
        let primary = self.primary();
        commit_with_a_replica(primary)?;
        primary.kill().map_err(fault)?;
        let mut best: Option<(u64, &LocalNode)> = None;
        for replica in self.replicas() {
            let has = received(replica).map_err(fault)?;
            if best.is_none_or(|(most, _)| has > most) {
                best = Some((has, replica));
            }
        }
        let nobody = || Error::Conflict("there is no replica to be promoted".to_owned());
        let (_, best) = best.ok_or_else(nobody)?;
        self.act(best).promote()
    }

    fn primary(&self) -> &'a LocalNode {
        lock(self.stage).primary(self.cluster)
    }

    fn replicas(&self) -> impl Iterator<Item = &'a LocalNode> + use<'a> {
        let primary = self.primary().name();
        self.cluster
            .nodes()
            .filter(move |node| node.name() != primary)
    }

    fn act(&self, node: &'a LocalNode) -> Act<'a> {
        Act {
            cluster: self.cluster,
            stage: self.stage,
            node,
        }
    }
}

/// From now on a commit is confirmed when a replica has it, too.
fn commit_with_a_replica(primary: &LocalNode) -> Result<(), Error> {
    run(
        primary,
        "ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (*)'",
    )?;
    primary.reload().map_err(fault)?;
    let senders = "SELECT bool_and(sync_state = 'quorum') FROM pg_stat_replication";
    wait_until(primary, senders, "t")?;
    // What was confirmed before they knew.
    let position = value(primary, "SELECT pg_current_wal_flush_lsn()")?;
    let has_it = format!(
        "SELECT bool_or(flush_lsn >= '{position}'::pg_lsn) FROM pg_stat_replication \
         WHERE state = 'streaming'"
    );
    wait_until(primary, &has_it, "t")
}

/// A commit waits for nobody.
fn commit_alone(primary: &LocalNode) -> Result<(), Error> {
    if value(primary, "SHOW synchronous_standby_names")?.is_empty() {
        return Ok(());
    }
    run(primary, "ALTER SYSTEM RESET synchronous_standby_names")?;
    primary.reload().map_err(fault)
}

fn run(node: &LocalNode, statement: &str) -> Result<(), Error> {
    node.sql("postgres", statement).map(drop).map_err(fault)
}

/// The first column of the first row.
fn value(node: &LocalNode, query: &str) -> Result<String, Error> {
    let rows = node.sql("postgres", query).map_err(fault)?;
    let value = rows
        .into_iter()
        .next()
        .and_then(|row| row.into_iter().next());
    Ok(value.flatten().unwrap_or_default())
}

fn wait_until(node: &LocalNode, query: &str, expected: &str) -> Result<(), Error> {
    let started = Instant::now();
    while value(node, query)? != expected {
        if started.elapsed() > PATIENCE {
            let message = format!("`{}` took too long: {query}", node.name());
            return Err(Error::Conflict(message));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
