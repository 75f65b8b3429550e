//! When a replica is promoted without anybody asking for it: the primary is gone, and stays away.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::{sleep, timeout};

use super::promotion::{Order, Promoter};
use super::topology::Topology;
use crate::error::Error;

/// After a refusal it is tried again after this time at the least, and twice as long at the most: two
/// processes that hindered each other shall not do so again.
const RETRY: Duration = Duration::from_millis(100);

/// How long the others have to hear of the new primary before anything is done again.
const SETTLING: Duration = Duration::from_secs(5);

impl Promoter {
    /// Goes on until the pool is closed.
    pub(super) async fn run(mut self) {
        loop {
            let round = AssertUnwindSafe(self.wait_and_promote()).catch_unwind();
            match round.await {
                Ok(true) => {}
                Ok(false) => return,
                Err(_) => {
                    tracing::error!(target: "diesel_replicated", error = "the promoter panicked", "task_died");
                    sleep(RETRY).await;
                }
            }
        }
    }

    /// Waits until the primary is gone and does what can be done. `false` if the pool is closed.
    async fn wait_and_promote(&mut self) -> bool {
        let gone = |topology: &Arc<Topology>| topology.has_lost_its_primary();
        if self.topology.wait_for(gone).await.is_err() {
            return false;
        }
        let mut refused = String::new();
        let mut pause = self.config.after;
        loop {
            let back = self.topology.wait_for(|topology| !gone(topology));
            match timeout(pause, back).await {
                Ok(back) => return back.is_ok(),
                Err(_) => pause = RETRY.mul_f64(1.0 + rand::random::<f64>()),
            }
            // A primary that gives way to another is gone for a while, and that is nobody else's business.
            let replacing = Arc::clone(&self.replacing);
            let _alone = replacing.lock().await;
            if !gone(&self.topology.borrow()) {
                continue;
            }
            match self.promote(&Order::default()).await {
                Ok(_) => {
                    let _ =
                        timeout(SETTLING, self.topology.wait_for(|topology| !gone(topology))).await;
                    return true;
                }
                Err(Error::PromotionRefused { reasons }) => {
                    let reason = reasons
                        .iter()
                        .map(ToString::to_string)
                        .collect::<Vec<_>>()
                        .join("; ");
                    // Said once for as long as it stays the same but for numbers.
                    let gist: String = reason.chars().filter(|c| !c.is_ascii_digit()).collect();
                    if gist != refused {
                        tracing::warn!(target: "diesel_replicated", reason, "promotion_refused");
                        refused = gist;
                    }
                }
                Err(error) => {
                    tracing::error!(target: "diesel_replicated", %error, "promotion_failed");
                    sleep(SETTLING).await;
                }
            }
        }
    }
}
