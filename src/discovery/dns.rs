//! A name of the domain name system with several addresses: a node for each.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;

use super::{Discovery, DiscoveryError, PATIENCE};
use crate::config::{Config, NodeConfig, UrlProblem, check_names_no_address, url_of_address};

/// A node for each address (`A`, `AAAA`) of the host of a URL, as the system resolves it. The certificates of the servers
/// are those of the name.
///
/// The system's resolver tells no times to live, so it is asked once in 5 seconds; it answers from its own cache as
/// long as it likes. A name that is not found, or has no address, changes nothing.
#[derive(Clone)]
pub struct Dns {
    url: String,
    interval: Duration,
}

/// Without the URL: it may have a password.
impl std::fmt::Debug for Dns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dns")
            .field("interval", &self.interval)
            .finish_non_exhaustive()
    }
}

impl Dns {
    /// Looks for the host of this URL, or list of `key=value`. It must have no `hostaddr`.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            interval: super::INTERVAL,
        }
    }

    /// How often the name is looked for. Default: 5 seconds.
    #[must_use]
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// The host and the port of the URL.
    fn host(&self) -> Result<(String, u16), DiscoveryError> {
        let settings = Config::from_url(&self.url)?.validate()?;
        check_names_no_address(&self.url).map_err(problem)?;
        match &settings.nodes[..] {
            [node] => Ok(node.host.address()),
            _ => Err("the URL of a name has to have one host".into()),
        }
    }

    /// The node at this address.
    fn node(&self, host: &str, port: u16, address: IpAddr) -> Result<NodeConfig, DiscoveryError> {
        let url = url_of_address(&self.url, (host, port), address).map_err(problem)?;
        Ok(NodeConfig::new(url).name(format!("{host}/{address}:{port}")))
    }
}

fn problem(problem: UrlProblem) -> DiscoveryError {
    format!("the URL of a name: {problem}").into()
}

#[async_trait]
impl Discovery for Dns {
    async fn nodes(&self) -> Result<Vec<NodeConfig>, DiscoveryError> {
        let (host, port) = self.host()?;
        let found = tokio::net::lookup_host((host.as_str(), port));
        let found = tokio::time::timeout(PATIENCE, found).await;
        let found = found
            .map_err(|_| format!("the name `{host}` is not found within {PATIENCE:?}"))?
            .map_err(|error| format!("the name `{host}` is not found: {error}"))?;
        let addresses: BTreeSet<IpAddr> = found.map(|address| address.ip()).collect();
        addresses
            .into_iter()
            .map(|address| self.node(&host, port, address))
            .collect()
    }

    async fn changed(&self) {
        tokio::time::sleep(self.interval).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_address_is_a_node_and_the_name_stays_in_the_url() {
        let dns = Dns::new("postgres://app:pw@localhost:5444/app");
        let nodes = dns.nodes().await.unwrap();
        let expected = dns.node("localhost", 5444, "127.0.0.1".parse().unwrap());
        let expected = expected.unwrap();
        assert!(nodes.contains(&expected));
        let config = Config {
            nodes: vec![expected],
            ..Config::new()
        };
        let settings = config.validate().unwrap();
        assert_eq!(settings.nodes[0].name, "localhost/127.0.0.1:5444");
        assert!(!format!("{dns:?}").contains("pw"));
        let several = Dns::new("postgres://app@a,b/app").nodes().await;
        assert!(several.unwrap_err().to_string().contains("one host"));
    }

    #[tokio::test]
    async fn a_list_of_key_and_value_is_one_whatever_its_password_has() {
        let dns = Dns::new("host=localhost port=5444 user=app password=a://b?c dbname=app");
        let nodes = dns.nodes().await.unwrap();
        let url = "postgres://app:a%3A%2F%2Fb%3Fc@localhost:5444/app?hostaddr=127.0.0.1";
        let expected = NodeConfig::new(url).name("localhost/127.0.0.1:5444");
        assert!(nodes.contains(&expected));
    }

    #[tokio::test]
    async fn a_url_that_has_an_address_is_refused_before_the_name_is_looked_for() {
        let dns = Dns::new("postgres://app:pw@gone.invalid/app?hostaddr=10.0.0.1");
        let refused = dns.nodes().await.unwrap_err().to_string();
        assert!(refused.contains("`hostaddr`"), "{refused}");
    }
}
