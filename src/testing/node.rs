//! One server of a local cluster, and what can be done to it.

use std::fmt;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, MutexGuard};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::certificates::Certificate;
use super::error::{ClusterError, io};
use super::ports::free_port;
use super::privileges::Privileges;
use super::processes::children_of;
use super::proxy::Proxy;
use super::sql::Rows;
use super::{Binaries, sql, wait_for};

/// How [`LocalNode::stop`] stops a server; see
/// [Shutting Down the Server](https://www.postgresql.org/docs/current/server-shutdown.html).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Waits for clients to leave.
    Smart,
    /// Ends the clients' sessions, then shuts down.
    Fast,
    /// Ends everything at once, as a crash would, but for the message to the clients.
    Immediate,
}

/// What nodes of one cluster have in common.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) binaries: Binaries,
    pub(super) privileges: Privileges,
}

/// One server.
pub struct LocalNode {
    name: String,
    data: PathBuf,
    port: AtomicU16,
    host: Arc<Host>,
    process: Mutex<Option<Child>>,
    proxy: OnceLock<Proxy>,
}

impl LocalNode {
    pub(super) fn new(name: &str, data: PathBuf, host: Arc<Host>) -> Result<Self, ClusterError> {
        Ok(Self {
            name: name.to_owned(),
            data,
            port: AtomicU16::new(free_port()?),
            host,
            process: Mutex::new(None),
            proxy: OnceLock::new(),
        })
    }

