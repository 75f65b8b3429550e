//! What follows when a new topology is published: which connections end, and which events are sent.
//!
//! A change of the primary takes this way:
//!
//! 1. A monitor or a health check hears of a role, a timeline or a cluster that was not known.
//! 2. `election` says what each node is among the others. A node that still takes writes on an older timeline is
//!    superseded for good. Two nodes that take writes on the newest timeline are rivals: neither is written to.
//! 3. [`lineage`](super::lineage) judges whether each standby's log is the primary's.
//! 4. The manager publishes the topology. Then [`follow`] ends the connections to nodes that must not be used: their
//!    `wire::Generation` is over, and no statement is sent over them any more.
//! 5. A statement that needs the primary and was not sent yet waits for the next one (`Cluster::with_changes`).

use std::sync::Arc;
use std::time::SystemTime;

use super::member::Member;
use super::topology::Topology;
use crate::election::Standing;
use crate::node::{Node, Run};
use crate::status::{Event, EventBus, NodeHealth};
use crate::wire::ServerRole;

/// Comes after `after` was published: who takes a connection from now on looks there.
///
/// Once another node is, or may be, the primary, connections opened to the old one run no more statements.
pub(super) fn follow(before: &Topology, after: &Topology, event_bus: &EventBus) {
    let of = |topology: &Topology| topology.primary().map(|member| Arc::clone(&member.node));
    let (old, new) = (of(before), of(after));
    if !same(old.as_ref(), new.as_ref()) {
        let name = |node: Option<&Arc<Node>>| node.map(|node| node.name.clone());
        let (from, to) = (name(old.as_ref()), name(new.as_ref()));
        let timeline = after.primary().map(|member| member.timeline);
        let zone = new.as_ref().and_then(|node| node.zone.as_deref());
        let far = new.as_ref().is_some_and(|node| node.distance > 0);
        if before.began() {
            tracing::warn!(target: "diesel_replicated", from, to, timeline, zone, far, "primary_changed");
        } else {
            tracing::info!(target: "diesel_replicated", from, to, timeline, zone, far, "primary_changed");
        }
        event_bus.send(Event::PrimaryChanged {
            at: SystemTime::now(),
            from,
            to,
            timeline,
        });
    }
    if let (Some(from), Some(to)) = (before.cluster(), after.cluster()) {
        if from != to {
            tracing::warn!(target: "diesel_replicated", from, to, "cluster_replaced");
            event_bus.send(Event::ClusterReplaced {
                at: SystemTime::now(),
                from,
                to,
            });
        }
    }
    for member in &after.members {
        if let Some(earlier) = before.member(&member.node) {
            if ends(earlier, member, before, after) {
                let cause = format!("it is no longer the primary: {}", member.describe());
                member.node.pool.connector().end_generation(cause);
            }
            compare(earlier, member, after, event_bus);
        }
    }
}

/// Whether the connections to a node must end.
fn ends(earlier: &Member, member: &Member, before: &Topology, after: &Topology) -> bool {
    if goes_on(earlier, member, after) {
        return false;
    }
    if earlier.standing == member.standing {
        if member.standing == Standing::Primary {
            // Its name leads to the next primary. The old one may live.
            return member.timeline > earlier.timeline && Run::differ(earlier.run, member.run);
        }
        // They went on while this name led to the primary.
        let primary = before.primary().map(|primary| &primary.node);
        return member.standing == Standing::Twin && same(earlier.twin.as_ref(), primary);
    }
    let useless = matches!(
        member.standing,
        Standing::Superseded { .. }
            | Standing::Rival
            | Standing::Foreign
            | Standing::Twin
            | Standing::Elsewhere
    );
    let ruled = match earlier.standing {
        // A node that was only expected to be the primary was none.
        Standing::Primary => earlier.role.is_some(),
        // Connections that were opened to it earlier may have gone on.
        Standing::Twin => true,
        _ => false,
    };
    ruled || useless
}

/// Whether statements on a node's connections may go on under another name of its server: the server is still the
/// primary, and this name has led to no other one.
fn goes_on(earlier: &Member, member: &Member, after: &Topology) -> bool {
    let primary = after.primary().map(|primary| &primary.node);
    match (&earlier.standing, &member.standing) {
        (Standing::Twin, Standing::Twin) => {
            let twin = member.twin.as_ref();
            same(twin, primary) && same(earlier.twin.as_ref(), twin)
        }
        (_, Standing::Twin) => same(member.twin.as_ref(), primary) && runs_on(earlier, member),
        (Standing::Twin, Standing::Primary) => runs_on(earlier, member),
        _ => false,
    }
}

fn runs_on(earlier: &Member, member: &Member) -> bool {
    member.run.is_some() && earlier.run == member.run
}

fn same(one: Option<&Arc<Node>>, other: Option<&Arc<Node>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        _ => false,
    }
}

