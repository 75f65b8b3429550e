//! Where the database comes from.

use std::sync::Arc;

use diesel_replicated::ReplicatedPool;
use diesel_replicated::testing::LocalCluster;
use tokio::task::spawn_blocking;

use super::{Failure, app};

/// The database of the cluster that is started here.
const NAME: &str = "blog";

/// What the blog runs on.
pub(crate) enum Database {
    /// The servers of `DATABASE_URL` and its like; the database should be the blog's alone.
    Given,
    /// Servers that were started for this run and end with it.
    Local(Arc<LocalCluster>),
}

impl Database {
    pub(crate) async fn open() -> Result<Self, Failure> {
        if std::env::var_os("DATABASE_URL").is_some() {
            return Ok(Self::Given);
        }
        tracing::info!("starting a primary and two replicas");
        let cluster = spawn_blocking(|| -> Result<LocalCluster, Failure> {
            let cluster = LocalCluster::start()?;
            cluster.create_database(NAME)?;
            Ok(cluster)
        });
        Ok(Self::Local(Arc::new(cluster.await??)))
    }

    pub(crate) async fn pool(&self) -> Result<ReplicatedPool, Failure> {
        match self {
            Self::Given => Ok(ReplicatedPool::from_env().await?),
            Self::Local(cluster) => app::pool_on(cluster, NAME).await,
        }
    }

    /// The servers and the name of the database, where they are the application's own.
    pub(crate) fn own(&self) -> Option<(&Arc<LocalCluster>, &str)> {
        match self {
            Self::Given => None,
            Self::Local(cluster) => Some((cluster, NAME)),
        }
    }

    /// Takes away what was started here.
    pub(crate) async fn close(self) {
        if let Self::Local(cluster) = self {
            if let Err(error) = spawn_blocking(move || drop(cluster)).await {
                tracing::error!(%error, "the cluster did not end in order");
            }
        }
    }
}
