//! A Patroni cluster: etcd, and for each of three nodes an agent that runs a server.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::unprivileged::unprivileged;

/// How long a cluster may take to become what is waited for.
const PATIENCE: Duration = Duration::from_secs(120);

/// Where a program is, as `scripts/orchestrators` says.
fn program(name: &str) -> PathBuf {
    let known = std::env::var("DIESEL_REPLICATED_ORCHESTRATORS")
        .unwrap_or_else(|_| panic!("run this by `scripts/orchestrators`"));
    let mut lines = known.lines().filter_map(|line| line.split_once('='));
    let found = lines.find(|(known, _)| *known == name);
    let path = found
        .unwrap_or_else(|| panic!("`scripts/orchestrators --get` gets no {name}"))
        .1;
    PathBuf::from(path)
}

/// The folder of PostgreSQL's programs.
fn postgres() -> String {
    std::env::var("DIESEL_REPLICATED_PG_BIN")
        .unwrap_or_else(|_| panic!("run this by `scripts/orchestrators`"))
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// A program of the cluster. It ends when it is dropped.
struct Process(Child);

impl Process {
    fn start(program: &Path, arguments: &[&str], folder: &Path, log: &str) -> Self {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(folder.join(log))
            .unwrap();
        // Whatever becomes of this program, nothing of the cluster outlives it.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM"]);
        if let Some((user, group)) = unprivileged() {
            command.arg(format!("--reuid={user}"));
            command.arg(format!("--regid={group}"));
            command.arg("--clear-groups");
        }
        command
            .arg(program)
            .args(arguments)
            .current_dir(folder)
            .env("HOME", folder)
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        Self(command.spawn().unwrap())
    }

    fn signal(&self, signal: Signal) {
        let _ = kill_process(Pid::from_child(&self.0), signal);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::CONT);
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One member: its server, its agent, and where they listen.
pub struct Member {
    pub name: String,
    pub port: u16,
    pub rest: u16,
    agent: Option<Process>,
}

pub struct Cluster {
    pub members: Vec<Member>,
    version: String,
    folder: PathBuf,
    store: Process,
    store_port: u16,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for member in &mut self.members {
            member.agent = None;
        }
        self.store.signal(Signal::CONT);
        for place in 0..self.members.len() {
            self.signal_server(place, Signal::CONT);
            self.signal_server(place, Signal::KILL);
        }
        if std::thread::panicking() {
            let kept = self.folder.display();
            println!("the logs are in {kept}");
        } else {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

impl Cluster {
    /// Starts three members under this version (`patroni_3`, `patroni_4`), and waits until all stream.
    pub fn start(version: &str) -> Self {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::AcqRel);
        let folder = std::env::temp_dir().join(format!("patroni-{}-{number}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        own(&folder);
        let (client, peer) = (free_port(), free_port());
        let of = |port: u16| format!("http://127.0.0.1:{port}");
        let data = folder.join("etcd").display().to_string();
        let (client_url, peer_url) = (of(client), of(peer));
        let initial = format!("default={peer_url}");
        let arguments = [
            "--data-dir",
            &data,
            "--listen-client-urls",
            &client_url,
            "--advertise-client-urls",
            &client_url,
            "--listen-peer-urls",
            &peer_url,
            "--initial-advertise-peer-urls",
            &peer_url,
            "--initial-cluster",
            &initial,
            "--unsafe-no-fsync",
        ];
        let store = Process::start(&program("etcd"), &arguments, &folder, "etcd.log");
        let mut cluster = Self {
            members: Vec::new(),
            version: version.to_owned(),
            folder,
            store,
            store_port: client,
        };
        for _ in 0..3 {
            cluster.add_member();
        }
        cluster.wait_whole(3);
        cluster
    }

    /// Adds another member. It makes itself a copy of the leader.
    pub fn add_member(&mut self) {
        let name = format!("n{}", self.members.len() + 1);
        let member = Member {
            port: free_port(),
            rest: free_port(),
            agent: None,
            name,
        };
        let file = self.folder.join(format!("{}.json", member.name));
        // JSON is YAML, too.
        fs::write(&file, self.configuration(&member).to_string()).unwrap();
        self.members.push(member);
        self.start_agent(self.members.len() - 1);
    }

    fn configuration(&self, member: &Member) -> Value {
        let rest = format!("127.0.0.1:{}", member.rest);
        let listen = format!("127.0.0.1:{}", member.port);
        let folder = self.folder.display();
        let user = |name: &str| json!({ "username": name, "password": "hunter2" });
        json!({
            "scope": "ops",
            "namespace": "/db/",
            "name": member.name,
            "restapi": { "listen": rest, "connect_address": rest },
            "etcd3": { "hosts": [format!("127.0.0.1:{}", self.store_port)] },
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
                "data_dir": format!("{folder}/{}", member.name),
                "bin_dir": postgres(),
                "pgpass": format!("{folder}/{}.pgpass", member.name),
                "pg_hba": [
                    "local all all trust",
                    "host all all 127.0.0.1/32 trust",
                    "host replication all 127.0.0.1/32 trust",
                ],
                "authentication": {
                    "replication": user("repl"), "superuser": user("postgres"), "rewind": user("rew"),
                },
                "parameters": { "unix_socket_directories": self.folder, "fsync": "off" },
            },
        })
    }

    pub fn start_agent(&mut self, place: usize) {
        let member = &self.members[place];
        let file = self.folder.join(format!("{}.json", member.name));
        let arguments = [file.to_str().unwrap()];
        let log = format!("{}.log", member.name);
        let agent = Process::start(&program(&self.version), &arguments, &self.folder, &log);
        self.members[place].agent = Some(agent);
    }

    /// Takes a member out: its agent, and then its server.
    pub fn remove_member(&mut self, place: usize) {
        self.kill_agent(place);
        self.signal_server(place, Signal::INT);
    }

    pub fn kill_agent(&mut self, place: usize) {
        self.members[place].agent = None;
    }

    pub fn signal_agent(&self, place: usize, signal: Signal) {
        self.members[place].agent.as_ref().unwrap().signal(signal);
    }

    pub fn signal_store(&self, signal: Signal) {
        self.store.signal(signal);
    }

    fn postmaster(&self, place: usize) -> Option<Pid> {
        let file = self
            .folder
            .join(&self.members[place].name)
            .join("postmaster.pid");
        let text = fs::read_to_string(file).ok()?;
        Pid::from_raw(text.lines().next()?.trim().parse().ok()?)
    }

    /// Sends a signal to the postmaster of a member; `STOP`, `CONT` and `KILL` to all of its processes.
    pub fn signal_server(&self, place: usize, signal: Signal) {
        let Some(postmaster) = self.postmaster(place) else {
            return;
        };
        let all = [Signal::STOP, Signal::CONT, Signal::KILL].contains(&signal);
        let children = if all {
            children(postmaster)
        } else {
            Vec::new()
        };
        // Another process may have the number of one that has ended.
        let of_server = |pid: &Pid| {
            let name = fs::read_to_string(format!("/proc/{}/comm", pid.as_raw_nonzero()));
            name.is_ok_and(|name| name.trim() == "postgres")
        };
        for pid in std::iter::once(postmaster)
            .chain(children)
            .filter(of_server)
        {
            let _ = kill_process(pid, signal);
        }
    }

    /// Stops the postmaster, and none of the processes that serve those who are connected.
    pub fn freeze_postmaster(&self, place: usize) {
        let postmaster = self.postmaster(place).unwrap();
        kill_process(postmaster, Signal::STOP).unwrap();
    }

    /// The place of the leader.
    pub fn leader(&self) -> usize {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(leader) = self.found_leader() {
                return leader;
            }
            assert!(Instant::now() < deadline, "no leader: {:?}", self.view());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn found_leader(&self) -> Option<usize> {
        let view = self.view()?;
        let name = view.iter().find(|(_, (role, _))| role == "leader")?.0;
        self.members.iter().position(|member| member.name == *name)
    }

    /// Waits for another leader than this one.
    pub fn wait_other_leader(&self, before: usize) -> usize {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let leader = self.leader();
            if leader != before {
                return leader;
            }
            assert!(
                Instant::now() < deadline,
                "the leader stays: {:?}",
                self.view()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Role and state of each member, as a member tells that can.
    fn view(&self) -> Option<BTreeMap<String, (String, String)>> {
        let answers = self.members.iter().filter(|member| member.agent.is_some());
        let mut answers = answers.filter_map(|member| {
            let answer = rest(member.rest, "GET", "/cluster", None)?;
            let members = answer.get("members")?.as_array()?.clone();
            let text = |member: &Value, field: &str| {
                member
                    .get(field)
                    .and_then(Value::as_str)
                    .unwrap_or_default()
                    .to_owned()
            };
            let view = members.iter().map(|member| {
                let said = (text(member, "role"), text(member, "state"));
                (text(member, "name"), said)
            });
            Some(view.collect())
        });
        answers.next()
    }

    /// Waits until there are so many members, one of which leads and the others of which stream from it.
    pub fn wait_whole(&self, members: usize) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let view = self.view().unwrap_or_default();
            // Of version 3 a replica that streams is `running`.
            let well = view
                .values()
                .all(|(_, state)| state == "streaming" || state == "running");
            let leaders = view.values().filter(|(role, _)| role == "leader").count();
            if view.len() == members && well && leaders == 1 && self.standbys() == members - 1 {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "not whole: {view:?}; {}",
                self.folder.display()
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// How many standbys the leader sends to.
    fn standbys(&self) -> usize {
        let Some(leader) = self.found_leader() else {
            return 0;
        };
        let query = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
        self.sql(leader, "postgres", query)
            .and_then(|count| count.parse().ok())
            .unwrap_or(0)
    }

    /// The first value that a query of a member returns.
    pub fn sql(&self, place: usize, database: &str, query: &str) -> Option<String> {
        let psql = Path::new(&postgres()).join("psql");
        let url = format!(
            "postgres://postgres@127.0.0.1:{}/{database}",
            self.members[place].port
        );
        let output = Command::new(psql)
            .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-c", query, &url])
            .env("PGCONNECT_TIMEOUT", "2")
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        output.status.success().then(|| text.trim().to_owned())
    }

    /// Asks an agent to do something.
    pub fn order(&self, place: usize, method: &str, path: &str, body: &Value) {
        let answer = rest(self.members[place].rest, method, path, Some(body));
        assert!(answer.is_some(), "{method} {path} is refused");
    }

    pub fn switchover(&self) -> usize {
        let leader = self.leader();
        let candidate = (leader + 1) % 3;
        let name = |place: usize| self.members[place].name.clone();
        let body = json!({ "leader": name(leader), "candidate": name(candidate) });
        self.order(leader, "POST", "/switchover", &body);
        candidate
    }
}

fn own(path: &Path) {
    if let Some((user, group)) = unprivileged() {
        chown(path, Some(user), Some(group)).unwrap();
    }
}

fn children(parent: Pid) -> Vec<Pid> {
    let number = parent.as_raw_nonzero();
    let file = format!("/proc/{number}/task/{number}/children");
    let text = fs::read_to_string(file).unwrap_or_default();
    text.split_whitespace()
        .filter_map(|pid| Pid::from_raw(pid.parse().ok()?))
        .collect()
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

/// HAProxy with Patroni's health checks: the port of the primary, and that of the replicas.
pub struct Balancer {
    pub primary: u16,
    pub replicas: u16,
    _process: Process,
}

impl Balancer {
    pub fn start(cluster: &Cluster) -> Self {
        let (primary, replicas) = (free_port(), free_port());
        let listen = |name: &str, port: u16, check: &str| {
            let servers: Vec<String> = cluster
                .members
                .iter()
                .map(|m| {
                    format!(
                        "  server {} 127.0.0.1:{} check port {}\n",
                        m.name, m.port, m.rest
                    )
                })
                .collect();
            format!(
                "listen {name}\n  bind 127.0.0.1:{port}\n  balance roundrobin\n  option httpchk OPTIONS /{check}\n  \
                 http-check expect status 200\n  \
                 default-server inter 1s fall 2 rise 1 on-marked-down shutdown-sessions\n{}",
                servers.concat()
            )
        };
        let text = format!(
            "global\n  maxconn 500\ndefaults\n  mode tcp\n  timeout connect 2s\n  timeout client 30m\n  \
             timeout server 30m\n  timeout check 2s\n{}{}",
            listen("primary", primary, "primary"),
            listen("replicas", replicas, "replica")
        );
        let file = cluster.folder.join("haproxy.cfg");
        fs::write(&file, text).unwrap();
        let arguments = ["-db", "-f", file.to_str().unwrap()];
        let process = Process::start(
            &program("haproxy"),
            &arguments,
            &cluster.folder,
            "haproxy.log",
        );
        Self {
            primary,
            replicas,
            _process: process,
        }
    }
}
