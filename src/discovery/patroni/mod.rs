//! The members of a Patroni cluster, by its REST API: a node for each.

mod absent;
mod members;
mod rest;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use rustls::ClientConfig;
use tokio::sync::OnceCell;

use self::absent::Absent;
use self::members::{Addresses, Cluster};
use self::rest::{Endpoint, Rest};
use super::checked::{check, shown};
use super::{Discovery, DiscoveryError, MOST};
use crate::config::{NodeConfig, PoolConfig};

/// The members of a [Patroni](https://patroni.readthedocs.io) cluster, as `GET /cluster` of its [REST
/// API](https://patroni.readthedocs.io/en/latest/rest_api.html) lists them: a node for each, with the member's name.
///
/// ```
/// use diesel_replicated::discovery::Patroni;
/// use diesel_replicated::ReplicatedPool;
///
/// let members = Patroni::new(
///     ["https://10.0.0.1:8008", "https://10.0.0.2:8008"],
///     // Without a host: each member tells its own.
///     "postgres://app:secret@/app?sslmode=verify-full",
/// );
/// let builder = ReplicatedPool::builder().discovery(members);
/// ```
///
/// The addresses that are given begin it. Those that the members tell are asked, too, so that the given ones may be
/// replaced while the pool runs. One is asked after the other, and the next one beside one that is slow. The first answer
/// that makes sense counts. While the pool has no primary it asks once in a second.
///
/// The list says who belongs to the cluster, and nothing more: who the primary is, who lags and who is down is what the
/// servers themselves say. So the pool works on while the API, or Patroni's own store, is away. A member that is not
/// listed any more leaves [30 seconds](Self::forget_after) later: when its store was away, Patroni knows no member until each
/// has told of itself again, and their servers have served all the while.
///
/// What is understood of the tags, beside becoming [tags](NodeConfig::tags) of the node:
///
/// | tag | is |
/// |---|---|
/// | `noloadbalance` | [`NodeConfig::no_reads`] |
/// | `nofailover`, `failover_priority` | [`NodeConfig::promotion_priority`]: 0, or the number |
/// | `clonefrom`, `nosync`, `replicatefrom`, others of your own | a tag |
///
/// The host that a member tells is that of its `connect_address`. With `sslmode=verify-full` its certificate
/// has to be for that host.
#[derive(Clone)]
pub struct Patroni {
    endpoints: Vec<String>,
    url: String,
    interval: Duration,
    basic_auth: Option<(String, String)>,
    tls: Option<Arc<ClientConfig>>,
    scope: Option<String>,
    forget_after: Duration,
    asked: Arc<Asked>,
}

/// As long as a member's key lives in Patroni's store by default (`ttl`).
const FORGET_AFTER: Duration = Duration::from_secs(30);

/// What is kept from one question to the next.
#[derive(Default)]
struct Asked {
    rest: OnceCell<Rest>,
    learnt: Mutex<Learnt>,
}

#[derive(Default)]
struct Learnt {
    /// Who answered last.
    last: Option<Endpoint>,
    /// What the members tell of themselves.
    told: Vec<Endpoint>,
    addresses: Addresses,
    /// Who is not listed any more, and since when.
    absent: Absent,
    /// The name of the cluster.
    scope: Option<String>,
}

/// Without the URL and the password.
impl fmt::Debug for Patroni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Patroni")
            .field("interval", &self.interval)
            .field("scope", &self.scope)
            .finish_non_exhaustive()
    }
}

impl Patroni {
    /// Asks at these addresses, such as `https://db1:8008`. `url` says how to log in to the members: user, password, database
    /// and parameters, but no host.
    pub fn new<E>(endpoints: E, url: impl Into<String>) -> Self
    where
        E: IntoIterator,
        E::Item: Into<String>,
    {
        Self {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            url: url.into(),
            interval: super::INTERVAL,
            basic_auth: None,
            tls: None,
            scope: None,
            forget_after: FORGET_AFTER,
            asked: Arc::default(),
        }
    }

    /// How often the API is asked. Default: 5 seconds.
    #[must_use]
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Logs in to the API with a password. Default: not at all; Patroni itself asks for none where only is read.
    ///
    /// It is sent to every address that is asked. If all that were given are encrypted, others are asked only if they are,
    /// too.
    #[must_use]
    pub fn basic_auth(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.basic_auth = Some((user.into(), password.into()));
        self.asked = Arc::default();
        self
    }

