//! Real poolers in front of a cluster: one program, with a database for each node.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use diesel_replicated::testing::LocalCluster;
use diesel_replicated::{Builder, NodeConfig, ReplicatedPool};

use crate::unprivileged::unprivileged;

/// How a pooler shares server connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Session,
    Transaction,
}

impl Mode {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Transaction => "transaction",
        }
    }
}

/// Where a program is that `scripts/poolers` gets.
fn program(name: &str) -> PathBuf {
    static FOUND: OnceLock<String> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/poolers");
        let output = Command::new(script).stdin(Stdio::null()).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    });
    let mut lines = found.lines().filter_map(|line| line.split_once('='));
    let path = lines
        .find(|(known, _)| *known == name)
        .map(|(_, path)| path);
    PathBuf::from(
        path.unwrap_or_else(|| panic!("`scripts/poolers` gets no {name}: run it, it says why")),
    )
}

/// A running pooler. It ends when it is dropped.
pub struct Pooler {
    child: Child,
    folder: PathBuf,
    pub port: u16,
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn start(
    program: &Path,
    kind: &str,
    arguments: &[&str],
    config: impl FnOnce(&Path, u16) -> String,
) -> Pooler {
    static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::AcqRel);
    let folder = std::env::temp_dir().join(format!("pooler-{}-{number}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    fs::write(folder.join("users"), "\"postgres\" \"\"\n\"app\" \"\"\n").unwrap();
    let file = folder.join(format!("{kind}.conf"));
    fs::write(&file, config(&folder, port)).unwrap();
    let log = fs::File::create(folder.join("out.log")).unwrap();
    let mut command = Command::new(program);
    command
        .args(arguments)
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log);
    if let Some((user, group)) = unprivileged() {
        chown(&folder, Some(user), Some(group)).unwrap();
        for entry in fs::read_dir(&folder).unwrap() {
            chown(entry.unwrap().path(), Some(user), Some(group)).unwrap();
        }
        command.uid(user).gid(group);
    }
    let mut pooler = Pooler {
        child: command.spawn().unwrap(),
        folder,
        port,
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        let ended = pooler.child.try_wait().unwrap();
        let log = fs::read_to_string(pooler.folder.join("out.log")).unwrap_or_default();
        assert!(
            ended.is_none() && Instant::now() < deadline,
            "{kind} does not start: {log}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    pooler
}

/// A PgBouncer: `pgbouncer_1_18`, which is that of Debian 12, or `pgbouncer`, the newest.
pub fn pgbouncer(name: &str, local: &LocalCluster, mode: Mode, size: u32) -> Pooler {
    let databases: Vec<String> = local
        .nodes()
        .map(|node| {
            let (name, port) = (node.name(), node.port());
            format!(
                "{name} = host=127.0.0.1 port={port} dbname=app pool_mode={} pool_size={size}",
                mode.as_str()
            )
        })
        .collect();
    let prepared = if name == "pgbouncer" {
        "max_prepared_statements=0\n"
    } else {
        ""
    };
    start(&program(name), "pgbouncer", &[], |folder, port| {
        let folder = folder.display();
        format!(
            "[databases]\n{}\n[pgbouncer]\nlisten_addr=127.0.0.1\nlisten_port={port}\nunix_socket_dir=\n\
             auth_type=trust\nauth_file={folder}/users\npidfile={folder}/pid\nmax_client_conn=500\n\
             query_wait_timeout=20\nserver_login_retry=1\nadmin_users=postgres\n{prepared}",
            databases.join("\n")
        )
    })
}

pub fn odyssey(local: &LocalCluster, mode: Mode, size: u32) -> Pooler {
    let nodes: Vec<String> = local
        .nodes()
        .map(|node| {
            let (name, port) = (node.name(), node.port());
            format!(
                "storage \"{name}\" {{\ntype \"remote\"\nhost \"127.0.0.1\"\nport {port}\n}}\n\
                 database \"{name}\" {{\nuser default {{\nauthentication \"none\"\nstorage \"{name}\"\nstorage_db \"app\"\n\
                 pool \"{}\"\npool_size {size}\npool_timeout 20000\n}}\n}}\n",
                mode.as_str()
            )
        })
        .collect();
    start(&program("odyssey"), "odyssey", &[], |folder, port| {
        let folder = folder.display();
        format!(
            "daemonize no\nworkers 1\nlog_format \"%p %t %l %c %m\\n\"\nlog_to_stdout no\nlog_file \"{folder}/odyssey.log\"\npid_file \"{folder}/pid\"\n\
             listen {{\nhost \"127.0.0.1\"\nport {port}\n}}\n{}",
            nodes.join("")
        )
    })
}

impl Pooler {
    pub fn url(&self, node: &str, parameters: &str) -> String {
        format!(
            "postgres://postgres@127.0.0.1:{}/{node}?{parameters}",
            self.port
        )
    }

    /// A builder over all nodes of the cluster through this pooler. `around`: monitors go around it.
    pub fn builder(&self, local: &LocalCluster, parameters: &str, around: bool) -> Builder {
        local
            .nodes()
            .fold(ReplicatedPool::builder(), |builder, node| {
                let mut config =
                    NodeConfig::new(self.url(node.name(), parameters)).name(node.name());
                if around {
                    config = config.monitor(node.url("app"));
                }
                if node.name() == "primary" {
                    builder.primary(config)
                } else {
                    builder.replica(config)
                }
            })
    }
}
