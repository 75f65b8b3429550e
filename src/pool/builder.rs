//! Builds a pool, with bb8's names for what bb8 has.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use diesel::QueryResult;
use diesel_async::AsyncPgConnection;
use futures_core::future::BoxFuture;
use tokio::runtime::Handle;

use super::following::{Followed, Given, Nodes, follow, list};
use super::{ReplicatedPool, ambient};
use crate::blocking::block_on;
use crate::cluster::{Cluster, Options, background, options, started};
use crate::config::{
    CommitResolution, Config, ConsistencyConfig, DeclaredRole, Durability, HealthConfig,
    NodeConfig, Policy, Routing, TagConfig,
};
use crate::credentials::Credentials;
use crate::discovery::Discovery;
use crate::error::Error;
use crate::node::SetupHook;
use crate::position::PositionSource;
use crate::routing::LoadBalancingPolicy;
use crate::tls::OwnConfig;

/// Makes setters of settings that [`Config`] describes.
macro_rules! setters {
    ($($name:ident($type:ty) => $($path:ident).+, $home:literal;)*) => {
        $(
            #[doc = concat!("Sets [`", $home, "`](crate::", $home, ").")]
            pub fn $name(mut self, $name: $type) -> Self {
                self.config.$($path).+ = $name.into();
                self
            }
        )*
    };
}

/// Builds a [`ReplicatedPool`].
///
/// It fills a [`Config`] and adds code, which no file can hold. Sizes and times given here are the defaults of every
/// node; a [`NodeConfig`] may have its own.
#[derive(Clone, Default)]
#[must_use]
pub struct Builder {
    config: Config,
    policy: Option<Arc<dyn LoadBalancingPolicy>>,
    setup: Option<SetupHook>,
    tls: Option<OwnConfig>,
    credentials: Option<Arc<dyn Credentials>>,
    positions: Option<Arc<dyn PositionSource>>,
    discovery: Option<Arc<dyn Discovery>>,
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
    /// Begins with a URL that names every host; see [`Config::from_url`].
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

    /// Adds the node that takes writes.
    #[doc(alias = "master")]
    pub fn primary(self, primary: impl Into<NodeConfig>) -> Self {
        self.declared(primary.into(), DeclaredRole::Primary)
    }

    /// Adds a node that follows the primary and serves reads.
    #[doc(alias = "slave")]
    pub fn replica(self, replica: impl Into<NodeConfig>) -> Self {
        self.declared(replica.into(), DeclaredRole::Replica)
    }

    fn declared(mut self, mut node: NodeConfig, role: DeclaredRole) -> Self {
        node.role = role;
        self.config.nodes.push(node);
        self
    }

    /// Adds a node that tells by itself what it is.
    pub fn node(self, node: impl Into<NodeConfig>) -> Self {
        self.declared(node.into(), DeclaredRole::Unknown)
    }

    /// Adds every host of a URL as a [`node`](Self::node), and sets what the URL says of the pool; see
    /// [`Config::from_url`].
    ///
    /// # Errors
    ///
    /// As [`Config::from_url`].
    pub fn url(mut self, url: &str) -> Result<Self, Error> {
        self.config.read_url(url)?;
        Ok(self)
    }

    setters! {
        routing(Routing) => routing, "Config::routing";
        max_size(u32) => pool.max_size, "config::PoolConfig::max_size";
        min_idle(impl Into<Option<u32>>) => pool.min_idle, "config::PoolConfig::min_idle";
        connection_timeout(Duration) => pool.connection_timeout, "config::PoolConfig::connection_timeout";
        connect_timeout(Duration) => pool.connect_timeout, "config::PoolConfig::connect_timeout";
        max_lifetime(impl Into<Option<Duration>>) => pool.max_lifetime, "config::PoolConfig::max_lifetime";
        idle_timeout(impl Into<Option<Duration>>) => pool.idle_timeout, "config::PoolConfig::idle_timeout";
        fallback_share(f64) => fallback_share, "Config::fallback_share";
        start_read_only(bool) => start_read_only, "Config::start_read_only";
        failover_wait(Duration) => failover_wait, "Config::failover_wait";
        statement_deadline(impl Into<Option<Duration>>) => statement_deadline, "Config::statement_deadline";
        max_connecting(u32) => pool.max_connecting, "config::PoolConfig::max_connecting";
        commit_resolution(CommitResolution) => commit_resolution, "Config::commit_resolution";
        health(HealthConfig) => health, "Config::health";
        write_quorum(bool) => write_quorum, "Config::write_quorum";
        read_only_transactions_on_replicas(bool) => read_only_transactions_on_replicas,
            "Config::read_only_transactions_on_replicas";
        consistency(impl Into<ConsistencyConfig>) => consistency, "Config::consistency";
        durability(impl Into<Option<Durability>>) => durability, "Config::durability";
    }

