//! Makes the nodes of a cluster, and passes on what they find out by themselves.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::command::Command;
use super::member::Member;
use super::topology::{Gate, Topology};
use crate::config::{Config, NodeSettings};
use crate::node::{ConnectHooks, Node, Reporter};

/// What nodes are made with, now and later.
pub(super) struct NodeMaker {
    hooks: ConnectHooks,
    config: Arc<Config>,
    runtime: Handle,
    reporter: Reporter,
}

impl NodeMaker {
    pub(super) fn new(
        hooks: ConnectHooks,
        config: Arc<Config>,
        runtime: Handle,
        commands: &mpsc::Sender<Command>,
    ) -> Self {
        Self {
            hooks,
            config,
            runtime,
            reporter: reporter(commands),
        }
    }

    pub(super) fn member(&self, settings: NodeSettings) -> Member {
        let declared = settings.declared;
        let node = Node::new(
            settings,
            &self.config,
            self.hooks.clone(),
            self.runtime.clone(),
            Arc::clone(&self.reporter),
        );
        Member::new(node, declared)
    }

    /// The topology before any node was asked.
    pub(super) fn topology(&self, nodes: Vec<NodeSettings>, write_quorum: bool) -> Topology {
        let members = nodes.into_iter().map(|node| self.member(node));
        let gate = if write_quorum {
            Gate::Unasked
        } else {
            Gate::Open
        };
        Topology::new(members.collect()).gated(gate)
    }
}

/// Passes on what nodes find out by themselves. It does not keep the manager alive.
fn reporter(commands: &mpsc::Sender<Command>) -> Reporter {
    let commands = commands.downgrade();
    Arc::new(move |node, trouble| {
        if let Some(commands) = commands.upgrade() {
            let node = Arc::clone(node);
            let _ = commands.try_send(Command::Trouble { node, trouble });
        }
    })
}

/// The longest `connect_timeout` of the nodes.
pub(super) fn longest_connect_timeout(nodes: &[NodeSettings]) -> Duration {
    let timeouts = nodes.iter().map(|node| node.pool.connect_timeout);
    timeouts.max().unwrap_or_default()
}