    /// Its name, which is also its `cluster_name`: `primary`, `replica-1`, `replica-2`, …
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its port on 127.0.0.1; it stays the same over restarts.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.load(Ordering::Acquire)
    }

    /// Its folder.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data
    }

    /// A URL to it, for the superuser `postgres`, who needs no password.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port())
    }

    /// A URL to the [`Proxy`] in front of it.
    ///
    /// # Errors
    ///
    /// There is no port for the proxy.
    pub fn proxied_url(&self, database: &str) -> Result<String, ClusterError> {
        let port = self.proxy()?.port();
        Ok(format!("postgres://postgres@127.0.0.1:{port}/{database}"))
    }

    /// A proxy in front of it, started at the first use, by which its network can be made to fail.
    ///
    /// # Errors
    ///
    /// There is no port for the proxy.
    pub fn proxy(&self) -> Result<&Proxy, ClusterError> {
        if let Some(proxy) = self.proxy.get() {
            return Ok(proxy);
        }
        let proxy = Proxy::start(self.port())?;
        Ok(self.proxy.get_or_init(|| proxy))
    }

    /// Runs a query as superuser, on a connection of its own; several statements are allowed.
    ///
    /// # Errors
    ///
    /// The node cannot be reached or the statement fails.
    pub fn sql(&self, database: &str, query: &str) -> Result<Rows, ClusterError> {
        sql::run(&self.name, &self.url(database), query)
    }

    /// What its server has logged.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.data.with_extension("log")
    }

    /// Whether its process is there; a frozen one is.
    #[must_use]
    pub fn is_running(&self) -> bool {
        let mut process = self.process();
        match process.as_mut().map(Child::try_wait) {
            Some(Ok(None)) => true,
            _ => {
                *process = None;
                false
            }
        }
    }

    /// Starts it and waits until it answers. Nothing happens if it is running.
    ///
    /// # Errors
    ///
    /// It does not start; the error holds the end of its log.
    pub fn start(&self) -> Result<(), ClusterError> {
        if self.is_running() {
            return Ok(());
        }
        self.spawn()?;
        self.wait_until_up()
    }

    pub(super) fn spawn(&self) -> Result<(), ClusterError> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .map_err(io("cannot open the server's log"))?;
        let errors = log
            .try_clone()
            .map_err(io("cannot open the server's log"))?;
        let binaries = &self.host.binaries;
        let mut command = Command::new(binaries.program("postgres"));
        command
            .arg("-D")
            .arg(&self.data)
            .args(["-p", &self.port().to_string()])
            .current_dir(&self.data)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            // A Ctrl-C in the terminal is for the application, which then stops its servers. And
            // the whole server can be reached by its group.
            .process_group(0);
        self.host.privileges.apply(&mut command);
        let child = command.spawn().map_err(io("cannot run `postgres`"))?;
        *self.process() = Some(child);
        Ok(())
    }

    pub(super) fn wait_until_up(&self) -> Result<(), ClusterError> {
        wait_for(&format!("node `{}` answers", self.name), || {
            if self.met_its_own_past() {
                self.spawn()?;
                return Ok(None);
            }
            if !self.is_running() {
                return Err(ClusterError::NotStarted {
                    node: self.name.clone(),
                    log: tail(&self.log()),
                });
            }
            // A server that cannot be reached yet is not an error here.
            Ok(self.sql("postgres", "SELECT 1").ok().map(|_| ()))
        })
    }

    /// Whether its server gave up because processes of the one that was killed before were still there: they end
    /// by themselves when they see that.
    fn met_its_own_past(&self) -> bool {
        let last = |log: &str| {
            let fatal = log.lines().rev().find(|line| line.contains(" FATAL: "));
            fatal.is_some_and(|line| line.contains("pre-existing shared memory block"))
        };
        !self.is_running() && last(&self.log())
    }

    /// Whether its server gave up because something else has its port.
    pub(super) fn lost_its_port(&self) -> bool {
        !self.is_running() && self.log().contains("could not bind")
    }

    pub(super) fn change_port(&self) -> Result<(), ClusterError> {
        self.port.store(free_port()?, Ordering::Release);
        Ok(())
    }

    /// Stops it and waits until it has ended.
    ///
    /// # Errors
    ///
    /// It does not end, for example because of clients that stay ([`StopMode::Smart`]).
    pub fn stop(&self, mode: StopMode) -> Result<(), ClusterError> {
        let signal = match mode {
            StopMode::Smart => Signal::TERM,
            StopMode::Fast => Signal::INT,
            StopMode::Immediate => Signal::QUIT,
        };
        if let Some(pid) = self.pid() {
            let _ = kill_process(pid, signal);
        }
        self.wait_until_ended()
    }

    /// Kills it and all its processes at once, as a power failure would.
    ///
    /// # Errors
    ///
    /// It does not end.
    pub fn kill(&self) -> Result<(), ClusterError> {
        self.signal_all(Signal::KILL);
        self.wait_until_ended()
    }

    /// Stops it fast, and starts it again.
    ///
    /// # Errors
    ///
    /// Those of [`LocalNode::stop`] and [`LocalNode::start`].
    pub fn restart(&self) -> Result<(), ClusterError> {
        self.stop(StopMode::Fast)?;
        self.start()
    }

    /// Freezes all its processes: connections stay open and nothing answers.
    pub fn freeze(&self) {
        self.signal_all(Signal::STOP);
    }

    /// Lets it go on after [`LocalNode::freeze`].
    pub fn thaw(&self) {
        self.signal_all(Signal::CONT);
    }

    /// Gives its server another certificate, as an operator does who replaces one before it expires. Returns when new
    /// connections get it.
    ///
    /// # Errors
    ///
    /// The files cannot be written, or the server cannot be reached.
    pub fn set_certificate(&self, certificate: &Certificate) -> Result<(), ClusterError> {
        certificate.install(&self.data, self.host.privileges)?;
        self.reload()
    }

    /// Has its server read its configuration again. Returns when new connections have it.
    ///
    /// # Errors
    ///
    /// It cannot be reached.
    pub fn reload(&self) -> Result<(), ClusterError> {
        let loaded = "SELECT pg_conf_load_time()";
        let before = self.value("postgres", loaded)?;
        self.sql("postgres", "SELECT pg_reload_conf()")?;
        wait_for(&format!("`{}` reads its configuration", self.name), || {
            let now = self.value("postgres", loaded)?;
            Ok((now != before).then_some(()))
        })
    }

    /// Lets a replica receive and not replay. Returns when replay has paused.
    ///
    /// # Errors
    ///
    /// It is not a replica, or cannot be reached.
    pub fn pause_replay(&self) -> Result<(), ClusterError> {
        self.sql("postgres", "SELECT pg_wal_replay_pause()")?;
        let state = "SELECT pg_get_wal_replay_pause_state()";
        wait_for(&format!("replay of `{}` pauses", self.name), || {
            let paused = self.value("postgres", state)?.as_deref() == Some("paused");
            Ok(paused.then_some(()))
        })
    }

    /// Lets a replica replay again after [`LocalNode::pause_replay`].
    ///
    /// # Errors
    ///
    /// It is not a replica, or cannot be reached.
    pub fn resume_replay(&self) -> Result<(), ClusterError> {
        self.sql("postgres", "SELECT pg_wal_replay_resume()")?;
        Ok(())
    }

    /// Makes a replica a primary, and returns when it takes writes.
    ///
    /// # Errors
    ///
    /// It is not a replica, or cannot be reached.
    pub fn promote(&self) -> Result<(), ClusterError> {
        self.sql("postgres", "SELECT pg_promote(false)")?;
        wait_for(&format!("`{}` is promoted", self.name), || {
            let recovering = self.value("postgres", "SELECT pg_is_in_recovery()")?;
            Ok((recovering.as_deref() == Some("f")).then_some(()))
        })
    }

    /// Lets a replica follow nobody, until it is told to [`follow`](Self::follow) somebody again.
    /// Returns when it receives nothing any more.
    ///
    /// # Errors
    ///
    /// It is not a replica, or cannot be reached.
    pub fn detach(&self) -> Result<(), ClusterError> {
        self.sql("postgres", "ALTER SYSTEM SET primary_conninfo = ''")?;
        self.sql("postgres", "SELECT pg_reload_conf()")?;
        wait_for(&format!("`{}` receives nothing", self.name), || {
            let receivers = "SELECT count(*) FROM pg_stat_wal_receiver";
            let none = self.value("postgres", receivers)?.as_deref() == Some("0");
            Ok(none.then_some(()))
        })
    }

    /// Lets a replica follow another node than before, without a restart.
    ///
    /// # Errors
    ///
    /// It cannot be reached.
    pub fn follow(&self, upstream: &Self) -> Result<(), ClusterError> {
        let conninfo = conninfo(upstream, &self.name);
        let set = format!("ALTER SYSTEM SET primary_conninfo = '{conninfo}'");
        self.sql("postgres", &set)?;
        self.sql("postgres", "SELECT pg_reload_conf()")?;
        Ok(())
    }

    /// The first column of the first row.
    pub(super) fn value(
        &self,
        database: &str,
        query: &str,
    ) -> Result<Option<String>, ClusterError> {
        let rows = self.sql(database, query)?;
        Ok(rows
            .into_iter()
            .next()
            .and_then(|row| row.into_iter().next().flatten()))
    }

    /// A server that was killed leaves a small segment of shared memory, which only its next start removes. A system has
    /// some thousands of them; without any no server starts.
    pub(super) fn remove_shared_memory(&self) {
        if let Some(segment) = self.shared_memory().filter(|_| !self.is_running()) {
            let _ = Command::new("ipcrm")
                .args(["-m", &segment])
                .stderr(Stdio::null())
                .status();
        }
    }

    /// The seventh line of `postmaster.pid`: a key, and the segment's number.
    pub(super) fn shared_memory(&self) -> Option<String> {
        let file = std::fs::read_to_string(self.data.join("postmaster.pid")).ok()?;
        let segment = file.lines().nth(6)?.split_whitespace().nth(1)?;
        Some(segment.to_owned())
    }

    fn wait_until_ended(&self) -> Result<(), ClusterError> {
        wait_for(&format!("node `{}` ends", self.name), || {
            Ok((!self.is_running()).then_some(()))
        })
    }

    fn signal_all(&self, signal: Signal) {
        let Some(pid) = self.pid() else {
            return;
        };
        // While it stands still it has no more children.
        let _ = kill_process(pid, Signal::STOP);
        let mut reached = Vec::new();
        loop {
            let children = children_of(pid).into_iter();
            let new: Vec<Pid> = children.filter(|it| !reached.contains(it)).collect();
            if new.is_empty() {
                break;
            }
            // Servers make their children leaders of groups of their own, so each is named.
            for child in new {
                let _ = kill_process(child, signal);
                reached.push(child);
            }
        }
        let _ = kill_process_group(pid, signal);
    }

    fn pid(&self) -> Option<Pid> {
        let process = self.process();
        let id = process.as_ref()?.id();
        i32::try_from(id).ok().and_then(Pid::from_raw)
    }

    fn process(&self) -> MutexGuard<'_, Option<Child>> {
        self.process.lock()
    }
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

impl fmt::Debug for LocalNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalNode")
            .field("name", &self.name)
            .field("port", &self.port())
            .finish_non_exhaustive()
    }
}

/// How a replica reaches the node that it follows.
pub(super) fn conninfo(upstream: &LocalNode, name: &str) -> String {
    let port = upstream.port();
    format!("host=127.0.0.1 port={port} user=postgres application_name={name}")
}