    /// Sets [`Config::promotion`].
    #[cfg(feature = "promotion")]
    #[cfg_attr(docsrs, doc(cfg(feature = "promotion")))]
    pub fn promotion(mut self, promotion: crate::config::PromotionConfig) -> Self {
        self.config.promotion = promotion;
        self
    }

    /// Sets [`Config::policy`].
    pub fn policy(mut self, policy: Policy) -> Self {
        self.config.policy = policy;
        self.policy = None;
        self
    }

    /// Sets [`Config::prefer_zones`].
    ///
    /// ```
    /// use diesel_replicated::{NodeConfig, ReplicatedPool};
    ///
    /// let builder = ReplicatedPool::builder()
    ///     .primary(NodeConfig::new("postgres://app@db1/app").zone("eu-central"))
    ///     .replica(NodeConfig::new("postgres://app@db2/app").zone("us-east"))
    ///     .replica(NodeConfig::new("postgres://app@db3/app").zone("us-west"))
    ///     // An application in the west: reads stay there, else go to the east, else anywhere.
    ///     .prefer_zones(["us-west", "us-east"]);
    /// ```
    pub fn prefer_zones(mut self, zones: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.config.prefer_zones = zones.into_iter().map(Into::into).collect();
        self
    }

    /// Lets reads ask for nodes with this tag, by [`tagged`](crate::ReplicatedConnection::tagged), with connections of their
    /// own to each of these nodes. May be called repeatedly, for one tag each. See [`Config::tagged`].
    pub fn tagged(mut self, tag: impl Into<String>, config: TagConfig) -> Self {
        self.config.tagged.insert(tag.into(), config);
        self
    }

    /// Sets a policy of your own.
    pub fn custom_policy(mut self, policy: impl LoadBalancingPolicy + 'static) -> Self {
        self.policy = Some(Arc::new(policy));
        self
    }

    /// Names a function that is safe on a replica, though nothing says so: `my_function` or `my_schema.my_function`.
    /// May be called repeatedly.
    pub fn allow_function(mut self, name: impl Into<String>) -> Self {
        self.config.functions.allow.push(name.into());
        self
    }

    /// Names a function that belongs on the primary, though nothing says so. May be called repeatedly.
    pub fn deny_function(mut self, name: impl Into<String>) -> Self {
        self.config.functions.deny.push(name.into());
        self
    }

    /// Adds a statement that runs on every new connection to every node, for settings that all of them should have
    /// (`SET statement_timeout = …`, `SET search_path = …`). Such settings are nobody's session state and keep
    /// nothing on the primary.
    pub fn setup_sql(mut self, sql: impl Into<String>) -> Self {
        self.config.setup_sql.push(sql.into());
        self
    }

    /// Sets code that runs on every new connection to every node, after [`Builder::setup_sql`].
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

    /// Sets where users and passwords come from. It wins over those of the URLs; see
    /// [`credentials`](crate::credentials).
    pub fn credentials(mut self, source: impl Credentials) -> Self {
        self.credentials = Some(Arc::new(source));
        self
    }

    /// Adds the nodes of a list that changes; see [`discovery`](crate::discovery).
    pub fn discovery(mut self, source: impl Discovery) -> Self {
        self.discovery = Some(Arc::new(source));
        self
    }

    /// Sets how servers are asked for their positions, where they refuse PostgreSQL's functions as Aurora's readers do.
    pub fn position_source(mut self, source: impl PositionSource) -> Self {
        self.positions = Some(Arc::new(source));
        self
    }

