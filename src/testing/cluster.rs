//! A primary and its replicas.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;

use super::certificates::Authority;
use super::error::{ClusterError, io};
use super::folders::{configure, follow, place, place_for_data, replace, rewind, set};
use super::node::{Host, LocalNode, StopMode};
use super::pristine::Pristine;
use super::privileges::Privileges;
use super::watchdog::Watchdog;
use super::{Binaries, wait_for};

/// A primary and its streaming replicas, on ports of this machine's loopback interface.
///
/// Dropping it ends the servers and removes their files; so does the end of the process, however
/// it ends.
pub struct LocalCluster {
    primary: LocalNode,
    replicas: Vec<LocalNode>,
    host: Arc<Host>,
    authority: Option<Authority>,
    watchdog: Watchdog,
    directory: Option<TempDir>,
    /// While it is held, the next cluster need not make it.
    _pristine: Arc<Pristine>,
}

impl LocalCluster {
    /// Starts a primary and two replicas.
    ///
    /// # Errors
    ///
    /// There is no PostgreSQL server, or it cannot be started.
    pub fn start() -> Result<Self, ClusterError> {
        Self::builder().start()
    }

    /// Starts to describe a cluster.
    pub fn builder() -> LocalClusterBuilder {
        LocalClusterBuilder::default()
    }

    fn start_with(builder: LocalClusterBuilder, binaries: Binaries) -> Result<Self, ClusterError> {
        let privileges = Privileges::choose()?;
        let host = Arc::new(Host {
            binaries,
            privileges,
        });
        let directory = tempfile::Builder::new()
            .prefix("diesel-replicated-")
            .tempdir_in(place_for_data())
            .map_err(io("cannot make a temporary folder"))?;
        privileges.own(directory.path())?;
        let watchdog = Watchdog::start(directory.path())?;
        let template = directory.path().join("template");
        let pristine = Pristine::get(&host)?;
        pristine.place(&host, &template)?;
        configure(&template, &builder.settings, &builder.rules)?;
        let authority = match builder.tls {
            true => Some(secure(&host, &template)?),
            false => None,
        };

        let data = place(&host, directory.path(), &template, "primary")?;
        let primary = LocalNode::new("primary", data, Arc::clone(&host))?;
        let mut cluster = Self {
            primary,
            replicas: Vec::new(),
            host,
            authority,
            watchdog,
            directory: Some(directory),
            _pristine: pristine,
        };
        start_on_a_free_port(&cluster.primary)?;
        for upstream in &builder.upstreams {
            cluster.place_replica(&template, *upstream)?;
        }
        for replica in &cluster.replicas {
            replica.wait_until_up()?;
        }
        cluster.wait_until_streaming()?;
        Ok(cluster)
    }

    /// Copies the template, which has never run: all copies are the same cluster at its start.
    fn place_replica(
        &mut self,
        template: &Path,
        upstream: Option<usize>,
    ) -> Result<(), ClusterError> {
        let name = format!("replica-{}", self.replicas.len() + 1);
        let parent = template.parent().unwrap_or(template);
        let data = place(&self.host, parent, template, &name)?;
        let replica = LocalNode::new(&name, data, Arc::clone(&self.host))?;
        let upstream = upstream.and_then(|place| self.replicas.get(place));
        follow(
            &replica,
            upstream.unwrap_or(&self.primary),
            self.host.privileges,
        )?;
        replica.spawn()?;
        self.replicas.push(replica);
        Ok(())
    }

    /// Adds a replica of the primary, and returns when it has caught up.
    ///
    /// # Errors
    ///
    /// It cannot be made or started.
    pub fn add_replica(&mut self) -> Result<&LocalNode, ClusterError> {
        let Some(directory) = &self.directory else {
            return Err(ClusterError::Config("the cluster has ended".to_owned()));
        };
        // The primary still has all its WAL, so a copy of the start can follow it.
        let template = directory.path().join("template");
        self.place_replica(&template, None)?;
        if let Some(added) = self.replicas.last() {
            added.wait_until_up()?;
        }
        self.wait_caught_up()?;
        self.replicas
            .last()
            .ok_or_else(|| ClusterError::Config("no replica was added".to_owned()))
    }

    /// Wipes a node and makes it a replica of another, as operators do with an old primary after a
    /// failover. Returns when it answers; it may still have to catch up.
    ///
    /// # Errors
    ///
    /// It cannot be stopped, made or started.
    pub fn rebuild(&self, node: &LocalNode, upstream: &LocalNode) -> Result<(), ClusterError> {
        let Some(directory) = &self.directory else {
            return Err(ClusterError::Config("the cluster has ended".to_owned()));
        };
        node.thaw();
        node.kill()?;
        replace(&self.host, &directory.path().join("template"), node)?;
        follow(node, upstream, self.host.privileges)?;
        node.start()
    }

