//! What can be done to a server, and what must be done to the others so that one primary is left.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use diesel_replicated::testing::{ClusterError, LocalCluster, LocalNode};

use super::super::error::Error;
use super::{Server, failure};

/// What a button does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Kill,
    Freeze,
    Thaw,
    Pause,
    Resume,
    Restart,
    Promote,
}

impl Verb {
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "kill" => Self::Kill,
            "freeze" => Self::Freeze,
            "thaw" => Self::Thaw,
            "pause" => Self::Pause,
            "resume" => Self::Resume,
            "restart" => Self::Restart,
            "promote" => Self::Promote,
            _ => return None,
        })
    }
}

/// What was done so far, as far as the servers do not tell it themselves.
#[derive(Debug)]
pub(super) struct Stage {
    /// Who takes writes, or did before it ended.
    primary: String,
    frozen: BTreeSet<String>,
    /// They have missed a promotion, and can come back only as new copies of the primary.
    outdated: BTreeSet<String>,
    /// The port of each.
    ports: BTreeMap<String, u16>,
}

impl Stage {
    pub(super) fn new(cluster: &LocalCluster) -> Self {
        Self {
            primary: cluster.primary().name().to_owned(),
            frozen: BTreeSet::new(),
            outdated: BTreeSet::new(),
            ports: cluster
                .nodes()
                .map(|node| (node.name().to_owned(), node.port()))
                .collect(),
        }
    }

