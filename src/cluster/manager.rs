//! The task that alone changes the topology: it hears of failures and brings nodes back.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::catalog;
use super::checkup::Record;
use super::lineage::Known;
use super::marks::Marks;
use super::member::Member;
use super::oids::OidCache;
use super::promotion::Promoter;
use super::refresh::{self, Refresh};
use super::succession;
use super::topology::{Gate, Topology};
use crate::classify::{Catalog, Classifier};
use crate::config::HealthConfig;
use crate::error::{ConnectError, Error};
use crate::guarantee::{NewTimeline, WriteLog};
use crate::health::Signal;
use crate::node::{Facts, Node, Place, Probe};
use crate::status::{Degraded, EventBus};

/// How long loading the catalog may take.
const CATALOG_LIMIT: Duration = Duration::from_secs(20);

/// What the manager is told or asked.
#[derive(Debug)]
pub(crate) enum Command {
    /// No connection could be opened, at an attempt that began at `since`.
    Unreachable {
        node: Arc<Node>,
        error: ConnectError,
        since: std::time::Instant,
    },
    /// A connection ended that nobody had asked to end; the node may be well.
    Suspect { node: Arc<Node>, cause: String },
    /// A node does not answer, though its connections are open.
    Silent { node: Arc<Node>, cause: String },
    /// A node said of itself what was not known; and, of a primary, how its log came to be on its
    /// timeline, if that is new.
    Heard {
        node: Arc<Node>,
        facts: Facts,
        fork: Option<NewTimeline>,
    },
    /// A primary takes no writes yet.
    Fenced {
        node: Arc<Node>,
        done: oneshot::Sender<Result<(), Error>>,
    },
    /// More is known by which standbys are told from others.
    Judge,
    /// The database's functions, views or types may have changed.
    CatalogChanged,
    /// The code in the database has changed so often, by whomever.
    CodeChanged { changes: i64 },
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
    /// Has statements that need the primary wait, or go on.
    Hold {
        on: bool,
        done: oneshot::Sender<Result<(), Error>>,
    },
    /// Takes a replica out of use, or back.
    Drain {
        name: String,
        on: bool,
        done: oneshot::Sender<Result<Arc<Node>, Error>>,
    },
    SetWeight {
        name: String,
        weight: u32,
        done: oneshot::Sender<Result<(), Error>>,
    },
}

/// What one of the manager's own tasks found.
pub(super) enum Finding {
    /// What a look at a node found that began at that time.
    Probe(Arc<Node>, std::time::Instant, Result<Probe, ConnectError>),
    /// What was loaded, and how many changes of the catalog were known before.
    Catalog(Option<(Catalog, Option<i64>)>, u64),
}

/// What the manager does next.
enum Turn {
    Obey(Command),
    Learn(Finding),
    Catalog,
    Round,
    Late,
}

/// What a manager works with.
pub(super) struct Parts {
    pub(super) publish: watch::Sender<Arc<Topology>>,
    pub(super) messages: mpsc::Receiver<Command>,
    pub(super) commands: mpsc::WeakSender<Command>,
    pub(super) stop: CancellationToken,
    pub(super) classifier: Arc<Classifier>,
    pub(super) oids: Arc<OidCache>,
    pub(super) write_log: Arc<WriteLog>,
    pub(super) remote_apply: bool,
    /// Old markers of commits are to be removed.
    pub(super) sweep: bool,
    pub(super) event_bus: EventBus,
    pub(super) promoter: Promoter,
}

pub(crate) struct Manager {
    pub(super) publish: watch::Sender<Arc<Topology>>,
    messages: mpsc::Receiver<Command>,
    pub(super) commands: mpsc::WeakSender<Command>,
    stop: CancellationToken,
    pub(super) classifier: Arc<Classifier>,
    oids: Arc<OidCache>,
    pub(super) write_log: Arc<WriteLog>,
    pub(super) remote_apply: bool,
    /// Old markers of commits are to be removed.
    pub(super) sweep: bool,
    pub(super) event_bus: EventBus,
    pub(super) health: Arc<HealthConfig>,
    pub(super) promoter: Promoter,
    /// One for each node. They end with their node, or with the manager.
    pub(super) monitors: JoinSet<()>,
    pub(super) watching: Vec<(Arc<Node>, AbortHandle)>,
    pub(super) tasks: JoinSet<Finding>,
    pub(super) records: Vec<Record>,
    pub(super) marks: Arc<Marks>,
    catalog: Refresh,
    catalog_due: Option<Instant>,
    /// How often the code in the database had changed when its catalog was loaded.
    code: Option<i64>,
    /// What was told of what the pool lacks.
    pub(super) degraded: Vec<Degraded>,
    /// When whoever has not answered since the pool began is not waited for any more.
    pub(super) late: Late,
}