    /// Sets how TLS is spoken with every node, for what no URL can say: authorities in memory, keys in hardware, a
    /// verifier of your own. Then `sslmode` and `sslnegotiation` only decide whether there is TLS, and the other
    /// parameters that begin with `ssl` are not looked at.
    ///
    /// ```
    /// # fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use diesel_replicated::{Builder, rustls};
    ///
    /// let mut roots = rustls::RootCertStore::empty();
    /// # let der: Vec<u8> = Vec::new();
    /// roots.add(der.into())?;
    /// let tls = rustls::ClientConfig::builder()
    ///     .with_root_certificates(roots)
    ///     .with_no_client_auth();
    /// let builder = Builder::from_url("postgres://app@db1,db2/app?sslmode=require")?.tls(tls);
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "rustls")]
    #[cfg_attr(docsrs, doc(cfg(feature = "rustls")))]
    pub fn tls(mut self, config: impl Into<Arc<rustls::ClientConfig>>) -> Self {
        self.tls = Some(config.into());
        self
    }

    /// Sets the runtime of the pool's sockets, timers and tasks. Defaults to the one that `build` is called from.
    /// Name another if the pool is to outlive that one.
    pub fn runtime(mut self, runtime: Handle) -> Self {
        self.runtime = Some(runtime);
        self
    }

    /// The configuration so far.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Builds the pool. It asks every node, and returns when each has answered or has failed to within
    /// `connect_timeout`. Replicas that are down come in when they come up.
    ///
    /// # Errors
    ///
    /// A setting is not valid (all mistakes are listed), or no primary was found, or more than one. With
    /// [`Builder::start_read_only`] one usable replica is enough.
    pub async fn build(mut self) -> Result<ReplicatedPool, Error> {
        let followed = match self.discovery.take() {
            Some(source) => Some(self.discover(source).await?),
            None => None,
        };
        let options = self.prepare()?;
        let start_read_only = options.settings.shared.start_read_only;
        let cluster = Cluster::start(options);
        started(&cluster, start_read_only).await?;
        if let Some(followed) = followed {
            follow(&cluster, followed);
        }
        Ok(ReplicatedPool { cluster })
    }

    /// As [`build`](Self::build), for code that is not async. The pool's tasks run on a thread of this crate's own, unless
    /// a [`runtime`](Self::runtime) was named.
    ///
    /// ```no_run
    /// # fn example() -> Result<(), diesel_replicated::Error> {
    /// use diesel_replicated::Builder;
    ///
    /// let pool = Builder::from_url("postgres://app@db1,db2/app")?.max_size(20).build_blocking()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`build`](Self::build).
    pub fn build_blocking(mut self) -> Result<ReplicatedPool, Error> {
        if self.runtime.is_none() {
            self.runtime = Some(background()?);
        }
        block_on(self.build())
    }

    /// Adds the nodes that a source lists. Without a list the nodes that were given must do.
    async fn discover(&mut self, source: Arc<dyn Discovery>) -> Result<Followed, Error> {
        let given = self.given();
        let mut listed = self.listed(&source).await?;
        match &mut listed {
            Ok(nodes) => {
                // What was given holds.
                given.leave_out(nodes, &self.config.pool);
                let listed = nodes.values().cloned();
                let nodes = listed.map(|node| node.role(DeclaredRole::Unknown));
                self.config.nodes.extend(nodes);
            }
            Err(cause) if self.config.nodes.is_empty() => {
                let cause = std::mem::take(cause);
                return Err(Error::Discovery { cause });
            }
            // It is told when the pool is there.
            Err(_) => {}
        }
        Ok(Followed::asked(source, listed, given))
    }

    /// What the source lists. It is asked on the pool's runtime: the caller may have none.
    async fn listed(&self, source: &Arc<dyn Discovery>) -> Result<Result<Nodes, String>, Error> {
        let (source, pool) = (Arc::clone(source), self.config.pool.clone());
        let asking = async move { list(&*source, &pool).await };
        let listed = self.its_runtime()?.spawn(asking).await;
        listed.map_err(|error| Error::Runtime {
            message: error.to_string(),
        })
    }

    fn its_runtime(&self) -> Result<Handle, Error> {
        self.runtime.clone().map_or_else(ambient, Ok)
    }

    /// The nodes that were given. Those that are not valid are told later.
    fn given(&self) -> Given {
        Given::new(&self.config.nodes, &self.config.pool)
    }

    /// Builds the pool without waiting for any node. The first statements wait. The nodes of a
    /// [`discovery`](Self::discovery) join when they are known; some other node has to be given.
    ///
    /// # Errors
    ///
    /// A setting is not valid, or it is called outside of a runtime and none was named.
    pub fn build_unchecked(self) -> Result<ReplicatedPool, Error> {
        let source = self.discovery.clone();
        let followed = source.map(|source| Followed::unasked(source, self.given()));
        let cluster = Cluster::start(self.prepare()?);
        if let Some(followed) = followed {
            follow(&cluster, followed);
        }
        Ok(ReplicatedPool { cluster })
    }

    fn prepare(self) -> Result<Options, Error> {
        let runtime = self.its_runtime();
        // All mistakes are told first.
        let settings = self.config.validate()?;
        let mut options = options(settings, runtime?);
        if let Some(policy) = self.policy {
            options.policy = policy;
        }
        options.hooks.tls = self.tls;
        options.hooks.credentials = self.credentials;
        options.hooks.positions = self.positions;
        if let Some(hook) = self.setup {
            options.hooks.setup = both(options.hooks.setup, hook);
            options.hooks.sets_up = true;
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
