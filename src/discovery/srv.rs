//! Service records of the domain name system: a node for each.

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use hickory_resolver::config::{NameServerConfigGroup, ResolverConfig};
use hickory_resolver::name_server::TokioConnectionProvider;
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::rdata::SRV;
use hickory_resolver::proto::rr::{RData, RecordType};
use hickory_resolver::proto::{ProtoError, ProtoErrorKind};
use hickory_resolver::{IntoName, Name, ResolveError, TokioResolver};
use parking_lot::Mutex;

use super::checked::{check, shown};
use super::{Discovery, DiscoveryError};
use crate::config::{NodeConfig, PoolConfig, url_at};

/// The least and the longest time between two questions, whatever the records say.
const LEAST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(600);

/// How long a name server may take, and how often it is asked again: less than what the pool waits for a list.
const PATIENCE: Duration = Duration::from_secs(2);
const ATTEMPTS: usize = 1;

/// How many aliases may lead to the records.
const ALIASES: usize = 8;

/// The largest weight of a node.
const MAX_WEIGHT: u64 = crate::config::MAX_WEIGHT as u64;

/// A node for each service record (`SRV`, [RFC 2782](https://www.rfc-editor.org/rfc/rfc2782)) of a name, as Consul and
/// Kubernetes have them.
///
/// ```
/// use diesel_replicated::ReplicatedPool;
/// use diesel_replicated::discovery::Srv;
///
/// // Without a host: each record tells its own.
/// let records = Srv::new("_postgresql._tcp.db.internal", "postgres://app:secret@/app");
/// let builder = ReplicatedPool::builder().discovery(records);
/// ```
///
/// Records of the least priority take reads by their weights. Those of others have weight 0: they are read only if
/// nothing else can be. The servers themselves tell who the primary is. The records are asked for again when their time
/// to live ends, and once in a second while no primary is up. A name without records changes nothing, nor does one whose
/// record says that there is no such service (`.`).
///
/// A node is named by its host and port, and the host is looked for at each connection. With `sslmode=verify-full` the
/// certificate of a server has to be for the host in its record.
pub struct Srv {
    name: String,
    url: String,
    servers: Vec<SocketAddr>,
    due: Mutex<Option<Instant>>,
}

/// Without the URL: it may have a password.
impl fmt::Debug for Srv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Srv")
            .field("name", &self.name)
            .field("servers", &self.servers)
            .finish_non_exhaustive()
    }
}

impl Srv {
    /// Looks for the records of `name`. `url` says how to log in to the servers: user, password, database and parameters, but
    /// no host.
    pub fn new(name: impl Into<String>, url: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            url: url.into(),
            servers: Vec::new(),
            due: Mutex::default(),
        }
    }

    /// Asks this name server, and others that are given in the same way, such as Consul's on port 8600. Default: those of
    /// the system (`/etc/resolv.conf`).
    #[must_use]
    pub fn name_server(mut self, address: SocketAddr) -> Self {
        self.servers.push(address);
        self
    }

    /// Without a memory of its own: the name servers have one, and whoever asks early wants what is new.
    fn resolver(&self) -> Result<TokioResolver, DiscoveryError> {
        let mut builder = if self.servers.is_empty() {
            TokioResolver::builder_tokio()
                .map_err(|error| format!("the system tells no name servers: {error}"))?
        } else {
            let mut group = NameServerConfigGroup::new();
            for &address in &self.servers {
                let one = [address.ip()];
                let one = NameServerConfigGroup::from_ips_clear(&one, address.port(), true);
                group.merge(one);
            }
            let config = ResolverConfig::from_parts(None, Vec::new(), group);
            TokioResolver::builder_with_config(config, TokioConnectionProvider::default())
        };
        let options = builder.options_mut();
        options.cache_size = 0;
        (options.timeout, options.attempts) = (PATIENCE, ATTEMPTS);
        Ok(builder.build())
    }

    fn node(&self, record: &SRV, weight: i64) -> Result<NodeConfig, DiscoveryError> {
        // As it is in the domain name system: the system's resolver takes no other letters.
        let target = record.target().to_ascii();
        let host = target.trim_end_matches('.');
        let url = url_at(&self.url, host, record.port())
            .map_err(|problem| format!("the URL for the servers: {problem}"))?;
        Ok(NodeConfig::new(url).weight(weight))
    }

    /// The records, and how long they hold.
    async fn records(&self) -> Result<(Vec<SRV>, Instant), String> {
        let resolver = self.resolver().map_err(|error| shown(&error.to_string()))?;
        let name = self.name.as_str().into_name();
        let mut name = name.map_err(|_| "that is no name".to_owned())?;
        let mut until = Instant::now() + LONGEST;
        for _ in 0..=ALIASES {
            let found = resolver.lookup(name.clone(), RecordType::SRV).await;
            match &found {
                Ok(found) => {
                    let data = found.iter().filter_map(RData::as_srv);
                    let records: Vec<SRV> = data.cloned().collect();
                    if !records.is_empty() {
                        return Ok((records, until.min(found.valid_until())));
                    }
                }
                Err(error) if error.is_no_records_found() => {}
                Err(error) => return Err(cause(error)),
            }
            // The resolver takes no records of an answer that says first which name this one is an alias of.
            let Some((alias, holds)) = alias(&resolver, name).await else {
                return Err(found.map_or_else(|error| cause(&error), |_| cause_none()));
            };
            (name, until) = (alias, until.min(holds));
        }
        Err("the aliases have no end".to_owned())
    }
}

