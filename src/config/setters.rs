//! Setting a configuration in code, call by call.

use std::time::Duration;

use super::{
    CommitResolution, Config, ConsistencyConfig, DeclaredRole, Durability, HealthConfig,
    NodeConfig, Policy, PromotionConfig,
};

impl Config {
    /// Adds `node` as the primary.
    #[doc(alias = "master")]
    #[must_use]
    pub fn primary(self, node: impl Into<NodeConfig>) -> Self {
        self.node(node.into().role(DeclaredRole::Primary))
    }

    /// Adds `node` as a replica.
    #[doc(alias = "slave")]
    #[doc(alias = "standby")]
    #[must_use]
    pub fn replica(self, node: impl Into<NodeConfig>) -> Self {
        self.node(node.into().role(DeclaredRole::Replica))
    }

    /// Adds `node` with the role that it declares.
    #[must_use]
    pub fn node(mut self, node: impl Into<NodeConfig>) -> Self {
        self.nodes.push(node.into());
        self
    }

    /// Sets [`PoolConfig::max_size`](super::PoolConfig::max_size).
    #[must_use]
    pub fn max_size(mut self, connections: u32) -> Self {
        self.pool.max_size = connections;
        self
    }

    /// Sets [`PoolConfig::min_idle`](super::PoolConfig::min_idle).
    #[must_use]
    pub fn min_idle(mut self, connections: impl Into<Option<u32>>) -> Self {
        self.pool.min_idle = connections.into();
        self
    }

    /// Sets [`PoolConfig::connection_timeout`](super::PoolConfig::connection_timeout).
    #[must_use]
    pub fn connection_timeout(mut self, timeout: Duration) -> Self {
        self.pool.connection_timeout = timeout;
        self
    }

    /// Sets [`PoolConfig::connect_timeout`](super::PoolConfig::connect_timeout).
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.pool.connect_timeout = timeout;
        self
    }

    /// Sets [`PoolConfig::max_lifetime`](super::PoolConfig::max_lifetime); `None` for no limit.
    #[must_use]
    pub fn max_lifetime(mut self, lifetime: impl Into<Option<Duration>>) -> Self {
        self.pool.max_lifetime = lifetime.into();
        self
    }

    /// Sets [`PoolConfig::idle_timeout`](super::PoolConfig::idle_timeout); `None` for no limit.
    #[must_use]
    pub fn idle_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.pool.idle_timeout = timeout.into();
        self
    }

    /// Sets [`policy`](Self::policy).
    #[must_use]
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Sets [`fallback_share`](Self::fallback_share).
    #[must_use]
    pub fn fallback_share(mut self, share: f64) -> Self {
        self.fallback_share = share;
        self
    }

    /// Sets [`start_read_only`](Self::start_read_only).
    #[must_use]
    pub fn start_read_only(mut self, allowed: bool) -> Self {
        self.start_read_only = allowed;
        self
    }

    /// Sets [`read_only_transactions_on_replicas`](Self::read_only_transactions_on_replicas).
    #[must_use]
    pub fn read_only_transactions_on_replicas(mut self, allowed: bool) -> Self {
        self.read_only_transactions_on_replicas = allowed;
        self
    }

    /// Sets [`consistency`](Self::consistency): a whole [`ConsistencyConfig`], or its level alone.
    #[must_use]
    pub fn consistency(mut self, consistency: impl Into<ConsistencyConfig>) -> Self {
        self.consistency = consistency.into();
        self
    }

    /// Sets [`durability`](Self::durability).
    #[must_use]
    pub fn durability(mut self, durability: impl Into<Option<Durability>>) -> Self {
        self.durability = durability.into();
        self
    }

    /// Sets [`commit_resolution`](Self::commit_resolution).
    #[must_use]
    pub fn commit_resolution(mut self, resolution: CommitResolution) -> Self {
        self.commit_resolution = resolution;
        self
    }

    /// Sets [`health`](Self::health).
    #[must_use]
    pub fn health(mut self, health: HealthConfig) -> Self {
        self.health = health;
        self
    }

    /// Sets [`promotion`](Self::promotion).
    #[must_use]
    pub fn promotion(mut self, promotion: PromotionConfig) -> Self {
        self.promotion = promotion;
        self
    }

    /// Adds to [`FunctionConfig::allow`](super::FunctionConfig::allow).
    #[must_use]
    pub fn allow_function(mut self, name: impl Into<String>) -> Self {
        self.functions.allow.push(name.into());
        self
    }

    /// Adds to [`FunctionConfig::deny`](super::FunctionConfig::deny).
    #[must_use]
    pub fn deny_function(mut self, name: impl Into<String>) -> Self {
        self.functions.deny.push(name.into());
        self
    }

    /// Adds to [`setup_sql`](Self::setup_sql).
    #[must_use]
    pub fn setup_sql(mut self, statement: impl Into<String>) -> Self {
        self.setup_sql.push(statement.into());
        self
    }

    /// Sets [`failover_wait`](Self::failover_wait).
    #[must_use]
    pub fn failover_wait(mut self, wait: Duration) -> Self {
        self.failover_wait = wait;
        self
    }

    /// Sets [`close_timeout`](Self::close_timeout).
    #[must_use]
    pub fn close_timeout(mut self, timeout: Duration) -> Self {
        self.close_timeout = timeout;
        self
    }
}
