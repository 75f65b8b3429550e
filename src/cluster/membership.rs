//! Nodes that come and go, and weights that change, while the pool runs.

use std::sync::Arc;
use std::time::Duration;

use super::manager::Manager;
use super::member::Member;
use super::monitor::{Monitor, Surroundings};
use super::topology::Topology;
use crate::error::Error;
use crate::health::Signal;
use crate::node::Node;
use crate::route::NodeKind;

impl Manager {
    pub(super) fn watch(&mut self, member: &Member) {
        member.node.pulse.beat();
        let monitor = Monitor::new(
            Arc::clone(&member.node),
            Arc::clone(&member.progress),
            Surroundings {
                write_log: Arc::clone(&self.write_log),
                marks: Arc::clone(&self.marks),
                topology: self.publish.subscribe(),
                commands: self.commands.clone(),
                remote_apply: self.remote_apply,
                sweep: self.sweep,
                heartbeat: self.promoter.config.automatic,
                health: Arc::clone(&self.health),
            },
        );
        let watching = self.monitors.spawn(monitor.run());
        self.watching
            .retain(|(node, _)| !Arc::ptr_eq(node, &member.node));
        self.watching.push((Arc::clone(&member.node), watching));
    }

    /// Replaces a monitor that stands still, though every one of its waits has a bound.
    pub(super) fn watch_anew(&mut self, member: &Member) {
        let node = &member.node;
        tracing::error!(target: "diesel_replicated", node = node.name, "task_stalled");
        let watching = self.watching.iter();
        let old = watching.filter(|(other, _)| Arc::ptr_eq(other, node));
        old.for_each(|(_, task)| task.abort());
        self.watch(member);
    }

    pub(super) fn add(&mut self, member: Member) -> Result<(), Error> {
        let node = Arc::clone(&member.node);
        if self.publish.borrow().named(&node.name).is_some() {
            return Err(Error::DuplicateNode {
                name: node.name.clone(),
            });
        }
        self.watch(&member);
        self.publish(|topology| topology.changed(|members| members.push(member)));
        self.probe(&node, Duration::ZERO);
        Ok(())
    }

    pub(super) fn remove(&mut self, name: &str) -> Result<Arc<Node>, Error> {
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
        self.watching
            .retain(|(other, _)| !Arc::ptr_eq(other, &node));
        self.publish(|topology| {
            topology.changed(|members| members.retain(|other| !Arc::ptr_eq(&other.node, &node)))
        });
        // Whoever asked for it may not wait for it.
        let retiring = Arc::clone(&node);
        node.runtime.spawn(async move { retiring.retire().await });
        Ok(node)
    }

    pub(super) fn drain(&mut self, name: &str, on: bool) -> Result<Arc<Node>, Error> {
        let topology = Arc::clone(&self.publish.borrow());
        let member = find(&topology, name)?;
        if on && member.kind() == Some(NodeKind::Primary) {
            return Err(Error::IsPrimary {
                name: name.to_owned(),
            });
        }
        self.hear(&member.node, Signal::Drain(on));
        Ok(Arc::clone(&member.node))
    }

    pub(super) fn set_weight(&mut self, name: &str, weight: u32) -> Result<(), Error> {
        let topology = Arc::clone(&self.publish.borrow());
        let node = Arc::clone(&find(&topology, name)?.node);
        self.change(&node, |member| member.set_weight = Some(weight));
        Ok(())
    }
}

fn find<'a>(topology: &'a Topology, name: &str) -> Result<&'a Member, Error> {
    topology.named(name).ok_or_else(|| Error::UnknownNode {
        name: name.to_owned(),
        nodes: topology.describe(),
    })
}
