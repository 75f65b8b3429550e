//! The task that alone changes the topology: it hears of failures and brings nodes back.

mod membership;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::classify::Classifier;
use crate::cluster::catalog_loader::{AFTER_CHANGE, CatalogLoader, FOR_A_NAME, Loaded};
use crate::cluster::command::Command;
use crate::cluster::degradation::{degraded, tell_changes};
use crate::cluster::gauges::Gauges;
use crate::cluster::health_check::{Records, look_at, until_due, until_tried};
use crate::cluster::lag::measure;
use crate::cluster::lineage::Judge;
use crate::cluster::liveness::Liveness;
use crate::cluster::marks::Marks;
use crate::cluster::member::Member;
use crate::cluster::monitor::{Monitor, Surroundings};
use crate::cluster::oid_cache::OidCache;
#[cfg(feature = "promotion")]
use crate::cluster::promotion::{Promoter, Standbys};
use crate::cluster::topology::{Gate, Topology};
use crate::cluster::transitions;
use crate::config::Config;
use crate::consistency::{NewTimeline, WriteLog};
use crate::deadline;
use crate::election::has_quorum;
use crate::error::{ConnectError, ConnectErrorKind};
use crate::health::Signal;
use crate::node::{Facts, Node, Place, Probe, Trouble};
use crate::status::{Degraded, EventBus, PromotionStatus};
use crate::wire::{Pooling, ServerRole};

/// What one of the manager's short tasks found.
enum Finding {
    /// A check of a node ended that had begun at that time.
    Check(Arc<Node>, std::time::Instant, Result<Probe, ConnectError>),
    Catalog(Loaded),
}

/// A node and the task that watches it.
struct Watched {
    node: Arc<Node>,
    pulse: Arc<Liveness>,
    task: AbortHandle,
}

/// What the manager does next.
enum Turn {
    Obey(Command),
    Learn(Finding),
    Catalog,
    Round,
    Late,
    /// A pause of writes is over.
    Resume,
}

/// What a manager is made of.
pub(super) struct Parts {
    pub(super) publish: watch::Sender<Arc<Topology>>,
    pub(super) messages: mpsc::Receiver<Command>,
    pub(super) commands: mpsc::WeakSender<Command>,
    pub(super) stop: CancellationToken,
    pub(super) classifier: Arc<Classifier>,
    pub(super) oids: Arc<OidCache>,
    pub(super) marks: Arc<Marks>,
    pub(super) write_log: Arc<WriteLog>,
    pub(super) config: Arc<Config>,
    pub(super) event_bus: EventBus,
    pub(super) observes: Arc<AtomicBool>,
    /// What is known of promotions by this process.
    pub(super) promotion: Arc<Mutex<PromotionStatus>>,
    #[cfg(feature = "promotion")]
    pub(super) promoter: Promoter,
}

pub(crate) struct Manager {
    publish: watch::Sender<Arc<Topology>>,
    messages: mpsc::Receiver<Command>,
    commands: mpsc::WeakSender<Command>,
    stop: CancellationToken,
    classifier: Arc<Classifier>,
    oids: Arc<OidCache>,
    write_log: Arc<WriteLog>,
    config: Arc<Config>,
    event_bus: EventBus,
    promotion: Arc<Mutex<PromotionStatus>>,
    #[cfg(feature = "promotion")]
    promoter: Promoter,
    /// One monitor for each node, and the promoter. They end with their node, or with the manager.
    monitors: JoinSet<()>,
    watched: Vec<Watched>,
    tasks: JoinSet<Finding>,
    records: Records,
    marks: Arc<Marks>,
    catalog: CatalogLoader,
    /// What the pool lacked when it was last looked at.
    degraded: Vec<Degraded>,
    gauges: Gauges,
    /// How long the manager waits for the first answers.
    late: Late,
}

/// How long the manager waits for the first answers.
enum Late {
    /// No node that takes writes has answered yet.
    Waiting,
    Due(Instant),
    Past,
}