    pub(super) fn primary<'a>(&self, cluster: &'a LocalCluster) -> &'a LocalNode {
        cluster.node(&self.primary).unwrap_or(cluster.primary())
    }

    pub(super) fn is_primary(&self, name: &str) -> bool {
        self.primary == name
    }

    pub(super) fn primary_url(&self, database: &str) -> String {
        self.url(&self.primary, database)
    }

    pub(super) fn url(&self, name: &str, database: &str) -> String {
        let port = self.ports.get(name).copied().unwrap_or_default();
        format!("postgres://postgres@127.0.0.1:{port}/{database}")
    }

    /// Where those listen that must not take writes any more.
    pub(super) fn replaced_ports(&self) -> BTreeSet<u16> {
        let ports = self.outdated.iter().filter_map(|name| self.ports.get(name));
        ports.copied().collect()
    }

    pub(super) fn server(&self, node: &LocalNode) -> Server {
        Server {
            running: node.is_running(),
            frozen: self.frozen.contains(node.name()),
            primary: self.is_primary(node.name()),
            outdated: self.outdated.contains(node.name()),
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does it and returns when it is done. It blocks; nobody else may act meanwhile.
pub(super) fn act(
    cluster: &LocalCluster,
    stage: &Mutex<Stage>,
    name: &str,
    verb: Verb,
    diverged: bool,
) -> Result<(), Error> {
    let node = cluster
        .node(name)
        .ok_or_else(|| Error::NotFound(format!("there is no node `{name}`")))?;
    let act = Act {
        cluster,
        stage,
        node,
    };
    let now = lock(stage).server(node);
    match verb {
        Verb::Kill => act.kill(&now),
        Verb::Freeze => act.freeze(&now),
        Verb::Thaw => act.thaw(&now),
        Verb::Pause => act
            .replica(&now)
            .and_then(|()| node.pause_replay().map_err(fault)),
        Verb::Resume => act
            .replica(&now)
            .and_then(|()| node.resume_replay().map_err(fault)),
        Verb::Restart => act.restart(&now, diverged),
        Verb::Promote => act.replica(&now).and_then(|()| act.promote()),
    }
}

/// One thing that is being done to one node.
pub(super) struct Act<'a> {
    pub(super) cluster: &'a LocalCluster,
    pub(super) stage: &'a Mutex<Stage>,
    pub(super) node: &'a LocalNode,
}

impl Act<'_> {
    fn kill(&self, now: &Server) -> Result<(), Error> {
        self.running(now)?;
        self.node.kill().map_err(fault)?;
        lock(self.stage).frozen.remove(self.node.name());
        Ok(())
    }

    fn freeze(&self, now: &Server) -> Result<(), Error> {
        self.answering(now)?;
        self.freeze_now();
        Ok(())
    }

    pub(super) fn freeze_now(&self) {
        lock(self.stage).frozen.insert(self.node.name().to_owned());
        self.node.freeze();
    }

    pub(super) fn thaw_now(&self) {
        self.node.thaw();
        lock(self.stage).frozen.remove(self.node.name());
    }

    fn thaw(&self, now: &Server) -> Result<(), Error> {
        self.running(now)?;
        if !now.frozen {
            return Err(self.refuse("is not frozen"));
        }
        if self.is_outdated() {
            return self.rebuild();
        }
        self.thaw_now();
        Ok(())
    }

    /// Whatever it was, it runs afterwards, and follows the primary if it is not the primary.
    fn restart(&self, now: &Server, diverged: bool) -> Result<(), Error> {
        if self.is_outdated() || diverged && !now.primary {
            return self.rebuild();
        }
        // One that is frozen could not stop.
        self.thaw_now();
        self.node.restart().map_err(fault)
    }

    /// Makes the node the primary. The old one ends first: whatever it took from then on would be lost.
    pub(super) fn promote(&self) -> Result<(), Error> {
        let (cluster, node) = (self.cluster, self.node);
        let old = lock(self.stage).primary.clone();
        let others: Vec<_> = cluster
            .nodes()
            .filter(|other| other.name() != node.name())
            .collect();
        if let Some(old) = others.iter().find(|other| other.name() == old) {
            old.kill().map_err(fault)?;
        }
        let has = received(node).map_err(fault)?;
        node.promote().map_err(fault)?;
        // One that has missed a promotion before can follow nobody, and may not even be a replica.
        let could_follow: Vec<_> = others
            .iter()
            .filter(|other| {
                let state = lock(self.stage).server(other);
                state.running && !state.frozen && !state.outdated
            })
            .collect();
        {
            let mut stage = lock(self.stage);
            node.name().clone_into(&mut stage.primary);
            stage.frozen.remove(&old);
            let names = others.iter().map(|other| other.name().to_owned());
            stage.outdated.extend(names);
        }
        for other in could_follow {
            // What it has beyond the new primary is lost, and it cannot go back.
            if received(other).map_err(fault)? > has {
                cluster.rebuild(other, node).map_err(fault)?;
            } else {
                other.follow(node).map_err(fault)?;
            }
            lock(self.stage).outdated.remove(other.name());
        }
        Ok(())
    }

    /// Makes it a new copy of the primary.
    pub(super) fn rebuild(&self) -> Result<(), Error> {
        let (primary, state) = {
            let stage = lock(self.stage);
            let primary = self.cluster.node(&stage.primary);
            let primary = primary.ok_or_else(|| self.refuse("has nobody to follow"))?;
            (primary, stage.server(primary))
        };
        if !state.running || state.frozen {
            let message = format!(
                "would have to follow `{}`, which does not answer",
                primary.name()
            );
            return Err(self.refuse(&message));
        }
        self.cluster.rebuild(self.node, primary).map_err(fault)?;
        let mut stage = lock(self.stage);
        stage.frozen.remove(self.node.name());
        stage.outdated.remove(self.node.name());
        Ok(())
    }

    pub(super) fn is_outdated(&self) -> bool {
        lock(self.stage).outdated.contains(self.node.name())
    }

    fn running(&self, now: &Server) -> Result<(), Error> {
        match now.running {
            true => Ok(()),
            false => Err(self.refuse("is not running")),
        }
    }

    fn answering(&self, now: &Server) -> Result<(), Error> {
        self.running(now)?;
        match now.frozen {
            true => Err(self.refuse("is frozen")),
            false => Ok(()),
        }
    }

    fn replica(&self, now: &Server) -> Result<(), Error> {
        if now.primary {
            return Err(self.refuse("is the primary"));
        }
        self.answering(now)?;
        // It may even take writes, which nobody but its own clients will see.
        match now.outdated {
            true => Err(self.refuse("has missed a promotion: restart it, then it is a copy again")),
            false => Ok(()),
        }
    }

    fn refuse(&self, why: &str) -> Error {
        Error::Conflict(format!("`{}` {why}", self.node.name()))
    }
}

/// How far a replica has the log of its primary, in bytes.
pub(super) fn received(node: &LocalNode) -> Result<u64, ClusterError> {
    let sql =
        "SELECT greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) - '0/0'::pg_lsn";
    let rows = node.sql("postgres", sql)?;
    let value = rows.first().and_then(|row| row.first()?.as_deref());
    Ok(value.and_then(|value| value.parse().ok()).unwrap_or(0))
}

pub(super) fn fault(error: ClusterError) -> Error {
    failure(&error)
}
