//! What Patroni's answer on `/cluster` makes of nodes.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::config::{NodeConfig, UrlProblem, url_at};

/// An answer, as far as it matters here. See <https://patroni.readthedocs.io/en/latest/rest_api.html#monitoring-endpoint>.
#[derive(Debug, Deserialize)]
pub(super) struct Cluster {
    pub(super) members: Vec<Member>,
    /// Its name. Patroni tells it since version 3.1.
    pub(super) scope: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Member {
    name: String,
    /// A member that has not started tells no address, and so may one of which Patroni knows too little for a while.
    host: Option<String>,
    port: Option<u16>,
    pub(super) api_url: Option<String>,
    #[serde(default)]
    tags: BTreeMap<String, Value>,
}

/// Where each member was when it last said so, by its name.
pub(super) type Addresses = BTreeMap<String, (String, u16)>;

impl Cluster {
    /// Reads an answer.
    pub(super) fn read(body: &[u8]) -> Result<Self, String> {
        let cluster: Self = serde_json::from_slice(body)
            .map_err(|error| format!("the answer is not Patroni's: {error}"))?;
        if cluster.members.is_empty() {
            return Err("the answer has no members".to_owned());
        }
        Ok(cluster)
    }

    /// Where each member is. One that tells no address is where it was `before`; one that has never told any is not there
    /// yet.
    pub(super) fn addresses(&self, before: &Addresses) -> Addresses {
        let known = |member: &Member| before.get(&member.name).cloned();
        let address = |member: &Member| {
            let address = member.address().or_else(|| known(member))?;
            Some((member.name.clone(), address))
        };
        self.members.iter().filter_map(address).collect()
    }

    /// The nodes, each at `url` with its own host and port.
    pub(super) fn nodes(
        &self,
        url: &str,
        addresses: &Addresses,
    ) -> Result<Vec<NodeConfig>, UrlProblem> {
        let mut nodes = Vec::new();
        for member in &self.members {
            if let Some((host, port)) = addresses.get(&member.name) {
                nodes.push(member.node(url_at(url, host, *port)?));
            }
        }
        Ok(nodes)
    }
}

impl Member {
    fn address(&self) -> Option<(String, u16)> {
        let host = self.host.clone().filter(|host| !host.is_empty())?;
        Some((host, self.port.unwrap_or(5432)))
    }

    fn node(&self, url: String) -> NodeConfig {
        let mut node = NodeConfig::new(url).name(self.name.clone());
        for (tag, value) in &self.tags {
            if !tag.trim().is_empty() {
                node = node.tag(tag, text(value));
            }
        }
        if self.is("noloadbalance") {
            node = node.no_reads(true);
        }
        match self.failover_priority() {
            Some(priority) => node.promotion_priority(priority),
            None => node,
        }
    }

    /// Patroni prefers the greater one, too, and never promotes one with 0.
    fn failover_priority(&self) -> Option<u32> {
        if self.is("nofailover") {
            return Some(0);
        }
        let given = self.tags.get("failover_priority")?;
        let number: i64 = text(given).trim().parse().ok()?;
        Some(u32::try_from(number.max(0)).unwrap_or(u32::MAX))
    }

    /// Whether a tag says yes, in the ways in which Patroni lets people say it.
    fn is(&self, tag: &str) -> bool {
        self.tags.get(tag).is_some_and(|value| {
            let said = text(value).trim().to_ascii_lowercase();
            ["true", "on", "yes", "1"].contains(&said.as_str())
        })
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "postgres://app:hunter2@/app?sslmode=require";

    fn nodes(answer: &str, known: &mut Addresses) -> Vec<NodeConfig> {
        let cluster = Cluster::read(answer.as_bytes()).unwrap();
        *known = cluster.addresses(known);
        cluster.nodes(URL, known).unwrap()
    }

    fn at(host: &str, name: &str) -> NodeConfig {
        NodeConfig::new(format!("postgres://app:hunter2@{host}/app?sslmode=require")).name(name)
    }

    #[test]
    fn members_are_nodes_and_their_tags_are_understood() {
        let answer = r#"{"scope": "ops", "pause": true, "members": [
            {"name": "n1", "role": "leader", "state": "running", "host": "10.0.0.1", "port": 5433, "timeline": 7,
             "api_url": "https://10.0.0.1:8008/patroni", "pending_restart": true},
            {"name": "n2", "role": "sync_standby", "state": "streaming", "host": "db2.internal", "port": 5432, "lag": 0,
             "tags": {"noloadbalance": "on", "nofailover": true, "clonefrom": true, "zone": "a", " ": 1}},
            {"name": "n3", "role": "replica", "state": "in archive recovery", "host": "2001:db8::3", "port": 5432,
             "lag": "unknown", "tags": {"failover_priority": 5, "noloadbalance": false}},
            {"name": "n4", "role": "replica", "state": "running", "host": "10.0.0.4",
             "tags": {"failover_priority": "0", "nofailover": "no"}}
        ]}"#;
        let expected = [
            at("10.0.0.1:5433", "n1"),
            at("db2.internal:5432", "n2")
                .no_reads(true)
                .promotion_priority(0)
                .tag("noloadbalance", "on")
                .tag("nofailover", "true")
                .tag("clonefrom", "true")
                .tag("zone", "a"),
            at("[2001:db8::3]:5432", "n3")
                .promotion_priority(5)
                .tag("failover_priority", "5")
                .tag("noloadbalance", "false"),
            at("10.0.0.4:5432", "n4")
                .promotion_priority(0)
                .tag("failover_priority", "0")
                .tag("nofailover", "no"),
        ];
        let found = nodes(answer, &mut Addresses::new());
        assert_eq!(found, expected);
        assert!(!format!("{found:?}").contains("hunter2"));
    }

    // patroni#2713: members that are listed without an address after some time in production.
    #[test]
    fn a_member_that_tells_no_address_any_more_is_where_it_was() {
        let mut known = Addresses::new();
        let first = nodes(
            r#"{"members": [{"name": "n1", "host": "a", "port": 1}, {"name": "n2"}]}"#,
            &mut known,
        );
        assert_eq!(first, [at("a:1", "n1")]);
        let later = nodes(
            r#"{"members": [{"name": "n1", "host": "", "api_url": "http://:8008/patroni"}, {"name": "n2", "host": "b"}]}"#,
            &mut known,
        );
        assert_eq!(later, [at("a:1", "n1"), at("b:5432", "n2")]);
        // Who has gone and comes back has to say it again.
        nodes(r#"{"members": [{"name": "n2", "host": "b"}]}"#, &mut known);
        let back = nodes(
            r#"{"members": [{"name": "n1"}, {"name": "n2", "host": "b"}]}"#,
            &mut known,
        );
        assert_eq!(back, [at("b:5432", "n2")]);
    }

    #[test]
    fn what_is_not_patronis_is_refused() {
        for nonsense in [
            "",
            "<html>502</html>",
            "[]",
            "{}",
            r#"{"members": []}"#,
            r#"{"members": [{"host": "a"}]}"#,
            r#"{"members": [{"name": "a", "port": 70000}]}"#,
        ] {
            assert!(Cluster::read(nonsense.as_bytes()).is_err(), "{nonsense}");
        }
    }

    #[test]
    fn the_url_names_no_host() {
        let cluster = Cluster::read(br#"{"members": [{"name": "n1", "host": "a"}]}"#).unwrap();
        let addresses = cluster.addresses(&Addresses::new());
        let named = cluster.nodes("postgres://app@db1/app", &addresses);
        assert!(named.is_err());
    }
}