impl Late {
    /// When a node that has not answered yet is late.
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
            catalog: CatalogLoader::new(Arc::clone(&parts.classifier)),
            classifier: parts.classifier,
            oids: parts.oids,
            write_log: parts.write_log,
            config: parts.config,
            event_bus: parts.event_bus,
            promotion: parts.promotion,
            #[cfg(feature = "promotion")]
            promoter: parts.promoter,
            monitors: JoinSet::new(),
            watched: Vec::new(),
            tasks: JoinSet::new(),
            records: Records::default(),
            marks: parts.marks,
            degraded: Vec::new(),
            gauges: Gauges::new(parts.observes),
            late: Late::Waiting,
        }
    }

    pub(super) async fn run(mut self) {
        let members = self.publish.borrow().members.clone();
        for member in &members {
            self.watch(member);
            self.check(&member.node, Duration::ZERO);
        }
        #[cfg(feature = "promotion")]
        if self.config.promotion.automatic {
            self.promotion.lock().automatic = true;
            self.monitors.spawn(self.promoter.clone().run());
        }
        #[cfg(feature = "promotion")]
        if self.config.promotion.standbys_follow {
            self.monitors.spawn(Standbys::of(&self.promoter).run());
        }
        let mut rounds = tokio::time::interval(self.config.health.interval);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let (late, catalog) = (self.late.due(), self.catalog.due());
            let pause = self.publish.borrow().paused_until.map(Instant::from_std);
            let turn = tokio::select! {
                () = self.stop.cancelled() => break,
                message = self.messages.recv() => match message {
                    Some(command) => Turn::Obey(command),
                    None => break,
                },
                () = at(catalog) => Turn::Catalog,
                () = at(late) => Turn::Late,
                () = at(pause) => Turn::Resume,
                Some(_) = self.monitors.join_next() => continue,
                Some(finding) = self.tasks.join_next() => match finding {
                    Ok(finding) => Turn::Learn(finding),
                    // The runtime is shutting down.
                    Err(error) if error.is_cancelled() => continue,
                    Err(panic) => {
                        tracing::error!(target: "diesel_replicated", error = %panic, "task_died");
                        continue;
                    }
                },
                _ = rounds.tick() => Turn::Round,
            };
            // Without its manager the pool would never hear of a failure again.
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
            // What is due comes after each turn.
            Turn::Catalog => {}
            Turn::Round => self.make_rounds(),
            Turn::Late => self.wait_no_more(),
            Turn::Resume => self.pause(None),
        }
        self.load_catalog();
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Trouble { node, trouble } => self.trouble(&node, trouble),
            Command::LookAnew { node } => self.look_anew(&node),
            Command::Fenced { node, done } => {
                self.change(&node, |member| member.fenced = true);
                let _ = done.send(Ok(()));
            }
            Command::Heard { node, facts, fork } => self.heard(&node, &facts, fork.as_ref()),
            Command::Judge => self.publish(Topology::clone),
            Command::CatalogChanged => self.catalog.want(AFTER_CHANGE),
            Command::CodeChanged { changes } => self.catalog.code_changed(changes),
            Command::CatalogWanted => self.catalog.want(FOR_A_NAME),
            Command::Add { node, done } => {
                let _ = done.send(self.add(*node));
            }
            Command::Replace { node, probe, done } => {
                let _ = done.send(self.replace(*node, &probe));
            }
            Command::Remove { name, done } => {
                let _ = done.send(self.remove(&name));
            }
            #[cfg(feature = "promotion")]
            Command::Hold { on, done } => {
                let gate = match (on, self.config.write_quorum) {
                    (true, _) => Gate::Held,
                    (false, false) => Gate::Open,
                    // The answers are counted before this is published.
                    (false, true) => Gate::Unasked,
                };
                self.publish(|topology| topology.gated(gate));
                let _ = done.send(Ok(()));
            }
            Command::Pause { until, done } => {
                self.pause(until);
                let _ = done.send(Ok(()));
            }
            Command::Drain { name, on, done } => {
                let _ = done.send(self.drain(&name, on));
            }
            Command::SetMaxLag { health, done } => {
                self.set_max_lag(&health);
                let _ = done.send(Ok(()));
            }
            Command::SetWeight { name, weight, done } => {
                let _ = done.send(self.set_weight(&name, weight));
            }
        }
    }

    /// Notes what a node reports. It learns where a new timeline began before it compares standbys with it.
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
            Finding::Check(node, began, answer) => self.checked(&node, began, answer),
            Finding::Catalog(loaded) => {
                self.catalog.ended(loaded);
                self.publish(|topology| topology.with_catalog_asked());
            }
        }
    }

    /// Loads the catalog if it is wanted and a node can be asked.
    fn load_catalog(&mut self) {
        let topology = Arc::clone(&self.publish.borrow());
        if let Some(load) = self.catalog.start(&topology) {
            self.tasks
                .spawn(async move { Finding::Catalog(load.await) });
        }
    }

    /// Passes a signal on to the node's health. It publishes nothing that is not news.
    fn hear(&self, node: &Arc<Node>, signal: Signal) {
        let mut heard = match self.publish.borrow().member(node) {
            Some(member) => member.clone(),
            None => return,
        };
        let before = heard.health.clone();
        heard.hear(signal, &self.config.health);
        if heard.health != before {
            self.change(node, |member| *member = heard);
        }
    }

    fn change(&self, node: &Arc<Node>, change: impl FnOnce(&mut Member)) {
        self.publish(|topology| topology.with(node, change));
    }

    fn publish(&self, next: impl FnOnce(&Topology) -> Topology) {
        let before = Arc::clone(&self.publish.borrow());
        let mut after = next(&before);
        self.judge().judge(&mut after);
        // The gate belongs to the topology: nobody sees new nodes behind an old gate.
        self.count_answers(&mut after);
        let after = Arc::new(after);
        let replaced = before.cluster().is_some() && after.cluster() != before.cluster();
        if replaced && !after.members.is_empty() {
            // Before anybody can write there.
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
            // What standbys reported is older than the new primary, so they are asked again.
            let members = after.members.iter();
            members.for_each(|member| member.reports.nudge());
        }
        self.follow_the_gate(&before, &after);
        transitions::follow(&before, &after, &self.event_bus);
        self.gauges.follow(&after);
    }

    /// Pauses new writes until then, or lets them go on.
    fn pause(&self, until: Option<std::time::Instant>) {
        let before = self.publish.borrow().paused_until;
        if before.is_some() != until.is_some() {
            match until {
                Some(_) => tracing::info!(target: "diesel_replicated", "writes_paused"),
                None => tracing::info!(target: "diesel_replicated", "writes_resumed"),
            }
        }
        self.publish(|topology| topology.paused(until));
    }

    /// How standbys are compared with the primary.
    fn judge(&self) -> Judge<'_> {
        Judge {
            write_log: &self.write_log,
        }
    }

    /// A connection to the node has failed, or could not be opened.
    fn trouble(&mut self, node: &Arc<Node>, trouble: Trouble) {
        if !self.is_member(node) {
            return;
        }
        match trouble {
            Trouble::ConnectFailed(error, since) => self.unreachable(node, &error, since),
            Trouble::ConnectionDied(cause) => self.suspected(node, &cause),
            Trouble::LeadsElsewhere(run, opened) => {
                self.change(node, |member| member.led_to(run, opened));
                self.suspected(
                    node,
                    "its name leads to another server than before, or to several",
                );
            }
            Trouble::Silent(cause) => self.silent(node, &cause),
        }
    }

    /// A connection to the node could not be opened.
    ///
    /// A server that refuses this user, is full, or fails the set-up is there. It goes on serving over the
    /// connections that are open.
    fn unreachable(&mut self, node: &Arc<Node>, error: &ConnectError, since: std::time::Instant) {
        if self.records.of(node).is_past(since) {
            return;
        }
        self.records.of(node).refuses = !error.is_outage();
        if !self.hindered(node, error) {
            self.failed(node, error.to_string());
        }
    }

    /// Notes why no more connections can be opened to a node that serves over open ones. Returns `false` if it serves
    /// over none.
    fn hindered(&mut self, node: &Arc<Node>, error: &ConnectError) -> bool {
        // A pooler that is full looks as if its server were silent.
        let connector = node.pool.connector();
        let queues =
            error.kind == ConnectErrorKind::TimedOut && connector.pooling() != Pooling::None;
        let away = error.is_outage() && !queues;
        if away || !self.is_up(node) || !node.is_connected() {
            return false;
        }
        let cause = error.to_string();
        if !self.is_hindered(node) {
            tracing::warn!(target: "diesel_replicated", node = node.name, cause, "node_hindered");
        }
        self.hear(node, Signal::Hindered(cause));
        if !self.records.of(node).checking {
            let pause = self.records.of(node).fails(self.config.health.interval);
            self.check(node, pause);
        }
        true
    }

    /// Takes the node out at once, and checks it again after a growing delay, unless a check is running.
    fn failed(&mut self, node: &Arc<Node>, cause: String) {
        if !self.is_member(node) {
            return;
        }
        if self.records.of(node).checking {
            // A check is running already, and decides. Meanwhile the node serves nobody.
            if !self.is_down(node) {
                tracing::warn!(target: "diesel_replicated", node = node.name, cause, "node_down");
            }
            self.hear(node, Signal::Failed(cause));
            return;
        }
        let pause = self.records.of(node).fails(self.config.health.interval);
        let silent = std::mem::take(&mut self.records.of(node).silent);
        let name = &node.name;
        let retry_in = until_tried(pause, &self.publish.borrow()).as_secs_f64();
        if self.is_down(node) {
            tracing::debug!(target: "diesel_replicated", node = name, cause, retry_in, "node_still_down");
        } else {
            tracing::warn!(target: "diesel_replicated", node = name, cause, retry_in, "node_down");
        }
        self.hear(node, Signal::Failed(cause.clone()));
        if silent {
            // Statements on these connections would wait for as long as the server is frozen.
            node.pool.connector().end_generation(cause);
        }
        self.check(node, pause);
    }

    /// Checks the node at once. It stays in until the check fails.
    fn suspected(&mut self, node: &Arc<Node>, cause: &str) {
        if self.is_member(node) && !self.records.of(node).checking {
            tracing::debug!(target: "diesel_replicated", node = node.name, cause, "node_suspected");
            self.hear(node, Signal::Doubted(cause.to_owned()));
            self.check(node, Duration::ZERO);
        }
    }

    /// Checks the node at once, though nothing speaks against it.
    fn look_anew(&mut self, node: &Arc<Node>) {
        if self.is_member(node) && !self.records.of(node).checking {
            self.check(node, Duration::ZERO);
        }
    }

    /// The node may be frozen, or only slow. A new connection tells.
    fn silent(&mut self, node: &Arc<Node>, cause: &str) {
        if !self.is_member(node) {
            return;
        }
        self.records.of(node).silent = true;
        if self.records.of(node).checking {
            return;
        }
        let was_down = self.is_down(node);
        self.hear(node, Signal::Silent(cause.to_owned()));
        if self.is_up(node) {
            self.suspected(node, cause);
        } else {
            if !was_down {
                tracing::warn!(target: "diesel_replicated", node = node.name, cause, "node_down");
            }
            self.failed(node, cause.to_owned());
        }
    }

    fn checked(
        &mut self,
        node: &Arc<Node>,
        began: std::time::Instant,
        answer: Result<Probe, ConnectError>,
    ) {
        if !self.is_member(node) {
            return;
        }
        self.records.of(node).checking = false;
        let refuses = |error: &ConnectError| !error.is_outage();
        self.records.of(node).refuses = answer.as_ref().err().is_some_and(refuses);
        match answer {
            Ok(probe) => {
                self.records.of(node).reached = Some(began);
                self.reached(node, began, &probe);
            }
            Err(error) if self.hindered(node, &error) => {}
            Err(error) if error.kind == ConnectErrorKind::TimedOut && self.is_up(node) => {
                self.silent(node, &error.to_string());
            }
            Err(error) => self.failed(node, error.to_string()),
        }
    }

    /// Comes a while after the first primary has answered. Nodes that are still silent count as down, so that they do
    /// not hold up the start. Their first check goes on.
    fn wait_no_more(&mut self) {
        self.late = Late::Past;
        let topology = Arc::clone(&self.publish.borrow());
        let unasked = |member: &&Member| !member.health.is_asked();
        for member in topology.members.iter().filter(unasked) {
            let limit = self.config.health.timeout;
            let cause = format!("no answer yet, {limit:?} after others have answered");
            self.failed(&member.node, cause);
        }
    }

    fn reached(&mut self, node: &Arc<Node>, began: std::time::Instant, probe: &Probe) {
        if matches!(self.late, Late::Waiting) && probe.role == Some(ServerRole::Primary) {
            let limit = self.config.health.timeout;
            self.late = Late::Due(deadline::after(std::time::Instant::now(), limit).into());
        }
        if !self.is_up(node) {
            let role = probe.role.map(ServerRole::as_str);
            tracing::info!(target: "diesel_replicated", node = node.name, role, "node_up");
        }
        self.records.of(node).silent = false;
        let config = Arc::clone(&self.config);
        if let Some(member) = self.publish.borrow().member(node) {
            match probe.facts.clone().filter(|_| !member.is_up()) {
                // The node was down, so the check is newer than what its monitor wrote.
                Some(facts) => member.reports.said(facts, probe.took),
                None => member.reports.answered(),
            }
        }
        self.change(node, |member| {
            match &probe.facts {
                Some(facts) => {
                    member.note(facts);
                    if let Some(run) = facts.run {
                        member.led_to(run, began);
                    }
                }
                // What it reported in its former role says nothing now.
                None if member.role != probe.role => member.timeline = 0,
                None => {}
            }
            member.role = probe.role;
            member.hear(Signal::Reached, &config.health);
        });
    }

    /// Judges the health of the nodes that are up, once in an interval, and looks what else time has changed.
    fn make_rounds(&mut self) {
        self.classifier.forget_learned(std::time::Instant::now());
        let topology = Arc::clone(&self.publish.borrow());
        for member in topology.members.iter().filter(|member| member.is_up()) {
            let measure = measure(member, &topology, &self.write_log);
            self.hear(&member.node, Signal::Measured(measure));
            self.watch_anew_if_still(member);
        }
        self.look_at_histories();
        let learned = self.classifier.learned().len();
        let zones = &self.config.prefer_zones;
        let now = degraded(&topology, zones, &self.promotion.lock().clone(), learned);
        tell_changes(&self.degraded, &now, &self.event_bus);
        self.gauges
            .tell(&topology, &self.write_log, (learned, now.len()));
        self.degraded = now;
        if topology.has_open_identities() {
            self.publish(|topology| topology.changed(|_| ()));
        }
        if self.config.write_quorum {
            // Time alone may have closed the gate.
            self.publish(Topology::clone);
        }
    }

    /// Judges again the standbys whose state changes with time alone. Warns of those that stay in doubt.
    fn look_at_histories(&mut self) {
        let topology = Arc::clone(&self.publish.borrow());
        let (known, newest) = (self.judge(), topology.timeline());
        let changes = |member: &Member| {
            let facts = member.reports.facts();
            facts.is_some_and(|facts| known.would_change(member, &facts, newest))
        };
        if topology.replicas().any(changes) {
            self.publish(Topology::clone);
        }
        for member in topology.replicas() {
            if member.followed.is_untold() {
                let (node, cause) = (&member.node.name, member.health.cause());
                tracing::warn!(target: "diesel_replicated", node, cause, "replica_in_doubt");
                self.change(&member.node, |member| member.followed.told = true);
            }
        }
    }

    /// Closes the gate while fewer than a majority of the nodes answers, with `write_quorum`. This process may be cut
    /// off together with a primary that was replaced.
    fn count_answers(&self, topology: &mut Topology) {
        let held = topology.gate == Gate::Held;
        if !self.config.write_quorum || held || topology.members.is_empty() {
            return;
        }
        let within = self
            .config
            .health
            .interval
            .saturating_add(self.config.health.timeout);
        let answers = |member: &&Member| member.is_up() && member.reports.answered_within(within);
        let servers = topology.servers();
        let (nodes, answer) = (
            servers.clone().count(),
            servers.clone().filter(answers).count(),
        );
        let asked = |member: &&Member| member.health.is_asked();
        let unasked = nodes - servers.filter(asked).count();
        let needed = topology.majority();
        let gate = if has_quorum(nodes, answer, unasked, topology.gate == Gate::Open) {
            Gate::Open
        } else if topology.gate == Gate::Unasked && answer + unasked >= needed {
            Gate::Unasked
        } else {
            Gate::NoQuorum { answer, needed }
        };
        topology.close(gate);
    }

    /// Tells when a majority stops answering, or answers again.
    fn follow_the_gate(&self, before: &Topology, after: &Topology) {
        match (before.gate, after.gate) {
            (before, after) if before == after => {}
            (Gate::NoQuorum { .. }, Gate::Open) => {
                let answer = after.servers().filter(|member| member.is_up()).count();
                let needed = after.majority();
                tracing::info!(target: "diesel_replicated", answer, needed, "quorum_regained");
            }
            (from, Gate::NoQuorum { answer, needed }) => {
                tracing::error!(target: "diesel_replicated", answer, needed, "quorum_lost");
                if let (Gate::Open, Some(primary)) = (from, before.primary()) {
                    let cause =
                        format!("{answer} of the nodes answer, and {needed} have to for writes");
                    primary.node.pool.connector().end_generation(cause);
                }
            }
            _ => {}
        }
    }

    /// Whether the node is still in the pool.
    fn is_member(&self, node: &Arc<Node>) -> bool {
        self.publish.borrow().member(node).is_some()
    }

    fn is_down(&self, node: &Arc<Node>) -> bool {
        let topology = self.publish.borrow();
        let down = |member: &Member| member.health.is_down();
        topology.member(node).is_some_and(down)
    }

    fn is_hindered(&self, node: &Arc<Node>) -> bool {
        let topology = self.publish.borrow();
        let hindered = |member: &Member| member.health.hindrance().is_some();
        topology.member(node).is_some_and(hindered)
    }

    fn is_up(&self, node: &Arc<Node>) -> bool {
        let topology = self.publish.borrow();
        topology.member(node).is_some_and(Member::is_up)
    }

    fn check(&mut self, node: &Arc<Node>, pause: Duration) {
        if !self.is_member(node) {
            return;
        }
        let record = self.records.of(node);
        record.checking = true;
        let silent = record.silent;
        let node = Arc::clone(node);
        let topology = self.publish.subscribe();
        let limit = if silent {
            self.config.health.timeout
        } else {
            Duration::MAX
        };
        self.tasks.spawn(async move {
            until_due(pause, topology).await;
            let began = std::time::Instant::now();
            let answer = look_at(&node, limit).await;
            Finding::Check(node, began, answer)
        });
    }

    /// Starts the node's monitor.
    fn watch(&mut self, member: &Member) {
        let pulse = Arc::<Liveness>::default();
        let monitor = Monitor::new(
            Arc::clone(&member.node),
            Arc::clone(&member.reports),
            Surroundings {
                pulse: Arc::clone(&pulse),
                write_log: Arc::clone(&self.write_log),
                marks: Arc::clone(&self.marks),
                topology: self.publish.subscribe(),
                commands: self.commands.clone(),
                config: Arc::clone(&self.config),
            },
        );
        self.watched
            .retain(|watched| !Arc::ptr_eq(&watched.node, &member.node));
        self.watched.push(Watched {
            node: Arc::clone(&member.node),
            pulse,
            task: self.monitors.spawn(monitor.run()),
        });
    }

    /// Replaces a monitor that stands still. All of its waits have a limit, so that should never happen.
    fn watch_anew_if_still(&mut self, member: &Member) {
        let node = &member.node;
        let watched = self.watched.iter();
        let mut still = watched.filter(|watched| {
            Arc::ptr_eq(&watched.node, node) && watched.pulse.is_still(&self.config.health)
        });
        if let Some(still) = still.next() {
            tracing::error!(target: "diesel_replicated", node = node.name, "task_stalled");
            still.task.abort();
            self.watch(member);
        }
    }

    /// Ends the connections of every node, if the pool was closed. Dropping the sender tells that all is over.
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
