//! The task that alone changes the topology: it hears of failures and brings nodes back.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::backoff::{FORGIVEN_AFTER, delay};
use super::catalog;
use super::topology::{Health, Member, Topology};
use crate::classify::{Catalog, Classifier};
use crate::error::{ConnectError, Error};
use crate::node::Node;
use crate::route::NodeKind;
use crate::wire::ServerRole;

/// After a change the catalog is loaded, but not more often than this.
const CATALOG_INTERVAL: Duration = Duration::from_secs(1);

/// For a name that it lacks it is loaded again, but not more often than this: the next catalog
/// may lack the name too.
const CATALOG_PATIENCE: Duration = Duration::from_secs(30);

/// What the manager is told or asked.
#[derive(Debug)]
pub(crate) enum Command {
    /// A connect failed or a connection broke.
    Failed { node: Arc<Node>, cause: String },
    /// A connection ended that nobody had asked to end; the node may be well.
    Suspect { node: Arc<Node>, cause: String },
    /// The database's functions, views or types may have changed.
    CatalogChanged,
    /// A function or operator was met of which nothing is known.
    CatalogWanted,
    Add {
        node: Member,
        done: oneshot::Sender<Result<(), Error>>,
    },
    Remove {
        name: String,
        done: oneshot::Sender<Result<Arc<Node>, Error>>,
    },
    SetWeight {
        name: String,
        weight: u32,
        done: oneshot::Sender<Result<(), Error>>,
    },
}

/// What one of the manager's own tasks found.
enum Finding {
    Probe(Arc<Node>, Result<Option<ServerRole>, ConnectError>),
    Catalog(Option<Catalog>),
}

/// How a node has fared.
struct Record {
    node: Arc<Node>,
    failures: u32,
    last_failure: Instant,
    probing: bool,
}

pub(crate) struct Manager {
    publish: watch::Sender<Arc<Topology>>,
    messages: mpsc::Receiver<Command>,
    stop: CancellationToken,
    classifier: Arc<Classifier>,
    tasks: JoinSet<Finding>,
    records: Vec<Record>,
    catalog: CatalogState,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum CatalogState {
    Wanted {
        not_before: Option<Instant>,
    },
    /// With when to load it once more after this.
    Loading {
        again: Option<Duration>,
    },
    Loaded {
        at: Instant,
    },
}

impl Manager {
    pub(super) fn new(
        publish: watch::Sender<Arc<Topology>>,
        messages: mpsc::Receiver<Command>,
        stop: CancellationToken,
        classifier: Arc<Classifier>,
    ) -> Self {
        Self {
            publish,
            messages,
            stop,
            classifier,
            tasks: JoinSet::new(),
            records: Vec::new(),
            catalog: CatalogState::Wanted { not_before: None },
        }
    }

    pub(super) async fn run(mut self) {
        let members = self.publish.borrow().members.clone();
        for member in &members {
            self.probe(&member.node, Duration::ZERO);
        }
        loop {
            tokio::select! {
                () = self.stop.cancelled() => break,
                message = self.messages.recv() => match message {
                    Some(command) => self.obey(command),
                    None => break,
                },
                Some(finding) = self.tasks.join_next() => match finding {
                    Ok(finding) => self.learn(finding),
                    Err(panic) => self.task_died(&panic),
                },
            }
        }
        self.end();
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Failed { node, cause } => self.failed(&node, cause),
            Command::Suspect { node, cause } => self.suspected(&node, &cause),
            Command::CatalogChanged => self.want_catalog(CATALOG_INTERVAL),
            Command::CatalogWanted => self.want_catalog(CATALOG_PATIENCE),
            Command::Add { node, done } => {
                let _ = done.send(self.add(node));
            }
            Command::Remove { name, done } => {
                let _ = done.send(self.remove(&name));
            }
            Command::SetWeight { name, weight, done } => {
                let _ = done.send(self.set_weight(&name, weight));
            }
        }
    }

