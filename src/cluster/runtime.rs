//! The runtime that a cluster's sockets, timers and tasks live on.

use parking_lot::Mutex;
use tokio::runtime::{Builder, Handle, Runtime};

use crate::error::Error;

static BACKGROUND: Mutex<Option<Runtime>> = Mutex::new(None);

/// A runtime of this crate's own, on one thread, for clusters that outlive every runtime of the
/// application or are used from none (the synchronous wrapper brings one without timers, which
/// runs only during each call).
pub(crate) fn background() -> Result<Handle, Error> {
    let mut background = BACKGROUND.lock();
    if let Some(runtime) = &*background {
        return Ok(runtime.handle().clone());
    }
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("diesel-replicated")
        .enable_all()
        .build()
        .map_err(|error| Error::Runtime {
            message: error.to_string(),
        })?;
    let handle = runtime.handle().clone();
    *background = Some(runtime);
    Ok(handle)
}
