//! What Patroni's answer on `/cluster` makes of nodes.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::error::Category;
use serde_json::{Map, Value};

use crate::config::{DEFAULT_PORT, NodeConfig, UrlProblem, url_at};
use crate::discovery::MOST;
use crate::discovery::checked::shown;

/// The longest name of a member or a host, in characters.
const LONGEST: usize = 255;

/// An answer as it is written, as far as it matters here. See
/// <https://patroni.readthedocs.io/en/latest/rest_api.html#monitoring-endpoint>.
#[derive(Deserialize)]
struct Answer {
    members: Vec<Written>,
    scope: Option<Value>,
}

/// A member as it is written. What its fields are is looked at later, so that who is wrong can be told.
#[derive(Deserialize)]
struct Written {
    name: Option<Value>,
    host: Option<Value>,
    port: Option<Value>,
    api_url: Option<Value>,
    tags: Option<Value>,
}

/// An answer that makes sense.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) members: Vec<Member>,
    /// Its name. Patroni tells it since version 3.1.
    pub(super) scope: Option<String>,
}

#[derive(Debug)]
pub(super) struct Member {
    name: String,
    /// A member that has not started tells no address, and so may one of which Patroni knows too little for a while.
    host: Option<String>,
    port: Option<u16>,
    pub(super) api_url: Option<String>,
    tags: Map<String, Value>,
}

/// Where each member was when it last said so, by its name.
pub(super) type Addresses = BTreeMap<String, (String, u16)>;

