//! The configuration once checked: complete, consistent, with every default filled in.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use super::conn_string::Address;
use super::login::Login;
use super::pooler::Pooler;
use super::zone::named;
use super::{Config, DeclaredRole, PoolConfig};

/// A checked [`Config`].
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// At least one; at most one is declared the primary, and not all are declared replicas.
    pub(crate) nodes: Vec<NodeSettings>,
    /// The rest of it, without nodes.
    pub(crate) shared: Config,
}

/// A checked [`NodeConfig`](super::NodeConfig).
#[derive(Clone)]
pub(crate) struct NodeSettings {
    /// Unique.
    pub(crate) name: String,
    pub(crate) declared: DeclaredRole,
    /// Greater is promoted rather; 0 never.
    #[cfg(feature = "promotion")]
    pub(crate) promotion_priority: u32,
    /// As configured; which weight counts is told by [`weight_as`](Self::weight_as).
    pub(crate) weight: Option<u32>,
    /// While it is a replica.
    pub(crate) no_reads: bool,
    /// What its configuration says; see [`zone`](Self::zone).
    pub(crate) zone: Option<String>,
    pub(crate) tags: BTreeMap<String, String>,
    pub(crate) login: Login,
    pub(crate) host: Host,
    /// The kind of pooler on the way, if somebody says that there is one.
    pub(crate) pooler: Option<Pooler>,
    /// The way around it.
    pub(crate) monitor: Option<Box<Self>>,
    /// Where standbys reach it, if elsewhere.
    pub(crate) replication: Option<Address>,
    /// With the overrides of the node and the `connect_timeout` of its URL.
    pub(crate) pool: PoolConfig,
}

impl NodeSettings {
    /// The weight of the node while its role is `role`; an unknown one is read like a replica.
    pub(crate) fn weight_as(&self, role: DeclaredRole) -> u32 {
        let is_primary = role == DeclaredRole::Primary;
        let default = u32::from(!is_primary);
        if is_primary == (self.declared == DeclaredRole::Primary) {
            self.weight.unwrap_or(default)
        } else {
            default
        }
    }
}

/// The tag that tells the zone of a node whose zone nothing else tells. So a source of nodes can tell it.
const ZONE_TAG: &str = "zone";

impl NodeSettings {
    /// Its zone: what its configuration says, else its URL, else a tag.
    pub(crate) fn zone(&self) -> Option<&str> {
        let given = self.zone.as_ref().or(self.login.zone.as_ref());
        let zone = given.or_else(|| self.tags.get(ZONE_TAG));
        zone.and_then(|zone| named(zone))
    }

    /// Where standbys reach it. `None` if only a socket of this machine is known.
    pub(crate) fn replication_address(&self) -> Option<Address> {
        let around = self.monitor.as_ref().map_or(&self.host, |it| &it.host);
        self.replication.clone().or_else(|| match around {
            Host::Tcp {
                host,
                hostaddr,
                port,
            } => Some(Address {
                host: host.clone(),
                hostaddr: hostaddr.map(|address| address.to_string()),
                port: *port,
            }),
            Host::Unix(_) => None,
        })
    }
}

/// Leaves out how to log in: it has the password, and a list of `key=value` with a quote too many can have put that
/// into the user.
impl fmt::Debug for NodeSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeSettings")
            .field("name", &self.name)
            .field("declared", &self.declared)
            .field("weight", &self.weight)
            .field("tags", &self.tags)
            .field("host", &self.host)
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Host {
    Tcp {
        /// A name or an IP address, without brackets.
        host: String,
        /// Where to connect to, instead of looking up `host`.
        hostaddr: Option<IpAddr>,
        port: u16,
    },
    /// The file of the socket: `/var/run/postgresql/.s.PGSQL.5432`.
    Unix(PathBuf),
}

impl Host {
    /// The name or address, or the path of the socket, and the port; 0 for a socket.
    pub(crate) fn address(&self) -> (String, u16) {
        match self {
            Self::Tcp { host, port, .. } => (host.clone(), *port),
            Self::Unix(path) => (path.display().to_string(), 0),
        }
    }

    /// Whether this is it, as `host:port`.
    pub(crate) fn is_at(&self, address: &str) -> bool {
        match self {
            Self::Tcp {
                host,
                hostaddr,
                port,
            } => {
                let is_it = |(name, its): (&str, &str)| {
                    its == port.to_string()
                        && (name == host || name.parse().is_ok_and(|ip| Some(ip) == *hostaddr))
                };
                address.rsplit_once(':').is_some_and(is_it)
            }
            Self::Unix(_) => false,
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port, .. } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port, .. } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}
