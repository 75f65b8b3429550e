//! Building a pool, with bb8's names for what bb8 has.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use diesel::QueryResult;
use diesel_async::AsyncPgConnection;
use futures_core::future::BoxFuture;
use tokio::runtime::Handle;

use super::{ReplicatedPool, ambient};
use crate::cluster::{Cluster, Options, options, started};
use crate::config::{
    CommitResolution, Config, ConsistencyConfig, DeclaredRole, Durability, HealthConfig,
    NodeConfig, Policy, PromotionConfig,
};
use crate::error::Error;
use crate::node::SetupHook;
use crate::routing::LoadBalancingPolicy;

/// Builds a [`ReplicatedPool`].
///
/// It fills a [`Config`] and adds what no file can hold: code. Sizes and times given here are the
/// defaults of every node; a [`Replica`](crate::Replica) may have its own.
#[derive(Clone, Default)]
#[must_use]
pub struct Builder {
    config: Config,
    policy: Option<Arc<dyn LoadBalancingPolicy>>,
    setup: Option<SetupHook>,
    runtime: Option<Handle>,
}

impl From<Config> for Builder {
    fn from(config: Config) -> Self {
        Self {
            config,
            ..Self::default()
        }
    }
}

impl Builder {
    /// Begins with what a URL says that names every host; see [`Config::from_url`].
    ///
    /// ```
    /// # fn example() -> Result<(), diesel_replicated::Error> {
    /// use diesel_replicated::Builder;
    ///
    /// let builder = Builder::from_url("postgres://app@db1,db2,db3/app")?.max_size(20);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Config::from_url`].
    pub fn from_url(url: &str) -> Result<Self, Error> {
        Ok(Config::from_url(url)?.into())
    }

    /// The node that takes writes.
    #[doc(alias = "master")]
    pub fn primary(self, primary: impl Into<NodeConfig>) -> Self {
        self.node(primary.into(), DeclaredRole::Primary)
    }

    /// A node that follows the primary and serves reads.
    #[doc(alias = "slave")]
    pub fn replica(self, replica: impl Into<NodeConfig>) -> Self {
        self.node(replica.into(), DeclaredRole::Replica)
    }

    fn node(mut self, mut node: NodeConfig, role: DeclaredRole) -> Self {
        node.role = role;
        self.config.nodes.push(node);
        self
    }

    /// The most connections to each node. Defaults to 10.
    pub fn max_size(mut self, max_size: u32) -> Self {
        self.config.pool.max_size = max_size;
        self
    }

    /// How many idle connections to keep to each node. Defaults to none.
    pub fn min_idle(mut self, min_idle: impl Into<Option<u32>>) -> Self {
        self.config.pool.min_idle = min_idle.into();
        self
    }

    /// How long a statement waits for a free connection of a node. Defaults to 30 seconds. A node
    /// that cannot be reached fails at once, with the cause.
    pub fn connection_timeout(mut self, timeout: Duration) -> Self {
        self.config.pool.connection_timeout = timeout;
        self
    }

