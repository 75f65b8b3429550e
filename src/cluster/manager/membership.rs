//! Nodes that come, go, and are changed while the pool runs.

use std::sync::Arc;
use std::time::Duration;

use super::Manager;
use crate::cluster::member::Member;
use crate::cluster::topology::Topology;
use crate::config::{Config, HealthConfig};
use crate::error::Error;
use crate::health::Signal;
use crate::node::{Node, Probe};
use crate::route::NodeKind;

impl Manager {
    pub(super) fn add(&mut self, member: Member) -> Result<(), Error> {
        let node = Arc::clone(&member.node);
        if self.publish.borrow().named(&node.name).is_some() {
            return Err(Error::DuplicateNode {
                name: node.name.clone(),
            });
        }
        self.watch(&member);
        self.publish(|topology| topology.changed(|members| members.push(member)));
        self.check(&node, Duration::ZERO);
        Ok(())
    }

    pub(super) fn remove(&mut self, name: &str) -> Result<Arc<Node>, Error> {
        let topology = Arc::clone(&self.publish.borrow());
        let member = find(&topology, name)?;
        let node = Arc::clone(&member.node);
        // Under another name its server stays.
        let is_twin = |other: &Member| other.twin.as_ref().is_some_and(|it| Arc::ptr_eq(it, &node));
        let stays = topology.members.iter().any(is_twin);
        if member.kind() == Some(NodeKind::Primary) && !stays {
            return Err(Error::IsPrimary {
                name: name.to_owned(),
            });
        }
        self.publish(|topology| {
            topology.changed(|members| members.retain(|other| !Arc::ptr_eq(&other.node, &node)))
        });
        self.leaves(&node);
        Ok(node)
    }

    /// Puts `member`, which was reached, in the place of the node with its name. Of the same run of the same server all
    /// is known; another one is learnt anew.
    pub(super) fn replace(
        &mut self,
        mut member: Member,
        probe: &Probe,
    ) -> Result<Arc<Node>, Error> {
        let topology = Arc::clone(&self.publish.borrow());
        let old = find(&topology, &member.node.name)?;
        let facts = probe.facts.as_ref();
        let cluster = facts.and_then(|facts| facts.cluster);
        if topology
            .cluster()
            .zip(cluster)
            .is_some_and(|(ours, its)| ours != its)
        {
            member.node.end();
            return Err(Error::AnotherCluster {
                name: member.node.name.clone(),
            });
        }
        let gone = Arc::clone(&old.node);
        if facts.is_some_and(|facts| old.is_run(facts.run)) {
            member = old.at(&member);
        } else if let Some(facts) = facts {
            member.note(facts);
        }
        member.set_weight = old.set_weight;
        member.hear(Signal::Reached, &self.config.health);
        self.watch(&member);
        self.publish(|topology| {
            topology.changed(|members| {
                if let Some(place) = members
                    .iter_mut()
                    .find(|other| Arc::ptr_eq(&other.node, &gone))
                {
                    *place = member;
                }
            })
        });
        self.leaves(&gone);
        Ok(gone)
    }

    /// A node has left. Its connections end when nothing runs on them any more.
    fn leaves(&mut self, node: &Arc<Node>) {
        self.records.forget(node);
        self.watched
            .retain(|watched| !Arc::ptr_eq(&watched.node, node));
        // A node of the same name may have come in its place; that is told with the next round.
        node.meter.is_gone();
        // The caller may not wait for it.
        let retiring = Arc::clone(node);
        node.runtime.spawn(async move { retiring.retire().await });
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

    pub(super) fn set_max_lag(&mut self, health: &HealthConfig) {
        let mut config = Config::clone(&self.config);
        config.health.max_lag = health.max_lag;
        config.health.max_lag_bytes = health.max_lag_bytes;
        self.config = Arc::new(config);
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
