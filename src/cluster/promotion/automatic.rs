//! Promotes a replica without being asked: the primary is gone, and stays away.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::{sleep, timeout};

use super::outlook::AGAIN;
use super::promoter::{Promoter, PromotionRequest};
use crate::cluster::topology::Topology;
use crate::error::Error;

/// After a refusal it tries again after this time at the least, and twice as long at the most. Two processes that
/// hindered each other must not do so again.
const RETRY: Duration = Duration::from_millis(100);

/// How long the others have to hear of the new primary before anything is done again.
const SETTLING: Duration = Duration::from_secs(5);

impl Promoter {
    /// Goes on until the pool is closed.
    pub(in crate::cluster) async fn run(mut self) {
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

    async fn looked_ahead(&self) -> bool {
        let topology = self.topology.borrow().clone();
        let (database, limit) = (&self.config.promotion.database, self.config.health.timeout);
        self.outlook.look_ahead(&topology, database, limit).await
    }

    /// Waits until the primary is gone. Meanwhile looks what would stand in the way of a promotion. `false` if the
    /// pool is closed.
    async fn until_gone(&mut self) -> bool {
        let mut lost = self.topology.clone();
        let lost = lost.wait_for(|topology| topology.has_lost_its_primary());
        tokio::select! {
            lost = lost => lost.is_ok(),
            () = self.look_until_able() => false,
        }
    }

    /// Looks at what stands in the way until nothing does. Does not return.
    async fn look_until_able(&self) {
        let mut topology = self.topology.clone();
        let settled = topology
            .wait_for(|topology| topology.is_settled())
            .await
            .is_ok();
        if settled {
            while !self.looked_ahead().await {
                sleep(AGAIN).await;
            }
        }
        std::future::pending().await
    }

    /// Waits until the primary is gone, and promotes a replica if it can. `false` if the pool is closed.
    async fn wait_and_promote(&mut self) -> bool {
        if !self.until_gone().await {
            return false;
        }
        let gone = |topology: &Arc<Topology>| topology.has_lost_its_primary();
        self.outlook.begins();
        let mut pause = self.config.promotion.after;
        loop {
            let back = self.topology.wait_for(|topology| !gone(topology));
            match timeout(pause, back).await {
                Ok(back) => return back.is_ok(),
                Err(_) => pause = RETRY.mul_f64(1.0 + rand::random::<f64>()),
            }
            // A primary that gives way to another is gone for a while.
            let replacing = Arc::clone(&self.replacing);
            let _alone = replacing.lock().await;
            if !gone(&self.topology.borrow()) {
                continue;
            }
            match self.promote(&PromotionRequest::default()).await {
                Ok(_) => {
                    let _ =
                        timeout(SETTLING, self.topology.wait_for(|topology| !gone(topology))).await;
                    return true;
                }
                Err(Error::PromotionRefused { .. }) => {}
                Err(_) => sleep(SETTLING).await,
            }
        }
    }
}
