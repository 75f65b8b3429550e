//! The programs of a cluster: where they are, who they run as, and what ends with them.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Deref;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::unprivileged::unprivileged;

/// Where a program is, as `scripts/orchestrators` says.
pub fn program(name: &str) -> PathBuf {
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
pub fn postgres() -> String {
    std::env::var("DIESEL_REPLICATED_PG_BIN")
        .unwrap_or_else(|_| panic!("run this by `scripts/orchestrators`"))
}

pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// The folder of a cluster, of the user that its programs run as. It is kept if the test fails.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(name: &str) -> Self {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::AcqRel);
        let folder = std::env::temp_dir().join(format!("{name}-{}-{number}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        if let Some((user, group)) = unprivileged() {
            chown(&folder, Some(user), Some(group)).unwrap();
        }
        Self(folder)
    }
}

impl Deref for Folder {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("the logs are in {}", self.0.display());
        } else {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// What runs a program in a folder, as the user that servers run as.
pub fn command(program: &Path, folder: &Path) -> Command {
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
        .current_dir(folder)
        .env("HOME", folder)
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null());
    command
}

/// A program of the cluster, with all that it started, but servers. They end when it is dropped.
pub struct Process {
    child: Child,
    with_servers: bool,
}

impl Process {
    /// Starts what says what it does in a file.
    pub fn start(command: &mut Command, log: &Path) -> Self {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(log)
            .unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        Self {
            child: command.spawn().unwrap(),
            with_servers: false,
        }
    }

    /// The servers that it started are part of it, too.
    pub fn with_servers(mut self) -> Self {
        self.with_servers = true;
        self
    }

    pub fn signal(&self, signal: Signal) {
        for pid in family(Pid::from_child(&self.child), self.with_servers) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Whether it ends well within this time.
    pub fn ends_well(mut self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.success();
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        false
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The number of one that has ended may be another's.
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        // First it stands still, so that it starts nothing more.
        self.signal(Signal::STOP);
        self.signal(Signal::KILL);
        let _ = self.child.wait();
    }
}

/// A process, and those that it started. Servers are left out, unless they are asked for.
pub fn family(parent: Pid, with_servers: bool) -> Vec<Pid> {
    let mut found = vec![parent];
    let mut next = 0;
    while let Some(pid) = found.get(next) {
        let children = children(*pid).into_iter();
        found.extend(children.filter(|pid| with_servers || !is_server(*pid)));
        next += 1;
    }
    found
}

fn children(parent: Pid) -> Vec<Pid> {
    let number = parent.as_raw_nonzero();
    let file = format!("/proc/{number}/task/{number}/children");
    let text = fs::read_to_string(file).unwrap_or_default();
    text.split_whitespace()
        .filter_map(|pid| Pid::from_raw(pid.parse().ok()?))
        .collect()
}

/// Whether it is a process of PostgreSQL.
pub fn is_server(pid: Pid) -> bool {
    let name = fs::read_to_string(format!("/proc/{}/comm", pid.as_raw_nonzero()));
    name.is_ok_and(|name| name.trim() == "postgres")
}