fn compare(earlier: &Member, member: &Member, after: &Topology, event_bus: &EventBus) {
    let (at, node) = (SystemTime::now(), member.node.name.clone());
    let (from, to) = (earlier.health.kind(), member.health.kind());
    if from != to {
        let cause = member.health.cause();
        let came = matches!(from, NodeHealth::Unknown | NodeHealth::Down) && to == NodeHealth::Up;
        if to == NodeHealth::Orphaned {
            tracing::warn!(target: "diesel_replicated", node, cause, "replica_orphaned");
        } else if to != NodeHealth::Down && !came {
            // Those two are told where the node was checked.
            let (from, to) = (from.to_string(), to.to_string());
            tracing::info!(target: "diesel_replicated", node, from, to, cause, "node_changed");
        }
        let node = node.clone();
        event_bus.send(Event::NodeChanged {
            at,
            node,
            from,
            to,
            cause,
        });
    }
    if earlier.standing != member.standing {
        tell_unused(member);
        let standing = member.what();
        tracing::info!(target: "diesel_replicated", node, standing, "standing_changed");
        event_bus.send(Event::StandingChanged {
            at,
            node: node.clone(),
            standing,
        });
    }
    if earlier.fenced != member.fenced && member.role == Some(ServerRole::Primary) {
        tracing::warn!(target: "diesel_replicated", node, fenced = member.fenced, "primary_fenced");
        event_bus.send(Event::StandingChanged {
            at,
            node: node.clone(),
            standing: member.what(),
        });
    }
    let feed = |member: &Member| (member.sender.clone(), member.paused, member.diverged);
    // A primary receives from nobody.
    if feed(earlier) != feed(member) && member.role == Some(ServerRole::Standby) {
        if member.diverged && !earlier.diverged {
            tracing::warn!(target: "diesel_replicated", node = member.describe(), "replica_diverged");
        }
        let address = member.sender.as_deref();
        let upstream = address.map(|address| after.name_at(address));
        let paused = member.paused;
        tracing::info!(target: "diesel_replicated", node, upstream, paused, "replication_changed");
        event_bus.send(Event::ReplicationChanged {
            at,
            node,
            upstream,
            replay_paused: member.paused,
            diverged: member.diverged,
        });
    }
}

/// Warns of a node that must not be used any more.
fn tell_unused(member: &Member) {
    let (node, reason) = (&member.node.name, member.describe());
    match member.standing {
        // A server that is down can do no harm yet.
        Standing::Superseded { .. } if !member.is_up() => {
            tracing::warn!(target: "diesel_replicated", node, reason, "primary_superseded");
        }
        Standing::Superseded { .. } => {
            tracing::error!(target: "diesel_replicated", node, reason, "primary_superseded");
        }
        Standing::Rival => {
            tracing::error!(target: "diesel_replicated", node, reason, "two_primaries");
        }
        Standing::Foreign | Standing::Twin | Standing::Elsewhere => {
            tracing::error!(target: "diesel_replicated", node, reason, "node_unused");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::runtime::Handle;

    use super::*;
    use crate::config::{Config, DeclaredRole, HealthConfig};
    use crate::health::Signal;
    use crate::node::{ConnectHooks, Facts, Place, Run};

    fn facts() -> Facts {
        Facts {
            cluster: Some(7),
            timeline: 1,
            run: run(1),
            database: None,
            version: 150_000,
            fenced: false,
            place: Place::Primary {
                flushed: None,
                inserted: None,
                synchronous_standbys: 0,
            },
        }
    }

    fn run(started: i64) -> Option<Run> {
        Some(Run {
            started,
            port: 5432,
            address: None,
        })
    }

    /// A node at this host, whose server has this role and run.
    fn member(host: &str, role: ServerRole, started: i64) -> Member {
        let config = Config::from_url(&format!("postgres://app@{host}/app")).unwrap();
        let settings = config.validate().unwrap().nodes.pop().unwrap();
        let hooks = ConnectHooks {
            setup: Arc::new(|_| Box::pin(async { Ok(()) })),
            sets_up: false,
            tls: None,
            credentials: None,
            positions: None,
        };
        let (config, report) = (Config::default(), Arc::new(|_: &_, _| ()));
        let node = Node::new(settings, &config, hooks, Handle::current(), report);
        let mut member = Member::new(node, DeclaredRole::Unknown);
        (member.role, member.timeline, member.cluster) = (Some(role), 1, Some(7));
        member.run = run(started);
        member.hear(Signal::Reached, &HealthConfig::default());
        member
    }

    fn ends_at(before: &Topology, after: &Topology, host: &str) -> bool {
        let of = |topology: &Topology| topology.named(&format!("{host}:5432")).cloned().unwrap();
        ends(&of(before), &of(after), before, after)
    }

    #[tokio::test]
    async fn connections_of_a_second_name_go_on_until_it_leads_elsewhere() {
        let primary = ServerRole::Primary;
        let both = vec![member("one", primary, 1), member("two", primary, 1)];
        let before = Topology::new(both);
        let two = Arc::clone(&before.named("two:5432").unwrap().node);
        assert_eq!(
            before.named("two:5432").unwrap().standing,
            Standing::Twin,
            "{:?}",
            before.describe()
        );
        // Nothing has changed.
        assert!(!ends_at(&before, &before.changed(|_| ()), "two"));
        // It reports another run: perhaps the server was restarted, which the first name is about to report, too.
        let pending = before.with(&two, |member| {
            (member.role, member.run) = (Some(ServerRole::Standby), run(2));
        });
        assert!(!ends_at(&before, &pending, "two"));
        // The first name reports the old run again. So the second one leads to another server.
        let one = before.named("one:5432").unwrap();
        one.reports.said(facts(), Duration::ZERO);
        let after = pending.changed(|_| ());
        assert_eq!(after.named("two:5432").unwrap().standing, Standing::Replica);
        assert!(ends_at(&pending, &after, "two"));
        assert!(!ends_at(&pending, &after, "one"));
    }
}
