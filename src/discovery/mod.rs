//! Lists of nodes that change while the pool runs.
//!
//! Give a source to [`Builder::discovery`](crate::Builder::discovery). The pool asks it when it is built, and again and
//! again. What is new joins, with a growing share of the reads; what is gone gets no more statements and leaves when
//! its last one has ended; what has another URL or setting is replaced. A node keeps its history over that as long as it
//! keeps its name. The servers themselves tell who the primary is: a list needs no roles.
//!
//! The sources that are there: [`File`]; [`Dns`], the addresses of a name; `Srv` (feature `srv`), its service records;
//! `Patroni` (feature `patroni`), the members of a Patroni cluster; [`from_fn`], what a function returns.
//!
//! While no primary is up, the source is asked once in a second. A source that fails, or returns what cannot be meant (no node at all, more than [`MOST`], two of one name, a URL that
//! cannot be read), changes nothing. That is told as `discovery_failed`, and in `status().degraded`. The primary never
//! leaves while it is the primary.
//!
//! ```
//! use diesel_replicated::discovery::{Dns, File};
//! use diesel_replicated::ReplicatedPool;
//!
//! // One node for each address of the name.
//! let builder = ReplicatedPool::builder()
//!     .primary("postgres://app@primary.db.internal/app")
//!     .discovery(Dns::new("postgres://app@replicas.db.internal/app"));
//! // One line for each node.
//! let builder = ReplicatedPool::builder().discovery(File::new("/etc/app/nodes"));
//! ```

mod checked;
mod dns;
mod file;
#[cfg(feature = "patroni")]
mod patroni;
#[cfg(feature = "srv")]
mod srv;

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::time::Duration;

use async_trait::async_trait;

use crate::config::NodeConfig;

pub(crate) use checked::check;
pub use dns::Dns;
pub use file::File;
#[cfg(feature = "patroni")]
#[cfg_attr(docsrs, doc(cfg(feature = "patroni")))]
pub use patroni::Patroni;
#[cfg(feature = "srv")]
#[cfg_attr(docsrs, doc(cfg(feature = "srv")))]
pub use srv::Srv;

/// The most nodes that a list may have.
pub const MOST: usize = 64;

/// How often a source is asked that does not say otherwise.
const INTERVAL: Duration = Duration::from_secs(5);

/// How long a question may take, however many are asked: less than the pool waits for a list, so that it is told why.
const PATIENCE: Duration = Duration::from_secs(8);

/// What a source may fail with. Its text is shown in `status()` and logs, so it must hold no secret.
pub type DiscoveryError = Box<dyn Error + Send + Sync>;

/// A source of the nodes of a pool.
#[async_trait]
pub trait Discovery: Send + Sync + 'static {
    /// The nodes as they are now. Names should be those of servers, and stay: see [`NodeConfig::name`]. The default name is
    /// `host:port`.
    ///
    /// # Errors
    ///
    /// The source cannot be asked. Then the pool goes on with what it has.
    async fn nodes(&self) -> Result<Vec<NodeConfig>, DiscoveryError>;

    /// Returns when it is worth asking again. Default: after 5 seconds.
    async fn changed(&self) {
        tokio::time::sleep(INTERVAL).await;
    }
}

/// A source that calls `list` once in `interval`.
///
/// ```
/// use std::time::Duration;
///
/// use diesel_replicated::discovery::from_fn;
/// use diesel_replicated::{NodeConfig, ReplicatedPool};
/// # async fn fetch() -> Result<Vec<(String, String)>, std::io::Error> { Ok(Vec::new()) }
///
/// let nodes = from_fn(Duration::from_secs(10), || async {
///     let members = fetch().await?;
///     Ok(members
///         .into_iter()
///         .map(|(name, url)| NodeConfig::new(url).name(name))
///         .collect())
/// });
/// let builder = ReplicatedPool::builder().discovery(nodes);
/// ```
pub fn from_fn<F, Fut>(interval: Duration, list: F) -> impl Discovery
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Vec<NodeConfig>, DiscoveryError>> + Send,
{
    FromFn { interval, list }
}

struct FromFn<F> {
    interval: Duration,
    list: F,
}

impl<F> fmt::Debug for FromFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FromFn").finish_non_exhaustive()
    }
}

#[async_trait]
impl<F, Fut> Discovery for FromFn<F>
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Vec<NodeConfig>, DiscoveryError>> + Send,
{
    async fn nodes(&self) -> Result<Vec<NodeConfig>, DiscoveryError> {
        (self.list)().await
    }

    async fn changed(&self) {
        tokio::time::sleep(self.interval).await;
    }
}
