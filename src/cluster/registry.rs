//! Clusters that connections opened from a URL alone share within the process.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;

use super::handle::Cluster;
use super::of_process::OfProcess;
use super::runtime;
use super::start::{options, started};
use crate::config::Config;
use crate::error::Error;

/// How often an unused cluster is looked for; one that is unused twice in a row is closed. Long
/// enough that a pool which opens one connection at a time does not start the cluster each time.
/// Short enough that nobody who drops the database wonders who is still there.
const LOOK: Duration = Duration::from_secs(2);

/// One lock per URL, so that one cluster that is slow to start holds up no other.
type Slot = Arc<Mutex<Option<Arc<Cluster>>>>;

static CLUSTERS: OfProcess<HashMap<String, Slot>> = OfProcess::new();

/// The cluster behind `url`: the one that others opened, or a new one on the background runtime.
pub(crate) async fn shared(url: &str) -> Result<Arc<Cluster>, Error> {
    let place = slot(url);
    let mut slot = place.lock().await;
    if let Some(cluster) = &*slot {
        return Ok(Arc::clone(cluster));
    }
    let settings = Config::from_url(url)?.validate()?;
    let start_read_only = settings.shared.start_read_only;
    let runtime = runtime::background()?;
    let cluster = Cluster::start(options(settings, runtime.clone()));
    started(&cluster, start_read_only).await?;
    *slot = Some(Arc::clone(&cluster));
    runtime.spawn(close_when_unused(Arc::clone(&place)));
    Ok(cluster)
}

fn slot(url: &str) -> Slot {
    CLUSTERS.with(|clusters| Arc::clone(clusters.entry(url.to_owned()).or_default()))
}

async fn close_when_unused(slot: Slot) {
    let mut unused = false;
    loop {
        tokio::time::sleep(LOOK).await;
        let mut slot = slot.lock().await;
        let free = slot
            .as_ref()
            .is_none_or(|cluster| Arc::strong_count(cluster) == 1);
        if free && unused {
            *slot = None;
            break;
        }
        unused = free;
    }
    forget(&slot);
}

/// Nobody else has the slot, nor can get it while the registry is locked: the URL is forgotten.
fn forget(slot: &Slot) {
    let is_free = |it: &Slot| Arc::ptr_eq(it, slot) && Arc::strong_count(it) == 2;
    CLUSTERS.with(|clusters| clusters.retain(|_, it| !is_free(it)));
}