    fn learn(&mut self, finding: Finding) {
        match finding {
            Finding::Probe(node, answer) => self.probed(&node, answer),
            Finding::Catalog(catalog) => self.catalog_loaded(catalog),
        }
    }

    /// Leaves the node out at once and has it tried again after a growing delay.
    fn failed(&mut self, node: &Arc<Node>, cause: String) {
        if self.publish.borrow().member(node).is_none() {
            // It was removed meanwhile.
            return;
        }
        let record = self.record(node);
        if record.probing {
            return;
        }
        if record.last_failure.elapsed() > FORGIVEN_AFTER {
            record.failures = 0;
        }
        record.failures = record.failures.saturating_add(1);
        record.last_failure = Instant::now();
        let pause = delay(record.failures, rand::random());
        let name = &node.name;
        tracing::warn!(target: "diesel_replicated", node = name, cause, retry_in = ?pause, "node_down");
        self.change(node, |member| member.health = Health::Down(cause));
        self.probe(node, pause);
    }

    /// Looks at the node at once, and leaves it in until that fails.
    fn suspected(&mut self, node: &Arc<Node>, cause: &str) {
        if !self.record(node).probing {
            tracing::debug!(target: "diesel_replicated", node = node.name, cause, "node_suspected");
            self.probe(node, Duration::ZERO);
        }
    }

    fn probed(&mut self, node: &Arc<Node>, answer: Result<Option<ServerRole>, ConnectError>) {
        self.record(node).probing = false;
        match answer {
            Ok(role) => {
                if !self.is_up(node) {
                    tracing::info!(target: "diesel_replicated", node = node.name, ?role, "node_up");
                }
                self.change(node, |member| {
                    member.role = role;
                    member.health = Health::Up;
                });
                self.warn_of_contradiction(node);
                self.load_wanted_catalog();
            }
            // A full server that serves connections of ours is doing well enough.
            Err(error) if error.is_transient() && node.pool.connector().open() > 0 => {
                if !self.is_up(node) {
                    self.failed(node, error.to_string());
                }
            }
            Err(error) => self.failed(node, error.to_string()),
        }
    }

    fn is_up(&self, node: &Arc<Node>) -> bool {
        let topology = self.publish.borrow();
        topology
            .member(node)
            .is_some_and(|member| member.health == Health::Up)
    }

    fn warn_of_contradiction(&self, node: &Arc<Node>) {
        let topology = self.publish.borrow();
        if let Some(member) = topology.member(node) {
            if member.kind().is_none() {
                tracing::error!(target: "diesel_replicated", node = member.describe(), "node_unused");
            }
        }
    }

    fn task_died(&self, error: &tokio::task::JoinError) {
        tracing::error!(target: "diesel_replicated", %error, "task_died");
    }

    fn probe(&mut self, node: &Arc<Node>, pause: Duration) {
        if self.publish.borrow().member(node).is_none() {
            return;
        }
        self.record(node).probing = true;
        let node = Arc::clone(node);
        self.tasks.spawn(async move {
            tokio::time::sleep(pause).await;
            let answer = node.pool.probe().await;
            Finding::Probe(node, answer)
        });
    }

