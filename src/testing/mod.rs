//! A real PostgreSQL cluster in about a second: a primary, its streaming replicas, and faults.
//!
//! For tests and demonstrations: data is not flushed to disk, and anyone on this machine may
//! connect. Everything here blocks; inside a runtime call it through
//! `tokio::task::spawn_blocking`, at least what starts and waits.
//!
//! ```no_run
//! use diesel_replicated::testing::LocalCluster;
//!
//! let cluster = LocalCluster::start()?;
//! cluster.create_database("app")?;
//! println!("{}", cluster.url("app"));
//! cluster.replicas()[0].kill()?;
//! # Ok::<(), diesel_replicated::testing::ClusterError>(())
//! ```

mod binaries;
mod certificates;
mod cluster;
mod error;
mod folders;
mod groups;
mod node;
mod ports;
mod pristine;
mod privileges;
mod processes;
mod proxy;
mod sql;
#[cfg(test)]
mod tests;
mod watchdog;

pub use binaries::Binaries;
pub use certificates::{Authority, Certificate};
pub use cluster::{LocalCluster, LocalClusterBuilder};
pub use error::ClusterError;
pub use groups::{LocalGroups, LocalGroupsBuilder};
pub use node::{LocalNode, StopMode};
pub use proxy::Proxy;

use std::time::{Duration, Instant};

/// The longest wait for anything here.
const PATIENCE: Duration = Duration::from_secs(30);

/// Polls until `done` returns a value. Fails with the name `what` after the longest wait.
fn wait_for<T>(
    what: &str,
    mut done: impl FnMut() -> Result<Option<T>, ClusterError>,
) -> Result<T, ClusterError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = done()? {
            return Ok(answer);
        }
        if Instant::now() > deadline {
            return Err(ClusterError::TimedOut {
                what: what.to_owned(),
                waited: PATIENCE,
            });
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