/// Which name this one is an alias of, and how long that holds.
async fn alias(resolver: &TokioResolver, name: Name) -> Option<(Name, Instant)> {
    let found = resolver.lookup(name, RecordType::CNAME).await.ok()?;
    let mut data = found.iter().filter_map(RData::as_cname);
    let alias = data.next()?.0.clone();
    Some((alias, found.valid_until()))
}

fn cause_none() -> String {
    "there are none".to_owned()
}

fn cause(error: &ResolveError) -> String {
    match error.proto().map(ProtoError::kind) {
        Some(ProtoErrorKind::NoRecordsFound { response_code, .. }) => match response_code {
            ResponseCode::NoError => cause_none(),
            ResponseCode::NXDomain => "there is no such name".to_owned(),
            code => format!("the name server answers `{code}`"),
        },
        _ => shown(&error.to_string()),
    }
}

#[async_trait]
impl Discovery for Srv {
    async fn nodes(&self) -> Result<Vec<NodeConfig>, DiscoveryError> {
        // As long as nothing else is known.
        *self.due.lock() = Some(Instant::now() + super::INTERVAL);
        let found = tokio::time::timeout(super::PATIENCE, self.records()).await;
        let found =
            found.unwrap_or_else(|_| Err(format!("no answer within {:?}", super::PATIENCE)));
        let (records, until) = found
            .map_err(|cause| format!("the records of `{}` cannot be had: {cause}", self.name))?;
        if records.iter().any(|record| record.target().is_root()) {
            return Err(format!("`{}` says that there is no such service", self.name).into());
        }
        let nodes = records.iter().zip(weights(&records));
        let nodes = nodes
            .map(|(record, weight)| self.node(record, weight))
            .collect::<Result<Vec<_>, _>>()?;
        check(&nodes, &PoolConfig::default())
            .map_err(|cause| format!("the records of `{}`: {cause}", self.name))?;
        let now = Instant::now();
        *self.due.lock() = Some(until.clamp(now + LEAST, now + LONGEST));
        Ok(nodes)
    }

    async fn changed(&self) {
        let due = *self.due.lock();
        let due = due.unwrap_or_else(|| Instant::now() + super::INTERVAL);
        tokio::time::sleep_until(due.into()).await;
    }
}

/// The weights of nodes for those of records: in proportion, not above what a node may have. A weight of 0 is a small one.
fn weights(records: &[SRV]) -> Vec<i64> {
    let least = records.iter().map(SRV::priority).min();
    let largest = records.iter().map(|record| u64::from(record.weight()));
    let scale = largest.max().unwrap_or_default().max(MAX_WEIGHT);
    let weight = |record: &SRV| {
        if Some(record.priority()) != least {
            return 0;
        }
        let weight = (u64::from(record.weight()) * MAX_WEIGHT / scale).max(1);
        i64::try_from(weight).unwrap_or(1)
    };
    records.iter().map(weight).collect()
}

#[cfg(test)]
mod tests {
    use hickory_resolver::proto::rr::Name;

    use super::*;

    #[test]
    fn the_least_priority_is_read_by_weight_and_the_others_only_in_need() {
        let record = |priority, weight| SRV::new(priority, weight, 5432, Name::root());
        let of = |records: &[(u16, u16)]| {
            let records: Vec<SRV> = records.iter().map(|&(p, w)| record(p, w)).collect();
            weights(&records)
        };
        assert_eq!(of(&[(10, 60), (10, 40), (20, 100)]), [60, 40, 0]);
        assert_eq!(of(&[(0, 0), (0, 0)]), [1, 1]);
        assert_eq!(of(&[(0, 65535), (0, 6553), (0, 0)]), [10_000, 999, 1]);
    }
}