impl Cluster {
    /// Reads an answer. Errors tell nothing that it holds but names: what is in the wrong place may be a password.
    pub(super) fn read(body: &[u8]) -> Result<Self, String> {
        let answer: Answer = serde_json::from_slice(body)
            .map_err(|error| format!("the answer is not Patroni's: {}", place(&error)))?;
        let members = answer.members;
        match members.len() {
            0 => return Err("the answer has no members".to_owned()),
            count if count > MOST => {
                return Err(format!("the answer has {count} members; at most {MOST}"));
            }
            _ => {}
        }
        let members: Result<Vec<Member>, String> = members
            .into_iter()
            .enumerate()
            .map(|(position, member)| Member::read(member, position + 1))
            .collect();
        let members = members?;
        let mut names = BTreeSet::new();
        for Member { name, .. } in &members {
            if !names.insert(name) {
                return Err(format!(
                    "the answer has two members named `{}`",
                    shown(name)
                ));
            }
        }
        let scope = text_or_none(answer.scope);
        let scope = scope.map_err(|()| "the `scope` of the answer is not a text".to_owned())?;
        Ok(Self { members, scope })
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
    fn read(written: Written, position: usize) -> Result<Self, String> {
        let name = match written.name {
            Some(Value::String(name)) if is_name(&name) => name,
            _ => {
                return Err(format!(
                    "the `name` of member {position} is not a text in one line of at most {LONGEST} characters"
                ));
            }
        };
        let member = format!("member {position} (`{}`)", shown(&name));
        let not = |field, what| format!("the `{field}` of {member} is not {what}");
        let host = text_or_none(written.host).map_err(|()| not("host", "a text"))?;
        if host
            .as_ref()
            .is_some_and(|host| host.chars().count() > LONGEST)
        {
            return Err(not("host", "one of a server: it is too long"));
        }
        let port = port(written.port).map_err(|()| not("port", "a number from 1 to 65535"))?;
        let api_url = text_or_none(written.api_url).map_err(|()| not("api_url", "a text"))?;
        let tags = match written.tags {
            None => Map::new(),
            Some(Value::Object(tags)) => tags,
            Some(_) => return Err(not("tags", "an object")),
        };
        Ok(Self {
            name,
            host,
            port,
            api_url,
            tags,
        })
    }

    fn address(&self) -> Option<(String, u16)> {
        let host = self.host.clone().filter(|host| !host.is_empty())?;
        Some((host, self.port.unwrap_or(DEFAULT_PORT)))
    }

    fn node(&self, url: String) -> NodeConfig {
        let mut node = NodeConfig::new(url).name(self.name.clone());
        for (tag, value) in &self.tags {
            if !tag.trim().is_empty() && !value.is_null() {
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

/// What is wrong with the text of an answer, and where. `serde_json`'s own texts quote it.
fn place(error: &serde_json::Error) -> String {
    let what = match error.classify() {
        Category::Data => "it is not a list of members",
        Category::Eof => "it ends too early",
        Category::Syntax | Category::Io => "it is not JSON",
    };
    let (line, column) = (error.line(), error.column());
    format!("{what} (line {line}, column {column})")
}

/// Whether this may be the name of a member: it is shown in logs.
fn is_name(name: &str) -> bool {
    let breaks = |c: char| c.is_control() || (c.is_whitespace() && c != ' ');
    !name.trim().is_empty() && name.chars().count() <= LONGEST && !name.contains(breaks)
}

fn text_or_none(value: Option<Value>) -> Result<Option<String>, ()> {
    match value {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(()),
    }
}

/// A port, which may be written as a text.
fn port(value: Option<Value>) -> Result<Option<u16>, ()> {
    let Some(value) = value else {
        return Ok(None);
    };
    let port = match value {
        Value::String(text) => text.trim().parse().ok(),
        other => other.as_u64().and_then(|number| u16::try_from(number).ok()),
    };
    port.filter(|port| *port != 0).map(Some).ok_or(())
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
            r#"{"members": "hunter2"}"#,
            r#"{"members": [{"name": "a"}], "scope": 7}"#,
            r#"{"members": [{"name": "a"}], "members": [{"name": "b"}]}"#,
        ] {
            let refused = Cluster::read(nonsense.as_bytes()).unwrap_err();
            assert!(!refused.contains("hunter2"), "{refused}");
        }
    }

    #[test]
    fn null_is_nothing_and_a_port_may_be_a_text() {
        let answer = r#"{"scope": null, "members": [
            {"name": "n1", "host": "a", "port": "5433", "tags": null, "api_url": null},
            {"name": "n2", "host": "b", "port": null, "tags": {"zone": null, "rack": 7}},
            {"name": "n3", "host": null}
        ]}"#;
        let expected = [at("a:5433", "n1"), at("b:5432", "n2").tag("rack", "7")];
        assert_eq!(nodes(answer, &mut Addresses::new()), expected);
    }

    #[test]
    fn a_member_that_makes_no_sense_is_named_and_nothing_that_it_says_is_shown() {
        let long = "A".repeat(900_000);
        let two = |second: &str| format!(r#"{{"members": [{{"name": "n1"}}, {second}]}}"#);
        for (second, why) in [
            (
                r#"{"name": "n2", "port": "hunter2"}"#,
                "the `port` of member 2 (`n2`)",
            ),
            (
                r#"{"name": "n2", "port": 0}"#,
                "the `port` of member 2 (`n2`)",
            ),
            (
                r#"{"name": "n2", "port": 70000}"#,
                "the `port` of member 2 (`n2`)",
            ),
            (
                r#"{"name": "n2", "tags": "password=hunter2"}"#,
                "the `tags` of member 2 (`n2`)",
            ),
            (
                r#"{"name": "n2", "host": ["hunter2"]}"#,
                "the `host` of member 2 (`n2`)",
            ),
            (
                r#"{"name": "n2", "api_url": {"hunter2": 1}}"#,
                "the `api_url` of member 2",
            ),
            (
                r#"{"name": "n2\nWARN forged hunter2"}"#,
                "the `name` of member 2",
            ),
            (r#"{"name": "n2\u2028hunter2"}"#, "the `name` of member 2"),
            (r#"{"name": {"hunter2": 1}}"#, "the `name` of member 2"),
            (r#"{"host": "hunter2"}"#, "the `name` of member 2"),
            (r#"{"name": " "}"#, "the `name` of member 2"),
            (r#"{"name": "n1"}"#, "two members named `n1`"),
            (
                &format!(r#"{{"name": "n2", "port": "{long}"}}"#),
                "the `port` of member 2",
            ),
            (
                &format!(r#"{{"name": "n2", "host": "{long}"}}"#),
                "the `host` of member 2",
            ),
            (
                &format!(r#"{{"name": "{long}"}}"#),
                "the `name` of member 2",
            ),
            (r#""hunter2""#, "not a list of members (line 1, column "),
        ] {
            let refused = Cluster::read(two(second).as_bytes()).unwrap_err();
            assert!(refused.contains(why), "{refused}");
            assert!(!refused.contains("hunter2"), "{refused}");
            assert!(refused.len() < 300 && !refused.contains('\n'));
        }
    }

    #[test]
    fn more_members_than_a_list_may_have_are_refused_even_without_an_address() {
        let of = |count: usize| {
            let members: Vec<String> = (0..count)
                .map(|n| format!(r#"{{"name": "n{n}"}}"#))
                .collect();
            Cluster::read(format!(r#"{{"members": [{}]}}"#, members.join(",")).as_bytes())
        };
        assert!(of(MOST).is_ok());
        assert!(of(MOST + 1).unwrap_err().contains("65 members"));
    }

    #[test]
    fn the_url_names_no_host() {
        let cluster = Cluster::read(br#"{"members": [{"name": "n1", "host": "a"}]}"#).unwrap();
        let addresses = cluster.addresses(&Addresses::new());
        let named = cluster.nodes("postgres://app@db1/app", &addresses);
        assert!(named.is_err());
    }
}
