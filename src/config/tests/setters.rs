//! Setting a configuration in the tests, call by call; `Builder` does so for users.

use std::time::Duration;

use super::super::{
    Config, ConsistencyConfig, DeclaredRole, Durability, HealthConfig, NodeConfig, Policy, Routing,
};

impl Config {
    pub(super) fn primary(self, node: impl Into<NodeConfig>) -> Self {
        self.node(node.into().role(DeclaredRole::Primary))
    }

    pub(super) fn replica(self, node: impl Into<NodeConfig>) -> Self {
        self.node(node.into().role(DeclaredRole::Replica))
    }

    pub(super) fn node(mut self, node: impl Into<NodeConfig>) -> Self {
        self.nodes.push(node.into());
        self
    }

    pub(super) fn max_size(mut self, connections: u32) -> Self {
        self.pool.max_size = connections;
        self
    }

    pub(super) fn min_idle(mut self, connections: impl Into<Option<u32>>) -> Self {
        self.pool.min_idle = connections.into();
        self
    }

    pub(super) fn connection_timeout(mut self, timeout: Duration) -> Self {
        self.pool.connection_timeout = timeout;
        self
    }

    pub(super) fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.pool.connect_timeout = timeout;
        self
    }

    pub(super) fn max_lifetime(mut self, lifetime: impl Into<Option<Duration>>) -> Self {
        self.pool.max_lifetime = lifetime.into();
        self
    }

    pub(super) fn idle_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.pool.idle_timeout = timeout.into();
        self
    }

    pub(super) fn routing(mut self, routing: Routing) -> Self {
        self.routing = routing;
        self
    }

    pub(super) fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    pub(super) fn fallback_share(mut self, share: f64) -> Self {
        self.fallback_share = share;
        self
    }

    pub(super) fn start_read_only(mut self, allowed: bool) -> Self {
        self.start_read_only = allowed;
        self
    }

    pub(super) fn read_only_transactions_on_replicas(mut self, allowed: bool) -> Self {
        self.read_only_transactions_on_replicas = allowed;
        self
    }

    pub(super) fn consistency(mut self, consistency: impl Into<ConsistencyConfig>) -> Self {
        self.consistency = consistency.into();
        self
    }

    pub(super) fn durability(mut self, durability: impl Into<Option<Durability>>) -> Self {
        self.durability = durability.into();
        self
    }

    pub(super) fn health(mut self, health: HealthConfig) -> Self {
        self.health = health;
        self
    }

    pub(super) fn allow_function(mut self, name: impl Into<String>) -> Self {
        self.functions.allow.push(name.into());
        self
    }

    pub(super) fn deny_function(mut self, name: impl Into<String>) -> Self {
        self.functions.deny.push(name.into());
        self
    }

    pub(super) fn setup_sql(mut self, statement: impl Into<String>) -> Self {
        self.setup_sql.push(statement.into());
        self
    }

    pub(super) fn failover_wait(mut self, wait: Duration) -> Self {
        self.failover_wait = wait;
        self
    }
}