    /// How TLS is done with addresses that are `https`: an authority of your own, a certificate for Patroni's
    /// `verify_client`. Default: the authorities that the system trusts.
    #[must_use]
    pub fn tls(mut self, config: impl Into<Arc<ClientConfig>>) -> Self {
        self.tls = Some(config.into());
        self.asked = Arc::default();
        self
    }

    /// The name of the cluster (`scope` in Patroni's configuration). An answer of another cluster counts for nothing. Default:
    /// that of the first answer. Patroni tells it since version 3.1.
    #[must_use]
    pub fn scope(mut self, scope: impl Into<String>) -> Self {
        self.scope = Some(scope.into());
        self
    }

    /// How long a member stays after it was listed last. Default: 30 seconds.
    #[must_use]
    pub fn forget_after(mut self, time: Duration) -> Self {
        self.forget_after = time;
        self
    }

    /// Whom to ask, in this order: who answered last, then what was given, then what the members told.
    fn endpoints(&self) -> Result<Vec<Endpoint>, DiscoveryError> {
        let given: Result<Vec<Endpoint>, String> = self
            .endpoints
            .iter()
            .map(|text| Endpoint::given(text))
            .collect();
        let given = given?;
        if given.is_empty() {
            return Err("no address of Patroni's REST API is given".into());
        }
        let learnt = self.asked.learnt.lock();
        let mut endpoints: Vec<Endpoint> = learnt.last.iter().cloned().collect();
        let weaker = given.iter().any(|endpoint| !endpoint.is_encrypted());
        let told = learnt.told.iter().cloned();
        let told = told.filter(|endpoint| weaker || endpoint.is_encrypted());
        for endpoint in given.into_iter().chain(told) {
            if !endpoints.contains(&endpoint) {
                endpoints.push(endpoint);
            }
        }
        Ok(endpoints)
    }

    /// The nodes of an answer. One that is refused changes nothing.
    fn learn(&self, by: Endpoint, cluster: &Cluster) -> Result<Vec<NodeConfig>, String> {
        let mut learnt = self.asked.learnt.lock();
        let expected = self.scope.as_ref().or(learnt.scope.as_ref());
        if let (Some(expected), Some(scope)) = (expected, &cluster.scope) {
            if expected != scope {
                let (scope, expected) = (shown(scope), shown(expected));
                return Err(format!(
                    "{by} is of the cluster `{scope}`, not of `{expected}`"
                ));
            }
        }
        let addresses = cluster.addresses(&learnt.addresses);
        let mut nodes = cluster
            .nodes(&self.url, &addresses)
            .map_err(|problem| format!("the URL for the members of the cluster: {problem}"))?;
        if nodes.is_empty() {
            return Err(format!("{by} tells of no member where it is"));
        }
        check(&nodes, &PoolConfig::default()).map_err(|cause| format!("{by}: {cause}"))?;
        let stay = learnt.absent.still_there(&nodes, self.forget_after);
        nodes.extend(stay);
        learnt.addresses.extend(addresses);
        let known = |name: &String| nodes.iter().any(|node| node.name.as_ref() == Some(name));
        learnt.addresses.retain(|name, _| known(name));
        learnt.scope = learnt.scope.take().or_else(|| cluster.scope.clone());
        learnt.last = Some(by);
        let urls = cluster
            .members
            .iter()
            .filter_map(|member| member.api_url.as_deref());
        learnt.told = urls.filter_map(Endpoint::told).take(MOST).collect();
        Ok(nodes)
    }
}

#[async_trait]
impl Discovery for Patroni {
    async fn nodes(&self) -> Result<Vec<NodeConfig>, DiscoveryError> {
        let endpoints = self.endpoints()?;
        let rest = async || Rest::new(self.tls.as_deref(), self.basic_auth.as_ref());
        let rest = self.asked.rest.get_or_try_init(rest).await?;
        let learn = |by, cluster: &Cluster| self.learn(by, cluster);
        Ok(rest.first(&endpoints, learn).await?)
    }

    async fn changed(&self) {
        tokio::time::sleep(self.interval).await;
    }
}