/// Whether the first answers are waited for.
pub(super) enum Late {
    /// No node that takes writes has answered yet.
    Waiting,
    Due(Instant),
    Past,
}

impl Late {
    /// When whoever has not answered yet is late.
    fn due(&self) -> Option<Instant> {
        match self {
            Self::Due(due) => Some(*due),
            Self::Waiting | Self::Past => None,
        }
    }
}

impl Manager {
    pub(super) fn new(parts: Parts) -> Self {
        Self {
            publish: parts.publish,
            messages: parts.messages,
            commands: parts.commands,
            stop: parts.stop,
            classifier: parts.classifier,
            oids: parts.oids,
            write_log: parts.write_log,
            remote_apply: parts.remote_apply,
            sweep: parts.sweep,
            event_bus: parts.event_bus,
            health: Arc::clone(&parts.promoter.health),
            promoter: parts.promoter,
            monitors: JoinSet::new(),
            watching: Vec::new(),
            tasks: JoinSet::new(),
            records: Vec::new(),
            marks: Arc::default(),
            catalog: Refresh::new(),
            catalog_due: None,
            code: None,
            degraded: Vec::new(),
            late: Late::Waiting,
        }
    }

    pub(super) async fn run(mut self) {
        let members = self.publish.borrow().members.clone();
        for member in &members {
            self.watch(member);
            self.probe(&member.node, Duration::ZERO);
        }
        if self.promoter.config.automatic {
            self.monitors.spawn(self.promoter.clone().run());
        }
        let mut rounds = tokio::time::interval(self.health.interval);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let late = self.late.due();
            let turn = tokio::select! {
                () = self.stop.cancelled() => break,
                message = self.messages.recv() => match message {
                    Some(command) => Turn::Obey(command),
                    None => break,
                },
                () = at(self.catalog_due) => Turn::Catalog,
                () = at(late) => Turn::Late,
                Some(_) = self.monitors.join_next() => continue,
                Some(finding) = self.tasks.join_next() => match finding {
                    Ok(finding) => Turn::Learn(finding),
                    Err(panic) => {
                        tracing::error!(target: "diesel_replicated", error = %panic, "task_died");
                        continue;
                    }
                },
                _ = rounds.tick() => Turn::Round,
            };
            // The pool without its manager would never hear of a failure again.
            let taken = std::panic::catch_unwind(AssertUnwindSafe(|| self.take(turn)));
            if taken.is_err() {
                tracing::error!(target: "diesel_replicated", error = "the manager panicked", "task_died");
            }
        }
        self.end();
    }

    fn take(&mut self, turn: Turn) {
        match turn {
            Turn::Obey(command) => self.obey(command),
            Turn::Learn(finding) => self.learn(finding),
            Turn::Catalog => self.load_wanted_catalog(),
            Turn::Round => self.make_rounds(),
            Turn::Late => self.wait_no_more(),
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Unreachable { node, error, since } => self.unreachable(&node, &error, since),
            Command::Suspect { node, cause } => self.suspected(&node, &cause),
            Command::Silent { node, cause } => self.silent(&node, &cause),
            Command::Fenced { node, done } => {
                self.change(&node, |member| member.fenced = true);
                let _ = done.send(Ok(()));
            }
            Command::Heard { node, facts, fork } => self.heard(&node, &facts, fork.as_ref()),
            Command::Judge => self.publish(Topology::clone),
            Command::CatalogChanged => self.want_catalog(refresh::AFTER_CHANGE),
            Command::CodeChanged { changes } if self.code != Some(changes) => {
                self.classifier.note_change();
                self.want_catalog(refresh::AFTER_CHANGE);
            }
            Command::CodeChanged { .. } => {}
            Command::CatalogWanted => self.want_catalog(refresh::FOR_A_NAME),
            Command::Add { node, done } => {
                let _ = done.send(self.add(node));
            }
            Command::Remove { name, done } => {
                let _ = done.send(self.remove(&name));
            }
            Command::Hold { on, done } => {
                let gate = match (on, self.promoter.config.write_quorum) {
                    (true, _) => Gate::Held,
                    (false, false) => Gate::Open,
                    // Whether a majority answers is counted before that is published.
                    (false, true) => Gate::Unasked,
                };
                self.publish(|topology| topology.gated(gate));
                let _ = done.send(Ok(()));
            }
            Command::Drain { name, on, done } => {
                let _ = done.send(self.drain(&name, on));
            }
            Command::SetWeight { name, weight, done } => {
                let _ = done.send(self.set_weight(&name, weight));
            }
        }
    }

    /// Takes note of what a node says of itself. Where its log parted from that of the standbys is known
    /// before these are compared with it.
    fn heard(&self, node: &Arc<Node>, facts: &Facts, fork: Option<&NewTimeline>) {
        let note = |member: &mut Member| {
            member.note(facts);
        };
        if let (
            Some(fork),
            Place::Primary {
                flushed: Some(begun),
                ..
            },
        ) = (fork, &facts.place)
        {
            let next = self.publish.borrow().with(node, note);
            let rules = next
                .primary()
                .is_some_and(|member| Arc::ptr_eq(&member.node, node));
            if rules && facts.timeline == next.timeline() {
                self.write_log.learn(fork, facts.timeline, *begun);
            }
        }
        self.change(node, note);
    }

    fn learn(&mut self, finding: Finding) {
        match finding {
            Finding::Probe(node, began, answer) => self.probed(&node, began, answer),
            Finding::Catalog(catalog, changes) => self.catalog_loaded(catalog, changes),
        }
    }

    fn want_catalog(&mut self, interval: Duration) {
        self.catalog.want(interval);
        self.load_wanted_catalog();
    }

    /// Loads the catalog if it is wanted and a node can be asked: the primary first, whose
    /// catalog is never behind.
    pub(super) fn load_wanted_catalog(&mut self) {
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
        let changes = self.classifier.changes();
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
            Finding::Catalog(loaded.ok(), changes)
        });
    }

    fn catalog_loaded(&mut self, catalog: Option<(Catalog, Option<i64>)>, changes: u64) {
        let loaded = catalog.is_some();
        if let Some((catalog, code)) = catalog {
            self.code = code;
            self.classifier.set_catalog(catalog, changes);
        }
        self.publish(|topology| topology.with_catalog_asked());
        self.catalog.ended(loaded, Instant::now());
        self.load_wanted_catalog();
    }

    /// Passes on what is heard of a node; nothing is published that is not news.
    pub(super) fn hear(&self, node: &Arc<Node>, signal: Signal) {
        let mut heard = match self.publish.borrow().member(node) {
            Some(member) => member.clone(),
            None => return,
        };
        let before = heard.health.clone();
        heard.hear(signal, &self.health);
        if heard.health != before {
            self.change(node, |member| *member = heard);
        }
    }

    pub(super) fn change(&self, node: &Arc<Node>, change: impl FnOnce(&mut Member)) {
        self.publish(|topology| topology.with(node, change));
    }

    pub(super) fn publish(&self, next: impl FnOnce(&Topology) -> Topology) {
        let before = Arc::clone(&self.publish.borrow());
        let mut after = next(&before);
        self.known().judge(&mut after);
        // The gate belongs to what is published: nobody sees nodes that are up behind a gate of before.
        self.count_answers(&mut after);
        let after = Arc::new(after);
        let replaced = before.cluster().is_some() && after.cluster() != before.cluster();
        if replaced && !after.members.is_empty() {
            // Before anybody can write to it.
            self.write_log.begin_anew(after.cluster());
            self.marks.forget();
            self.oids.outdated(self.oids.generation());
            self.classifier.note_change();
            if let Some(commands) = self.commands.upgrade() {
                let _ = commands.try_send(Command::CatalogChanged);
            }
        }
        self.publish.send_replace(Arc::clone(&after));
        if after.timeline() != before.timeline() {
            // What standbys told before says nothing of where they are beside the new primary.
            let members = after.members.iter();
            members.for_each(|member| member.progress.nudge());
        }
        self.follow_the_gate(&before, &after);
        succession::follow(&before, &after, &self.event_bus);
    }

    /// What standbys are compared by.
    pub(super) fn known(&self) -> Known<'_> {
        Known {
            write_log: &self.write_log,
        }
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
