//! What the manager does about what it hears of nodes: looks again, leaves out, takes back.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::backoff::{FORGIVEN_AFTER, delay};
use super::manager::{Finding, Late, Manager};
use super::measure::measure;
use super::member::Member;
use super::probe::{look_at, until_due, until_tried};
use super::topology::{Gate, Topology};
use crate::deadline;
use crate::election::promotion::has_quorum;
use crate::error::{ConnectError, ConnectErrorKind};
use crate::health::Signal;
use crate::node::{Node, Probe};
use crate::wire::ServerRole;

/// How a node has fared.
pub(super) struct Record {
    pub(super) node: Arc<Node>,
    failures: u32,
    last_failure: Instant,
    probing: bool,
    /// When the last look began that reached it: what was tried before says nothing any more.
    reached: Option<std::time::Instant>,
    /// It does not answer on connections that are open.
    silent: bool,
}

impl Manager {
    /// A connection to the node could not be opened.
    ///
    /// Whether that speaks of the node depends on why. A server that does not let this user in, is full, or
    /// fails the set-up, is there, and goes on serving over the connections that are open.
    pub(super) fn unreachable(
        &mut self,
        node: &Arc<Node>,
        error: &ConnectError,
        since: std::time::Instant,
    ) {
        if !self.is_member(node) || self.record(node).reached.is_some_and(|last| since < last) {
            return;
        }
        if !self.hindered(node, error) {
            self.failed(node, error.to_string());
        }
    }

    /// Takes note of why no more connections can be opened to a node that serves over those that are;
    /// `false` if it does not.
    fn hindered(&mut self, node: &Arc<Node>, error: &ConnectError) -> bool {
        if error.is_outage() || !self.is_up(node) || node.pool.connector().open() == 0 {
            return false;
        }
        let cause = error.to_string();
        if !self.is_hindered(node) {
            tracing::warn!(target: "diesel_replicated", node = node.name, cause, "node_hindered");
        }
        self.hear(node, Signal::Hindered(cause));
        if !self.record(node).probing {
            let pause = self.next_pause(node);
            self.probe(node, pause);
        }
        true
    }

    /// How long to wait before the node is looked at again: longer after each failure.
    fn next_pause(&mut self, node: &Arc<Node>) -> Duration {
        let record = self.record(node);
        if record.last_failure.elapsed() > FORGIVEN_AFTER {
            record.failures = 0;
        }
        record.failures = record.failures.saturating_add(1);
        record.last_failure = Instant::now();
        delay(record.failures, rand::random())
    }

    /// Leaves the node out at once and has it tried again after a growing delay.
    pub(super) fn failed(&mut self, node: &Arc<Node>, cause: String) {
        if !self.is_member(node) {
            return;
        }
        if self.record(node).probing {
            // The probe under way tells the rest; meanwhile the node serves nobody.
            if !self.is_down(node) {
                tracing::warn!(target: "diesel_replicated", node = node.name, cause, "node_down");
            }
            self.hear(node, Signal::Failed(cause));
            return;
        }
        let pause = self.next_pause(node);
        let silent = std::mem::take(&mut self.record(node).silent);
        let name = &node.name;
        let retry_in = until_tried(pause, &self.publish.borrow()).as_secs_f64();
        if self.is_down(node) {
            tracing::debug!(target: "diesel_replicated", node = name, cause, retry_in, "node_still_down");
        } else {
            tracing::warn!(target: "diesel_replicated", node = name, cause, retry_in, "node_down");
        }
        self.hear(node, Signal::Failed(cause.clone()));
        if silent {
            // Whoever waits there for an answer would wait for as long as it is frozen.
            node.pool.connector().end_generation(cause);
        }
        self.probe(node, pause);
    }

    /// Looks at the node at once, and leaves it in until that fails.
    pub(super) fn suspected(&mut self, node: &Arc<Node>, cause: &str) {
        if self.is_member(node) && !self.record(node).probing {
            tracing::debug!(target: "diesel_replicated", node = node.name, cause, "node_suspected");
            self.hear(node, Signal::Doubted(cause.to_owned()));
            self.probe(node, Duration::ZERO);
        }
    }

