//! The proxies: where they are, their settings, and what starts and stops them.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use diesel_async::{AsyncConnection, AsyncPgConnection};
use diesel_replicated::testing::LocalCluster;
use rustix::process::{Pid, Signal, geteuid, kill_process};

use crate::processor;
use crate::ways::FOR_READS;

/// The names that `scripts/poolers` knows.
pub(crate) const NAMES: [&str; 5] = [
    "haproxy",
    "pgbouncer",
    "pgbouncer_1_18",
    "odyssey",
    "pgpool",
];

/// A proxy that runs. It ends when it is dropped, and with this process however that ends.
pub(crate) struct Proxy {
    pub(crate) name: &'static str,
    pub(crate) version: String,
    child: Child,
    folder: PathBuf,
    port: u16,
    /// Where it has a port of its own for replicas.
    replicas: Option<u16>,
}

/// A name, and where its program is, or why it is not there.
pub(crate) type Found = (&'static str, Result<PathBuf, String>);

/// Looks for all proxies; what is not there is fetched, if that can be.
pub(crate) fn find() -> Vec<Found> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/poolers");
    let output = Command::new(script)
        .args(NAMES)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output();
    let found = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let found = found.unwrap_or_default();
    let path = |name: &'static str| {
        let mut lines = found.lines().filter_map(|line| line.split_once('='));
        let line = lines.find(|(known, _)| *known == name);
        let reason = || format!("`scripts/poolers {name}` cannot get it here");
        (
            name,
            line.map(|(_, path)| PathBuf::from(path)).ok_or_else(reason),
        )
    };
    NAMES.map(path).to_vec()
}