    /// Has a node forget what `upstream` does not have, by `pg_rewind`, and starts it as a replica of that, as operators
    /// do with an old primary after a failover. It takes servers with the setting `wal_log_hints`. Returns when the node
    /// answers.
    ///
    /// # Errors
    ///
    /// It cannot be stopped, rewound or started.
    pub fn rewind(&self, node: &LocalNode, upstream: &LocalNode) -> Result<(), ClusterError> {
        node.thaw();
        if node.is_running() {
            node.stop(StopMode::Fast)?;
        }
        // Before version 16 `pg_rewind` knows the timeline of the last checkpoint alone.
        upstream.sql("postgres", "CHECKPOINT")?;
        rewind(&self.host, node, upstream)?;
        node.start()
    }

    /// The node that took writes when the cluster started.
    #[doc(alias = "master")]
    #[must_use]
    pub fn primary(&self) -> &LocalNode {
        &self.primary
    }

    /// The nodes that followed when the cluster started, or were added since.
    #[doc(alias = "slave")]
    #[must_use]
    pub fn replicas(&self) -> &[LocalNode] {
        &self.replicas
    }

    /// All nodes, the primary first.
    pub fn nodes(&self) -> impl Iterator<Item = &LocalNode> {
        std::iter::once(&self.primary).chain(&self.replicas)
    }

    /// The node of this name.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&LocalNode> {
        self.nodes().find(|node| node.name() == name)
    }

    /// One URL with all nodes, as [`ReplicatedPool::connect`](crate::ReplicatedPool::connect)
    /// takes it.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        let hosts: Vec<String> = self
            .nodes()
            .map(|node| format!("127.0.0.1:{}", node.port()))
            .collect();
        format!("postgres://postgres@{}/{database}", hosts.join(","))
    }

    /// Who has signed the certificates of the servers, with [`LocalClusterBuilder::tls`].
    #[must_use]
    pub fn authority(&self) -> Option<&Authority> {
        self.authority.as_ref()
    }

    /// The file of the authority's certificate, for `sslrootcert`; it exists with [`LocalClusterBuilder::tls`].
    #[must_use]
    pub fn root_certificate(&self) -> PathBuf {
        let directory = self.directory.as_ref().map(TempDir::path);
        directory.unwrap_or(Path::new("")).join(ROOT)
    }

    /// The major version of the servers.
    #[must_use]
    pub fn major_version(&self) -> u32 {
        self.host.binaries.major_version()
    }

    /// Makes a database, and returns when every running replica has it.
    ///
    /// # Errors
    ///
    /// It exists, or the primary cannot be reached.
    pub fn create_database(&self, name: &str) -> Result<(), ClusterError> {
        let quoted = name.replace('"', "\"\"");
        self.primary
            .sql("postgres", &format!("CREATE DATABASE \"{quoted}\""))?;
        self.wait_caught_up()
    }

    /// Waits until every running replica has replayed what the primary has written by now.
    ///
    /// # Errors
    ///
    /// The primary cannot be reached, or a replica does not catch up.
    pub fn wait_caught_up(&self) -> Result<(), ClusterError> {
        let running = self.replicas.iter().filter(|replica| replica.is_running());
        wait_replayed(&self.primary, running)
    }

    fn wait_until_streaming(&self) -> Result<(), ClusterError> {
        let streams = "SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'";
        for replica in &self.replicas {
            wait_for(&format!("`{}` streams", replica.name()), || {
                let streaming = replica.value("postgres", streams)?;
                Ok((streaming.as_deref() == Some("1")).then_some(()))
            })?;
        }
        self.wait_caught_up()
    }
}

/// Waits until each of these standbys has replayed what the primary has written by now.
pub(super) fn wait_replayed<'a>(
    primary: &LocalNode,
    standbys: impl IntoIterator<Item = &'a LocalNode>,
) -> Result<(), ClusterError> {
    let position = primary.value("postgres", "SELECT pg_current_wal_flush_lsn()")?;
    let position = position.unwrap_or_default();
    let reached = format!("SELECT pg_last_wal_replay_lsn() >= '{position}'::pg_lsn");
    for standby in standbys {
        wait_for(&format!("`{}` replays {position}", standby.name()), || {
            let caught_up = standby.value("postgres", &reached)?;
            Ok((caught_up.as_deref() == Some("t")).then_some(()))
        })?;
    }
    Ok(())
}

