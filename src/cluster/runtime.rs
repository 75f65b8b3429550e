//! The runtime that a cluster's sockets, timers and tasks live on.

use tokio::runtime::{Builder, Handle, Runtime};

use super::of_process::OfProcess;
use crate::error::Error;

static BACKGROUND: OfProcess<Option<Runtime>> = OfProcess::new();

/// A runtime of this crate's own, on one thread, for clusters that outlive every runtime of the
/// application or are used from none (the synchronous wrapper brings one without timers, which
/// runs only during each call).
pub(crate) fn background() -> Result<Handle, Error> {
    BACKGROUND.with(|background| match background {
        Some(runtime) => Ok(runtime.handle().clone()),
        None => Ok(background.insert(started()?).handle().clone()),
    })
}

fn started() -> Result<Runtime, Error> {
    Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("diesel-replicated")
        .enable_all()
        .build()
        .map_err(|error| Error::Runtime {
            message: error.to_string(),
        })
}