impl Proxy {
    /// Starts one in front of a cluster.
    pub(crate) fn start(name: &'static str, program: &Path, cluster: &LocalCluster) -> Self {
        let folder = std::env::temp_dir().join(format!("peers-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        let [port, second] = free_ports();
        let place = Place {
            cluster,
            folder: &folder,
            port,
            second,
        };
        let (settings, arguments): (String, &[&str]) = match name {
            "haproxy" => (place.haproxy(), &["-db", "-f"]),
            "pgbouncer" => (
                place.pgbouncer("transaction", "max_prepared_statements = 200"),
                &[],
            ),
            "pgbouncer_1_18" => (place.pgbouncer("session", ""), &[]),
            "odyssey" => (place.odyssey(), &[]),
            _ => (place.pgpool(), &["-n", "-f"]),
        };
        let file = folder.join("settings");
        fs::write(&file, settings).unwrap();
        fs::write(folder.join("users"), "\"postgres\" \"\"\n").unwrap();
        let log = fs::File::create(folder.join("log")).unwrap();
        let mut command = unprivileged(program, &folder, cluster);
        command.args(arguments).arg(&file);
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let mut proxy = Self {
            name,
            version: version(name, program),
            child: command.spawn().unwrap(),
            folder,
            port,
            replicas: (name == "haproxy").then_some(second),
        };
        proxy.wait();
        proxy
    }

    /// Waits until statements get through.
    fn wait(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.ports().any(|port| !serves(port)) {
            let ended = self.child.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "{} does not serve: {}",
                self.name,
                fs::read_to_string(self.folder.join("log")).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn ports(&self) -> impl Iterator<Item = u16> {
        [Some(self.port), self.replicas].into_iter().flatten()
    }

    /// Where an application writes, and reads too if there is nothing else.
    pub(crate) fn primary(&self) -> String {
        url(self.port)
    }

    /// Where an application reads.
    pub(crate) fn replicas(&self) -> Vec<String> {
        self.replicas.map(url).into_iter().collect()
    }

    /// What it has used of the processors so far, with all its processes.
    pub(crate) fn processor(&self) -> Duration {
        processor::of_family(self.child.id())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // pgpool-II ends its processes itself, if it is asked to.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = kill_process(Pid::from_child(&self.child), Signal::INT);
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn url(port: u16) -> String {
    format!("postgres://postgres@127.0.0.1:{port}/bench")
}

/// Whether somebody answers there as a server does.
fn serves(port: u16) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let url = url(port);
    let connection = AsyncPgConnection::establish(&url);
    runtime.unwrap().block_on(connection).is_ok()
}

fn free_ports() -> [u16; 2] {
    let listen = |()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    // Both at once, so that they differ.
    [(), ()]
        .map(listen)
        .map(|listener| listener.local_addr().unwrap().port())
}

/// What starts a program as the user that the servers run as: some refuse root.
fn unprivileged(program: &Path, folder: &Path, cluster: &LocalCluster) -> Command {
    // Whatever becomes of this process, no proxy outlives it.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM"]);
    if geteuid().is_root() {
        let owner = fs::metadata(cluster.primary().data_dir()).unwrap();
        let (user, group) = (owner.uid(), owner.gid());
        command.arg(format!("--reuid={user}"));
        command.arg(format!("--regid={group}"));
        command.arg("--clear-groups");
        chown(folder, Some(user), Some(group)).unwrap();
        for entry in fs::read_dir(folder).unwrap() {
            chown(entry.unwrap().path(), Some(user), Some(group)).unwrap();
        }
    }
    command
        .arg(program)
        .current_dir(folder)
        .stdin(Stdio::null());
    command
}

/// What a program says of itself.
fn version(name: &str, program: &Path) -> String {
    let option = if name == "haproxy" { "-v" } else { "--version" };
    let output = Command::new(program).arg(option).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let number = said
        .split_whitespace()
        .find(|word| word.starts_with(|sign: char| sign.is_ascii_digit()));
    let number = number.unwrap_or("of unknown version");
    let words = match name {
        "haproxy" => "HAProxy",
        "odyssey" => "Odyssey",
        "pgpool" => "pgpool-II",
        _ => "PgBouncer",
    };
    format!("{words} {number}")
}

/// What settings depend on.
struct Place<'a> {
    cluster: &'a LocalCluster,
    folder: &'a Path,
    port: u16,
    second: u16,
}

impl Place<'_> {
    // As many threads as cores, which is its default. The check says no goodbye, which servers log, but not below their
    // level of warnings (https://github.com/haproxy/haproxy/issues/70).
    fn haproxy(&self) -> String {
        let replicas: Vec<String> = self
            .cluster
            .replicas()
            .iter()
            .map(|node| format!("  server {} 127.0.0.1:{} check\n", node.name(), node.port()))
            .collect();
        format!(
            "global\n  maxconn 500\n\
             defaults\n  mode tcp\n  timeout connect 2s\n  timeout client 30m\n  timeout server 30m\n\
             listen primary\n  bind 127.0.0.1:{}\n  server primary 127.0.0.1:{}\n\
             listen replicas\n  bind 127.0.0.1:{}\n  balance leastconn\n  \
             option pgsql-check user postgres\n{}",
            self.port,
            self.cluster.primary().port(),
            self.second,
            replicas.concat()
        )
    }

    // tokio-postgres prepares each statement: https://github.com/pgbouncer/pgbouncer/issues/1067.
    fn pgbouncer(&self, mode: &str, more: &str) -> String {
        let folder = self.folder.display();
        format!(
            "[databases]\nbench = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {}\n\
             unix_socket_dir =\nauth_type = trust\nauth_file = {folder}/users\npool_mode = {mode}\n\
             default_pool_size = {FOR_READS}\nmax_client_conn = 200\n{more}\n",
            self.cluster.primary().port(),
            self.port
        )
    }

    // More workers than cores slow it down: https://github.com/yandex/odyssey/issues/405.
    fn odyssey(&self) -> String {
        let folder = self.folder.display();
        format!(
            "daemonize no\nworkers 1\nnodelay yes\nlog_format \"%p %t %l %c %m\\n\"\nlog_to_stdout no\n\
             log_file \"{folder}/odyssey.log\"\npid_file \"{folder}/pid\"\n\
             listen {{\nhost \"127.0.0.1\"\nport {}\n}}\n\
             storage \"primary\" {{\ntype \"remote\"\nhost \"127.0.0.1\"\nport {}\n}}\n\
             database \"bench\" {{\nuser default {{\nauthentication \"none\"\nstorage \"primary\"\n\
             pool \"transaction\"\npool_size {FOR_READS}\npool_discard no\n\
             pool_reserve_prepared_statement yes\n}}\n}}\n",
            self.port,
            self.cluster.primary().port()
        )
    }

    // It asks all servers about each statement, also those of weight 0 (https://github.com/pgpool/pgpool2/issues/130), and
    // reads what was just written on a standby (https://github.com/pgpool/pgpool2/issues/119): as it comes, that stays so.
    fn pgpool(&self) -> String {
        let folder = self.folder.display();
        let nodes = self.cluster.nodes().enumerate().map(|(place, node)| {
            // Reads go to the replicas alone.
            let weight = usize::from(place > 0);
            format!(
                "backend_hostname{place} = '127.0.0.1'\nbackend_port{place} = {}\nbackend_weight{place} = {weight}\n\
                 backend_flag{place} = 'DISALLOW_TO_FAILOVER'\n",
                node.port()
            )
        });
        let nodes: Vec<String> = nodes.collect();
        format!(
            "backend_clustering_mode = 'streaming_replication'\nlisten_addresses = '127.0.0.1'\nport = {}\n\
             pcp_listen_addresses = '127.0.0.1'\npcp_port = {}\nunix_socket_directories = '{folder}'\n\
             pcp_socket_dir = '{folder}'\nwork_dir = '{folder}'\npid_file_name = '{folder}/pid'\n\
             load_balance_mode = on\nsr_check_user = 'postgres'\nsr_check_database = 'postgres'\n\
             enable_pool_hba = off\nnum_init_children = {}\nmax_pool = 1\nchild_life_time = 0\n\
             log_min_messages = 'warning'\n{}",
            self.port,
            self.second,
            FOR_READS + 4,
            nodes.concat()
        )
    }
}
