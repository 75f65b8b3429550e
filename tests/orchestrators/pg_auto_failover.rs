//! `pg_auto_failover`, with its monitor.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use diesel_replicated::config::NodeConfig;
use diesel_replicated::{Builder, ReplicatedPool};

use crate::balancer::Balancer;
use crate::cluster::{Cluster, Member, Orchestrator, Said, View, sql};
use crate::process::{Process, command, free_port, program};

/// How long an order to an agent may take. `pg_autoctl` itself waits for a minute.
const PATIENCE: Duration = Duration::from_secs(90);

pub struct AutoFailover {
    monitor: Process,
    url: String,
}

impl Orchestrator for AutoFailover {
    fn start(_version: &str, folder: &Path) -> Self {
        let port = free_port();
        let mut create = create(folder, "monitor", "monitor", port);
        done(&mut create, folder, "monitor");
        // Else it listens wherever it can.
        let mut listen = autoctl(folder, &["config", "set"], "monitor");
        listen.args(["postgresql.listen_addresses", "127.0.0.1"]);
        done(&mut listen, folder, "monitor");
        let mut run = autoctl(folder, &["run"], "monitor");
        let monitor = Process::start(&mut run, &folder.join("monitor.log")).with_servers();
        let url = format!("postgres://autoctl_node@127.0.0.1:{port}/pg_auto_failover");
        let deadline = Instant::now() + PATIENCE;
        while sql(&url, "SELECT 1").is_none() {
            assert!(
                Instant::now() < deadline,
                "no monitor: {}",
                folder.display()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        Self { monitor, url }
    }

    fn store(&self) -> &Process {
        &self.monitor
    }

    fn start_agent(&self, member: &Member, folder: &Path) -> Process {
        let log = folder.join(format!("{}.log", member.name));
        if folder.join(&member.name).exists() {
            return Process::start(&mut autoctl(folder, &["run"], &member.name), &log);
        }
        let mut create = create(folder, "postgres", &member.name, member.port);
        create
            .args(["--name", &member.name, "--listen", "127.0.0.1"])
            .args(["--username", "postgres", "--dbname", "postgres"])
            .args(["--monitor", &self.url, "--run"]);
        Process::start(&mut create, &log)
    }

    fn view(&self, _members: &[Member]) -> Option<View> {
        let query = "SELECT nodename, reportedstate, goalstate FROM pgautofailover.node";
        let text = sql(&self.url, query)?;
        let view = text.lines().map(|line| {
            let mut fields = line.split('|');
            let mut next = || fields.next().unwrap_or_default();
            let (name, state, goal) = (next(), next(), next());
            let leads = state == goal && ["single", "wait_primary", "primary"].contains(&state);
            let said = Said {
                leads,
                is_well: state == goal && ["primary", "secondary"].contains(&state),
                state: state.to_owned(),
            };
            (name.to_owned(), said)
        });
        Some(view.collect())
    }

    fn switchover(&self, members: &[Member], leader: usize, folder: &Path) {
        order(&members[leader], &["perform", "switchover"], folder);
    }

    /// Its documentation lets clients know all nodes, in a fixed list.
    fn pool(members: &[Member]) -> Builder {
        members
            .iter()
            .fold(ReplicatedPool::builder(), |builder, m| {
                let url = format!("postgres://postgres@127.0.0.1:{}/app", m.port);
                builder.node(NodeConfig::new(url).name(&m.name))
            })
    }

    /// Its agents have no API for health checks.
    fn balancer(_members: &[Member], _folder: &Path) -> Option<Balancer> {
        None
    }
}

impl Cluster<AutoFailover> {
    /// Lets the agent of a member do something.
    pub fn order(&self, place: usize, order: &[&str]) {
        self::order(&self.members[place], order, &self.folder);
    }
}

fn order(member: &Member, order: &[&str], folder: &Path) {
    done(&mut autoctl(folder, order, &member.name), folder, "orders");
}

/// Does something for one node, whose data are in a folder of its name.
fn autoctl(folder: &Path, order: &[&str], name: &str) -> Command {
    let mut command = command(&program("autofailover"), folder);
    command
        .args(order)
        .arg("--pgdata")
        .arg(folder.join(name))
        .env("XDG_RUNTIME_DIR", folder.join("run"))
        .env("XDG_CONFIG_HOME", folder.join("config"))
        .env("XDG_DATA_HOME", folder.join("data"))
        // The agent's servers listen there, and it looks for them there.
        .env("PG_REGRESS_SOCK_DIR", folder)
        .env("PGHOST", folder);
    command
}

/// Makes a node that listens on this port.
fn create(folder: &Path, kind: &str, name: &str, port: u16) -> Command {
    let mut create = autoctl(folder, &["create", kind], name);
    create
        .arg("--pgctl")
        .arg(program("autofailover_bin").join("pg_ctl"))
        .args(["--hostname", "127.0.0.1", "--pgport", &port.to_string()])
        .args(["--auth", "trust", "--no-ssl"]);
    create
}

/// Runs what ends by itself.
fn done(command: &mut Command, folder: &Path, log: &str) {
    let log = folder.join(format!("{log}.log"));
    let done = Process::start(command, &log)
        .with_servers()
        .ends_well(PATIENCE);
    assert!(done, "{command:?} has failed: {}", log.display());
}
