//! The task that alone changes the topology: it hears of failures and brings nodes back.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::backoff::{FORGIVEN_AFTER, delay};
use super::catalog;
use super::member::{Health, Member};
use super::probe::{look_at, until_due};
use super::refresh::{self, Refresh};
use super::succession;
use super::topology::Topology;
use crate::classify::{Catalog, Classifier};
use crate::error::{ConnectError, Error};
use crate::guarantee::Board;
use crate::node::{Facts, Node, Probe};
use crate::status::Bell;

/// How long loading the catalog may take.
const CATALOG_LIMIT: Duration = Duration::from_secs(20);

/// What the manager is told or asked.
#[derive(Debug)]
pub(crate) enum Command {
    /// A connect failed or a connection broke.
    Failed { node: Arc<Node>, cause: String },
    /// A connection ended that nobody had asked to end; the node may be well.
    Suspect { node: Arc<Node>, cause: String },
    /// A node does not answer, though its connections are open.
    Silent { node: Arc<Node>, cause: String },
    /// A node said of itself what was not known; whether it is a standby that cannot follow.
    Heard {
        node: Arc<Node>,
        facts: Facts,
        stray: bool,
    },
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
    Probe(Arc<Node>, Result<Probe, ConnectError>),
    Catalog(Option<Catalog>),
}

/// How a node has fared.
pub(super) struct Record {
    pub(super) node: Arc<Node>,
    failures: u32,
    last_failure: Instant,
    probing: bool,
    /// It does not answer on connections that are open.
    silent: bool,
}

/// What a manager works with.
pub(super) struct Parts {
    pub(super) publish: watch::Sender<Arc<Topology>>,
    pub(super) messages: mpsc::Receiver<Command>,
    pub(super) commands: mpsc::WeakSender<Command>,
    pub(super) stop: CancellationToken,
    pub(super) classifier: Arc<Classifier>,
    pub(super) board: Arc<Board>,
    pub(super) remote_apply: bool,
    pub(super) bell: Bell,
}

pub(crate) struct Manager {
    pub(super) publish: watch::Sender<Arc<Topology>>,
    messages: mpsc::Receiver<Command>,
    pub(super) commands: mpsc::WeakSender<Command>,
    stop: CancellationToken,
    classifier: Arc<Classifier>,
    pub(super) board: Arc<Board>,
    pub(super) remote_apply: bool,
    bell: Bell,
    /// One for each node. They end with their node, or with the manager.
    pub(super) watchers: JoinSet<()>,
    tasks: JoinSet<Finding>,
    pub(super) records: Vec<Record>,
    catalog: Refresh,
    catalog_due: Option<Instant>,
}

impl Manager {
    pub(super) fn new(parts: Parts) -> Self {
        Self {
            publish: parts.publish,
            messages: parts.messages,
            commands: parts.commands,
            stop: parts.stop,
            classifier: parts.classifier,
            board: parts.board,
            remote_apply: parts.remote_apply,
            bell: parts.bell,
            watchers: JoinSet::new(),
            tasks: JoinSet::new(),
            records: Vec::new(),
            catalog: Refresh::new(),
            catalog_due: None,
        }
    }

