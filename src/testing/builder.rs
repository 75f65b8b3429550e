//! What a local cluster is to be like.

use std::path::PathBuf;

use super::{Binaries, ClusterError, LocalCluster};

/// Builds a [`LocalCluster`].
#[derive(Clone, Debug)]
#[must_use]
pub struct LocalClusterBuilder {
    /// The upstream of each replica: `None` is the primary, else the position of a replica.
    pub(super) upstreams: Vec<Option<usize>>,
    pub(super) settings: Vec<(String, String)>,
    pub(super) binaries: Option<PathBuf>,
}

impl Default for LocalClusterBuilder {
    fn default() -> Self {
        Self {
            upstreams: vec![None, None],
            settings: Vec::new(),
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

    /// A setting of `postgresql.conf` on every node.
    pub fn setting(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.push((name.into(), value.into()));
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