    /// How long opening a connection may take. Defaults to 5 seconds; `connect_timeout` in a
    /// node's URL wins.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.config.pool.connect_timeout = timeout;
        self
    }

    /// How old a connection may get. Defaults to 30 minutes.
    pub fn max_lifetime(mut self, lifetime: impl Into<Option<Duration>>) -> Self {
        self.config.pool.max_lifetime = lifetime.into();
        self
    }

    /// How long a connection may be idle. Defaults to 10 minutes.
    pub fn idle_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.config.pool.idle_timeout = timeout.into();
        self
    }

    /// Which usable node serves a read. Defaults to [`Policy::WeightedRandom`].
    pub fn policy(mut self, policy: Policy) -> Self {
        self.config.policy = policy;
        self.policy = None;
        self
    }

    /// A policy of your own.
    pub fn custom_policy(mut self, policy: impl LoadBalancingPolicy + 'static) -> Self {
        self.policy = Some(Arc::new(policy));
        self
    }

    /// The largest share of the primary's pool that reads may take because no replica can serve
    /// them, from 0 to 1. Defaults to 0.5. Beyond it they fail with [`Error::FallbackLimit`], so
    /// that losing the replicas does not take the primary down.
    pub fn fallback_share(mut self, share: f64) -> Self {
        self.config.fallback_share = share;
        self
    }

    /// Whether the pool starts while the primary is down, for reads alone. Defaults to `false`.
    pub fn start_read_only(mut self, start_read_only: bool) -> Self {
        self.config.start_read_only = start_read_only;
        self
    }

    /// How long a statement waits for a primary over a failover, before anything of it was sent.
    /// Defaults to 15 seconds; a shorter `connection_timeout` wins. See [`Config::failover_wait`].
    pub fn failover_wait(mut self, wait: Duration) -> Self {
        self.config.failover_wait = wait;
        self
    }

    /// Whether it is found out what became of a COMMIT whose connection broke. Off by default. See
    /// [`CommitResolution`].
    pub fn commit_resolution(mut self, resolution: CommitResolution) -> Self {
        self.config.commit_resolution = resolution;
        self
    }

    /// How nodes are watched, and from when on one counts as down, lagging or slow. See
    /// [`HealthConfig`].
    pub fn health(mut self, health: HealthConfig) -> Self {
        self.config.health = health;
        self
    }

    /// Whether and how replicas are promoted by this pool. Off by default. See [`PromotionConfig`].
    pub fn promotion(mut self, promotion: PromotionConfig) -> Self {
        self.config.promotion = promotion;
        self
    }

    /// Whether transactions that are declared read only run on a replica. Defaults to `false`.
    pub fn read_only_transactions_on_replicas(mut self, on_replicas: bool) -> Self {
        self.config.read_only_transactions_on_replicas = on_replicas;
        self
    }

    /// What reads must see: a level, or with it whose writes count as one's own and how long a
    /// read may wait for a replica. Defaults to [`Consistency::ReadYourWrites`](crate::Consistency).
    pub fn consistency(mut self, consistency: impl Into<ConsistencyConfig>) -> Self {
        self.config.consistency = consistency.into();
        self
    }

    /// How far commits must get before they are acknowledged, on every connection of the pool.
    /// Defaults to what the server says.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.config.durability = Some(durability);
        self
    }

    /// A function that is safe on a replica, though nothing says so: `my_function` or
    /// `my_schema.my_function`. May be called repeatedly.
    pub fn allow_function(mut self, name: impl Into<String>) -> Self {
        self.config.functions.allow.push(name.into());
        self
    }

    /// A function that belongs on the primary, though nothing says so. May be called repeatedly.
    pub fn deny_function(mut self, name: impl Into<String>) -> Self {
        self.config.functions.deny.push(name.into());
        self
    }

    /// Statements that run on every new connection to every node, for settings that all of them
    /// should have (`SET statement_timeout = …`, `SET search_path = …`). Settings made here are
    /// nobody's session state and keep nothing on the primary.
    pub fn setup_sql(mut self, sql: impl Into<String>) -> Self {
        self.config.setup_sql.push(sql.into());
        self
    }

    /// Code that runs on every new connection to every node, after [`Builder::setup_sql`].
    ///
    /// ```
    /// use diesel_async::SimpleAsyncConnection;
    /// use diesel_replicated::ReplicatedPool;
    ///
    /// let builder = ReplicatedPool::builder().on_connect(|connection| {
    ///     Box::pin(async move { connection.batch_execute("SET lock_timeout = '2s'").await })
    /// });
    /// ```
    pub fn on_connect<F>(mut self, hook: F) -> Self
    where
        F: for<'a> Fn(&'a mut AsyncPgConnection) -> BoxFuture<'a, QueryResult<()>>
            + Send
            + Sync
            + 'static,
    {
        self.setup = Some(Arc::new(hook));
        self
    }

    /// The runtime that sockets, timers and tasks of the pool live on. Defaults to the one that
    /// `build` is called from; name another if the pool is to outlive that one.
    pub fn runtime(mut self, runtime: Handle) -> Self {
        self.runtime = Some(runtime);
        self
    }

    /// The configuration as it has been given so far.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Builds the pool: asks every node, and returns when each has answered or has failed to
    /// within `connect_timeout`. Replicas that are down come in when they come up.
    ///
    /// # Errors
    ///
    /// Settings are not valid (all mistakes are listed), or no primary was found, or more than
    /// one. With [`Builder::start_read_only`] one usable replica is enough.
    pub async fn build(self) -> Result<ReplicatedPool, Error> {
        let options = self.prepare()?;
        let start_read_only = options.settings.start_read_only;
        let cluster = Cluster::start(options);
        started(&cluster, start_read_only).await?;
        Ok(ReplicatedPool { cluster })
    }

    /// Builds the pool without waiting for any node; the first statements wait.
    ///
    /// # Errors
    ///
    /// Settings are not valid, or it is called outside of a runtime without naming one.
    pub fn build_unchecked(self) -> Result<ReplicatedPool, Error> {
        let cluster = Cluster::start(self.prepare()?);
        Ok(ReplicatedPool { cluster })
    }

    fn prepare(self) -> Result<Options, Error> {
        let settings = self.config.validate()?;
        let runtime = match self.runtime {
            Some(runtime) => runtime,
            None => ambient()?,
        };
        let mut options = options(settings, runtime);
        if let Some(policy) = self.policy {
            options.policy = policy;
        }
        if let Some(hook) = self.setup {
            options.setup = both(options.setup, hook);
        }
        Ok(options)
    }
}

fn both(first: SetupHook, second: SetupHook) -> SetupHook {
    Arc::new(move |connection| {
        let (first, second) = (Arc::clone(&first), Arc::clone(&second));
        Box::pin(async move {
            first(connection).await?;
            second(connection).await
        })
    })
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("config", &self.config)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}