    pub(super) async fn run(mut self) {
        let members = self.publish.borrow().members.clone();
        for member in &members {
            self.watch(member);
            self.probe(&member.node, Duration::ZERO);
        }
        loop {
            tokio::select! {
                () = self.stop.cancelled() => break,
                message = self.messages.recv() => match message {
                    Some(command) => self.obey(command),
                    None => break,
                },
                () = at(self.catalog_due) => self.load_wanted_catalog(),
                Some(_) = self.watchers.join_next() => {}
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
            Command::Silent { node, cause } => self.silent(&node, &cause),
            Command::Heard { node, facts, stray } => {
                self.change(&node, |member| {
                    member.note(&facts, stray);
                });
            }
            Command::CatalogChanged => self.want_catalog(refresh::AFTER_CHANGE),
            Command::CatalogWanted => self.want_catalog(refresh::FOR_A_NAME),
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
        if !self.is_member(node) {
            return;
        }
        let is_up = self.is_up(node);
        let record = self.record(node);
        if record.probing {
            // The probe under way tells the rest; meanwhile the node serves nobody.
            if is_up {
                self.change(node, |member| member.turn(Health::Down(cause)));
            }
            return;
        }
        if record.last_failure.elapsed() > FORGIVEN_AFTER {
            record.failures = 0;
        }
        record.failures = record.failures.saturating_add(1);
        record.last_failure = Instant::now();
        let pause = delay(record.failures, rand::random());
        let silent = std::mem::take(&mut record.silent);
        let name = &node.name;
        tracing::warn!(target: "diesel_replicated", node = name, cause, retry_in = ?pause, "node_down");
        self.change(node, |member| member.turn(Health::Down(cause.clone())));
        if silent {
            // Whoever waits there for an answer would wait for as long as it is frozen.
            node.pool.connector().end_generation(cause);
        }
        self.probe(node, pause);
    }

    /// Looks at the node at once, and leaves it in until that fails.
    fn suspected(&mut self, node: &Arc<Node>, cause: &str) {
        if self.is_member(node) && !self.record(node).probing {
            tracing::debug!(target: "diesel_replicated", node = node.name, cause, "node_suspected");
            self.probe(node, Duration::ZERO);
        }
    }

    /// It may be frozen, or only slow: a new connection tells.
    fn silent(&mut self, node: &Arc<Node>, cause: &str) {
        if self.is_member(node) {
            self.record(node).silent = true;
            self.suspected(node, cause);
        }
    }

    fn probed(&mut self, node: &Arc<Node>, answer: Result<Probe, ConnectError>) {
        if !self.is_member(node) {
            return;
        }
        self.record(node).probing = false;
        match answer {
            Ok(probe) => {
                if !self.is_up(node) {
                    let role = probe.role;
                    tracing::info!(target: "diesel_replicated", node = node.name, ?role, "node_up");
                }
                self.record(node).silent = false;
                self.change(node, |member| {
                    member.role = probe.role;
                    if let Some(facts) = &probe.facts {
                        let stray = member.stray;
                        member.note(facts, stray);
                    }
                    member.turn(Health::Up);
                });
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

    /// Whether it has not been removed meanwhile.
    fn is_member(&self, node: &Arc<Node>) -> bool {
        self.publish.borrow().member(node).is_some()
    }

    fn is_up(&self, node: &Arc<Node>) -> bool {
        let topology = self.publish.borrow();
        topology
            .member(node)
            .is_some_and(|member| member.health == Health::Up)
    }

    fn task_died(&self, error: &tokio::task::JoinError) {
        tracing::error!(target: "diesel_replicated", %error, "task_died");
    }

    pub(super) fn probe(&mut self, node: &Arc<Node>, pause: Duration) {
        if !self.is_member(node) {
            return;
        }
        let record = self.record(node);
        record.probing = true;
        let silent = record.silent;
        let node = Arc::clone(node);
        let topology = self.publish.subscribe();
        self.tasks.spawn(async move {
            until_due(pause, topology).await;
            let answer = look_at(&node, silent).await;
            Finding::Probe(node, answer)
        });
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
                silent: false,
            });
        }
        &mut self.records[place]
    }

    fn want_catalog(&mut self, interval: Duration) {
        self.catalog.want(interval);
        self.load_wanted_catalog();
    }

    /// Loads the catalog if it is wanted and a node can be asked: the primary first, whose
    /// catalog is never behind.
    fn load_wanted_catalog(&mut self) {
        let now = Instant::now();
        let due = self.catalog.due(now);
        self.catalog_due = due.filter(|due| *due > now);
        if due.is_none() || self.catalog_due.is_some() {
            return;
        }
        let topology = Arc::clone(&self.publish.borrow());
        let primary = topology.primary().filter(|member| member.is_of_use());
        let any = || topology.members.iter().find(|member| member.is_of_use());
        let Some(member) = primary.or_else(any) else {
            return;
        };
        self.catalog.started();
        let node = Arc::clone(&member.node);
        self.tasks.spawn(async move {
            let load = AssertUnwindSafe(catalog::load(&node)).catch_unwind();
            let loaded = match tokio::time::timeout(CATALOG_LIMIT, load).await {
                Ok(Ok(loaded)) => loaded.map_err(|error| error.to_string()),
                Ok(Err(_)) => Err("loading it panicked".to_owned()),
                Err(_) => Err(format!("not within {CATALOG_LIMIT:?}")),
            };
            if let Err(cause) = &loaded {
                tracing::warn!(target: "diesel_replicated", node = node.name, cause, "catalog_not_loaded");
            }
            Finding::Catalog(loaded.ok())
        });
    }

    fn catalog_loaded(&mut self, catalog: Option<Catalog>) {
        let loaded = catalog.is_some();
        if let Some(catalog) = catalog {
            self.classifier.set_catalog(catalog);
        }
        self.publish(|topology| topology.with_catalog_asked());
        self.catalog.ended(loaded, Instant::now());
        self.load_wanted_catalog();
    }

    pub(super) fn change(&self, node: &Arc<Node>, change: impl FnOnce(&mut Member)) {
        self.publish(|topology| topology.with(node, change));
    }

    pub(super) fn publish(&self, next: impl FnOnce(&Topology) -> Topology) {
        let before = Arc::clone(&self.publish.borrow());
        let after = Arc::new(next(&before));
        self.publish.send_replace(Arc::clone(&after));
        succession::follow(&before, &after, &self.bell);
    }

    /// Ends the connections of every node, and with the sender tells that all is over.
    fn end(self) {
        let stopped = self.stop.is_cancelled();
        let topology = self.publish.send_replace(Arc::default());
        for member in &topology.members {
            if stopped {
                member.node.end();
            }
        }
    }
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
