//! Patroni, with etcd.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::time::Duration;

use diesel_replicated::{Builder, ReplicatedPool, discovery};
use serde_json::{Value, json};

use crate::balancer::Balancer;
use crate::cluster::{Cluster, Member, Orchestrator, Said, View};
use crate::process::{Process, command, free_port, postgres, program};

pub struct Patroni {
    version: String,
    etcd: Process,
    etcd_port: u16,
}

impl Orchestrator for Patroni {
    /// `patroni_3`, `patroni_4`.
    fn start(version: &str, folder: &Path) -> Self {
        let (client, peer) = (free_port(), free_port());
        let of = |port: u16| format!("http://127.0.0.1:{port}");
        let (client_url, peer_url) = (of(client), of(peer));
        let mut etcd = command(&program("etcd"), folder);
        etcd.arg("--data-dir").arg(folder.join("etcd"));
        etcd.args(["--listen-client-urls", &client_url])
            .args(["--advertise-client-urls", &client_url])
            .args(["--listen-peer-urls", &peer_url])
            .args(["--initial-advertise-peer-urls", &peer_url])
            .args(["--initial-cluster", &format!("default={peer_url}")])
            .arg("--unsafe-no-fsync");
        Self {
            version: version.to_owned(),
            etcd: Process::start(&mut etcd, &folder.join("etcd.log")),
            etcd_port: client,
        }
    }

    fn store(&self) -> &Process {
        &self.etcd
    }

    fn start_agent(&self, member: &Member, folder: &Path) -> Process {
        let file = folder.join(format!("{}.json", member.name));
        // JSON is YAML, too.
        fs::write(&file, self.configuration(member, folder).to_string()).unwrap();
        let mut patroni = command(&program(&self.version), folder);
        patroni.arg(file);
        Process::start(&mut patroni, &folder.join(format!("{}.log", member.name)))
    }

    fn view(&self, members: &[Member]) -> Option<View> {
        let answers = members.iter().filter(|member| member.has_agent());
        answers
            .filter_map(|member| viewed(&rest(member.rest, "GET", "/cluster", None)?))
            .next()
    }

    fn switchover(&self, members: &[Member], leader: usize, _folder: &Path) {
        let candidate = &members[(leader + 1) % 3].name;
        let body = json!({ "leader": members[leader].name, "candidate": candidate });
        order(&members[leader], "POST", "/switchover", &body);
    }

    fn pool(members: &[Member]) -> Builder {
        let endpoints = members
            .iter()
            .map(|m| format!("http://127.0.0.1:{}", m.rest));
        let members = discovery::Patroni::new(endpoints, "postgres://postgres@/app");
        ReplicatedPool::builder().discovery(members)
    }

    fn balancer(members: &[Member], folder: &Path) -> Option<Balancer> {
        Some(Balancer::start(members, ["/primary", "/replica"], folder))
    }
}

impl Patroni {
    fn configuration(&self, member: &Member, folder: &Path) -> Value {
        let rest = format!("127.0.0.1:{}", member.rest);
        let listen = format!("127.0.0.1:{}", member.port);
        let user = |name: &str| json!({ "username": name, "password": "hunter2" });
        json!({
            "scope": "ops",
            "namespace": "/db/",
            "name": member.name,
            "restapi": { "listen": rest, "connect_address": rest },
            "etcd3": { "hosts": [format!("127.0.0.1:{}", self.etcd_port)] },
            "bootstrap": {
                "dcs": {
                    "ttl": 20,
                    "loop_wait": 5,
                    "retry_timeout": 5,
                    "maximum_lag_on_failover": 1_048_576,
                    "postgresql": {
                        "use_pg_rewind": true,
                        "use_slots": true,
                        "parameters": {
                            "max_connections": 100, "wal_keep_size": "256MB", "wal_log_hints": "on",
                            "hot_standby": "on", "max_wal_senders": 10, "max_replication_slots": 10,
                            "shared_buffers": "32MB", "wal_level": "replica",
                            // What was acknowledged is on two servers, so that none of it may be missing.
                            "synchronous_standby_names": "ANY 1 (*)",
                            "wal_retrieve_retry_interval": "500ms",
                        },
                    },
                },
                "initdb": [{ "encoding": "UTF8" }, "data-checksums", { "auth": "trust" }],
            },
            "postgresql": {
                "listen": listen,
                "connect_address": listen,
                "data_dir": folder.join(&member.name),
                "bin_dir": postgres(),
                "pgpass": folder.join(format!("{}.pgpass", member.name)),
                "pg_hba": [
                    "local all all trust",
                    "host all all 127.0.0.1/32 trust",
                    "host replication all 127.0.0.1/32 trust",
                ],
                "authentication": {
                    "replication": user("repl"), "superuser": user("postgres"), "rewind": user("rew"),
                },
                "parameters": { "unix_socket_directories": folder },
            },
        })
    }
}

impl Cluster<Patroni> {
    /// Asks an agent to do something.
    pub fn order(&self, place: usize, method: &str, path: &str, body: &Value) {
        order(&self.members[place], method, path, body);
    }
}

fn order(member: &Member, method: &str, path: &str, body: &Value) {
    let answer = rest(member.rest, method, path, Some(body));
    assert!(answer.is_some(), "{method} {path} is refused");
}

/// What an agent tells of the members.
fn viewed(answer: &Value) -> Option<View> {
    let members = answer.get("members")?.as_array()?;
    let text = |member: &Value, field: &str| {
        let text = member.get(field).and_then(Value::as_str);
        text.unwrap_or_default().to_owned()
    };
    let view = members.iter().map(|member| {
        let state = text(member, "state");
        let said = Said {
            leads: text(member, "role") == "leader",
            // Of version 3 a replica that streams is `running`.
            is_well: state == "streaming" || state == "running",
            state,
        };
        (text(member, "name"), said)
    });
    Some(view.collect())
}

/// A request to an agent. `None` if it is not done. The answer is JSON, or `null` for a text.
fn rest(port: u16, method: &str, path: &str, body: Option<&Value>) -> Option<Value> {
    let address = (Ipv4Addr::LOCALHOST, port).into();
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .ok()?;
    let body = body.map(Value::to_string).unwrap_or_default();
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let done = head.split(' ').nth(1)?.starts_with('2');
    done.then(|| serde_json::from_str(body).unwrap_or(Value::Null))
}