    fn add(&mut self, member: Member) -> Result<(), Error> {
        let node = Arc::clone(&member.node);
        if self.publish.borrow().named(&node.name).is_some() {
            return Err(Error::DuplicateNode {
                name: node.name.clone(),
            });
        }
        self.publish(|topology| topology.changed(|members| members.push(member)));
        self.probe(&node, Duration::ZERO);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> Result<Arc<Node>, Error> {
        let topology = Arc::clone(&self.publish.borrow());
        let member = find(&topology, name)?;
        if member.kind() == Some(NodeKind::Primary) {
            return Err(Error::IsPrimary {
                name: name.to_owned(),
            });
        }
        let node = Arc::clone(&member.node);
        self.records
            .retain(|record| !Arc::ptr_eq(&record.node, &node));
        self.publish(|topology| {
            topology.changed(|members| members.retain(|other| !Arc::ptr_eq(&other.node, &node)))
        });
        Ok(node)
    }

    fn set_weight(&mut self, name: &str, weight: u32) -> Result<(), Error> {
        let topology = Arc::clone(&self.publish.borrow());
        let node = Arc::clone(&find(&topology, name)?.node);
        self.change(&node, |member| member.set_weight = Some(weight));
        Ok(())
    }

    fn record(&mut self, node: &Arc<Node>) -> &mut Record {
        let found = self.records.iter();
        let place = found
            .take_while(|record| !Arc::ptr_eq(&record.node, node))
            .count();
        if place == self.records.len() {
            self.records.push(Record {
                node: Arc::clone(node),
                failures: 0,
                last_failure: Instant::now(),
                probing: false,
            });
        }
        &mut self.records[place]
    }

    fn want_catalog(&mut self, interval: Duration) {
        self.catalog = match self.catalog {
            CatalogState::Loading { .. } => CatalogState::Loading {
                again: Some(interval),
            },
            CatalogState::Loaded { at } => CatalogState::Wanted {
                not_before: Some(at + interval),
            },
            wanted @ CatalogState::Wanted { .. } => wanted,
        };
        self.load_wanted_catalog();
    }

    /// Loads the catalog if it is wanted and a node can be asked: the primary first, whose
    /// catalog is never behind.
    fn load_wanted_catalog(&mut self) {
        let CatalogState::Wanted { not_before } = self.catalog else {
            return;
        };
        let topology = Arc::clone(&self.publish.borrow());
        let primary = topology.primary().filter(|member| member.is_of_use());
        let any = || topology.members.iter().find(|member| member.is_of_use());
        let Some(member) = primary.or_else(any) else {
            return;
        };
        let node = Arc::clone(&member.node);
        self.catalog = CatalogState::Loading { again: None };
        self.tasks.spawn(async move {
            if let Some(not_before) = not_before {
                tokio::time::sleep_until(not_before).await;
            }
            let loaded = catalog::load(&node).await;
            if let Err(error) = &loaded {
                tracing::warn!(target: "diesel_replicated", node = node.name, %error, "catalog_not_loaded");
            }
            Finding::Catalog(loaded.ok())
        });
    }

    fn catalog_loaded(&mut self, catalog: Option<Catalog>) {
        let CatalogState::Loading { again } = self.catalog else {
            return;
        };
        let now = Instant::now();
        // After a failure it is tried again, with the next word of a node or of a change.
        let failed = catalog.is_none().then_some(CATALOG_INTERVAL);
        if let Some(catalog) = catalog {
            self.classifier.set_catalog(catalog);
        }
        self.publish(|topology| topology.with_catalog_asked());
        self.catalog = match again.or(failed) {
            Some(interval) => CatalogState::Wanted {
                not_before: Some(now + interval),
            },
            None => CatalogState::Loaded { at: now },
        };
        if again.is_some() {
            self.load_wanted_catalog();
        }
    }

    fn change(&self, node: &Arc<Node>, change: impl FnOnce(&mut Member)) {
        self.publish(|topology| topology.with(node, change));
    }

    fn publish(&self, next: impl FnOnce(&Topology) -> Topology) {
        self.publish
            .send_modify(|topology| *topology = Arc::new(next(topology)));
    }

    /// Ends the connections of every node, and with the sender tells that all is over.
    fn end(self) {
        let stopped = self.stop.is_cancelled();
        let topology = self.publish.send_replace(Arc::default());
        for member in &topology.members {
            if stopped {
                member.node.pool.connector().shutdown.cancel();
            }
        }
    }
}

fn find<'a>(topology: &'a Topology, name: &str) -> Result<&'a Member, Error> {
    topology.named(name).ok_or_else(|| Error::UnknownNode {
        name: name.to_owned(),
        nodes: topology.describe(),
    })
}