    /// It may be frozen, or only slow: a new connection tells.
    pub(super) fn silent(&mut self, node: &Arc<Node>, cause: &str) {
        if !self.is_member(node) {
            return;
        }
        self.record(node).silent = true;
        if self.record(node).probing {
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

    pub(super) fn probed(
        &mut self,
        node: &Arc<Node>,
        began: std::time::Instant,
        answer: Result<Probe, ConnectError>,
    ) {
        if !self.is_member(node) {
            return;
        }
        self.record(node).probing = false;
        match answer {
            Ok(probe) => {
                self.record(node).reached = Some(began);
                self.reached(node, &probe);
            }
            Err(error) if self.hindered(node, &error) => {}
            Err(error) if error.kind == ConnectErrorKind::TimedOut && self.is_up(node) => {
                self.silent(node, &error.to_string());
            }
            Err(error) => self.failed(node, error.to_string()),
        }
    }

    /// A node that takes writes has answered for as long as a node may be silent: who has not answered yet is
    /// frozen, and holds up no start. Its first probe goes on.
    pub(super) fn wait_no_more(&mut self) {
        self.late = Late::Past;
        let topology = Arc::clone(&self.publish.borrow());
        let unasked = |member: &&Member| !member.health.is_asked();
        for member in topology.members.iter().filter(unasked) {
            let limit = self.health.timeout;
            let cause = format!("no answer yet, {limit:?} after others have answered");
            self.failed(&member.node, cause);
        }
    }

    fn reached(&mut self, node: &Arc<Node>, probe: &Probe) {
        if matches!(self.late, Late::Waiting) && probe.role == Some(ServerRole::Primary) {
            let limit = self.health.timeout;
            self.late = Late::Due(deadline::after(std::time::Instant::now(), limit).into());
        }
        if !self.is_up(node) {
            let role = probe.role.map(ServerRole::as_str);
            tracing::info!(target: "diesel_replicated", node = node.name, role, "node_up");
        }
        self.record(node).silent = false;
        node.heard.beat();
        let health = Arc::clone(&self.health);
        if let Some(facts) = probe.facts.as_ref().filter(|_| !self.is_up(node)) {
            // What its monitor said was of before.
            node.tells(facts, probe.took);
        }
        self.change(node, |member| {
            match &probe.facts {
                Some(facts) => {
                    member.note(facts);
                }
                // What it told as something else says nothing of what it is now.
                None if member.role != probe.role => member.timeline = 0,
                None => {}
            }
            member.role = probe.role;
            member.hear(Signal::Reached, &health);
        });
        self.load_wanted_catalog();
    }

    /// Judges every node by how it is doing.
    pub(super) fn make_rounds(&mut self) {
        self.classifier.forget_learned(std::time::Instant::now());
        let topology = Arc::clone(&self.publish.borrow());
        for member in topology.members.iter().filter(|member| member.is_up()) {
            let measure = measure(member, &topology, &self.write_log);
            self.hear(&member.node, Signal::Measured(measure));
            if member.node.pulse.is_still(&self.health) {
                self.watch_anew(member);
            }
        }
        self.look_at_histories();
        self.tell_degraded();
        if self.promoter.config.write_quorum {
            // Time alone may have closed the gate.
            self.publish(Topology::clone);
        }
    }

    /// Judges standbys anew of which time alone tells, and speaks of those that stay in doubt.
    fn look_at_histories(&mut self) {
        let topology = Arc::clone(&self.publish.borrow());
        let (known, newest) = (self.known(), topology.timeline());
        let changes = |member: &Member| {
            let told = member.node.last_report();
            told.is_some_and(|told| known.would_change(member, &told.facts, newest))
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

    /// Closes the gate before the primary while fewer than a majority of the nodes answers, where that
    /// is wanted: this process may be cut off with a primary that was replaced.
    pub(super) fn count_answers(&self, topology: &mut Topology) {
        let held = topology.gate == Gate::Held;
        if !self.promoter.config.write_quorum || held || topology.members.is_empty() {
            return;
        }
        let within = self.health.interval.saturating_add(self.health.timeout);
        let answers = |member: &&Member| member.is_up() && member.node.heard.age() <= within;
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

    /// What follows when a majority answers no more, or again.
    pub(super) fn follow_the_gate(&self, before: &Topology, after: &Topology) {
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

    /// Whether it has not been removed meanwhile.
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
        let hindered = |member: &Member| member.health.is_hindered();
        topology.member(node).is_some_and(hindered)
    }

    fn is_up(&self, node: &Arc<Node>) -> bool {
        let topology = self.publish.borrow();
        topology.member(node).is_some_and(Member::is_up)
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
        let limit = if silent {
            self.health.timeout
        } else {
            Duration::MAX
        };
        self.tasks.spawn(async move {
            until_due(pause, topology).await;
            let began = std::time::Instant::now();
            let answer = look_at(&node, limit).await;
            Finding::Probe(node, began, answer)
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
                reached: None,
                silent: false,
            });
        }
        &mut self.records[place]
    }
}