impl Drop for LocalCluster {
    fn drop(&mut self) {
        // Replicas first: they would log the loss of the primary.
        for node in self.replicas.iter().chain([&self.primary]) {
            node.thaw();
            if node.stop(StopMode::Immediate).is_err() {
                let _ = node.kill();
            }
            node.remove_shared_memory();
        }
        self.watchdog.dismiss();
        // What cannot be removed is left to the system's own cleaning.
        let _ = self.directory.take().map(TempDir::close);
    }
}

/// The file of the authority's certificate, beside the folders of the nodes.
const ROOT: &str = "root.crt";

/// Gives the template a certificate, and has its servers speak TLS.
fn secure(host: &Host, template: &Path) -> Result<Authority, ClusterError> {
    let authority = Authority::new()?;
    let root = template.with_file_name(ROOT);
    std::fs::write(&root, authority.pem()).map_err(io("cannot write a certificate"))?;
    authority.server()?.install(template, host.privileges)?;
    set(template, "ssl", "on")?;
    set(template, "ssl_ca_file", &root.display().to_string())?;
    Ok(authority)
}

/// Another process may have taken the port since it was found free.
fn start_on_a_free_port(node: &LocalNode) -> Result<(), ClusterError> {
    const TRIES: usize = 5;
    let mut result = node.start();
    for _ in 1..TRIES {
        if result.is_ok() || !node.lost_its_port() {
            break;
        }
        node.change_port()?;
        result = node.start();
    }
    result
}

impl fmt::Debug for LocalCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalCluster")
            .field("primary", &self.primary)
            .field("replicas", &self.replicas)
            .finish_non_exhaustive()
    }
}

/// Builds a [`LocalCluster`].
#[derive(Clone, Debug)]
#[must_use]
pub struct LocalClusterBuilder {
    /// The upstream of each replica: `None` is the primary, else the position of a replica.
    upstreams: Vec<Option<usize>>,
    settings: Vec<(String, String)>,
    rules: Vec<String>,
    tls: bool,
    binaries: Option<PathBuf>,
}

impl Default for LocalClusterBuilder {
    fn default() -> Self {
        Self {
            upstreams: vec![None, None],
            settings: Vec::new(),
            rules: Vec::new(),
            tls: false,
            binaries: None,
        }
    }
}

impl LocalClusterBuilder {
    /// How many replicas follow the primary itself. Defaults to 2.
    pub fn replicas(mut self, replicas: usize) -> Self {
        self.upstreams = vec![None; replicas];
        self
    }

    /// One more replica, which follows the replica at this position (from 0).
    pub fn cascading_from(mut self, replica: usize) -> Self {
        self.upstreams.push(Some(replica));
        self
    }

    /// A setting of `postgresql.conf` on every node. Replicas do not start with less than `initdb` gave their primary of
    /// [what a standby needs](https://www.postgresql.org/docs/current/hot-standby.html#HOT-STANDBY-ADMIN), such as 100
    /// for `max_connections`.
    pub fn setting(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    /// A line of `pg_hba.conf` on every node, before those that let everybody in. The superuser `postgres`, as whom the
    /// cluster is looked after, must get in from 127.0.0.1 without a password and without TLS.
    pub fn rule(mut self, line: impl Into<String>) -> Self {
        self.rules.push(line.into());
        self
    }

    /// Every node speaks TLS, with a certificate for `localhost`, `127.0.0.1` and `::1`, which the
    /// [`authority`](LocalCluster::authority) of the cluster has signed. Connections without are let in, too, unless a
    /// [`rule`](Self::rule) says otherwise.
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// The folder of the server's programs. Defaults to what [`Binaries::find`] finds.
    pub fn binaries(mut self, directory: impl Into<PathBuf>) -> Self {
        self.binaries = Some(directory.into());
        self
    }

    /// Starts the cluster, and returns when every replica streams.
    ///
    /// # Errors
    ///
    /// There is no PostgreSQL server, it cannot be started, or the settings make no sense.
    pub fn start(self) -> Result<LocalCluster, ClusterError> {
        let upstream_is_later = |(place, upstream): (usize, &Option<usize>)| {
            upstream.is_some_and(|upstream| upstream >= place)
        };
        if self.upstreams.iter().enumerate().any(upstream_is_later) {
            return Err(ClusterError::Config(
                "a cascading replica must follow a replica that was named before it".to_owned(),
            ));
        }
        let binaries = match &self.binaries {
            Some(directory) => Binaries::in_directory(directory)?,
            None => Binaries::find()?,
        };
        LocalCluster::start_with(self, binaries)
    }
}
